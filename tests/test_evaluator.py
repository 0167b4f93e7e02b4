"""A dense network on one volume: strided, block by block, in bfloat16; and the probe that checks it against patches."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from networks import (
    RULE,
    SHAPE,
    SPECS,
    blocks_of,
    drawn,
    everywhere,
    one_by_one,
    spread,
    volume,
    voxels,
)

from femur_tf import dense, evaluator
from femur_tf.config import PatchConfig
from femur_tf.evaluator import Evaluator, Probe, whole
from femur_tf.patches import Cutter

TOLERANCE = 1e-5
"""Sums of float32 products in another order, before any rounding to float16."""
BLOCK_TOLERANCE = 1e-6
"""The same sums for planes of other lengths."""
BFLOAT16_TOLERANCE = 0.02
"""Of a probability whose convolutions are computed in bfloat16, which has 8 bits."""
SIGMOID_TOLERANCE = 2**-23
"""The last place of a float32: vectors and what is left of them are computed by other instructions."""
PATCHWISE_TOLERANCE = 1e-6
"""The same network on the same bytes, in batches of another length."""
EXAMPLES = 10
"""Each builds a network and takes about half a second."""
WIDE = (19, 12, 17)
"""A volume with several samples of a stride along each axis, none of which divides it."""


def test_patch_by_patch_is_the_network_on_each_patch(monkeypatch):
    monkeypatch.setattr(evaluator, "PATCH_BATCH", 100)  # 210 voxels: the last batch is short
    network, grid = spread(), volume()
    found = evaluator.by_patches(network, grid, RULE, voxels())
    expected = np.asarray(network(Cutter.of(grid, RULE).cut(voxels())))[:, 0]
    assert (found.shape, found.dtype) == ((210,), np.float32)
    np.testing.assert_allclose(found, expected, rtol=0, atol=PATCHWISE_TOLERANCE)
    np.testing.assert_array_equal(evaluator.by_patches(network, grid, RULE), found)


def test_a_probe_keeps_its_voxels_of_each_block_and_no_others():
    probe = Probe(np.array([[0, 0, 0], [3, 1, 0], [2, 1, 0]]))
    probe.take(((2, 4), (0, 2), (0, 1)), np.array([[[0.1], [0.2]], [[0.3], [0.4]]], np.float32))
    assert probe.seen.tolist() == [False, True, True]
    np.testing.assert_array_equal(probe.values[1:], np.array([0.4, 0.2], np.float32))


def test_a_probe_keeps_values_that_a_float16_would_round():
    network, grid = dense.convert(spread(), RULE), volume()
    probe, result = Probe(voxels()), np.zeros(SHAPE, np.float16)
    found = Evaluator(network, grid, blocks_of(network, (4, 4, 8)))
    assert sum(found.fill(result, whole(SHAPE), probe)) == grid.size
    np.testing.assert_array_equal(probe.values.reshape(SHAPE).astype(np.float16), result)
    assert (probe.values != result.reshape(-1)).mean() > 0.9
    np.testing.assert_allclose(probe.values, everywhere(network, grid).reshape(-1), rtol=0, atol=BLOCK_TOLERANCE)


def test_a_probe_measures_the_largest_difference_from_patches():
    model, grid = spread(), volume()
    probe = Probe(np.array([[0, 0, 0], [6, 4, 5], [1, 2, 3]]))
    probe.seen[:2] = True
    probe.values[:2] = one_by_one(model, grid, RULE)[0, 0, 0], one_by_one(model, grid, RULE)[6, 4, 5] + 0.125
    assert probe.largest_difference(model, grid, RULE) == pytest.approx(0.125, abs=PATCHWISE_TOLERANCE)


def test_a_probe_that_saw_nothing_has_no_difference():
    assert Probe(voxels()).largest_difference(spread(), volume(), RULE) == 0


def test_a_probe_draws_no_voxel_twice_and_no_more_than_there_are(rng):
    assert len(np.unique(Probe.draw((3, 4, 5), 50, rng).centres, axis=0)) == 50
    assert len(np.unique(Probe.draw((3, 4, 5), 1000, rng).centres, axis=0)) == 60


def test_a_probe_draws_voxels_of_the_whole_volume(rng):
    centres = Probe.draw((3, 1, 2), 200, rng).centres
    assert {tuple(centre) for centre in centres} == {(x, 0, z) for x in range(3) for z in range(2)}


@pytest.mark.slow
@hypothesis.given(spec=SPECS, strided=st.tuples(*[st.booleans()] * 3))
@hypothesis.settings(max_examples=EXAMPLES)
def test_strided_evaluation_is_the_dense_one_at_the_sampled_voxels(spec, strided):
    model, rule = drawn(spec)
    network, grid = dense.convert(model, rule), volume((9, 8, 7))
    every = [network.stride if s else 1 for s in strided]
    found = Evaluator(network, grid, blocks_of(network)).probability(whole(grid.shape), every)
    expected = everywhere(network, grid)[tuple(slice(None, None, step) for step in every)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
def test_a_strided_box_in_the_middle_starts_with_its_first_voxel():
    network, grid = dense.convert(spread(), RULE), volume(WIDE)
    box, every = ((4, 19), (2, 11), (8, 17)), (4, 1, 4)
    found = Evaluator(network, grid, blocks_of(network)).probability(box, every)
    expected = everywhere(network, grid)[4:19:4, 2:11, 8:17:4]
    assert network.stride == 4
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@hypothesis.given(
    spec=SPECS,
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    cells=st.tuples(*[st.integers(1, 3)] * 3),
    holds_coarse=st.booleans(),
    batch_bytes=st.sampled_from([1, 10**5, 10**8]),
)
@hypothesis.settings(max_examples=EXAMPLES)
def test_any_block_size_gives_the_same_map(spec, shape, cells, holds_coarse, batch_bytes):
    model, rule = drawn(spec)
    network, grid = dense.convert(model, rule), volume(shape)
    steps = blocks_of(network).steps
    block = tuple(step * count for step, count in zip(steps, cells, strict=True))
    plan = blocks_of(network, block, holds_coarse=holds_coarse, batch_bytes=batch_bytes)
    found = everywhere(network, grid, plan)
    np.testing.assert_allclose(found, everywhere(network, grid), rtol=0, atol=BLOCK_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"filters": (8, 16), "dense": (32, 8)}])
def test_bfloat16_is_near_float32(settings):
    model, grid = spread(**settings), volume(WIDE)
    exact = everywhere(dense.convert(model, RULE), grid)
    found = everywhere(dense.convert(model, RULE, "bfloat16"), grid)
    assert np.ptp(exact) > 10 * BFLOAT16_TOLERANCE  # the network tells voxels apart
    assert 0 < np.abs(found - exact).max() < BFLOAT16_TOLERANCE


def test_coarse_sums_are_held_for_the_whole_volume_only_where_memory_allows():
    network, grid = dense.convert(spread(), RULE), volume()
    (sums,) = Evaluator(network, grid, blocks_of(network)).whole_coarse  # cells of 4 x 2 x 4 voxels in 7 x 5 x 6
    assert (sums.steps, sums.origin, sums.cells.shape) == ((4, 2, 4), (0, 0, 0), (2, 3, 2, network.units))
    assert Evaluator(network, grid, blocks_of(network, holds_coarse=False)).whole_coarse is None


def test_a_wide_scale_is_added_to_the_finer_one_whose_cells_make_up_its_own():
    rule = PatchConfig(size=12, spacing_mm=(1.0, 2.0, 1.0), scales_mm=(0.0, 4.0, 8.0, 6.0))  # steps 4 2 4, 8 4 8, 6 3 6
    network, grid = dense.convert(spread(rule), rule), volume((17, 9, 14))
    found = Evaluator(network, grid, blocks_of(network)).coarse(((8, 17), (4, 9), (0, 14)))
    assert [sums.steps for sums in found] == [(4, 2, 4), (6, 3, 6)]
    assert [sums.origin for sums in found] == [(2, 2, 0), (1, 1, 0)]


def test_cells_of_a_network_of_one_coarse_scale_share_a_probability():
    rule = PatchConfig(size=12, scales_mm=(3.0,))
    found = everywhere(dense.convert(spread(rule), rule), volume())
    cells = found[::3, ::3, ::3]
    expected = cells.repeat(3, 0).repeat(3, 1).repeat(3, 2)[:7, :5, :6]
    np.testing.assert_allclose(found, expected, rtol=0, atol=SIGMOID_TOLERANCE)


def test_a_network_without_a_tower_at_every_voxel_takes_as_many_planes_at_a_time_as_its_sums_allow():
    rule = PatchConfig(size=12, scales_mm=(3.0,))
    network, grid = dense.convert(spread(rule), rule), volume((9, 8, 7))
    plan = blocks_of(network, batch_bytes=2 * 8 * 9 * 4 * network.units)
    parts = [box for box, _ in Evaluator(network, grid, plan).parts(whole(grid.shape))]
    most = max(np.prod([stop - start for start, stop in box]) for box in parts)
    assert most * plan.map_bytes <= plan.batch_bytes
    assert len(parts) > 1


def test_a_volume_that_is_no_uint8_is_refused():
    with pytest.raises(ValueError, match="Expected a uint8 volume"):
        evaluator.by_patches(spread(), volume().astype(float), RULE, voxels())


def test_no_centre_gives_no_probability():
    assert evaluator.by_patches(spread(), volume(), RULE, np.empty((0, 3), int)).shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 2)])
def test_volumes_thinner_than_a_patch_are_evaluated(shape):
    model, grid = spread(), volume(shape)
    found = everywhere(dense.convert(model, RULE), grid)
    np.testing.assert_allclose(found, one_by_one(model, grid, RULE), rtol=0, atol=TOLERANCE)
