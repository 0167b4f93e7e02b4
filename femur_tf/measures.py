"""What can be measured of a segmented scan without a reference mask.

Of the mask: volume, parts, left against right, extent, what the border cuts. Of the map: how much doubt it holds. Of
the grey values: quantiles of the body's, of the bone's and of the differences between neighbours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from femur_tf import log_odds, metrics, postprocess
from femur_tf.volume import Volume, canonical, from_working, mask_to_working, to_working

ODDS = 4.0
"""The cut-off is moved by this factor of its odds, either way, to see what depends on it."""
QUANTILES = 32
"""Of each sample of grey values."""
BODY_GREY = 26
"""Grey values at or above a tenth of the range show body."""
BORDERS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""The border before the first and after the last voxel of each canonical axis."""
AXES = ("right", "anterior", "superior")
DOUBTS = ("certainty", "boundary_bits", "cutoff_dice", "steps_dice")


@dataclasses.dataclass(frozen=True)
class Profile:
    """What is measured of one case, before it is compared with others. NaN: not defined, as with an empty mask."""

    measures: dict[str, float]
    """By name, in the unit that the name ends on; `quality.MEASURES` says what each is."""
    quantiles: dict[str, tuple[float, ...]]
    """Of the grey values of the body, of the bone, and of the differences between neighbours; empty: no voxel."""


def profile(probability: Volume, mask: np.ndarray, working: Volume, cutoff: float) -> Profile:
    """Measure one case.

    Args:
      probability: (X, Y, Z) float32 in [0, 1], on the scan's own grid, any axis order.
      mask: bool, the same shape: what the recipe made of it.
      working: uint8, the working grid of the scan.
      cutoff: of the recipe.

    Raises:
      ValueError: a mask of another shape or dtype.
    """
    if mask.shape != probability.shape or mask.dtype != np.bool_:
        raise ValueError(f"expected a bool mask {probability.shape}. Received: {mask.dtype} {mask.shape}")
    upright = canonical(Volume(mask, probability.affine))
    bone = mask_to_working(mask, probability.affine, working)
    measures = _of_mask(upright, bone, working.spacing_mm)
    measures |= _of_doubt(canonical(probability).data, upright.data, cutoff)
    # On the scan's own grid a boundary would be as wide as its voxels, and surer or less sure with them.
    measures["boundary_bits"] = _boundary_bits(_on_working(probability, working), bone)
    grey = working.data
    samples = {
        "grey": grey[grey >= BODY_GREY],
        "bone": grey[bone],
        "texture": _differences(grey, working.spacing_mm),
    }
    return Profile(measures, {name: _quantiles(sample) for name, sample in samples.items()})


def _on_working(probability: Volume, working: Volume) -> np.ndarray:
    """Bring a map from the scan's own grid to the working grid, as `mask_to_working` brings a mask."""
    return from_working(to_working(probability, working.spacing_mm), working)


def _of_mask(mask: Volume, bone: np.ndarray, working_mm: Sequence[float]) -> dict[str, float]:
    """Measure a mask on canonical axes, and the same on the working grid with its spacing."""
    spacing_mm, data = np.array(mask.spacing_mm), mask.data
    box = metrics.bounding_box(data)
    inner = data[box]
    sides = np.bincount(postprocess.sides(data, mask.affine).ravel(), minlength=3)[1:]
    extent = np.array(inner.shape) * spacing_mm
    centre = np.array([place.mean() if place.size else np.nan for place in np.nonzero(inner)])
    balance = (centre + 0.5) * spacing_mm / np.where(extent > 0, extent, np.nan)
    faces_mm2 = np.prod(spacing_mm) / spacing_mm
    result = {
        "volume_mm3": float(inner.sum() * np.prod(spacing_mm)),
        "parts": float(postprocess.count_parts(inner)) if inner.size else 0.0,
        "smaller_side": float(sides.min() / sides.max()) if sides.any() else math.nan,
        "left_half": _left_half(bone),
        "beyond_mm": _beyond_mm(bone, working_mm),
    }
    result |= {f"extent_{axis}_mm": float(value) for axis, value in zip(AXES, extent, strict=True)}
    result |= {f"balance_{axis}": float(value) for axis, value in zip(AXES[1:], balance[1:], strict=True)}
    for axis, pair in enumerate(BORDERS):
        for border, index in zip(pair, (0, -1), strict=True):
            result[f"cut_{border}_mm2"] = float(data.take(index, axis).sum() * faces_mm2[axis])
    return result


def _left_half(bone: np.ndarray) -> float:
    """Return which share of a mask on the working grid, which has no padding, lies in the patient's left half of it."""
    along = bone.sum(axis=(1, 2))  # from left to right
    left = along[: along.size // 2].sum() + along[along.size // 2] / 2 * (along.size % 2)  # half of a middle plane
    return float(left / along.sum()) if along.any() else math.nan


def _beyond_mm(bone: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Return how far the working grid goes on beyond a mask on it across the slices, where it ends sooner, mm."""
    if not bone.any():
        return math.nan
    axis = int(np.argmax(spacing_mm))
    held = metrics.bounding_box(bone)[axis]
    return float(min(held.start, bone.shape[axis] - held.stop) * spacing_mm[axis])


def _boundary_bits(probability: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean entropy of a map on either side of a mask's boundary, bits a voxel; NaN for an empty mask."""
    if not mask.any():
        return math.nan
    box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in metrics.bounding_box(mask))
    inner = mask[box]
    shell = ndimage.binary_dilation(inner) & ~ndimage.binary_erosion(inner)
    p = np.clip(probability[box][shell].astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean())


def _of_doubt(probability: np.ndarray, mask: np.ndarray, cutoff: float) -> dict[str, float]:
    """Measure the doubt in a map; all is NaN for an empty mask."""
    if not mask.any():
        return dict.fromkeys(DOUBTS, math.nan)
    lower, higher = (log_odds.times(cutoff, factor) for factor in (1 / ODDS, ODDS))
    return {
        "certainty": float(probability[mask].mean(dtype=np.float64)),
        "boundary_bits": math.nan,
        "cutoff_dice": metrics.dice(probability >= lower, probability >= higher),
        "steps_dice": metrics.dice(probability >= cutoff, mask),
    }


def _differences(grey: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Return how far neighbours along the most finely sampled axis are apart, (N,) uint8."""
    axis = int(np.argmin(spacing_mm))
    first, second = (np.delete(grey, index, axis) for index in (-1, 0))
    return (np.maximum(first, second) - np.minimum(first, second)).ravel()


def _quantiles(sample: np.ndarray) -> tuple[float, ...]:
    """Return the quantiles of uint8 values, each value spread evenly over [v - 0.5, v + 0.5]; none of no value."""
    if not sample.size:
        return ()
    cumulated = np.concatenate([[0], np.cumsum(np.bincount(sample, minlength=256))]) / sample.size  # (257,)
    wanted = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return tuple(round(float(value), 2) for value in np.interp(wanted, cumulated, np.arange(257) - 0.5))
