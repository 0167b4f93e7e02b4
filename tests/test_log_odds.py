"""Probabilities as log-odds."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from femur_tf import log_odds


def test_one_half_is_zero_and_certainties_are_opposite():
    low, middle, high = log_odds.of(np.array([0.0, 0.5, 1.0]))
    assert middle == 0
    assert low == pytest.approx(-np.log(2**11 - 1), rel=1e-4)
    assert high == pytest.approx(-low, rel=1e-4)


@hypothesis.given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9))
def test_there_and_back(values):
    probability = np.array(values, np.float32)
    found = log_odds.back(log_odds.of(probability))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, probability, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_certainties_come_back_exactly_and_shape_stays(dtype):
    probability = np.array([[0.0, 1.0, 0.0]], dtype)
    found = log_odds.back(log_odds.of(probability))
    assert found.shape == (1, 3)
    np.testing.assert_allclose(found, probability, atol=1e-6)
    assert found.min() >= 0
    assert found.max() <= 1


def test_order_is_kept():
    probability = np.linspace(0, 1, 10_001, dtype=np.float32)
    assert (np.diff(log_odds.of(probability)) > 0).all()


def test_a_cutoff_is_crossed_near_the_middle_between_bone_and_background():
    share = np.linspace(0, 1, 1001)  # from background to bone
    low, high = log_odds.of(np.array([0.0, 1.0]))
    found = log_odds.back(low + (high - low) * share)
    for cutoff in (0.1, 0.3, 0.5, 0.7, 0.9):
        crossed = share[np.argmax(found >= cutoff)]
        assert abs(crossed - 0.5) < 0.15  # linear: `cutoff` itself


@pytest.mark.parametrize(("factor", "expected"), [(4.0, 0.8), (1.0, 0.5), (0.25, 0.2)])
def test_odds_are_multiplied(factor, expected):
    assert log_odds.times(0.5, factor) == pytest.approx(expected)
    assert log_odds.times(log_odds.times(0.3, factor), 1 / factor) == pytest.approx(0.3)
    assert (log_odds.times(0.0, factor), log_odds.times(1.0, factor)) == (0.0, 1.0)
