"""The walk over a Sequential that collects the dense form of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from femur_tf.config import PatchConfig
from femur_tf.dense_steps import (
    DENSE,
    Aside,
    Length,
    Precision,
    Step,
    Strided,
    activation,
    add_bias,
    convolve,
    pool,
    refuse,
)
from femur_tf.model import PlanewiseConv2D, WithCentre


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


def _tensor(values: np.ndarray, dtype: str) -> Any:
    """Return an array as a tensor of a dtype."""
    return ops.cast(ops.convert_to_tensor(np.ascontiguousarray(values, np.float32)), dtype)


class Convolved(NamedTuple):
    """The last convolution, while nothing but max pooling stands after it."""

    kernels: Sequence[np.ndarray]
    """(k, k, I, O) float32 of each tower."""
    biases: Sequence[np.ndarray]
    """(O,) float32 of each tower."""
    places: tuple[int, int]
    """Of kernel and bias among a tower's parameters."""


class Centre(NamedTuple):
    """A centre that is kept beside the pooled maps, until the first Dense layer says what is made of it."""

    layer: WithCentre
    before: int
    """The step that it stands before."""
    width: int
    """Channels of a tower's maps there."""
    folds: list[tuple[np.ndarray, np.ndarray]]
    """Scales and offsets that have become part of the convolution before it; those of layers after it join them."""
    known: int
    """How many stood there when the centre was met: the centre sees them, and undoes those that follow."""


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
        self.convolved: Convolved | None = None
        self.folds: list[tuple[np.ndarray, np.ndarray]] = []
        self.centre: Centre | None = None
        self.aside: Aside | None = None

    def add(self, layer: keras.layers.Layer) -> None:
        """Add one layer.

        Raises:
          NotDenseError: the layer has no dense form.
        """
        if getattr(layer, "data_format", None) == "channels_first":
            raise refuse(layer, "its channels are the first axis")
        if isinstance(layer, layers.Dropout | layers.InputLayer):
            return
        if isinstance(layer, layers.Flatten):
            self.flat = True
        elif isinstance(layer, layers.Dense):
            self._dense(layer)
        elif isinstance(layer, layers.Activation | layers.ReLU | layers.LeakyReLU):
            self._pointwise(activation(layer))
        elif isinstance(layer, layers.Rescaling | layers.Normalization | layers.BatchNormalization):
            self._scale(layer)
        elif isinstance(layer, PlanewiseConv2D | layers.Conv2D):
            self._convolution(layer)
        elif isinstance(layer, WithCentre):
            self._with_centre(layer)
        elif isinstance(layer, layers.MaxPooling2D | layers.AveragePooling2D):
            self._pooling(layer)
        else:
            raise refuse(layer, "it has no dense form")

    def _parameter(self, values: Sequence[np.ndarray], dtype: str) -> int:
        """Keep one array a tower; return its place among the tower's parameters."""
        for parameters, value in zip(self.parameters, values, strict=True):
            parameters.append(_tensor(value, dtype))
        return len(self.parameters[0]) - 1

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
        scale, offset = (np.asarray(v, np.float32) for v in _per_channel(layer))
        if any(v.size != v.shape[-1] for v in (scale, offset)):
            raise refuse(layer, "it treats the samples of a patch differently")
        scale, offset = scale.reshape(-1), offset.reshape(-1)
        if self.flat and not self.units and max(scale.size, offset.size) > 1:
            raise refuse(layer, "it stands between Flatten and the first Dense layer; put it before Flatten")
        if self.units:
            self.head.append(lambda sums: sums * scale + offset)
            return
        scale, offset = (
            np.broadcast_to(v, (self.towers * self.width,)).reshape(self.towers, self.width) for v in (scale, offset)
        )
        if self.convolved and scale.min() > 0:
            self._fold(self.convolved, scale, offset)
            return
        self.convolved = None
        first, second = (self._parameter(list(v), "float32") for v in (scale, offset))

        def apply(maps: Any, parameters: Sequence[Any], _strided: Strided) -> Any:
            return ops.cast(maps, "float32") * parameters[first] + parameters[second]

        self.steps.append(Step(apply))

    def _fold(self, before: Convolved, scale: np.ndarray, offset: np.ndarray) -> None:
        """Make a positive scale and an offset, (towers, channels), part of the convolution before the max pooling.

        s max(x) + o = max(s x + o) for s > 0.
        """
        kernels = [kernel * s for kernel, s in zip(before.kernels, scale, strict=True)]
        biases = [bias * s + o for bias, s, o in zip(before.biases, scale, offset, strict=True)]
        for parameters, kernel, bias in zip(self.parameters, kernels, biases, strict=True):
            for place, value in zip(before.places, (kernel, bias), strict=True):
                parameters[place] = _tensor(value, self.precision)
        self.convolved = before._replace(kernels=kernels, biases=biases)
        self.folds.append((scale, offset))

    def _with_centre(self, layer: WithCentre) -> None:
        """Note the centre, and add the layers that pool."""
        if self.centre or self.flat or self.dilation != 1:
            raise refuse(layer, "it stands behind a pooling")
        self.centre = Centre(layer, len(self.steps), self.width, self.folds, len(self.folds))
        for inner in layer.pooled.layers:
            self.add(inner)

    def _add_aside(self, centre: Centre, kernel: np.ndarray) -> None:
        """Add what the first Dense layer makes of the centre: kernel (window^2 * towers * channels, units)."""
        scale, offset = np.ones((self.towers, centre.width), np.float32), np.zeros((self.towers, centre.width))
        for s, o in centre.folds[centre.known :]:  # undone: x is (s x + o - o) / s
            scale, offset = scale / s, offset - scale * o / s
        functions: list[Callable[[Any], Any]] = []
        for layer in centre.layer.centre.layers:
            if isinstance(layer, layers.BatchNormalization) and not functions:
                s, o = (np.asarray(v, np.float32).reshape(self.towers, -1) for v in _per_channel(layer))
                scale, offset = scale * s, offset * s + o
            elif isinstance(layer, layers.Activation | layers.ReLU | layers.LeakyReLU):
                functions.append(activation(layer))
            else:
                raise refuse(layer, "it stands in a centre, which may have a batch normalisation, then activations")
        first, second = (self._parameter(list(v), "float32") for v in (scale, offset))

        def normalise(maps: Any, parameters: Sequence[Any]) -> Any:
            maps = ops.cast(maps, "float32") * parameters[first] + parameters[second]
            for function in functions:
                maps = function(maps)
            return maps

        window = centre.layer.window
        split = kernel.reshape(window, window, self.towers, centre.width, self.units)
        place = self._parameter([split[:, :, tower] for tower in range(self.towers)], self.precision)
        self.macs += window**2 * centre.width * self.units
        start = centre.layer.start
        self.aside = Aside(centre.before, start, normalise, place, self.precision, self.dilation)

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
        kernel = ops.convert_to_numpy(layer.kernel)  # (k, k, I, towers * O)
        bias = np.zeros(kernel.shape[-1]) if layer.bias is None else ops.convert_to_numpy(layer.bias)
        kernels, biases = np.split(kernel, self.towers, axis=-1), np.split(bias, self.towers)
        self.folds = []
        first = self._add_convolution(kernels)
        place = self._parameter(biases, self.precision)
        self.steps.append(Step(lambda maps, parameters, strided: add_bias(maps, parameters[place])))
        self.convolved = Convolved(kernels, biases, (first, place))
        if isinstance(layer, layers.Conv2D):
            self._pointwise(activation(layer))
        self.side -= kernel.shape[0] - 1
        self.width = kernel.shape[-1] // self.towers
        self.widest = max(self.widest, self.width)

    def _add_convolution(self, kernels: Sequence[np.ndarray]) -> int:
        """Add a convolution without bias, one kernel (k, k, I, O) a tower; return its place among the parameters."""
        place = self._parameter(kernels, self.precision)
        dilation, precision = self.dilation, self.precision

        def apply(maps: Any, parameters: Sequence[Any], strided: Strided) -> Any:
            rate = [1 if s else dilation for s in strided]
            return convolve(ops.cast(maps, precision), parameters[place], rate)

        self.steps.append(Step(apply))
        self.lengths.append((kernels[0].shape[0] - 1, 1, dilation))
        self.macs += kernels[0].size
        return place

    def _pooling(self, layer: keras.layers.Layer) -> None:
        """Add a pooling of stride 1 whose window is dilated."""
        window = layer.pool_size[0]
        if layer.padding != "valid" or set(layer.strides) != {window} or set(layer.pool_size) != {window}:
            raise refuse(layer, "its window is not square, its strides are not its window, or its padding not `valid`")
        dilation, is_max = self.dilation, isinstance(layer, layers.MaxPooling2D)
        function = ops.max_pool if is_max else ops.average_pool
        if not is_max:
            self.convolved = None

        def apply(maps: Any, _parameters: Sequence[Any], strided: Strided) -> Any:
            if dilation == 1 and strided == DENSE:
                return function(maps, window, strides=1, padding="valid")
            apart = [1 if s else dilation for s in strided]
            every = [window if s else 1 for s in strided]
            return pool(maps, window, apart, every, function)

        self.steps.append(Step(apply, is_max))
        self.lengths.append((0, window, dilation))
        self.dilation *= window
        self.side //= window

    def _dense(self, layer: keras.layers.Dense) -> None:
        """Add a Dense layer: the first as a dilated convolution for each tower, later ones on each voxel."""
        if not self.flat:
            raise refuse(layer, "it stands before Flatten")
        kernel = ops.convert_to_numpy(layer.kernel)
        bias = ops.convert_to_numpy(layer.bias) if layer.use_bias else np.zeros(layer.units, np.float32)
        if self.units:
            self.head.append(lambda sums: ops.matmul(sums, kernel) + bias)
            self.head_macs += kernel.size
        else:
            self.units = kernel.shape[1]
            # Flatten has laid the maps out as (row, column, tower, channel).
            pooled = self.side**2 * self.towers * self.width
            if self.centre:
                self._add_aside(self.centre, kernel[pooled:])
            split = kernel[:pooled].reshape(self.side, self.side, self.towers, self.width, self.units)
            self._add_convolution([split[:, :, tower] for tower in range(self.towers)])
            self.head.append(lambda sums: sums + bias)
        self.head.append(activation(layer))
