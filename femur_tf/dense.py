"""The patch network evaluated at every voxel at once, exactly.

Neighbouring patches share nearly all their work. Evaluated over whole planes with
stride 1, a block (convolution, pooling of window and stride p) becomes a convolution
whose taps lie `dilation` samples apart and a pooling whose window does, and
`dilation` grows by the factor p: sample (a, b) of every map is what the patch at
(a, b) computes. Flatten and Dense become a convolution as large as the last map,
dilated alike; further Dense layers act on each voxel alone.

The first Dense layer is a sum over towers (a plane of a scale) before its bias and
activation, so each tower is evaluated on its own planes. The patches of a coarse
scale are the same for all voxels of a cell (`femur_tf.patches`); its towers are
evaluated once a cell.

Along an axis that is **strided** instead, only every `stride`-th sample is computed,
as in a patch: the first pass of a coarse-to-fine evaluation.

Giusti et al. 2013 (arXiv 1302.1700) and Li et al. 2014 (arXiv 1412.4526) describe
the idea for one plane.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from femur_tf.config import PatchConfig
from femur_tf.dense_steps import DENSE, Builder, Length, Precision, Step, Strided, length_after

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""[start, stop) along x, y, z."""


@dataclasses.dataclass(frozen=True, eq=False)
class DenseNetwork:
    """The dense form of a patch network, with a copy of its weights; make one with `convert`."""

    rule: PatchConfig
    units: int
    """Units of the first Dense layer."""
    width: int
    """Channels of a tower's widest map."""
    stride: int
    """Samples between two neighbours along a strided axis: the product of the poolings."""
    precision: Precision
    """Of the towers; their sums and the head are float32."""
    parameters: tuple[tuple[Any, ...], ...]
    """Kernels, biases, scales of each tower."""
    macs_per_cell: int
    """Multiply-adds of one tower at one lattice cell."""
    head_macs: int
    """Multiply-adds of the layers after the first Dense, at one voxel."""
    steps: tuple[Step, ...]
    lengths: tuple[Length, ...]
    """What the steps do to the length of an axis."""
    head: Callable[[Any], Any]
    """(..., units) sums over all towers -> (...) float32 probabilities."""

    def __post_init__(self) -> None:
        """Compile the towers, once for each way of striding that is used."""
        object.__setattr__(self, "_compiled_towers", {})

    @property
    def macs_per_voxel(self) -> float:
        """Multiply-adds a voxel, counted: towers of a coarse scale once a cell."""
        cells = sum(3 / np.prod(steps) for steps in self.rule.steps)
        return float(self.macs_per_cell * cells + self.head_macs)

    def tower(self, planes: np.ndarray, tower: int, strided: Strided = DENSE) -> np.ndarray:
        """Evaluate one tower over whole planes.

        Args:
          planes: (N, A + size - 1, B + size - 1) uint8, padded as `patches.padded_planes` does.
          tower: scale * 3 + plane.
          strided: along rows and columns; a strided axis gives samples 0, stride, 2 * stride, ...

        Returns:
          (N, A, B, units) float32, or ceil(A / stride), ceil(B / stride) where strided: the tower's share of the
          first Dense layer, before bias and activation.
        """
        compiled: dict[Strided, Callable[..., Any]] = self._compiled_towers  # type: ignore[attr-defined]
        if strided not in compiled:
            compiled[strided] = _compile(lambda images, *weights: self.evaluate(images, weights, strided))
        short = [self.short(planes.shape[axis + 1], strided[axis]) for axis in (0, 1)]
        if any(short):
            planes = np.pad(planes, ((0, 0), (0, short[0]), (0, short[1])), mode="edge")
        _, rows, columns = (length - s for length, s in zip(planes.shape, (0, *short), strict=True))
        # Seen as an array before it is cut: a slice of an array copies nothing.
        result = np.asarray(compiled[strided](planes, *self.parameters[tower]))
        return result[:, : self._count(rows, strided[0]), : self._count(columns, strided[1])]

    def _count(self, length: int, strided: bool) -> int:
        """Return how many samples are wanted of an axis of `length` padded ones."""
        return -(-(length - self.rule.size + 1) // (self.stride if strided else 1))

    def short(self, length: int, strided: bool) -> int:
        """Return by how many samples to lengthen an axis, because pooling may leave out some at its end."""
        wanted = self._count(length, strided)
        extra = 0
        while length_after(self.lengths, length + extra, strided) < wanted:
            extra += 1
        return extra

    def evaluate(self, planes: Any, weights: Sequence[Any], strided: Strided = DENSE) -> Any:
        """Apply the steps of a tower; works inside a graph.

        Args:
          planes: (N, H, W) uint8, long enough for `length_after` to give the samples wanted.
          weights: the tower's `parameters`.
          strided: along rows and columns.

        Returns:
          (N, H', W', units) float32; samples beyond those wanted mean nothing.
        """
        maps = ops.cast(planes, "float32")[..., None]  # (N, A + size - 1, B + size - 1, 1)
        for step in self.steps:
            maps = step.apply(maps, weights, strided)
        return ops.cast(maps, "float32")


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of (N, A, B) uint8 planes of any shape and of weights."""
    if keras.backend.backend() != "tensorflow":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    relaxed = tf.TensorSpec((None, None, None), tf.uint8)
    graphs: dict[int, Callable[..., Any]] = {}

    def call(planes: Any, *weights: Any) -> Any:
        # One graph for planes of any shape: the weights of all towers have the same shapes.
        if not graphs:
            signature = [relaxed, *(tf.TensorSpec(w.shape, w.dtype) for w in weights)]
            graphs[0] = tf.function(function, input_signature=signature, autograph=False)
        return graphs[0](planes, *weights)

    return call


def _head(functions: Sequence[Callable[[Any], Any]], units: int) -> Callable[[Any], Any]:
    """Return the layers after the towers' sum as one function."""

    def head(sums: Any) -> Any:
        for function in functions:
            sums = function(sums)
        return sums[..., 0]

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        shape = (None, None, None, units)
        return tf.function(head, input_signature=[tf.TensorSpec(shape, tf.float32)], autograph=False)
    return head


def convert(model: keras.Sequential, rule: PatchConfig, precision: Precision = "float32") -> DenseNetwork:
    """Return the dense form of a patch network, with a copy of its weights.

    Args:
      model: a built Sequential on (size, size, channels) patches.
      rule: the patch rule it was trained with.
      precision: of the towers; bfloat16 is worth it where the processor computes in it.

    Raises:
      NotDenseError: a layer has no dense form; it is named, with what to do.
      ValueError: the model's input is not a patch of `rule`, or its output not one probability.
    """
    expected = (rule.size, rule.size, rule.channels)
    if tuple(model.input_shape[1:]) != expected:
        raise ValueError(f"Expected a model on patches of shape {expected}. Received: {model.input_shape[1:]}")
    if tuple(model.output_shape[1:]) != (1,):
        raise ValueError(f"Expected a model with one output a patch, (1,). Received: {model.output_shape[1:]}")
    builder = Builder(rule, precision)
    for layer in model.layers:
        builder.add(layer)
    return DenseNetwork(
        rule,
        units=builder.units,
        width=max(builder.widest, builder.units),
        stride=builder.dilation,
        precision=precision,
        parameters=tuple(map(tuple, builder.parameters)),
        macs_per_cell=builder.macs,
        head_macs=builder.head_macs,
        steps=tuple(builder.steps),
        lengths=tuple(builder.lengths),
        head=_head(builder.head, builder.units),
    )
