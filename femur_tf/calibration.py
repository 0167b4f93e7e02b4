"""Do probabilities mean what they say? Their reliability, and the logistic map that mends it.

A network trained on oversampled bone and near-bone says too high probabilities for the voxels of a whole volume, and
no constant shift is right for all of them. A slope and an intercept of the logits, fitted on all voxels of validation
volumes (Platt 1999), map p to sigmoid(slope * logit(p) + intercept). The map is monotone: what a cut-off separates
stays, at the mapped cut-off. The network's last layer is a Dense unit before a sigmoid, so the map is exactly its
kernel times the slope and its bias times the slope plus the intercept (`femur_tf.folding`).

Everything works on `metrics.VoxelCounts`, so it takes milliseconds for any number of volumes.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import special

from femur_tf import metrics

BINS = 15
"""Of the reliability table, of equal width in probability."""
LEAST = 2.0**-24
"""Stands for a float16 probability of 0, the smallest that float16 has: a logit needs a number above 0."""
MOST = 1 - 2.0**-12
"""Stands for 1: halfway to the largest float16 below it."""
LEAST_SLOPE = 1e-3


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The map p -> sigmoid(slope * logit(p) + intercept); by default none."""

    slope: float = 1.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite([self.slope, self.intercept]).all() and self.slope > 0):
            raise ValueError(f"expected a slope above 0 and a finite intercept. Received: {self}")


NONE = Calibration()
"""Leaves every probability as it is."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
    """One entry for each bin that has voxels, from low to high probability."""

    probability: np.ndarray
    """(N,) float64, mean of the bin's voxels."""
    bone: np.ndarray
    """(N,) float64, share of them that is bone."""
    voxels: np.ndarray
    """(N,) int64."""


def reliability(counts: metrics.VoxelCounts, bins: int = BINS) -> Reliability:
    """Compare probabilities with how often they come true.

    Args:
      counts: the voxels.
      bins: their number, of equal width; [low, high), the last one with 1.

    Raises:
      ValueError: fewer than one bin.

    Example:
      >>> counts = metrics.VoxelCounts()
      >>> counts.add(np.array([0.25, 0.25, 0.75, 0.75], np.float16), np.array([False, True, True, True]))
      >>> table = reliability(counts, bins=2)
      >>> table.probability.tolist(), table.bone.tolist(), table.voxels.tolist()
      ([0.25, 0.75], [0.5, 1.0], [2, 2])
    """
    if bins < 1:
        raise ValueError(f"expected at least one bin. Received: bins={bins}")
    values, total = _values(), counts.positives + counts.negatives
    number = np.minimum((values * bins).astype(np.int64), bins - 1)

    def summed(weights: np.ndarray) -> np.ndarray:
        return np.bincount(number, weights, minlength=bins)

    voxels = summed(total)
    there = voxels > 0
    return Reliability(
        summed(values * total)[there] / voxels[there],
        summed(counts.positives)[there] / voxels[there],
        voxels[there].astype(np.int64),
    )


def expected_error(table: Reliability) -> float:
    """Return the expected calibration error: how far mean probability and share of bone are apart, weighted by voxels.

    Naeini et al. 2015. NaN without voxels. As nearly all voxels are surely background, it is small by itself; see
    `doubtful`.
    """
    total = table.voxels.sum()
    if not total:
        return float("nan")
    return float((table.voxels * np.abs(table.probability - table.bone)).sum() / total)


def doubtful(counts: metrics.VoxelCounts, low: float = 0.01, high: float = 0.99) -> metrics.VoxelCounts:
    """Return the voxels whose probability lies in [low, high] alone: those for which calibration matters."""
    inside = (_values() >= low) & (_values() <= high)
    return metrics.VoxelCounts(counts.positives * inside, counts.negatives * inside)


def brier(counts: metrics.VoxelCounts) -> float:
    """Return the mean squared difference between probability and truth (Brier 1950); NaN without voxels."""
    values, total = _values(), (counts.positives + counts.negatives).sum()
    squares = (counts.positives * (1 - values) ** 2 + counts.negatives * values**2).sum()
    return float(squares / total) if total else float("nan")


def log_loss(counts: metrics.VoxelCounts, calibration: Calibration = NONE) -> float:
    """Return the mean negative log-likelihood of the truth, in nats, after a calibration; NaN without voxels."""
    total = (counts.positives + counts.negatives).sum()
    return float(_loss(np.array([calibration.slope, calibration.intercept]), counts)[0]) if total else float("nan")


def fit(counts: metrics.VoxelCounts) -> Calibration:
    """Return the slope and the intercept of largest likelihood.

    The likelihood has one maximum; it is found by Newton steps within a trust region.

    Args:
      counts: all voxels of the validation volumes.

    Raises:
      ValueError: one class has no voxels, or probabilities that do not grow with the share of bone.
    """
    from scipy import optimize  # here, because its import takes half a second

    positives, negatives = int(counts.positives.sum()), int(counts.negatives.sum())
    if not positives or not negatives:
        raise ValueError(f"expected voxels of bone and of background. Received: {positives} and {negatives}")
    found = optimize.minimize(
        lambda x: _loss(x, counts)[0],
        np.array([1.0, 0.0]),
        jac=lambda x: _loss(x, counts)[1],
        hess=lambda x: _loss(x, counts)[2],
        method="trust-exact",
        options={"gtol": 1e-10, "maxiter": 500},
    )
    slope, intercept = map(float, found.x)
    if slope < LEAST_SLOPE:
        raise ValueError(
            f"expected probabilities that are higher where there is bone. Received: a slope of {slope:.3g}"
        )
    return Calibration(slope, intercept)


def inverse(calibration: Calibration) -> Calibration:
    """Return the map that undoes another."""
    return Calibration(1 / calibration.slope, -calibration.intercept / calibration.slope)


def apply(probability: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Return calibrated probabilities, of the shape and the float dtype of those given.

    Args:
      probability: in [0, 1], any shape; 0 and 1 stay.
      calibration: the map.
    """
    with np.errstate(divide="ignore"):  # the logits of 0 and 1 are infinite, and come back as 0 and 1
        logit = special.logit(probability.astype(np.float64))
    return np.asarray(special.expit(calibration.slope * logit + calibration.intercept).astype(probability.dtype))


def mapped(counts: metrics.VoxelCounts, calibration: Calibration) -> metrics.VoxelCounts:
    """Return the counts of the calibrated map, each value rounded to float16 as a map is."""
    values = apply(_values(), calibration).astype(np.float16)
    number = values.view(np.uint16)
    size = metrics.FLOAT16_VALUES.size
    return metrics.VoxelCounts(
        *(np.bincount(number, of, minlength=size).astype(np.int64) for of in (counts.positives, counts.negatives))
    )


def _values() -> np.ndarray:
    """Return every float16 probability as float64, (15361,)."""
    return metrics.FLOAT16_VALUES.astype(np.float64)


def _loss(x: np.ndarray, counts: metrics.VoxelCounts) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the mean negative log-likelihood at (slope, intercept), its gradient (2,) and its Hessian (2, 2)."""
    total = counts.positives + counts.negatives
    there = np.flatnonzero(total)
    logit = special.logit(np.clip(_values()[there], LEAST, MOST))
    bone, weight = counts.positives[there] / total.sum(), total[there] / total.sum()
    z = x[0] * logit + x[1]
    loss = (weight * np.logaddexp(0, z) - bone * z).sum()
    p = special.expit(z)
    design = np.stack([logit, np.ones_like(logit)])  # (2, N)
    return float(loss), design @ (weight * p - bone), (design * (weight * p * (1 - p))) @ design.T
