"""The steps of a tower in dense form, and what they do to the length of an axis.

A step takes maps (N, A, B, C) of one tower, that tower's parameters and, for rows
and columns, how many of the poolings are strided. Up to the last strided pooling the
layers work along that axis as they do on a patch. From there on nothing is left out:
poolings have stride 1, and taps and windows lie as many samples apart as the product
of the windows of the poolings since.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import keras
from keras import layers, ops

Precision = Literal["float32", "bfloat16"]
Strided = tuple[int, int]
"""For the rows and the columns of a plane: how many of the poolings, from the first on, are strided as on a patch."""
DENSE: Strided = (0, 0)
Apply = Callable[[Any, Sequence[Any], Strided], Any]
"""(maps (N, A, B, C) of a tower, the tower's parameters, strided) -> maps."""

Length = tuple[int, int]
"""What a step does to an axis: (taps - 1 of a convolution, 0) or (0, window of a pooling)."""

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


def taps_apart(windows: Sequence[int], strided: int) -> int:
    """Return how many samples lie between two that a layer reads after poolings of these windows."""
    return math.prod(windows[strided:])


def length_after(lengths: Sequence[Length], length: int, strided: int) -> int:
    """Return how many samples of an axis are left after all steps.

    Args:
      lengths: of the steps.
      length: samples before.
      strided: how many of the poolings are, along this axis.
    """
    windows: list[int] = []
    for taps, window in lengths:
        dilation = taps_apart(windows, strided)
        length -= taps * dilation
        if window:
            alone = len(windows) < strided
            length = length // window if alone else (length // dilation - window + 1) * dilation
            windows.append(window)
    return length


def refuse(layer: keras.layers.Layer, reason: str) -> NotDenseError:
    """Return the error that names a layer without a dense form."""
    return NotDenseError(
        f"Expected a network of late fusion with `valid` convolutions and pooling. Received: layer {layer.name!r} "
        f"({type(layer).__name__}): {reason}. Train with fusion='late', or predict patch by patch."
    )


def add_bias(maps: Any, bias: Any) -> Any:
    """Add a bias to each channel, by the operation that TensorFlow fuses with the convolution before it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.bias_add(maps, bias)
    return maps + bias


def convolve(maps: Any, kernel: Any, rate: Sequence[int], *, live: bool) -> Any:
    """Convolve `valid` with taps `rate` apart, (rows, columns).

    TensorFlow's `convolution`, which Keras calls, turns a dilated one into ordinary ones on phases in the batch and
    back; its `conv2d` computes it as it stands and fuses bias and ReLU with it: a plane in 210 ms instead of 268. But
    on many CPUs it has no gradient.

    Args:
      maps: (N, A, B, I).
      kernel: (k, k, I, O).
      rate: samples between taps.
      live: whether a gradient is wanted.
    """
    if keras.backend.backend() == "tensorflow" and not live:
        import tensorflow as tf

        return tf.nn.conv2d(maps, kernel, 1, "VALID", dilations=list(rate))
    return ops.conv(maps, kernel, padding="valid", dilation_rate=tuple(rate))


def activation(layer: keras.layers.Layer) -> Callable[[Any], Any]:
    """Return the activation of a layer, as a function of maps alone."""
    if isinstance(layer, layers.ReLU | layers.LeakyReLU):
        return layer
    function: Callable[[Any], Any] = layer.activation
    if function not in ELEMENTWISE:
        name = getattr(function, "__name__", type(function).__name__)
        raise refuse(layer, f"its activation {name!r} is not known to act on each value alone")
    return function


class TowerNormalisation(layers.Layer):
    """A layer of batch normalisation on the maps of one tower at a time: its own variables, read and kept up.

    In training the statistics are those of the tower's maps, in which each sample counts once, however many patches
    read it.

    Args:
      layer: of batch normalisation, built for the channels of all towers.
      towers: how many share them.
    """

    def __init__(self, layer: layers.BatchNormalization, towers: int) -> None:
        super().__init__(name=f"{layer.name}_by_tower")
        self.layer, self.width = layer, layer.moving_mean.shape[0] // towers

    def call(self, maps: Any, number: Any, training: bool | None = None) -> Any:
        """Normalise maps (N, A, B, C) of the tower `number`, () int32."""
        layer = self.layer
        if training:
            mean, variance = ops.moments(maps, axes=(0, 1, 2))
            self._follow(layer.moving_mean, number, mean)
            self._follow(layer.moving_variance, number, variance)
        else:
            mean, variance = self._part(layer.moving_mean, number), self._part(layer.moving_variance, number)
        scale = ops.rsqrt(variance + layer.epsilon)
        if layer.scale:
            scale = scale * self._part(layer.gamma, number)
        offset = -mean * scale
        if layer.center:
            offset = offset + self._part(layer.beta, number)
        return maps * scale + offset

    def _part(self, values: Any, number: Any) -> Any:
        """Return a tower's part of values of all channels."""
        return ops.slice(values, (number * self.width,), (self.width,))

    def _follow(self, moving: Any, number: Any, value: Any) -> None:
        """Move a tower's part of a moving mean towards a value."""
        kept = self.layer.momentum
        part = self._part(moving, number) * kept + value * (1 - kept)
        moving.assign(ops.slice_update(moving, (number * self.width,), part))


def pool(maps: Any, window: int, dilation: Sequence[int], stride: Sequence[int], function: Callable[..., Any]) -> Any:
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
