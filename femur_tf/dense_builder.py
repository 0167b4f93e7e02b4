"""The walk over a Sequential that collects the dense form of its layers.

A frozen form holds copies of the weights, for evaluation. A live one reads the layers'
own variables whenever it is applied, and applies their dropout, for training
(`femur_tf.block_network`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from femur_tf.config import PatchConfig
from femur_tf.dense_steps import (
    DENSE,
    Length,
    Precision,
    Step,
    Strided,
    TowerNormalisation,
    activation,
    add_bias,
    convolve,
    pool,
    refuse,
    taps_apart,
)
from femur_tf.model import PlanewiseConv2D


def _per_channel(layer: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale and offset, (..., channels) or (1,), that an inference-time normalisation applies."""
    if isinstance(layer, layers.Rescaling):
        return np.atleast_1d(layer.scale), np.atleast_1d(layer.offset)
    if isinstance(layer, layers.Normalization):
        if layer.invert:
            raise refuse(layer, "it undoes a normalisation")
        deviation = np.maximum(np.sqrt(ops.convert_to_numpy(layer.variance)), keras.config.epsilon())
        return 1 / deviation, -ops.convert_to_numpy(layer.mean) / deviation
    variance = ops.convert_to_numpy(layer.moving_variance)
    gamma = ops.convert_to_numpy(layer.gamma) if layer.scale else np.ones_like(variance)
    beta = ops.convert_to_numpy(layer.beta) if layer.center else np.zeros_like(variance)
    scale = gamma / np.sqrt(variance + layer.epsilon)
    return scale, beta - ops.convert_to_numpy(layer.moving_mean) * scale


class Builder:
    """Walks the layers of a Sequential and collects the dense form.

    Args:
      rule: the patch rule of the network.
      precision: of the towers.
      live: whether gradients are wanted: parameters are read from the layers each time, and dropout is applied.
    """

    def __init__(self, rule: PatchConfig, precision: Precision, *, live: bool = False) -> None:
        self.precision, self.live = precision, live
        self.towers = rule.channels
        self.windows: list[int] = []
        self.side = rule.size
        self.width = self.widest = 1
        self.units = 0
        self.flat = False
        self.macs = self.head_macs = 0
        self.steps: list[Step] = []
        self.lengths: list[Length] = []
        self.sources: list[tuple[Callable[[], Sequence[Any]], str]] = []
        self.head: list[Callable[[Any], Any]] = []
        self.convolved: tuple[int, int] | None = None
        """Places of the kernel and the bias of the last convolution, while nothing but max pooling stands after it."""

    def add(self, layer: keras.layers.Layer) -> None:
        """Add one layer.

        Raises:
          NotDenseError: the layer has no dense form.
        """
        if getattr(layer, "data_format", None) == "channels_first":
            raise refuse(layer, "its channels are the first axis")
        if isinstance(layer, layers.InputLayer):
            return
        if isinstance(layer, layers.Dropout):
            self._dropout(layer)
        elif isinstance(layer, layers.Flatten):
            self.flat = True
        elif isinstance(layer, layers.Dense):
            self._dense(layer)
        elif isinstance(layer, layers.Activation | layers.ReLU | layers.LeakyReLU):
            self._pointwise(activation(layer))
        elif isinstance(layer, layers.Rescaling | layers.Normalization | layers.BatchNormalization):
            self._scale(layer)
        elif isinstance(layer, PlanewiseConv2D | layers.Conv2D):
            self._convolution(layer)
        elif isinstance(layer, layers.MaxPooling2D | layers.AveragePooling2D):
            self._pooling(layer)
        else:
            raise refuse(layer, "it has no dense form")

    def parameters(self) -> list[list[Any]]:
        """Return the parameters of each tower: the layers' own in a live form, else copies."""
        found: list[list[Any]] = [[] for _ in range(self.towers)]
        for split, dtype in self.sources:
            for parameters, value in zip(found, split(), strict=True):
                kept = value if self.live else np.ascontiguousarray(ops.convert_to_numpy(value), np.float32)
                parameters.append(ops.cast(ops.convert_to_tensor(kept), dtype))
        return found

    def _parameter(self, split: Callable[[], Sequence[Any]], dtype: str) -> int:
        """Keep how to read one array a tower; return its place among the tower's parameters."""
        self.sources.append((split, dtype))
        return len(self.sources) - 1

    def _own(self, value: Any) -> Any:
        """Return a weight as the head reads it: the variable in a live form, else a copy."""
        return value if self.live else ops.convert_to_numpy(value)

    def _dropout(self, layer: layers.Dropout) -> None:
        """Add dropout to a live form. Neighbours that read one sample share its fate; each alone sees plain dropout."""
        if not self.live:
            return
        if self.units:
            self.head.append(layer)
        else:
            self.steps.append(Step(lambda maps, parameters, strided: layer(maps)))
            self.convolved = None

    def _pointwise(self, function: Callable[[Any], Any]) -> None:
        """Add a function of each value alone."""
        if self.units:
            self.head.append(function)
            return
        self.convolved = None
        step = Step(lambda maps, parameters, strided: function(maps))
        # relu(max(x)) = max(relu(x)): next to its convolution the ReLU is computed together with it.
        swap = function is keras.activations.relu and self.steps and self.steps[-1].is_max
        self.steps.insert(len(self.steps) - int(bool(swap)), step)

    def _scale(self, layer: keras.layers.Layer) -> None:
        """Add a scale and an offset a channel."""
        if isinstance(layer, layers.BatchNormalization) and layer.axis not in (-1, 1 if self.flat else 3):
            raise refuse(layer, "its axis is not that of the channels")
        if isinstance(layer, layers.BatchNormalization) and self.live:
            self._live_normalisation(layer)
            return
        scale, offset = (np.asarray(v, np.float32) for v in _per_channel(layer))
        if any(v.size != v.shape[-1] for v in (scale, offset)):
            raise refuse(layer, "it treats the samples of a patch differently")
        scale, offset = scale.reshape(-1), offset.reshape(-1)
        if self.flat and not self.units and max(scale.size, offset.size) > 1:
            raise refuse(layer, "it stands between Flatten and the first Dense layer; put it before Flatten")
        if self.units:
            self.head.append(lambda sums: sums * scale + offset)
            return
        if self.convolved and not self.live and scale.min() > 0:
            self._fold(*self.convolved, self._a_tower(scale), self._a_tower(offset))
            return
        self.convolved = None
        first, second = (self._parameter(functools.partial(list, self._a_tower(v)), "float32") for v in (scale, offset))

        def apply(maps: Any, parameters: Sequence[Any], _strided: Strided) -> Any:
            return ops.cast(maps, "float32") * parameters[first] + parameters[second]

        self.steps.append(Step(apply))

    def _live_normalisation(self, layer: layers.BatchNormalization) -> None:
        """Add batch normalisation to a live form."""
        if self.flat:
            raise refuse(layer, "it is trained on patches only, whose statistics it takes")
        norm = TowerNormalisation(layer, self.towers)
        place = self._parameter(lambda: range(self.towers), "int32")
        self.steps.append(Step(lambda maps, parameters, strided: norm(maps, parameters[place])))

    def _fold(self, kernel: int, bias: int, scale: np.ndarray, offset: np.ndarray) -> None:
        """Make a positive scale and an offset (towers, channels) part of the convolution before the max pooling.

        s max(x) + o = max(s x + o) for s > 0.
        """
        (kernels, k_dtype), (biases, b_dtype) = self.sources[kernel], self.sources[bias]
        self.sources[kernel] = lambda: [k * s for k, s in zip(kernels(), scale, strict=True)], k_dtype
        self.sources[bias] = lambda: [b * s + o for b, s, o in zip(biases(), scale, offset, strict=True)], b_dtype

    def _a_tower(self, values: np.ndarray) -> np.ndarray:
        """Return a scale or an offset, of all channels or (1,), as one row a tower."""
        return np.broadcast_to(values, (self.towers * self.width,)).reshape(self.towers, self.width)

    def _convolution(self, layer: keras.layers.Layer) -> None:
        """Add a dilated convolution for each tower."""
        groups = layer.towers if isinstance(layer, PlanewiseConv2D) else layer.groups
        if groups == 1 and self.towers > 1:
            raise refuse(layer, "it mixes the planes (early fusion), so that voxels share nothing after it")
        if groups != self.towers:
            raise refuse(layer, f"it keeps {groups} groups of channels apart; a patch has {self.towers}")
        if isinstance(layer, layers.Conv2D):
            square = layer.kernel_size[0] == layer.kernel_size[1]
            plain = layer.padding == "valid" and set(layer.strides) == {1} and set(layer.dilation_rate) == {1}
            if not (square and plain):
                raise refuse(layer, "padding, strides, dilation or kernel are not a plain `valid` convolution's")
        side, _, _, outputs = layer.kernel.shape  # (k, k, I, towers * O)
        bias = np.zeros(outputs, np.float32) if layer.bias is None else layer.bias
        kernel = self._add_convolution(lambda: ops.split(layer.kernel, self.towers, axis=-1), side, layer.kernel)
        place = self._parameter(lambda: ops.split(bias, self.towers), self.precision)
        self.steps.append(Step(lambda maps, parameters, strided: add_bias(maps, parameters[place])))
        self.convolved = kernel, place
        if isinstance(layer, layers.Conv2D):
            self._pointwise(activation(layer))
        self.side -= side - 1
        self.width = outputs // self.towers
        self.widest = max(self.widest, self.width)

    def _add_convolution(self, kernels: Callable[[], Sequence[Any]], side: int, whole: Any) -> int:
        """Add a convolution without bias, one kernel (side, side, I, O) a tower; `whole` holds those of all towers.

        Returns the kernel's place among a tower's parameters.
        """
        place = self._parameter(kernels, self.precision)
        windows, precision, live = tuple(self.windows), self.precision, self.live

        def apply(maps: Any, parameters: Sequence[Any], strided: Strided) -> Any:
            rate = [taps_apart(windows, s) for s in strided]
            return convolve(ops.cast(maps, precision), parameters[place], rate, live=live)

        self.steps.append(Step(apply))
        self.lengths.append((side - 1, 0))
        self.macs += int(np.prod(whole.shape)) // self.towers
        return place

    def _pooling(self, layer: keras.layers.Layer) -> None:
        """Add a pooling of stride 1 whose window is dilated."""
        window = layer.pool_size[0]
        if layer.padding != "valid" or set(layer.strides) != {window} or set(layer.pool_size) != {window}:
            raise refuse(layer, "its window is not square, its strides are not its window, or its padding not `valid`")
        windows, is_max = tuple(self.windows), isinstance(layer, layers.MaxPooling2D)
        function = ops.max_pool if is_max else ops.average_pool
        if not is_max:
            self.convolved = None

        def apply(maps: Any, _parameters: Sequence[Any], strided: Strided) -> Any:
            if not windows and strided == DENSE:
                return function(maps, window, strides=1, padding="valid")
            every = [window if len(windows) < s else 1 for s in strided]
            return pool(maps, window, [taps_apart(windows, s) for s in strided], every, function)

        self.steps.append(Step(apply, is_max))
        self.lengths.append((0, window))
        self.windows.append(window)
        self.side //= window

    def _dense(self, layer: keras.layers.Dense) -> None:
        """Add a Dense layer: the first as a dilated convolution for each tower, later ones on each voxel."""
        if not self.flat:
            raise refuse(layer, "it stands before Flatten")
        bias = self._own(layer.bias) if layer.use_bias else np.zeros(layer.units, np.float32)
        if self.units:
            kernel = self._own(layer.kernel)
            self.head.append(lambda sums: ops.matmul(sums, kernel) + bias)
            self.head_macs += int(np.prod(kernel.shape))
        else:
            self.units = layer.units
            # Flatten has laid the maps out as (row, column, tower, channel).
            shape = (self.side, self.side, self.towers, self.width, self.units)

            def split() -> list[Any]:
                kernel = ops.reshape(layer.kernel, shape)
                return [kernel[:, :, tower] for tower in range(shape[2])]

            self._add_convolution(split, self.side, layer.kernel)
            self.head.append(lambda sums: sums + bias)
        self.head.append(activation(layer))

    def whole_head(self) -> Callable[[Any], Any]:
        """Return the layers after the towers' sum as one function: (..., units) -> (...)."""
        functions = tuple(self.head)

        def head(sums: Any) -> Any:
            for function in functions:
                sums = function(sums)
            return sums[..., 0]

        return head


def collect(model: keras.Sequential, rule: PatchConfig, precision: Precision, *, live: bool) -> Builder:
    """Walk the layers of a model; arguments and errors as for `dense.convert`."""
    expected = (rule.size, rule.size, rule.channels)
    if tuple(model.input_shape[1:]) != expected:
        raise ValueError(f"Expected a model on patches of shape {expected}. Received: {model.input_shape[1:]}")
    if tuple(model.output_shape[1:]) != (1,):
        raise ValueError(f"Expected a model with one output a patch, (1,). Received: {model.output_shape[1:]}")
    builder = Builder(rule, precision, live=live)
    for layer in model.layers:
        builder.add(layer)
    return builder
