"""Tiles of a volume: parts that can be evaluated on their own and give the values of the whole.

The value of a voxel depends on the voxels that its patches read. Evaluated on a tile,
it is the same where all of them lie in the tile, and where the tile ends exactly
where the volume does, because there both repeat the same last cells. So a tile
carries a **halo** around the voxels that are kept of it. Tiles and kept parts start
on multiples of every step of the patch rule, and a tile ends on one unless it ends
with the volume: no cell of a lattice is cut, or completed by other voxels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from femur_tf.patch_config import PatchConfig

Span = tuple[int, int]
"""[start, stop) in voxels along an axis."""
Slices = tuple[slice, slice, slice]


class TooSmallError(ValueError):
    """The limit is below the smallest tile; `least` voxels are needed."""

    def __init__(self, least: int) -> None:
        super().__init__(f"Expected room for at least {least} voxels.")
        self.least = least


@dataclasses.dataclass(frozen=True)
class Halo:
    """What a tile needs beyond its kept part, along one axis, in voxels: multiples of `multiple`."""

    multiple: int
    """The least common multiple of all steps."""
    before: int
    after: int

    @property
    def both(self) -> int:
        """Voxels that two neighbouring tiles share."""
        return self.before + self.after

    def tile(self, kept: Span, length: int) -> Span:
        """Return the tile around a kept part of an axis of `length` voxels."""
        return max(0, kept[0] - self.before), min(length, kept[1] + self.after)


def halos(rule: PatchConfig) -> tuple[Halo, Halo, Halo]:
    """Return the halo along x, y and z.

    A scale with step s reads size // 2 cells before and size - 1 - size // 2 cells after the voxel's own, along the
    axes of the planes that it has; across a plane it reads the voxel's cell alone.

    Args:
      rule: the patch rule.
    """
    x, y, z = (_halo(rule, axis) for axis in range(3))
    return x, y, z


def _halo(rule: PatchConfig, axis: int) -> Halo:
    """Return the halo along one axis."""
    multiple, reach = rule.common_step[axis], rule.widest_steps[axis]
    before = rule.size // 2
    rounded = [-(-cells * reach // multiple) * multiple for cells in (before, rule.size - 1 - before)]
    return Halo(multiple, *rounded)


@dataclasses.dataclass(frozen=True)
class Tile:
    """A part of a volume to evaluate, and the part of it whose values are those of the whole."""

    box: tuple[Span, Span, Span]
    """Of the tile, in voxels of the volume."""
    kept: tuple[Span, Span, Span]
    """Of the kept part, in voxels of the volume."""

    @property
    def voxels(self) -> int:
        """Voxels of the tile."""
        return int(np.prod([stop - start for start, stop in self.box]))

    @property
    def source(self) -> Slices:
        """The tile in the volume."""
        return _slices(self.box)

    @property
    def target(self) -> Slices:
        """The kept part in the volume."""
        return _slices(self.kept)

    @property
    def inner(self) -> Slices:
        """The kept part in the tile."""
        return _slices([(a - start, b - start) for (a, b), (start, _) in zip(self.kept, self.box, strict=True)])


def _slices(box: Sequence[Span]) -> Slices:
    """Return a box as slices."""
    x, y, z = (slice(start, stop) for start, stop in box)
    return x, y, z


def spans(length: int, halo: Halo, longest: int) -> list[Span]:
    """Return the kept parts of an axis, as few and as long as tiles of at most `longest` voxels allow.

    Args:
      length: of the axis.
      halo: of the axis.
      longest: a tile's limit, kept to (bound included).

    Returns:
      Parts that cover the axis without a gap or an overlap; empty where no tile is short enough.
    """
    parts: list[Span] = []
    start = 0
    while start < length:
        room = max(0, start - halo.before) + longest
        # A tile that reaches the end of the axis keeps all that is left.
        stop = length if room >= length else (room - halo.after) // halo.multiple * halo.multiple
        if stop <= start:
            return []
        parts.append((start, stop))
        start = stop
    return parts


def _choices(length: int, halo: Halo) -> list[tuple[int, int]]:
    """Return (longest tile, voxels of all tiles) for one part, two parts and so on, while more make tiles shorter.

    Each part more costs one `halo.both` more, wherever it ends; so only the number of parts is to be chosen.
    """
    found = [(length, length)]
    # A tile of this length keeps one cell of the widest lattice.
    least = halo.both + halo.multiple
    count = 2
    while found[-1][0] > least:
        total = length + (count - 1) * halo.both
        longest = max(least, -(-total // (count * halo.multiple)) * halo.multiple)
        if longest >= length:
            break
        if longest < found[-1][0]:
            found.append((longest, length + (len(spans(length, halo, longest)) - 1) * halo.both))
        count += 1
    return found


def split(shape: Sequence[int], rule: PatchConfig, most_voxels: int) -> list[Tile]:
    """Cut a volume into tiles with the fewest voxels in all.

    Args:
      shape: (X, Y, Z) of the working grid.
      rule: the patch rule.
      most_voxels: of a tile (bound included).

    Returns:
      Tiles whose kept parts fill the volume; one alone, the volume, where it is small enough.

    Raises:
      TooSmallError: no tiling has tiles so small.
    """
    around = halos(rule)
    x, y, z = (_choices(n, halo) for n, halo in zip(shape, around, strict=True))
    longest_z, total_z = np.transpose(z)  # longest_z falls, total_z grows
    best: tuple[int, int, tuple[int, int, int]] | None = None
    for longest_x, total_x in x:
        for longest_y, total_y in y:
            fitting = np.flatnonzero(longest_z <= most_voxels // (longest_x * longest_y))
            if not fitting.size:
                continue
            first = fitting[0]
            longest = longest_x, longest_y, int(longest_z[first])
            found = total_x * total_y * int(total_z[first]), -int(np.prod(longest)), longest
            best = min(best or found, found)
    if best is None:
        raise TooSmallError(int(x[-1][0] * y[-1][0] * z[-1][0]))
    parts = [spans(n, halo, longest) for n, halo, longest in zip(shape, around, best[2], strict=True)]
    return [
        Tile(tuple(halo.tile(k, n) for k, halo, n in zip(kept, around, shape, strict=True)), kept)  # type: ignore[arg-type]
        for kept in ((i, j, k) for i in parts[0] for j in parts[1] for k in parts[2])
    ]
