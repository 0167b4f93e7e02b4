"""Volumes: an array of voxels and the affine that places them in the patient.

An affine is a (4, 4) matrix that takes a voxel index (i, j, k, 1) to millimetres in
RAS: x grows to the patient's Right, y to Anterior, z to Superior. Axes are in
canonical order when i runs closest to x, j to y and k to z, each in its growing
direction. The working grid is the canonical grid at the study's spacing.

Voxel (i, j, k) stands for the box half a voxel around its centre, so a volume of n
voxels of spacing s covers n * s. Resampling keeps the middle of that field of view.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from nibabel import orientations
from scipy import ndimage

from femur_tf import log_odds

SPACING_TOLERANCE = 0.01
"""Spacings that differ by at most this share of the wanted one count as equal."""
SMOOTH_ABOVE = 1.5
"""An axis is smoothed before it is sampled coarser by more than this ratio."""
GRID_TOLERANCE_MM = 1e-3
"""Grids of one shape are the same where no corner voxel is further apart than this (bound included)."""
GRID_TOLERANCE = 0.01
"""Of a mask and its scan no corner may be further apart than this share of the finest spacing either (bound included):
headers are rounded, to 5 decimals of mm and less."""
BEYOND = 1e-6
"""A voxel this far beyond the border, in voxels, lies on it: the rest is rounding."""
PADDED = 0.99
"""A voxel this far beyond the border of a working grid, in its voxels, was padding: grids of one field of view, which
is kept to the nearest voxel, are at most three quarters of one apart."""
MAX_VOXELS = 2**29
"""The largest working grid that is made (bound included): four volumes of 512 voxels a side, which take 6 GB to make
(12 bytes a voxel). Hip scans have some million; a spacing that is off a thousandfold asks for more."""
RAS = np.array([[0, 1], [1, 1], [2, 1]])
"""The orientation of canonical axes, in nibabel's form."""


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
    """A 3-D array and where it lies.

    Raises:
      ValueError: `data` is not 3-D or has no voxel, or `affine` is not an invertible (4, 4) affine.
    """

    data: np.ndarray
    """(X, Y, Z), any real dtype or bool."""
    affine: np.ndarray
    """(4, 4) float64, voxel index -> RAS mm."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "affine", np.array(self.affine, dtype=np.float64))
        if self.data.ndim != 3 or 0 in self.data.shape:
            raise ValueError(f"data: expected a 3-D array with voxels. Received: shape={self.data.shape}")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ValueError(f"affine: expected a finite (4, 4) matrix. Received: {self.affine.tolist()}")
        if _is_flat(self.affine):
            raise ValueError(
                "affine: expected three axes of non-zero spacing that span space. "
                f"Received: spacing_mm={self.spacing_mm}, affine={self.affine.tolist()}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along each axis."""
        x, y, z = self.data.shape
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxel centres along each axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def _is_flat(affine: np.ndarray) -> bool:
    """Tell whether an axis has no length or the three axes lie in a plane."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)  # (3,)
    return bool((lengths == 0).any()) or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6


def canonical(volume: Volume) -> Volume:
    """Flip and permute the axes of a volume to the closest RAS+ order.

    Args:
      volume: (X, Y, Z), any axis order.

    Returns:
      The same voxels, as a view, and the affine that keeps each at its place.
    """
    orientation = orientations.io_orientation(volume.affine)
    data = orientations.apply_orientation(volume.data, orientation)
    affine = volume.affine @ orientations.inv_ornt_aff(orientation, volume.shape)
    return Volume(data, affine)


def to_working(volume: Volume, spacing_mm: Sequence[float]) -> Volume:
    """Bring a volume to canonical axes and a given spacing.

    Nothing is interpolated where every spacing agrees within 1 % (bound included).
    Otherwise linear, after a Gaussian along each axis that gets coarser by more than
    1.5 times, which keeps finer detail from folding back. The field of view keeps its
    middle and, to the nearest voxel, its size.

    Args:
      volume: (X, Y, Z), any axis order, real or bool.
      spacing_mm: wanted spacing along canonical x, y, z in mm.

    Returns:
      The volume on the working grid: its own dtype without interpolation, else float32.

    Raises:
      ValueError: `spacing_mm` is not three lengths above 0, or the working grid would be larger than `MAX_VOXELS`.

    Example:
      >>> volume = Volume(np.ones((4, 4, 4), np.uint8), np.diag([-1.0, -1.0, 2.0, 1.0]))
      >>> to_working(volume, (1.0, 1.0, 1.0)).shape
      (4, 4, 8)
    """
    if len(spacing_mm) != 3 or not all(0 < s < math.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm: expected three lengths above 0 mm. Received: {tuple(spacing_mm)}")
    source = canonical(volume)
    if spacings_agree(source.spacing_mm, spacing_mm):
        return source
    ratio = np.array(spacing_mm) / source.spacing_mm  # (3,), working voxel in source voxels
    shape = np.array(working_shape(source.shape, source.spacing_mm, spacing_mm))
    to_source = np.diag([*ratio, 1.0])  # working index -> source index
    to_source[:3, 3] = (np.array(source.shape) - 1) / 2 - ratio * (shape - 1) / 2
    data = _interpolate(_smooth(source.data, ratio), to_source, shape)
    return Volume(data, source.affine @ to_source)


def working_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], wanted_mm: Sequence[float]
) -> tuple[int, int, int]:
    """Return the voxels of a resampled grid that keeps, to the nearest voxel, its field of view.

    Args:
      shape: of the volume, along canonical x, y, z.
      spacing_mm: of the volume.
      wanted_mm: of the resampled grid.

    Raises:
      ValueError: more than `MAX_VOXELS`.
    """
    wanted = [max(1.0, n / (w / s)) for n, s, w in zip(shape, spacing_mm, wanted_mm, strict=True)]
    x, y, z = (round(min(n, MAX_VOXELS + 1)) for n in wanted)  # infinity cannot be rounded
    if x * y * z > MAX_VOXELS:
        has, spacing, needs, at = (
            " x ".join(format(v, how) for v in values)
            for values, how in ((shape, "d"), (spacing_mm, ".6g"), (wanted, ",.0f"), (wanted_mm, ".6g"))
        )
        raise ValueError(
            f"expected a working grid of at most {MAX_VOXELS:,} voxels. Received: {has} voxels, {spacing} mm apart, "
            f"which would be {needs} of {at} mm. Are lengths in the file in another unit than mm? Correct its spacing."
        )
    return x, y, z


def mask_to_working(mask: np.ndarray, affine: np.ndarray, working: Volume) -> np.ndarray:
    """Bring a mask to the working grid of its scan.

    Args:
      mask: bool, (X, Y, Z), any axis order, on the scan's own grid.
      affine: of the scan, (4, 4).
      working: what `to_working` made of the scan.

    Returns:
      bool, of the shape of `working`: at least half of the voxel is in the mask.
    """
    found = to_working(Volume(mask.astype(np.float32), affine), working.spacing_mm)
    # The number of voxels of an oblique grid may round to another one where its spacing was computed again.
    return np.asarray(from_working(found, working) >= 0.5)


def spacings_agree(first_mm: Sequence[float], wanted_mm: Sequence[float]) -> bool:
    """Tell whether each spacing differs by at most 1 % of the wanted one."""
    return all(abs(f - w) <= SPACING_TOLERANCE * w for f, w in zip(first_mm, wanted_mm, strict=True))


def from_working(found: Volume, like: Volume) -> np.ndarray:
    """Bring a probability map on a working grid to the grid that it was made from.

    Args:
      found: (X', Y', Z') of any float in [0, 1], on the working grid of `like`.
      like: the volume whose grid to return to.

    Returns:
      float32, of the shape and in the axis order of `like.data`: linear in the log-odds, so that no cut-off makes the
      bone grow; the nearest value beyond the border, and 0 from a voxel beyond it on, where `like` is padded. Where
      the two grids agree the values are only reordered.
    """
    source = canonical(like)
    if found.shape == source.shape and corner_distance_mm(source, found.affine) <= GRID_TOLERANCE_MM:
        return np.ascontiguousarray(_reorder(found.data, like), dtype=np.float32)
    to_source = np.linalg.inv(found.affine) @ like.affine
    result = log_odds.back(_interpolate(log_odds.of(found.data), to_source, like.shape))
    for axis, length in enumerate(found.shape):
        along = int(np.abs(to_source[axis, :3]).argmax())  # the axes of both grids are parallel
        at = to_source[axis, along] * np.arange(like.shape[along]) + to_source[axis, 3]
        np.moveaxis(result, along, 0)[(at <= -PADDED) | (at >= length - 1 + PADDED)] = 0
    return result


def _reorder(data: np.ndarray, like: Volume) -> np.ndarray:
    """Take an array from canonical axes to the axes of `like`."""
    orientation = orientations.ornt_transform(RAS, orientations.io_orientation(like.affine))
    return np.asarray(orientations.apply_orientation(data, orientation))


def require_same_grid(volume: Volume, like: Volume) -> None:
    """Raise a `ValueError` unless two volumes have one shape and corners within 1 % of a voxel, or 1e-3 mm."""
    if volume.shape != like.shape:
        raise ValueError(f"shape: expected {like.shape}. Received: {volume.shape}")
    distance_mm = corner_distance_mm(volume, like.affine)
    if not distance_mm <= max(GRID_TOLERANCE_MM, GRID_TOLERANCE * min(like.spacing_mm)):
        own, other = ([[float(f"{a:.7g}") for a in row] for row in v.affine[:3]] for v in (volume, like))
        raise ValueError(f"affine: expected {other}. Received: {own}, up to {distance_mm:.3g} mm away")


def corner_distance_mm(volume: Volume, affine: np.ndarray) -> float:
    """Return how far in mm the corner voxels of `volume` lie, at most, from where `affine`, (4, 4), puts them."""
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in volume.shape], (1,))))  # (8, 4)
    return float(np.linalg.norm(corners @ (affine - volume.affine).T, axis=1).max())


def _smooth(data: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Smooth each axis that will be sampled coarser by more than `SMOOTH_ABOVE`.

    A voxel is a box as wide as its spacing. Taken as a Gaussian of half that width, a
    coarse voxel has sigma r / 2 and a fine one 1 / 2, so what is missing has
    sigma^2 = (r^2 - 1) / 4, in fine voxels.
    """
    result = data.astype(np.float32, copy=False)
    for axis, r in enumerate(ratio):
        if r > SMOOTH_ABOVE:
            result = ndimage.gaussian_filter1d(result, 0.5 * math.sqrt(r * r - 1), axis=axis, mode="nearest")
    return result


def _interpolate(data: np.ndarray, to_source: np.ndarray, shape: Sequence[int] | np.ndarray) -> np.ndarray:
    """Sample `data` linearly, with the nearest value beyond its border.

    Args:
      data: (X, Y, Z).
      to_source: (4, 4), index in the result -> index in `data`.
      shape: of the result.

    Returns:
      float32, C order.
    """
    ends = np.array(list(itertools.product(*[(0, n - 1) for n in shape], (1,)))) @ to_source[:3].T  # (8, 3)
    # Beyond the border the library would take the nearest voxel along all axes, not only along the one that is left.
    before, after = np.maximum(0, -ends.min(axis=0)), np.maximum(0, ends.max(axis=0) + 1 - data.shape)
    margin = np.ceil(np.stack([before, after], axis=1) - BEYOND).astype(int)  # (3, 2)
    if margin.any():
        data, to_source = np.pad(data, margin, mode="edge"), to_source.copy()
        to_source[:3, 3] += margin[:, 0]
    resample = sitk.ResampleImageFilter()
    resample.SetSize([int(n) for n in shape])
    resample.SetTransform(sitk.AffineTransform(to_source[:3, :3].ravel().tolist(), to_source[:3, 3].tolist()))
    resample.SetInterpolator(sitk.sitkLinear)
    resample.UseNearestNeighborExtrapolatorOn()
    return from_sitk(resample.Execute(to_sitk(data)))


def to_sitk(data: np.ndarray) -> sitk.Image:
    """Return (X, Y, Z) as a float32 image of unit spacing; SimpleITK reads arrays as (z, y, x)."""
    return sitk.GetImageFromArray(np.ascontiguousarray(data.T, dtype=np.float32))


def from_sitk(image: sitk.Image) -> np.ndarray:
    """Return an image as (X, Y, Z), C order; a copy, as a view would outlive the image."""
    return np.array(sitk.GetArrayViewFromImage(image).T, order="C")
