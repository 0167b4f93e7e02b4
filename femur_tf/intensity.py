"""Grey values: robust limits to uint8, and the correction of a slowly varying brightness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from femur_tf import volume
from femur_tf.config import NormalisationConfig

FILL_SHARE = 0.005
"""A value in fewer of the voxels lies below the lower limit of the grey values, and does no harm."""
FILL_GAP = 0.1
"""Share of the others' range by which a fill value lies below them: less costs few of the 256 grey values."""
N4_SHRINK = 4
"""The bias field is fitted on every fourth voxel of an axis."""
N4_SAMPLES = 8
"""An axis keeps at least this many samples for the fit, where it has as many."""


class Limits(NamedTuple):
    """Grey values by which the others are told; those of an image without foreground are alike."""

    lower: float
    median: float
    """Of the foreground, the voxels above the mean."""
    upper: float

    @property
    def medians(self) -> float:
        """How many times as far from the lower limit the upper one lies as the median; infinite where that is on it."""
        return (self.upper - self.lower) / (self.median - self.lower) if self.median > self.lower else math.inf


def limits(data: np.ndarray, settings: NormalisationConfig) -> Limits:
    """Return the robust limits of a volume's grey values.

    Args:
      data: (X, Y, Z), real, finite.
      settings: which percentiles, and how far the upper limit may lie from the lower one.
    """
    foreground = data[data > data.mean(dtype=np.float64)]
    lower = float(np.percentile(data, settings.lower_percentile))
    if not foreground.size:
        return Limits(lower, lower, lower)
    # Its own copy may be sorted; so much for memory.
    upper = float(np.percentile(foreground, settings.upper_percentile, overwrite_input=True))
    median = float(np.median(foreground, overwrite_input=True))
    if settings.upper_medians is not None and median > lower:
        upper = min(upper, lower + settings.upper_medians * (median - lower))
    return Limits(lower, median, upper)


def normalise(data: np.ndarray, settings: NormalisationConfig) -> np.ndarray:
    """Map intensities to 0..255 between robust limits.

    Args:
      data: (X, Y, Z), real, finite.
      settings: of the limits; the lower one and what lies below become 0, the upper one and what lies above 255.

    Returns:
      uint8, C order; linear between the limits, halves rounded up. Zeros where the limits leave no range, as in a
      constant image.

    Example:
      >>> all_of_it = NormalisationConfig(lower_percentile=0, upper_percentile=100)
      >>> normalise(np.array([[[0.0, 50.0, 100.0]]]), all_of_it).tolist()
      [[[0, 128, 255]]]
    """
    lower, _, upper = limits(data, settings)
    result = np.zeros(data.shape, np.uint8)
    if upper <= lower:
        return result
    for source, target in zip(data, result, strict=True):  # one slab at a time is in float64, to save memory
        share = (np.clip(source, lower, upper).astype(np.float64) - lower) / (upper - lower)
        target[:] = np.floor(share * 255 + 0.5)
    return result


def fill_value(data: np.ndarray) -> float | None:
    """Return the value that stands for no image and would squeeze all tissue into fewer grey values.

    Args:
      data: (X, Y, Z), real, finite.

    Returns:
      The lowest value, where it is below 0, in at least 0.5 % of the voxels (bound included), and further from all
      others than a tenth of the range that these have without their brightest 0.5 %, such as -1024; else None.
    """
    lowest = float(data.min())
    if lowest >= 0:  # MR as it comes: 0 is no signal
        return None
    others = data[data > lowest]
    if not others.size or data.size - others.size < FILL_SHARE * data.size:
        return None
    low, high = float(others.min()), float(np.percentile(others, 99.5, overwrite_input=True))
    return lowest if low - lowest > FILL_GAP * (high - low) else None


def without_fill(scan: volume.Volume) -> volume.Volume:
    """Return a volume with the lowest of the other values in place of what `fill_value` finds; itself without one."""
    fill = fill_value(scan.data)
    return (
        scan if fill is None else volume.Volume(np.maximum(scan.data, scan.data[scan.data > fill].min()), scan.affine)
    )


def fill_doubt(data: np.ndarray) -> str | None:
    """Return the warning of a value that `fill_value` finds; None without one."""
    fill = fill_value(data)
    if fill is None:
        return None
    return (
        f"expected grey values of the scan alone. Received: {fill:g} in {np.mean(data == fill):.1%} of the voxels, far "
        "below all others. It is taken for the lowest of them."
    )


def correct_bias(scan: volume.Volume) -> volume.Volume:
    """Divide a volume by its slowly varying brightness (N4; Tustison et al. 2010).

    The field is fitted to the voxels above half the mean, which leaves out air and keeps
    muscle, on every fourth voxel of an axis that is long enough, and applied at full
    resolution.

    Args:
      scan: (X, Y, Z), any axis order; intensities of MR, where 0 is no signal.

    Returns:
      float32 on the same grid; unchanged where those voxels are none or all alike.
    """
    data = scan.data.astype(np.float32)
    foreground = data > max(float(data.mean(dtype=np.float64)) / 2, 0.0)
    if np.unique(data[foreground]).size < 2:
        return volume.Volume(data, scan.affine)
    return volume.Volume(data / np.exp(_log_field(data, foreground, scan.spacing_mm)), scan.affine)


def _log_field(data: np.ndarray, foreground: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Fit N4's field to the foreground and return its logarithm, (X, Y, Z) float32."""
    twice = [(0, 1 if n == 1 else 0) for n in data.shape]  # the filter needs two voxels along an axis
    image = volume.to_sitk(np.pad(data, twice, mode="edge"))
    mask = sitk.Cast(volume.to_sitk(np.pad(foreground, twice, mode="edge")), sitk.sitkUInt8)
    image.SetSpacing(spacing_mm)
    mask.SetSpacing(spacing_mm)
    shrink = [max(1, min(N4_SHRINK, n // N4_SAMPLES)) for n in data.shape]
    fit = sitk.N4BiasFieldCorrectionImageFilter()
    fit.Execute(sitk.Shrink(image, shrink), sitk.Shrink(mask, shrink))
    x, y, z = data.shape
    return volume.from_sitk(fit.GetLogBiasFieldAsImage(image))[:x, :y, :z]
