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
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from femur_tf.config import PatchConfig
from femur_tf.dense_builder import Builder
from femur_tf.dense_steps import DENSE, Aside, Length, Precision, Step, Strided, length_after
from femur_tf.dense_steps import NotDenseError as NotDenseError


class Share(NamedTuple):
    """What other towers give to the first Dense layer at the samples of some planes."""

    cells: Any
    """(N, a, b, units) float32, a row and a column a lattice cell."""
    rows: Any
    """(A,) int32: in which row of cells each row of samples lies."""
    columns: Any
    """(B,) int32: the same for columns."""


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
    aside: Aside | None
    """What the centre of the first maps gives beside the steps; None for a network without."""
    head: Callable[[Any], Any]
    """(..., units) sums over all towers -> (...) float32 probabilities."""

    def __post_init__(self) -> None:
        """Start without graphs: each is compiled when it is first used."""
        object.__setattr__(self, "_graphs", {})

    @property
    def fine_towers(self) -> tuple[int, ...]:
        """The towers that see every voxel."""
        steps = self.rule.steps
        return tuple(number for number, (scale, _) in enumerate(self.rule.towers) if max(steps[scale]) == 1)

    @property
    def coarse_steps(self) -> tuple[tuple[int, int, int], ...]:
        """The lattices of the other towers, each once."""
        return tuple(dict.fromkeys(steps for steps in self.rule.steps if max(steps) > 1))

    @property
    def macs_per_voxel(self) -> float:
        """Multiply-adds a voxel, counted: towers of a coarse scale once a cell."""
        cells = sum(1 / np.prod(self.rule.steps[scale]) for scale, _ in self.rule.towers)
        return float(self.macs_per_cell * cells + self.head_macs)

    def tower(self, planes: np.ndarray, tower: int, strided: Strided = DENSE) -> np.ndarray:
        """Evaluate one tower over whole planes.

        Args:
          planes: (N, A + size - 1, B + size - 1) uint8, padded as `patches.padded_planes` does.
          tower: its number among the rule's towers.
          strided: along rows and columns; a strided axis gives samples 0, stride, 2 * stride, ...

        Returns:
          (N, A, B, units) float32, or ceil(A / stride), ceil(B / stride) where strided: the tower's share of the
          first Dense layer, before bias and activation.
        """
        graph = self._graph((strided, None), lambda images, weights, _: self.evaluate(images, weights, strided))
        return self._whole_planes(graph, planes, tower, (), strided)

    def probability(
        self, planes: np.ndarray, tower: int | None, shares: Sequence[Share], strided: Strided = DENSE
    ) -> np.ndarray:
        """Evaluate one tower over whole planes, add what the other towers give, and apply the last layers.

        In one graph, so that the sums of the first Dense layer stay in it.

        Args:
          planes: as for `tower`.
          tower: as for `tower`; None for a network without one that sees every voxel: shares are all there is.
          shares: of the other towers, at the tower's samples.
          strided: as for `tower`.

        Returns:
          (N, A, B) float32.
        """
        if tower is None:
            graph = self._graph((strided, -len(shares)), lambda _, __, others: self.finish(None, (), others))
            return np.asarray(graph(planes, self.parameters[0], tuple(shares)))
        key = (strided, len(shares))
        graph = self._graph(key, lambda images, weights, others: self.finish(images, weights, others, strided))
        return self._whole_planes(graph, planes, tower, tuple(shares), strided)

    def _graph(self, key: tuple[Strided, int | None], function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` of (planes, weights, shares) as a graph; `key` holds the number of shares."""
        graphs: dict[Any, Callable[..., Any]] = self._graphs  # type: ignore[attr-defined]
        if key not in graphs:
            graphs[key] = _compile(function, self.parameters[0], abs(key[1] or 0), self.units)
        return graphs[key]

    def _whole_planes(
        self,
        graph: Callable[..., Any],
        planes: np.ndarray,
        tower: int,
        shares: tuple[Share, ...],
        strided: Strided,
    ) -> np.ndarray:
        """Call a graph on planes long enough for its pooling, and cut what it gives."""
        short = [self.short(planes.shape[axis + 1], strided[axis]) for axis in (0, 1)]
        if any(short):
            planes = np.pad(planes, ((0, 0), (0, short[0]), (0, short[1])), mode="edge")
        _, rows, columns = (length - s for length, s in zip(planes.shape, (0, *short), strict=True))
        # Seen as an array before it is cut: a slice of an array copies nothing.
        result = np.asarray(graph(planes, self.parameters[tower], shares))
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
        beside = None
        for number, step in enumerate(self.steps):
            if self.aside and number == self.aside.before:
                beside = self.aside.apply(maps, weights, strided)
            maps = step.apply(maps, weights, strided)
        maps = ops.cast(maps, "float32")
        if beside is None:
            return maps
        _, rows, columns, _ = ops.shape(maps)
        return maps + ops.cast(beside[:, :rows, :columns], "float32")

    def finish(self, planes: Any, weights: Sequence[Any], shares: Sequence[Share], strided: Strided = DENSE) -> Any:
        """Apply the steps of a tower, add shares, and apply the last layers; works inside a graph.

        Args:
          planes: as for `evaluate`; None for shares alone.
          weights: as for `evaluate`.
          shares: of the other towers.
          strided: along rows and columns.

        Returns:
          (N, A, B) float32 probabilities; longer where there is no share to say what is wanted.
        """
        maps = None if planes is None else self.evaluate(planes, weights, strided)
        for share in shares:
            rows, columns = ops.shape(share.rows)[0], ops.shape(share.columns)[0]
            maps = spread(share) if maps is None else maps[:, :rows, :columns] + spread(share)
        return self.head(maps)


def spread(share: Share) -> Any:
    """Return a share at every sample, (N, A, B, units)."""
    return ops.take(ops.take(share.cells, share.rows, axis=1), share.columns, axis=2)


def _compile(function: Callable[..., Any], weights: Sequence[Any], shares: int, units: int) -> Callable[..., Any]:
    """Compile a function of (N, A, B) uint8 planes of any shape, of weights and of shares."""
    if keras.backend.backend() != "tensorflow":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    # One graph for planes of any shape, and for all towers: their weights have the same shapes.
    index = tf.TensorSpec((None,), tf.int32)
    share = Share(tf.TensorSpec((None, None, None, units), tf.float32), index, index)
    planes = tf.TensorSpec((None, None, None), tf.uint8)
    signature = [planes, tuple(tf.TensorSpec(w.shape, w.dtype) for w in weights), (share,) * shares]
    return tf.function(function, input_signature=signature, autograph=False)


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
      NotDenseError: a layer has no dense form, or the model is no chain of layers; it is named, with what to do.
      ValueError: the model's input is not a patch of `rule`, or its output not one probability.
    """
    if not isinstance(model, keras.Sequential):  # the list of a graph's layers does not tell how they are connected
        raise NotDenseError(
            f"Expected a keras.Sequential, whose layers follow one another. Received: {type(model).__name__} "
            f"{model.name!r}. Build it as a Sequential, or predict patch by patch."
        )
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
        aside=builder.aside,
        head=_head(builder.head, builder.units),
    )
