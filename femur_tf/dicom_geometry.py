"""Whether the slices of a DICOM series make up one volume, told by their tags alone.

The reader takes the spacing of the first two slices for that of all, and 1 mm where it finds none: a wrong volume, and
not a word. Tags are read as the standard defines them (PS3.3, C.7.6.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

FRAMES = "0028|0008"  # Number of Frames
POSITION = "0020|0032"  # Image Position (Patient), mm
ORIENTATION = "0020|0037"  # Image Orientation (Patient), cosines of rows and columns
SPACING = "0028|0030"  # Pixel Spacing, mm
TAGS = (FRAMES, POSITION, ORIENTATION, SPACING)
GEOMETRY = {POSITION: ("position", 3), ORIENTATION: ("orientation", 6), SPACING: ("pixel spacing", 2)}
GAP_TOLERANCE = 0.05
"""Slices are evenly spaced where each gap is within this share of the median gap (bound included)."""
ALIKE = 1e-3
"""Cosines, and pixel spacings in mm, that differ by at most this are equal."""
AGAIN = "Export the series again with its geometry."


def check(names: Sequence[str], slices: Sequence[Mapping[str, str]]) -> None:
    """Raise unless the slices make up one volume.

    Args:
      names: of the files, in their order along the series.
      slices: the texts of the tags that each slice has, of `TAGS`.

    Raises:
      ValueError: several frames in a file; a slice without position, orientation or spacing; slices of different
        orientation or spacing, at one place, or unevenly spaced.
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
