"""Padding: what is left out, and that a padded scan gets the working grid and the map of the scan within."""

from __future__ import annotations

import numpy as np
import pytest

from femur_tf import config, content, study
from femur_tf.volume import Volume, canonical, from_working, mask_to_working

SHAPE = (12, 14, 10)


def scan(rng):
    """Return a scan of 12 x 14 x 10 voxels, no two alike, oblique and with swapped axes."""
    affine = np.array([[0.1, 2.0, 0, 5], [-1.5, 0.1, 0, 6], [0, 0, -1.0, 7], [0, 0, 0, 1]])
    return Volume(rng.permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.float32) + 1, affine)


def padded(volume, before, after, value=0.0):
    """Return a volume with planes of one value around it; its own voxels stay at their places."""
    data = np.pad(volume.data, list(zip(before, after, strict=True)), constant_values=value)
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ before
    return Volume(data, affine)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((0, 0, 0), (0, 0, 0), ((0, 12), (0, 14), (0, 10))),
        ((4, 0, 0), (0, 5, 0), ((4, 16), (0, 14), (0, 10))),
        ((3, 0, 0), (0, 3, 0), ((0, 15), (0, 17), (0, 10))),  # too few
        ((4, 9, 6), (5, 4, 7), ((4, 16), (9, 23), (6, 16))),
    ],
)
def test_planes_of_one_value_at_the_sides_are_padding(rng, before, after, expected):
    volume = padded(scan(rng), before, after, value=-7.0)
    assert content.box(volume.data) == tuple(slice(*side) for side in expected)


def test_a_plane_of_one_value_within_a_scan_is_image(rng):
    data = scan(rng).data
    data[5:10] = 0
    assert content.box(data) == (slice(0, 12), slice(0, 14), slice(0, 10))


def test_a_constant_scan_is_all_image():
    assert content.box(np.ones(SHAPE)) == (slice(0, 12), slice(0, 14), slice(0, 10))


def test_a_part_stays_at_its_place(rng):
    volume = scan(rng)
    found = content.part(padded(volume, (4, 9, 6), (5, 4, 7)), (slice(4, 16), slice(9, 23), slice(6, 16)))
    np.testing.assert_array_equal(found.data, volume.data)
    np.testing.assert_allclose(found.affine, volume.affine, atol=1e-12)


@pytest.mark.parametrize("spacing_mm", [None, (1.1, 1.0, 0.7), (3.0, 2.0, 2.5)])
def test_a_padded_scan_has_the_working_grid_and_the_map_of_the_scan_within(rng, spacing_mm):
    volume = scan(rng)
    other = padded(volume, (4, 9, 0), (0, 4, 7))
    spacing_mm = spacing_mm or canonical(volume).spacing_mm
    data = config.DataConfig(patch=config.PatchConfig(spacing_mm=spacing_mm))
    one, two = study.prepare(volume, data), study.prepare(other, data)
    np.testing.assert_array_equal(two.data, one.data)
    np.testing.assert_allclose(two.affine, one.affine, atol=1e-9)

    map_ = Volume(rng.uniform(0.2, 1, one.shape).astype(np.float16), one.affine)
    expected, found = from_working(map_, volume), from_working(Volume(map_.data, two.affine), other)
    inside = (slice(4, 16), slice(9, 23), slice(0, 10))
    np.testing.assert_allclose(found[inside], expected, atol=1e-5)
    assert (expected > 0.1).all()
    found[inside] = 0
    beyond = np.ceil(np.max(spacing_mm))  # a voxel of the working grid has the nearest value
    assert not found[: int(4 - beyond)].any() and not found[:, : int(9 - beyond)].any()
    if spacing_mm == canonical(volume).spacing_mm:
        assert not found.any()


@pytest.mark.parametrize("spacing_mm", [None, (1.1, 1.0, 0.7)])
def test_a_padded_mask_lies_on_the_working_grid_of_its_scan(rng, spacing_mm):
    volume = scan(rng)
    mask = np.zeros(SHAPE, bool)
    mask[3:9, 4:10, 2:7] = True
    data = config.DataConfig(patch=config.PatchConfig(spacing_mm=spacing_mm or canonical(volume).spacing_mm))
    working = study.prepare(volume, data)
    other, other_mask = (padded(Volume(v, volume.affine), (4, 9, 0), (0, 4, 7)) for v in (volume.data, mask))
    found = mask_to_working(other_mask.data, other.affine, study.prepare(other, data))
    expected = mask_to_working(mask, volume.affine, working)
    assert (found != expected).mean() < (0.02 if spacing_mm else 1e-9)
