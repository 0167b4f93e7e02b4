"""What is hard for a trained run: its errors in a case, and the voxels that it doubts.

A voxel is a false positive, a false negative, or doubtful: right, but with odds near the
cut-off's. Errors near the reference's surface are left out, because there the annotators
themselves disagree.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from data_prep.sampling import TOLERANCE_MM
from femur_tf import log_odds
from femur_tf.errors import require
from femur_tf.patch_config import Triple

ERRORS = ("false_positive", "false_negative", "doubtful")
ODDS = 4.0
"""A voxel is doubtful where its odds are within this factor of the cut-off's, either way, both ends included."""
NOTHING = 255
"""The group of a voxel that is not mined."""


@dataclasses.dataclass(frozen=True)
class MiningConfig:
    """Which errors become examples."""

    per_case: int = 6_000
    """Examples drawn from each case, without replacement."""
    share_false_positive: float = 0.4
    """Share of them that is background at or above the cut-off."""
    share_false_negative: float = 0.3
    """Share of them that is bone below the cut-off; the rest is doubtful voxels."""
    margin_mm: float = 1.5
    """Voxels at most this far from the reference's surface are left out."""
    copies: int = 1
    """Volumes of a case that are evaluated: the scan itself, then its varied copies."""

    def __post_init__(self) -> None:
        require(self.per_case >= 1, self, "per_case", "at least 1 example")
        require(0 <= self.share_false_positive <= 1, self, "share_false_positive", "a share in [0, 1]")
        require(0 <= self.share_false_negative <= 1, self, "share_false_negative", "a share in [0, 1]")
        both = self.share_false_positive + self.share_false_negative
        require(
            both <= 1 + 1e-9, self, "share_false_negative", "share_false_positive + share_false_negative of at most 1"
        )
        require(self.margin_mm >= 0, self, "margin_mm", "a distance of at least 0 mm")
        require(1 <= self.copies <= self.per_case, self, "copies", "at least 1, and an example of each")

    @property
    def wanted(self) -> dict[str, int]:
        """How many of each kind of error are asked of a case."""
        positive = round(self.per_case * self.share_false_positive)
        both = min(self.per_case, round(self.per_case * (self.share_false_positive + self.share_false_negative)))
        return dict(zip(ERRORS, (positive, both - positive, self.per_case - both), strict=True))


def groups(
    probability: np.ndarray, mask: np.ndarray, cutoff: float, *, spacing_mm: Triple, margin_mm: float
) -> np.ndarray:
    """Return the kind of error of each voxel.

    Args:
      probability: (X, Y, Z) float16 in [0, 1].
      mask: bool, the same shape: the reference.
      cutoff: a voxel is bone where its probability is at least this.
      spacing_mm: voxel spacing along x, y, z.
      margin_mm: voxels whose centre is at most this far from the centre of a voxel of the other class are left out.

    Returns:
      (X, Y, Z) uint8, positions in `ERRORS`; `NOTHING` for voxels that are surely right or left out.
    """
    found = probability >= np.float32(cutoff)  # not rounded to a value of the map's own float16
    low, high = (log_odds.times(cutoff, factor) for factor in (1 / ODDS, ODDS))
    result = np.full(mask.shape, NOTHING, np.uint8)
    result[(probability >= low) & (probability <= high)] = ERRORS.index("doubtful")
    result[found & ~mask] = ERRORS.index("false_positive")
    result[~found & mask] = ERRORS.index("false_negative")
    for side in (mask, ~mask):
        if not side.all():
            distance_mm = ndimage.distance_transform_edt(side, sampling=spacing_mm)
            result[side & (distance_mm <= margin_mm + TOLERANCE_MM)] = NOTHING
    return result


def counted(group: np.ndarray) -> dict[str, int]:
    """Return how many voxels of `groups` are of each kind of error."""
    counts = np.bincount(group.ravel(), minlength=NOTHING + 1)
    return {name: int(counts[code]) for code, name in enumerate(ERRORS)}
