"""Model + working grid -> probability map.

`probability_map` evaluates the network densely, block by block; where the network
has no dense form it streams patches. `by_patches` is the reference that both must
equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import keras
import numpy as np
from keras import ops

from femur_tf import command
from femur_tf.config import PatchConfig
from femur_tf.dense import Box, DenseNetwork, NotDenseError, convert
from femur_tf.patches import PLANE_AXES, Cutter, padded_planes

BLOCK_BYTES = 256 * 2**20
"""Memory for the sums of the first Dense layer over one block."""

MAP_BYTES = 48 * 2**20
"""Memory for the widest map of a batch of planes."""

PATCH_BATCH = 1024


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
        result[here] = np.asarray(model.predict_on_batch(cutter.cut(centres[here])))[:, 0]
    return result


def _sums(network: DenseNetwork, planes: list[np.ndarray], scale: int, box: Box) -> np.ndarray:
    """Return (x, y, z, units) float32: one scale's share of the first Dense layer over a box of its lattice."""
    less = network.rule.size - 1
    result = np.zeros([stop - start for start, stop in box] + [network.units], np.float32)
    for plane, axes in enumerate(PLANE_AXES):
        tower = scale * len(PLANE_AXES) + plane
        (n0, n1), (a0, a1), (b0, b1) = (box[axis] for axis in axes)
        images = planes[tower][n0:n1, a0 : a1 + less, b0 : b1 + less]
        view = result.transpose(*axes, 3)  # (n, a, b, units)
        count = max(1, MAP_BYTES // (4 * network.width * images[0].size))
        for start in range(0, len(images), count):
            view[start : start + count] += ops.convert_to_numpy(network.tower(images[start : start + count], tower))
    return result


def _slabs(shape: tuple[int, ...], network: DenseNetwork) -> Iterator[Box]:
    """Yield boxes that fill the volume, slabs along z of bounded memory."""
    x, y, z = shape
    depth = max(1, BLOCK_BYTES // (4 * network.units * x * y))
    for start in range(0, z, depth):
        yield (0, x), (0, y), (start, min(z, start + depth))


def _dense_map(network: DenseNetwork, grid: np.ndarray) -> np.ndarray:
    """Return the (X, Y, Z) float16 probability map of a network with a dense form."""
    rule = network.rule
    planes = padded_planes(grid, rule)
    cells = [tuple(-(-n // s) for n, s in zip(grid.shape, steps, strict=True)) for steps in rule.steps]
    coarse = {
        scale: _sums(network, planes, scale, tuple((0, n) for n in cells[scale]))  # type: ignore[arg-type]
        for scale, steps in enumerate(rule.steps)
        if max(steps) > 1
    }
    result = np.empty(grid.shape, np.float16)
    for box in command.track(list(_slabs(grid.shape, network)), "network"):
        where = tuple(slice(start, stop) for start, stop in box)
        total = np.zeros([stop - start for start, stop in box] + [network.units], np.float32)
        for scale, steps in enumerate(rule.steps):
            if scale in coarse:
                index = [np.arange(start, stop) // step for (start, stop), step in zip(box, steps, strict=True)]
                total += coarse[scale][np.ix_(*index)]
            else:
                total += _sums(network, planes, scale, box)
        result[where] = ops.convert_to_numpy(network.head(total))
    return result


def probability_map(model: keras.Sequential, grid: np.ndarray, rule: PatchConfig) -> np.ndarray:
    """Return the probability of bone at every voxel of a working grid.

    Args:
      model: a network on the patches of `rule`.
      grid: (X, Y, Z) uint8 working grid.
      rule: the patch rule the model was trained with.

    Returns:
      (X, Y, Z) float16 in [0, 1].
    """
    try:
        network = convert(model, rule)
    except NotDenseError as error:
        command.warn(f"{error} Going on patch by patch, which takes about a hundred times as long.")
        centres = np.stack(np.unravel_index(np.arange(grid.size), grid.shape), axis=1)
        return by_patches(model, grid, rule, centres).reshape(grid.shape).astype(np.float16)
    return _dense_map(network, grid)
