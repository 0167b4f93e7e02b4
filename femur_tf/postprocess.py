"""Probability map -> mask: a cut-off, then the steps of a recipe in their order.

Each step is a plain function from a bool mask (X, Y, Z) to another, with its limit
in mm, mm2 or mm3, so that a recipe means the same on every grid. Everything beyond
the volume is background. Steps that remove only remove, steps that fill only fill,
and each step done twice is done once.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage

from femur_tf import metrics
from femur_tf.config import RecipeConfig, Step

Spacing = tuple[float, float, float]
LEFT, RIGHT = 1, 2
"""Labels of `sides`: the patient's left and right femur."""
PART_SHARE = 0.1
"""A part of a reference with at least this share of its largest part's voxels is a femur, a smaller one an island."""
ONE_FEMUR_MM = 130.0
"""A mask narrower than this from left to right is taken for one femur: two span at least 150 mm, one at most 120 mm."""

_ANY_NEIGHBOUR = ndimage.generate_binary_structure(3, 3)  # 26-connected
_FACE_NEIGHBOUR = ndimage.generate_binary_structure(3, 1)  # 6-connected
_TIE_MM = 1e-6  # a radius of exactly n voxels reaches n voxels, whatever the rounding


def apply(probability: np.ndarray, recipe: RecipeConfig, *, spacing_mm: Spacing) -> np.ndarray:
    """Turn a probability map into a mask.

    Args:
      probability: float32 in [0, 1], (X, Y, Z).
      recipe: the cut-off (voxels at or above it are bone) and the steps.
      spacing_mm: voxel spacing along the three axes.

    Returns:
      The mask, bool, (X, Y, Z).

    Example:
      >>> recipe = RecipeConfig(cutoff=0.5, steps=(Step("largest", 1),))
      >>> apply(np.array([[[0.9, 0.5, 0.1, 0.8]]]), recipe, spacing_mm=(1.0, 1.0, 1.0)).tolist()
      [[[True, True, False, False]]]
    """
    return collections.deque(stages(probability, recipe, spacing_mm=spacing_mm), maxlen=1).pop()


def stages(probability: np.ndarray, recipe: RecipeConfig, *, spacing_mm: Spacing) -> Iterator[np.ndarray]:
    """Yield the mask after the cut-off and after each step of a recipe; the last one is the recipe's mask.

    Args:
      probability: float32 in [0, 1], (X, Y, Z).
      recipe: the cut-off (voxels at or above it are bone) and the steps.
      spacing_mm: voxel spacing along the three axes.

    Yields:
      Masks, bool, (X, Y, Z), one more than the recipe has steps.
    """
    mask = probability >= np.float32(recipe.cutoff)  # a map in float16 would have it rounded
    yield mask
    for step in recipe.steps:
        mask = apply_step(mask, step, spacing_mm=spacing_mm)
        yield mask


def apply_step(mask: np.ndarray, step: Step, *, spacing_mm: Spacing) -> np.ndarray:
    """Do one step of a recipe, within the bounding box of the mask, which no step leaves.

    Args:
      mask: bool, (X, Y, Z).
      step: which step, and its value.
      spacing_mm: voxel spacing along the three axes.

    Returns:
      The new mask, bool, (X, Y, Z).
    """
    box = metrics.bounding_box(mask)
    result = np.zeros_like(mask)
    if mask[box].size:
        result[box] = _STEPS[step.name](mask[box], step.value, spacing_mm)
    return result


def opening(mask: np.ndarray, radius_mm: float, spacing_mm: Spacing) -> np.ndarray:
    """Remove whatever a ball does not fit into: spikes, bridges, specks.

    The ball holds the voxels whose centres lie at most `radius_mm` from its own, an
    ellipsoid in voxels; it has no extent along an axis whose spacing is over
    `radius_mm`. Both halves of the opening are distance maps, so that the radius
    costs nothing.

    Args:
      mask: bool, (X, Y, Z).
      radius_mm: radius of the ball; below the finest spacing nothing is removed.
      spacing_mm: voxel spacing along the three axes.

    Returns:
      The union of all balls inside the mask, bool, (X, Y, Z).
    """
    reach_mm = radius_mm + _TIE_MM
    centres = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm) > reach_mm
    if not centres.any():
        return np.zeros_like(mask)
    opened = ndimage.distance_transform_edt(~centres, sampling=spacing_mm) <= reach_mm
    return _unpad(opened)


def small_clusters(mask: np.ndarray, min_mm3: float, spacing_mm: Spacing) -> np.ndarray:
    """Remove the 26-connected clusters of a volume below `min_mm3`; a cluster of just that volume stays.

    Args:
      mask: bool, (X, Y, Z).
      min_mm3: the smallest volume that stays.
      spacing_mm: voxel spacing along the three axes.

    Returns:
      The clusters kept, bool, (X, Y, Z).
    """
    labels, voxels = _clusters(mask, _ANY_NEIGHBOUR)
    kept = voxels * np.prod(spacing_mm) >= min_mm3 * (1 - 1e-9)
    kept[0] = False
    return np.asarray(kept[labels])


def largest(mask: np.ndarray, k: int) -> np.ndarray:
    """Keep the `k` largest 26-connected clusters; of equal ones those that come first in array order.

    One below `PART_SHARE` of the largest is an island and goes, too: of two femurs a scan may show one.

    Args:
      mask: bool, (X, Y, Z).
      k: how many, at most.

    Returns:
      The clusters kept, bool, (X, Y, Z).
    """
    labels, voxels = _clusters(mask, _ANY_NEIGHBOUR)
    kept = np.zeros(voxels.size, bool)
    kept[1 + np.argsort(-voxels[1:], kind="stable")[:k]] = True
    kept &= voxels >= PART_SHARE * voxels[1:].max(initial=0)
    return np.asarray(kept[labels])


def fill_holes(mask: np.ndarray, max_mm3: float, spacing_mm: Spacing) -> np.ndarray:
    """Fill the cavities that are closed in 3-D and hold at most `max_mm3`.

    A cavity is 6-connected background without a way to the outside; one that reaches
    the volume's border is open.

    Args:
      mask: bool, (X, Y, Z).
      max_mm3: the largest cavity that is filled.
      spacing_mm: voxel spacing along the three axes.

    Returns:
      The mask and its filled cavities, bool, (X, Y, Z).
    """
    return _fill(mask, max_mm3 / float(np.prod(spacing_mm)), _FACE_NEIGHBOUR)


def fill_planes(mask: np.ndarray, max_mm2: float, spacing_mm: Spacing) -> np.ndarray:
    """Fill the holes that are closed within a slice and hold at most `max_mm2`.

    Slices lie across the axis of the coarsest spacing, the first of equal ones; the
    background is 4-connected in them.

    Args:
      mask: bool, (X, Y, Z).
      max_mm2: the largest hole that is filled.
      spacing_mm: voxel spacing along the three axes.

    Returns:
      The mask and its filled holes, bool, (X, Y, Z).
    """
    across = int(np.argmax(spacing_mm))
    in_plane = _FACE_NEIGHBOUR & (np.abs(np.indices((3, 3, 3))[across] - 1) == 0)
    voxel_mm2 = float(np.prod(spacing_mm)) / spacing_mm[across]
    return _fill(mask, max_mm2 / voxel_mm2, in_plane)


def sides(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Tell the patient's left femur from the right one.

    The mid-plane halves the bounding box of the mask along RAS x (towards the
    patient's right). A component on one side of it gets that side's label; one that
    straddles it is split there. A mask narrower than 130 mm along x is one femur:
    its side is the sign of its centroid's x, because scanners put x = 0 in the middle
    of the table.

    Args:
      mask: bool, (X, Y, Z), in any axis order.
      affine: voxel index -> RAS mm, (4, 4).

    Returns:
      uint8, (X, Y, Z): 1 in the left femur, 2 in the right one, 0 outside.
    """
    labels = np.zeros(mask.shape, np.uint8)
    voxels = np.nonzero(mask)
    if voxels[0].size:
        x_mm = _x_mm(voxels, affine)
        labels[voxels] = np.where(x_mm > _middle_mm(x_mm), RIGHT, LEFT)
    return labels


def lone_mm(mask: np.ndarray, affine: np.ndarray) -> float | None:
    """Return the RAS x in mm of the centre of a mask that `sides` takes for one femur; None of two, or of no bone."""
    voxels = np.nonzero(mask)
    if not voxels[0].size:
        return None
    x_mm = _x_mm(voxels, affine)
    return None if np.ptp(x_mm) >= ONE_FEMUR_MM else float(x_mm.mean())


def part_voxels(mask: np.ndarray, *, share: float = 0.0) -> np.ndarray:
    """Return the voxels of each 26-connected cluster of a mask, (N,) int, in array order.

    Args:
      mask: bool, (X, Y, Z).
      share: clusters with fewer than this share of the largest one's voxels do not count.
    """
    voxels = _clusters(mask, _ANY_NEIGHBOUR)[1][1:]
    return np.asarray(voxels[voxels >= share * voxels.max(initial=0)])


def count_parts(mask: np.ndarray) -> int:
    """Return the number of 26-connected clusters of a mask, bool, (X, Y, Z)."""
    return part_voxels(mask).size


def _x_mm(voxels: tuple[np.ndarray, ...], affine: np.ndarray) -> np.ndarray:
    """Return the RAS x in mm, (N,), of voxels as `np.nonzero` gives them."""
    return np.asarray(np.stack(voxels, axis=-1) @ affine[0, :3] + affine[0, 3])


def _middle_mm(x_mm: np.ndarray) -> float:
    """Return the x above which bone is the patient's right femur."""
    low, high = float(x_mm.min()), float(x_mm.max())
    if high - low >= ONE_FEMUR_MM:
        return (low + high) / 2
    return -np.inf if x_mm.mean() > 0 else np.inf


def _clusters(mask: np.ndarray, neighbours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the clusters of a mask and count their voxels; entry 0 is the background."""
    labels, count = ndimage.label(mask, neighbours)
    return labels, np.bincount(labels.ravel(), minlength=count + 1)


def _fill(mask: np.ndarray, max_voxels: float, neighbours: np.ndarray) -> np.ndarray:
    """Fill background clusters of at most `max_voxels` that do not reach the border along the axes of `neighbours`."""
    closed_axes = [bool(neighbours.take(0, axis).any()) for axis in range(3)]
    labels, voxels = _clusters(np.pad(~mask, [(int(c), int(c)) for c in closed_axes], constant_values=True), neighbours)
    filled = voxels <= max_voxels * (1 + 1e-9)
    for axis in np.flatnonzero(closed_axes):
        filled[labels.take([0, -1], axis)] = False
    filled[0] = False
    inner = tuple(slice(1, -1) if closed else slice(None) for closed in closed_axes)
    return mask | np.asarray(filled[labels[inner]])


def _unpad(array: np.ndarray) -> np.ndarray:
    return array[1:-1, 1:-1, 1:-1]


_STEPS: dict[str, Callable[[np.ndarray, float, Spacing], np.ndarray]] = {
    "opening": opening,
    "small_clusters": small_clusters,
    "largest": lambda mask, k, _: largest(mask, int(k)),
    "fill_holes": fill_holes,
    "fill_planes": fill_planes,
}
