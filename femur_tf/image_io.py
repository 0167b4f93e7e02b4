"""Image files: the only place that opens and writes them.

Reads NIfTI, NRRD, MetaImage and a folder with one DICOM series. Voxels come in the
file's own axis order, (x, y, z) with x fastest in the file, with the affine that
takes an index to RAS mm; SimpleITK's LPS is turned on the way in and out. A result
is written on the grid of its image, and a NIfTI result keeps that image's header.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel import filebasedimages, openers, spatialimages

from femur_tf import command, files, header_geometry, intensity
from femur_tf.errors import DataError, WriteError
from femur_tf.volume import Volume, lps_affine, require_same_grid, to_lps

NIFTI = (".nii", ".nii.gz")
READABLE = (*NIFTI, ".nrrd", ".nhdr", ".mha", ".mhd")
WRITABLE = (*NIFTI, ".nrrd", ".mha")
"""Formats of one file; `.nhdr` and `.mhd` keep their voxels in a second one, which cannot be renamed with it."""
DAMAGED = "It is damaged, cut short or not an image: export it again."
LIBRARY_ERRORS = (filebasedimages.ImageFileError, spatialimages.HeaderDataError, zlib.error)  # beside built-in ones


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """A volume as a file holds it."""

    volume: Volume
    path: Path
    header: nibabel.Nifti1Header | None = None
    """The header of a NIfTI file, which results keep; None for other formats."""
    doubt: str | None = None
    """What the file leaves open of its geometry, and what is assumed; None where it leaves nothing open."""


def _error(path: Path, expected: str, received: object, advice: str) -> DataError:
    """Return the error that names the file, what was expected, what it holds and what to do."""
    return DataError(f"{path}: expected {expected}. Received: {received}. {advice}")


@contextlib.contextmanager
def _library(
    path: Path, expected: str = "a whole image", advice: str = DAMAGED, kind: type[DataError] = DataError
) -> Iterator[None]:
    """Turn what nibabel and SimpleITK raise into an error of a kind for `path`; reading is the default."""
    try:
        yield
    except (*LIBRARY_ERRORS, EOFError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).rpartition("ERROR: ")[2].split()).rstrip(".") or type(error).__name__
        raise kind(f"{path}: expected {expected}. Received: {reason}. {advice}") from error


@contextlib.contextmanager
def _named(file: object, advice: str = "") -> Iterator[None]:
    """Turn a `ValueError` of what a file holds into an error that names the file."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{file}: {error}{advice}") from error


def image_suffix(path: Path) -> str | None:
    """Return the suffix in lower case by which an image file is known, `.nii.gz` whole; None for another file."""
    return next((suffix for suffix in READABLE if path.name.lower().endswith(suffix)), None)


def case_name(path: Path) -> str:
    """Return a case's name: its file's name without the image suffix, or its folder's name."""
    return path.name[: len(path.name) - len(image_suffix(path) or "")]


def is_dicom_folder(path: Path) -> bool:
    """Tell whether `path` is a folder that directly holds a DICOM file."""
    return path.is_dir() and any(_is_dicom_file(entry) for entry in sorted(path.iterdir()))


def _is_dicom_file(path: Path) -> bool:
    """Tell whether a file has DICOM's mark, `DICM` after a preamble of 128 bytes."""
    if path.name.startswith(".") or not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def list_images(folder: Path) -> dict[str, Path]:
    """List the cases in a folder: image files and subfolders of DICOM files; hidden and other entries are passed over.

    Returns:
      Case name -> path, sorted by name; empty where the folder has no image.

    Raises:
      DataError: not a folder, or two images of one case name.
    """
    if not folder.is_dir():
        raise _error(folder, "a folder of images", "a file" if folder.exists() else "nothing there", "Check the path.")
    cases: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not ((path.is_file() and image_suffix(path)) or is_dicom_folder(path)):
            continue
        other = cases.setdefault(case_name(path), path)
        if other != path:
            raise _error(path, "one image a case", f"{other.name} has the same case name", "Remove or rename one.")
    return dict(sorted(cases.items()))


def read_image(path: Path) -> Image:
    """Read a volume, and warn where its geometry is assumed or a fill value would squeeze its grey values.

    Args:
      path: a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.

    Returns:
      The voxels in the file's axis order, with its intensity scale applied; a fourth axis of length 1 is dropped.

    Raises:
      DataError: nothing there, unreadable, not 3-D, several series or an uneven one, bad geometry, non-finite voxels.
    """
    image = _read(path)
    for doubt in (image.doubt, intensity.fill_doubt(image.volume.data)):
        if doubt:
            command.warn(f"{path}: {doubt}")
    return image


def _read(path: Path) -> Image:
    """Read a volume as `read_image` does, without a warning."""
    if not path.exists():
        raise _error(path, "an image file or a DICOM folder", "nothing there", "Check the path.")
    if path.is_dir():
        return _from_sitk(_read_series(path), path)
    suffix = image_suffix(path)
    if suffix in NIFTI:
        return _read_nifti(path)
    if suffix:
        with _library(path):
            image = sitk.ReadImage(str(path))
        result = _from_sitk(image, path)
        with path.open("rb") as stream, _named(path):
            return dataclasses.replace(result, doubt=header_geometry.text_doubt(stream, result.volume.affine))
    raise _error(path, f"{', '.join(READABLE)} or a DICOM folder", "another file", "Convert it, or hand in the folder.")


def _read_nifti(path: Path) -> Image:
    """Read a NIfTI file, version 1 or 2."""
    with _library(path):
        image = nibabel.load(path, mmap=False)
        if not isinstance(image, nibabel.Nifti1Image):  # CIFTI has the suffix too
            raise filebasedimages.ImageFileError(f"a {type(image).__name__}")
        with openers.ImageOpener(str(path)) as stream:
            raw = type(image.header).from_fileobj(stream, check=False)  # as stored: nibabel mends what it loads
            while stream.read(2**24):  # to the end, where gzip's checksum is
                pass
        data = np.asarray(image.dataobj)
    with _named(path):
        header_geometry.check_nifti(raw)
    doubt = header_geometry.nifti_doubt(image.header, image.affine)
    return Image(_volume(data, image.affine, path), path, image.header, doubt)


def _read_series(folder: Path) -> sitk.Image:
    """Read the one DICOM series in a folder, its slices in order of position."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), _find_series(folder))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    with _library(folder):
        image = reader.Execute()
    known = [[tag for tag in header_geometry.TAGS if reader.HasMetaDataKey(k, tag)] for k in range(len(names))]
    slices = [{tag: reader.GetMetaData(k, tag) for tag in tags} for k, tags in enumerate(known)]
    with _named(folder):
        header_geometry.check([Path(name).name for name in names], slices)
    return image


def _find_series(folder: Path) -> str:
    """Return the identifier of the one DICOM series in a folder."""
    known = is_dicom_folder(folder)  # without one, the reader prints a warning of its own
    series: Sequence[str] = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) if known else ()
    if len(series) != 1:
        received = f"{len(series)} series ({_listed(sorted(series))})" if series else "no DICOM file in it"
        raise _error(folder, "one DICOM series", received, "Hand in a folder with the slices of just one series.")
    return series[0]


def _listed(values: Sequence[object] | np.ndarray, most: int = 10) -> str:
    """Return the first values as text, with a mark where some are left out."""
    return ", ".join([str(value) for value in values[:most]] + ["and more"] * (len(values) > most))


def _from_sitk(image: sitk.Image, path: Path) -> Image:
    """Return a SimpleITK image, checked."""
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() < 3:
        received = f"shape {image.GetSize()}, {image.GetNumberOfComponentsPerPixel()} values a voxel"
        raise _error(path, "a 3-D image with one real value a voxel", received, "Hand in the whole volume, in grey.")
    return Image(_volume(sitk.GetArrayFromImage(image).T, lps_affine(image), path), path)


def _volume(data: np.ndarray, affine: np.ndarray, path: Path) -> Volume:
    """Return a checked volume of native byte order, axes of length 1 beyond the third dropped."""
    if data.dtype.kind not in "biuf":
        raise _error(path, "one real value a voxel", data.dtype, "Hand in a grey image.")
    data = data.reshape(data.shape[:3]) if data.ndim > 3 and data.size == np.prod(data.shape[:3]) else data
    bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if bad:
        raise _error(path, "finite voxels", f"{bad} of {data.size} NaN or infinite", "Replace them first.")
    with _named(path, ". Hand in one 3-D volume with its geometry."):
        return Volume(data.astype(data.dtype.newbyteorder("="), copy=False), affine)


def read_mask(path: Path, *, like: Image, label: int | None) -> np.ndarray:
    """Read a mask drawn on an image.

    Args:
      path: a mask of any format that `read_image` reads.
      like: the image; the mask must lie on its grid.
      label: the value that is femur; None: the one value besides 0.

    Returns:
      bool, on the image's grid; all false where the file holds only zeros.

    Raises:
      DataError: unreadable, another grid, values that are not whole numbers, several labels or not the chosen one.
    """
    volume = _read(path).volume  # on the image's grid, so that what is assumed of it is assumed of the image
    with _named(f"{path}: not on the grid of {like.path}", ". Resample the mask to the image."):
        require_same_grid(volume, like.volume)
    values = np.unique(volume.data)
    broken = values[values != np.round(values)]
    if broken.size:
        raise _error(path, "whole numbers as labels", _listed(broken), "Hand in a mask, not a probability map.")
    labels = [int(value) for value in values if value != 0]
    return volume.data == _choose(path, labels, label) if labels else np.zeros(volume.shape, bool)


def _choose(path: Path, labels: list[int], label: int | None) -> int:
    """Return the label that is femur, of those in the mask."""
    if label is None and len(labels) > 1:
        raise _error(path, "one label besides 0", _listed(labels), "Pass --label N with the one that is femur.")
    if label is not None and label not in labels:
        raise _error(path, f"label {label}", f"labels {_listed(labels)}", "Pass --label N with one of these.")
    return labels[0] if label is None else label


def check_suffix(path: Path) -> str:
    """Return the suffix of a file to write; raise a `DataError` where no writable format is known by it."""
    suffix = image_suffix(path)
    if suffix not in WRITABLE:
        raise _error(path, f"a name that ends in {', '.join(WRITABLE)}", path.name, "Choose another name.")
    return suffix


def write_image(path: Path, data: np.ndarray, *, like: Image) -> None:
    """Write an array on the grid of an image, whole or not at all.

    Args:
      path: its suffix chooses the format: .nii, .nii.gz, .nrrd or .mha.
      data: on the image's grid; floats are stored as float32, bool and integers in 0..255 as uint8, others as they are.
      like: the image; NIfTI to NIfTI keeps its header.

    Raises:
      ValueError: `data` has another shape than the image.
      DataError: another suffix.
      WriteError: the writer failed.
    """
    if data.shape != like.volume.shape:
        raise ValueError(f"data: expected the image's shape {like.volume.shape}. Received: {data.shape}")
    suffix = check_suffix(path)
    small = data.dtype.kind != "f" and data.min() >= 0 and data.max() <= 255
    stored = data.astype(np.float32 if data.dtype.kind == "f" else np.uint8 if small else data.dtype)
    advice = "Free space, or write elsewhere."
    with _library(path, "room for an image", advice, WriteError), files.whole(path) as temporary:
        if suffix in NIFTI:
            nibabel.save(_to_nifti(stored, like), temporary)
        else:
            sitk.WriteImage(to_lps(Volume(stored, like.volume.affine)), str(temporary), useCompression=True)
            sitk.ReadImage(str(temporary))  # on a full disk the writers of ITK cut the file and say nothing


def _to_nifti(data: np.ndarray, like: Image) -> nibabel.Nifti1Image:
    """Return `data` as NIfTI, with the header of the image where it has one."""
    header = nibabel.Nifti1Header() if like.header is None else like.header.copy()
    if like.header is None:
        header.set_xyzt_units("mm")
        header.set_sform(like.volume.affine, code="scanner")
        header.set_qform(like.volume.affine, code="scanner")
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the scan's display window would show a mask black
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    return kind(data, like.volume.affine, header)
