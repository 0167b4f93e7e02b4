"""What files say of their geometry, told by their headers alone: DICOM slices above all, and NIfTI.

The readers assume what they do not find: that the slices of a series lie evenly and straight one behind the other,
1 mm where there is no spacing, axes along the patient's. Where a header says two things, they take one. A wrong volume,
and not a word. DICOM tags are read as the standard defines them (PS3.3, C.7.6.2).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence

import nibabel
import numpy as np
from nibabel import orientations

from femur_tf.volume import Volume, corner_distance_mm, spacings_agree

FRAMES = "0028|0008"  # Number of Frames
POSITION = "0020|0032"  # Image Position (Patient), mm
ORIENTATION = "0020|0037"  # Image Orientation (Patient), cosines of rows and columns
SPACING = "0028|0030"  # Pixel Spacing, mm
RESCALE = ("0028|1052", "0028|1053")  # Rescale Intercept and Slope
BETWEEN = "0018|0088"  # Spacing Between Slices, mm
THICKNESS = "0018|0050"  # Slice Thickness, mm
STORED = ("0028|0100", "0028|0103")  # Bits Allocated, Pixel Representation: with a sign or without
TAGS = (FRAMES, POSITION, ORIENTATION, SPACING, *RESCALE, BETWEEN, THICKNESS, *STORED)
GREY = (*RESCALE, *STORED)
"""What tells how grey values are kept, for each slice anew."""
GEOMETRY = {POSITION: ("position", 3), ORIENTATION: ("orientation", 6), SPACING: ("pixel spacing", 2)}
GAP_TOLERANCE = 0.05
"""Slices are evenly spaced where each gap is within this share of the median gap (bound included)."""
SHIFT_TOLERANCE = 0.5
"""Slices lie straight one behind the other where none is shifted within its plane by more pixels than this (bound
included), so that each voxel is nearest to the place that it is given. Counted over the whole stack, as shifts add up
and rounding does not: 3 decimals of cosines, over 200 mm, are 0.2 mm."""
ALIKE = 1e-3
"""Cosines, and pixel spacings in mm, that differ by at most this are equal."""
RIGHT_ANGLE = 0.01
"""Axes are at right angles where no two of them have a larger cosine (0.6 degrees; bound included)."""
FORM_TOLERANCE = 0.5
"""Two forms of a NIfTI header agree where no corner is further apart than this share of the finest spacing (bound
included)."""
AGAIN = "Export the series again with its geometry."
STRAIGHTEN = "Resample it to a straight one first, for instance in 3D Slicer, and save that as NIfTI."
SIDES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))


def check(names: Sequence[str], slices: Sequence[Mapping[str, str]]) -> None:
    """Raise unless the slices make up one volume.

    Args:
      names: of the files, in their order along the series.
      slices: the texts of the tags that each slice has, of `TAGS`.

    Raises:
      ValueError: several frames in a file; a slice without position, orientation or spacing; slices of different
        orientation or spacing, at one place, unevenly spaced, or shifted within their plane.
    """
    for name, tags in zip(names, slices, strict=True):
        frames = tags.get(FRAMES, "").strip() or "1"
        if frames != "1":
            raise ValueError(
                f"expected one slice a file. Received: {name} with {frames} frames. Convert it to NIfTI first, for "
                "instance with dcm2niix."
            )
    values = {tag: np.array([numbers(n, s, tag) for n, s in zip(names, slices, strict=True)]) for tag in GEOMETRY}
    for tag in (ORIENTATION, SPACING):
        other = np.flatnonzero(np.abs(values[tag] - values[tag][0]).max(axis=1) > ALIKE)
        if other.size:
            word, first, odd = GEOMETRY[tag][0], values[tag][0].tolist(), values[tag][other[0]].tolist()
            raise ValueError(
                f"expected slices of one {word}. Received: {first} in {names[0]}, {odd} in {names[other[0]]}. "
                "Hand in a folder with the slices of one stack."
            )
    if len(names) > 1:
        _check_gaps(names, values[POSITION])
        _check_shifts(names, values[POSITION], cosines=values[ORIENTATION][0], spacing_mm=values[SPACING][0])


def order(names: Sequence[str], slices: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the order of slices along their stack, as readers of DICOM series take it: along the normal of the first.

    Args:
      names: of the slices.
      slices: the texts of the tags that each slice has, of `TAGS`.

    Raises:
      ValueError: no slice; one without position or orientation.
    """
    if not slices:
        raise ValueError(f"expected the geometry of each frame. Received: none. {AGAIN}")
    rows, columns = np.reshape(numbers(names[0], slices[0], ORIENTATION), (2, 3))
    position_mm = np.array([numbers(name, tags, POSITION) for name, tags in zip(names, slices, strict=True)])
    return [int(k) for k in np.argsort(position_mm @ np.cross(rows, columns), kind="stable")]


def numbers(name: str, tags: Mapping[str, str], tag: str) -> list[float]:
    """Return the numbers of a tag of `GEOMETRY` that a slice has.

    Raises:
      ValueError: none, or not so many finite ones as it has.
    """
    word, count = GEOMETRY[tag]
    try:
        found = [float(part) for part in tags[tag].split("\\")]
    except (KeyError, ValueError):
        found = []
    if len(found) != count or not np.isfinite(found).all():
        received = tags.get(tag, "").strip() or "none"
        raise ValueError(f"expected the {word} of each slice. Received: {received} in {name}. {AGAIN}")
    return found


def _check_gaps(names: Sequence[str], position_mm: np.ndarray) -> None:
    """Raise where slices, at positions (N, 3), are not evenly spaced."""
    gaps_mm = np.linalg.norm(np.diff(position_mm, axis=0), axis=1)
    usual_mm = float(np.median(gaps_mm))
    uneven = np.flatnonzero((np.abs(gaps_mm - usual_mm) > GAP_TOLERANCE * usual_mm) | (gaps_mm == 0))
    if uneven.size:
        first, second = (names[uneven[0] + i] for i in (0, 1))
        raise ValueError(
            f"expected evenly spaced slices. Received: {gaps_mm[uneven[0]]:.3f} mm from {first} to {second}, "
            f"{usual_mm:.3f} mm usual. A slice is missing or doubled, or the series holds several images of each: "
            "export one image of each slice."
        )


def _check_shifts(
    names: Sequence[str], position_mm: np.ndarray, *, cosines: np.ndarray, spacing_mm: np.ndarray
) -> None:
    """Raise where slices, at positions (N, 3), do not lie straight one behind the other.

    Args:
      names: of the files.
      position_mm: (N, 3).
      cosines: (6,), the direction along a row, then along a column.
      spacing_mm: (2,), between rows, then between columns.
    """
    shift_mm = (position_mm - position_mm[0]) @ cosines.reshape(2, 3).T  # (N, 2), along a row and along a column
    shifted = np.flatnonzero((np.abs(shift_mm) > SHIFT_TOLERANCE * spacing_mm[::-1]).any(axis=1))
    if shifted.size:
        furthest = shifted[np.linalg.norm(shift_mm[shifted], axis=1).argmax()]
        raise ValueError(
            f"expected slices one straight behind the other. Received: {names[furthest]} shifted within its plane by "
            f"{np.linalg.norm(shift_mm[furthest]):.3f} mm from {names[0]}, a tilted or staggered stack. {STRAIGHTEN}"
        )


def check_axes(affine: np.ndarray) -> None:
    """Raise unless the axes of a volume are at right angles: elsewhere a voxel is taken for a box.

    Args:
      affine: (4, 4) index -> RAS mm, each axis of some length.

    Raises:
      ValueError: two axes at another angle, a sheared volume.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs(directions.T @ directions - np.eye(3)).max())  # of two axes: each has 1 with itself
    if cosine > RIGHT_ANGLE:
        raise ValueError(
            f"expected axes at right angles. Received: axes {math.degrees(math.acos(min(cosine, 1.0))):.1f} degrees "
            f"apart, a sheared volume. {STRAIGHTEN}"
        )


def lone_slice_mm(slices: Sequence[Mapping[str, str]]) -> float | None:
    """Return how far a slice that has no neighbour reaches, in mm, where the file tells; None of several slices.

    Args:
      slices: the texts of the tags that each slice has, of `TAGS`.
    """
    if len(slices) != 1:
        return None
    for tag in (BETWEEN, THICKNESS):
        with contextlib.suppress(ValueError):
            length_mm = float(slices[0].get(tag, ""))
            if 0 < length_mm < math.inf:
                return length_mm
    return None


def series_doubt(slices: Sequence[Mapping[str, str]], affine: np.ndarray) -> str | None:
    """Return what a DICOM series leaves open and its reader assumes; None where it leaves nothing open.

    Args:
      slices: the texts of the tags that each slice has, of `TAGS`.
      affine: (4, 4) index -> RAS mm, as it was read.
    """
    return assumed("spacing", affine) if len(slices) == 1 and lone_slice_mm(slices) is None else None


def check_nifti(header: Mapping[str, np.ndarray]) -> None:
    """Raise unless lengths are in mm and, where nothing else gives the spacing, not 0.

    Args:
      header: of a NIfTI file, as stored.

    Raises:
      ValueError: another unit; a spacing of 0, or one that is not finite.
    """
    unit = int(header["xyzt_units"]) & 7  # the bits above are the unit of time
    if unit not in (0, 2):  # unknown, mm
        received = {1: "metres", 3: "micrometres"}.get(unit, f"the unit with code {unit}")
        raise ValueError(f"expected lengths in mm. Received: {received}. Convert the header to mm.")
    spacing = header["pixdim"][1:4]
    if header["sform_code"] == 0 and not (np.isfinite(spacing) & (spacing != 0)).all():
        received = f"{spacing.tolist()} mm"
        raise ValueError(f"expected non-zero voxel spacing. Received: {received}. Export the scan with its geometry.")


def nifti_doubt(header: nibabel.Nifti1Header, stored: Mapping[str, np.ndarray], volume: Volume) -> str | None:
    """Return what a NIfTI header leaves open, or says in two ways; None where it says one thing.

    Args:
      header: as the reader mended it.
      stored: the same as stored.
      volume: as it was read, by the sform where there is one. ITK takes its spacing from pixdim, and often the qform.
    """
    if header["sform_code"] <= 0:
        return None if header["qform_code"] > 0 else assumed("orientation", volume.affine)
    received = _forms_differ(header, volume)
    if received:
        return _taken("the qform", received, volume.affine)
    lengths_mm = [float(length) for length in np.abs(stored["pixdim"][1:4])]
    if not spacings_agree(lengths_mm, volume.spacing_mm):
        return _taken("pixdim", f"sform and pixdim differ, pixdim is {_product(lengths_mm)} mm", volume.affine)
    return None


def _forms_differ(header: nibabel.Nifti1Header, volume: Volume) -> str | None:
    """Return how the qform of a header differs from the sform, by which a volume was read; None where it does not."""
    if header["qform_code"] <= 0:
        return None
    try:
        apart_mm = corner_distance_mm(volume, header.get_qform())
    except ValueError:
        return "a sform, and a qform that is no rotation"
    allowed_mm = FORM_TOLERANCE * min(volume.spacing_mm)
    return f"sform and qform differ, by up to {apart_mm:.3g} mm" if not apart_mm <= allowed_mm else None


def _taken(other: str, received: str, affine: np.ndarray) -> str:
    """Return the warning of a header that says two things, of which the sform is taken."""
    return (
        f"expected one geometry. Received: {received}. Taken: the sform, {_axes(affine)}. Other programs may take "
        f"{other}, and show another side or spacing: check, or export the scan with one geometry."
    )


def assumed(left_open: str, affine: np.ndarray) -> str:
    """Return the warning of what a header leaves open, and what its reader made of it.

    Args:
      left_open: the orientation of the axes, their spacing, or both.
      affine: (4, 4) index -> RAS mm, as it was read.
    """
    at_risk = "Left and right" if "orientation" in left_open else "Lengths"
    return (
        f"expected the {left_open} of its axes. Received: none. Assumed: {_axes(affine)}. {at_risk} may be wrong: "
        "check, or export the scan with its geometry."
    )


def _axes(affine: np.ndarray) -> str:
    """Return where axes run, and how far apart voxels are along them."""
    spacing = _product(np.linalg.norm(affine[:3, :3], axis=0))
    return (
        f"axes run to the patient's {', '.join(orientations.aff2axcodes(affine, SIDES))}, with {spacing} mm between "
        "voxels"
    )


def _product(lengths: Sequence[float] | np.ndarray) -> str:
    """Return lengths as a person writes them."""
    return " x ".join(f"{length:.3g}" for length in lengths)
