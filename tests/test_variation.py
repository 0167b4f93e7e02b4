"""Varied copies of a case: what is drawn, what it leaves alone, and that image and mask move together."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from data_prep import fitted, variation
from femur_tf.config import VariationConfig

STILL = VariationConfig(
    copies=2,
    rotation_degrees=0,
    tilt_degrees=0,
    scale=0,
    shift=0,
    warp=0,
    gamma=0,
    tone=0,
    bias=0,
    blur_mm=0,
    noise=0,
    cut_mm=0,
)
"""A copy that changes nothing."""
SPACING_MM = (1.0, 3.0, 1.0)
"""A coronal stack: its finest plane spans x and z."""


def case(shape=(31, 9, 27)):
    """Return a bright box on a dark grid, and its mask."""
    mask = np.zeros(shape, bool)
    mask[8:22, 2:7, 6:20] = True
    return np.where(mask, 200, 50).astype(np.uint8), mask


def vary(rng, grid, mask, **changes):
    """Return a copy with some of the changes."""
    return variation.vary(grid, mask, SPACING_MM, dataclasses.replace(STILL, **changes), rng)


def test_without_changes_a_copy_is_the_case(rng):
    grid, mask = case()
    for found, expected in zip(vary(rng, grid, mask), (grid, mask), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def test_without_changes_the_transform_is_the_identity(rng):
    np.testing.assert_array_equal(variation.affine(STILL, SPACING_MM, rng), np.eye(3))


def test_a_rotation_in_the_finest_plane_keeps_lengths_in_mm_and_the_axis_across(rng):
    matrix = variation.affine(dataclasses.replace(STILL, rotation_degrees=30), (0.5, 5.0, 2.0), rng)
    spacing = np.diag([0.5, 5.0, 2.0])
    in_mm = spacing @ matrix @ np.linalg.inv(spacing)
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
    assert in_mm[1].tolist() == [0, 1, 0]  # x and z span the finest plane
    assert in_mm[0, 2] != 0


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_stretching_is_within_its_limit(seed):
    matrix = variation.affine(dataclasses.replace(STILL, scale=0.2), SPACING_MM, np.random.default_rng(seed))
    assert (np.diag(matrix) <= 1.2).all() and (np.diag(matrix) >= 1 / 1.2).all()
    np.testing.assert_array_equal(matrix, np.diag(np.diag(matrix)))


@pytest.mark.parametrize(
    "changes", [{"rotation_degrees": 20}, {"tilt_degrees": 10}, {"scale": 0.2}, {"shift": 0.2}, {"warp": 0.06}]
)
def test_image_and_mask_move_together(rng, changes):
    grid, mask = case()
    varied, moved = vary(rng, grid, mask, **changes)
    assert (moved != mask).any()
    clear = np.abs(varied.astype(int) - 125) > 1  # half way between 50 and 200, where rounding decides
    np.testing.assert_array_equal(varied[clear] >= 125, moved[clear])


def places(shape, rng, **changes):
    """Return how far from its own voxel each voxel of a copy is read, in voxels."""
    found = variation.sources(shape, np.eye(3), dataclasses.replace(STILL, **changes), rng)
    return found - np.indices(shape)


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_a_shift_is_the_same_everywhere_and_within_its_limit(seed):
    found = places((40, 10, 20), np.random.default_rng(seed), shift=0.1)
    assert np.ptp(found, axis=(1, 2, 3)).max() < 1e-4
    assert (np.abs(found[:, 0, 0, 0]) <= (4.0, 1.0, 2.0)).all()


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_a_warp_is_smooth_within_its_limit_and_never_folds(seed):
    shape = (40, 10, 20)
    found = places(shape, np.random.default_rng(seed), warp=0.06)
    for axis, length in enumerate(shape):
        assert np.abs(found[axis]).max() <= 0.06 * length
        assert np.diff(found[axis], axis=axis).min() > -1  # the order of the voxels along the axis stays
        assert np.abs(np.diff(found[axis], 2, axis=axis)).max() < 0.3 * length * (variation.WARP_SPANS / length) ** 2


@pytest.mark.parametrize("changes", [{"gamma": 0.5}, {"tone": 2.0}, {"bias": 0.9}, {"noise": 20.0}])
def test_a_change_of_intensity_leaves_the_mask(rng, changes):
    grid, mask = case()
    varied, moved = vary(rng, grid, mask, **changes)
    np.testing.assert_array_equal(moved, mask)
    assert (varied != grid).mean() > 0.3


def blurred_width_mm(axis, spacing_mm, most_mm):
    """Return the standard deviation of the Gaussian that a copy of a step along an axis was blurred with."""
    shape = [3, 3, 3]
    shape[axis] = 60
    step = np.broadcast_to(np.where(np.indices(shape)[axis] < 30, 0, 255), shape).astype(np.uint8)
    still = dataclasses.replace(STILL, blur_mm=most_mm)
    varied, mask = variation.vary(step, step > 0, spacing_mm, still, np.random.default_rng(8))
    np.testing.assert_array_equal(mask, step > 0)
    edge = np.diff(np.moveaxis(varied, axis, 0)[:, 1, 1].astype(float)) / 255
    places_mm = np.arange(59) * spacing_mm[axis]
    return np.sqrt(np.sum(edge * (places_mm - np.sum(edge * places_mm)) ** 2))


def test_a_blur_is_as_wide_in_mm_along_every_axis_and_within_its_limit():
    widths_mm = [blurred_width_mm(axis, (0.5, 1.5, 0.5), 4.0) for axis in range(3)]
    assert 0 < max(widths_mm) <= 4.2
    np.testing.assert_allclose(widths_mm, widths_mm[0], rtol=0.05)


def test_gamma_keeps_black_and_white(rng):
    grid = np.array([0, 255], np.uint8).reshape(2, 1, 1)
    assert vary(rng, grid, grid > 0, gamma=0.9)[0].ravel().tolist() == [0, 255]


@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_tones_keep_black_and_white_and_the_order_of_grey_values(seed):
    mask = np.ones((12, 5, 8), bool)
    grids = [np.full(mask.shape, grey, np.uint8) for grey in (0, 60, 130, 255)]
    found = [vary(np.random.default_rng(seed), grid, mask, tone=2.0)[0].astype(int) for grid in grids]
    assert (found[0] == 0).all() and (found[-1] == 255).all()
    assert all((darker < brighter).all() for darker, brighter in itertools.pairwise(found))


def test_tones_change_smoothly_from_place_to_place(rng):
    grid = np.full((400, 3, 3), 128, np.uint8)
    found = vary(rng, grid, grid > 0, tone=2.0)[0][:, 1, 1].astype(int)
    assert np.ptp(found) > 10
    assert np.abs(np.diff(found)).max() <= 3


def test_every_second_copy_is_cut_near_the_femur_along_the_slices():
    mask = np.zeros((31, 40, 27), bool)
    mask[8:22, 15:22, 6:20] = True
    grid = np.indices(mask.shape)[1].astype(np.uint8)
    whole, beyond = 0, []
    for seed in range(200):
        varied, moved = vary(np.random.default_rng(seed), grid, mask, cut_mm=20.0)
        assert varied.shape == moved.shape and varied.shape[::2] == (31, 27) and moved.sum() == mask.sum()
        first, last = int(varied[0, 0, 0]), int(varied[0, -1, 0])
        np.testing.assert_array_equal(moved, mask[:, first : last + 1])
        whole += (first, last) == (0, 39)
        beyond += [] if (first, last) == (0, 39) else [15 - first, last - 21]
    assert 80 < whole < 120
    assert set(beyond) == set(range(8))  # 20 mm are at most 7 slices of 3 mm, to the nearest


def test_of_equal_spacings_the_slices_are_drawn():
    grid, mask = case((31, 31, 31))
    still = dataclasses.replace(STILL, cut_mm=1.0)
    shapes = [variation.vary(grid, mask, (1.0, 1.0, 0.5), still, np.random.default_rng(s))[0].shape for s in range(50)]
    assert {tuple(n < 31 for n in shape) for shape in shapes} == {
        (False, False, False),
        (True, False, False),
        (False, True, False),
    }


def test_a_copy_without_femur_is_not_cut(rng):
    grid, mask = case()
    assert vary(rng, grid, mask & False, cut_mm=20.0)[0].shape == grid.shape


def test_the_same_chance_gives_the_same_copy():
    grid, mask = case()
    one, other = (vary(np.random.default_rng(3), grid, mask, rotation_degrees=5, noise=3, bias=0.2) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_a_volume_of_one_voxel_can_be_varied(rng):
    grid, mask = np.full((1, 1, 1), 7, np.uint8), np.ones((1, 1, 1), bool)
    varied, moved = variation.vary(grid, mask, SPACING_MM, dataclasses.replace(fitted.VARIATION, noise=0, gamma=0), rng)
    assert varied.shape == (1, 1, 1)
    assert moved.all()
