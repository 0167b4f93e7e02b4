"""femur_tf.calibration: what a probability is worth, and the slope and intercept that mend it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from femur_tf import calibration, metrics
from femur_tf.calibration import Calibration, Reliability

HALF = 1e-3
"""A float16 probability is known to five parts in ten thousand of itself."""
FITTED = 1e-4
"""Two optimisers agree on a smooth maximum this far."""


def counts_of(probability, bone) -> metrics.VoxelCounts:
    counts = metrics.VoxelCounts()
    counts.add(np.asarray(probability, np.float16), np.asarray(bone, bool))
    return counts


def drawn(slope: float, intercept: float, voxels: int = 200_000, seed: int = 2) -> metrics.VoxelCounts:
    """Voxels whose true probability is the one stated, calibrated by slope and intercept."""
    rng = np.random.default_rng(seed)
    stated = 1 / (1 + np.exp(-rng.normal(-1, 2, voxels)))
    true = calibration.apply(stated, Calibration(slope, intercept))
    return counts_of(stated, rng.random(voxels) < true)


@pytest.mark.parametrize(
    ("bins", "expected"),
    [
        (1, [(0.5, 0.6, 5)]),
        (2, [(0.125, 0.0, 2), (0.75, 1.0, 3)]),  # 0.5 belongs to the upper bin, 1 to the last
        (4, [(0.0, 0.0, 1), (0.25, 0.0, 1), (0.5, 1.0, 1), (0.875, 1.0, 2)]),
    ],
)
def test_a_table_has_mean_probability_share_of_bone_and_voxels(bins, expected):
    counts = counts_of([0, 0.25, 0.5, 0.75, 1], [0, 0, 1, 1, 1])
    table = calibration.reliability(counts, bins)
    assert list(zip(table.probability, table.bone, table.voxels, strict=True)) == expected


@pytest.mark.parametrize(
    ("probability", "bone", "expected_error", "brier"),
    [
        ([0, 1], [0, 1], 0.0, 0.0),
        ([1, 0], [0, 1], 1.0, 1.0),
        ([0.5, 0.5], [0, 1], 0.0, 0.25),  # right on average, and no use
        ([0.25, 0.25], [0, 1], 0.25, (0.0625 + 0.5625) / 2),
    ],
)
def test_errors_by_hand(probability, bone, expected_error, brier):
    counts = counts_of(probability, bone)
    assert calibration.expected_error(calibration.reliability(counts)) == pytest.approx(expected_error)
    assert calibration.brier(counts) == pytest.approx(brier)


def test_the_expected_error_weighs_bins_by_their_voxels():
    table = Reliability(np.array([0.2, 0.9]), np.array([0.1, 0.5]), np.array([3, 1]))
    assert calibration.expected_error(table) == pytest.approx((3 * 0.1 + 1 * 0.4) / 4)


def test_doubtful_voxels_lie_between_the_limits_both_included():
    kept = calibration.doubtful(counts_of([0.25, 0.5, 0.75, 1], [0, 1, 0, 1]), 0.25, 0.75)
    assert (kept.positives.sum(), kept.negatives.sum()) == (1, 2)


@pytest.mark.parametrize(
    ("settings", "probability", "expected"),
    [
        (Calibration(), 0.3, 0.3),
        (Calibration(2, 0), 0.75, 0.9),  # odds of 3 squared
        (Calibration(1, math.log(2)), 0.5, 2 / 3),  # odds doubled
        (Calibration(0.5, -3), 0.0, 0.0),
        (Calibration(0.5, -3), 1.0, 1.0),
    ],
)
def test_calibrated_by_hand(settings, probability, expected):
    found = calibration.apply(np.array([probability], np.float32), settings)
    assert found.dtype == np.float32
    assert found[0] == pytest.approx(expected, abs=1e-6)


@given(st.floats(0.1, 5), st.floats(-5, 5))
def test_calibration_keeps_the_order(slope, intercept):
    found = calibration.apply(np.linspace(0, 1, 101), Calibration(slope, intercept))
    assert (np.diff(found) >= 0).all()


@pytest.mark.slow
@given(st.floats(0.5, 2), st.floats(-2, 2))
def test_the_slope_and_the_intercept_are_found_again(slope, intercept):
    found = calibration.fit(drawn(slope, intercept))
    assert found.slope == pytest.approx(slope, rel=0.1)
    assert found.intercept == pytest.approx(intercept, abs=0.1)


@given(st.floats(0.5, 2), st.floats(-2, 2))
def test_what_was_calibrated_needs_no_calibration(slope, intercept):
    counts = drawn(slope, intercept)
    settings = calibration.fit(counts)
    after = calibration.mapped(counts, settings)
    again = calibration.fit(after)
    assert again.slope == pytest.approx(1, abs=0.02)
    assert again.intercept == pytest.approx(0, abs=0.02)
    assert calibration.log_loss(after) <= calibration.log_loss(counts) + HALF
    assert calibration.log_loss(after) == pytest.approx(calibration.log_loss(counts, settings), abs=HALF)
    assert calibration.expected_error(calibration.reliability(after)) < 0.02


def test_mapped_counts_hold_every_voxel_and_the_same_ranking():
    counts = drawn(1.5, -1)
    after = calibration.mapped(counts, Calibration(1.5, -1))
    assert (after.positives.sum(), after.negatives.sum()) == (counts.positives.sum(), counts.negatives.sum())
    assert metrics.auc(after) == pytest.approx(metrics.auc(counts), abs=HALF)


def test_a_calibration_is_undone_by_its_inverse():
    settings = Calibration(0.8, -1.2)
    p = np.linspace(0.01, 0.99, 9)
    there = calibration.apply(p, settings)
    np.testing.assert_allclose(calibration.apply(there, calibration.inverse(settings)), p)


def test_a_cutoff_moves_with_the_map():
    counts, settings = drawn(1, -2), Calibration(1, -2)
    before, after = metrics.best_dice(counts), metrics.best_dice(calibration.mapped(counts, settings))
    assert after == pytest.approx(calibration.apply(np.array([before]), settings)[0], abs=HALF)


def test_the_fit_is_that_of_logistic_regression(rng):
    probability = rng.random(2000).astype(np.float16)
    bone = rng.random(2000) < probability**2
    found = calibration.fit(counts_of(probability, bone))
    p = probability.astype(float)
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(np.log(p / (1 - p))[:, None], bone)
    assert found.slope == pytest.approx(oracle.coef_[0, 0], abs=FITTED)
    assert found.intercept == pytest.approx(oracle.intercept_[0], abs=FITTED)


@pytest.mark.parametrize("bone", [[0, 0], [1, 1]])
def test_one_class_cannot_be_calibrated(bone):
    with pytest.raises(ValueError, match="expected voxels of bone and of background"):
        calibration.fit(counts_of([0.2, 0.8], bone))


def test_probabilities_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match="higher where there is bone"):
        calibration.fit(counts_of([0.2, 0.2, 0.8, 0.8, 0.5], [1, 1, 0, 0, 1]))


@pytest.mark.parametrize("values", [(0.0, 0.0), (-1.0, 0.0), (1.0, math.inf), (math.nan, 0.0)])
def test_a_map_that_does_not_grow_is_refused(values):
    with pytest.raises(ValueError, match="slope above 0 and a finite intercept"):
        Calibration(*values)


def test_a_table_has_a_bin():
    with pytest.raises(ValueError, match="at least one bin"):
        calibration.reliability(metrics.VoxelCounts(), 0)


def test_no_voxels_give_nan():
    counts = metrics.VoxelCounts()
    assert math.isnan(calibration.expected_error(calibration.reliability(counts)))
    assert math.isnan(calibration.brier(counts))
    assert math.isnan(calibration.log_loss(counts))


def test_sure_voxels_are_fitted_too():
    """Probabilities of exactly 0 and 1 have a finite stand-in."""
    counts = counts_of([0, 0, 0, 1, 1, 1, 0.5, 0.5], [0, 0, 1, 1, 1, 0, 0, 1])
    found = calibration.fit(counts)
    assert 0 < found.slope < 1
    assert math.isfinite(found.intercept)
