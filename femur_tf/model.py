"""The network: a plain `keras.Sequential` on uint8 patches, and its registered layers.

Blocks of (convolution, max pooling, batch normalisation where asked for, ReLU), then
Flatten, Dense layers and one sigmoid. ReLU stands after the pooling: max(relu(x)) =
relu(max(x)), at a quarter of the work. With late fusion each plane of each scale (a
**tower**) has convolutions of its own and the towers meet in the first Dense layer,
which is what lets the network be evaluated densely (`femur_tf.dense`). Where asked for, the first Dense layer sees the
centre of the first convolution's maps, too (`WithCentre`).
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
from keras import ops

from femur_tf.config import ModelConfig, PatchConfig
from femur_tf.cost import centre_start
from femur_tf.cost import map_sizes as map_sizes
from femur_tf.errors import DataError

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


@keras.saving.register_keras_serializable(package="femur_tf")
class WithCentre(keras.layers.Layer):
    """Layers that pool their input, and beside what they give a window of the input as it is.

    Input (N, H, W, C); output (N, P + window * window * C), the output of `pooled`, flat, then that of `centre`, flat.

    Args:
      pooled: (N, H, W, C) -> (N, P), ends with Flatten; a Dropout may follow.
      centre: (N, window, window, C) -> the same shape, sample by sample: normalisation and activation.
      window: side.
      start: first row and column of the window.
    """

    def __init__(
        self, pooled: keras.Sequential, centre: keras.Sequential, window: int, start: int, **options: Any
    ) -> None:
        """Keep layers and place."""
        super().__init__(**options)
        self.pooled, self.centre, self.window, self.start = pooled, centre, window, start

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Build the layers."""
        self.pooled.build(input_shape)
        self.centre.build((input_shape[0], self.window, self.window, input_shape[-1]))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Apply both, and join what they give."""
        within = slice(self.start, self.start + self.window)
        centre = self.centre(inputs[:, within, within], training=training)
        size = self.window**2 * inputs.shape[-1]
        return ops.concatenate([self.pooled(inputs, training=training), ops.reshape(centre, (-1, size))], axis=-1)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the output's shape."""
        pooled = self.pooled.compute_output_shape(input_shape)
        return (input_shape[0], pooled[-1] + self.window**2 * (input_shape[-1] or 0))

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` takes."""
        layers = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in ("pooled", "centre")}
        return {**super().get_config(), **layers, "window": self.window, "start": self.start}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WithCentre:
        """Return the layer of a config."""
        layers = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("pooled", "centre")}
        return cls(**{**config, **layers})


def layers_of(network: keras.Sequential) -> list[keras.layers.Layer]:
    """Return the layers of a network, those within `WithCentre` in its place."""
    found = []
    for layer in network.layers:
        found += [*layer.pooled.layers, *layer.centre.layers] if isinstance(layer, WithCentre) else [layer]
    return found


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


def _pooled(network: ModelConfig, rule: PatchConfig) -> Iterator[keras.layers.Layer]:
    """Yield the blocks, Flatten, and the dropout before the first Dense layer.

    One by one: each draws from Keras's random state when it is made, and its weights when it is added.
    """
    for filters in network.filters:
        yield _convolution(network, filters, rule.channels)
        yield keras.layers.MaxPooling2D(network.pool)
        if network.batch_norm:
            yield _batch_norm(network)
        yield keras.layers.Activation("relu")
        if network.dropout_conv:
            yield keras.layers.Dropout(network.dropout_conv)
    yield keras.layers.Flatten()
    if network.dropout_dense and network.dense:
        yield keras.layers.Dropout(network.dropout_dense)


def _with_centre(network: ModelConfig, rule: PatchConfig, pooled: list[keras.layers.Layer]) -> WithCentre:
    """Return what follows the first convolution up to the first Dense layer, with the centre beside it."""
    centre = [*([_batch_norm(network)] if network.batch_norm else []), keras.layers.Activation("relu")]
    start = centre_start(network, rule.size)
    return WithCentre(keras.Sequential(pooled), keras.Sequential(centre), network.centre, start, name="with_centre")


def build(network: ModelConfig, rule: PatchConfig) -> keras.Sequential:
    """Build the untrained network.

    Args:
      network: its settings.
      rule: the patch rule; patches are (size, size, channels) uint8.

    Returns:
      A model (N, size, size, channels) uint8 -> (N, 1) float32, the probability that the centre is bone.

    Raises:
      DataError: the blocks leave less than 1 x 1 of a patch, or the centre is larger than the first maps.
    """
    map_sizes(network, rule.size)
    model = keras.Sequential(name="femur_tf")
    model.add(keras.Input((rule.size, rule.size, rule.channels), dtype="uint8", name="patch"))
    model.add(keras.layers.Rescaling(1 / 255))
    pooled = _pooled(network, rule)
    if network.centre:
        model.add(next(pooled))
        model.add(_with_centre(network, rule, list(pooled)))
    for layer in pooled:
        model.add(layer)
    for units in network.dense:
        model.add(keras.layers.Dense(units, activation="relu", **_weights(network)))
        if network.dropout_dense:
            model.add(keras.layers.Dropout(network.dropout_dense))
    # float32 whatever the rest computes in: a sigmoid in float16 loses the tails that the cut-off needs.
    model.add(keras.layers.Dense(1, activation="sigmoid", dtype="float32", name="probability", **_weights(network)))
    return model


@contextlib.contextmanager
def computing_in(policy: str) -> Iterator[None]:
    """Build, load and compile networks under a dtype policy of Keras; of float16, losses are scaled, too."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def load(path: Path, *, compiled: bool) -> keras.Sequential:
    """Load a network as it was saved.

    Args:
      path: a `.keras` file.
      compiled: with its optimizer, loss and metrics, to train it further in the precision that it was trained in.

    Raises:
      DataError: the file is damaged.
    """
    try:
        found = keras.saving.load_model(path, compile=False)
        if not compiled:
            return found
        policies = (layer.dtype_policy.name for layer in found.layers)
        # Keras scales losses, and keeps a state for it, by the policy of the process alone.
        with computing_in(next((name for name in policies if name.startswith("mixed")), "float32")):
            return keras.saving.load_model(path)
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: expected a Keras model that can be loaded. Received: {reason}") from error
