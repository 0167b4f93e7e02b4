"""Networks, volumes and block sizes for the tests of dense evaluation."""

from __future__ import annotations

import hypothesis.strategies as st
import keras
import numpy as np
from keras import layers

from femur_tf import evaluator, memory, model
from femur_tf.config import ModelConfig, PatchConfig
from femur_tf.dense import DenseNetwork
from femur_tf.model import PlanewiseConv2D

RULE = PatchConfig(size=12, spacing_mm=(1.0, 2.0, 1.0), scales_mm=(0.0, 4.0))
"""Steps (1, 1, 1) and (4, 2, 4)."""
SHAPE = (7, 5, 6)
"""No step of the coarse scale divides it."""


def volume(shape: tuple[int, ...] = SHAPE, seed: int = 2) -> np.ndarray:
    """Return a random uint8 volume."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def voxels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return every voxel, (N, 3)."""
    return np.argwhere(np.ones(shape, bool))


def sequential(rule: PatchConfig, *inner: keras.layers.Layer) -> keras.Sequential:
    """Return a built Sequential on the patches of a rule."""
    return keras.Sequential([keras.Input((rule.size, rule.size, rule.channels), dtype="uint8"), *inner])


def stir(network: keras.Sequential, seed: int) -> None:
    """Give every weight a random value, large enough that voxels differ; variances stay positive."""
    rng = np.random.default_rng(seed)
    for variable in network.weights:
        fans = int(np.prod(variable.shape[:-1])) or 1
        values = rng.normal(0, 1.5 / np.sqrt(fans) if len(variable.shape) > 1 else 0.3, variable.shape)
        variable.assign(np.abs(values) + 0.5 if variable.name == "moving_variance" else values)


def spread(rule: PatchConfig = RULE, **settings) -> keras.Sequential:
    """Return a small network whose probabilities spread over (0, 1)."""
    keras.utils.set_random_seed(1)
    network = model.build(ModelConfig(**({"filters": (3, 4), "dense": (5,)} | settings)), rule)
    kernel, bias = network.layers[-1].get_weights()
    network.layers[-1].set_weights([kernel * 8, bias - 2])
    return network


def blocks_of(
    network: DenseNetwork,
    block: tuple[int, int, int] = (64, 64, 64),
    *,
    holds_coarse: bool = True,
    batch_bytes: int = 1,
) -> memory.BlockPlan:
    """Return a plan of given block sizes; by default a small volume is one block, its planes go one by one."""
    x, y, z = (int(np.lcm.reduce(column)) for column in zip(*network.rule.steps, strict=True))
    return memory.BlockPlan(block, (x, y, z), 4 * network.width, holds_coarse, batch_bytes)


def everywhere(network: DenseNetwork, grid: np.ndarray, plan: memory.BlockPlan | None = None) -> np.ndarray:
    """Return (X, Y, Z) float32 probabilities, not rounded to float16, evaluated densely block by block."""
    found = evaluator.Evaluator(network, grid, plan or blocks_of(network))
    result = np.full(grid.shape, np.nan, np.float32)
    for _ in found.fill(result, evaluator.whole(grid.shape), None):
        pass
    return result


def one_by_one(network: keras.Sequential, grid: np.ndarray, rule: PatchConfig) -> np.ndarray:
    """Return (X, Y, Z) float32 probabilities, evaluated patch by patch."""
    return evaluator.by_patches(network, grid, rule).reshape(grid.shape)


RULES = st.one_of(
    st.builds(
        PatchConfig,
        size=st.integers(12, 32),
        spacing_mm=st.sampled_from([(1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (0.5, 1.0, 2.0)]),
        scales_mm=st.just(scales_mm),
        planes=st.sampled_from(planes),
    )
    for scales_mm, planes in (
        ((0.0,), [(), ("finest",), ("sagittal",)]),
        ((3.0,), [(), ("coronal",)]),
        ((0.0, 2.0), [(), ("finest", "all"), ("axial", "coronal")]),
        ((0.0, 2.0, 5.0), [(), ("finest", "all", "sagittal")]),
    )
)
SHAPES = st.tuples(*[st.integers(1, 5)] * 3)
PARTS = {
    "max": layers.MaxPooling2D,
    "average": layers.AveragePooling2D,
    "relu": lambda pool: layers.ReLU(),
    "leaky": lambda pool: layers.LeakyReLU(),
    "tanh": lambda pool: layers.Activation("tanh"),
    "batch": lambda pool: layers.BatchNormalization(),
    "plain batch": lambda pool: layers.BatchNormalization(center=False, scale=False),
}
"""What may follow a convolution."""
BLOCKS = st.tuples(
    st.sampled_from(["ours", "grouped", "grouped without bias"]),
    st.integers(1, 4),  # filters
    st.sampled_from([3, 5]),  # kernel
    st.sampled_from([2, 3]),  # pool
    st.tuples(
        st.sampled_from(["max", "average"]), st.sampled_from(list(PARTS)[2:]), st.sampled_from(list(PARTS)[2:])
    ).flatmap(st.permutations),
)
HEADS = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["relu", "tanh", None]), st.booleans()), max_size=2)


def block(kind: str, filters: int, kernel: int, pool: int, parts: list[str], towers: int) -> list[keras.layers.Layer]:
    """Return the layers of one block."""
    if kind == "ours":
        convolution = PlanewiseConv2D(filters, kernel, towers)
    else:
        bias = kind == "grouped"
        convolution = layers.Conv2D(filters * towers, kernel, groups=towers, activation="relu", use_bias=bias)
    return [convolution, *(PARTS[part](pool) for part in parts)]


SPECS = st.tuples(RULES, st.lists(BLOCKS, min_size=1, max_size=3), HEADS)
"""What `drawn` makes a network of."""


def drawn(spec: tuple) -> tuple[keras.Sequential, PatchConfig]:
    """Return a network of as many of the blocks as fit a patch, with random weights, and its patch rule."""
    rule, blocks, head = spec
    inner, side = [layers.Rescaling(1 / 255, offset=-0.5)], rule.size
    for kind, filters, kernel, pool, parts in blocks:
        side = (side - kernel + 1) // pool
        if side < 1:
            break
        inner += block(kind, filters, kernel, pool, parts, rule.channels)
    inner += [layers.Dropout(0.5), layers.Flatten()]
    for units, activation, normalised in head:
        inner.append(layers.Dense(units, activation=activation, use_bias=not normalised))
        inner += [layers.BatchNormalization()] * normalised
    network = sequential(rule, *inner, layers.Dense(1, activation="sigmoid"))
    stir(network, len(network.weights))
    return network, rule
