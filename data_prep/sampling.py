"""Which voxels of a case become examples.

A voxel of the working grid is of one of three kinds: bone (inside the femur mask),
near (outside it, up to a distance that depends on the femur's volume) and far (all
others). The femur is about one hundredth of a hip volume, so the kinds are drawn by
stated shares and not as they come. Nothing is drawn twice.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from femur_tf.config import SamplingConfig
from femur_tf.patch_config import Triple
from femur_tf.records import KINDS

BONE, NEAR, FAR = range(len(KINDS))
"""The code of a kind is its position in `KINDS`."""
TOLERANCE_MM = 1e-6
"""Added to the limit: distances are sums of rounded squares, and the limit itself counts as near."""


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """The drawn examples of one case, in random order."""

    centres: np.ndarray
    """(N, 3) int64, voxel index x, y, z on the working grid."""
    label: np.ndarray
    """(N,) int64, 1 inside the femur, else 0."""
    kind: np.ndarray
    """(N,) uint8, position in `KINDS`."""


def asked(config: SamplingConfig) -> dict[str, int]:
    """Return how many examples of each of `KINDS`, in that order, are asked of a case; they add up to `per_case`."""
    bone = round(config.per_case * config.share_bone)
    background_near = round(config.per_case * (config.share_bone + config.share_near)) - bone
    return dict(zip(KINDS, (bone, background_near, config.per_case - bone - background_near), strict=True))


def shared_out(wanted: Mapping[str, int], volumes: int) -> list[dict[str, int]]:
    """Share out how many voxels are wanted of each group over several volumes, as evenly as whole numbers allow.

    Args:
      wanted: how many of each group, in all.
      volumes: at least 1.

    Returns:
      For each volume how many of each group; they add up to `wanted`.

    Example:
      >>> shared_out({"bone": 3, "far": 2}, 2)
      [{'bone': 1, 'far': 1}, {'bone': 2, 'far': 1}]
    """
    ends = [{name: count * n // volumes for name, count in wanted.items()} for n in range(volumes + 1)]
    return [{name: stop[name] - start[name] for name in wanted} for start, stop in itertools.pairwise(ends)]


def kinds(mask: np.ndarray, *, spacing_mm: Triple, config: SamplingConfig) -> np.ndarray:
    """Return the kind of each voxel.

    Background is near up to the distance within which it has `config.near_volume` times the femur's voxels, if that is
    chosen, and at most `config.near_mm`. Voxels of one distance are all near or all far.

    Args:
      mask: (X, Y, Z) bool, the femur on the working grid; may be empty, then all is far.
      spacing_mm: voxel spacing along x, y, z.
      config: what near means.

    Returns:
      (X, Y, Z) uint8, positions in `KINDS`.
    """
    result = np.full(mask.shape, FAR, np.uint8)
    if mask.any():
        box = _box_around(mask, spacing_mm=spacing_mm, margin_mm=config.near_mm)
        distance_mm = ndimage.distance_transform_edt(~mask[box], sampling=spacing_mm)
        reach_mm = config.near_mm
        if config.near_volume is not None:
            reach_mm = _reach_mm(distance_mm[distance_mm > 0], config.near_volume * np.count_nonzero(mask), reach_mm)
        result[box][distance_mm <= reach_mm + TOLERANCE_MM] = NEAR
        result[mask] = BONE
    return result


def draw_centres(
    mask: np.ndarray,
    wanted: Mapping[str, int],
    *,
    spacing_mm: Triple,
    config: SamplingConfig,
    rng: np.random.Generator,
) -> Draw:
    """Draw examples of a volume, without replacement, in random order.

    A kind that has fewer voxels than asked gives all of them, and no other kind makes up for it.

    Args:
      mask: (X, Y, Z) bool, the femur on the working grid.
      wanted: how many of each of `KINDS`, in that order.
      spacing_mm: voxel spacing along x, y, z.
      config: what near means.
      rng: the source of chance.

    Raises:
      ValueError: `mask` is not a bool volume.
    """
    if mask.ndim != 3 or mask.dtype != np.bool_:
        raise ValueError(f"expected a bool mask (X, Y, Z). Received: dtype={mask.dtype}, shape={mask.shape}")
    kind = kinds(mask, spacing_mm=spacing_mm, config=config)
    return draw_of(draw_groups(kind, wanted, rng), kind)


def draw_groups(group: np.ndarray, wanted: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """Draw so many voxels of each group, without replacement, in random order.

    A group that has fewer voxels than wanted gives all of them, and no other group makes up for it.

    Args:
      group: (X, Y, Z) uint8, a voxel's group as its position in `wanted`; what has no place there is not drawn.
      wanted: how many of each group, by its name.
      rng: the source of chance.

    Returns:
      Flat voxel indices (N,).
    """
    voxels = group.ravel()
    drawn = [_draw(np.flatnonzero(voxels == code), count, rng) for code, count in enumerate(wanted.values())]
    return rng.permutation(np.concatenate(drawn))


def draw_of(flat: np.ndarray, kind: np.ndarray) -> Draw:
    """Return the draw of some voxels.

    Args:
      flat: (N,) flat voxel indices.
      kind: (X, Y, Z) uint8, as `kinds` gives it.
    """
    centres = np.stack(np.unravel_index(flat, kind.shape), axis=1).astype(np.int64)  # (N, 3)
    found = kind.ravel()[flat]
    return Draw(centres, (found == BONE).astype(np.int64), found)


def _reach_mm(distances_mm: np.ndarray, wanted: float, limit_mm: float) -> float:
    """Return the distance within which so many of the voxels lie, or `limit_mm` where that is less.

    Args:
      distances_mm: (N,) of background voxels from the femur.
      wanted: how many are to lie within it.
      limit_mm: the largest distance.
    """
    count = int(np.ceil(wanted))
    if count > distances_mm.size:
        return limit_mm
    return min(limit_mm, float(np.partition(distances_mm, count - 1)[count - 1]))


def _draw(voxels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` of the flat voxel indices, without replacement, or all where there are fewer."""
    if voxels.size <= count:
        return voxels
    return voxels[rng.choice(voxels.size, count, replace=False, shuffle=False)]


def _box_around(mask: np.ndarray, *, spacing_mm: Triple, margin_mm: float) -> tuple[slice, ...]:
    """Return the box [start, stop) of the true voxels, wider by `margin_mm` on each side, inside the volume."""
    box = []
    for axis, size in enumerate(mask.shape):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(mask.any(axis=others))
        margin = int(np.ceil(margin_mm / spacing_mm[axis])) + 1
        box.append(slice(max(0, int(places[0]) - margin), min(size, int(places[-1]) + 1 + margin)))
    return tuple(box)
