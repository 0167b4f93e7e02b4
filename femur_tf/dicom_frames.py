"""Enhanced DICOM files, whose frames are slices, each with a geometry of its own (PS3.3, C.7.6.16).

SimpleITK reads their voxels, but gives them a spacing of 1 mm, leaves them in the order of the file, and scales the
grey values of all frames as those of the first (2.5.7). So the groups of the frames are read here.
"""

from __future__ import annotations

import functools
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.errors import BytesLengthException

from femur_tf import header_geometry
from femur_tf.image_errors import bad_file, library, named

ENHANCED = {
    b"1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
    b"1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
    b"1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR Image Storage
    b"1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR Image Storage
}
KEPT_IN = {
    header_geometry.POSITION: ("PlanePositionSequence", "ImagePositionPatient"),
    header_geometry.ORIENTATION: ("PlaneOrientationSequence", "ImageOrientationPatient"),
    header_geometry.SPACING: ("PixelMeasuresSequence", "PixelSpacing"),
    header_geometry.BETWEEN: ("PixelMeasuresSequence", "SpacingBetweenSlices"),
    header_geometry.THICKNESS: ("PixelMeasuresSequence", "SliceThickness"),
    header_geometry.RESCALE[0]: ("PixelValueTransformationSequence", "RescaleIntercept"),
    header_geometry.RESCALE[1]: ("PixelValueTransformationSequence", "RescaleSlope"),
}
"""The group, and in it the keyword, that has what a tag says of a slice in other files."""
DAMAGED = (AttributeError, KeyError, NotImplementedError, TypeError, struct.error, BytesLengthException)
"""What pydicom raises of damaged headers, beside `ValueError` and `EOFError`."""
SHARED, OF_FRAMES = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"


def sop_class(path: Path) -> bytes | None:
    """Return the class of a DICOM file (Media Storage SOP Class UID); None where it does not tell."""
    with path.open("rb") as stream:
        head = stream.read(1024)
    found = re.search(rb"\x02\x00\x02\x00UI(..)", head, re.DOTALL)
    if not found:
        return None
    stop = found.end() + int.from_bytes(found[1], "little")
    return head[found.end() : stop].rstrip(b"\0") if stop <= len(head) else None


def is_enhanced(path: Path) -> bool:
    """Tell whether a DICOM file is of a class whose frames have geometry of their own."""
    return sop_class(path) in ENHANCED


def read(place: Path, paths: Sequence[Path]) -> tuple[sitk.Image, Sequence[Mapping[str, str]]]:
    """Read the frames of enhanced files as one volume, in order of position.

    Args:
      place: what messages name, where several files are at fault.
      paths: of the files.

    Returns:
      The volume, with the spacing between slices that their positions give (of one slice: 1 mm), and the texts of the
      tags of each slice.

    Raises:
      DataError: a file that cannot be read, or frames that do not make up one volume.
    """
    names, slices, parts = [], [], []
    for path in paths:
        tags = _tags(path)
        parts.append(_voxels(path, tags))
        names += [f"{path.name}, frame {number}" for number in range(1, len(tags) + 1)]
        slices += tags
    with named(place):
        order = header_geometry.order(names, slices)
        names, slices = [names[k] for k in order], [slices[k] for k in order]
        header_geometry.check(names, slices)
    with library(place):
        image = sitk.GetImageFromArray(np.concatenate(parts)[order])
    numbers = functools.partial(header_geometry.numbers, names[0], slices[0])
    first_mm = numbers(header_geometry.POSITION)
    image.SetOrigin(first_mm)
    rows, columns = np.reshape(numbers(header_geometry.ORIENTATION), (2, 3))
    image.SetDirection(np.column_stack([rows, columns, np.cross(rows, columns)]).ravel().tolist())
    between_rows, between_columns = numbers(header_geometry.SPACING)
    last_mm = header_geometry.numbers(names[-1], slices[-1], header_geometry.POSITION)
    between_mm = math.dist(first_mm, last_mm) / (len(slices) - 1) if len(slices) > 1 else 1.0
    image.SetSpacing([between_columns, between_rows, between_mm])
    return image, slices


def _tags(path: Path) -> list[dict[str, str]]:
    """Return the texts of the tags of each frame."""
    with library(path):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[SHARED, OF_FRAMES], force=True)
            shared = header.get(SHARED) or [pydicom.Dataset()]
            return [dict(_found(frame, shared[0])) for frame in header.get(OF_FRAMES) or ()]
        except DAMAGED as error:
            raise ValueError(f"a header that cannot be read ({error})") from error


def _found(frame: pydicom.Dataset, shared: pydicom.Dataset) -> Iterator[tuple[str, str]]:
    """Yield the tags that the groups of a frame, or those of all frames, have, each with its text."""
    for tag, (group, keyword) in KEPT_IN.items():
        for groups in (frame, shared):
            if values := groups.get(group):
                value = values[0].get(keyword)
                if value is not None:
                    yield tag, "\\".join(map(str, value if isinstance(value, Sequence) else [value]))
                    break


def _voxels(path: Path, slices: Sequence[Mapping[str, str]]) -> np.ndarray:
    """Return the grey values of the frames of a file, (N, rows, columns), each scaled as its own groups say."""
    with library(path):
        image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise bad_file(path, "one real value a voxel", "a colour image", "Hand in the scan in grey.")
    voxels = sitk.GetArrayFromImage(image)
    voxels = voxels.reshape(-1, *voxels.shape[-2:])
    if len(voxels) != len(slices):
        received = f"{len(slices)} of {len(voxels)} frames"
        raise bad_file(path, "the geometry of each frame", received, header_geometry.AGAIN)
    with named(path):
        scales = np.array([[_rescale(tags, k) for k in (0, 1)] for tags in slices])
    if (scales == scales[0]).all():
        return voxels
    intercept, slope = scales.T[:, :, None, None]
    return ((voxels - intercept[0]) / slope[0] * slope + intercept).astype(np.float32)


def _rescale(tags: Mapping[str, str], which: int) -> float:
    """Return the intercept (0) or the slope (1) of a frame's grey values; 0 and 1 where it has none."""
    text = tags.get(header_geometry.RESCALE[which], str(which))
    value = float(text)
    if not np.isfinite(value) or (which == 1 and value == 0):
        raise ValueError(f"expected a finite intercept and slope, and none of 0. Received: {text}. Export it again.")
    return value
