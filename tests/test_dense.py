"""The network at every voxel at once: by hand, against the network patch by patch, and what has no dense form."""

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from keras import layers

from femur_tf import dense, model
from femur_tf.config import PRESETS, ModelConfig, PatchConfig
from femur_tf.dense_steps import NotDenseError
from femur_tf.model import PlanewiseConv2D
from femur_tf.patches import PLANE_AXES, Cutter, padded_planes

TOLERANCE = 1e-5
"""Sums of float32 products in another order, before any rounding to float16."""
EXAMPLES = 12
"""Each builds a network and takes about half a second."""
BUDGET = 250_000
"""Multiply-adds a voxel that the default network may take."""


def everywhere(network, grid):
    """Return (X, Y, Z) float32 probabilities: every tower over whole planes, one batch, spread from cells to voxels."""
    rule = network.rule
    total = np.zeros((*grid.shape, network.units), np.float32)
    for tower, planes in enumerate(padded_planes(grid, rule)):
        axes, steps = PLANE_AXES[tower % 3], rule.steps[tower // 3]
        sums = np.asarray(network.tower(planes[:, :-1, :-1], tower))  # (N, A, B, units), across, rows, columns
        cells = np.moveaxis(sums, (0, 1, 2), axes)
        index = [np.arange(n) // step for n, step in zip(grid.shape, steps, strict=True)]
        total += cells[np.ix_(*index)]
    return np.asarray(network.head(total))


def one_by_one(network, grid, rule):
    """Return (X, Y, Z) float32 probabilities, patch by patch."""
    patches = Cutter.of(grid, rule).cut(np.argwhere(np.ones(grid.shape, bool)))
    return np.asarray(network(patches)).reshape(grid.shape)


def volume(shape, seed=0):
    """Return a random uint8 volume."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def sequential(rule, *inner):
    """Return a built Sequential on the patches of a rule."""
    return keras.Sequential([keras.Input((rule.size, rule.size, rule.channels), dtype="uint8"), *inner])


def stir(network, seed):
    """Give every weight a random value, large enough that voxels differ; variances stay positive."""
    rng = np.random.default_rng(seed)
    for variable in network.weights:
        fans = int(np.prod(variable.shape[:-1])) or 1
        values = rng.normal(0, 1.5 / np.sqrt(fans) if len(variable.shape) > 1 else 0.3, variable.shape)
        variable.assign(np.abs(values) + 0.5 if variable.name == "moving_variance" else values)


def test_a_mean_of_two_by_two_by_hand():
    rule = PatchConfig(size=2)
    network = sequential(rule, layers.AveragePooling2D(2), layers.Flatten(), layers.Dense(1))
    network.layers[-1].set_weights([np.array([[1.0], [10.0], [100.0]]), np.array([0.5])])
    grid = np.zeros((2, 2, 2), np.uint8)
    grid[1, 1, 1] = 4
    # A patch reads the voxel and those before it: only the last voxel's planes hold the 4, a mean of 1 in each.
    expected = np.full((2, 2, 2), 0.5)
    expected[1, 1, 1] += 111
    np.testing.assert_allclose(everywhere(dense.convert(network, rule), grid), expected)


def test_a_maximum_reads_dilated_samples_after_a_pooling():
    rule = PatchConfig(size=4)
    network = sequential(rule, layers.MaxPooling2D(2), layers.MaxPooling2D(2), layers.Flatten(), layers.Dense(1))
    network.layers[-1].set_weights([np.array([[1.0], [0.0], [0.0]]), np.zeros(1)])
    grid = np.zeros((9, 9, 1), np.uint8)
    grid[4, 4] = 7
    found = everywhere(dense.convert(network, rule), grid)[..., 0]
    assert np.argwhere(found == 7).min(axis=0).tolist() == [3, 3]  # offsets -2 .. 1 reach it
    assert np.argwhere(found == 7).max(axis=0).tolist() == [6, 6]
    assert (found == 7).sum() == 16


def test_multiply_adds_are_counted():
    rule = PatchConfig(size=8, scales_mm=(0.0, 2.0))
    network = dense.convert(model.build(ModelConfig(filters=(4,), dense=(5, 2)), rule), rule)
    tower = 9 * 4 + 9 * 4 * 5  # a 3 x 3 convolution; Dense on 3 x 3 maps
    assert network.macs_per_cell == tower
    assert network.head_macs == 5 * 2 + 2
    assert network.macs_per_voxel == 3 * tower + 3 * tower / 8 + 12  # a coarse cell holds 8 voxels


def test_the_default_network_keeps_to_its_budget():
    preset = PRESETS["default"]
    rule = PatchConfig(spacing_mm=(0.911, 5.2, 0.911), scales_mm=preset.scales_mm)
    assert dense.convert(model.build(preset.model, rule), rule).macs_per_voxel <= BUDGET


RULES = st.builds(
    PatchConfig,
    size=st.integers(12, 32),
    spacing_mm=st.sampled_from([(1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (0.5, 1.0, 2.0)]),
    scales_mm=st.sampled_from([(0.0,), (0.0, 2.0), (3.0,), (0.0, 2.0, 5.0)]),
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
    st.sampled_from(["ours", "grouped"]),
    st.integers(1, 4),  # filters
    st.sampled_from([3, 5]),  # kernel
    st.sampled_from([2, 3]),  # pool
    st.tuples(st.sampled_from(["max", "average"]), st.sampled_from(list(PARTS)[2:]), st.sampled_from(list(PARTS)[2:])),
)
HEADS = st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["relu", "tanh", None]), st.booleans()), max_size=2)


def block(kind, filters, kernel, pool, parts, towers):
    """Return the layers of one block."""
    if kind == "ours":
        convolution = PlanewiseConv2D(filters, kernel, towers)
    else:
        convolution = layers.Conv2D(filters * towers, kernel, groups=towers, activation="relu")
    return [convolution, *(PARTS[part](pool) for part in parts)]


def network_of(rule, blocks, head):
    """Return the network of as many blocks as fit a patch, with Dense layers and their normalisation."""
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
    return sequential(rule, *inner, layers.Dense(1, activation="sigmoid"))


@hypothesis.given(
    rule=RULES,
    blocks=st.lists(BLOCKS, min_size=1, max_size=3),
    order=st.permutations(range(3)),
    head=HEADS,
    shape=SHAPES,
)
@hypothesis.settings(max_examples=EXAMPLES)
def test_dense_equals_patch_by_patch_at_every_voxel(rule, blocks, order, head, shape):
    blocks = [(*rest, [parts[place] for place in order]) for *rest, parts in blocks]
    network = network_of(rule, blocks, head)
    stir(network, len(network.weights))
    grid = volume(shape)
    found = everywhere(dense.convert(network, rule), grid)
    np.testing.assert_allclose(found, one_by_one(network, grid, rule), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_a_dense_form(name):
    preset = PRESETS[name]
    rule = PatchConfig(spacing_mm=(1.0, 2.0, 1.0), scales_mm=preset.scales_mm)
    network = model.build(preset.model, rule)
    stir(network, 1)
    grid = volume((6, 5, 4))
    expected = one_by_one(network, grid, rule)
    assert np.ptp(expected) > 100 * TOLERANCE  # the network tells voxels apart
    np.testing.assert_allclose(everywhere(dense.convert(network, rule), grid), expected, rtol=0, atol=TOLERANCE)


def test_a_normalisation_layer_has_a_dense_form():
    rule = PatchConfig(size=12)
    normalise = layers.Normalization(mean=[10.0, 20.0, 30.0], variance=[100.0, 400.0, 900.0])
    network = sequential(rule, normalise, PlanewiseConv2D(2, 3, 3), layers.Flatten(), layers.Dense(1))
    grid = volume((4, 3, 2))
    found = everywhere(dense.convert(network, rule), grid)
    np.testing.assert_allclose(found, one_by_one(network, grid, rule), rtol=0, atol=TOLERANCE)


def test_the_dense_form_keeps_the_weights_it_was_made_with():
    rule = PatchConfig(size=12)
    network = model.build(ModelConfig(filters=(2,), dense=(3,)), rule)
    converted, grid = dense.convert(network, rule), volume((3, 3, 3))
    before = everywhere(converted, grid)
    stir(network, 2)
    np.testing.assert_array_equal(everywhere(converted, grid), before)


GROUPED = {"filters": 6, "kernel_size": 3, "groups": 3}


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Conv2D(6, 3, name="bad"), "mixes the planes"),
        (layers.Conv2D(**GROUPED, padding="same", name="bad"), "plain `valid` convolution"),
        (layers.Conv2D(**GROUPED, strides=2, name="bad"), "plain `valid` convolution"),
        (layers.Conv2D(**GROUPED, dilation_rate=2, name="bad"), "plain `valid` convolution"),
        (layers.MaxPooling2D(2, padding="same", name="bad"), "its strides are not its window"),
        (layers.MaxPooling2D(3, strides=1, name="bad"), "its strides are not its window"),
        (layers.AveragePooling2D((2, 3), name="bad"), "its strides are not its window"),
        (layers.UpSampling2D(name="bad"), "it has no dense form"),
        (layers.LayerNormalization(name="bad"), "it has no dense form"),
    ],
)
def test_a_layer_without_dense_form_is_named(layer, reason):
    rule = PatchConfig(size=12)
    network = sequential(rule, layer, layers.Flatten(), layers.Dense(1))
    message = rf"layer 'bad' \({type(layer).__name__}\): .*{reason}.*predict patch by patch"
    with pytest.raises(NotDenseError, match=message):
        dense.convert(network, rule)


def test_early_fusion_has_no_dense_form():
    rule = PatchConfig(size=12)
    network = model.build(ModelConfig(filters=(2,), fusion="early"), rule)
    with pytest.raises(NotDenseError, match=r"\(Conv2D\): it mixes the planes \(early fusion\).*fusion='late'"):
        dense.convert(network, rule)


def test_a_network_on_other_patches_is_refused():
    network = model.build(ModelConfig(filters=(2,)), PatchConfig(size=12))
    with pytest.raises(ValueError, match=r"patches of shape \(16, 16, 3\)\. Received: \(12, 12, 3\)"):
        dense.convert(network, PatchConfig(size=16))


def test_a_volume_of_one_voxel_is_evaluated():
    rule = PatchConfig(size=12, scales_mm=(0.0, 4.0))
    network = model.build(ModelConfig(filters=(2,), dense=(3,)), rule)
    grid = volume((1, 1, 1))
    found = everywhere(dense.convert(network, rule), grid)
    np.testing.assert_allclose(found, one_by_one(network, grid, rule), rtol=0, atol=TOLERANCE)
