"""The settings of the patch rule: how large a patch is, at which scales, in which planes."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

from femur_tf.errors import require

PLANES = ("axial", "coronal", "sagittal")
"""The three patch planes. Axial spans the canonical axes (x, y), coronal (x, z), sagittal (y, z)."""
PLANE_AXES = ((2, 0, 1), (1, 0, 2), (0, 1, 2))
"""For each plane of `PLANES`: the axis across it, then its two axes, which become a patch's rows and columns."""
FINE_RATIO = 1.5
"""A plane counts as finely sampled where its coarser spacing is at most this many times the volume's finest."""

Triple = tuple[float, float, float]
PlaneChoice = Literal["all", "finest", "axial", "coronal", "sagittal"]


class Tower(NamedTuple):
    """One plane of one scale: a channel of a patch, and the part of the network that reads it."""

    scale: int
    """Its number among `PatchConfig.scales_mm`."""
    plane: int
    """Its number among `PLANES`."""


MAX_CELL = 2**31 // 256
"""Voxels of a cell, at most, so that their sum is an int32."""


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    """The patch rule: which voxels of the working grid a patch at a centre reads.

    A patch has `size` samples along each of its two axes, at offsets -size//2 .. size - size//2 - 1 from the centre's
    cell. For each scale the step between samples along each axis is a whole number of working-grid voxels, at least
    one: the nearest to `scales_mm / spacing_mm`.
    """

    size: int = 32
    """Samples along each patch axis (source: 32 x 32)."""
    spacing_mm: Triple = (1.0, 1.0, 1.0)
    """Voxel spacing of the working grid along canonical x, y, z; the plan sets the cohort's median."""
    scales_mm: tuple[float, ...] = (0.0,)
    """Wanted distance between samples, a value for each scale; 0 is every voxel (source: one scale, every voxel)."""
    planes: tuple[PlaneChoice, ...] = ()
    """Planes of each scale: `all`, one of them, or `finest`, those whose two spacings are within a factor of 1.5 of
    the finest. None given: all planes of every scale (source)."""
    padding: Literal["edge"] = "edge"
    """What a patch reads beyond the volume's border: the nearest voxel inside (our choice)."""

    def __post_init__(self) -> None:
        require(self.size >= 2, self, "size", "at least 2 samples")
        require(all(0 < s < 100 for s in self.spacing_mm), self, "spacing_mm", "three lengths in (0, 100) mm")
        require(len(self.scales_mm) >= 1, self, "scales_mm", "one scale or more")
        require(all(0 <= s <= 200 for s in self.scales_mm), self, "scales_mm", "distances in [0, 200] mm")
        largest = max(math.prod(steps) for steps in self.steps)
        require(largest <= MAX_CELL, self, "scales_mm", f"cells of at most {MAX_CELL:,} voxels, whose sum 32 bits hold")
        known = set(self.planes) <= {"all", "finest", *PLANES}
        one_each = len(self.planes) in (0, len(self.scales_mm))
        require(known and one_each, self, "planes", "all, finest or a plane's name for each scale, or nothing")
        require(self.padding == "edge", self, "padding", "'edge'")

    @property
    def steps(self) -> tuple[tuple[int, int, int], ...]:
        """The step between samples, in working-grid voxels along x, y, z, for each scale."""
        sx, sy, sz = self.spacing_mm
        return tuple((max(1, round(s / sx)), max(1, round(s / sy)), max(1, round(s / sz))) for s in self.scales_mm)

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The scale and the plane of each channel of a patch: scale by scale, the planes in the order of `PLANES`."""
        choices: list[PlaneChoice] = list(self.planes) or ["all"] * len(self.scales_mm)
        return tuple(Tower(scale, plane) for scale, choice in enumerate(choices) for plane in self._chosen(choice))

    @property
    def common_step(self) -> tuple[int, int, int]:
        """The least common multiple of the steps of all scales, along x, y, z: boxes that start on it cut no cell."""
        x, y, z = (math.lcm(*column) for column in zip(*self.steps, strict=True))
        return x, y, z

    @property
    def widest_steps(self) -> tuple[int, int, int]:
        """The widest step between samples of any tower along x, y, z; 0 where no tower's plane has the axis."""
        x, y, z = (
            max((self.steps[scale][axis] for scale, plane in self.towers if axis in PLANE_AXES[plane][1:]), default=0)
            for axis in range(3)
        )
        return x, y, z

    @property
    def channels(self) -> int:
        """Channels of a patch."""
        return len(self.towers)

    def _chosen(self, choice: PlaneChoice) -> list[int]:
        """Return the numbers of the planes that a choice stands for."""
        if choice == "finest":
            limit = FINE_RATIO * min(self.spacing_mm)
            coarser = [max(self.spacing_mm[rows], self.spacing_mm[columns]) for _, rows, columns in PLANE_AXES]
            # A volume with one finely sampled axis alone has no fine plane: the least coarse is taken.
            return [plane for plane, spacing in enumerate(coarser) if spacing <= max(limit, min(coarser))]
        return [plane for plane, name in enumerate(PLANES) if choice in ("all", name)]
