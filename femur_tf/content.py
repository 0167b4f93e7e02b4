"""The part of a scan that is image: planes of one value at its sides, which pad it to another size, are left out.

A network reads beyond the border of a volume what lies on it, and has learned so. Black planes in their place tell it
of air where the patient goes on.
"""

from __future__ import annotations

import numpy as np

from femur_tf.volume import Volume

PADDING = 4
"""Planes of one value that are left out, at least, at a side: scans have one or two such slices of their own."""


Box = tuple[slice, slice, slice]
"""From which voxel to which, along each axis."""


def box(data: np.ndarray) -> Box:
    """Return the part of a volume within its padding; all of it where every voxel is alike.

    Args:
      data: (X, Y, Z), real.
    """
    x, y, z = (_shown(data, axis) for axis in range(3))
    return x, y, z


def _shown(data: np.ndarray, axis: int) -> slice:
    """Return from which to which plane across an axis a volume is image."""
    others, length = tuple(other for other in range(3) if other != axis), data.shape[axis]
    shown = np.flatnonzero(data.min(others) != data.max(others))
    if not shown.size:
        return slice(0, length)
    start, stop = int(shown[0]), int(shown[-1]) + 1
    return slice(start if start >= PADDING else 0, stop if length - stop >= PADDING else length)


def part(volume: Volume, inside: Box) -> Volume:
    """Return the voxels of a volume in a box, each at its place."""
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in inside]
    return Volume(volume.data[inside], affine)
