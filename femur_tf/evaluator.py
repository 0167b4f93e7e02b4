"""A dense network on one volume: its planes, its coarse sums, any box of it.

The first Dense layer is a sum over towers. Coarse scales are summed once a lattice
cell. Of the towers that see every voxel all but the last are summed over a box, too;
the last one is evaluated together with the layers that follow, plane by plane, and
takes the other sums in.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from femur_tf import command, memory
from femur_tf.config import PatchConfig
from femur_tf.cover import Box
from femur_tf.dense import DenseNetwork, Share
from femur_tf.dense_steps import DENSE, Strided
from femur_tf.patch_config import PLANE_AXES
from femur_tf.patches import Cutter, padded_planes

PATCH_BATCH = 1024
EVERY = (1, 1, 1)
"""All voxels."""


def by_patches(
    model: keras.Sequential, grid: np.ndarray, rule: PatchConfig, centres: np.ndarray | None = None
) -> np.ndarray:
    """Evaluate the network patch by patch.

    Args:
      model: a network on the patches of `rule`.
      grid: (X, Y, Z) uint8 working grid.
      rule: the patch rule.
      centres: (N, 3) voxels; by default all, in the order of the array, none of which are held.

    Returns:
      (N,) float32 probabilities.
    """
    cutter = Cutter.of(grid, rule)
    count = grid.size if centres is None else len(centres)
    result = np.empty(count, np.float32)
    starts: Iterable[int] = range(0, count, PATCH_BATCH)
    for start in command.track(starts, "patches", total=-(-count // PATCH_BATCH)):
        here = slice(start, min(count, start + PATCH_BATCH))
        if centres is None:
            some = np.stack(np.unravel_index(np.arange(here.start, here.stop), grid.shape), axis=1)
        else:
            some = centres[here]
        result[here] = ops.convert_to_numpy(model.predict_on_batch(cutter.cut(some)))[:, 0]
    return result


class Probe:
    """Keeps the probabilities at some voxels, as computed, before the map rounds them.

    Args:
      centres: (N, 3) voxels.
    """

    def __init__(self, centres: np.ndarray) -> None:
        """Start without a value: a fast evaluation leaves voxels out."""
        self.centres = centres
        self.values = np.zeros(len(centres), np.float32)
        self.seen = np.zeros(len(centres), bool)

    @classmethod
    def draw(cls, shape: Sequence[int], count: int, rng: np.random.Generator) -> Probe:
        """Return a probe of `count` random voxels of a volume, or of all where there are fewer."""
        voxels = math.prod(shape)
        flat = rng.choice(voxels, min(count, voxels), replace=False, shuffle=False)
        return cls(np.stack(np.unravel_index(flat, shape), axis=1))

    def take(self, box: Box, found: np.ndarray) -> None:
        """Keep what a block of the map, [start, stop) voxels, holds of them."""
        low, high = np.transpose(box)
        here = ((self.centres >= low) & (self.centres < high)).all(axis=1)
        self.values[here] = found[tuple((self.centres[here] - low).T)]
        self.seen |= here

    def largest_difference(self, model: keras.Sequential, grid: np.ndarray, rule: PatchConfig) -> float:
        """Evaluate the voxels as patches and return the largest difference in probability.

        0 where no voxel was evaluated; NaN where one is not a number.
        """
        if not self.seen.any():
            return 0.0
        reference = by_patches(model, grid, rule, self.centres[self.seen])
        return float(np.abs(reference - self.values[self.seen]).max())


class LatticeSums(NamedTuple):
    """Sums of the first Dense layer over some cells of a lattice."""

    steps: tuple[int, int, int]
    """Voxels of a cell."""
    origin: tuple[int, int, int]
    """The first cell."""
    cells: np.ndarray
    """(x, y, z, units) float32."""

    def add(self, wider: LatticeSums) -> None:
        """Add the sums of a lattice whose cells are made of whole cells of this one."""
        index = [
            (np.arange(first, first + count) * step) // wide - origin
            for first, count, step, wide, origin in zip(
                self.origin, self.cells.shape, self.steps, wider.steps, wider.origin, strict=False
            )
        ]
        for row, cell in zip(self.cells, index[0], strict=True):
            row += wider.cells[cell][np.ix_(index[1], index[2])]

    def share(self, axes: Sequence[int], index: Sequence[np.ndarray]) -> Share:
        """Return the sums as seen from planes.

        Args:
          axes: the axis across the planes, then their rows and columns.
          index: voxels along these three.
        """
        n, rows, columns = (
            (voxels // self.steps[axis] - self.origin[axis]).astype(np.int32)
            for axis, voxels in zip(axes, index, strict=True)
        )
        return Share(self.cells.transpose(*axes, 3)[n], rows, columns)


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

    def _images(self, tower: int, box: Box, every: Sequence[int]) -> tuple[np.ndarray, Strided]:
        """Return the padded planes (N, A, B) of a tower over a box of cells, and how its axes are strided."""
        less = self.network.rule.size - 1
        across, rows, columns = PLANE_AXES[self.network.rule.towers[tower].plane]
        (n0, n1), (a0, a1), (b0, b1) = box[across], box[rows], box[columns]
        images = self.planes[tower][n0 : n1 : every[across], a0 : a1 + less, b0 : b1 + less]
        return images, (every[rows] > 1, every[columns] > 1)

    def _batches(self, planes: int, pixels: int) -> list[slice]:
        """Return which of so many planes of so many samples are evaluated together."""
        count = self.plan.images(pixels)
        return [slice(start, min(start + count, planes)) for start in range(0, planes, count)]

    def add_sums(self, total: np.ndarray, tower: int, box: Box, every: Sequence[int] = EVERY) -> None:
        """Add one tower's share of the first Dense layer.

        Args:
          total: (x, y, z, units) float32, changed in place.
          tower: its number among the rule's towers.
          box: [start, stop) in cells of its scale's lattice.
          every: 1 or the network's stride for each axis: the cells start, start + every, ... alone.
        """
        images, strided = self._images(tower, box, every)
        view = total.transpose(*PLANE_AXES[self.network.rule.towers[tower].plane], 3)  # (n, a, b, units)
        parts = self._batches(len(images), images[0].size)
        found = _ahead([functools.partial(self.network.tower, images[part], tower, strided) for part in parts])
        for part, sums in zip(parts, found, strict=True):
            view[part] += sums

    def _zeros(self, shape: Iterable[int]) -> np.ndarray:
        """Return sums to add to."""
        return np.zeros([*shape, self.network.units], np.float32)

    def coarse(self, box: Box) -> list[LatticeSums]:
        """Return the sums of all coarse scales over the cells that a box of voxels touches.

        A scale whose cells are made of whole cells of a finer one is added to that one's.
        """
        found: list[LatticeSums] = []
        for steps in sorted(self.network.coarse_steps, key=np.prod, reverse=True):
            own = self._lattice_sums(steps, box)
            wider = [sums for sums in found if all(a % b == 0 for a, b in zip(sums.steps, steps, strict=True))]
            for sums in wider:
                own.add(sums)
            found = [own, *(sums for sums in found if all(sums is not one for one in wider))]
        return found

    def _lattice_sums(self, steps: tuple[int, int, int], box: Box) -> LatticeSums:
        """Return the sums of the towers of one lattice over the cells that a box of voxels touches."""
        rule = self.network.rule
        x, y, z = ((start // step, -(-stop // step)) for (start, stop), step in zip(box, steps, strict=True))
        sums = LatticeSums(steps, (x[0], y[0], z[0]), self._zeros(stop - start for start, stop in (x, y, z)))
        for tower, (scale, _) in enumerate(rule.towers):
            if rule.steps[scale] == steps:
                self.add_sums(sums.cells, tower, (x, y, z))
        return sums

    @functools.cached_property
    def whole_coarse(self) -> list[LatticeSums] | None:
        """The sums of the coarse scales over the whole volume, where memory allows."""
        return self.coarse(whole(self.shape)) if self.plan.holds_coarse else None

    def _others(self, box: Box, every: Sequence[int]) -> list[LatticeSums]:
        """Return what all towers but the last fine one give in a box."""
        found = list(self.coarse(box) if self.whole_coarse is None else self.whole_coarse)
        others = self.network.fine_towers[:-1]
        if others:
            shape = (-(-(stop - start) // step) for (start, stop), step in zip(box, every, strict=True))
            x, y, z = (start // step for (start, _), step in zip(box, every, strict=True))
            found.append(LatticeSums((every[0], every[1], every[2]), (x, y, z), self._zeros(shape)))
        for tower in others:
            self.add_sums(found[-1].cells, tower, box, every)
        return found

    def parts(self, box: Box, every: Sequence[int] = EVERY) -> Iterator[tuple[Box, np.ndarray]]:
        """Yield the probabilities in a box of voxels, some planes at a time.

        Args:
          box: [start, stop) in voxels; its starts are multiples of every step of the lattices.
          every: as for `add_sums`.

        Yields:
          Which samples, [start, stop) counted from the box's first, and their (x, y, z) float32 probabilities.
        """
        network = self.network
        index = [np.arange(start, stop, step) for (start, stop), step in zip(box, every, strict=True)]
        others = self._others(box, every)
        tower = network.fine_towers[-1] if network.fine_towers else None
        axes = PLANE_AXES[0 if tower is None else network.rule.towers[tower].plane]
        images, strided = self._images(tower, box, every) if tower is not None else (_nothing(len(index[2])), DENSE)

        def evaluate(part: slice) -> np.ndarray:
            planes = [index[axes[0]][part], index[axes[1]], index[axes[2]]]
            shares = [sums.share(axes, planes) for sums in others]
            return network.probability(images[part], tower, shares, strided)

        # Without a tower at every voxel there are no images, but as many sums.
        pixels = images[0].size if tower is not None else len(index[axes[1]]) * len(index[axes[2]])
        batches = self._batches(len(images), pixels)
        for part, found in zip(batches, _ahead([functools.partial(evaluate, part) for part in batches]), strict=True):
            where = [(0, len(i)) for i in index]
            where[axes[0]] = (part.start, part.stop)
            yield (where[0], where[1], where[2]), found.transpose(np.argsort(axes))

    def probability(self, box: Box, every: Sequence[int] = EVERY) -> np.ndarray:
        """Return the probabilities in a box of voxels, (x, y, z) float32; arguments as for `parts`."""
        shape = [-(-(stop - start) // step) for (start, stop), step in zip(box, every, strict=True)]
        result = np.empty(shape, np.float32)
        for where, found in self.parts(box, every):
            result[_slices(where)] = found
        return result

    def fill(self, result: np.ndarray, box: Box, probe: Probe | None) -> Iterator[int]:
        """Write a box of the map, some planes at a time; yield the voxels of each part done."""
        for block in self.plan.split(box):
            for where, found in self.parts(block):
                x, y, z = ((first + a, first + b) for (first, _), (a, b) in zip(block, where, strict=True))
                if probe:
                    probe.take((x, y, z), found)
                result[_slices((x, y, z))] = found
                yield found.size


def _nothing(planes: int) -> np.ndarray:
    """Return planes without samples, for a network that has no tower at every voxel."""
    return np.zeros((planes, 1, 1), np.uint8)


def _slices(box: Box) -> tuple[slice, ...]:
    """Return a box as an index."""
    return tuple(slice(start, stop) for start, stop in box)


def _ahead(calls: Sequence[Callable[[], np.ndarray]]) -> Iterator[np.ndarray]:
    """Yield what each call returns, the next one computed while one is used."""
    with concurrent.futures.ThreadPoolExecutor(1) as worker:
        waiting = [worker.submit(call) for call in calls[:1]]
        for call in [*calls[1:], None]:
            if call is not None:
                waiting.append(worker.submit(call))
            yield waiting.pop(0).result()


def whole(shape: Sequence[int]) -> Box:
    """Return the box of a whole volume."""
    x, y, z = shape
    return (0, x), (0, y), (0, z)
