"""Block sizes: how they fill a box, and how they follow from the memory limit."""

import re

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from networks import RULE, blocks_of, everywhere, spread, volume

from femur_tf import dense, machine, memory
from femur_tf.errors import DataError

RESIDENT = 500 * memory.MEGABYTE
HIP = (400, 60, 400)
"""Voxels of a working grid of the hip."""


@pytest.fixture(scope="module")
def network():
    """A small dense network of two scales, whose steps together are 4, 2, 4."""
    return dense.convert(spread(), RULE)


@pytest.fixture
def resident(monkeypatch):
    """Let the process hold 500 MB, whatever ran before."""
    monkeypatch.setattr(machine, "base_bytes", lambda: RESIDENT)


def test_a_box_is_split_by_hand(network):
    plan = blocks_of(network, (4, 2, 8))
    assert list(plan.split(((0, 5), (2, 5), (0, 8)))) == [
        ((0, 4), (2, 4), (0, 8)),
        ((0, 4), (4, 5), (0, 8)),
        ((4, 5), (2, 4), (0, 8)),
        ((4, 5), (4, 5), (0, 8)),
    ]


def test_blocks_of_a_strided_pass_are_longer_and_start_on_its_samples(network):
    plan = blocks_of(network, (4, 2, 4))
    found = list(plan.split(((0, 30), (0, 3), (0, 7)), every=(3, 1, 3)))
    assert [box[0] for box in found[::2]] == [(0, 12), (12, 24), (24, 30)]  # 12 is a multiple of 3 and of 4
    assert [box[1:] for box in found[:2]] == [((0, 2), (0, 7)), ((2, 3), (0, 7))]


def test_planes_go_together_until_their_widest_map_is_a_batch(network):
    plan = blocks_of(network, batch_bytes=4 * network.width * 100 * 7)
    assert [plan.images(pixels) for pixels in (100, 101, 700, 10**6)] == [7, 6, 1, 1]


@hypothesis.given(
    stops=st.tuples(*[st.integers(1, 30)] * 3),
    cells=st.tuples(*[st.integers(1, 4)] * 3),
    every=st.tuples(*[st.sampled_from([1, 3])] * 3),
)
def test_blocks_fill_a_box_once(network, stops, cells, every):
    plan = blocks_of(network, tuple(c * step for c, step in zip(cells, (4, 2, 4), strict=True)))
    count = np.zeros(stops, int)
    for box in plan.split(tuple((0, stop) for stop in stops), every):
        count[tuple(slice(start, stop) for start, stop in box)] += 1
        assert all(start % step == 0 for (start, _), step in zip(box, plan.steps, strict=True))
        assert all(start % step == 0 for (start, _), step in zip(box, every, strict=True))
    assert (count == 1).all()


def test_a_volume_that_fits_is_one_block(network, resident):
    plan = memory.plan_blocks(network, (50, 21, 50), 4000)
    assert plan.shape == (52, 22, 52)  # whole cells
    assert plan.steps == (4, 2, 4)
    assert plan.batch_bytes == memory.BATCH_BYTES
    assert plan.holds_coarse


def test_less_memory_gives_smaller_blocks_of_whole_cells(network, resident):
    shapes = [memory.plan_blocks(network, HIP, limit).shape for limit in (4000, 950, 800)]
    sizes = [int(np.prod(shape)) for shape in shapes]
    assert sizes[0] > sizes[1] > sizes[2]
    assert all(n % step == 0 for shape in shapes for n, step in zip(shape, (4, 2, 4), strict=True))


@hypothesis.given(limit=st.integers(1, 4000), shape=st.tuples(*[st.integers(1, 600)] * 3))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_a_block_needs_no_more_than_the_limit_leaves_or_the_limit_is_refused(network, resident, limit, shape):
    try:
        plan = memory.plan_blocks(network, shape, limit)
    except DataError:
        return
    cells = [-(-n // s) for n, s in zip(shape if plan.holds_coarse else plan.shape, (4, 2, 4), strict=True)]
    sums = int(np.prod(plan.shape)) + int(np.prod(cells))
    assert RESIDENT + 4 * network.units * sums < limit * memory.MEGABYTE


@pytest.mark.parametrize("limit", [1, 499, 520])
def test_a_limit_below_the_smallest_block_is_refused_and_the_least_one_named_works(network, resident, limit):
    with pytest.raises(DataError, match=rf"--max-memory: expected .*400 x 60 x 400 .* Received: {limit} MB") as caught:
        memory.plan_blocks(network, HIP, limit)
    least = int(re.search(r"at least (\d+) MB", str(caught.value))[1])
    assert limit < least < 1000
    assert memory.plan_blocks(network, HIP, least)
    with pytest.raises(DataError):
        memory.plan_blocks(network, HIP, int(least / 1.1) - 2)  # a tenth is kept in reserve


def test_the_smallest_blocks_give_the_same_map(network, resident, monkeypatch):
    monkeypatch.setattr(memory, "SMALLEST_SIDE", 4)
    grid = volume((21, 9, 17))
    with pytest.raises(DataError) as caught:
        memory.plan_blocks(network, grid.shape, 1)
    plan = memory.plan_blocks(network, grid.shape, int(re.search(r"at least (\d+) MB", str(caught.value))[1]))
    np.testing.assert_allclose(everywhere(network, grid, plan), everywhere(network, grid), rtol=0, atol=1e-6)


def test_a_volume_of_one_voxel_has_a_block(network, resident):
    assert memory.plan_blocks(network, (1, 1, 1), 4000).shape == (4, 2, 4)
