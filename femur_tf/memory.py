"""How large a block of a volume may be evaluated at once, within a memory limit.

Two things of a block take memory: the maps of the planes that a tower is working on
and, with several towers that see every voxel, the sums of the first Dense layer,
`units` floats a voxel. A block is a whole volume, halved until both fit beside what
the process already holds; it is cut where that adds least halo. Block
starts lie on multiples of every lattice step, so that a cell of a coarse scale is
never split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from femur_tf import machine
from femur_tf.cover import Box
from femur_tf.dense import DenseNetwork
from femur_tf.patch_config import PLANE_AXES

MEGABYTE = 10**6
BATCH_BYTES = 48 * MEGABYTE
"""Wanted size of the widest map of a batch of planes: larger ones gained nothing (docs/performance.md)."""
LIVE_MAPS = 4
"""Maps of the widest size that are alive at once while a tower is evaluated, with the library's own copies."""
SLACK_BYTES = 150 * MEGABYTE
"""For compiled graphs, scratch of the convolutions and what the allocator keeps: measured 120 MB (benchmarks.dense)."""
SMALLEST_SIDE = 32
"""Blocks are not cut below this side: the halo of a block is about as wide."""


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """The block size of one volume."""

    shape: tuple[int, int, int]
    """Voxels of a block."""
    steps: tuple[int, int, int]
    """Least common multiple of the lattice steps along each axis."""
    map_bytes: int
    """Of the widest map, a sample of a plane."""
    holds_coarse: bool
    """Whether the sums of the coarse scales are held for the whole volume, and not made anew for each block."""
    batch_bytes: int

    def images(self, pixels: int) -> int:
        """Return how many planes of `pixels` samples make a batch, at least one."""
        return max(1, self.batch_bytes // (self.map_bytes * pixels))

    def split(self, box: Box, every: Sequence[int] = (1, 1, 1)) -> Iterator[Box]:
        """Yield blocks that fill `box`, whose starts are multiples of `steps`.

        Args:
          box: [start, stop) in voxels.
          every: along each axis one voxel in so many is evaluated. Blocks are longer by as much, which also keeps
            their starts on the voxels start, start + every, ... of the box.
        """
        ranges = [
            [(s, min(stop, s + size * step)) for s in range(start, stop, size * step)]
            for (start, stop), size, step in zip(box, self.shape, every, strict=True)
        ]
        for x in ranges[0]:
            for y in ranges[1]:
                for z in ranges[2]:
                    yield x, y, z


def _needed(network: DenseNetwork, block: Sequence[int], map_bytes: int, batch_bytes: int) -> int:
    """Return the bytes that evaluating a block takes."""
    halo = network.rule.size - 1
    sides = sorted(n + halo for n in block)
    widest = max(batch_bytes, map_bytes * sides[-1] * sides[-2])
    # The last fine tower's sums are used as they come; only those of the towers before it are held for a block.
    held = int(np.prod(block)) if len(network.fine_towers) > 1 else 0
    return 4 * network.units * (held + held // block[0]) + LIVE_MAPS * widest


def _coarse_bytes(network: DenseNetwork, shape: Sequence[int]) -> int:
    """Return the bytes of the sums of all coarse scales over a box."""
    cells = sum(math.prod(-(-n // s) for n, s in zip(shape, steps, strict=True)) for steps in network.coarse_steps)
    return 4 * network.units * cells


def _work(network: DenseNetwork, shape: Sequence[int], block: Sequence[int]) -> float:
    """Return the samples, with their halos, that the fine towers evaluate for a volume in blocks."""
    halo = network.rule.size - 1
    blocks = math.prod(n / b for n, b in zip(shape, block, strict=True))
    planes = [PLANE_AXES[network.rule.towers[tower].plane] for tower in network.fine_towers]
    return blocks * sum(block[n] * (block[a] + halo) * (block[b] + halo) for n, a, b in planes)


def _halved(
    network: DenseNetwork, shape: Sequence[int], block: Sequence[int], steps: Sequence[int]
) -> list[int] | None:
    """Return the block halved along the axis where that adds least work; None where it is the smallest one."""
    ways = []
    for axis in range(3):
        half = list(block)
        half[axis] = -(-block[axis] // (2 * steps[axis])) * steps[axis]
        work = _work(network, shape, half)
        free = work <= _work(network, shape, block) and bool(network.fine_towers)
        if half[axis] < block[axis] and (free or block[axis] > SMALLEST_SIDE):
            ways.append((work, -block[axis], half))
    return min(ways)[2] if ways else None


def _fixed(network: DenseNetwork, shape: Sequence[int]) -> int:
    """Return the bytes of padded planes of all scales and of the map, and the slack."""
    halo = network.rule.size
    total = SLACK_BYTES + 2 * int(np.prod(shape))
    for scale, plane in network.rule.towers:
        cells = [-(-n // s) for n, s in zip(shape, network.rule.steps[scale], strict=True)]
        across, rows, columns = PLANE_AXES[plane]
        total += cells[across] * (cells[rows] + halo) * (cells[columns] + halo)
    return total


def plan_blocks(network: DenseNetwork, shape: Sequence[int], max_memory_mb: int, *, held_bytes: int = 0) -> BlockPlan:
    """Choose the block size for a volume.

    Args:
      network: the dense form of a model.
      shape: (X, Y, Z) of the volume.
      max_memory_mb: resident memory that the process may reach, MB (10^6 bytes).
      held_bytes: what else is or will be held meanwhile, beside `machine.base_bytes`.

    Raises:
      DataError: the limit is below what the process holds with the smallest block; the least limit is named.
    """
    base = machine.base_bytes() + held_bytes + _fixed(network, shape)
    most = machine.within(max_memory_mb * MEGABYTE)
    free = most - base
    # The sums of the first Dense layer are float32, whatever the towers compute in.
    map_bytes = max(network.width * (2 if network.precision == "bfloat16" else 4), network.units * 4)
    # Those of a centre are alive while the steps beside it are computed: once, not `LIVE_MAPS` times.
    map_bytes += 4 * network.units // LIVE_MAPS if network.aside else 0
    steps = network.rule.common_step
    batch = min(BATCH_BYTES, max(0, free) // (4 * LIVE_MAPS))
    whole = [-(-n // step) * step for n, step in zip(shape, steps, strict=True)]
    held = _coarse_bytes(network, whole)

    def block_within(free: float, *, coarse: bool) -> tuple[list[int], float]:
        """Return the largest block that fits, or the smallest one, and what it needs."""
        block = whole
        while True:
            needed = _needed(network, block, map_bytes, batch) + (_coarse_bytes(network, block) if coarse else 0)
            half = _halved(network, shape, block, steps) if needed > free else None
            if half is None:
                return block, needed
            block = half

    block, needed = block_within(free - held, coarse=False)
    holds_coarse = needed <= free - held
    if not holds_coarse:
        block, needed = block_within(free, coarse=True)
    if needed > free:
        least = (base + _needed(network, block, map_bytes, 0) + _coarse_bytes(network, block)) / MEGABYTE
        raise machine.too_little(int(least * 1.1) + 1, max_memory_mb, f"a volume of {' x '.join(map(str, shape))}")
    x, y, z = block
    return BlockPlan((x, y, z), steps, map_bytes, holds_coarse, batch)
