"""Image files: the only place, with `dicom_series` and `dicom_frames`, that opens and writes them.

Reads NIfTI, NRRD, MetaImage, a folder with one DICOM series and an enhanced DICOM file. Voxels come in the
file's own axis order, (x, y, z) with x fastest in the file, with the affine that
takes an index to RAS mm; SimpleITK's LPS is turned on the way in and out. A result
is written on the grid of its image, and a NIfTI result keeps that image's header.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel import filebasedimages, openers

from femur_tf import command, dicom_series, files, header_geometry, intensity, text_header
from femur_tf.errors import WriteError
from femur_tf.image_errors import bad_file, library, listed, named
from femur_tf.image_names import META, NIFTI, READABLE, check_suffix, image_suffix
from femur_tf.lps import lps_affine, to_lps
from femur_tf.volume import Volume, canonical, require_same_grid

MOST_LABELS = 100
"""Of a mask of which no label is chosen; scans have more."""
LABEL_TOLERANCE = 1e-5
"""A label is a whole number to this (bound included): a file that keeps labels scaled has them rounded."""
SCAN_NOTE = re.compile("scan [0-9a-f]{12}")
SEGMENTATIONS = (".seg.nrrd", ".nrrd")
SEGMENT_VALUE = re.compile(r"Segment\d+_LabelValue")


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """A volume as a file holds it."""

    volume: Volume
    path: Path
    header: nibabel.Nifti1Header | None = None
    """The header of a NIfTI file, which results keep; None for other formats."""
    doubt: str | None = None
    """What the file leaves open of its geometry, and what is assumed; None where it leaves nothing open."""


def read_image(path: Path) -> Image:
    """Read a volume, and warn where its geometry is assumed or a fill value would squeeze its grey values.

    Args:
      path: a NIfTI, NRRD or MetaImage file, a folder with one DICOM series, or an enhanced DICOM file.

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
        raise bad_file(path, "an image file or a DICOM folder", "nothing there", "Check the path.")
    suffix = image_suffix(path)
    if path.is_dir() or (suffix is None and dicom_series.is_file(path)):
        image, doubt = dicom_series.read(path)
        return dataclasses.replace(_from_sitk(image, path), doubt=doubt)
    if suffix is None:
        raise bad_file(
            path, f"{', '.join(READABLE)} or a DICOM folder", "another file", "Convert it, or hand in the folder."
        )
    return _read_nifti(path) if suffix in NIFTI else _read_text_headed(path)


def _read_text_headed(path: Path) -> Image:
    """Read a NRRD or MetaImage file."""
    with library(path):
        # By the name alone it would not know a suffix in capitals.
        image = sitk.ReadImage(str(path), imageIO="MetaImageIO" if image_suffix(path) in META else "")
        with path.open("rb") as stream:
            header = text_header.fields(stream)
            text_header.check_packed(header, stream, path.parent)
    result = _from_sitk(image, path)
    with named(path):
        return dataclasses.replace(result, doubt=text_header.doubt(header, result.volume.affine))


def _read_nifti(path: Path) -> Image:
    """Read a NIfTI file, version 1 or 2."""
    with library(path):
        image = nibabel.load(path, mmap=False)
        if not isinstance(image, nibabel.Nifti1Image):  # CIFTI has the suffix too
            raise filebasedimages.ImageFileError(f"a {type(image).__name__}")
        with openers.ImageOpener(str(path)) as stream:
            raw = type(image.header).from_fileobj(stream, check=False)  # as stored: nibabel mends what it loads
            while stream.read(2**24):  # to the end, where gzip's checksum is
                pass
        data = np.asarray(image.dataobj)
    with named(path):
        header_geometry.check_nifti(raw)
    volume = _volume(data, image.affine, path)
    return Image(volume, path, image.header, header_geometry.nifti_doubt(image.header, raw, volume))


def _from_sitk(image: sitk.Image, path: Path) -> Image:
    """Return a SimpleITK image, checked."""
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() < 3:
        received = f"shape {image.GetSize()}, {image.GetNumberOfComponentsPerPixel()} values a voxel"
        if image.HasMetaDataKey("Segment0_ID"):  # of 3D Slicer, which stacks the layers of segments that overlap
            raise bad_file(path, "segments that do not overlap", received, "Export the one segment as a labelmap.")
        raise bad_file(path, "a 3-D image with one real value a voxel", received, "Hand in the whole volume, in grey.")
    return Image(_volume(sitk.GetArrayFromImage(image).T, lps_affine(image), path), path)


def _volume(data: np.ndarray, affine: np.ndarray, path: Path) -> Volume:
    """Return a checked volume of native byte order, axes of length 1 beyond the third dropped."""
    if data.dtype.kind not in "biuf":
        raise bad_file(path, "one real value a voxel", data.dtype, "Hand in a grey image.")
    data = data.reshape(data.shape[:3]) if data.ndim > 3 and data.size == np.prod(data.shape[:3]) else data
    bad = data.size - int(np.count_nonzero(np.isfinite(data)))
    if bad:
        raise bad_file(path, "finite voxels", f"{bad} of {data.size} NaN or infinite", "Replace them first.")
    with named(path, ". Hand in one 3-D volume with its geometry."):
        volume = Volume(data.astype(data.dtype.newbyteorder("="), copy=False), affine)
    with named(path):
        header_geometry.check_axes(volume.affine)
    return volume


def read_mask(path: Path, *, like: Image, label: Collection[int] | None) -> np.ndarray:
    """Read a mask drawn on an image.

    Args:
      path: a mask of any format that `read_image` reads.
      like: the image; the mask must lie on its grid, in any order of the axes.
      label: the values that are femur, of which the mask may lack some; None: the one value besides 0.

    Returns:
      bool, on the image's grid; all false where the file holds only zeros.

    Raises:
      DataError: unreadable, another grid, values that are not whole numbers, several labels or none of the chosen ones.
    """
    volume = _on_axes_of(like.volume, _read(path).volume)  # what is assumed of its geometry is assumed of the image
    with named(f"{path}: not on the grid of {like.path}", ". Resample the mask to the image."):
        require_same_grid(volume, like.volume)
    values = np.unique(volume.data)
    broken = values[np.abs(values - np.round(values)) > LABEL_TOLERANCE]
    if broken.size:
        raise bad_file(path, "whole numbers as labels", listed(broken), "Hand in a mask, not a probability map.")
    labels = [int(value) for value in np.unique(np.round(values)) if value != 0]
    if label is None and len(labels) > MOST_LABELS:
        raise bad_file(path, "a mask", f"{len(labels)} values", "Is it a scan, and scans and masks are exchanged?")
    return np.isin(np.round(volume.data), _choose(path, labels, label)) if labels else np.zeros(volume.shape, bool)


def _on_axes_of(like: Volume, volume: Volume) -> Volume:
    """Flip and permute the axes of a volume to those of another: a converted copy may keep them in another order."""
    turned = canonical(Volume(volume.data, np.linalg.inv(like.affine) @ volume.affine))  # in the space of its indices
    return Volume(turned.data, like.affine @ turned.affine)


def _choose(path: Path, labels: list[int], label: Collection[int] | None) -> list[int]:
    """Return the labels that are femur, of those in the mask."""
    if label is None and len(labels) > 1:
        what = "Pass --label N with the one that is femur, or --label N,M where several are."
        raise bad_file(path, "one label besides 0", listed(labels), what)
    chosen = [one for one in labels if label is None or one in label]
    if not chosen:
        expected = f"label {' or '.join(map(str, label or ()))}"
        raise bad_file(path, expected, f"labels {listed(labels)}", "Pass --label N with one of these.")
    return chosen


def read_label_names(path: Path) -> dict[int, str]:
    """Return the names of a mask's values, by value, where it is a segmentation of 3D Slicer; none of another file.

    Raises:
      DataError: the header cannot be read.
    """
    if image_suffix(path) not in SEGMENTATIONS:
        return {}
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with library(path):
        reader.ReadImageInformation()
    known = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}
    values = {key.removesuffix("_LabelValue"): known[key] for key in known if SEGMENT_VALUE.fullmatch(key)}
    return {int(value): known.get(f"{segment}_Name", "") for segment, value in values.items() if value.isdecimal()}


def read_made_by(path: Path) -> str:
    """Return what a NIfTI file that `write_image` has written says of its making; "" where it says nothing."""
    return _noted(path, "descrip")


def read_made_of(path: Path) -> str:
    """Return the `scan_note` of the scan that a mask or map was made of; "" where its header has none."""
    found = _noted(path, "aux_file")
    return found if SCAN_NOTE.fullmatch(found) else ""  # other programs write there, too


def _noted(path: Path, field: str) -> str:
    """Return the text in a field of a NIfTI header; "" where there is none."""
    try:
        found = nibabel.load(path).header[field]
    except (OSError, KeyError, IndexError, filebasedimages.ImageFileError):
        return ""
    return bytes(found.item()).decode("ascii", "replace")


def scan_note(path: Path) -> str:
    """Return what a mask notes of the place of its scan: no name, which may be a patient's, but a digest."""
    return f"scan {hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]}"


def write_image(path: Path, data: np.ndarray, *, like: Image, made_by: str = "") -> None:
    """Write an array on the grid of an image, whole or not at all.

    Args:
      path: its suffix chooses the format: .nii, .nii.gz, .nrrd or .mha.
      data: on the image's grid; floats are stored as float32, bool and integers in 0..255 as uint8, others as they are.
      like: the image; NIfTI to NIfTI keeps its header, but for extensions, intent and the name of a database, which may
        hold a patient's name.
      made_by: what made it, for the header (`descrip`; in NRRD and MetaImage a field `made_by`), up to 79 characters;
        a NIfTI header then has the `scan_note` of the image, too (`aux_file`).

    Raises:
      ValueError: `data` has another shape than the image.
      DataError: another suffix.
      WriteError: the writer failed.
    """
    with written(path, data, like=like, made_by=made_by):
        pass


@contextlib.contextmanager
def written(path: Path, data: np.ndarray, *, like: Image, made_by: str = "") -> Iterator[None]:
    """Write an array as `write_image` does, to have its name when the block ends well, and be gone when it raises."""
    if data.shape != like.volume.shape:
        raise ValueError(f"data: expected the image's shape {like.volume.shape}. Received: {data.shape}")
    suffix = check_suffix(path)
    small = data.dtype.kind != "f" and data.min() >= 0 and data.max() <= 255
    stored = data.astype(np.float32 if data.dtype.kind == "f" else np.uint8 if small else data.dtype)
    room = functools.partial(library, path, "room for an image", "Free space, or write elsewhere.", WriteError)
    with contextlib.ExitStack() as stack:
        with room():
            temporary = stack.enter_context(files.whole(path))
            if suffix in NIFTI:
                nibabel.save(_to_nifti(stored, like, made_by), temporary)
            else:
                image = to_lps(Volume(stored, like.volume.affine))
                if made_by:
                    image.SetMetaData("made_by", made_by)
                sitk.WriteImage(image, str(temporary), useCompression=True)
                sitk.ReadImage(str(temporary))  # on a full disk the writers of ITK cut the file and say nothing
        yield
        with room():
            stack.close()


def _to_nifti(data: np.ndarray, like: Image, made_by: str) -> nibabel.Nifti1Image:
    """Return `data` as NIfTI, with the header of the image where it has one, and what made it."""
    header = nibabel.Nifti1Header() if like.header is None else like.header.copy()
    if like.header is None:
        header.set_xyzt_units("mm")
        header.set_sform(like.volume.affine, code="scanner")
        header.set_qform(like.volume.affine, code="scanner")
    header.extensions.clear()  # comments, histories, copies of DICOM headers: they may name the patient
    if "db_name" in header.keys():  # noqa: SIM118 - a header is no mapping; version 2 has no such field
        header["db_name"] = b""
    header.set_intent("none")
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    if made_by:
        header["descrip"] = made_by.encode("ascii", "replace")
        header["aux_file"] = scan_note(like.path).encode("ascii")
    header["cal_min"] = header["cal_max"] = 0  # the scan's display window would show a mask black
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    return kind(data, like.volume.affine, header)
