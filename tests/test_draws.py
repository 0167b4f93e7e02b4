"""Choosing among examples: which of a batch, how many of a case."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from femur_tf import draws

ROUNDING = 1e-9
"""Of sums in float64."""
SEED = tf.constant([3, 4], tf.int64)


def places(label, share, seed=SEED):
    """Return the places that a redraw takes, sorted."""
    return sorted(draws.redraw(tf.constant(label, tf.int64), share, seed).numpy().tolist())


@pytest.mark.parametrize(
    ("label", "share", "expected"),
    [
        ([1, 0, 1, 0], 0.5, [0, 1, 2, 3]),  # the share is there already
        ([1, 0, 0, 0], 0.25, [0, 1, 2, 3]),
        ([0, 0, 0], 0.9, [0, 1, 2]),  # no bone to draw from
        ([1, 1], 0.1, [0, 1]),
    ],
)
def test_a_batch_that_has_the_share_or_one_class_stays(label, share, expected):
    assert places(label, share) == expected


@hypothesis.given(st.lists(st.integers(0, 1), min_size=2, max_size=60), st.floats(0.05, 0.95), st.integers(0, 99))
def test_a_share_is_met_and_examples_are_taken_as_evenly_as_possible(label, share, seed):
    found = np.bincount(places(label, share, tf.constant([seed, 1], tf.int64)), minlength=len(label))
    label = np.array(label)
    assert found.sum() == len(label)
    if 0 < label.sum() < len(label):
        for value, wanted in ((1, share), (0, 1 - share)):
            times = found[label == value]
            mean = wanted * len(label) / len(times)
            assert np.floor(mean - ROUNDING) <= times.min()
            assert times.max() <= np.ceil(mean + ROUNDING)


def test_another_seed_draws_others():
    label = [1, 0, 0, 0] * 8
    assert places(label, 0.5) != places(label, 0.5, tf.constant([3, 5], tf.int64))
