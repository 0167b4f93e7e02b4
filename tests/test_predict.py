"""Probability maps: exact, coarse to fine, patch by patch; and the comparison with patches on demand."""

import re

import bright
import keras
import numpy as np
import pytest
from keras import layers
from networks import RULE, SHAPE, blocks_of, everywhere, one_by_one, spread, volume, voxels

from femur_tf import dense, image_io, memory, predict, study
from femur_tf import volume as volumes
from femur_tf.config import DataConfig, PatchConfig, PredictConfig
from femur_tf.errors import DataError
from femur_tf.evaluator import Probe

HALF_TOLERANCE = 2**-11
"""A float16 in [0, 1] is within 2**-12 of what was rounded; the rest is the order of sums."""
BFLOAT16_TOLERANCE = 0.02 + HALF_TOLERANCE
WIDE = (37, 11, 30)
"""Large enough for several samples of a stride of 4 along each axis, which divides none."""
LARGE_MB = 10**6
"""No limit to speak of."""
FAST = PredictConfig(fast=True, max_memory=LARGE_MB, fast_threshold=0.3)


def smooth(shape=WIDE):
    """Return a uint8 volume with a bright ball, dark elsewhere, so that probabilities are high in one place."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    distance = sum(((axis - n / 3) / 8) ** 2 for axis, n in zip(axes, shape, strict=True))
    noise = np.random.default_rng(1).normal(0, 4, shape)
    return np.clip(30 + 200 * np.exp(-distance) + noise, 0, 255).astype(np.uint8)


def doubtful(samples, threshold):
    """Return which samples of a first pass, or their neighbours, reach the threshold: one by one."""
    padded = np.pad(samples, 1, constant_values=0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
    return windows.max(axis=(3, 4, 5)) >= threshold


def test_the_map_is_the_network_at_every_voxel():
    network, grid = spread(), volume()
    found = predict.Predictor(network, RULE).probability_map(grid)
    expected = one_by_one(network, grid, RULE)
    assert (found.shape, found.dtype) == (SHAPE, np.float16)
    assert np.ptp(expected) > 100 * HALF_TOLERANCE  # the network tells voxels apart
    np.testing.assert_allclose(found, expected, rtol=0, atol=HALF_TOLERANCE)


@pytest.mark.parametrize("block", [(4, 2, 4), (4, 4, 8), (8, 2, 4)])
def test_blocks_change_nothing(monkeypatch, block):
    network, grid = spread(), volume()
    monkeypatch.setattr(memory, "plan_blocks", lambda network, *_, **__: blocks_of(network, block))
    found = predict.Predictor(network, RULE).probability_map(grid)
    np.testing.assert_allclose(found, one_by_one(network, grid, RULE), rtol=0, atol=HALF_TOLERANCE)


def test_a_map_in_bfloat16_is_near(monkeypatch):
    network, grid = spread(), volume()
    found = predict.Predictor(network, RULE).probability_map(
        grid, PredictConfig(precision="bfloat16", max_memory=LARGE_MB)
    )
    np.testing.assert_allclose(found, one_by_one(network, grid, RULE), rtol=0, atol=BFLOAT16_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("block", [(64, 64, 64), (12, 4, 8)])
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7])
def test_a_fast_map_is_exact_near_doubt_and_elsewhere_that_of_a_sample_below_the_threshold(
    monkeypatch, block, threshold
):
    monkeypatch.setattr(memory, "plan_blocks", lambda network, *_, **__: blocks_of(network, block))
    monkeypatch.setattr(bright, "SLOPE", 10.0)  # so that probabilities fall off slowly around the ball
    network, grid = dense.convert(bright.network(), bright.RULE), smooth()
    probe = Probe(voxels(WIDE))
    found = predict.dense_map(network, grid, PredictConfig(fast=True, fast_threshold=threshold), probe)
    exact, evaluated = everywhere(network, grid), probe.seen.reshape(WIDE)
    index = np.ix_(*(np.arange(n) // network.stride for n in WIDE))
    samples = exact[:: network.stride, :: network.stride, :: network.stride]
    doubt = doubtful(samples, threshold)[index]
    assert 0.02 < doubt.mean() <= evaluated.mean() < 0.9
    assert evaluated[doubt].all()
    np.testing.assert_allclose(found[evaluated], exact[evaluated], rtol=0, atol=HALF_TOLERANCE)
    np.testing.assert_allclose(found[~evaluated], samples[index][~evaluated], rtol=0, atol=HALF_TOLERANCE)
    assert found[~evaluated].max() < threshold
    assert np.abs(found - exact).max() > 4 * HALF_TOLERANCE  # what was left out is not exact


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.98, 0.998])
@pytest.mark.parametrize("block", [(64, 64, 64), (4, 2, 4), (8, 4, 4)])
def test_a_fast_map_is_exact_at_doubt_whether_or_not_blocks_are_multiples_of_the_stride(monkeypatch, block, share):
    monkeypatch.setattr(memory, "plan_blocks", lambda network, *_, **__: blocks_of(network, block))
    network, grid = dense.convert(spread(filters=(3,), pool=3), RULE), volume((29, 10, 26))
    exact, index = everywhere(network, grid), np.ix_(*(np.arange(n) // 3 for n in (29, 10, 26)))
    threshold = float(np.quantile(exact, share))
    found = predict.dense_map(network, grid, PredictConfig(fast=True, fast_threshold=threshold))
    doubt = doubtful(exact[::3, ::3, ::3], threshold + HALF_TOLERANCE)[index]
    assert network.stride == 3
    assert doubt.any() and not doubt.all()
    np.testing.assert_allclose(found[doubt], exact[doubt], rtol=0, atol=HALF_TOLERANCE)
    same = np.abs(found - exact) <= HALF_TOLERANCE
    assert (same | (found < threshold)).all()


def test_a_fast_map_without_doubt_is_that_of_the_samples():
    network, grid = spread(), volume(WIDE)
    options = PredictConfig(fast=True, fast_threshold=0.9999, max_memory=LARGE_MB)
    found = predict.Predictor(network, RULE).probability_map(grid, options)
    samples = one_by_one(network, grid, RULE)[::4, ::4, ::4]
    assert samples.max() < 0.9999
    expected = samples.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: WIDE[0], : WIDE[1], : WIDE[2]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=HALF_TOLERANCE)


@pytest.mark.slow
def test_a_fast_map_leaves_out_nothing_along_an_axis_of_wide_spacing():
    rule = PatchConfig(size=12, spacing_mm=(1.0, 2.6, 1.0), scales_mm=(0.0, 4.0))  # 4 x 2.6 mm are over 10 mm
    network, grid = spread(rule), volume(WIDE)
    options = PredictConfig(fast=True, fast_threshold=0.9999, max_memory=LARGE_MB)
    found = predict.Predictor(network, rule).probability_map(grid, options)
    expected = one_by_one(network, grid, rule)[::4, :, ::4].repeat(4, 0).repeat(4, 2)[: WIDE[0], :, : WIDE[2]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=HALF_TOLERANCE)


@pytest.mark.parametrize(
    "rule",
    [
        PatchConfig(size=12, scales_mm=(3.0,)),  # no tower at every voxel
        PatchConfig(size=12, spacing_mm=(3.0, 3.0, 3.0)),  # samples would lie 12 mm apart
    ],
)
def test_a_fast_map_is_exact_where_nothing_may_be_left_out(rule):
    network, grid = spread(rule), volume((9, 8, 7))
    found = predict.Predictor(network, rule).probability_map(grid, FAST)
    np.testing.assert_allclose(found, one_by_one(network, grid, rule), rtol=0, atol=HALF_TOLERANCE)


def test_verification_says_the_largest_difference(capsys):
    predict.Predictor(spread(), RULE).probability_map(volume(), verify=30)
    shown = capsys.readouterr().out
    difference = re.search(r"Largest difference from patches at 30 random voxels: (\S+) \(float32\)", shown)
    assert float(difference[1]) < 1e-5  # of unrounded probabilities: a float16 would give over 1e-4


def test_verification_of_a_fast_map_counts_the_voxels_that_were_evaluated(capsys):
    predict.Predictor(bright.network(), bright.RULE).probability_map(smooth(), FAST, verify=200)
    count = re.search(r"at (\d+) random voxels", capsys.readouterr().out)
    assert 0 < int(count[1]) < 200


@pytest.mark.slow
def test_verification_draws_other_voxels_each_time(monkeypatch):
    probes = []
    draw = Probe.draw.__func__
    monkeypatch.setattr(Probe, "draw", classmethod(lambda cls, *a: probes.append(draw(cls, *a)) or probes[-1]))
    for _ in range(2):
        predict.Predictor(spread(), RULE).probability_map(volume(), verify=30)
    assert (probes[0].centres != probes[1].centres).any()


def test_verification_refuses_a_network_that_gives_no_number():
    model = spread()
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel, bias * np.nan])
    with pytest.raises(DataError, match=r"--verify: expected a difference of at most.*Received: nan"):
        predict.Predictor(model, RULE).probability_map(volume(), verify=30)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_verification_finds_a_weight_that_was_tampered_with(monkeypatch, precision):
    convert = dense.convert

    def tampered(model, *arguments):
        network = convert(model, *arguments)
        kernel, bias = model.layers[-1].get_weights()
        model.layers[-1].set_weights([kernel, bias + 0.5])
        return network

    monkeypatch.setattr(predict, "convert", tampered)
    options = PredictConfig(precision=precision, max_memory=LARGE_MB)
    with pytest.raises(DataError, match=rf"--verify: expected a difference of at most .* in {precision}\. Received: 0"):
        predict.Predictor(spread(), RULE).probability_map(volume(), options, verify=20)


def test_a_network_without_dense_form_is_evaluated_patch_by_patch_with_a_warning(capsys):
    network, grid = spread(fusion="early"), volume()
    found = predict.Predictor(network, RULE).probability_map(grid)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, one_by_one(network, grid, RULE), rtol=0, atol=HALF_TOLERANCE)
    shown = capsys.readouterr().err
    assert "early fusion" in shown
    assert "Going on patch by patch" in shown
    assert "Without effect" not in shown


@pytest.mark.parametrize(
    ("options", "verify", "flags"),
    [
        (predict.DEFAULT, 30, "--verify"),
        (PredictConfig(fast=True), 0, "--fast"),
        (PredictConfig(precision="bfloat16", max_memory=1), 5, "--verify, --precision, --max-memory"),
        (PredictConfig(body_only=True, fast_threshold=0.2), 0, "--body-only, --fast-threshold"),
    ],
)
def test_patch_by_patch_what_was_asked_for_in_vain_is_named_once(capsys, options, verify, flags):
    predict.Predictor(spread(fusion="early"), RULE).probability_map(volume(), options, verify=verify)
    shown = capsys.readouterr().err
    assert shown.count("warning:") == 1
    assert f"Without effect then: {flags}." in shown


def test_a_model_that_is_no_chain_has_no_dense_form():
    shared = layers.Dense(8, activation="relu")
    network = spread()
    inputs = keras.Input(network.input_shape[1:], dtype="uint8")
    hidden = shared(layers.Dense(8)(layers.Flatten()(layers.Rescaling(1 / 255)(inputs))))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(shared(hidden)))
    with pytest.raises(dense.NotDenseError, match=r"Expected a keras\.Sequential, .* Received: Functional"):
        dense.convert(model, RULE)


def test_a_network_of_logits_is_refused():
    network = spread()
    network.layers[-1].activation = keras.activations.linear
    with pytest.raises(ValueError, match=r"expected a last layer with a sigmoid\. Received: layer"):
        predict.Predictor(network, RULE)


def test_a_network_on_other_patches_is_refused():
    with pytest.raises(ValueError, match=r"patches of shape \(12, 12, 3\)\. Received: \(12, 12, 6\)"):
        predict.Predictor(spread(), PatchConfig(size=12)).probability_map(volume())


def test_too_little_memory_is_refused_before_anything_is_evaluated():
    with pytest.raises(DataError, match=r"--max-memory: expected at least \d+ MB .*7 x 5 x 6.* Received: 1 MB"):
        predict.Predictor(spread(), RULE).probability_map(volume(), PredictConfig(max_memory=1))


@pytest.mark.parametrize("options", [predict.DEFAULT, FAST])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 2)])
def test_volumes_thinner_than_a_patch_are_evaluated(shape, options):
    network, grid = spread(), volume(shape)
    found = predict.Predictor(network, RULE).probability_map(grid, options)
    assert (found.shape, found.dtype) == (shape, np.float16)
    if not options.fast:
        np.testing.assert_allclose(found, one_by_one(network, grid, RULE), rtol=0, atol=HALF_TOLERANCE)


def test_a_constant_volume_gives_one_value():
    found = predict.Predictor(spread(), RULE).probability_map(np.full(SHAPE, 9, np.uint8))
    assert np.ptp(found) <= HALF_TOLERANCE


def test_planes_without_body_are_found_by_hand():
    grid = np.zeros((10, 6, 8), np.uint8)
    grid[2:7, 1:4, 3:] = predict.BODY_GREY
    assert predict.body_box(grid) == ((2, 7), (1, 4), (3, 8))


def test_a_volume_without_body_is_evaluated_whole():
    assert predict.body_box(np.zeros((3, 4, 5), np.uint8)) == ((0, 3), (0, 4), (0, 5))


def test_a_map_of_the_body_alone_is_exact_there_and_zero_elsewhere():
    grid = volume((14, 6, 9))
    grid[:4], grid[13:] = 0, 0
    network = spread()
    whole = predict.Predictor(network, RULE).probability_map(grid)
    found = predict.Predictor(network, RULE).probability_map(grid, PredictConfig(body_only=True))
    (start, stop), *_ = predict.body_box(grid)
    assert (start, stop) == (4, 13)
    np.testing.assert_allclose(found[4:13], whole[4:13], rtol=0, atol=HALF_TOLERANCE)
    assert not found[:4].any()


@pytest.mark.slow
def test_leaving_out_air_loses_no_femur_of_the_real_cases(hip_mri):
    for image in sorted((hip_mri / "images").iterdir()):
        scan = image_io.read_image(image)
        mask = image_io.read_mask(hip_mri / "masks" / image.name, like=scan, label=None)
        data = DataConfig(patch=PatchConfig(spacing_mm=volumes.canonical(scan.volume).spacing_mm))
        working = study.prepare(scan.volume, data)
        femur = volumes.canonical(volumes.Volume(mask, scan.volume.affine)).data
        inside = tuple(slice(start, stop) for start, stop in predict.body_box(working.data))
        assert femur[inside].sum() == femur.sum(), image.name


def test_the_dense_form_is_made_once_for_all_volumes(caplog):
    network = predict.Predictor(spread(), RULE)
    for length in range(20, 28):
        network.probability_map(np.full((length, 14, 16), 9, np.uint8))
    assert network.dense("float32") is network.dense("float32")
    assert network.dense("float32") is not network.dense("bfloat16")
    assert "retracing" not in caplog.text
