"""Grey values: robust limits to uint8, and the correction of a slowly varying brightness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from femur_tf import volume

FILL_SHARE = 0.005
"""A value in fewer of the voxels lies below the lower limit of the grey values, and does no harm."""
N4_SHRINK = 4
"""The bias field is fitted on every fourth voxel of an axis."""
N4_SAMPLES = 8
"""An axis keeps at least this many samples for the fit, where it has as many."""


def normalise(data: np.ndarray, *, lower_percentile: float, upper_percentile: float) -> np.ndarray:
    """Map intensities to 0..255 between robust limits.

    Args:
      data: (X, Y, Z), real, finite.
      lower_percentile: of all voxels, in [0, 100]; this intensity and those below become 0.
      upper_percentile: of the foreground, the voxels above the mean, in [0, 100]; this intensity and those above
        become 255.

    Returns:
      uint8, C order; linear between the limits, halves rounded up. Zeros where the limits leave no range, as in a
      constant image.

    Example:
      >>> normalise(np.array([[[0.0, 50.0, 100.0]]]), lower_percentile=0, upper_percentile=100).tolist()
      [[[0, 128, 255]]]
    """
    foreground = data[data > data.mean(dtype=np.float64)]
    lower = float(np.percentile(data, lower_percentile))
    # Its own copy may be sorted; so much for memory, as below, where one slab at a time is in float64.
    upper = float(np.percentile(foreground, upper_percentile, overwrite_input=True)) if foreground.size else lower
    result = np.zeros(data.shape, np.uint8)
    if upper <= lower:
        return result
    for source, target in zip(data, result, strict=True):
        share = (np.clip(source, lower, upper).astype(np.float64) - lower) / (upper - lower)
        target[:] = np.floor(share * 255 + 0.5)
    return result


def fill_value(data: np.ndarray) -> float | None:
    """Return the value that stands for no image and would squeeze all tissue into a few grey values.

    Args:
      data: (X, Y, Z), real, finite.

    Returns:
      The lowest value, where it is below 0, in at least 0.5 % of the voxels (bound included), and further from all
      others than these are from one another, such as -32768; else None.
    """
    lowest = float(data.min())
    if lowest >= 0:  # MR as it comes: 0 is no signal
        return None
    others = data[data > lowest]
    if not others.size or data.size - others.size < FILL_SHARE * data.size:
        return None
    low, high = float(others.min()), float(others.max())
    return lowest if low - lowest > high - low else None


def fill_doubt(data: np.ndarray) -> str | None:
    """Return the warning of a value that `fill_value` finds; None without one."""
    fill = fill_value(data)
    if fill is None:
        return None
    return (
        f"expected grey values of the scan alone. Received: {fill:g} in {np.mean(data == fill):.1%} of the voxels, far "
        "below all others, which are left few grey levels. Replace it with the value of air."
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
