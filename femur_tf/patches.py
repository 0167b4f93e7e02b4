"""The patch rule: which voxels of the working grid the patch at a centre reads.

A scale with steps (sx, sy, sz) is a volume of its own, the **lattice**: each of its
cells holds the integer mean of sx * sy * sz working-grid voxels, counted from voxel
0. A patch is a window of size x size samples of one plane of that lattice, at
offsets -size//2 .. size - size//2 - 1 from the cell that holds the centre. Samples
beyond the border repeat the nearest cell inside.

Written here once, the rule serves records, training, patch-wise prediction and
dense evaluation. All of them read `padded_planes`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from femur_tf.patch_config import PLANE_AXES, PatchConfig

_CHUNK = 1024
"""Patches cut at a time: 1024 x 33 x 33 bytes stay in a second-level cache."""


def lattice(grid: np.ndarray, steps: tuple[int, int, int]) -> np.ndarray:
    """Return the volume of one scale: the rounded mean of each cell.

    Args:
      grid: (X, Y, Z) uint8 working grid.
      steps: cell size in voxels along x, y, z; a partial last cell is completed with edge values.

    Returns:
      (ceil(X / sx), ceil(Y / sy), ceil(Z / sz)) uint8: (sum + n // 2) // n of the n voxels of a cell.
    """
    if steps == (1, 1, 1):
        return grid
    shape = [-(-n // s) for n, s in zip(grid.shape, steps, strict=True)]
    full = np.pad(grid, [(0, m * s - n) for n, m, s in zip(grid.shape, shape, steps, strict=True)], mode="edge")
    count = int(np.prod(steps))
    for axis in (2, 1, 0):
        # Summing an axis at a time keeps the intermediate volumes small.
        split = full.shape[:axis] + (shape[axis], steps[axis]) + full.shape[axis + 1 :]
        full = full.reshape(split).sum(axis=axis + 1, dtype=np.uint32)
    return ((full + count // 2) // count).astype(np.uint8)


def padded_planes(grid: np.ndarray, config: PatchConfig) -> list[np.ndarray]:
    """Return, for each channel, the planes that its patches are windows of.

    Args:
      grid: (X, Y, Z) uint8 working grid.
      config: the patch rule.

    Returns:
      A list over the rule's towers of (N, A + size, B + size) uint8 arrays: N planes of A x B cells, padded by
      size // 2 cells before and the rest after. The patch of the cell (n, a, b) is `[n, a : a + size, b : b + size]`;
      one row and column more, up to size + 1, lie inside too.
    """
    before, after = config.size // 2, config.size - config.size // 2
    cells = [lattice(grid, steps) for steps in config.steps]
    return [
        # (N, A, B), padded along A and B
        np.pad(cells[scale].transpose(PLANE_AXES[plane]), ((0, 0), (before, after), (before, after)), mode="edge")
        for scale, plane in config.towers
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class Cutter:
    """Cuts patches from one volume."""

    shape: tuple[int, ...]
    """Of the working grid, in voxels."""
    config: PatchConfig
    planes: list[np.ndarray]
    """As `padded_planes` returns them."""

    @classmethod
    def of(cls, grid: np.ndarray, config: PatchConfig) -> Cutter:
        """Prepare cutting from `grid`.

        Args:
          grid: (X, Y, Z) uint8 working grid.
          config: the patch rule.

        Raises:
          ValueError: `grid` is not a uint8 volume.
        """
        if grid.dtype != np.uint8 or grid.ndim != 3 or 0 in grid.shape:
            raise ValueError(f"Expected a uint8 volume (X, Y, Z). Received: shape={grid.shape}, dtype={grid.dtype}")
        return cls(grid.shape, config, padded_planes(grid, config))

    def cut(self, centres: np.ndarray, *, extra: bool = False) -> np.ndarray:
        """Cut the patches at `centres`.

        Args:
          centres: (N, 3) integers, working-grid voxels.
          extra: cut size + 1 samples along each axis, the additional one at the upper end, as records hold them.

        Returns:
          (N, size, size, channels) uint8, or size + 1 with `extra`.

        Raises:
          IndexError: a centre lies outside the volume.
        """
        centres = np.asarray(centres, np.int64).reshape(-1, 3)
        if ((centres < 0) | (centres >= self.shape)).any():
            bad = centres[((centres < 0) | (centres >= self.shape)).any(axis=1)][0]
            raise IndexError(f"Expected centres inside the volume of shape {self.shape}. Received: {bad.tolist()}")
        size = self.config.size + int(extra)
        result = np.empty((len(centres), size, size, self.config.channels), np.uint8)
        for channel, (tower, planes) in enumerate(zip(self.config.towers, self.planes, strict=True)):
            windows = sliding_window_view(planes, (size, size), axis=(1, 2))  # (N, A, B, size, size)
            cells = centres // self.config.steps[tower.scale]
            n, a, b = cells[:, PLANE_AXES[tower.plane]].T
            for start in range(0, len(centres), _CHUNK):
                part = slice(start, start + _CHUNK)
                result[part, :, :, channel] = windows[n[part], a[part], b[part]]
        return result
