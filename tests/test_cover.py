"""Covering wanted samples with boxes: by hand, and what must hold for any."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from femur_tf import cover

ONE = (1, 1, 1)


def wanted(shape, *boxes):
    """Return a bool volume that is True inside boxes of slices."""
    result = np.zeros(shape, bool)
    for box in boxes:
        result[box] = True
    return result


def test_two_femurs_far_apart_get_a_box_each():
    both = wanted((20, 4, 6), np.s_[1:4, 1:3, 2:5], np.s_[15:18, 0:3, 1:5])
    assert cover.cover(both, every=ONE, halo=(2, 2, 2)) == [((1, 4), (1, 3), (2, 5)), ((15, 18), (0, 3), (1, 5))]


def test_a_halo_wider_than_the_gap_keeps_one_box():
    both = wanted((20, 4, 6), np.s_[1:4, 1:3, 2:5], np.s_[15:18, 0:3, 1:5])
    assert cover.cover(both, every=ONE, halo=(50, 50, 50)) == [((1, 18), (0, 3), (1, 5))]


def test_an_axis_without_halo_is_cut_however_narrow_the_gap():
    both = wanted((20, 9, 20), np.s_[1:10, 1:3, 2:12], np.s_[1:10, 5:8, 2:12])
    assert cover.cover(both, every=ONE, halo=(50, 0, 50)) == [((1, 10), (1, 3), (2, 12)), ((1, 10), (5, 8), (2, 12))]


def test_nothing_wanted_needs_no_box():
    assert cover.cover(np.zeros((3, 4, 5), bool), every=ONE, halo=(1, 1, 1)) == []


def test_all_wanted_is_one_box():
    assert cover.cover(np.ones((3, 4, 5), bool), every=ONE, halo=(1, 1, 1)) == [((0, 3), (0, 4), (0, 5))]


@hypothesis.given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    every=st.tuples(*[st.sampled_from([1, 8])] * 3),
    halo=st.tuples(*[st.integers(0, 20)] * 3),
    seed=st.integers(0, 1000),
)
def test_every_wanted_sample_is_in_just_one_box(shape, every, halo, seed):
    rng = np.random.default_rng(seed)
    samples = rng.random(shape) < rng.choice([0.01, 0.1, 0.5])
    count = np.zeros(shape, int)
    for box in cover.cover(samples, every=every, halo=halo):
        count[tuple(slice(start, stop) for start, stop in box)] += 1
    assert count.max(initial=0) <= 1
    assert (count[samples] == 1).all()
