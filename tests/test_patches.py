"""The patch rule, on volumes whose voxels are named by their place: 100 x + 10 y + z."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from femur_tf import patches
from femur_tf.config import PatchConfig
from femur_tf.patches import PLANE_AXES, Cutter, lattice, padded_planes

X, Y, Z = np.ogrid[:3, :4, :4]
NAMED = (100 * X + 10 * Y + Z).astype(np.uint8)
AXIAL, CORONAL, SAGITTAL = range(3)


def rule(size, steps=((1, 1, 1),), spacing_mm=(1.0, 1.0, 1.0)):
    """Return a patch rule with isotropic steps of so many millimetres."""
    return PatchConfig(size=size, spacing_mm=spacing_mm, scales_mm=tuple(float(step[0]) for step in steps))


@pytest.mark.parametrize(
    ("voxels", "step", "cells"),
    [
        ([0, 1], 2, [1]),  # 0.5 is rounded up: (1 + 1) // 2
        ([1, 2], 2, [2]),
        ([0, 0, 1], 3, [0]),  # 1/3 down
        ([0, 1, 1], 3, [1]),  # 2/3 up
        ([4, 4, 9], 2, [4, 9]),  # the partial last cell repeats its edge
        ([4, 4, 9, 8], 3, [6, 8]),
        ([255] * 4, 4, [255]),  # the sum does not overflow
        ([7], 4, [7]),  # a cell larger than the volume
    ],
)
def test_a_cell_is_the_rounded_mean_of_its_voxels(voxels, step, cells):
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        steps = [1, 1, 1]
        steps[axis] = step
        assert lattice(np.array(voxels, np.uint8).reshape(shape), tuple(steps)).ravel().tolist() == cells


def test_a_cell_is_rounded_once_over_all_axes():
    grid = np.array([0, 1, 1, 1, 0, 0, 0, 0], np.uint8).reshape(2, 2, 2)
    # 3 of 8: (3 + 4) // 8 = 0, where rounding an axis at a time would give 1.
    assert lattice(grid, (2, 2, 2)).tolist() == [[[0]]]


def test_every_voxel_is_the_volume_itself():
    assert lattice(NAMED, (1, 1, 1)) is NAMED


def test_patches_span_their_planes_and_reach_from_half_below_to_one_less_above():
    (patch,) = Cutter.of(NAMED, rule(2)).cut([[1, 2, 3]])  # offsets -1, 0
    assert patch.dtype == np.uint8
    assert patch[..., AXIAL].tolist() == [[13, 23], [113, 123]]  # rows x, columns y
    assert patch[..., CORONAL].tolist() == [[22, 23], [122, 123]]  # rows x, columns z
    assert patch[..., SAGITTAL].tolist() == [[112, 113], [122, 123]]  # rows y, columns z


def test_an_odd_patch_reaches_as_far_on_both_sides():
    (patch,) = Cutter.of(NAMED, rule(3)).cut([[1, 2, 1]])
    assert patch[..., AXIAL].tolist() == [[11, 21, 31], [111, 121, 131], [211, 221, 231]]


def test_beyond_the_border_the_nearest_voxel_is_repeated():
    (low,) = Cutter.of(NAMED, rule(2)).cut([[0, 0, 2]])
    assert low[..., AXIAL].tolist() == [[2, 2], [2, 2]]
    (high,) = Cutter.of(NAMED, rule(4)).cut([[2, 3, 0]])  # offsets -2 .. 1
    assert high[..., AXIAL].tolist() == [[10, 20, 30, 30], [110, 120, 130, 130], [210, 220, 230, 230]] + [
        [210, 220, 230, 230]
    ]


def test_extra_adds_one_sample_at_the_upper_end_of_each_axis():
    (patch,) = Cutter.of(NAMED, rule(2)).cut([[0, 0, 0]], extra=True)
    assert patch[..., AXIAL].tolist() == [[0, 0, 10], [0, 0, 10], [100, 100, 110]]


def test_channels_are_scale_by_scale_and_plane_by_plane():
    config = rule(2, steps=((1,), (2,)))
    assert config.channels == 6
    (patch,) = Cutter.of(NAMED, config).cut([[2, 3, 1]])
    coarse = lattice(NAMED, (2, 2, 2))
    assert patch[1, 1].tolist() == [231] * 3 + [coarse[1, 1, 0]] * 3
    # One step up the rows of a coarse patch is one cell: x for axial and coronal, y for sagittal.
    assert patch[0, 1, 3:].tolist() == [coarse[0, 1, 0], coarse[0, 1, 0], coarse[1, 0, 0]]


def test_padded_planes_hold_the_patch_of_a_cell_at_its_own_index():
    config = rule(2)
    planes = padded_planes(NAMED, config)
    centre = (1, 2, 3)
    (patch,) = Cutter.of(NAMED, config).cut([centre])
    for channel, axes in enumerate(PLANE_AXES):
        n, a, b = (centre[axis] for axis in axes)
        assert planes[channel].shape == tuple(np.array(NAMED.shape)[list(axes)] + (0, 2, 2))
        np.testing.assert_array_equal(planes[channel][n, a : a + 2, b : b + 2], patch[..., channel])


SHAPES = st.tuples(*[st.integers(1, 7)] * 3)
STEPS = st.tuples(*[st.integers(1, 4)] * 3)


def volume(shape, seed=0):
    """Return a random uint8 volume."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def centres_of(shape):
    """Return every voxel of a volume, (N, 3)."""
    return np.argwhere(np.ones(shape, bool))


def config_of(size, steps):
    """Return a rule with one scale whose steps along x, y, z are `steps`."""
    config = PatchConfig(size=size, spacing_mm=tuple(12 / s for s in steps), scales_mm=(12.0,))
    assert config.steps == (steps,)
    return config


@hypothesis.given(shape=SHAPES, steps=STEPS)
def test_cells_equal_means_taken_one_by_one(shape, steps):
    grid = volume(shape)
    cells = lattice(grid, steps)
    assert cells.shape == tuple(-(-n // s) for n, s in zip(shape, steps, strict=True))
    for cell in np.ndindex(*cells.shape):
        index = [np.minimum(np.arange(s) + c * s, n - 1) for c, s, n in zip(cell, steps, shape, strict=True)]
        voxels = grid[np.ix_(*index)].astype(int)
        assert cells[cell] == (voxels.sum() + voxels.size // 2) // voxels.size


@hypothesis.given(shape=SHAPES, steps=STEPS, size=st.integers(2, 6), extra=st.booleans())
def test_patches_equal_samples_read_one_by_one(shape, steps, size, extra):
    grid = volume(shape)
    centres = centres_of(shape)[:: max(1, int(np.prod(shape)) // 8)]
    found = Cutter.of(grid, config_of(size, steps)).cut(centres, extra=extra)
    cells = lattice(grid, steps)
    offsets = np.arange(size + extra) - size // 2
    for centre, patch in zip(centres, found, strict=True):
        for channel, (across, rows, columns) in enumerate(PLANE_AXES):
            index = [None, None, None]
            index[across] = np.array([centre[across] // steps[across]])
            for axis in (rows, columns):
                index[axis] = np.clip(centre[axis] // steps[axis] + offsets, 0, cells.shape[axis] - 1)
            expected = cells[np.ix_(*index)].squeeze(axis=across)
            np.testing.assert_array_equal(patch[..., channel], expected)


@hypothesis.given(shape=SHAPES, steps=STEPS)
def test_voxels_of_a_cell_share_their_patch(shape, steps):
    centres = centres_of(shape)
    found = Cutter.of(volume(shape), config_of(4, steps)).cut(centres)
    first = Cutter.of(volume(shape), config_of(4, steps)).cut(centres // steps * steps)
    np.testing.assert_array_equal(found, first)


@hypothesis.given(cells=SHAPES, steps=STEPS, half=st.integers(1, 3))
def test_a_mirrored_patch_is_the_patch_of_the_mirrored_volume_where_the_step_divides_the_extent(cells, steps, half):
    size = 2 * half
    shape = (cells[0] * steps[0], cells[1], cells[2])
    grid, centres = volume(shape), centres_of(shape)
    mirrored_centres = centres * (-1, 1, 1) + (shape[0] - 1, 0, 0)
    expected = Cutter.of(grid[::-1], config_of(size, steps)).cut(mirrored_centres)
    patch = Cutter.of(grid, config_of(size, steps)).cut(centres, extra=True)
    for plane in (AXIAL, CORONAL):  # rows along x
        np.testing.assert_array_equal(patch[:, ::-1, :, plane][:, :size, :size], expected[..., plane])
    np.testing.assert_array_equal(patch[:, :size, :size, SAGITTAL], expected[..., SAGITTAL])


def test_cutting_in_chunks_changes_nothing(monkeypatch):
    centres = centres_of(NAMED.shape)
    expected = Cutter.of(NAMED, rule(4)).cut(centres)
    monkeypatch.setattr(patches, "_CHUNK", 5)
    np.testing.assert_array_equal(Cutter.of(NAMED, rule(4)).cut(centres), expected)


@pytest.mark.parametrize(
    ("grid", "received"),
    [
        (NAMED.astype(np.float32), r"shape=\(3, 4, 4\), dtype=float32"),
        (NAMED[0], r"shape=\(4, 4\), dtype=uint8"),
        (NAMED[:0], r"shape=\(0, 4, 4\), dtype=uint8"),
    ],
)
def test_other_than_a_uint8_volume_is_refused(grid, received):
    with pytest.raises(ValueError, match=r"Expected a uint8 volume \(X, Y, Z\)\. Received: " + received):
        Cutter.of(grid, rule(2))


@pytest.mark.parametrize("centre", [[-1, 0, 0], [0, 4, 0], [0, 0, 99]])
def test_a_centre_outside_the_volume_is_refused(centre):
    with pytest.raises(IndexError, match=rf"inside the volume of shape \(3, 4, 4\)\. Received: \{centre}"):
        Cutter.of(NAMED, rule(2)).cut([[0, 0, 0], centre])


def test_a_patch_larger_than_the_volume_repeats_its_edges():
    (patch,) = Cutter.of(np.full((1, 1, 1), 7, np.uint8), rule(32)).cut([[0, 0, 0]])
    assert patch.shape == (32, 32, 3)
    assert (patch == 7).all()


def test_no_centre_gives_no_patch():
    assert Cutter.of(NAMED, rule(2)).cut(np.empty((0, 3), int)).shape == (0, 2, 2, 3)
