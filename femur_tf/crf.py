"""Mean-field inference of a conditional random field on a probability map.

The model is Krähenbühl and Koltun's (NeurIPS 2011) with two labels: each pair of voxels (i, j) that disagree costs

    W_ij = w_s k(d; s) / K(s)  +  w_a k(d; a) exp(-(g_i - g_j)^2 / (2 b^2)) / K(a),      k(d; t) = exp(-d^2 / (2 t^2)),

the smoothness and the appearance kernel of their distance d in mm and their grey values g. As in convolutional CRFs
(Teichmann and Cipolla 2018, arXiv 1805.04777) pairs further apart than the window's radius are left out, which makes
exact message passing cheap. K(t), the sum of k over the window, is our addition: a weight is then the log-odds that
a neighbourhood of one opinion adds, on every spacing.

With m_j = 2 q_j - 1 in [-1, 1], the opinion of voxel j, Potts compatibility turns the update of all voxels at once
into

    log-odds(q_i) = log-odds(p_i) + sum over j != i of W_ij m_j,      m = tanh(log-odds / 2).

A voxel beyond the volume has no opinion. Voxels of which the network is nearly certain keep their probability, and
act on their neighbours with it: 3 to 5 % of a hip scan are left to be updated.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from femur_tf.errors import require

Spacing = tuple[float, float, float]
Shift = tuple[int, int, int]

FLOOR = 1e-4
"""Probabilities are kept this far from 0 and 1 when log-odds are taken: a float16 map rounds to them."""
_TIE_MM = 1e-6  # a radius of exactly n voxels reaches n voxels, whatever the rounding


@dataclasses.dataclass(frozen=True)
class CrfConfig:
    """The kernels, their window and the number of updates (the values are our choice, docs/experiments.md)."""

    smoothness_weight: float = 1.0
    """Log-odds that a neighbourhood of one opinion adds through the smoothness kernel; 0 switches it off."""
    smoothness_mm: float = 1.5
    """Standard deviation of the smoothness kernel."""
    appearance_weight: float = 2.0
    """The same of the appearance kernel, where the neighbourhood also has one grey value."""
    appearance_mm: float = 4.0
    """Standard deviation of the appearance kernel in space."""
    appearance_grey: float = 20.0
    """Its standard deviation in grey levels of the working grid, 0 to 255."""
    radius_mm: float = 5.5
    """Pairs of voxels at most this far apart are neighbours (inclusive)."""
    iterations: int = 5
    """Updates of all voxels; 0 leaves the map as it is."""
    neutral: float = 0.5
    """Probability at which the network prefers neither label: 0.5 in the source, or the recipe's cut-off."""
    doubt: float = 0.02
    """Updated are voxels whose probability is in [doubt, 1 - doubt] (our addition, for speed; 0 updates all)."""

    def __post_init__(self) -> None:
        for name in ("smoothness_weight", "appearance_weight"):
            require(0 <= getattr(self, name) <= 100, self, name, "log-odds in [0, 100]")
        for name in ("smoothness_mm", "appearance_mm"):
            require(0 < getattr(self, name) <= 100, self, name, "a length in (0, 100] mm")
        require(0 < self.appearance_grey <= 1000, self, "appearance_grey", "grey levels in (0, 1000]")
        require(0 < self.radius_mm <= 50, self, "radius_mm", "a length in (0, 50] mm")
        require(0 <= self.iterations <= 100, self, "iterations", "a number in [0, 100]")
        require(0 < self.neutral < 1, self, "neutral", "a probability in (0, 1)")
        require(0 <= self.doubt < 0.5, self, "doubt", "a probability in [0, 0.5)")

    @property
    def is_identity(self) -> bool:
        """Tell whether the map stays as it is."""
        return self.iterations == 0 or self.smoothness_weight == self.appearance_weight == 0


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A place in the window, seen from its centre."""

    shift: Shift
    """In voxels."""
    smoothness: float
    """w_s k / K."""
    appearance: float
    """w_a k / K: the kernel where the grey values are equal."""


def window(settings: CrfConfig, spacing_mm: Spacing) -> tuple[Neighbour, ...]:
    """Return the neighbours of a voxel: those whose centres lie at most `radius_mm` away, without itself.

    Args:
      settings: radius, weights and widths of the kernels.
      spacing_mm: voxel spacing along the three axes.
    """
    reach = [int((settings.radius_mm + _TIE_MM) / s) for s in spacing_mm]
    squares = {}
    for x, y, z in itertools.product(*(range(-n, n + 1) for n in reach)):
        square_mm2 = sum((n * s) ** 2 for n, s in zip((x, y, z), spacing_mm, strict=True))
        if 0 < square_mm2 <= (settings.radius_mm + _TIE_MM) ** 2:
            squares[x, y, z] = square_mm2
    smoothness = _shares(list(squares.values()), settings.smoothness_mm)
    appearance = _shares(list(squares.values()), settings.appearance_mm)
    return tuple(
        Neighbour(shift, settings.smoothness_weight * s, settings.appearance_weight * a)
        for shift, s, a in zip(squares, smoothness, appearance, strict=True)
    )


def _shares(squares_mm2: Sequence[float], width_mm: float) -> list[float]:
    """Return k / K for each squared distance; the nearest ones share all where k is too small for a float."""
    if not squares_mm2:
        return []
    nearest = min(squares_mm2)
    kernel = [math.exp((nearest - square) / (2 * width_mm**2)) for square in squares_mm2]
    return [k / sum(kernel) for k in kernel]


def _log_odds(probability: np.ndarray | float) -> np.ndarray:
    """Return the log-odds of probabilities, float32, finite."""
    clipped = np.clip(np.asarray(probability, np.float32), FLOOR, 1 - FLOOR)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), np.float32)


def _message(
    opinions: Any, greys: Any, where: Any, neighbours: Sequence[tuple[int, Neighbour]], settings: CrfConfig
) -> Any:
    """Return the sum of W_ij m_j over the window of some voxels, one neighbour at a time.

    Args:
      opinions: (P,) m of the padded volume, flat; 0 beyond the volume.
      greys: (P,) float32 grey levels.
      where: (N,) int32, the voxels' places in these.
      neighbours: the window, each with its distance from the centre in these.
      settings: the width of the appearance kernel in grey levels.

    Returns:
      (N,) float32.
    """
    own, total = ops.take(greys, where), ops.zeros(where.shape, "float32")
    sharpness = -0.5 / settings.appearance_grey**2
    for offset, neighbour in neighbours:
        kernel: Any = neighbour.smoothness
        if neighbour.appearance > 0:
            alike = ops.exp(sharpness * ops.square(ops.take(greys, where + offset) - own))
            kernel = kernel + neighbour.appearance * alike
        total = total + kernel * ops.take(opinions, where + offset)
    return total


def refine(probability: np.ndarray, grid: np.ndarray, settings: CrfConfig, *, spacing_mm: Spacing) -> np.ndarray:
    """Return the mean-field marginals of the field whose unary term is a probability map.

    Memory is some four float32 arrays of the volume and ten of the voxels in doubt, whatever the window.

    Args:
      probability: (X, Y, Z) float in [0, 1].
      grid: (X, Y, Z) uint8 working grid that the map was computed from.
      settings: the kernels.
      spacing_mm: voxel spacing along the three axes.

    Returns:
      (X, Y, Z) float32 in [0, 1]. Compare it with the cut-off that was `neutral`.

    Raises:
      ValueError: the arrays do not fit each other, or the map is no map of probabilities.
    """
    _require_fit(probability, grid)
    result = probability.astype(np.float32)
    neighbours = window(settings, spacing_mm)
    doubtful = np.abs(result - 0.5) <= 0.5 - settings.doubt
    if settings.is_identity or not neighbours or not doubtful.any():
        return result
    reach = [max(abs(n.shift[axis]) for n in neighbours) for axis in range(3)]
    margin, neutral = [(r, r) for r in reach], _log_odds(settings.neutral)
    # In C order, so that `ravel` gives a view to write to.
    opinions = np.ascontiguousarray(np.pad(np.tanh((_log_odds(result) - neutral) / 2), margin))
    _, y, z = opinions.shape
    placed = [((n.shift[0] * y + n.shift[1]) * z + n.shift[2], n) for n in neighbours]
    places = np.flatnonzero(np.pad(doubtful, margin)).astype(np.int32)  # (N,)
    where, greys = ops.convert_to_tensor(places), ops.convert_to_tensor(np.pad(grid, margin).astype(np.float32).ravel())
    unary = ops.convert_to_tensor(_log_odds(result[doubtful]) - neutral)
    for _ in range(settings.iterations):
        log_odds = unary + _message(ops.convert_to_tensor(opinions.ravel()), greys, where, placed, settings)
        opinions.ravel()[places] = ops.convert_to_numpy(ops.tanh(log_odds / 2))
    result[doubtful] = ops.convert_to_numpy(ops.sigmoid(log_odds + neutral))
    return result


def _require_fit(probability: np.ndarray, grid: np.ndarray) -> None:
    """Raise a `ValueError` where map and grid cannot be used together."""
    if probability.ndim != 3 or probability.shape != grid.shape:
        raise ValueError(
            f"expected a map and a grid of one shape (X, Y, Z). Received: {probability.shape} and {grid.shape}"
        )
    if grid.dtype != np.uint8:
        raise ValueError(f"grid: expected uint8. Received: {grid.dtype}")
    if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError(
            f"probability: expected values in [0, 1]. Received: {probability.min():g} to {probability.max():g}"
        )
