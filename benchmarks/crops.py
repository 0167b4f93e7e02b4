"""Slices and crops for the 2-D U-Net: three neighbouring coronal slices, and the middle one's mask.

A training crop holds bone in two of three draws. It is mirrored, rotated, scaled and shifted in one interpolation,
and gets another gamma and brightness.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from femur_tf import command, study

GRAIN = 16
"""Sides are multiples of it: the U-Net halves them four times."""
CROP = 256
"""Side of a training crop, in voxels; at most that of the volume, rounded up to a multiple of `GRAIN`."""
BATCH = 4
STEPS = 150
"""Batches an epoch."""
BONE_SHARE = 2 / 3
"""Of the crops hold bone; the others may lie anywhere."""
ROTATION_DEGREES = 10.0
SCALE = 0.15
"""A crop is enlarged or shrunk by a factor in [1 - v, 1 + v]."""
GAMMA = 0.4
"""Grey values in [0, 1] are raised to the power e^x, x in [-v, v]."""
BRIGHTNESS = 0.15
"""Then multiplied by a factor in [1 - v, 1 + v]."""
SHIFT = 0.05
"""Then shifted by a share of the range in [-v, v]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A case on the working grid."""

    grid: np.ndarray
    """(X, Y, Z) uint8."""
    mask: np.ndarray
    """(X, Y, Z) bool."""
    bone: np.ndarray
    """(N, 3) the voxels of bone."""


def neighbours(grid: np.ndarray, y: int) -> np.ndarray:
    """Return the coronal slices y - 1, y and y + 1, (X, Z, 3); beyond the volume its last slice."""
    where = np.clip([y - 1, y, y + 1], 0, grid.shape[1] - 1)
    return np.moveaxis(grid[:, where], 1, -1)


def padded(slices: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Pad (X, Z, C) with zeros, at the upper ends, to sides rounded up to multiples of `GRAIN`."""
    x, z = (-(-side // GRAIN) * GRAIN for side in sides)
    return np.pad(slices, ((0, x - slices.shape[0]), (0, z - slices.shape[1]), (0, 0)))


def draw(pairs: Sequence[Pair], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a random training crop and its mask.

    Args:
      pairs: the training cases.
      rng: of case, slice, place and augmentation.

    Returns:
      float32 (crop, crop, 3) grey values from 0 to 255, and float32 (crop, crop, 1) of 0 and 1.
    """
    pair = pairs[int(rng.integers(len(pairs)))]
    sides = np.array(pair.grid.shape)[[0, 2]]
    crop = np.minimum(CROP, -(-sides // GRAIN) * GRAIN)
    x, y, z = rng.integers(pair.grid.shape)
    if rng.random() < BONE_SHARE and len(pair.bone):
        x, y, z = pair.bone[rng.integers(len(pair.bone))]
    # The voxel lies anywhere in the crop, which stays within the slice before it is turned and scaled.
    start = rng.integers(np.maximum(0, (x, z) - crop + 1), np.clip(sides - crop, 0, (x, z)) + 1)
    turn, scale = np.deg2rad(rng.uniform(-ROTATION_DEGREES, ROTATION_DEGREES)), rng.uniform(1 - SCALE, 1 + SCALE)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / scale
    matrix[:, 0] *= rng.choice([-1, 1])  # left-right flip
    offset = start + (crop - 1) / 2 - matrix @ ((crop - 1) / 2)
    slices = np.dstack([neighbours(pair.grid, y), pair.mask[:, y] * np.uint8(255)])
    moved = [
        ndimage.affine_transform(slices[..., k], matrix, offset, tuple(crop), np.float32, order=1, prefilter=False)
        for k in range(slices.shape[-1])
    ]
    return _other_greys(np.stack(moved[:3], axis=-1), rng), (moved[3] >= 127.5).astype(np.float32)[..., None]


def _other_greys(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a crop with another gamma, brightness and offset, within 0 to 255."""
    power, factor = np.exp(rng.uniform(-GAMMA, GAMMA)), rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS)
    grey = np.power(crop / np.float32(255), np.float32(power)) * np.float32(factor) + rng.uniform(-SHIFT, SHIFT)
    return (255 * np.clip(grey, 0, 1)).astype(np.float32)


def batches(pairs: Sequence[Pair], seed: int, first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield training batches without end, from the epoch `first`; an epoch's are the same in every run of a seed."""
    for epoch in itertools.count(first):
        rng = np.random.default_rng([seed, epoch])
        for _ in range(STEPS):
            crops, masks = zip(*(draw(pairs, rng) for _ in range(BATCH)), strict=True)
            yield np.stack(crops), np.stack(masks)


def validation_slices(pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    """Return all slices of some cases and their masks, uint8, in an order that mixes those with and without bone."""
    sides = np.max([pair.grid.shape for pair in pairs], axis=0)[[0, 2]]
    places = [(pair, y) for pair in pairs for y in range(pair.grid.shape[1])]
    order = np.random.default_rng(0).permutation(len(places))
    chosen = [places[i] for i in order]
    grids = np.stack([padded(neighbours(pair.grid, y), sides) for pair, y in chosen])
    masks = np.stack([padded(pair.mask[:, y, :, None].astype(np.uint8), sides) for pair, y in chosen])
    return grids, masks


def read_pairs(plan: study.Plan, part: study.Part) -> list[Pair]:
    """Read the cases of a part of the split."""
    loaded = [study.load_case(plan, case) for case in command.track(plan.part(part), f"reading {part} cases")]
    return [Pair(one.working.data, one.working_mask, np.argwhere(one.working_mask)) for one in loaded]
