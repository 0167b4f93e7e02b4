"""The network at every voxel at once: by hand, against the network patch by patch, and what has no dense form."""

import hypothesis
import keras
import numpy as np
import pytest
from keras import layers
from networks import SHAPES, SPECS, drawn, everywhere, one_by_one, sequential, stir, volume

from femur_tf import dense, model
from femur_tf.config import PRESETS, ModelConfig, PatchConfig
from femur_tf.dense_steps import NotDenseError
from femur_tf.model import PlanewiseConv2D

TOLERANCE = 1e-5
"""Sums of float32 products in another order, before any rounding to float16."""
EXAMPLES = 20
"""Each builds a network and takes about half a second."""
BUDGET = 250_000
"""Multiply-adds a voxel that the default network may take."""


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
    rule = preset.patch(PatchConfig(spacing_mm=(0.911, 5.2, 0.911), scales_mm=preset.scales_mm))
    assert dense.convert(model.build(preset.model, rule), rule).macs_per_voxel <= BUDGET


@pytest.mark.slow
@hypothesis.given(spec=SPECS, shape=SHAPES)
@hypothesis.settings(max_examples=EXAMPLES)
def test_dense_equals_patch_by_patch_at_every_voxel(spec, shape):
    network, rule = drawn(spec)
    grid = volume(shape)
    found = everywhere(dense.convert(network, rule), grid)
    np.testing.assert_allclose(found, one_by_one(network, grid, rule), rtol=0, atol=TOLERANCE)


def test_dilated_convolutions_are_computed_as_they_stand():
    tf = pytest.importorskip("tensorflow")
    rule = PatchConfig(size=16)
    network = dense.convert(model.build(ModelConfig(filters=(4, 4), dense=(5,)), rule), rule)
    planes = tf.TensorSpec((None, 40, 40), tf.uint8)
    graph = tf.function(lambda p: network.evaluate(p, network.parameters[0])).get_concrete_function(planes).graph
    # Phases in the batch, and back, would move every map four times.
    assert not {"SpaceToBatchND", "BatchToSpaceND"} & {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("weights", ["as at the start", "with a negative scale"])
def test_batch_normalisation_behind_pooling_is_part_of_the_convolution_if_it_keeps_the_order(weights):
    rule, folded = PatchConfig(size=16), weights == "as at the start"
    network = model.build(ModelConfig(filters=(4, 4), dense=(5,), batch_norm=True), rule)
    if not folded:
        inner = list(network.layers)
        inner[3] = layers.BatchNormalization()
        network = sequential(rule, *inner)
    stir(network, 4)
    plain = dense.convert(model.build(ModelConfig(filters=(4, 4), dense=(5,)), rule), rule)
    found, grid = dense.convert(network, rule), volume((5, 4, 3))
    assert (len(found.steps) == len(plain.steps)) is folded
    np.testing.assert_allclose(everywhere(found, grid), one_by_one(network, grid, rule), rtol=0, atol=TOLERANCE)


CENTRES = {
    "normalised": {"batch_norm": True, "centre": 3},
    "with a bias": {"centre": 1},
    "of other blocks": {"batch_norm": True, "centre": 5, "filters": (3, 4, 5), "kernel": 2},
    "before a wide pooling": {"batch_norm": True, "centre": 3, "filters": (3,), "pool": 3},
}


@pytest.mark.parametrize("planes", [(), ("coronal", "all")])
@pytest.mark.parametrize("name", CENTRES)
def test_a_centre_is_seen_at_every_voxel(name, planes):
    rule = PatchConfig(size=17, spacing_mm=(1.0, 2.0, 1.0), scales_mm=(0.0, 4.0), planes=planes)
    network = model.build(ModelConfig(**({"filters": (4, 6), "dense": (5,)} | CENTRES[name])), rule)
    stir(network, 3)
    grid = volume((7, 5, 6))
    expected, found = one_by_one(network, grid, rule), dense.convert(network, rule)
    assert np.ptp(expected) > 100 * TOLERANCE
    np.testing.assert_allclose(everywhere(found, grid), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("strided", [(True, True), (True, False), (False, True)])
def test_a_centre_is_seen_at_every_so_many_voxels(strided):
    rule = PatchConfig(size=17)
    network = model.build(ModelConfig(filters=(4, 6), dense=(5,), batch_norm=True, centre=3), rule)
    stir(network, 3)
    found, planes = dense.convert(network, rule), volume((2, 46, 37))
    rows, columns = (slice(None, None, found.stride if s else 1) for s in strided)
    expected = found.tower(planes, 1)[:, rows, columns]
    np.testing.assert_allclose(found.tower(planes, 1, strided), expected, rtol=0, atol=TOLERANCE)


def test_a_centre_is_what_is_left_of_normalisations_undone():
    """Those behind the pooling become part of the convolution that the centre sees, too; the one before it stays."""
    rule = PatchConfig(size=12)
    normalised = [layers.BatchNormalization(scale=False) for _ in range(3)]
    pooled = keras.Sequential([layers.MaxPooling2D(2), *normalised[1:], layers.ReLU(), layers.Flatten()])
    centre = model.WithCentre(pooled, keras.Sequential([layers.ReLU()]), 3, 4)
    start = [layers.Rescaling(1 / 255), PlanewiseConv2D(4, 3, 3), normalised[0]]
    network = sequential(rule, *start, centre, layers.Dense(1, activation="sigmoid"))
    stir(network, 5)
    grid = volume((5, 4, 3))
    found, expected = dense.convert(network, rule), one_by_one(network, grid, rule)
    assert len(found.steps) == 6  # rescaling, convolution, bias, ReLU, pooling, Dense
    assert np.ptp(expected) > 100 * TOLERANCE
    np.testing.assert_allclose(everywhere(found, grid), expected, rtol=0, atol=TOLERANCE)


def test_the_multiply_adds_of_a_centre_are_counted():
    rule = PatchConfig(size=8)
    network = dense.convert(model.build(ModelConfig(filters=(4,), dense=(5, 2), centre=3), rule), rule)
    assert network.macs_per_cell == 9 * 4 + (9 + 9) * 4 * 5


@pytest.mark.parametrize(
    ("before", "inner", "words"),
    [
        ([layers.MaxPooling2D(2)], [layers.Activation("relu")], "it stands behind a pooling"),
        ([], [layers.Activation("relu"), layers.BatchNormalization()], "it stands in a centre"),
        ([], [layers.Activation("softmax")], "softmax"),
    ],
)
def test_a_centre_without_a_dense_form_is_named(before, inner, words):
    rule = PatchConfig(size=12)
    pooled = keras.Sequential([layers.MaxPooling2D(2), layers.Flatten()])
    centre = model.WithCentre(pooled, keras.Sequential(inner), 1, 2)
    network = sequential(rule, PlanewiseConv2D(2, 3, 3), *before, centre, layers.Dense(1, activation="sigmoid"))
    with pytest.raises(NotDenseError, match=words):
        dense.convert(network, rule)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_a_dense_form(name):
    preset = PRESETS[name]
    rule = preset.patch(PatchConfig(spacing_mm=(1.0, 2.0, 1.0), scales_mm=preset.scales_mm))
    network = model.build(preset.model, rule)
    stir(network, 1)
    grid = volume((6, 5, 4))
    expected = one_by_one(network, grid, rule)
    assert np.ptp(expected) > 100 * TOLERANCE  # the network tells voxels apart
    np.testing.assert_allclose(everywhere(dense.convert(network, rule), grid), expected, rtol=0, atol=TOLERANCE)


def scaled(**options):
    """Return a grouped convolution without bias, in a network on patches of three towers."""
    return layers.Conv2D(6, 3, groups=3, use_bias=False, **options)


@pytest.mark.parametrize(
    "inner",
    [
        [layers.Normalization(mean=[10.0, 20.0, 30.0], variance=[100.0, 400.0, 900.0]), PlanewiseConv2D(2, 3, 3)],
        [layers.Rescaling([0.1, 0.2, 0.3], offset=[1.0, 2.0, 3.0]), PlanewiseConv2D(2, 3, 3)],
        [layers.Rescaling(0.01), scaled()],
        [layers.Rescaling(0.01), scaled(), layers.BatchNormalization(axis=3), layers.MaxPooling2D(2)],
        [layers.Rescaling(0.01), scaled(activation="gelu"), layers.MaxPooling2D(2), layers.Flatten(), layers.ReLU()],
        [layers.Rescaling(0.01), scaled(), layers.Flatten(), layers.Rescaling(0.5, offset=0.1)],
        [layers.Rescaling(0.01), scaled(), layers.SpatialDropout2D(0.5), layers.Flatten(), layers.Dense(4, "selu")],
        [layers.Rescaling(0.01), scaled(), layers.Flatten(), layers.Dense(4), layers.BatchNormalization(axis=1)],
    ],
    ids=lambda inner: ", ".join(type(layer).__name__ for layer in inner),
)
def test_layers_that_the_presets_lack_have_a_dense_form(inner):
    rule = PatchConfig(size=12)
    network = sequential(rule, *inner, layers.Flatten(), layers.Dense(1, activation="sigmoid"))
    stir(network, 3)
    grid = volume((4, 3, 2))
    expected = one_by_one(network, grid, rule)
    assert np.ptp(expected) > 100 * TOLERANCE  # the network tells voxels apart
    np.testing.assert_allclose(everywhere(dense.convert(network, rule), grid), expected, rtol=0, atol=TOLERANCE)


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
        (layers.Conv2D(6, (3, 2), groups=3, name="bad"), "plain `valid` convolution"),
        (layers.Conv2D(**GROUPED, activation="softmax", name="bad"), "its activation 'softmax' is not known"),
        (layers.Conv2D(**GROUPED, activation=keras.ops.cumsum, name="bad"), "its activation 'cumsum' is not known"),
        (layers.Activation("softmax", name="bad"), "its activation 'softmax' is not known to act on each value alone"),
        (layers.Activation("log_softmax", name="bad"), "its activation 'log_softmax' is not known"),
        (layers.Activation("sparsemax", name="bad"), "its activation 'sparsemax' is not known"),
        (layers.Softmax(name="bad"), "it has no dense form"),
        (layers.PReLU(name="bad"), "it has no dense form"),
        (layers.Dense(4, name="bad"), "it stands before Flatten"),
        (PlanewiseConv2D(2, 3, 1, name="bad"), "mixes the planes"),
        (layers.BatchNormalization(axis=1, name="bad"), "its axis is not that of the channels"),
        (layers.Normalization(axis=(1, 3), name="bad"), "it treats the samples of a patch differently"),
        (layers.Rescaling(np.ones((12, 12, 3)), name="bad"), "it treats the samples of a patch differently"),
        (layers.Normalization(mean=[1.0, 2, 3], variance=[1.0, 1, 1], invert=True, name="bad"), "undoes"),
        (layers.Flatten(data_format="channels_first", name="bad"), "its channels are the first axis"),
        (layers.Conv2D(**GROUPED, padding="same", name="bad"), "plain `valid` convolution"),
        (layers.Conv2D(**GROUPED, strides=2, name="bad"), "plain `valid` convolution"),
        (layers.Conv2D(**GROUPED, dilation_rate=2, name="bad"), "plain `valid` convolution"),
        (layers.MaxPooling2D(2, padding="same", name="bad"), "its strides are not its window"),
        (layers.MaxPooling2D(3, strides=1, name="bad"), "its strides are not its window"),
        (layers.AveragePooling2D((2, 3), name="bad"), "its window is not square"),
        (layers.MaxPooling2D(2, strides=(2, 1), name="bad"), "its strides are not its window"),
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


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.BatchNormalization(name="bad"), "between Flatten and the first Dense layer; put it before Flatten"),
        (layers.Activation("softmax", name="bad"), "its activation 'softmax' is not known"),
        (layers.Dense(4, activation="softmax", name="bad"), "its activation 'softmax' is not known"),
        (
            layers.Dense(4, activation=lambda sums: sums - sums[:1], name="bad"),
            "its activation '<lambda>' is not known",
        ),
    ],
)
def test_a_layer_without_dense_form_after_flatten_is_named(layer, reason):
    rule = PatchConfig(size=12)
    network = sequential(rule, PlanewiseConv2D(2, 3, 3), layers.Flatten(), layer, layers.Dense(1))
    with pytest.raises(NotDenseError, match=rf"layer 'bad' \({type(layer).__name__}\): .*{reason}"):
        dense.convert(network, rule)


@pytest.mark.parametrize(
    "layer", [PlanewiseConv2D(2, 3, 3, name="bad"), layers.Conv2D(6, 3, groups=3, name="bad")], ids=["ours", "Keras's"]
)
def test_a_convolution_of_other_towers_than_the_rules_is_named(layer):
    rule = PatchConfig(size=12, scales_mm=(0.0, 3.0))
    network = sequential(rule, layer, layers.Flatten(), layers.Dense(1))
    with pytest.raises(NotDenseError, match=r"layer 'bad' .*it keeps 3 groups of channels apart; a patch has 6"):
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


def test_a_network_of_several_outputs_is_refused():
    rule = PatchConfig(size=12)
    network = sequential(rule, PlanewiseConv2D(2, 3, 3), layers.Flatten(), layers.Dense(2, activation="softmax"))
    with pytest.raises(ValueError, match=r"one output a patch, \(1,\)\. Received: \(2,\)"):
        dense.convert(network, rule)


def test_a_volume_of_one_voxel_is_evaluated():
    rule = PatchConfig(size=12, scales_mm=(0.0, 4.0))
    network = model.build(ModelConfig(filters=(2,), dense=(3,)), rule)
    grid = volume((1, 1, 1))
    found = everywhere(dense.convert(network, rule), grid)
    np.testing.assert_allclose(found, one_by_one(network, grid, rule), rtol=0, atol=TOLERANCE)
