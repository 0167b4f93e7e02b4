"""What files say of their geometry, told by their headers alone: DICOM slices above all, NIfTI, NRRD and MetaImage.

The readers assume what they do not find: that the slices of a series lie evenly and straight one behind the other,
1 mm where there is no spacing, axes along the patient's. A wrong volume, and not a word. DICOM tags are read as the
standard defines them (PS3.3, C.7.6.2).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from nibabel import orientations

FRAMES = "0028|0008"  # Number of Frames
POSITION = "0020|0032"  # Image Position (Patient), mm
ORIENTATION = "0020|0037"  # Image Orientation (Patient), cosines of rows and columns
SPACING = "0028|0030"  # Pixel Spacing, mm
RESCALE = ("0028|1052", "0028|1053")  # Rescale Intercept and Slope
BETWEEN = "0018|0088"  # Spacing Between Slices, mm
THICKNESS = "0018|0050"  # Slice Thickness, mm
TAGS = (FRAMES, POSITION, ORIENTATION, SPACING, *RESCALE, BETWEEN, THICKNESS)
GEOMETRY = {POSITION: ("position", 3), ORIENTATION: ("orientation", 6), SPACING: ("pixel spacing", 2)}
GAP_TOLERANCE = 0.05
"""Slices are evenly spaced where each gap is within this share of the median gap (bound included)."""
SHIFT_TOLERANCE = 0.5
"""Slices lie straight one behind the other where none is shifted within its plane by more pixels than this (bound
included), so that each voxel is nearest to the place that it is given. Counted over the whole stack, as shifts add up
and rounding does not: 3 decimals of cosines, over 200 mm, are 0.2 mm."""
ALIKE = 1e-3
"""Cosines, and pixel spacings in mm, that differ by at most this are equal."""
AGAIN = "Export the series again with its geometry."
NRRD_SPACES = ("ras", "las", "lps", "right-anterior-superior", "left-anterior-superior", "left-posterior-superior")
"""The spaces of NRRD files that lie in the patient, as far as the reader knows them."""
META_DIRECTIONS = {"transformmatrix", "orientation", "rotation"}
LENGTHS = ("spacedirections", "spacings", "elementspacing", "elementsize")
"""Where NRRD and MetaImage files tell how far apart voxels are; the first that is there counts."""
LENGTH = re.compile(r"\([^)]*\)|[-+]?[.\d]\S*")
"""A number or a vector: not `nan`, `none` or `???`, which are no length."""
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
    values = {tag: np.array([_numbers(n, s, tag) for n, s in zip(names, slices, strict=True)]) for tag in GEOMETRY}
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


def _numbers(name: str, tags: Mapping[str, str], tag: str) -> list[float]:
    """Return the numbers of a tag."""
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
            f"{np.linalg.norm(shift_mm[furthest]):.3f} mm from {names[0]}, a tilted or staggered stack. Resample it to "
            "a straight one first, for instance in 3D Slicer, and save that as NIfTI."
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
    return _assumed("spacing", affine) if len(slices) == 1 and lone_slice_mm(slices) is None else None


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


def nifti_doubt(header: Mapping[str, np.ndarray], affine: np.ndarray) -> str | None:
    """Return what a NIfTI header leaves open and its reader assumes; None where it leaves nothing open.

    Args:
      header: as the reader mended it.
      affine: (4, 4) index -> RAS mm, as it was read.
    """
    return None if header["sform_code"] > 0 or header["qform_code"] > 0 else _assumed("orientation", affine)


def text_doubt(lines: Iterable[bytes], affine: np.ndarray) -> str | None:
    """Return what a NRRD or MetaImage header leaves open and its reader assumes; None where it leaves nothing open.

    Args:
      lines: of the file, from its first.
      affine: (4, 4) index -> RAS mm, as it was read.

    Raises:
      ValueError: an axis whose spacing is not a finite number, of which the reader makes 1 mm.
    """
    fields = _fields(lines)
    lengths = next((fields[name] for name in LENGTHS if name in fields), None)
    if lengths is not None and len(LENGTH.findall(lengths)) < 3:
        raise ValueError(
            f"expected a finite spacing of each axis. Received: {lengths}. Export the scan with its geometry."
        )
    in_patient = "spacedirections" in fields and fields.get("space", "").lower() in NRRD_SPACES
    oriented = in_patient or not META_DIRECTIONS.isdisjoint(fields)
    left_open = ["orientation"] * (not oriented) + ["spacing"] * (lengths is None)
    return _assumed(" and ".join(left_open), affine) if left_open else None


def _fields(lines: Iterable[bytes]) -> dict[str, str]:
    """Return the fields in the text that a file starts with, their names in lower case and without spaces."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("latin-1").replace("=", ":", 1).partition(":")
        name = name.replace(" ", "").strip().lower()
        fields[name] = value.strip()
        if name in ("", "elementdatafile"):  # voxels follow
            break
    return fields


def _assumed(left_open: str, affine: np.ndarray) -> str:
    """Return the warning of what a header leaves open, and what its reader made of it."""
    axes = ", ".join(orientations.aff2axcodes(affine, SIDES))
    spacing = " x ".join(f"{length:.3g}" for length in np.linalg.norm(affine[:3, :3], axis=0))
    at_risk = "Left and right" if "orientation" in left_open else "Lengths"
    return (
        f"expected the {left_open} of its axes. Received: none. Assumed: axes run to the patient's {axes}, with "
        f"{spacing} mm between voxels. {at_risk} may be wrong: check, or export the scan with its geometry."
    )
