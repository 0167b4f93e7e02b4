"""Dense evaluation as one TensorFlow graph: the signature `segment` of an exported model.

The graph takes a working grid of any shape and does what `femur_tf.evaluator` does:
it makes the lattice of each scale, pads it by the edge, sums the coarse scales once a
cell and evaluates the others over blocks of planes, with the same steps
(`femur_tf.dense_steps`) and the same last layers. Indices are clamped to the volume,
which is the padding. One plane at a time is evaluated, so that memory stays bounded
whatever the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from femur_tf.dense import DenseNetwork, Share
from femur_tf.patch_config import PLANE_AXES

BLOCK_BYTES = 256 * 10**6
"""Of the sums of the first Dense layer over a block."""
Range = tuple[tf.Tensor, tf.Tensor]
"""start, stop along an axis."""


def _lattice(grid: tf.Tensor, steps: tuple[int, int, int]) -> tf.Tensor:
    """Return the rounded mean of each cell, as `patches.lattice` does: (X, Y, Z) uint8 -> uint8."""
    if steps == (1, 1, 1):
        return grid
    sums = tf.cast(grid, tf.int32)
    count = int(np.prod(steps))
    for axis, step in enumerate(steps):
        length = tf.shape(sums)[axis]
        cells = (length + step - 1) // step
        full = tf.gather(sums, tf.minimum(tf.range(cells * step), length - 1), axis=axis)
        shape = tf.unstack(tf.shape(full))
        split = tf.stack([*shape[:axis], cells, tf.constant(step), *shape[axis + 1 :]])
        sums = tf.reduce_sum(tf.reshape(full, split), axis=axis + 1)
    return tf.cast((sums + count // 2) // count, tf.uint8)


def _longest_short(network: DenseNetwork) -> int:
    """Return by how many samples any plane may have to be lengthened."""
    size = network.rule.size
    return max(network.short(length, False) for length in range(size, size + 2 * network.stride))


def _window(cells: tf.Tensor, axis: int, start: tf.Tensor, stop: tf.Tensor) -> tf.Tensor:
    """Return samples start..stop - 1 along an axis, those beyond the border repeating the nearest."""
    return tf.gather(cells, tf.clip_by_value(tf.range(start, stop), 0, tf.shape(cells)[axis] - 1), axis=axis)


def _images(network: DenseNetwork, cells: tf.Tensor, tower: int, extent: Sequence[Range]) -> tf.Tensor:
    """Return the padded planes (N, A, B) uint8 of a tower over a box of its lattice."""
    axes = PLANE_AXES[network.rule.towers[tower].plane]
    before = network.rule.size // 2
    more = network.rule.size - 1 - before + _longest_short(network)
    images = _window(cells, axes[0], *extent[axes[0]])
    for axis in axes[1:]:
        start, stop = extent[axis]
        images = _window(images, axis, start - before, stop + more)
    return tf.transpose(images, axes)


def _sums(network: DenseNetwork, cells: tf.Tensor, tower: int, extent: Sequence[Range]) -> tf.Tensor:
    """Return (x, y, z, units): a tower's share of the first Dense layer over a box of its lattice."""
    axes = PLANE_AXES[network.rule.towers[tower].plane]
    rows, columns = (extent[axis][1] - extent[axis][0] for axis in axes[1:])
    maps = tf.map_fn(
        lambda image: network.evaluate(image[None], network.parameters[tower])[0, :rows, :columns],
        _images(network, cells, tower, extent),
        fn_output_signature=tf.TensorSpec((None, None, network.units), tf.float32),
        parallel_iterations=1,
    )  # (n, a, b, units)
    return tf.transpose(maps, [*np.argsort(axes), 3])


class Lattice(NamedTuple):
    """Sums of the first Dense layer over the whole lattice of one step."""

    steps: tuple[int, int, int]
    cells: tf.Tensor
    """(x, y, z, units) float32."""


def _coarse(network: DenseNetwork, lattices: list[tf.Tensor]) -> list[Lattice]:
    """Return the sums of all coarse scales, in the order in which `Evaluator.coarse` adds them."""
    found: list[Lattice] = []
    for steps in sorted(network.coarse_steps, key=np.prod, reverse=True):
        own: tf.Tensor = tf.constant(0.0)
        for tower, (scale, _) in enumerate(network.rule.towers):
            if network.rule.steps[scale] == steps:
                extent = [(tf.constant(0), length) for length in tf.unstack(tf.shape(lattices[scale]))]
                own = own + _sums(network, lattices[scale], tower, extent)
        wider = [sums for sums in found if all(a % b == 0 for a, b in zip(sums.steps, steps, strict=True))]
        for sums in wider:
            spread = sums.cells
            for axis, (wide, step) in enumerate(zip(sums.steps, steps, strict=True)):
                spread = tf.gather(spread, tf.range(tf.shape(own)[axis]) * step // wide, axis=axis)
            own = own + spread
        found = [Lattice(steps, own), *(sums for sums in found if all(sums is not one for one in wider))]
    return found


def _block(network: DenseNetwork, grid: tf.Tensor, coarse: list[Lattice], along: Range) -> tf.Tensor:
    """Return the (n, a, b) float16 probabilities of some planes of the last fine tower."""
    fine = network.fine_towers
    axes = _axes(network)
    extent = [(tf.constant(0), length) for length in tf.unstack(tf.shape(grid))]
    extent[axes[0]] = along
    others = [Lattice((1, 1, 1), _sums(network, grid, tower, extent)) for tower in fine[:-1]]
    index = [tf.range(*extent[axis]) for axis in axes]
    shares = []
    for sums in [*coarse, *others]:
        n, rows, columns = (voxels // sums.steps[axis] for voxels, axis in zip(index, axes, strict=True))
        if sums.steps == (1, 1, 1):
            n = tf.range(tf.size(n))  # of this block alone
        shares.append(Share(tf.gather(tf.transpose(sums.cells, [*axes, 3]), n), rows, columns))
    images = _images(network, grid, fine[-1], extent) if fine else tf.zeros((tf.size(index[0]), 1, 1), tf.uint8)

    def plane(number: tf.Tensor) -> tf.Tensor:
        own = [Share(share.cells[number][None], share.rows, share.columns) for share in shares]
        image = images[number][None] if fine else None
        weights = network.parameters[fine[-1]] if fine else ()
        found = network.finish(image, weights, own)[0, : tf.size(index[1]), : tf.size(index[2])]
        return tf.cast(found, tf.float16)

    spec = tf.TensorSpec((None, None), tf.float16)
    return tf.map_fn(plane, tf.range(tf.size(index[0])), fn_output_signature=spec, parallel_iterations=1)


def _axes(network: DenseNetwork) -> tuple[int, int, int]:
    """Return the axis across the planes that are evaluated last, then their two axes."""
    fine = network.fine_towers
    return PLANE_AXES[network.rule.towers[fine[-1]].plane if fine else 0]


def segment_function(network: DenseNetwork) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return the function behind the signature `segment`.

    Args:
      network: the dense form of a model.

    Returns:
      (1, X, Y, Z) uint8 -> {"probability": (1, X, Y, Z) float16}. Another batch than 1 is an InvalidArgument error.
    """
    axes = _axes(network)

    def segment(volume: tf.Tensor) -> dict[str, tf.Tensor]:
        """Evaluate one volume in blocks of planes."""
        one = tf.debugging.assert_equal(tf.shape(volume)[0], 1, "Expected one volume, (1, X, Y, Z).")
        some = tf.debugging.assert_positive(tf.shape(volume)[1:], "Expected a volume with voxels, (1, X, Y, Z).")
        with tf.control_dependencies([one, some]):
            grid = volume[0]
        lattices = [_lattice(grid, steps) for steps in network.rule.steps]
        coarse = _coarse(network, lattices)
        planes, rows, columns = (tf.shape(grid)[axis] for axis in axes)
        plane_bytes = 4 * network.units * tf.cast(rows, tf.int64) * tf.cast(columns, tf.int64)
        depth = tf.cast(tf.maximum(BLOCK_BYTES // plane_bytes, 1), tf.int32)
        count = (planes + depth - 1) // depth
        blocks = tf.TensorArray(tf.float16, size=count, infer_shape=False, element_shape=(None, None, None))

        def body(index: tf.Tensor, blocks: Any) -> tuple[tf.Tensor, Any]:
            along = (index * depth, tf.minimum(planes, (index + 1) * depth))
            return index + 1, blocks.write(index, _block(network, grid, coarse, along))

        _, blocks = tf.while_loop(lambda i, _: i < count, body, (tf.constant(0), blocks), parallel_iterations=1)
        return {"probability": tf.transpose(blocks.concat(), np.argsort(axes))[None]}

    return segment
