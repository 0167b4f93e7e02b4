"""Grey values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from femur_tf.config import NormalisationConfig
from femur_tf.intensity import correct_bias, fill_value, limits, normalise, without_fill
from femur_tf.volume import Volume


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 50, 100], [0, 128, 255]),  # 127.5 is rounded up
        ([-100, 0, 100], [0, 128, 255]),
        ([3, 3, 3], [0, 0, 0]),  # constant
        ([0, 0, 1], [0, 0, 255]),
        ([0.1, 0.1, 0.1], [0, 0, 0]),  # constant, though its float mean may differ by rounding
    ],
)
def test_intensities_become_bytes(values, expected):
    result = normalise(np.array(values).reshape(1, 1, 3), NormalisationConfig(0, 100))
    assert result.dtype == np.uint8
    assert result.ravel().tolist() == expected


@pytest.mark.parametrize(
    ("lowest", "count", "expected"),
    [
        (-32768, 5, -32768),  # 0.5 % of the voxels: the bound is included
        (-32768, 4, None),  # fewer: below the lower limit, as any outlier
        (-32768, 1000, None),  # constant
        (-10, 5, -10),  # the others are 0 to 99: a tenth of their range, and more
        (-9, 5, None),
        (0, 5, None),  # no signal, as of air in MR
    ],
)
def test_a_fill_value_lies_far_below_all_others(lowest, count, expected):
    data = (np.arange(1000) % 100).astype(np.int16).reshape(10, 10, 10)
    data.ravel()[:count] = lowest
    assert fill_value(data) == expected


def test_a_fill_value_is_what_would_squeeze_tissue_into_few_grey_values(rng):
    data = rng.uniform(0, 500, (20, 20, 20))
    data[:2] = -32768
    assert fill_value(data) == -32768
    assert normalise(data, NormalisationConfig())[2:].min() > 245
    mended = without_fill(Volume(data, np.eye(4))).data
    assert mended[:2].max() == data[2:].min()
    np.testing.assert_array_equal(mended[2:], data[2:])
    assert normalise(mended, NormalisationConfig())[2:].mean() < 130


@pytest.mark.parametrize("lowest", [0, -5])
def test_a_scan_without_a_fill_value_stays_as_it_is(lowest, rng):
    scan = Volume(rng.uniform(lowest, 500, (9, 9, 9)), np.eye(4))
    assert without_fill(scan) is scan


def test_a_bright_organ_leaves_tissue_its_grey_values(rng):
    usual = rng.uniform(0, 100, (20, 20, 20))  # above the mean of 50 the median is 75
    bright = usual.copy()
    bright[:2, :2, :] *= 8
    settings = NormalisationConfig(0, 99, upper_medians=1.4)
    assert limits(usual, settings) == limits(usual, NormalisationConfig(0, 99))
    assert limits(usual, settings).medians == pytest.approx(1.33, abs=0.02)
    assert normalise(bright, NormalisationConfig(0, 99))[5:].max() < 100
    assert normalise(bright, settings)[5:].max() > 235


def test_the_limit_needs_a_foreground_above_the_lower_one():
    data = np.array([0.0, 9.0, 9.0, 9.0]).reshape(4, 1, 1)
    found = limits(data, NormalisationConfig(49, 100, upper_medians=1))
    assert found == (9.0, 9.0, 9.0) and found.medians == np.inf
    assert limits(np.ones((2, 2, 2)), NormalisationConfig(upper_medians=1)) == (1.0, 1.0, 1.0)


def test_upper_limit_is_of_the_voxels_above_the_mean():
    data = np.array([0] * 90 + [100] * 9 + [1000]).reshape(10, 10, 1)  # mean 19: foreground is the last ten
    result = normalise(data, NormalisationConfig(0, 60)).ravel()
    assert result[:90].max() == 0
    assert set(result[90:].tolist()) == {255}  # of the foreground 100; of all voxels it would be 0


@given(scale=st.floats(0.1, 50), shift=st.floats(-500, 500))
def test_normalised_bytes_do_not_depend_on_gain_and_offset(scale, shift):
    data = np.random.default_rng(3).uniform(0, 100, (6, 7, 8))
    first, second = (normalise(d, NormalisationConfig(1, 99)) for d in (data, data * scale + shift))
    assert np.abs(first.astype(int) - second).max() <= 1  # a value may sit on the edge of two bytes


@given(dtype=st.sampled_from([np.uint8, np.int16, np.uint16, np.float32]), lower=st.floats(0, 20))
def test_normalisation_keeps_the_order_of_intensities(dtype, lower):
    data = np.random.default_rng(4).uniform(0, 250, (5, 6, 7)).astype(dtype)
    result = normalise(data, NormalisationConfig(lower, 99))
    assert (np.diff(result.ravel()[np.argsort(data, axis=None)].astype(int)) >= 0).all()
    assert result.min() == 0 and result.max() == 255


def test_bias_field_is_removed(rng):
    x = np.linspace(-1, 1, 64)[:, None, None]
    tissue = np.where(ndimage.gaussian_filter(rng.normal(size=(64, 60, 24)), 3) > 0, 200.0, 120.0)
    tissue[:6] = tissue[-6:] = 0  # air
    volume = Volume(tissue * np.exp(0.4 * x) + rng.uniform(0, 4, tissue.shape), np.diag([-2.0, 2.0, 5.0, 1.0]))
    corrected = correct_bias(volume)
    for kind in (120, 200):
        before, after = (v.data[tissue == kind].std() / v.data[tissue == kind].mean() for v in (volume, corrected))
        assert after < before / 3
    log_field = np.log(volume.data / corrected.data)[6:-6].mean(axis=(1, 2))
    assert np.corrcoef(log_field, x[6:-6].ravel())[0, 1] > 0.99
    assert corrected.data.dtype == np.float32
    np.testing.assert_array_equal(corrected.affine, volume.affine)


@pytest.mark.parametrize("shape", [(1, 1, 1), (6, 6, 1), (16, 16, 2), (1, 1, 9)])
def test_thin_volumes_survive_bias_correction(shape, rng):
    result = correct_bias(Volume(rng.uniform(50, 100, shape), np.eye(4)))
    assert result.shape == shape
    assert np.isfinite(result.data).all()


@pytest.mark.parametrize("value", [0.0, 100.0])
def test_bias_correction_leaves_a_constant_image(value):
    result = correct_bias(Volume(np.full((6, 6, 6), value), np.eye(4)))
    assert np.unique(result.data).tolist() == [value]


def test_bias_correction_leaves_no_hole_where_intensities_are_zero_or_below(rng):
    data = rng.uniform(50, 100, (12, 12, 12))
    data[:3] = 0
    data[3:5] = -1
    assert np.isfinite(correct_bias(Volume(data, np.eye(4))).data).all()


def test_limits_that_leave_no_range_give_zeros():
    data = np.array([-1000.0, 5.0, 5.0, 5.0, 5.0]).reshape(5, 1, 1)
    assert normalise(data, NormalisationConfig(49, 51)).max() == 0


def test_normalised_array_is_contiguous_whatever_the_axes(rng):
    view = rng.uniform(size=(3, 4, 5)).transpose(2, 0, 1)[::-1]
    assert normalise(view, NormalisationConfig(1, 99)).flags.c_contiguous
