"""Dense evaluation as one TensorFlow graph: the signature `segment` of an exported model.

The graph takes a working grid of any shape and does what `femur_tf.evaluator` does:
it makes the lattice of each scale, pads it by the edge, evaluates the towers over
blocks along x with the same steps (`femur_tf.dense_steps`), adds them and applies the
last layers. Indices are clamped to the volume, which is the padding. One plane at a
time is evaluated, so that memory stays bounded whatever the volume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from femur_tf.dense import DenseNetwork
from femur_tf.patches import PLANE_AXES

BLOCK_BYTES = 256 * 10**6
"""Of the sums of the first Dense layer over a block."""


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


def _scale_sums(network: DenseNetwork, cells: tf.Tensor, scale: int, first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """Return (last - first, Y, Z, units): the three towers of a scale, over cells first..last - 1 along x."""
    before = network.rule.size // 2
    more = network.rule.size - 1 - before + _longest_short(network)
    extent = [(first, last), *((tf.constant(0), tf.shape(cells)[axis]) for axis in (1, 2))]
    total: tf.Tensor = tf.constant(0.0)
    for plane, axes in enumerate(PLANE_AXES):
        images = _window(cells, axes[0], *extent[axes[0]])
        for axis in axes[1:]:
            start, stop = extent[axis]
            images = _window(images, axis, start - before, stop + more)
        rows, columns = (extent[axis][1] - extent[axis][0] for axis in axes[1:])
        weights = network.parameters[scale * len(PLANE_AXES) + plane]
        maps = tf.map_fn(
            lambda image, w=weights, r=rows, c=columns: network.evaluate(image[None], w)[0, :r, :c],
            tf.transpose(images, axes),
            fn_output_signature=tf.TensorSpec((None, None, network.units), tf.float32),
            parallel_iterations=1,
        )  # (n, a, b, units)
        total = total + tf.transpose(maps, [*np.argsort(axes), 3])
    return total


def _block(
    network: DenseNetwork,
    lattices: list[tf.Tensor],
    sides: tuple[tf.Tensor, tf.Tensor],
    along_x: tuple[tf.Tensor, tf.Tensor],
) -> tf.Tensor:
    """Return (stop - start, Y, Z) float16 probabilities; `start` is a multiple of every step along x."""
    start, stop = along_x
    total: tf.Tensor = tf.constant(0.0)
    for scale, (cells, steps) in enumerate(zip(lattices, network.rule.steps, strict=True)):
        sums = _scale_sums(network, cells, scale, start // steps[0], (stop + steps[0] - 1) // steps[0])
        for axis, (step, length) in enumerate(zip(steps, (stop - start, *sides), strict=True)):
            if step > 1:
                sums = tf.gather(sums, tf.range(length) // step, axis=axis)
        total = total + sums
    return tf.cast(network.head(total), tf.float16)


def segment_function(network: DenseNetwork) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Return the function behind the signature `segment`.

    Args:
      network: the dense form of a model.

    Returns:
      (1, X, Y, Z) uint8 -> {"probability": (1, X, Y, Z) float16}. Another batch than 1 is an InvalidArgument error.
    """
    multiple = int(np.lcm.reduce([steps[0] for steps in network.rule.steps]))

    def segment(volume: tf.Tensor) -> dict[str, tf.Tensor]:
        one = tf.debugging.assert_equal(tf.shape(volume)[0], 1, "Expected one volume, (1, X, Y, Z).")
        with tf.control_dependencies([one]):
            grid = volume[0]
        lattices = [_lattice(grid, steps) for steps in network.rule.steps]
        x, y, z = tf.unstack(tf.shape(grid))
        bytes_a_row = 4 * network.units * tf.cast(y, tf.int64) * tf.cast(z, tf.int64)
        rows = tf.cast(tf.maximum(BLOCK_BYTES // bytes_a_row, 1), tf.int32)
        depth = tf.maximum(rows // multiple, 1) * multiple
        count = (x + depth - 1) // depth
        blocks = tf.TensorArray(tf.float16, size=count, infer_shape=False, element_shape=(None, None, None))
        index = tf.constant(0)

        def body(index: tf.Tensor, blocks: Any) -> tuple[tf.Tensor, Any]:
            found = _block(network, lattices, (y, z), (index * depth, tf.minimum(x, (index + 1) * depth)))
            return index + 1, blocks.write(index, found)

        _, blocks = tf.while_loop(lambda i, _: i < count, body, (index, blocks), parallel_iterations=1)
        return {"probability": blocks.concat()[None]}

    return segment
