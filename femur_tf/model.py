"""The network: a plain `keras.Sequential` on uint8 patches, and its registered layers.

Blocks of (convolution, max pooling, batch normalisation where asked for, ReLU), then
Flatten, Dense layers and one sigmoid. ReLU stands after the pooling: max(relu(x)) =
relu(max(x)), at a quarter of the work. With late fusion each plane of each scale (a
**tower**) has convolutions of its own and the towers meet in the first Dense layer,
which is what lets the network be evaluated densely (`femur_tf.dense`).
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from femur_tf.config import ModelConfig, PatchConfig
from femur_tf.cost import map_sizes as map_sizes

BATCH_NORM_MOMENTUM = 0.95
"""Of the moving mean and variance: those of the last twenty steps or so count, for runs of a few hundred."""


@keras.saving.register_keras_serializable(package="femur_tf")
class PlanewiseConv2D(keras.layers.Layer):
    """A `valid` convolution that keeps the towers apart: a grouped convolution, one group a tower.

    Input (N, H, W, towers * I), output (N, H - k + 1, W - k + 1, towers * filters), channels of a tower together.
    On CPU it is computed as one ordinary convolution a tower, because TensorFlow's grouped convolution trains 8 to
    60 times slower there.

    Args:
      filters: output channels of each tower.
      kernel_size: k.
      towers: number of groups.
      bias: initial value of each bias; None: without biases.
      l2: L2 penalty on the kernel.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        towers: int,
        *,
        bias: float | None = 0.0,
        l2: float = 0.0,
        **options: Any,
    ) -> None:
        """Keep the settings; weights are made when the input's shape is known."""
        super().__init__(**options)
        self.filters, self.kernel_size, self.towers = filters, kernel_size, towers
        self.initial_bias, self.l2 = bias, l2
        self.bias = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the kernel (k, k, I, towers * filters) and the bias (towers * filters,), if any."""
        channels = input_shape[-1]
        if channels is None or channels % self.towers:
            raise ValueError(f"Expected channels divisible by towers={self.towers}. Received: shape={input_shape}")
        inputs = channels // self.towers
        # Glorot uniform with the fans of one tower: the group's own, not those of the joint kernel.
        limit = math.sqrt(6 / (self.kernel_size**2 * (inputs + self.filters)))
        self.kernel = self.add_weight(
            shape=(self.kernel_size, self.kernel_size, inputs, self.towers * self.filters),
            initializer=keras.initializers.RandomUniform(-limit, limit),
            regularizer=keras.regularizers.L2(self.l2) if self.l2 else None,
            name="kernel",
        )
        if self.initial_bias is not None:
            self.bias = self.add_weight(
                shape=(self.towers * self.filters,),
                initializer=keras.initializers.Constant(self.initial_bias),
                name="bias",
            )
        self.one_by_one = not keras.distribution.list_devices("gpu")

    def call(self, inputs: Any) -> Any:
        """Convolve each tower."""
        if self.one_by_one:
            images = ops.split(inputs, self.towers, axis=-1)
            kernels = ops.split(self.kernel, self.towers, axis=-1)
            pairs = zip(images, kernels, strict=True)
            result = ops.concatenate([ops.conv(i, k, padding="valid") for i, k in pairs], axis=-1)
        else:
            result = ops.conv(inputs, self.kernel, padding="valid")
        return result if self.bias is None else result + ops.cast(self.bias, result.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the output's shape."""
        batch, *sides, _ = input_shape
        less = self.kernel_size - 1
        return (batch, *(None if s is None else s - less for s in sides), self.towers * self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return what `__init__` takes."""
        own = {"filters": self.filters, "kernel_size": self.kernel_size, "towers": self.towers}
        return {**super().get_config(), **own, "bias": self.initial_bias, "l2": self.l2}


def _convolution(network: ModelConfig, filters: int, towers: int) -> keras.layers.Layer:
    """Return the convolution of one block; batch normalisation has a bias of its own."""
    biased = not network.batch_norm
    if network.fusion == "late":
        bias = network.bias if biased else None
        return PlanewiseConv2D(filters, network.kernel, towers, bias=bias, l2=network.l2)
    # The same number of filters in all as with late fusion, so that the two differ in fusion alone.
    return keras.layers.Conv2D(filters * towers, network.kernel, use_bias=biased, **_weights(network))


def _batch_norm(network: ModelConfig) -> keras.layers.Layer:
    """Return the batch normalisation of one block.

    It has no scale: the layer after the ReLU has one already, and what is left, a division by a deviation, stands as
    well before the pooling, where `femur_tf.dense` makes it part of the convolution.
    """
    start = keras.initializers.Constant(network.bias)
    return keras.layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, scale=False, beta_initializer=start)


def _weights(network: ModelConfig) -> dict[str, Any]:
    """Return how the weights of Keras's own layers start and are penalised."""
    return {
        "kernel_initializer": "glorot_uniform",
        "bias_initializer": keras.initializers.Constant(network.bias),
        "kernel_regularizer": keras.regularizers.L2(network.l2) if network.l2 else None,
    }


def build(network: ModelConfig, rule: PatchConfig) -> keras.Sequential:
    """Build the untrained network.

    Args:
      network: its settings.
      rule: the patch rule; patches are (size, size, channels) uint8.

    Returns:
      A model (N, size, size, channels) uint8 -> (N, 1) float32, the probability that the centre is bone.

    Raises:
      DataError: the blocks leave less than 1 x 1 of a patch.
    """
    map_sizes(network, rule.size)
    model = keras.Sequential(name="femur_tf")
    model.add(keras.Input((rule.size, rule.size, rule.channels), dtype="uint8", name="patch"))
    model.add(keras.layers.Rescaling(1 / 255))
    for filters in network.filters:
        model.add(_convolution(network, filters, rule.channels))
        model.add(keras.layers.MaxPooling2D(network.pool))
        if network.batch_norm:
            model.add(_batch_norm(network))
        model.add(keras.layers.Activation("relu"))
        if network.dropout_conv:
            model.add(keras.layers.Dropout(network.dropout_conv))
    model.add(keras.layers.Flatten())
    for units in network.dense:
        if network.dropout_dense:
            model.add(keras.layers.Dropout(network.dropout_dense))
        model.add(keras.layers.Dense(units, activation="relu", **_weights(network)))
    if network.dropout_dense and network.dense:
        model.add(keras.layers.Dropout(network.dropout_dense))
    # float32 whatever the rest computes in: a sigmoid in float16 loses the tails that the cut-off needs.
    model.add(keras.layers.Dense(1, activation="sigmoid", dtype="float32", name="probability", **_weights(network)))
    return model
