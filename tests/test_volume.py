"""Volumes: axes by hand, all axis orders there and back, resampling against formulas, intensities."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from nibabel import orientations
from scipy import ndimage
from scipy.spatial.transform import Rotation

from femur_tf import log_odds
from femur_tf.lps import lps_affine, to_lps
from femur_tf.volume import (
    Volume,
    canonical,
    from_working,
    mask_to_working,
    require_same_grid,
    spacings_agree,
    to_working,
    working_shape,
)

RAMP_TOLERANCE = 1e-3
"""A ramp of some hundred mm in float32, interpolated: the last digits."""
INTERPOLATION_TOLERANCE = 1e-4
"""Two linear interpolations of values up to 1, in float32 and float64."""

AXIS_ORDERS = [
    "".join(code) for pairs in itertools.permutations(("LR", "PA", "IS")) for code in itertools.product(*pairs)
]
spacings = st.tuples(*[st.floats(0.4, 6.0)] * 3)
shapes = st.tuples(*[st.integers(1, 9)] * 3)
angles = st.tuples(*[st.floats(-35.0, 35.0)] * 3)


def _affine(codes: str = "RAS", spacing_mm=(1.0, 1.0, 1.0), degrees=(0.0, 0.0, 0.0), origin_mm=(-20.0, 30.0, 5.0)):
    """Return an affine whose array axes point to `codes`, rotated in the patient by `degrees`."""
    ornt = orientations.axcodes2ornt(codes)  # (3, 2): patient axis, sign
    linear = np.zeros((3, 3))
    for column, (row, sign) in enumerate(ornt):
        linear[int(row), column] = sign * spacing_mm[column]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ linear
    affine[:3, 3] = origin_mm
    return affine


def _position_mm(volume: Volume) -> np.ndarray:
    """Return the RAS position of each voxel centre, (X, Y, Z, 3)."""
    index = np.stack(np.indices(volume.shape), axis=-1)
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def _ramp(shape, affine) -> Volume:
    """Return a volume that holds a linear function of the position in the patient."""
    empty = Volume(np.zeros(shape), affine)
    return Volume(_position_mm(empty) @ [1.0, 2.0, -3.0], affine)


def _noise(rng, shape, affine) -> Volume:
    return Volume(rng.uniform(size=shape).astype(np.float32), affine)


# By hand


def test_a_volume_knows_its_shape_and_spacing():
    volume = Volume(np.zeros((2, 3, 4)), _affine("LIP", (0.9, 0.9, 5.2)))
    assert volume.shape == (2, 3, 4)
    assert volume.spacing_mm == pytest.approx((0.9, 0.9, 5.2))
    assert volume.affine.dtype == np.float64


def test_canonical_turns_a_flipped_axis_and_moves_the_origin():
    volume = Volume(np.array([[[1]], [[2]], [[3]]]), np.diag([-2.0, 1.0, 1.0, 1.0]))  # i runs to the left
    result = canonical(volume)
    assert result.data.ravel().tolist() == [3, 2, 1]
    assert result.affine[0].tolist() == [2, 0, 0, -4]  # voxel 3 lies at x = -2 * 2 mm


def test_canonical_orders_a_coronal_stack_right_anterior_superior():
    data = np.arange(24).reshape(2, 3, 4)  # x to the Left, y to Inferior, z to Posterior
    result = canonical(Volume(data, _affine("LIP", (1.0, 2.0, 3.0))))
    np.testing.assert_array_equal(result.data, data[::-1, ::-1, ::-1].transpose(0, 2, 1))
    assert result.spacing_mm == pytest.approx((1.0, 3.0, 2.0))


@pytest.mark.parametrize(
    ("values", "spacing_mm", "wanted_mm", "expected"),
    [
        ([0, 1, 2, 3], 2.0, 1.0, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]),  # 8 mm before and after, the ends held
        ([0, 2, 4, 6], 1.0, 4 / 3, [1 / 3, 3, 17 / 3]),  # the middle stays: centres at -4/3, 0, 4/3 from 1.5 voxels
        ([5, 5, 5, 5], 1.0, 4.0, [5]),
        ([7], 1.0, 10.0, [7]),  # never less than one voxel
    ],
)
def test_one_axis_is_resampled_about_its_middle(values, spacing_mm, wanted_mm, expected):
    data = np.array(values, np.int16).reshape(-1, 1, 1)
    volume = Volume(data, np.diag([spacing_mm, 1.0, 1.0, 1.0]))
    result = to_working(volume, (wanted_mm, 1.0, 1.0))
    assert result.data[:, 0, 0] == pytest.approx(expected, abs=1e-5)
    assert result.data.dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "wanted_mm", "expected"),
    [
        ((384, 20, 384), (0.9, 5.2, 0.9), (1.8, 5.2, 0.9), (192, 20, 384)),
        ((3, 3, 3), (1.0, 1.0, 1.0), (9.0, 2.0, 0.5), (1, 2, 6)),  # never less than one; 1.5 rounds to even
        ((1024, 1024, 512), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1024, 1024, 512)),  # 2**29: the bound is included
    ],
)
def test_the_working_shape_keeps_the_field_of_view(shape, spacing_mm, wanted_mm, expected):
    assert working_shape(shape, spacing_mm, wanted_mm) == expected


@pytest.mark.parametrize(
    ("wanted_mm", "agrees"),
    [
        ((1.0, 1.0, 5.0), True),
        ((1 / 1.01, 1.0, 5.0), True),  # exactly 1 % of the wanted spacing: the bound is included, to rounding
        ((1.0, 1.0, 5.049), True),
        ((1.0, 1.0, 5.06), False),
        ((1.02, 1.0, 5.0), False),
    ],
)
def test_spacings_within_one_percent_agree(wanted_mm, agrees):
    slightly_less = np.nextafter(np.array(wanted_mm), 9.0)  # so that rounding cannot decide at the bound
    assert spacings_agree((1.0, 1.0, 5.0), slightly_less) == agrees


# Properties


@pytest.mark.parametrize("codes", AXIS_ORDERS)
def test_every_axis_order_becomes_canonical_with_voxels_in_place(codes, rng):
    volume = _ramp((3, 4, 5), _affine(codes, (0.9, 1.7, 5.2), (8.0, -12.0, 5.0)))
    result = canonical(volume)
    assert "".join(orientations.aff2axcodes(result.affine)) == "RAS"
    np.testing.assert_allclose(result.data, _position_mm(result) @ [1.0, 2.0, -3.0], atol=1e-9)


@pytest.mark.parametrize("codes", AXIS_ORDERS)
def test_every_axis_order_comes_back_without_interpolation(codes, rng):
    volume = _noise(rng, (3, 4, 5), _affine(codes, (0.9, 1.7, 5.2), (8.0, -12.0, 5.0)))
    working = to_working(volume, canonical(volume).spacing_mm)
    back = from_working(working, volume)
    np.testing.assert_array_equal(back, volume.data)
    assert back.flags.c_contiguous


@pytest.mark.parametrize("codes", AXIS_ORDERS)
def test_every_axis_order_is_resampled_to_the_right_place(codes):
    """A ramp in the patient, away from the border, is a fixed point: there of its values, back of its log-odds."""
    volume = _ramp((8, 9, 10), _affine(codes, (0.9, 1.3, 2.2), (8.0, -12.0, 5.0)))
    working = to_working(volume, (1.1, 1.0, 1.2))
    inner = (slice(3, -3),) * 3
    expected = _position_mm(working) @ [1.0, 2.0, -3.0]
    np.testing.assert_allclose(working.data[inner], expected[inner], atol=RAMP_TOLERANCE)
    steepness = 4 / np.abs(working.data).max()
    back = from_working(Volume(log_odds.back(working.data * steepness), working.affine), volume)
    assert back.shape == volume.shape
    np.testing.assert_allclose(log_odds.of(back)[inner] / steepness, volume.data[inner], atol=RAMP_TOLERANCE)


@given(shape=shapes, spacing_mm=spacings, wanted_mm=spacings, degrees=angles, codes=st.sampled_from(AXIS_ORDERS))
def test_field_of_view_keeps_its_middle_and_its_size(shape, spacing_mm, wanted_mm, degrees, codes):
    volume = Volume(np.zeros(shape, np.uint8), _affine(codes, spacing_mm, degrees))
    working = to_working(volume, wanted_mm)
    middle = [v.affine @ [*(np.array(v.shape) - 1) / 2, 1] for v in (volume, working)]
    np.testing.assert_allclose(middle[0], middle[1], atol=1e-9)
    source = canonical(volume)
    if not spacings_agree(source.spacing_mm, wanted_mm):
        assert working.spacing_mm == pytest.approx(wanted_mm)
        extent_mm = np.array(source.shape) * source.spacing_mm
        change_mm = np.array(working.shape) * wanted_mm - extent_mm
        assert ((np.abs(change_mm) <= 0.5001 * np.array(wanted_mm)) | (np.array(working.shape) == 1)).all()


@given(value=st.floats(-1000, 1000, width=32), shape=shapes, wanted_mm=spacings)
def test_a_constant_stays_constant(value, shape, wanted_mm):
    volume = Volume(np.full(shape, value, np.float32), _affine("PSR", (1.0, 2.0, 3.0)))
    np.testing.assert_allclose(to_working(volume, wanted_mm).data, value, rtol=1e-5)


@given(value=st.floats(0, 1, width=32), shape=shapes, wanted_mm=spacings)
def test_a_constant_probability_stays_constant_both_ways(value, shape, wanted_mm):
    volume = Volume(np.full(shape, value, np.float32), _affine("PSR", (1.0, 2.0, 3.0)))
    np.testing.assert_allclose(from_working(to_working(volume, wanted_mm), volume), value, atol=1e-6)


@pytest.mark.parametrize("cutoff", [0.2, 0.3, 0.5, 0.8])
def test_bone_keeps_its_size_between_thick_slices_whatever_the_cutoff(cutoff):
    like = Volume(np.zeros((1, 500, 1), np.uint8), np.diag([1.0, 0.1, 1.0, 1.0]))
    working = to_working(like, (1.0, 5.0, 1.0))
    found = np.zeros(working.shape, np.float32)
    found[:, 3:6] = 1  # 15 mm of bone
    back = from_working(Volume(found, working.affine), like)
    assert (back >= cutoff).sum() * 0.1 == pytest.approx(15, abs=2)  # linear: up to 3 mm more or less


@given(shape=shapes, wanted_mm=spacings, seed=st.integers(0, 99))
def test_resampling_stays_in_the_range_of_its_input(shape, wanted_mm, seed):
    volume = _noise(np.random.default_rng(seed), shape, _affine("LIP", (1.0, 2.0, 3.0)))
    result = to_working(volume, wanted_mm).data
    assert volume.data.min() - 1e-6 <= result.min() and result.max() <= volume.data.max() + 1e-6


# Oracles


def test_resampling_equals_scipy(rng):
    volume = _noise(rng, (7, 8, 9), _affine("RAS", (1.0, 1.5, 2.0)))
    working = to_working(volume, (0.8, 1.9, 1.1))  # no ratio above 1.5: nothing is smoothed
    index = np.einsum("ij,jxyz->ixyz", np.linalg.inv(volume.affine), _homogeneous(working))[:3]
    expected = ndimage.map_coordinates(volume.data.astype(float), index, order=1, mode="nearest")
    np.testing.assert_allclose(working.data, expected, atol=INTERPOLATION_TOLERANCE)


def test_only_the_axis_that_is_left_takes_its_nearest_value(rng):
    like = Volume(np.zeros((8, 64, 8)), np.diag([0.5, 1.0, 0.5, 1.0]))
    working = to_working(like, (0.9, 5.2, 0.9))  # 12 slices cover 62.4 of the 64 mm
    data = np.repeat(rng.uniform(size=(working.shape[0], 1, working.shape[2])), working.shape[1], axis=1)
    found = from_working(Volume(data.astype(np.float32), working.affine), like)
    np.testing.assert_allclose(found, np.repeat(found[:, 32:33], 64, axis=1), atol=INTERPOLATION_TOLERANCE)


def test_return_equals_scipy_on_an_oblique_grid(rng):
    like = Volume(np.zeros((6, 7, 8)), _affine("PIL", (1.0, 1.5, 4.0), (20.0, -10.0, 15.0)))
    working = to_working(like, (1.2, 1.2, 1.2))
    data = rng.uniform(size=working.shape).astype(np.float32)
    index = np.einsum("ij,jxyz->ixyz", np.linalg.inv(working.affine), _homogeneous(like))[:3]
    expected = log_odds.back(ndimage.map_coordinates(log_odds.of(data), index, order=1, mode="nearest"))
    np.testing.assert_allclose(from_working(Volume(data, working.affine), like), expected, atol=INTERPOLATION_TOLERANCE)


def _homogeneous(volume: Volume) -> np.ndarray:
    """Return positions in mm as (4, X, Y, Z)."""
    position = np.moveaxis(_position_mm(volume), -1, 0)
    return np.concatenate([position, np.ones((1, *volume.shape))])


def test_lps_agrees_with_simpleitk_on_where_a_voxel_lies():
    volume = Volume(np.zeros((3, 4, 5), np.uint8), _affine("LIP", (0.9, 1.1, 5.0), (10.0, 20.0, -15.0)))
    image = to_lps(volume)
    left, posterior, superior = image.TransformIndexToPhysicalPoint((2, 1, 3))
    assert (-left, -posterior, superior) == pytest.approx(tuple((volume.affine @ [2, 1, 3, 1])[:3]))
    np.testing.assert_allclose(lps_affine(image), volume.affine, atol=1e-12)


def test_detail_too_fine_for_the_working_grid_is_averaged_away():
    stripes = np.tile(np.array([0.0, 1.0], np.float32), 20).reshape(40, 1, 1)
    result = to_working(Volume(stripes, np.eye(4)), (3.0, 1.0, 1.0)).data[2:-2]
    np.testing.assert_allclose(result, 0.5, atol=0.01)  # without smoothing: 0 or 1, voxel by voxel


def test_axes_that_stay_fine_are_not_smoothed(rng):
    volume = _noise(rng, (12, 4, 12), np.eye(4))
    result = to_working(volume, (1.0, 1.0, 2.0)).data  # pairs along z only
    smooth = ndimage.gaussian_filter1d(volume.data, 0.5 * np.sqrt(3), axis=2, mode="nearest")
    np.testing.assert_allclose(result, (smooth[..., ::2] + smooth[..., 1::2]) / 2, atol=INTERPOLATION_TOLERANCE)


# Errors


@pytest.mark.parametrize(
    ("data", "affine", "message"),
    [
        (np.zeros((2, 2)), np.eye(4), "expected a 3-D array"),
        (np.zeros((2, 2, 2, 2)), np.eye(4), r"Received: shape=\(2, 2, 2, 2\)"),
        (np.zeros((2, 0, 2)), np.eye(4), "with voxels"),
        (np.zeros((2, 2, 2)), np.eye(3), "finite \\(4, 4\\) matrix"),
        (np.zeros((2, 2, 2)), np.full((4, 4), np.nan), "finite \\(4, 4\\) matrix"),
        (np.zeros((2, 2, 2)), np.diag([1.0, 0.0, 1.0, 1.0]), "non-zero spacing"),
        (np.zeros((2, 2, 2)), np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "span space"),
    ],
)
def test_what_is_no_volume_is_refused(data, affine, message):
    with pytest.raises(ValueError, match=message):
        Volume(data, affine)


@pytest.mark.parametrize(
    "spacing_mm", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (np.inf, 1.0, 1.0), (np.nan,) * 3]
)
def test_a_spacing_that_is_no_spacing_is_refused(spacing_mm):
    with pytest.raises(ValueError, match="expected three lengths above 0 mm"):
        to_working(Volume(np.zeros((2, 2, 2)), np.eye(4)), spacing_mm)


@pytest.mark.parametrize("factor", [1000.0, 1e38, 1e150])
def test_a_working_grid_that_no_memory_holds_is_refused(factor):
    """Micrometres stated as mm; before anything is allocated."""
    volume = Volume(np.zeros((384, 20, 384), np.uint8), np.diag([0.9 * factor, 5.0 * factor, 0.9 * factor, 1.0]))
    with pytest.raises(ValueError, match=r"expected a working grid of at most 536,870,912 voxels\. Received: 384 x 20"):
        to_working(volume, (0.9, 5.0, 0.9))


def test_a_working_grid_that_is_too_large_is_told_with_what_it_would_be():
    with pytest.raises(ValueError, match=r"384 x 20 x 384 voxels, 900 x 5200 x 900 mm.* 384,000 x 20,000 x 384,000"):
        working_shape((384, 20, 384), (900.0, 5200.0, 900.0), (0.9, 5.2, 0.9))


def test_grids_are_compared_by_shape_and_by_their_corners():
    volume = Volume(np.zeros((5, 5, 5)), np.eye(4))
    require_same_grid(volume, Volume(np.ones((5, 5, 5)), np.eye(4) + np.diag([1e-4] * 3, k=1)))  # 4 voxels * 1e-4 mm
    with pytest.raises(ValueError, match=r"shape: expected \(5, 5, 4\). Received: \(5, 5, 5\)"):
        require_same_grid(volume, Volume(np.zeros((5, 5, 4)), np.eye(4)))
    with pytest.raises(ValueError, match=r"up to 0\.4 mm away"):
        require_same_grid(volume, Volume(np.zeros((5, 5, 5)), np.diag([1.1, 1, 1, 1])))


@pytest.mark.parametrize(("apart_mm", "same"), [(0.0049, True), (0.0051, False)])
def test_grids_are_the_same_within_a_share_of_the_finest_spacing_and_are_told_apart(apart_mm, same):
    volume = Volume(np.zeros((5, 5, 5)), np.diag([0.5, 0.5, 5.0, 1.0]))
    other = volume.affine + apart_mm * np.eye(4, k=3)
    if same:
        require_same_grid(volume, Volume(volume.data, other))
        return
    with pytest.raises(
        ValueError, match=r"expected \[\[0\.5, 0\.0, 0\.0, 0\.0051\].* Received: \[\[0\.5, 0\.0, 0\.0, 0\.0\]"
    ):
        require_same_grid(volume, Volume(volume.data, other))


# Edges


def test_a_resampled_shape_of_one_voxel_works_both_ways():
    volume = Volume(np.full((1, 1, 1), 9, np.int16), np.diag([5.0, 5.0, 5.0, 1.0]))
    working = to_working(volume, (1.0, 2.0, 30.0))
    assert working.shape == (5, 2, 1)
    assert np.unique(working.data).tolist() == [9]
    assert from_working(Volume(np.full((5, 2, 1), 0.5, np.float16), working.affine), volume).tolist() == [[[0.5]]]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, ">i2", np.float64])
def test_agreeing_grids_keep_the_dtype_and_others_give_float32(dtype):
    volume = Volume(np.ones((4, 4, 4), dtype), _affine("LIP"))
    assert to_working(volume, (1.0, 1.005, 0.995)).data.dtype == dtype
    assert to_working(volume, (2.0, 2.0, 2.0)).data.dtype == np.float32


def test_grids_within_one_percent_keep_their_true_affine():
    volume = Volume(np.ones((4, 4, 4)), np.diag([1.0, 1.0, 1.0, 1.0]))
    np.testing.assert_array_equal(to_working(volume, (1.005, 1.0, 1.0)).affine, volume.affine)


def test_a_map_on_a_shifted_grid_is_interpolated_not_reordered():
    like = Volume(np.zeros((4, 1, 1)), np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    found = log_odds.back(np.array([-3, -1, 1, 3], np.float32)).reshape(4, 1, 1)
    result = from_working(Volume(found, shifted), like)
    assert log_odds.of(result).ravel() == pytest.approx([-3, -2, 0, 2], abs=1e-4)


def test_a_sitk_image_of_four_axes_gives_the_affine_of_three():
    image = sitk.Image([2, 3, 4, 1], sitk.sitkUInt8)
    image.SetSpacing([1.0, 2.0, 3.0, 9.0])
    np.testing.assert_array_equal(lps_affine(image), np.diag([-1.0, -2.0, 3.0, 1.0]))


def test_a_mask_keeps_the_voxels_of_which_it_holds_half():
    scan = Volume(np.zeros((6, 2, 2)), np.diag([1.0, 1.0, 1.0, 1.0]))
    working = to_working(scan, (1.5, 1.0, 1.0))
    mask = np.zeros((6, 2, 2), bool)
    mask[1:3] = True  # 1 to 3 mm of cells that reach to 1.5, 3, 4.5 and 6 mm
    found = mask_to_working(mask, scan.affine, working)
    assert found.dtype == bool
    assert found[:, 0, 0].tolist() == [False, True, False, False]


def test_a_mask_has_the_shape_of_its_working_grid_where_the_length_is_a_tie():
    """5 voxels of 1 mm are 2.5 of 2 mm: 2 of them, or 3 where the spacing is less by one bit."""
    affine = np.diag([np.nextafter(2.0, 0.0), 2.0, 2.0, 1.0])
    affine[:3, 3] = [1.0, 0.5, 0.5]
    working = Volume(np.zeros((2, 3, 3), np.uint8), affine)
    assert to_working(Volume(np.zeros((5, 6, 6)), np.eye(4)), working.spacing_mm).shape == (3, 3, 3)
    assert mask_to_working(np.ones((5, 6, 6), bool), np.eye(4), working).shape == working.shape
