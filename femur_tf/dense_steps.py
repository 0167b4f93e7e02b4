"""The dense form of each layer: the steps of a tower, and the walk over a Sequential that collects them.

A step takes maps (N, A, B, C) of one tower, that tower's parameters and, for rows
and columns, whether the axis is strided. Along a dense axis taps lie `dilation`
samples apart and nothing is left out; along a strided one the layer works as it does
on a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from femur_tf.config import PatchConfig
from femur_tf.model import PlanewiseConv2D

Precision = Literal["float32", "bfloat16"]
Strided = tuple[bool, bool]
"""For the rows and the columns of a plane: every stride-th sample only, or all of them."""
DENSE: Strided = (False, False)
Apply = Callable[[Any, Sequence[Any], Strided], Any]
"""(maps (N, A, B, C) of a tower, the tower's parameters, strided) -> maps."""


Length = tuple[int, int, int]
"""What a step does to an axis: (taps - 1 of a convolution, window of a pooling, dilation)."""

ELEMENTWISE = frozenset(
    getattr(keras.activations, name)
    for name in (
        *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu"),
        *("linear", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_shrink", "softplus"),
        *("softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "tanh", "tanh_shrink", "threshold"),
    )
)
"""Activations of each value alone. Softmax and others that compare channels would see those of one tower only."""


class NotDenseError(ValueError):
    """The network has a layer without a dense form; predict patch by patch instead."""


class Step(NamedTuple):
    """One step of a tower."""

    apply: Apply
    is_max: bool = False


def length_after(lengths: Sequence[Length], length: int, strided: bool) -> int:
    """Return how many samples of an axis are left after all steps.

    Args:
      lengths: of the steps.
      length: samples before.
      strided: whether the axis is.
    """
    for taps, window, dilation in lengths:
        apart = 1 if strided else dilation
        length -= taps * apart
        if window > 1:
            length = length // window if strided else (length // apart - window + 1) * apart
    return length


def _refuse(layer: keras.layers.Layer, reason: str) -> NotDenseError:
    return NotDenseError(
        f"Expected a network of late fusion with `valid` convolutions and pooling. Received: layer {layer.name!r} "
        f"({type(layer).__name__}): {reason}. Train with fusion='late', or predict patch by patch."
    )


def _add_bias(maps: Any, bias: Any) -> Any:
    """Add a bias to each channel, by the operation that TensorFlow fuses with the convolution before it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.bias_add(maps, bias)
    return maps + bias


def _convolve(maps: Any, kernel: Any, rate: Sequence[int]) -> Any:
    """Convolve `valid` with taps `rate` apart, (rows, columns).

    TensorFlow's `convolution`, which Keras calls, turns a dilated one into ordinary ones on phases in the batch and
    back; its `conv2d` computes it as it stands and fuses bias and ReLU with it: a plane in 210 ms instead of 268.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.conv2d(maps, kernel, 1, "VALID", dilations=list(rate))
    return ops.conv(maps, kernel, padding="valid", dilation_rate=tuple(rate))


def _activation(layer: keras.layers.Layer) -> Callable[[Any], Any]:
    """Return the activation of a layer, as a function of maps alone."""
    if isinstance(layer, layers.ReLU | layers.LeakyReLU):
        return layer
    function: Callable[[Any], Any] = layer.activation
    if function not in ELEMENTWISE:
        name = getattr(function, "__name__", type(function).__name__)
        raise _refuse(layer, f"its activation {name!r} is not known to act on each value alone")
    return function


def _pool(maps: Any, window: int, dilation: Sequence[int], stride: Sequence[int], function: Callable[..., Any]) -> Any:
    """Pool over windows whose samples lie `dilation` apart, along rows, then along columns.

    Samples d apart along an axis become neighbours when the axis is folded into (length / d, d), which moves
    nothing in memory; up to d - 1 samples at the end are left out. Twice to four times as fast as shifted copies.
    """
    apart, every = dilation[0], stride[0]
    count, rows, columns, channels = ops.shape(maps)
    folds = rows // apart
    maps = ops.reshape(maps[:, : folds * apart], (count, folds, apart * columns, channels))
    maps = function(maps, (window, 1), strides=(every, 1), padding="valid")
    rows = ops.shape(maps)[1] * apart
    apart, every = dilation[1], stride[1]
    folds = columns // apart
    maps = ops.reshape(maps, (count, rows, columns, channels))[:, :, : folds * apart]
    maps = ops.reshape(maps, (count, rows, folds, apart * channels))
    maps = function(maps, (1, window), strides=(1, every), padding="valid")
    return ops.reshape(maps, (count, rows, ops.shape(maps)[2] * apart, channels))


def _per_channel(layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and offset, (..., channels) or (1,), that an inference-time normalisation applies."""
    if isinstance(layer, layers.Rescaling):
        return np.atleast_1d(layer.scale), np.atleast_1d(layer.offset)
    if isinstance(layer, layers.Normalization):
        if layer.invert:
            raise _refuse(layer, "it undoes a normalisation")
        deviation = np.maximum(np.sqrt(ops.convert_to_numpy(layer.variance)), keras.config.epsilon())
        return 1 / deviation, -ops.convert_to_numpy(layer.mean) / deviation
    variance = ops.convert_to_numpy(layer.moving_variance)
    gamma = ops.convert_to_numpy(layer.gamma) if layer.scale else np.ones_like(variance)
    beta = ops.convert_to_numpy(layer.beta) if layer.center else np.zeros_like(variance)
    scale = gamma / np.sqrt(variance + layer.epsilon)
    return scale, beta - ops.convert_to_numpy(layer.moving_mean) * scale


class Builder:
    """Walks the layers of a Sequential and collects the dense form."""

    def __init__(self, rule: PatchConfig, precision: Precision) -> None:
        self.precision = precision
        self.towers = rule.channels
        self.dilation = 1
        self.side = rule.size
        self.width = self.widest = 1
        self.units = 0
        self.flat = False
        self.macs = self.head_macs = 0
        self.steps: list[Step] = []
        self.lengths: list[Length] = []
        self.parameters: list[list[Any]] = [[] for _ in range(self.towers)]
        self.head: list[Callable[[Any], Any]] = []

    def add(self, layer: keras.layers.Layer) -> None:
        """Add one layer.

        Raises:
          NotDenseError: the layer has no dense form.
        """
        if getattr(layer, "data_format", None) == "channels_first":
            raise _refuse(layer, "its channels are the first axis")
        if isinstance(layer, layers.Dropout | layers.InputLayer):
            return
        if isinstance(layer, layers.Flatten):
            self.flat = True
        elif isinstance(layer, layers.Dense):
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
        if isinstance(layer, layers.BatchNormalization) and layer.axis not in (-1, 1 if self.flat else 3):
            raise _refuse(layer, "its axis is not that of the channels")
        scale, offset = (np.asarray(v, np.float32) for v in _per_channel(layer))
        if any(v.size != v.shape[-1] for v in (scale, offset)):
            raise _refuse(layer, "it treats the samples of a patch differently")
        scale, offset = scale.reshape(-1), offset.reshape(-1)
        if self.flat and not self.units and max(scale.size, offset.size) > 1:
            raise _refuse(layer, "it stands between Flatten and the first Dense layer; put it before Flatten")
        if self.units:
            self.head.append(lambda sums: sums * scale + offset)
            return
        shape = (self.towers, self.width)
        first, second = (
            self._parameter(np.broadcast_to(v, (self.towers * self.width,)).reshape(shape), "float32")  # type: ignore[arg-type]
            for v in (scale, offset)
        )

        def apply(maps: Any, parameters: Sequence[Any], _strided: Strided) -> Any:
            return ops.cast(maps, "float32") * parameters[first] + parameters[second]

        self.steps.append(Step(apply))

    def _convolution(self, layer: keras.layers.Layer) -> None:
        """Add a dilated convolution for each tower."""
        groups = layer.towers if isinstance(layer, PlanewiseConv2D) else layer.groups
        if groups == 1 and self.towers > 1:
            raise _refuse(layer, "it mixes the planes (early fusion), so that voxels share nothing after it")
        if groups != self.towers:
            raise _refuse(layer, f"it keeps {groups} groups of channels apart; a patch has {self.towers}")
        if isinstance(layer, layers.Conv2D):
            square = layer.kernel_size[0] == layer.kernel_size[1]
            plain = layer.padding == "valid" and set(layer.strides) == {1} and set(layer.dilation_rate) == {1}
            if not (square and plain):
                raise _refuse(layer, "padding, strides, dilation or kernel are not a plain `valid` convolution's")
        kernel = ops.convert_to_numpy(layer.kernel)  # (k, k, I, towers * O)
        bias = np.zeros(kernel.shape[-1]) if layer.bias is None else ops.convert_to_numpy(layer.bias)
        self._add_convolution(np.split(kernel, self.towers, axis=-1))
        place = self._parameter(np.split(bias, self.towers), self.precision)
        self.steps.append(Step(lambda maps, parameters, strided: _add_bias(maps, parameters[place])))
        if isinstance(layer, layers.Conv2D):
            self._pointwise(_activation(layer))
        self.side -= kernel.shape[0] - 1
        self.width = kernel.shape[-1] // self.towers
        self.widest = max(self.widest, self.width)

    def _add_convolution(self, kernels: Sequence[np.ndarray]) -> None:
        """Add a convolution without bias, one kernel (k, k, I, O) a tower."""
        place = self._parameter(kernels, self.precision)
        dilation, precision = self.dilation, self.precision

        def apply(maps: Any, parameters: Sequence[Any], strided: Strided) -> Any:
            rate = [1 if s else dilation for s in strided]
            return _convolve(ops.cast(maps, precision), parameters[place], rate)

        self.steps.append(Step(apply))
        self.lengths.append((kernels[0].shape[0] - 1, 1, dilation))
        self.macs += kernels[0].size

    def _pooling(self, layer: keras.layers.Layer) -> None:
        """Add a pooling of stride 1 whose window is dilated."""
        window = layer.pool_size[0]
        if layer.padding != "valid" or set(layer.strides) != {window} or set(layer.pool_size) != {window}:
            raise _refuse(layer, "its window is not square, its strides are not its window, or its padding not `valid`")
        dilation, is_max = self.dilation, isinstance(layer, layers.MaxPooling2D)
        function = ops.max_pool if is_max else ops.average_pool

        def apply(maps: Any, _parameters: Sequence[Any], strided: Strided) -> Any:
            if dilation == 1 and strided == DENSE:
                return function(maps, window, strides=1, padding="valid")
            apart = [1 if s else dilation for s in strided]
            every = [window if s else 1 for s in strided]
            return _pool(maps, window, apart, every, function)

        self.steps.append(Step(apply, is_max))
        self.lengths.append((0, window, dilation))
        self.dilation *= window
        self.side //= window

    def _dense(self, layer: keras.layers.Dense) -> None:
        """Add a Dense layer: the first as a dilated convolution for each tower, later ones on each voxel."""
        if not self.flat:
            raise _refuse(layer, "it stands before Flatten")
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
        self.head.append(_activation(layer))
