"""Few boxes around the voxels that are worth an exact evaluation.

A box is evaluated with a halo around it, so many small boxes cost more than they
leave out, and one large box evaluates what nobody asked for. The box around all is
halved, each half shrunk to what it holds, again and again as long as that pays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""[start, stop) along x, y, z."""
GAIN = 0.05
"""Least share of the work that a cut must save."""


def cover(wanted: np.ndarray, *, every: Sequence[int], halo: Sequence[int]) -> list[Box]:
    """Cover all wanted samples with disjoint boxes.

    Args:
      wanted: (X, Y, Z) bool.
      every: voxels between two samples along each axis.
      halo: voxels that are evaluated around a box, along each axis, on both sides together.

    Returns:
      [start, stop) in samples; none where nothing is wanted.
    """
    x, y, z = wanted.shape
    box = shrink(wanted, ((0, x), (0, y), (0, z)))
    return _split(wanted, box, every, halo) if box else []


def shrink(wanted: np.ndarray, box: Box) -> Box | None:
    """Return the smallest box around the wanted samples inside `box`; None where there are none."""
    inside = wanted[tuple(slice(start, stop) for start, stop in box)]
    result = []
    for axis, (start, _) in enumerate(box):
        shown = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
        if not shown.size:
            return None
        result.append((start + int(shown[0]), start + int(shown[-1]) + 1))
    x, y, z = result
    return x, y, z


def _cost(boxes: Sequence[Box], every: Sequence[int], halo: Sequence[int]) -> int:
    """Return the voxels that are evaluated for `boxes`, with their halos."""
    return sum(
        int(np.prod([(stop - start) * step + more for (start, stop), step, more in zip(box, every, halo, strict=True)]))
        for box in boxes
    )


def _halves(wanted: np.ndarray, box: Box, axis: int) -> list[Box]:
    """Return the halves of a box along an axis, each shrunk."""
    start, stop = box[axis]
    middle = (start + stop) // 2
    found = []
    for side in ((start, middle), (middle, stop)):
        x, y, z = (side if index == axis else whole for index, whole in enumerate(box))
        found.append(shrink(wanted, (x, y, z)))
    return [half for half in found if half]


def _split(wanted: np.ndarray, box: Box, every: Sequence[int], halo: Sequence[int]) -> list[Box]:
    """Return `box`, or the boxes that it is better cut into."""
    cuts = [_halves(wanted, box, axis) for axis, (start, stop) in enumerate(box) if stop - start > 1]
    best = min(cuts, key=lambda boxes: _cost(boxes, every, halo), default=[box])
    if _cost(best, every, halo) > (1 - GAIN) * _cost([box], every, halo):
        return [box]
    return [part for half in best for part in _split(wanted, half, every, halo)]
