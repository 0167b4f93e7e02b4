"""Blocks: what the patches of a whole lattice of voxels read, each sample once.

The patches of neighbouring voxels overlap. A **block** is a lattice of `samples`
voxels along each axis, `apart` voxels apart from its `corner` on, and holds for each
tower the part of the padded planes that the patches of these voxels are windows of:
`samples` planes across, and along rows and columns the cells from the first voxel's to
the last one's with the samples of a patch around them. Like a patch in the records it
has one sample more at the upper end, so that a mirrored block can be taken from it.

The patch of voxel (i, j, k) of a block begins, in the planes of a tower, at `offsets`
of its row and of its column.
"""

from __future__ import annotations

import numpy as np

from femur_tf.patch_config import PLANE_AXES, BlockConfig, PatchConfig
from femur_tf.patches import Cutter

OUTSIDE = 255
"""The label of a voxel of a block that lies beyond the volume."""


def shapes(rule: PatchConfig, block: BlockConfig) -> list[tuple[int, int, int]]:
    """Return the shape (N, A, B) of the planes of each tower of a block."""
    found = []
    for scale, plane in rule.towers:
        across, rows, columns = PLANE_AXES[plane]
        a, b = (block.cells(axis, rule.steps[scale][axis]) + rule.size + 1 for axis in (rows, columns))
        found.append((block.samples[across], a, b))
    return found


def voxels(block: BlockConfig, corner: np.ndarray) -> list[np.ndarray]:
    """Return where the voxels of a block lie along x, y, z; some may lie beyond the volume."""
    return [first + apart * np.arange(n) for first, apart, n in zip(corner, block.apart, block.samples, strict=True)]


def offsets(block: BlockConfig, axis: int, step: int, phase: int) -> np.ndarray:
    """Return in which cell, counted from the first voxel's, each voxel of a block lies along an axis.

    Args:
      block: what a block is.
      axis: 0, 1 or 2.
      step: voxels of a cell along it.
      phase: the corner's place in its cell.

    Returns:
      (samples,) int64.
    """
    return (phase % step + block.apart[axis] * np.arange(block.samples[axis])) // step


def cut(cutter: Cutter, block: BlockConfig, corner: np.ndarray) -> list[np.ndarray]:
    """Cut a block from a volume.

    Args:
      cutter: of the volume; its patch rule is the block's.
      block: what a block is.
      corner: (3,) integers, the first voxel.

    Returns:
      A list over the towers of uint8 planes as `shapes` says.

    Raises:
      IndexError: the corner lies outside the volume.
    """
    if ((corner < 0) | (corner >= cutter.shape)).any():
        raise IndexError(f"Expected a corner inside the volume of shape {cutter.shape}. Received: {corner.tolist()}")
    rule, places = cutter.config, voxels(block, corner)
    result = []
    for (scale, plane), planes, shape in zip(rule.towers, cutter.planes, shapes(rule, block), strict=True):
        across, rows, columns = PLANE_AXES[plane]
        steps = rule.steps[scale]
        wanted = (
            places[across] // steps[across],
            corner[rows] // steps[rows] + np.arange(shape[1]),
            corner[columns] // steps[columns] + np.arange(shape[2]),
        )
        # Beyond the padding, which repeats the border, the border goes on.
        inside = [np.minimum(index, n - 1) for index, n in zip(wanted, planes.shape, strict=True)]
        result.append(planes[np.ix_(*inside)])
    return result


def labels(mask: np.ndarray, block: BlockConfig, corner: np.ndarray) -> np.ndarray:
    """Return the labels of a block.

    Args:
      mask: (X, Y, Z) bool.
      block: what a block is.
      corner: (3,) integers, the first voxel.

    Returns:
      `samples`-shaped uint8: 1 for bone, 0 for background, `OUTSIDE` beyond the volume.
    """
    places = voxels(block, corner)
    inside = np.meshgrid(*[index < n for index, n in zip(places, mask.shape, strict=True)], indexing="ij")
    found = mask[np.ix_(*[np.minimum(index, n - 1) for index, n in zip(places, mask.shape, strict=True)])]
    return np.where(np.logical_and.reduce(inside), found, OUTSIDE).astype(np.uint8)
