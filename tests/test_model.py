"""The network: its layers by hand, its weights at the start, its way through a file."""

import math

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest

from femur_tf import model
from femur_tf.config import PRESETS, ModelConfig, PatchConfig
from femur_tf.errors import DataError
from femur_tf.model import PlanewiseConv2D

TOLERANCE = 1e-5
"""Sums of float32 products in another order."""
RULE = PatchConfig(size=16)
SMALL = ModelConfig(filters=(4, 6), dense=(5,))


def planewise(filters=2, kernel_size=3, towers=3, **options):
    """Return a built layer on two channels a tower."""
    layer = PlanewiseConv2D(filters, kernel_size, towers, **options)
    layer.build((None, 8, 8, 2 * towers))
    return layer


def test_a_planewise_convolution_by_hand():
    layer = PlanewiseConv2D(1, 1, 2, bias=0.5)
    layer.build((None, 1, 1, 2))
    layer.kernel.assign(np.array([2.0, 10.0]).reshape(1, 1, 1, 2))
    found = layer(np.array([3.0, 4.0], np.float32).reshape(1, 1, 1, 2))
    assert np.ravel(found).tolist() == [6.5, 40.5]  # a kernel for each tower, 0.5 added to both


@pytest.mark.parametrize(
    ("network", "size", "sides"),
    [
        (ModelConfig(filters=(1, 1, 1)), 32, [15, 6, 2]),  # 32 -3+1-> 30 /2-> 15 -> 13 -> 6 -> 4 -> 2
        (ModelConfig(filters=(1, 1)), 10, [4, 1]),
        (ModelConfig(filters=(1,), kernel=5, pool=3), 12, [2]),  # 8 / 3, the rest is dropped
        (ModelConfig(filters=(1,), kernel=1, pool=1), 2, [2]),
    ],
)
def test_map_sizes_by_hand(network, size, sides):
    assert model.map_sizes(network, size) == sides
    built = model.build(network, PatchConfig(size=size))
    pooled = [layer.output.shape[1] for layer in built.layers if isinstance(layer, keras.layers.MaxPooling2D)]
    assert pooled == sides


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    preset = PRESETS[name]
    rule = preset.patch(PatchConfig(spacing_mm=(0.9, 5.2, 0.9), scales_mm=preset.scales_mm))
    network = model.build(preset.model, rule)
    assert isinstance(network, keras.Sequential)
    assert network.input_shape == (None, 32, 32, rule.channels)
    assert network.output_shape == (None, 1)
    assert network.layers[-1].dtype_policy.compute_dtype == "float32"


def test_the_paper_has_seven_layers_and_dropout_after_each_block():
    network = model.build(PRESETS["paper"].model, PatchConfig())
    kinds = [type(layer).__name__ for layer in network.layers]
    counted = [kind for kind in kinds if kind in ("PlanewiseConv2D", "MaxPooling2D", "Dense")]
    assert counted == ["PlanewiseConv2D", "MaxPooling2D"] * 3 + ["Dense"] * 2
    assert kinds.count("Dropout") == 5
    assert {layer.rate for layer in network.layers if isinstance(layer, keras.layers.Dropout)} == {0.5}


@pytest.mark.parametrize("one_by_one", [True, False])
@hypothesis.given(
    filters=st.integers(1, 4), kernel=st.integers(1, 3), towers=st.sampled_from([1, 3, 6]), inputs=st.integers(1, 3)
)
@hypothesis.settings(max_examples=8)
def test_a_planewise_convolution_is_a_grouped_convolution(one_by_one, filters, kernel, towers, inputs):
    images = np.random.default_rng(0).normal(size=(2, 6, 5, towers * inputs)).astype(np.float32)
    layer = PlanewiseConv2D(filters, kernel, towers, bias=0.3)
    oracle = keras.layers.Conv2D(towers * filters, kernel, groups=towers)
    layer.build(images.shape)
    oracle.build(images.shape)
    oracle.set_weights([layer.kernel.numpy(), layer.bias.numpy()])
    layer.one_by_one = one_by_one
    found = layer(images)
    np.testing.assert_allclose(found, oracle(images), rtol=0, atol=TOLERANCE)
    assert layer.compute_output_shape(images.shape) == found.shape


def test_towers_do_not_see_each_other(rng):
    layer = planewise()
    images = rng.normal(size=(1, 8, 8, 6)).astype(np.float32)
    changed = images.copy()
    changed[..., 2:4] += 1  # the second tower
    differs = (np.asarray(layer(images)) != np.asarray(layer(changed))).any(axis=(0, 1, 2))
    assert differs.tolist() == [False, False, True, True, False, False]


def test_biases_start_at_the_stated_value():
    network = model.build(SMALL, RULE)
    biases = [weight for weight in network.weights if weight.name == "bias"]
    assert len(biases) == 4
    for bias in biases:
        np.testing.assert_allclose(bias, 0.10, rtol=1e-6)


def test_kernels_start_within_the_glorot_limit_of_one_tower():
    layer = planewise(filters=64, towers=3)
    limit = math.sqrt(6 / (9 * 2 + 9 * 64))  # fans of one tower, not of all
    largest = np.abs(layer.kernel.numpy()).max()
    assert 0.99 * limit < largest <= limit


def test_l2_is_the_sum_of_squares_of_every_kernel():
    network = model.build(ModelConfig(filters=(4,), dense=(5,), l2=0.01), RULE)
    kernels = [weight.numpy() for weight in network.weights if weight.name == "kernel"]
    assert len(kernels) == 3
    assert float(sum(network.losses)) == pytest.approx(0.01 * sum((kernel**2).sum() for kernel in kernels), rel=1e-5)


def test_without_l2_nothing_is_penalised():
    assert model.build(ModelConfig(filters=(4,), dense=(5,), l2=0.0), RULE).losses == []


@pytest.mark.parametrize("fusion", ["late", "early"])
def test_batch_normalisation_stands_between_pooling_and_relu_and_has_the_bias(fusion):
    network = model.build(ModelConfig(filters=(4, 6), dense=(5,), batch_norm=True, fusion=fusion), RULE)
    kinds = [type(layer).__name__ for layer in network.layers]
    convolution = {"late": "PlanewiseConv2D", "early": "Conv2D"}[fusion]
    assert kinds[1:9] == [convolution, "MaxPooling2D", "BatchNormalization", "Activation"] * 2
    first = network.layers[3]
    assert {weight.name for weight in network.layers[1].weights} == {"kernel"}
    assert {weight.name for weight in first.weights} == {"beta", "moving_mean", "moving_variance"}
    np.testing.assert_allclose(first.beta, 0.10, rtol=1e-6)


def test_early_fusion_mixes_all_channels_with_as_many_filters():
    network = model.build(ModelConfig(filters=(4, 6), dense=(5,), fusion="early"), RULE)
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.kernel.shape for layer in convolutions] == [(3, 3, 3, 12), (3, 3, 12, 18)]


def with_centre(pooled=2, window=1, start=2):
    """Return a layer on maps of 6 x 6: their maxima, and beside them a window, through a ReLU."""
    layers = keras.Sequential([keras.layers.MaxPooling2D(pooled), keras.layers.Flatten()])
    return model.WithCentre(layers, keras.Sequential([keras.layers.Activation("relu")]), window, start)


def test_a_centre_by_hand():
    maps = np.arange(-20.0, 16.0, dtype=np.float32).reshape(1, 6, 6, 1)
    layer = with_centre(pooled=3, window=3, start=2)
    found = np.asarray(layer(maps))[0]
    assert found[:4].tolist() == [-6, -3, 12, 15]
    assert found[4:].tolist() == [0, 0, 0, 0, 1, 2, 6, 7, 8]
    assert layer.compute_output_shape(maps.shape) == (1, 13)


def test_the_centre_is_that_of_the_patch_and_keeps_clear_of_dropout():
    rule = PatchConfig(size=9)
    network = model.build(ModelConfig(filters=(4,), dense=(5,), batch_norm=True, centre=3), rule)
    assert [type(layer).__name__ for layer in network.layers[1:4]] == ["PlanewiseConv2D", "WithCentre", "Dense"]
    layer = network.layers[2]
    assert layer.start + 1 == 3  # of 7 samples, each the middle of three of the patch's nine
    assert isinstance(layer.pooled.layers[-1], keras.layers.Dropout)
    kinds = [type(inner).__name__ for inner in model.layers_of(network)]
    assert kinds.count("Dropout") == 2
    assert kinds.count("BatchNormalization") == 2
    ones = np.ones((1, 7, 7, 12), np.float32)
    found = np.asarray(layer(ones, training=True))[0]
    assert (found[: 3 * 3 * 12] == 0).any() and (found[3 * 3 * 12 :] > 0).all()


@pytest.mark.parametrize("centre", [7, 9])
def test_a_centre_larger_than_the_first_maps_is_refused(centre):
    with pytest.raises(DataError, match=rf"6 x 6, about the patch's. Received: model.centre={centre}"):
        model.build(ModelConfig(filters=(4,), centre=centre), PatchConfig(size=8))


@pytest.mark.parametrize("centre", [0, 3])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("fusion", ["late", "early"])
def test_a_network_comes_back_from_its_file(tmp_path, rng, fusion, batch_norm, centre):
    chosen = ModelConfig(filters=(4, 6), dense=(5,), batch_norm=batch_norm, fusion=fusion, centre=centre)
    network = model.build(chosen, RULE)
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    patch = rng.integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
    np.testing.assert_array_equal(network(patch), loaded(patch))
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in network.layers]


@pytest.mark.parametrize("bias", [0.2, None])
def test_a_layer_comes_back_from_its_config(bias):
    layer = planewise(filters=5, kernel_size=2, bias=bias, l2=0.1, name="first")
    again = PlanewiseConv2D.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.filters, again.kernel_size, again.towers, again.initial_bias, again.l2) == (5, 2, 3, bias, 0.1)
    assert again.name == "first"


def test_output_is_a_probability(rng):
    patch = rng.integers(0, 256, (64, 16, 16, 3)).astype(np.uint8)
    found = np.asarray(model.build(SMALL, RULE)(patch))
    assert (found.shape, found.dtype) == ((64, 1), np.float32)
    assert (found > 0).all() and (found < 1).all()


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (ModelConfig(filters=(8, 8, 8)), 16, r"block 3 of filters=\(8, 8, 8\), kernel=3, pool=2 leaves 0x0"),
        (ModelConfig(filters=(8,), kernel=9), 8, r"block 1 .* of a 8x8 patch\. Use fewer blocks"),
    ],
)
def test_a_network_too_deep_for_its_patch_is_refused(network, size, message):
    with pytest.raises(DataError, match=message):
        model.build(network, PatchConfig(size=size))


def test_channels_that_towers_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"divisible by towers=3\. Received: shape=\(None, 8, 8, 4\)"):
        PlanewiseConv2D(2, 3, 3).build((None, 8, 8, 4))


def test_a_network_without_hidden_layers_or_dropout_builds():
    network = model.build(ModelConfig(filters=(2,), dense=(), dropout_conv=0.3), RULE)
    kinds = [type(layer).__name__ for layer in network.layers]
    assert kinds.count("Dense") == 1
    assert kinds.count("Dropout") == 1
