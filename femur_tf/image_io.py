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
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError

from femur_tf import files
from femur_tf.errors import DataError
from femur_tf.volume import Volume, corner_distance_mm, lps_affine, to_lps

NIFTI = (".nii", ".nii.gz")
READABLE = (*NIFTI, ".nrrd", ".nhdr", ".mha", ".mhd")
WRITABLE = (*NIFTI, ".nrrd", ".mha")
"""Formats of one file; `.nhdr` and `.mhd` keep their voxels in a second one, which cannot be renamed with it."""
GRID_TOLERANCE_MM = 1e-3
"""A mask lies on its image's grid where no corner voxel is further off than this."""
GAP_TOLERANCE = 0.05
"""Slices are evenly spaced where each gap is within this share of the median gap (bound included)."""
SHOWN = 10
"""How many values an error lists."""


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """A volume as a file holds it."""

    volume: Volume
    path: Path
    header: nibabel.Nifti1Header | None = None
    """The header of a NIfTI file, which results keep; None for other formats."""


def _error(path: Path, expected: str, received: object, advice: str) -> DataError:
    """Return the error that names the file, what was expected, what it holds and what to do."""
    return DataError(f"{path}: expected {expected}. Received: {received}. {advice}")


@contextlib.contextmanager
def _library(path: Path, expected: str, advice: str) -> Iterator[None]:
    """Turn what nibabel and SimpleITK raise into the error for `path`."""
    try:
        yield
    except (ImageFileError, HeaderDataError, EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        reason = " ".join(str(error).rpartition("ERROR: ")[2].split()).rstrip(".") or type(error).__name__
        raise _error(path, expected, reason, advice) from error


def _reading(path: Path) -> contextlib.AbstractContextManager[None]:
    return _library(path, "a whole image", "It is damaged, cut short or not an image: export it again.")


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
    """List the cases in a folder: image files, and subfolders that directly hold DICOM files.

    Args:
      folder: its hidden entries and other files are passed over.

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
    """Read a volume.

    Args:
      path: a NIfTI, NRRD or MetaImage file, or a folder with one DICOM series.

    Returns:
      The voxels in the file's axis order, with its intensity scale applied; a fourth axis of length 1 is dropped.

    Raises:
      DataError: nothing there, not a readable image, not 3-D, several series, uneven slices, no proper geometry, or
        voxels that are not finite.
    """
    if not path.exists():
        raise _error(path, "an image file or a DICOM folder", "nothing there", "Check the path.")
    if path.is_dir():
        return _from_sitk(_read_series(path), path)
    suffix = image_suffix(path)
    if suffix in NIFTI:
        return _read_nifti(path)
    if suffix:
        with _reading(path):
            image = sitk.ReadImage(str(path))
        return _from_sitk(image, path)
    advice = "Hand in the folder of its series." if _is_dicom_file(path) else "Convert it."
    raise _error(path, f"{', '.join(READABLE)} or a DICOM folder", "another file", advice)


def _read_nifti(path: Path) -> Image:
    """Read a NIfTI file, version 1 or 2."""
    with _reading(path):
        image = nibabel.load(path, mmap=False)
        if not isinstance(image, nibabel.Nifti1Image):  # CIFTI has the suffix too
            raise ImageFileError(f"a {type(image).__name__}")
        with ImageOpener(str(path)) as stream:
            raw = type(image.header).from_fileobj(stream, check=False)  # as stored: nibabel mends what it loads
        data = np.asarray(image.dataobj)
    _check_lengths(raw, path)
    return Image(_volume(data, image.affine, path), path, image.header)


def _check_lengths(header: nibabel.Nifti1Header, path: Path) -> None:
    """Raise unless lengths are in mm and, where nothing else gives the spacing, not 0."""
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise _error(path, "lengths in mm", unit, "Convert the header to mm.")
    spacing = header["pixdim"][1:4]
    if header["sform_code"] == 0 and not (np.isfinite(spacing) & (spacing != 0)).all():
        raise _error(path, "non-zero voxel spacing", f"{spacing.tolist()} mm", "Export the scan with its geometry.")


def _read_series(folder: Path) -> sitk.Image:
    """Read the one DICOM series in a folder, its slices in order of position."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), _find_series(folder))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    with _reading(folder):
        image = reader.Execute()
    _check_gaps(reader, names, folder)
    return image


def _find_series(folder: Path) -> str:
    """Return the identifier of the one DICOM series in a folder."""
    if not is_dicom_folder(folder):
        received = f"{sum(1 for _ in folder.iterdir())} entries, none of them a DICOM file"
        raise _error(folder, "one DICOM series", received, "Hand in the folder that directly holds its slices.")
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        received = f"{len(series)} series: {_listed(sorted(series))}"
        raise _error(folder, "one DICOM series", received, "Move each series into a folder of its own.")
    return str(series[0])


def _check_gaps(reader: sitk.ImageSeriesReader, names: Sequence[str], folder: Path) -> None:
    """Raise where a slice of the series is missing, doubled or out of step."""
    keys = ("0020|0032", "0020|0037")  # Image Position (Patient), Image Orientation (Patient)
    if not all(reader.HasMetaDataKey(i, key) for i in range(len(names)) for key in keys):
        return
    position, rows = [
        np.array([reader.GetMetaData(i, key).split("\\") for i in range(len(names))], float) for key in keys
    ]  # (N, 3), (N, 6)
    gaps_mm = np.diff(position @ np.cross(rows[0, :3], rows[0, 3:]))
    usual_mm = float(np.median(np.abs(gaps_mm))) if gaps_mm.size else 0.0
    uneven = np.flatnonzero(np.abs(np.abs(gaps_mm) - usual_mm) > GAP_TOLERANCE * usual_mm)
    if uneven.size:
        i = int(uneven[0])
        received = f"{gaps_mm[i]:.3f} mm from {Path(names[i]).name} to {Path(names[i + 1]).name}, {usual_mm:.3f} usual"
        raise _error(folder, "evenly spaced slices", received, "A slice is missing or doubled: export it again.")


def _listed(values: Sequence[object] | np.ndarray) -> str:
    """Return the first values as text, with a mark where some are left out."""
    return ", ".join([str(value) for value in values[:SHOWN]] + (["..."] if len(values) > SHOWN else []))


def _from_sitk(image: sitk.Image, path: Path) -> Image:
    """Return a SimpleITK image, checked."""
    if image.GetNumberOfComponentsPerPixel() != 1:
        received = f"{image.GetNumberOfComponentsPerPixel()} values"
        raise _error(path, "one real value a voxel", received, "Hand in a grey image.")
    if image.GetDimension() < 3:
        raise _error(path, "a 3-D image", f"shape {image.GetSize()}", "Hand in the whole volume.")
    return Image(_volume(sitk.GetArrayFromImage(image).T, lps_affine(image), path), path)


def _volume(data: np.ndarray, affine: np.ndarray, path: Path) -> Volume:
    """Return a checked volume of native byte order, trailing axes of length 1 dropped."""
    if data.dtype.kind not in "biuf":
        raise _error(path, "one real value a voxel", data.dtype, "Hand in a grey image.")
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise _error(path, "a 3-D image", f"shape {data.shape}", "Extract one volume first.")
    bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if bad:
        raise _error(path, "finite voxels", f"{bad} of {data.size} NaN or infinite", "Replace them first.")
    try:
        return Volume(data.astype(data.dtype.newbyteorder("="), copy=False), affine)
    except ValueError as error:
        raise DataError(f"{path}: {error}. Export the image again with its geometry.") from error


def read_mask(path: Path, *, like: Image, label: int | None) -> np.ndarray:
    """Read a mask drawn on an image.

    Args:
      path: a mask file of any format that `read_image` reads.
      like: the image; the mask must lie on its grid.
      label: the value that is femur; None: the one value besides 0.

    Returns:
      bool, on the image's grid; all false where the file holds only zeros.

    Raises:
      DataError: unreadable, another grid, values that are not whole numbers, several labels and none chosen, or the
        chosen one not there.
    """
    volume = read_image(path).volume
    _check_grid(path, volume, like)
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


def _check_grid(path: Path, volume: Volume, like: Image) -> None:
    """Raise unless a mask has the shape and the affine of its image."""
    advice = "Resample the mask to the image, or hand in the mask of this image."
    if volume.shape != like.volume.shape:
        expected = f"the grid of {like.path}, shape {like.volume.shape}"
        raise _error(path, expected, f"shape {volume.shape}", advice)
    distance_mm = corner_distance_mm(volume, like.volume.affine)
    if distance_mm > GRID_TOLERANCE_MM:
        own, other = (v.affine[:3].round(4).tolist() for v in (volume, like.volume))
        received = f"affine {own}, up to {distance_mm:.3g} mm away"
        raise _error(path, f"the grid of {like.path}, affine {other}", received, advice)


def write_image(path: Path, data: np.ndarray, *, like: Image) -> None:
    """Write an array on the grid of an image, whole or not at all.

    Args:
      path: its suffix chooses the format: .nii, .nii.gz, .nrrd or .mha.
      data: on the image's grid; bool and integers in 0..255 are stored as uint8, other integers as int16 or int32,
        floats as float32.
      like: the image; NIfTI to NIfTI keeps its header.

    Raises:
      ValueError: `data` has another shape than the image.
      DataError: another suffix, or the writer failed.
    """
    if data.shape != like.volume.shape:
        raise ValueError(f"data: expected the image's shape {like.volume.shape}. Received: {data.shape}")
    suffix = image_suffix(path)
    if suffix not in WRITABLE:
        raise _error(path, f"a name that ends in {', '.join(WRITABLE)}", path.name, "Choose another name.")
    stored = data.astype(_stored_type(data))
    with files.whole(path) as temporary:
        if suffix in NIFTI:
            nibabel.save(_to_nifti(stored, like), temporary)
        else:
            with _library(path, "to write an image", "Check the space on the disk and the right to write."):
                sitk.WriteImage(to_lps(Volume(stored, like.volume.affine)), str(temporary), useCompression=True)


def _stored_type(data: np.ndarray) -> type[np.number]:
    """Return the smallest dtype of those that every viewer reads."""
    if data.dtype.kind == "f":
        return np.float32
    lowest, highest = int(data.min()), int(data.max())
    fitting = (k for k in (np.uint8, np.int16) if np.iinfo(k).min <= lowest and highest <= np.iinfo(k).max)
    return next(fitting, np.int32)


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
