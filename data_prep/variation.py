"""Varied copies of a training case: other poses, sizes and scanners.

A copy is made on the working grid, as a whole volume and before patches are cut, so
that all planes and scales of a patch show the same changed patient. That costs
seconds a copy when records are written, and nothing while training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.interpolate import BSpline

from femur_tf import metrics
from femur_tf.config import VariationConfig
from femur_tf.patch_config import PLANE_AXES, Triple

SMOOTH_COEFFICIENTS = 3
"""Of the bias field along each axis: Legendre polynomials of degree 0, 1 and 2."""
WARP_SPANS = 8
"""Of the warp's cubic B-splines along each axis: a volume of 350 mm bends over about 44 mm."""
CUBIC = 3
TONE_SEGMENTS = 4
"""Of a curve of grey values, of equal length, each with a slope of its own."""
CUT_SHARE = 0.5
"""Of the copies that are cut."""
EQUAL = 0.99
"""Spacings from this share of the coarsest one on are as coarse."""
TONE_CONTRAST = 4
"""Of the field that says where which curve prevails: its standard deviation, 0.1 or so, becomes 0.4."""


def affine(config: VariationConfig, spacing_mm: Triple, rng: np.random.Generator) -> np.ndarray:
    """Draw a rotation and a scaling about the volume's centre.

    Args:
      config: how much.
      spacing_mm: voxel spacing along x, y, z.
      rng: the source of chance.

    Returns:
      (3, 3) float64: offset from the centre in the copy -> offset from the centre in the volume, both in voxels.
    """
    result = np.diag(np.exp(rng.uniform(-1, 1, 3) * np.log1p(config.scale)))
    finest = min(PLANE_AXES, key=lambda axes: max(spacing_mm[axes[1]], spacing_mm[axes[2]]))
    for across, rows, columns in PLANE_AXES:
        limit = config.rotation_degrees if across == finest[0] else config.tilt_degrees
        angle = np.deg2rad(rng.uniform(-limit, limit))
        turn = np.eye(3)
        turn[[rows, columns], [rows, columns]] = np.cos(angle)
        turn[rows, columns], turn[columns, rows] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    spacing = np.array(spacing_mm)
    return result * spacing / spacing[:, None]  # mm -> mm becomes voxel -> voxel


def _field(weights: np.ndarray, bases: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of products of basis functions, (X, Y, Z) float32.

    Args:
      weights: (K, L, M) float32, of each product.
      bases: of each axis, (its voxels, its functions).
    """
    for basis in bases:
        weights = np.tensordot(weights, basis.astype(np.float32), axes=(0, 1))  # the axes come round once
    return weights


def _basis(length: int) -> np.ndarray:
    """Return the cubic B-splines of one axis at its voxels, (length, WARP_SPANS + 3)."""
    knots = np.arange(-CUBIC, WARP_SPANS + CUBIC + 1)
    places = (np.arange(length) + 0.5) * (WARP_SPANS / length)
    return np.asarray(BSpline.design_matrix(places, knots, CUBIC).toarray())


def sources(
    shape: tuple[int, ...], matrix: np.ndarray, config: VariationConfig, rng: np.random.Generator
) -> np.ndarray:
    """Draw where each voxel of a copy is read from: turned, stretched, shifted and bent.

    Args:
      shape: (X, Y, Z) of the volume and of the copy.
      matrix: what `affine` gave.
      config: how much.
      rng: the source of chance.

    Returns:
      (3, X, Y, Z) float32 places in the volume, in voxels.
    """
    sides = np.array(shape, np.float32)
    centre = (np.array(shape) - 1) / 2
    offset = centre - matrix @ centre + rng.uniform(-1, 1, 3) * config.shift * sides
    bend = rng.uniform(-1, 1, (3,) + (WARP_SPANS + CUBIC,) * 3).astype(np.float32)
    bend *= np.float32(rng.uniform(0, config.warp)) * sides[:, None, None, None]
    bases = [_basis(length) for length in shape]
    result = np.empty((3, *shape), np.float32)
    for axis, (row, start) in enumerate(zip(matrix, offset, strict=True)):
        x, y, z = (np.arange(n) * step for n, step in zip(shape, row, strict=True))
        result[axis] = (x + start)[:, None, None] + y[:, None] + z
        if config.warp:
            result[axis] += _field(bend[axis], bases)
    return result


def _moved(data: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Resample a volume linearly; beyond its border the nearest voxel is repeated."""
    return np.asarray(ndimage.map_coordinates(data, places, order=1, mode="nearest"))


def _bias(shape: tuple[int, ...], amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a smooth positive field (X, Y, Z) float32 whose logarithm is of the order of `amplitude`."""
    weights = rng.uniform(-1, 1, (SMOOTH_COEFFICIENTS,) * 3).astype(np.float32)
    weights[0, 0, 0] = 0
    places = [np.linspace(-1, 1, length) if length > 1 else np.zeros(1) for length in shape]
    field = _field(weights, [np.polynomial.legendre.legvander(p, SMOOTH_COEFFICIENTS - 1) for p in places])
    return np.exp(field * (amplitude / max(1e-6, float(np.abs(field).max()))))


def _tone_curve(tone: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a rising curve from 0 at 0 to 1 at 1; return its values at the ends of `TONE_SEGMENTS` segments."""
    slopes = np.exp(rng.uniform(-1, 1, TONE_SEGMENTS) * np.log1p(tone))
    return np.concatenate([[0], np.cumsum(slopes)]) / slopes.sum()


def _toned(grey: np.ndarray, tone: float, rng: np.random.Generator) -> np.ndarray:
    """Pass grey values through two curves, of which now one and now the other prevails from place to place.

    Marrow is red in one part of a bone and yellow in another, and the fat of the skin is not that of the marrow: so
    tissues change beside each other, where a gamma or a bias field changes all of a place alike. Rising curves after
    the non-linear transformation of Models Genesis (Zhou et al. 2019); that they change from place to place is ours.

    Args:
      grey: (X, Y, Z) float32 in [0, 1].
      tone: how much, as `VariationConfig` has it.
      rng: the source of chance.
    """
    weights = rng.uniform(0, 1, (WARP_SPANS + CUBIC,) * 3).astype(np.float32)
    field = _field(weights, [_basis(length) for length in grey.shape])  # near a half nearly everywhere
    share = np.clip((field - 0.5) * TONE_CONTRAST + 0.5, 0, 1)
    ends = np.linspace(0, 1, TONE_SEGMENTS + 1)
    one, other = (np.interp(grey, ends, _tone_curve(tone, rng)).astype(np.float32) for _ in range(2))
    return share * one + (1 - share) * other


def vary(
    grid: np.ndarray, mask: np.ndarray, spacing_mm: Triple, config: VariationConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a varied copy of a case.

    Args:
      grid: (X, Y, Z) uint8 working grid.
      mask: (X, Y, Z) bool femur on it.
      spacing_mm: voxel spacing along x, y, z.
      config: how much.
      rng: the source of chance.

    Returns:
      Grid and mask of the same dtypes; of the same shapes too, but for copies that are cut.
    """
    places = sources(grid.shape, affine(config, spacing_mm, rng), config, rng)
    moved = _moved(mask.astype(np.float32), places) >= 0.5
    grey = _moved(grid, places).astype(np.float32) / 255
    grey = grey ** np.float32(np.exp(rng.uniform(-1, 1) * np.log1p(config.gamma)))
    if config.tone:
        grey = _toned(grey, config.tone, rng)
    grey *= _bias(grid.shape, rng.uniform(0, config.bias), rng)
    grey *= 255
    if config.blur_mm:
        width_mm = rng.uniform(0, config.blur_mm)
        grey = ndimage.gaussian_filter(grey, [width_mm / length for length in spacing_mm], mode="nearest")
    grey += rng.standard_normal(grid.shape, np.float32) * np.float32(rng.uniform(0, config.noise))
    varied = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    if not config.cut_mm or not moved.any():
        return varied, moved
    inside = _stack(moved, spacing_mm, config.cut_mm, rng)
    return np.ascontiguousarray(varied[inside]), np.ascontiguousarray(moved[inside])


def _stack(
    mask: np.ndarray, spacing_mm: Triple, most_mm: float, rng: np.random.Generator
) -> tuple[slice, slice, slice]:
    """Draw the slices of a copy: in one of two all, else those of the femur and up to `most_mm` on either side.

    Slices lie across the axis of the coarsest spacing; of equal ones, across one that is drawn.

    Args:
      mask: (X, Y, Z) bool femur of the copy, not empty.
      spacing_mm: voxel spacing along x, y, z.
      most_mm: beyond the femur.
      rng: the source of chance.
    """
    result = [slice(0, length) for length in mask.shape]
    if rng.random() < CUT_SHARE:
        axis = int(rng.choice(np.flatnonzero(np.array(spacing_mm) >= EQUAL * max(spacing_mm))))
        held = metrics.bounding_box(mask)[axis]
        before, after = (round(float(beyond)) for beyond in rng.uniform(0, most_mm, 2) / spacing_mm[axis])
        result[axis] = slice(max(0, held.start - before), held.stop + after)
    x, y, z = result
    return x, y, z
