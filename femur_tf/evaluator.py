"""A dense network on one volume: its planes, its coarse sums, any box of it.

The first Dense layer is a sum over towers. `Evaluator.add_sums` adds the towers of
one scale over a box, plane by plane, to an array of `units` floats a voxel;
`Evaluator.probability` adds up the scales and applies the layers that follow.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np
from keras import ops

from femur_tf import command, memory
from femur_tf.config import PatchConfig
from femur_tf.dense import Box, DenseNetwork
from femur_tf.dense_steps import Strided
from femur_tf.patches import PLANE_AXES, Cutter, padded_planes

PATCH_BATCH = 1024
HEAD_BYTES = 32 * memory.MEGABYTE
"""Sums that the last layers turn into probabilities at a time."""


def by_patches(model: keras.Sequential, grid: np.ndarray, rule: PatchConfig, centres: np.ndarray) -> np.ndarray:
    """Evaluate the network patch by patch.

    Args:
      model: a network on the patches of `rule`.
      grid: (X, Y, Z) uint8 working grid.
      rule: the patch rule.
      centres: (N, 3) voxels.

    Returns:
      (N,) float32 probabilities.
    """
    cutter = Cutter.of(grid, rule)
    result = np.empty(len(centres), np.float32)
    starts: Iterable[int] = range(0, len(centres), PATCH_BATCH)
    for start in command.track(starts, "patches", total=-(-len(centres) // PATCH_BATCH)):
        here = slice(start, start + PATCH_BATCH)
        result[here] = ops.convert_to_numpy(model.predict_on_batch(cutter.cut(centres[here])))[:, 0]
    return result


class Probe:
    """Keeps the probabilities at some voxels, as computed, before the map rounds them.

    Args:
      centres: (N, 3) voxels.
    """

    def __init__(self, centres: np.ndarray) -> None:
        """Start with NaN: a voxel that a fast evaluation leaves out stays undefined."""
        self.centres = centres
        self.values = np.full(len(centres), np.nan, np.float32)

    @classmethod
    def draw(cls, shape: Sequence[int], count: int, rng: np.random.Generator) -> Probe:
        """Return a probe of `count` random voxels of a volume."""
        return cls(np.stack([rng.integers(n, size=count) for n in shape], axis=1))

    def take(self, box: Box, found: np.ndarray) -> None:
        """Keep what a block of the map, [start, stop) voxels, holds of them."""
        low, high = np.transpose(box)
        here = ((self.centres >= low) & (self.centres < high)).all(axis=1)
        self.values[here] = found[tuple((self.centres[here] - low).T)]

    def largest_difference(self, model: keras.Sequential, grid: np.ndarray, rule: PatchConfig) -> float:
        """Evaluate the voxels as patches and return the largest difference in probability.

        NaN where no voxel was evaluated.
        """
        known = np.isfinite(self.values)
        if not known.any():
            return float("nan")
        reference = by_patches(model, grid, rule, self.centres[known])
        return float(np.abs(reference - self.values[known]).max())


class Evaluator:
    """A dense network on one volume."""

    def __init__(self, network: DenseNetwork, grid: np.ndarray, plan: memory.BlockPlan) -> None:
        """Prepare the planes.

        Args:
          network: the dense form of a model.
          grid: (X, Y, Z) uint8 working grid.
          plan: how large blocks may be.
        """
        self.network, self.shape, self.plan = network, grid.shape, plan
        self.planes = padded_planes(grid, network.rule)

    def add_sums(self, total: np.ndarray, scale: int, box: Box, every: Sequence[int] = (1, 1, 1)) -> None:
        """Add one scale's share of the first Dense layer.

        Args:
          total: (x, y, z, units) float32, changed in place.
          scale: its number.
          box: [start, stop) in cells of the scale's lattice.
          every: 1 or the network's stride for each axis: the cells start, start + every, ... alone.
        """
        less = self.network.rule.size - 1
        for plane, axes in enumerate(PLANE_AXES):
            tower = scale * len(PLANE_AXES) + plane
            (n0, n1), (a0, a1), (b0, b1) = (box[axis] for axis in axes)
            images = self.planes[tower][n0 : n1 : every[axes[0]], a0 : a1 + less, b0 : b1 + less]
            strided: Strided = (every[axes[1]] > 1, every[axes[2]] > 1)
            view = total.transpose(*axes, 3)  # (n, a, b, units)
            count = self.plan.images(images[0].size)
            parts = [slice(start, start + count) for start in range(0, len(images), count)]
            for part, found in zip(parts, self._ahead(images, parts, tower, strided), strict=True):
                view[part] += found

    def _ahead(self, images: np.ndarray, parts: list[slice], tower: int, strided: Strided) -> Iterator[np.ndarray]:
        """Yield the tower's maps of each part of the images, the next one computed while one is used."""
        with concurrent.futures.ThreadPoolExecutor(1) as worker:
            waiting = [worker.submit(self.network.tower, images[part], tower, strided) for part in parts[:1]]
            for part in [*parts[1:], None]:
                if part is not None:
                    waiting.append(worker.submit(self.network.tower, images[part], tower, strided))
                yield waiting.pop(0).result()

    def _zeros(self, shape: Iterable[int]) -> np.ndarray:
        """Return sums to add to."""
        return np.zeros([*shape, self.network.units], np.float32)

    @functools.cached_property
    def coarse(self) -> dict[int, np.ndarray]:
        """The sums of each scale of which a cell holds several voxels, over the whole volume, where memory allows."""
        found = {}
        for scale, steps in enumerate(self.network.rule.steps):
            cells = [-(-n // s) for n, s in zip(self.shape, steps, strict=True)]
            if max(steps) > 1 and self.plan.allows_whole(int(np.prod(cells))):
                found[scale] = self._zeros(cells)
                self.add_sums(found[scale], scale, whole(cells))
        return found

    def _add_coarse(self, total: np.ndarray, scale: int, index: Sequence[np.ndarray]) -> None:
        """Add a coarse scale's sums at the voxels of an open grid of indices, a plane at a time to save memory."""
        x, y, z = (i // step for i, step in zip(index, self.network.rule.steps[scale], strict=True))
        if scale in self.coarse:
            cells, origin = self.coarse[scale], (0, 0, 0)
        else:
            box: Box = ((x[0], x[-1] + 1), (y[0], y[-1] + 1), (z[0], z[-1] + 1))
            cells, origin = self._zeros(stop - start for start, stop in box), (x[0], y[0], z[0])
            self.add_sums(cells, scale, box)
        for row, cell in zip(total, x - origin[0], strict=True):
            row += cells[cell][np.ix_(y - origin[1], z - origin[2])]

    def probability(self, box: Box, every: Sequence[int] = (1, 1, 1)) -> np.ndarray:
        """Return the probabilities in a box of voxels.

        Args:
          box: [start, stop) in voxels; its starts are multiples of every step of the lattices.
          every: as for `add_sums`.

        Returns:
          (x, y, z) float32.
        """
        index = [np.arange(start, stop, step) for (start, stop), step in zip(box, every, strict=True)]
        total = self._zeros(map(len, index))
        for scale, steps in enumerate(self.network.rule.steps):
            if max(steps) > 1:
                self._add_coarse(total, scale, index)
            else:
                self.add_sums(total, scale, box, every)
        rows = max(1, HEAD_BYTES // total[0].nbytes)
        parts = [self.network.head(total[start : start + rows]) for start in range(0, len(total), rows)]
        return np.concatenate([ops.convert_to_numpy(part) for part in parts])

    def fill(self, result: np.ndarray, box: Box, probe: Probe | None) -> Iterator[int]:
        """Write a box of the map, block by block; yield the voxels of each block done."""
        for block in self.plan.split(box):
            found = self.probability(block)
            if probe:
                probe.take(block, found)
            result[tuple(slice(start, stop) for start, stop in block)] = found
            yield found.size


def whole(shape: Sequence[int]) -> Box:
    """Return the box of a whole volume."""
    x, y, z = shape
    return (0, x), (0, y), (0, z)
