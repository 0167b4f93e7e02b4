"""The steps of a tower in dense form.

A step takes maps (N, A, B, C) of one tower, that tower's parameters and, for rows
and columns, whether the axis is strided. Along a dense axis taps lie `dilation`
samples apart and nothing is left out; along a strided one the layer works as it does
on a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import keras
from keras import layers, ops

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


class Aside(NamedTuple):
    """What the centre of a tower's maps gives to the first Dense layer, beside the steps that pool (`WithCentre`)."""

    before: int
    """It takes the maps that this step gets."""
    start: int
    """Of the window, counted from the first sample of the maps that a patch has there."""
    normalise: Callable[[Any, Sequence[Any]], Any]
    """(maps, the tower's parameters) -> maps, sample by sample."""
    kernel: int
    """The window's (k, k, C, units) among the tower's parameters."""
    precision: Precision
    stride: int
    """Between samples of a strided axis: the product of the poolings."""

    def apply(self, maps: Any, parameters: Sequence[Any], strided: Strided) -> Any:
        """Return (N, A', B', units), at least as long as what the steps give."""
        maps = self.normalise(maps[:, self.start :, self.start :], parameters)
        every = [self.stride if s else 1 for s in strided]
        return convolve(ops.cast(maps, self.precision), parameters[self.kernel], (1, 1), every)


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


def refuse(layer: keras.layers.Layer, reason: str) -> NotDenseError:
    """Return the error that names a layer without a dense form."""
    return NotDenseError(
        f"Expected a network of late fusion with `valid` convolutions and pooling. Received: layer {layer.name!r} "
        f"({type(layer).__name__}): {reason}. Keep the planes apart (fusion='late', PlanewiseConv2D), or predict patch "
        "by patch."
    )


def add_bias(maps: Any, bias: Any) -> Any:
    """Add a bias to each channel, by the operation that TensorFlow fuses with the convolution before it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.bias_add(maps, bias)
    return maps + bias


def convolve(maps: Any, kernel: Any, rate: Sequence[int], every: Sequence[int] = (1, 1)) -> Any:
    """Convolve `valid` with taps `rate` apart, (rows, columns), at one sample in `every`.

    TensorFlow's `convolution`, which Keras calls, turns a dilated one into ordinary ones on phases in the batch and
    back; its `conv2d` computes it as it stands and fuses bias and ReLU with it: a plane in 210 ms instead of 268.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.conv2d(maps, kernel, list(every), "VALID", dilations=list(rate))
    return ops.conv(maps, kernel, strides=tuple(every), padding="valid", dilation_rate=tuple(rate))


def activation(layer: keras.layers.Layer) -> Callable[[Any], Any]:
    """Return the activation of a layer, as a function of maps alone."""
    if isinstance(layer, layers.ReLU | layers.LeakyReLU):
        return layer
    function: Callable[[Any], Any] = layer.activation
    if function not in ELEMENTWISE:
        name = getattr(function, "__name__", type(function).__name__)
        raise refuse(layer, f"its activation {name!r} is not known to act on each value alone")
    return function


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
