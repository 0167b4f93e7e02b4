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
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from femur_tf.config import PatchConfig
from femur_tf.model import PlanewiseConv2D

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""[start, stop) along x, y, z."""
Precision = Literal["float32", "bfloat16"]
Strided = tuple[bool, bool]
"""For the rows and the columns of a plane: every stride-th sample only, or all of them."""
DENSE: Strided = (False, False)
Apply = Callable[[Any, Sequence[Any], Strided], Any]
"""(maps (N, A, B, C) of a tower, the tower's parameters, strided) -> maps."""


class NotDenseError(ValueError):
    """The network has a layer without a dense form; predict patch by patch instead."""


class Step(NamedTuple):
    """One step of a tower."""

    apply: Apply
    is_max: bool = False


def _refuse(layer: keras.layers.Layer, reason: str) -> NotDenseError:
    return NotDenseError(
        f"Expected a network of late fusion with `valid` convolutions and pooling. Received: layer {layer.name!r} "
        f"({type(layer).__name__}): {reason}. Train with fusion='late', or predict patch by patch."
    )


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

    def tower(self, planes: Any, tower: int, strided: Strided = DENSE) -> Any:
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
            compiled[strided] = _compile(lambda images, *weights: self._evaluate(images, weights, strided))
        return compiled[strided](planes, *self.parameters[tower])

    def _evaluate(self, planes: Any, weights: Sequence[Any], strided: Strided) -> Any:
        less = self.rule.size - 1
        _, high, wide = ops.shape(planes)
        rows, columns = (
            -(-(length - less) // self.stride) if s else length - less
            for length, s in zip((high, wide), strided, strict=True)
        )
        maps = ops.cast(planes, "float32")[..., None]  # (N, A + size - 1, B + size - 1, 1)
        for step in self.steps:
            maps = step.apply(maps, weights, strided)
        return ops.cast(maps[:, :rows, :columns], "float32")


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of (N, A, B) uint8 planes of any shape and of weights."""
    if keras.backend.backend() != "tensorflow":
        import jax

        return jax.jit(function)  # type: ignore[no-any-return]
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


def _head(functions: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Return the layers after the towers' sum as one function."""

    def head(sums: Any) -> Any:
        for function in functions:
            sums = function(sums)
        return sums[..., 0]

    return head


def _activation(layer: keras.layers.Layer) -> Callable[[Any], Any]:
    """Return the activation of a layer, as a function of maps alone."""
    if isinstance(layer, layers.ReLU | layers.LeakyReLU):
        return layer
    function: Callable[[Any], Any] = layer.activation
    return function


def _shifted(
    maps: Any, window: int, dilation: Sequence[int], stride: Sequence[int], combine: Callable[[Any, Any], Any]
) -> Any:
    """Combine `window` samples that lie `dilation` apart, at every `stride`-th position, along rows, then columns."""
    for axis, (apart, every) in enumerate(zip(dilation, stride, strict=True), start=1):
        length = ops.shape(maps)[axis] - (window - 1) * apart
        parts = []
        for start in range(0, window * apart, apart):
            index = [slice(None)] * 4
            index[axis] = slice(start, start + length, every)
            parts.append(maps[tuple(index)])
        maps = parts[0]
        for part in parts[1:]:
            maps = combine(maps, part)
    return maps


def _per_channel(layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and offset, one a channel, that an inference-time normalisation applies."""
    if isinstance(layer, layers.Rescaling):
        return np.atleast_1d(layer.scale), np.atleast_1d(layer.offset)
    if isinstance(layer, layers.Normalization):
        deviation = np.maximum(np.sqrt(ops.convert_to_numpy(layer.variance)), keras.config.epsilon())
        scale, offset = 1 / deviation, -ops.convert_to_numpy(layer.mean) / deviation
        return scale.reshape(-1), offset.reshape(-1)
    variance = ops.convert_to_numpy(layer.moving_variance)
    gamma = ops.convert_to_numpy(layer.gamma) if layer.scale else np.ones_like(variance)
    beta = ops.convert_to_numpy(layer.beta) if layer.center else np.zeros_like(variance)
    scale = gamma / np.sqrt(variance + layer.epsilon)
    return scale, beta - ops.convert_to_numpy(layer.moving_mean) * scale


class _Builder:
    """Walks the layers of a Sequential and collects the dense form."""

    def __init__(self, rule: PatchConfig, precision: Precision) -> None:
        self.precision = precision
        self.towers = rule.channels
        self.dilation = 1
        self.side = rule.size
        self.width = self.widest = 1
        self.units = 0
        self.macs = self.head_macs = 0
        self.steps: list[Step] = []
        self.parameters: list[list[Any]] = [[] for _ in range(self.towers)]
        self.head: list[Callable[[Any], Any]] = []

    def add(self, layer: keras.layers.Layer) -> None:
        """Add one layer.

        Raises:
          NotDenseError: the layer has no dense form.
        """
        if isinstance(layer, layers.Dropout | layers.InputLayer | layers.Flatten):
            return
        if isinstance(layer, layers.Dense):
            self._dense(layer)
        elif isinstance(layer, layers.Activation | layers.ReLU | layers.LeakyReLU):
            self._pointwise(_activation(layer))
        elif isinstance(layer, layers.Rescaling | layers.Normalization | layers.BatchNormalization):
            self._scale(layer)
        elif isinstance(layer, PlanewiseConv2D | layers.Conv2D):
            self._convolution(layer)
        elif isinstance(layer, layers.MaxPooling2D | layers.AveragePooling2D):
            self._pooling(layer)
        else:
            raise _refuse(layer, "it has no dense form")

    def _parameter(self, values: Sequence[np.ndarray], dtype: str) -> int:
        """Keep one array a tower; return its place among the tower's parameters."""
        for parameters, value in zip(self.parameters, values, strict=True):
            parameters.append(ops.cast(ops.convert_to_tensor(np.ascontiguousarray(value, np.float32)), dtype))
        return len(self.parameters[0]) - 1

    def _pointwise(self, function: Callable[[Any], Any]) -> None:
        """Add a function of each value alone."""
        if self.units:
            self.head.append(function)
            return
        step = Step(lambda maps, parameters, strided: function(maps))
        # relu(max(x)) = max(relu(x)): next to its convolution the ReLU is computed together with it.
        swap = function is keras.activations.relu and self.steps and self.steps[-1].is_max
        self.steps.insert(len(self.steps) - int(bool(swap)), step)

    def _scale(self, layer: keras.layers.Layer) -> None:
        """Add a scale and an offset a channel."""
        scale, offset = (np.asarray(v, np.float32) for v in _per_channel(layer))
        if self.units:
            self.head.append(lambda sums: sums * scale + offset)
            return
        shape = (self.towers, self.width)
        first, second = (
            self._parameter(np.broadcast_to(v, (self.towers * self.width,)).reshape(shape), "float32")  # type: ignore[arg-type]
            for v in (scale, offset)
        )

        def apply(maps: Any, parameters: Sequence[Any], strided: Strided) -> Any:
            return ops.cast(maps, "float32") * parameters[first] + parameters[second]

        self.steps.append(Step(apply))

    def _convolution(self, layer: keras.layers.Layer) -> None:
        """Add a dilated convolution for each tower."""
        if isinstance(layer, layers.Conv2D):
            if layer.groups != self.towers:
                raise _refuse(layer, "it mixes the planes (early fusion), so that voxels share nothing after it")
            square = layer.kernel_size[0] == layer.kernel_size[1]
            plain = layer.padding == "valid" and set(layer.strides) == {1} and set(layer.dilation_rate) == {1}
            if not (square and plain):
                raise _refuse(layer, "padding, strides, dilation or kernel are not those of a plain `valid` convolution")
        kernel = ops.convert_to_numpy(layer.kernel)  # (k, k, I, towers * O)
        bias = np.zeros(kernel.shape[-1]) if layer.bias is None else ops.convert_to_numpy(layer.bias)
        self._add_convolution(np.split(kernel, self.towers, axis=-1))
        place = self._parameter(np.split(bias, self.towers), self.precision)
        self.steps.append(Step(lambda maps, parameters, strided: maps + parameters[place]))
        if isinstance(layer, layers.Conv2D):
            self._pointwise(layer.activation)
        self.side -= kernel.shape[0] - 1
        self.width = kernel.shape[-1] // self.towers
        self.widest = max(self.widest, self.width)

    def _add_convolution(self, kernels: Sequence[np.ndarray]) -> None:
        """Add a convolution without bias, one kernel (k, k, I, O) a tower."""
        place = self._parameter(kernels, self.precision)
        dilation, precision = self.dilation, self.precision

        def apply(maps: Any, parameters: Sequence[Any], strided: Strided) -> Any:
            rate = tuple(1 if s else dilation for s in strided)
            return ops.conv(ops.cast(maps, precision), parameters[place], padding="valid", dilation_rate=rate)

        self.steps.append(Step(apply))
        self.macs += kernels[0].size

    def _pooling(self, layer: keras.layers.Layer) -> None:
        """Add a pooling of stride 1 whose window is dilated."""
        window = layer.pool_size[0]
        if layer.padding != "valid" or set(layer.strides) != {window} or set(layer.pool_size) != {window}:
            raise _refuse(layer, "its strides are not its window, or its padding is not `valid`")
        dilation, is_max = self.dilation, isinstance(layer, layers.MaxPooling2D)

        def apply(maps: Any, parameters: Sequence[Any], strided: Strided) -> Any:
            if is_max and dilation == 1 and strided == DENSE:
                return ops.max_pool(maps, window, strides=1, padding="valid")
            apart = [1 if s else dilation for s in strided]
            every = [window if s else 1 for s in strided]
            result = _shifted(maps, window, apart, every, ops.maximum if is_max else ops.add)
            return result if is_max else result * (1.0 / window**2)

        self.steps.append(Step(apply, is_max))
        self.dilation *= window
        self.side //= window

    def _dense(self, layer: keras.layers.Dense) -> None:
        """Add a Dense layer: the first as a dilated convolution for each tower, later ones on each voxel."""
        kernel = ops.convert_to_numpy(layer.kernel)
        bias = ops.convert_to_numpy(layer.bias) if layer.use_bias else np.zeros(layer.units, np.float32)
        if self.units:
            self.head.append(lambda sums: ops.matmul(sums, kernel) + bias)
            self.head_macs += kernel.size
        else:
            self.units = kernel.shape[1]
            # Flatten has laid the maps out as (row, column, tower, channel).
            split = kernel.reshape(self.side, self.side, self.towers, self.width, self.units)
            self._add_convolution([split[:, :, tower] for tower in range(self.towers)])
            self.head.append(lambda sums: sums + bias)
        self.head.append(layer.activation)


def convert(model: keras.Sequential, rule: PatchConfig, precision: Precision = "float32") -> DenseNetwork:
    """Return the dense form of a patch network, with a copy of its weights.

    Args:
      model: a built Sequential on (size, size, channels) patches.
      rule: the patch rule it was trained with.
      precision: of the towers; bfloat16 is worth it where the processor computes in it.

    Raises:
      NotDenseError: a layer has no dense form; it is named, with what to do.
      ValueError: the model's input is not a patch of `rule`.
    """
    expected = (rule.size, rule.size, rule.channels)
    if tuple(model.input_shape[1:]) != expected:
        raise ValueError(f"Expected a model on patches of shape {expected}. Received: {model.input_shape[1:]}")
    builder = _Builder(rule, precision)
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
        head=_head(builder.head),
    )
