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

Giusti et al. 2013 (arXiv 1302.1700) and Li et al. 2014 (arXiv 1412.4526) describe
the idea for one plane.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from femur_tf.config import PatchConfig
from femur_tf.model import PlanewiseConv2D

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""[start, stop) along x, y, z."""
TowerOp = Callable[[Any, int], Any]
"""(maps (N, A, B, C) of a tower, tower) -> maps."""


class NotDenseError(ValueError):
    """The network has a layer without a dense form; predict patch by patch instead."""


def _refuse(layer: keras.layers.Layer, reason: str) -> NotDenseError:
    return NotDenseError(
        f"Expected a network of late fusion with `valid` convolutions and pooling. Received: layer {layer.name!r} "
        f"({type(layer).__name__}): {reason}. Train with fusion='late', or predict patch by patch."
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DenseNetwork:
    """The dense form of a patch network.

    Make one with `convert`.
    """

    rule: PatchConfig
    units: int
    """Units of the first Dense layer."""
    width: int
    """Channels of a tower's widest map."""
    tower_ops: tuple[TowerOp, ...]
    head_ops: tuple[Callable[[Any], Any], ...]
    macs_per_cell: int
    """Multiply-adds of one tower at one lattice cell."""
    head_macs: int
    """Multiply-adds of the layers after the first Dense, at one voxel."""

    @property
    def macs_per_voxel(self) -> float:
        """Multiply-adds a voxel, counted: towers of a coarse scale once a cell."""
        cells = sum(3 / np.prod(steps) for steps in self.rule.steps)
        return float(self.macs_per_cell * cells + self.head_macs)

    def tower(self, planes: Any, tower: int) -> Any:
        """Evaluate one tower over whole planes.

        Args:
          planes: (N, A + size - 1, B + size - 1) uint8, padded as `patches.padded_planes` does.
          tower: scale * 3 + plane.

        Returns:
          (N, A, B, units) float32: the tower's share of the first Dense layer, before bias and activation.
        """
        less = self.rule.size - 1
        rows, columns = planes.shape[1] - less, planes.shape[2] - less
        maps = ops.cast(planes, "float32")[..., None]  # (N, A + size - 1, B + size - 1, 1)
        for op in self.tower_ops:
            maps = op(maps, tower)
        return maps[:, :rows, :columns]

    def head(self, sums: Any) -> Any:
        """Return (...) probabilities from (..., units) sums over all towers."""
        for op in self.head_ops:
            sums = op(sums)
        return sums[..., 0]


def _activation(layer: keras.layers.Layer) -> Callable[[Any], Any]:
    """Return the activation of a layer, as a function of maps alone."""
    if isinstance(layer, layers.ReLU | layers.LeakyReLU):
        return layer
    function: Callable[[Any], Any] = layer.activation
    return function


def _shifted(maps: Any, window: int, dilation: int, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine `window` samples that lie `dilation` apart, along rows, then along columns."""
    for axis in (1, 2):
        length = maps.shape[axis] - (window - 1) * dilation
        parts = []
        for start in range(0, window * dilation, dilation):
            index = [slice(None)] * 4
            index[axis] = slice(start, start + length)
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

    def __init__(self, rule: PatchConfig) -> None:
        self.rule = rule
        self.towers = rule.channels
        self.dilation = 1
        self.side = rule.size
        self.width = self.widest = 1
        self.units = 0
        self.macs = self.head_macs = 0
        self.tower_ops: list[TowerOp] = []
        self.head_ops: list[Callable[[Any], Any]] = []

    def add(self, layer: keras.layers.Layer) -> None:
        """Add one layer.

        Raises:
          NotDenseError: the layer has no dense form.
        """
        if isinstance(layer, layers.Dropout | layers.InputLayer):
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
        elif not isinstance(layer, layers.Flatten):
            raise _refuse(layer, "it has no dense form")

    def _pointwise(self, function: Callable[[Any], Any]) -> None:
        """Add a function of each value alone."""
        if self.units:
            self.head_ops.append(function)
        else:
            self.tower_ops.append(lambda maps, tower: function(maps))

    def _scale(self, layer: keras.layers.Layer) -> None:
        """Add a scale and an offset a channel."""
        scale, offset = (np.asarray(v, np.float32) for v in _per_channel(layer))
        if self.units:
            self.head_ops.append(lambda sums: sums * scale + offset)
            return
        channels = self.towers * self.width
        scale, offset = (np.broadcast_to(v, (channels,)).reshape(self.towers, self.width) for v in (scale, offset))
        self.tower_ops.append(lambda maps, tower: maps * scale[tower] + offset[tower])

    def _convolution(self, layer: keras.layers.Layer) -> None:
        """Add a dilated convolution for each tower."""
        if isinstance(layer, layers.Conv2D):
            if layer.groups != self.towers:
                raise _refuse(layer, "it mixes the planes (early fusion), so that voxels share nothing after it")
            if layer.padding != "valid" or set(layer.strides) != {1} or set(layer.dilation_rate) != {1}:
                raise _refuse(layer, "padding, strides or dilation are not those of a plain `valid` convolution")
            activation, size = layer.activation, layer.kernel_size[0]
        else:
            activation, size = None, layer.kernel_size
        kernel = ops.convert_to_numpy(layer.kernel)  # (k, k, I, towers * O)
        bias = ops.convert_to_numpy(layer.bias).reshape(self.towers, -1)
        kernels = [ops.convert_to_tensor(k) for k in np.split(kernel, self.towers, axis=-1)]
        dilation = self.dilation

        def convolve(maps: Any, tower: int) -> Any:
            return ops.conv(maps, kernels[tower], padding="valid", dilation_rate=dilation) + bias[tower]

        self.tower_ops.append(convolve)
        if activation is not None:
            self._pointwise(activation)
        self.side -= size - 1
        self.macs += int(np.prod(kernel.shape)) // self.towers
        self.width = bias.shape[1]
        self.widest = max(self.widest, self.width)

    def _pooling(self, layer: keras.layers.Layer) -> None:
        """Add a pooling of stride 1 whose window is dilated."""
        window = layer.pool_size[0]
        if layer.padding != "valid" or set(layer.strides) != {window} or set(layer.pool_size) != {window}:
            raise _refuse(layer, "its strides are not its window, or its padding is not `valid`")
        dilation = self.dilation
        if isinstance(layer, layers.MaxPooling2D):
            self.tower_ops.append(lambda maps, tower: _shifted(maps, window, dilation, ops.maximum))
        else:
            area = 1.0 / window**2
            self.tower_ops.append(lambda maps, tower: _shifted(maps, window, dilation, ops.add) * area)
        self.dilation *= window
        self.side //= window

    def _dense(self, layer: keras.layers.Dense) -> None:
        """Add a Dense layer: the first as a dilated convolution for each tower, later ones on each voxel."""
        kernel = ops.convert_to_numpy(layer.kernel)
        bias = ops.convert_to_numpy(layer.bias) if layer.use_bias else np.zeros(layer.units, np.float32)
        if self.units:
            self.head_ops.append(lambda sums: ops.matmul(sums, kernel) + bias)
            self.head_macs += kernel.size
        else:
            self._first_dense(kernel)
            self.head_ops.append(lambda sums: sums + bias)
        self.head_ops.append(layer.activation)

    def _first_dense(self, kernel: np.ndarray) -> None:
        """Split the kernel by tower; Flatten has laid it out as (row, column, tower, channel)."""
        self.units = kernel.shape[1]
        split = kernel.reshape(self.side, self.side, self.towers, self.width, self.units)
        kernels = [ops.convert_to_tensor(split[:, :, tower]) for tower in range(self.towers)]
        dilation = self.dilation
        self.tower_ops.append(
            lambda maps, tower: ops.conv(maps, kernels[tower], padding="valid", dilation_rate=dilation)
        )
        self.macs += kernel.size // self.towers


def convert(model: keras.Sequential, rule: PatchConfig) -> DenseNetwork:
    """Return the dense form of a patch network, with a copy of its weights.

    Args:
      model: a built Sequential on (size, size, channels) patches.
      rule: the patch rule it was trained with.

    Raises:
      NotDenseError: a layer has no dense form; it is named, with what to do.
      ValueError: the model's input is not a patch of `rule`.
    """
    expected = (rule.size, rule.size, rule.channels)
    if tuple(model.input_shape[1:]) != expected:
        raise ValueError(f"Expected a model on patches of shape {expected}. Received: {model.input_shape[1:]}")
    builder = _Builder(rule)
    for layer in model.layers:
        builder.add(layer)
    return DenseNetwork(
        rule,
        units=builder.units,
        width=max(builder.widest, builder.units),
        tower_ops=tuple(builder.tower_ops),
        head_ops=tuple(builder.head_ops),
        macs_per_cell=builder.macs,
        head_macs=builder.head_macs,
    )
