"""femur_tf.measures: what is measured of a mask, a map and a working grid, without a reference."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from femur_tf import measures
from femur_tf.volume import Volume, canonical, to_working

SPACING_MM = (1.0, 2.0, 0.5)
AFFINE = np.diag([*SPACING_MM, 1.0])
CUTOFF = 0.5
ROUNDED = 0.01
"""Quantiles are kept with two decimals."""


def boxed(shape, *sides, affine=AFFINE):
    """Return a probability map of 0.9 in a box and 0.1 outside, its mask, and a grey grid."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    grey = np.where(mask, 200, 100).astype(np.uint8)
    return Volume(np.where(mask, 0.9, 0.1).astype(np.float32), affine), mask, Volume(grey, affine)


def measured(*case):
    return measures.profile(*case, CUTOFF).measures


def test_a_box_by_hand():
    found = measured(*boxed((10, 8, 6), (2, 6), (3, 5), (1, 4)))
    expected = {
        "volume_mm3": 24.0,  # 4 x 2 x 3 voxels of 1 mm3
        "parts": 1.0,
        "smaller_side": 0.0,
        "extent_right_mm": 4.0,
        "extent_anterior_mm": 4.0,
        "extent_superior_mm": 1.5,
        "balance_anterior": 0.5,
        "balance_superior": 0.5,
        "certainty": 0.9,
        "boundary_bits": -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1)),
        "cutoff_dice": 1.0,  # cut-offs 0.2 and 0.8
        "steps_dice": 1.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert not any(found[f"cut_{border}_mm2"] for pair in measures.BORDERS for border in pair)


@pytest.mark.parametrize(
    ("length", "side", "share"),
    [(10, (0, 5), 1), (10, (5, 10), 0), (10, (4, 8), 0.25), (11, (3, 8), 0.5), (11, (5, 6), 0.5), (11, (6, 9), 0)],
)
def test_which_half_of_the_scan_holds_the_mask(length, side, share):
    case = boxed((length, 8, 6), side, (3, 5), (1, 4))
    assert measured(*case)["left_half"] == share
    map_, mask, working = case
    flipped = np.diag([-SPACING_MM[0], *SPACING_MM[1:], 1.0])  # the file runs from right to left
    assert measured(Volume(map_.data[::-1], flipped), mask[::-1], canonical(Volume(working.data[::-1], flipped)))[
        "left_half"
    ] == pytest.approx(share)


@pytest.mark.parametrize(
    ("sides", "border", "area_mm2"),
    [
        (((0, 2), (3, 5), (1, 4)), "left", 6.0),  # 2 x 3 voxels, 2 mm by 0.5 mm each, is 6
        (((8, 10), (3, 5), (1, 4)), "right", 6.0),
        (((2, 4), (0, 5), (1, 4)), "posterior", 3.0),
        (((2, 4), (6, 8), (1, 4)), "anterior", 3.0),
        (((2, 4), (3, 5), (0, 4)), "inferior", 8.0),
        (((2, 4), (3, 5), (5, 6)), "superior", 8.0),
    ],
)
def test_borders_that_cut_the_mask_are_named(sides, border, area_mm2):
    found = measured(*boxed((10, 8, 6), *sides))
    cut = {name: value for name, value in found.items() if name.startswith("cut_") and value}
    assert cut == pytest.approx({f"cut_{border}_mm2": area_mm2})


def test_the_border_is_the_patients_whatever_the_axes():
    map_, mask, grey = boxed((10, 8, 6), (2, 4), (3, 5), (0, 4))
    turned = [v[:, :, ::-1].transpose(2, 0, 1) for v in (map_.data, mask, grey.data)]
    affine = np.array([[0, 1.0, 0, 0], [0, 0, 2.0, 0], [-0.5, 0, 0, 2.5], [0, 0, 0, 1]])
    found = measured(Volume(turned[0], affine), turned[1], canonical(Volume(turned[2], affine)))
    assert found == pytest.approx(measured(map_, mask, grey))


def test_balance_tells_which_end_is_heavy():
    map_, mask, grey = boxed((10, 8, 6), (4, 5), (3, 4), (0, 6))
    mask[2:7, 3, 4:6] = True  # a head on top of a shaft
    assert measured(map_, mask, grey)["balance_superior"] > 0.6
    upside_down = mask[:, :, ::-1].copy()
    assert measured(map_, upside_down, grey)["balance_superior"] < 0.4


def test_two_femurs_are_compared():
    map_, mask, grey = boxed((200, 4, 4), (10, 30), (1, 3), (1, 3))
    mask[170:180, 1:3, 1:3] = True
    found = measured(map_, mask, grey)
    assert (found["parts"], found["smaller_side"]) == (2, 0.5)


def test_doubt_shows_in_every_measure_of_it():
    map_, mask, grey = boxed((10, 8, 6), (2, 6), (3, 5), (1, 4))
    sure = measured(map_, mask, grey)
    doubtful = measured(Volume(np.where(mask, 0.6, 0.4).astype(np.float32), AFFINE), mask, grey)
    assert doubtful["certainty"] < sure["certainty"]
    assert doubtful["boundary_bits"] > sure["boundary_bits"]
    assert doubtful["cutoff_dice"] == 0  # nothing is left above the higher cut-off


@pytest.mark.parametrize(
    ("side", "beyond_mm"), [((3, 5), 6.0), ((0, 5), 0.0), ((4, 8), 0.0), ((1, 4), 2.0), ((5, 7), 2.0)]
)
def test_how_far_the_scan_goes_on_across_the_slices(side, beyond_mm):
    case = boxed((10, 8, 6), (0, 10), side, (0, 6))  # slices lie 2 mm apart, along the second axis
    assert measured(*case)["beyond_mm"] == beyond_mm


def test_the_doubt_at_the_boundary_does_not_depend_on_the_scans_own_grid():
    affine, rng = np.diag([1.0, 4.0, 1.0, 1.0]), np.random.default_rng(0)
    x, y, z = np.indices((24, 12, 24)) - np.array([12, 6, 12])[:, None, None, None]
    logits = (8 - np.sqrt(x**2 + (4 * y) ** 2 + z**2)) / 2 + rng.normal(0, 0.1, x.shape)
    map_ = Volume((1 / (1 + np.exp(-logits))).astype(np.float32), affine)
    working = Volume(np.full(map_.shape, 100, np.uint8), affine)
    fine = to_working(map_, (1.0, 2.0, 1.0))
    one, other = (measured(m, m.data >= CUTOFF, working)["boundary_bits"] for m in (map_, fine))
    assert other == pytest.approx(one, rel=0.1)


def test_what_the_steps_changed_shows():
    map_, mask, grey = boxed((10, 8, 6), (2, 6), (3, 5), (1, 4))
    map_.data[9, 7, :] = 0.9  # 6 voxels that a step took away, beside 24
    assert measured(map_, mask, grey)["steps_dice"] == pytest.approx(48 / 54)


def test_grey_values_are_kept_as_quantiles():
    map_, mask, grey = boxed((10, 8, 6), (2, 6), (3, 5), (1, 4))
    grey.data[0] = 0  # air is left out of the body
    found = measures.profile(map_, mask, grey, CUTOFF).quantiles
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys(
        ("grey", "bone", "texture"), measures.QUANTILES
    )
    assert found["bone"][0] == pytest.approx(199.5 + 0.5 / measures.QUANTILES, abs=ROUNDED)
    assert min(found["grey"]) > 99
    assert found["texture"][0] < 1  # most neighbours are alike


def test_the_mask_meets_a_working_grid_of_another_spacing():
    map_, mask, _ = boxed((20, 8, 12), (4, 12), (3, 5), (2, 8))
    working = Volume(np.full((10, 8, 6), 50, np.uint8), np.diag([2.0, 2.0, 1.0, 1.0]))
    working.data[2:6, 3:5, 1:4] = 220
    assert min(measures.profile(map_, mask, working, CUTOFF).quantiles["bone"]) > 219


@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 200))
def test_the_distance_of_quantiles_is_the_wasserstein_distance(seed, low, width):
    rng = np.random.default_rng(seed)
    one, other = (
        rng.integers(a, b, 4000).astype(np.uint8) for a, b in ((0, 256), (low // 2, low // 2 + width // 2 + 1))
    )
    found = np.abs(np.array(measures._quantiles(one)) - np.array(measures._quantiles(other))).mean()
    assert found == pytest.approx(stats.wasserstein_distance(one, other), abs=1.5)  # 32 quantiles for 256 values


@pytest.mark.parametrize("wrong", [np.zeros((3, 3, 3), bool), np.zeros((10, 8, 6), np.uint8)])
def test_a_mask_of_another_shape_or_dtype_is_refused(wrong):
    map_, _, grey = boxed((10, 8, 6), (2, 6), (3, 5), (1, 4))
    with pytest.raises(ValueError, match="expected a bool mask"):
        measures.profile(map_, wrong, grey, CUTOFF)


def test_an_empty_mask_has_a_volume_of_zero_and_nothing_else_defined():
    map_, mask, grey = boxed((10, 8, 6), (2, 6), (3, 5), (1, 4))
    found = measures.profile(map_, np.zeros_like(mask), grey, CUTOFF)
    assert (found.measures["volume_mm3"], found.measures["parts"]) == (0, 0)
    for name in (*measures.DOUBTS, "smaller_side", "left_half", "beyond_mm", "balance_superior"):
        assert math.isnan(found.measures[name])
    assert found.quantiles["bone"] == ()


def test_a_full_mask_and_a_black_scan_are_measured():
    map_, mask, grey = boxed((4, 4, 4), (0, 4), (0, 4), (0, 4))
    found = measures.profile(map_, mask, Volume(np.zeros_like(grey.data), AFFINE), CUTOFF)
    assert found.measures["volume_mm3"] == 64
    assert found.quantiles["grey"] == ()


def test_a_grid_whose_length_is_a_tie_is_measured():
    """5 voxels of 1 mm are 2.5 of 2 mm: 2 of them, or 3 where the spacing is less by one bit."""
    probability, mask, _ = boxed((5, 6, 6), (1, 4), (1, 5), (1, 5), affine=np.eye(4))
    assert to_working(probability, (2.0, 2.0, 2.0)).shape == (2, 3, 3)
    affine = np.diag([np.nextafter(2.0, 0.0), 2.0, 2.0, 1.0])
    affine[:3, 3] = [1.0, 0.5, 0.5]
    working = Volume(np.full((2, 3, 3), 100, np.uint8), affine)
    assert to_working(probability, working.spacing_mm).shape == (3, 3, 3)
    found = measures.profile(probability, mask, working, CUTOFF)
    assert found.quantiles["bone"][0] == pytest.approx(99.5, abs=0.1)
