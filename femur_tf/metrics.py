"""How good a mask or a probability map is, against a reference mask.

Overlap: Dice, PPV, sensitivity and specificity count voxels. Distance: the surface
of a mask is its voxels with one of their six neighbours outside it (everything
beyond the volume is outside), and distances run between the centres of surface
voxels, in mm. Ranking: the ROC curve over all voxels, from counts per distinct
float16 value, so that any number of volumes fits in 250 kB. A score that is not
defined is NaN.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage, spatial

Spacing = tuple[float, float, float]
FLOAT16_VALUES = np.arange(0x3C01, dtype=np.uint16).view(np.float16)
"""Every float16 in [0, 1], ascending, (15361,): the bit pattern of a non-negative float grows with its value."""


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Voxels counted by what the mask and the reference say of them."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


@dataclasses.dataclass(frozen=True)
class SurfaceDistances:
    """Distances between two surfaces, in mm; NaN where one of the masks is empty and has no surface."""

    mean_mm: float
    """Average symmetric surface distance: the mean over the voxels of both surfaces, pooled."""
    hausdorff95_mm: float
    """The larger of the two directed 95th percentiles."""


@dataclasses.dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve: entry i belongs to mask = probability >= thresholds[i].

    Thresholds descend, from infinity (the empty mask) over every value that occurs.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class VoxelCounts:
    """Voxels of each class per distinct float16 probability, summed over volumes by `add`."""

    positives: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(FLOAT16_VALUES.size, np.int64))
    """Bone voxels, (15361,) int64, in the order of FLOAT16_VALUES."""
    negatives: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(FLOAT16_VALUES.size, np.int64))
    """Background voxels, likewise."""

    def add(self, probability: np.ndarray, mask: np.ndarray) -> None:
        """Count the voxels of one more volume.

        Args:
          probability: float16 in [0, 1], any shape.
          mask: bool, the same shape.

        Raises:
          ValueError: another dtype, unequal shapes, or a probability outside [0, 1].
        """
        _require_pair(probability, mask)
        if probability.dtype != np.float16:
            raise ValueError(f"expected float16 probabilities. Received: dtype={probability.dtype}")
        if not np.all((probability >= 0) & (probability <= 1)):  # also false for NaN
            low, high = probability.min(), probability.max()
            raise ValueError(f"expected probabilities in [0, 1]. Received: min={low}, max={high}")
        bits = np.abs(probability).view(np.uint16)  # abs: -0.0 is 0.0
        bone = _count(bits[mask])
        self.positives[:] += bone
        self.negatives[:] += _count(bits.ravel()) - bone


def confusion(mask: np.ndarray, reference: np.ndarray) -> Confusion:
    """Count the voxels of `mask` by agreement with `reference`.

    Args:
      mask: bool, any shape.
      reference: bool, the same shape.

    Raises:
      ValueError: another dtype or unequal shapes.

    Example:
      >>> confusion(np.array([True, True, False]), np.array([True, False, False]))
      Confusion(true_positive=1, false_positive=1, false_negative=0, true_negative=1)
    """
    _require_pair(mask, reference)
    both = int(np.count_nonzero(mask & reference))
    in_mask, in_reference = int(np.count_nonzero(mask)), int(np.count_nonzero(reference))
    return Confusion(both, in_mask - both, in_reference - both, mask.size - in_mask - in_reference + both)


def dice(mask: np.ndarray, reference: np.ndarray) -> float:
    """Return the Dice coefficient, 2 |A and B| / (|A| + |B|), of two bool arrays; NaN if both are empty."""
    c = confusion(mask, reference)
    return _ratio(2 * c.true_positive, 2 * c.true_positive + c.false_positive + c.false_negative)


def ppv(mask: np.ndarray, reference: np.ndarray) -> float:
    """Return the share of the mask that is bone (precision); NaN if the mask is empty."""
    c = confusion(mask, reference)
    return _ratio(c.true_positive, c.true_positive + c.false_positive)


def sensitivity(mask: np.ndarray, reference: np.ndarray) -> float:
    """Return the share of the bone that the mask holds (recall); NaN if the reference is empty."""
    c = confusion(mask, reference)
    return _ratio(c.true_positive, c.true_positive + c.false_negative)


def specificity(mask: np.ndarray, reference: np.ndarray) -> float:
    """Return the share of the background outside the mask; NaN if the reference is full."""
    c = confusion(mask, reference)
    return _ratio(c.true_negative, c.true_negative + c.false_positive)


def surface_distances(mask: np.ndarray, reference: np.ndarray, *, spacing_mm: Spacing) -> SurfaceDistances:
    """Measure how far the surfaces of two masks lie apart.

    Nearest voxels are found with a k-d tree: the time grows with the surfaces, not
    with the volume, where stray islands would stretch a distance map over all of it.

    Args:
      mask: bool, (X, Y, Z).
      reference: bool, (X, Y, Z).
      spacing_mm: voxel spacing along the three axes.

    Returns:
      The mean and the 95 % Hausdorff distance; NaN if either mask is empty.

    Raises:
      ValueError: another dtype or unequal shapes.
    """
    _require_pair(mask, reference)
    if not mask.any() or not reference.any():
        return SurfaceDistances(float("nan"), float("nan"))  # an empty mask has no surface
    first, second = _surface_points_mm(mask, spacing_mm), _surface_points_mm(reference, spacing_mm)
    forth, back = _nearest_mm(first, second), _nearest_mm(second, first)
    mean_mm = float(np.concatenate([forth, back]).mean())
    return SurfaceDistances(mean_mm, float(max(np.percentile(forth, 95), np.percentile(back, 95))))


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of a bool mask (X, Y, Z) with one of their six neighbours outside it, or outside the volume."""
    return mask & ~ndimage.binary_erosion(mask)


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box, [start, stop) along each axis, around a bool mask; empty slices for an empty mask."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0))
    return tuple(box)


def roc(probability: np.ndarray, label: np.ndarray) -> Roc:
    """Return the ROC curve of one probability map.

    Args:
      probability: in [0, 1], any shape; rounded to float16, over whose values the curve is exact.
      label: bool, the same shape.

    Raises:
      ValueError: unequal shapes, or a probability outside [0, 1].
    """
    counts = VoxelCounts()
    counts.add(probability.astype(np.float16), label)
    return curve(counts)


def curve(counts: VoxelCounts) -> Roc:
    """Return the ROC curve of all voxels counted; rates of a class without voxels are NaN."""
    values, true_positives, false_positives = _cumulated(counts)
    return Roc(
        _rates(false_positives, counts.negatives),
        _rates(true_positives, counts.positives),
        np.concatenate([[np.inf], values]),
    )


def auc(counts: VoxelCounts) -> float:
    """Return the area under the ROC curve; NaN unless both classes have voxels."""
    if not counts.positives.any() or not counts.negatives.any():
        return float("nan")  # no pair of a bone and a background voxel to rank
    from sklearn import metrics as sklearn_metrics  # here, because its import takes half a second

    line = curve(counts)
    return float(sklearn_metrics.auc(line.false_positive_rate, line.true_positive_rate))


def youden(counts: VoxelCounts) -> float:
    """Return the cut-off of largest sensitivity + specificity - 1 (Youden 1950), the highest of equal ones.

    Voxels with probability >= cut-off are bone.

    Raises:
      ValueError: one class has no voxels.
    """
    _require_classes(counts)
    line = curve(counts)
    return float(line.thresholds[1:][np.argmax((line.true_positive_rate - line.false_positive_rate)[1:])])


def best_dice(counts: VoxelCounts) -> float:
    """Return the cut-off of largest Dice over all voxels pooled, the highest of equal ones.

    Voxels with probability >= cut-off are bone.

    Raises:
      ValueError: one class has no voxels.
    """
    _require_classes(counts)
    values, true_positives, false_positives = _cumulated(counts)
    scores = 2 * true_positives / (true_positives + false_positives + counts.positives.sum())
    return float(values[np.argmax(scores)])


def at_specificity(counts: VoxelCounts, specificity: float) -> float:
    """Return the lowest cut-off whose specificity is at least the one given.

    Voxels with probability >= cut-off are bone.

    Raises:
      ValueError: one class has no voxels, or no cut-off among the probabilities counted is specific enough.
    """
    _require_classes(counts)
    values, _, false_positives = _cumulated(counts)
    total = counts.negatives.sum()
    reached = (total - false_positives) / total  # falls, as the cut-offs do
    fine = np.flatnonzero(reached >= specificity)
    if not fine.size:
        raise ValueError(f"expected a specificity of at most {reached[0]:.6f}. Received: specificity={specificity}")
    return float(values[fine[-1]])


def _require_pair(array: np.ndarray, mask: np.ndarray) -> None:
    if array.shape != mask.shape:
        raise ValueError(f"expected arrays of one shape. Received: shapes {array.shape} and {mask.shape}")
    if mask.dtype != np.bool_ or array.dtype.kind not in "bf":
        raise ValueError(f"expected bool masks. Received: dtypes {array.dtype} and {mask.dtype}")


def _require_classes(counts: VoxelCounts) -> None:
    positives, negatives = int(counts.positives.sum()), int(counts.negatives.sum())
    if not positives or not negatives:
        raise ValueError(f"expected voxels of bone and of background. Received: {positives} and {negatives}")


def _count(bits: np.ndarray) -> np.ndarray:
    return np.bincount(bits, minlength=FLOAT16_VALUES.size)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _cumulated(counts: VoxelCounts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the values that occur, descending, and how many voxels of each class are at or above each."""
    present = np.flatnonzero(counts.positives + counts.negatives)[::-1]
    values = FLOAT16_VALUES[present].astype(np.float64)
    return values, np.cumsum(counts.positives[present]), np.cumsum(counts.negatives[present])


def _rates(cumulated: np.ndarray, counted: np.ndarray) -> np.ndarray:
    total = counted.sum()
    rates = np.concatenate([[0], cumulated]) / max(total, 1)
    return rates if total else np.full(rates.shape, np.nan)  # no voxel of this class


def _surface_points_mm(mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Return the centres of the surface voxels, (N, 3) float64, in mm from voxel 0."""
    box = bounding_box(mask)
    start = [side.start for side in box]
    return (np.argwhere(surface(mask[box])) + start) * np.asarray(spacing_mm)


def _nearest_mm(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance of each point to the nearest of the others, (N,) float64."""
    distances, _ = spatial.cKDTree(others, balanced_tree=False, compact_nodes=False).query(points)
    return np.asarray(distances)
