"""The mean-field field: by hand, by its symmetries, and against plain loops over pairs of voxels."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from femur_tf.crf import CrfConfig, refine, window

TOLERANCE = 2e-5
"""Sums of float32 log-odds against float64."""
FLOOR = 1e-4
SPACING_MM = (1.0, 3.0, 1.5)
SMALL = CrfConfig(radius_mm=3.0, appearance_mm=2.0, doubt=0.0)
"""Reaches 3, 1 and 2 voxels; all voxels are updated."""


def log_odds(p):
    p = np.clip(p, FLOOR, 1 - FLOOR)
    return np.log(p / (1 - p))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def kernel(square_mm2, width_mm):
    return math.exp(-square_mm2 / (2 * width_mm**2))


def by_pairs(probability, grid, settings, *, spacing_mm):
    """Return the marginals as the source writes them, in float64: energies of both labels, one pair at a time."""
    shape, s = probability.shape, settings
    reach = [range(-math.ceil(s.radius_mm / mm), math.ceil(s.radius_mm / mm) + 1) for mm in spacing_mm]
    squares = {
        shift: sum((n * mm) ** 2 for n, mm in zip(shift, spacing_mm, strict=True))
        for shift in itertools.product(*reach)
    }
    near = {shift: square for shift, square in squares.items() if 0 < square <= s.radius_mm**2 * (1 + 1e-9)}
    sums = [sum(kernel(square, width) for square in near.values()) for width in (s.smoothness_mm, s.appearance_mm)]
    doubtful = (probability >= s.doubt) & (probability <= 1 - s.doubt)
    odds = log_odds(probability.astype(np.float64)) - log_odds(s.neutral)
    bone, first = sigmoid(odds), -np.stack([np.zeros(shape), odds])  # (2, X, Y, Z) energies of background and bone
    for _ in range(s.iterations):
        energy = first.copy()
        for i in map(tuple, np.argwhere(doubtful)):
            for shift, square in near.items():
                j = tuple(a + n for a, n in zip(i, shift, strict=True))
                if not all(0 <= a < n for a, n in zip(j, shape, strict=True)):
                    continue
                grey = (float(grid[i]) - float(grid[j])) ** 2 / (2 * s.appearance_grey**2)
                weight = s.smoothness_weight * kernel(square, s.smoothness_mm) / sums[0]
                weight += s.appearance_weight * kernel(square, s.appearance_mm) / sums[1] * math.exp(-grey)
                energy[(0, *i)] += weight * bone[j]
                energy[(1, *i)] += weight * (1 - bone[j])
        bone[doubtful] = (np.exp(-energy[1]) / (np.exp(-energy[0]) + np.exp(-energy[1])))[doubtful]
    result = probability.astype(np.float64)
    odds = np.log(bone / (1 - bone)) + log_odds(s.neutral)
    result[doubtful] = sigmoid(odds)[doubtful]
    return result


def test_a_window_holds_what_is_within_its_radius():
    shifts = {n.shift for n in window(dataclasses.replace(SMALL, radius_mm=1.0), (1.0, 3.0, 1.0))}
    assert shifts == {(1, 0, 0), (-1, 0, 0), (0, 0, 1), (0, 0, -1)}  # exactly 1 mm is within
    assert window(dataclasses.replace(SMALL, radius_mm=0.9), (1.0, 3.0, 1.0)) == ()


def test_the_weights_of_a_window_are_those_of_the_settings():
    settings = CrfConfig(smoothness_weight=3.0, appearance_weight=0.5)
    neighbours = window(settings, SPACING_MM)
    assert sum(n.smoothness for n in neighbours) == pytest.approx(3.0)
    assert sum(n.appearance for n in neighbours) == pytest.approx(0.5)
    assert max(neighbours, key=lambda n: n.smoothness).shift in {(1, 0, 0), (-1, 0, 0)}  # the nearest


def test_two_voxels_convince_each_other_by_hand():
    probability = np.array([[[0.8, 0.6]]], np.float32)
    settings = CrfConfig(smoothness_weight=2.0, appearance_weight=0.0, radius_mm=1.0, iterations=1, doubt=0.0)
    found = refine(probability, np.zeros((1, 1, 2), np.uint8), settings, spacing_mm=(2.0, 2.0, 1.0))
    # The window's two places share the weight of 2; one lies beyond the volume. 2 q - 1 is .6 and .2.
    expected = [[[sigmoid(log_odds(0.8) + 1.0 * 0.2), sigmoid(log_odds(0.6) + 1.0 * 0.6)]]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_edge_in_the_image_keeps_voxels_from_convincing_each_other():
    probability = np.array([[[0.9, 0.9, 0.45, 0.9, 0.9]]], np.float32)
    settings = CrfConfig(0.0, appearance_weight=6.0, appearance_grey=10.0, radius_mm=1.0, iterations=1)
    flat, edged = np.zeros((1, 1, 5), np.uint8), np.array([[[0, 0, 200, 0, 0]]], np.uint8)
    assert refine(probability, flat, settings, spacing_mm=(2.0, 2.0, 1.0))[0, 0, 2] > 0.9
    assert refine(probability, edged, settings, spacing_mm=(2.0, 2.0, 1.0))[0, 0, 2] == pytest.approx(0.45, abs=1e-6)


def test_a_speck_goes_and_a_pinhole_closes():
    probability = np.full((9, 9, 9), 0.1, np.float32)
    probability[4:, :, :] = 0.9
    probability[1, 4, 4], probability[6, 4, 4] = 0.7, 0.3
    found = refine(probability, np.zeros(probability.shape, np.uint8), SMALL, spacing_mm=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(found >= 0.5, np.indices(probability.shape)[0] >= 4)


@pytest.mark.parametrize(
    "settings", [CrfConfig(iterations=0), CrfConfig(0.0, appearance_weight=0.0), CrfConfig(radius_mm=0.5)]
)
def test_without_a_message_the_map_stays(rng, settings):
    probability = rng.random((4, 5, 6), np.float32)
    grid = rng.integers(0, 256, probability.shape, np.uint8)
    found = refine(probability, grid, settings, spacing_mm=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(found, probability)
    assert found is not probability


@pytest.mark.parametrize("value", [0.2, 0.5, 0.9])
def test_a_uniform_volume_follows_one_number_in_its_middle(value):
    settings = dataclasses.replace(SMALL, smoothness_weight=0.7, appearance_weight=0.4, iterations=1)
    probability = np.full((9, 5, 9), value, np.float32)
    found = refine(probability, np.full(probability.shape, 50, np.uint8), settings, spacing_mm=SPACING_MM)
    assert found[4, 2, 4] == pytest.approx(sigmoid(log_odds(value) + 1.1 * (2 * value - 1)), abs=1e-5)


@pytest.mark.slow
@hypothesis.given(seed=st.integers(0, 99), axis=st.integers(0, 2), neutral=st.sampled_from([0.5, 0.7]))
@hypothesis.settings(max_examples=8)
def test_mirrored_in_is_mirrored_out(seed, axis, neutral):
    rng = np.random.default_rng(seed)
    probability, grid = rng.random((5, 4, 6), np.float32), rng.integers(0, 256, (5, 4, 6), np.uint8)
    settings = dataclasses.replace(SMALL, neutral=neutral)
    found = refine(np.flip(probability, axis), np.flip(grid, axis), settings, spacing_mm=SPACING_MM)
    np.testing.assert_allclose(
        np.flip(found, axis), refine(probability, grid, settings, spacing_mm=SPACING_MM), atol=TOLERANCE
    )


def test_bone_and_background_are_treated_alike(rng):
    probability, grid = rng.random((5, 4, 6), np.float32), rng.integers(0, 256, (5, 4, 6), np.uint8)
    found = refine(probability, grid, SMALL, spacing_mm=SPACING_MM)
    other = refine(1 - probability, grid, SMALL, spacing_mm=SPACING_MM)
    np.testing.assert_allclose(found, 1 - other, atol=TOLERANCE)


@hypothesis.given(
    seed=st.integers(0, 10**6),
    weights=st.tuples(st.floats(0, 4), st.floats(0, 4)),
    widths=st.tuples(st.floats(0.3, 5), st.floats(0.3, 5), st.floats(2, 100)),
    radius_mm=st.floats(1.0, 3.2),
    neutral=st.floats(0.2, 0.8),
    doubt=st.sampled_from([0.0, 0.2]),
)
@hypothesis.settings(max_examples=12)
def test_equal_to_loops_over_pairs(seed, weights, widths, radius_mm, neutral, doubt):
    rng = np.random.default_rng(seed)
    probability, grid = rng.random((5, 4, 6), np.float32), rng.integers(0, 256, (5, 4, 6), np.uint8)
    settings = CrfConfig(
        weights[0], widths[0], weights[1], widths[1], widths[2], radius_mm, 3, neutral=neutral, doubt=doubt
    )
    found = refine(probability, grid, settings, spacing_mm=SPACING_MM)
    assert found.dtype == np.float32
    expected = by_pairs(probability, grid, settings, spacing_mm=SPACING_MM)
    moved = 0.0 if settings.is_identity else FLOOR
    np.testing.assert_allclose(found, expected, atol=TOLERANCE + moved)


@pytest.mark.slow
def test_the_order_of_a_map_in_memory_changes_nothing(rng):
    probability, grid = rng.uniform(0.3, 0.7, (5, 4, 6)).astype(np.float32), rng.integers(0, 255, (5, 4, 6), np.uint8)
    found = refine(np.asfortranarray(probability), grid, CrfConfig(), spacing_mm=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(found, refine(probability, grid, CrfConfig(), spacing_mm=(1.0, 1.0, 1.0)))


def test_what_is_nearly_certain_keeps_its_probability(rng):
    probability = rng.random((10, 6, 10), np.float32)
    found = refine(probability, np.zeros(probability.shape, np.uint8), CrfConfig(doubt=0.2), spacing_mm=SPACING_MM)
    certain = (probability < 0.2) | (probability > 0.8)
    np.testing.assert_array_equal(found[certain], probability[certain])
    assert (found[~certain] != probability[~certain]).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("smoothness_weight", -1.0),
        ("appearance_weight", 101.0),
        ("smoothness_mm", 0.0),
        ("appearance_mm", float("nan")),
        ("appearance_grey", 0.0),
        ("radius_mm", 51.0),
        ("iterations", -1),
        ("neutral", 1.0),
        ("doubt", 0.5),
    ],
)
def test_a_value_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"CrfConfig\.{name}: expected .* Received: {name}="):
        CrfConfig(**{name: value})


@pytest.mark.parametrize(
    ("probability", "grid", "words"),
    [
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 3), np.uint8), r"one shape.*\(2, 2, 2\) and \(2, 2, 3\)"),
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint8), r"\(X, Y, Z\)"),
        (np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), "uint8.*float64"),
        (np.full((2, 2, 2), 1.5), np.zeros((2, 2, 2), np.uint8), "1.5 to 1.5"),
        (np.full((2, 2, 2), np.nan), np.zeros((2, 2, 2), np.uint8), "nan"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(probability, grid, words):
    with pytest.raises(ValueError, match=words):
        refine(probability, grid, CrfConfig(), spacing_mm=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_certain_volumes_stay_certain(value):
    probability = np.full((4, 3, 4), value, np.float16)
    found = refine(probability, np.zeros(probability.shape, np.uint8), CrfConfig(), spacing_mm=SPACING_MM)
    np.testing.assert_allclose(found, value, atol=FLOOR)


@pytest.mark.slow
def test_one_voxel_has_nobody_to_listen_to():
    found = refine(
        np.full((1, 1, 1), 0.7, np.float32), np.zeros((1, 1, 1), np.uint8), CrfConfig(), spacing_mm=SPACING_MM
    )
    assert found.item() == pytest.approx(0.7, abs=1e-6)


@pytest.mark.slow
def test_time_and_memory_are_those_of_the_voxels_in_doubt(rng):
    probability = np.zeros((384, 47, 384), np.float32)
    probability[100:200, 10:25, 50:150] = rng.random((100, 15, 100), np.float32)
    grid = rng.integers(0, 256, probability.shape, np.uint8)
    spacing_mm = (0.911, 5.2, 0.911)
    refine(probability[:9, :9, :9], grid[:9, :9, :9], CrfConfig(doubt=0.0), spacing_mm=spacing_mm)  # starts Keras
    tracemalloc.start()
    start = time.process_time()
    refine(probability, grid, CrfConfig(iterations=2), spacing_mm=spacing_mm)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * probability.nbytes  # NumPy's part; TensorFlow has the padded map and grid
    assert seconds < 20  # of CPU; three or four are usual
