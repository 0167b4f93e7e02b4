"""Tiles: what a tile keeps has the patches of the whole volume, and no tiling sends fewer voxels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from femur_tf.patch_config import PatchConfig
from femur_tf.patches import Cutter
from femur_tf.tiles import Halo, TooSmallError, halos, spans, split

ONE = PatchConfig(size=4, spacing_mm=(1.0, 1.0, 1.0))
TWO = PatchConfig(size=4, spacing_mm=(1.0, 1.0, 2.0), scales_mm=(0.0, 4.0))
"""Steps (1, 1, 1) and (4, 4, 2)."""


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # offsets -2 .. 1
        (ONE, [(1, 2, 1), (1, 2, 1), (1, 2, 1)]),
        # 5 samples: -2 .. 2
        (PatchConfig(size=5), [(1, 2, 2), (1, 2, 2), (1, 2, 2)]),
        # two cells before and one after, of 4, 4 and 2 voxels
        (TWO, [(4, 8, 4), (4, 8, 4), (2, 4, 2)]),
        # steps 2 and 3 along x: 2 x 3 = 6 and 1 x 3 = 3 voxels, in multiples of 6
        (PatchConfig(size=4, spacing_mm=(1.0, 9.0, 9.0), scales_mm=(2.0, 3.0)), [(6, 6, 6), (1, 2, 1), (1, 2, 1)]),
        # a coronal plane alone reads nothing along y but the voxel's own cell
        (PatchConfig(size=4, planes=("coronal",)), [(1, 2, 1), (1, 0, 0), (1, 2, 1)]),
        # the coronal plane of the wide scale does not widen y, but cells of 4 voxels stay whole
        (
            PatchConfig(size=4, scales_mm=(0.0, 4.0), planes=("all", "coronal")),
            [(4, 8, 4), (4, 4, 4), (4, 8, 4)],
        ),
    ],
)
def test_the_halo_is_what_patches_reach(rule, expected):
    assert [(h.multiple, h.before, h.after) for h in halos(rule)] == expected


@pytest.mark.parametrize(
    ("length", "longest", "expected"),
    [
        (10, 10, [(0, 10)]),
        # halo 2 before, 1 after: the tiles are [0, 6), [3, 9) and [6, 10)
        (10, 6, [(0, 5), (5, 8), (8, 10)]),
        # the first tile reaches to voxel 9, one short of the end, and so keeps 8; the second is [6, 10)
        (10, 9, [(0, 8), (8, 10)]),
        # a tile of 4 keeps 3, 1, 1, ... voxels, and all of the last four
        (6, 4, [(0, 3), (3, 4), (4, 6)]),
        (6, 3, []),
        (1, 1, [(0, 1)]),
    ],
)
def test_kept_parts_by_hand(length, longest, expected):
    assert spans(length, Halo(1, 2, 1), longest) == expected


def test_parts_start_on_multiples_of_the_step():
    assert spans(22, Halo(4, 8, 4), 20) == [(0, 16), (16, 22)]
    assert spans(30, Halo(4, 8, 4), 20) == [(0, 16), (16, 24), (24, 30)]


def test_a_tile_by_hand():
    """7 x 1 x 1 voxels, at most 5 a tile: two of them, which share the halo of 3."""
    first, second = split((7, 1, 1), ONE, 5)
    assert (first.box[0], first.kept[0], first.inner[0]) == ((0, 5), (0, 4), slice(0, 4))
    assert (second.box[0], second.kept[0], second.inner[0]) == ((2, 7), (4, 7), slice(2, 5))
    assert first.voxels + second.voxels == 10


def test_a_volume_within_the_limit_is_one_tile():
    (tile,) = split((20, 30, 8), TWO, 4800)
    assert tile.box == tile.kept == ((0, 20), (0, 30), (0, 8))
    assert tile.voxels == 4800


def test_an_axis_shorter_than_the_halo_stays_whole():
    wide = PatchConfig(size=32, spacing_mm=(1.0, 5.0, 1.0), scales_mm=(0.0, 8.0))
    tiles = split((600, 47, 60), wide, 400 * 47 * 60)
    assert len(tiles) > 1
    assert all(tile.box[1:] == ((0, 47), (0, 60)) for tile in tiles)


def rules():
    """Patch rules with one to three scales, all planes of each or some."""
    scales = st.lists(st.sampled_from([0.0, 2.0, 3.0, 4.0]), min_size=1, max_size=3, unique=True)
    planes = st.sampled_from(["all", "finest", "axial", "coronal", "sagittal"])
    spacing = st.sampled_from([(1.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 1.5)])
    return st.tuples(st.integers(2, 6), spacing, scales).flatmap(
        lambda t: st.lists(planes, min_size=len(t[2]), max_size=len(t[2])).map(
            lambda p: PatchConfig(t[0], t[1], tuple(t[2]), tuple(p))
        )
    )


@given(rules(), st.tuples(*[st.integers(1, 30)] * 3), st.floats(0.05, 1.0), st.integers(0, 2**32 - 1))
def test_patches_of_what_is_kept_are_those_of_the_whole_volume(rule, shape, share, seed):
    grid = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    try:
        tiles = split(shape, rule, int(share * grid.size) + 1)
    except TooSmallError as error:
        tiles = split(shape, rule, error.least)
    whole, times_kept = Cutter.of(grid, rule), np.zeros(shape, int)
    multiples = [halo.multiple for halo in halos(rule)]
    for tile in tiles:
        times_kept[tile.target] += 1
        origins = np.array([[start for start, _ in box] for box in (tile.box, tile.kept)])
        assert not (origins % multiples).any()
        offset = origins[0]
        centres = np.argwhere(np.ones(shape, bool)[tile.target]) + origins[1]
        rng = np.random.default_rng(seed)
        centres = centres[rng.permutation(len(centres))[:300]]
        corners = np.array(list(itertools.product(*[(start, stop - 1) for start, stop in tile.kept])))
        centres = np.concatenate([centres, corners])
        part = Cutter.of(np.ascontiguousarray(grid[tile.source]), rule)
        np.testing.assert_array_equal(part.cut(centres - offset), whole.cut(centres))
    assert (times_kept == 1).all()


@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3), st.integers(1, 40))
def test_no_other_cut_of_an_axis_sends_fewer_voxels(length, multiple, before, after, longest):
    """Against all ways to cut an axis, by a shortest path over its possible ends."""
    halo = Halo(multiple, before * multiple, after * multiple)
    ends = [*range(0, length, multiple), length]
    least = {0: 0}
    for stop in ends[1:]:
        costs = []
        for start in ends[: ends.index(stop)]:
            first, last = halo.tile((start, stop), length)
            if start in least and last - first <= longest:
                costs.append(least[start] + last - first)
        if costs:
            least[stop] = min(costs)
    found = [halo.tile(kept, length) for kept in spans(length, halo, longest)]
    assert sum(stop - start for start, stop in found) == least.get(length, 0)


@given(st.tuples(*[st.integers(1, 25)] * 3), st.integers(1, 5000))
def test_tiles_keep_to_the_limit(shape, most):
    needed = 0
    try:
        tiles = split(shape, TWO, most)
    except TooSmallError as error:
        needed = error.least
        tiles = split(shape, TWO, needed)
    assert max(tile.voxels for tile in tiles) <= max(most, needed)
    assert needed == 0 or needed > most


def test_the_cheapest_axis_is_cut():
    """Of a long and a short axis the long one: the halo, across it, is small."""
    tiles = split((200, 12, 12), TWO, 200 * 12 * 6)
    assert {tile.box[1:] for tile in tiles} == {((0, 12), (0, 12))}


def test_a_limit_below_the_smallest_tile_names_what_is_needed():
    # 4 kept voxels and 12 of the halo along x and y, 2 and 6 along z
    with pytest.raises(TooSmallError, match="Expected room for at least 2048 voxels") as caught:
        split((100, 100, 100), TWO, 1000)
    tiles = split((100, 100, 100), TWO, caught.value.least)
    assert max(tile.voxels for tile in tiles) == caught.value.least


def test_a_volume_of_one_voxel():
    (tile,) = split((1, 1, 1), TWO, 1)
    assert tile.box == ((0, 1), (0, 1), (0, 1))
