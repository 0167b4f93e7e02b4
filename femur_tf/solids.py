"""Solids known by their signed distance, and smooth random fields: what the phantom is made of.

A distance is in mm, negative inside. Points are (3, ...) float32 in mm. Distances are
close to exact near the surface, which is where they are used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

Point = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Cone:
    """A ball of changing radius swept along a line."""

    start: Point
    stop: Point
    start_mm: float
    stop_mm: float

    def distance_mm(self, points: np.ndarray) -> np.ndarray:
        """Return the signed distance of points (3, ...), close to exact for a slender cone."""
        along = np.subtract(self.stop, self.start)
        offset = points - column(self.start, points)
        share = np.clip(dot(along / (along @ along), offset), 0, 1)  # of the way from start to stop
        radius = self.start_mm + share * (self.stop_mm - self.start_mm)
        return np.asarray(length(offset - column(along, points) * share) - radius)


@dataclasses.dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid along the axes of the patient."""

    centre: Point
    radii_mm: Point

    def distance_mm(self, points: np.ndarray) -> np.ndarray:
        """Return the signed distance of points (3, ...), exact for a ball, to first order at the surface otherwise."""
        scaled = (points - column(self.centre, points)) / column(self.radii_mm, points)
        radius = length(scaled)
        slope = length(scaled / column(self.radii_mm, points))
        return np.asarray(radius * (radius - 1) / np.maximum(slope, 1e-6))


Solid = Cone | Ellipsoid


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where a hip's parts are placed from: the centre of the head, which side, how large."""

    origin: Point
    side: int
    size: float

    def at(self, lateral: float, anterior: float, superior: float) -> Point:
        """Return the point that lies so far from the centre of the head, in mm of a hip of size 1."""
        x, y, z = self.origin
        return (x + self.side * self.size * lateral, y + self.size * anterior, z + self.size * superior)

    def cone(self, start: Point, stop: Point, start_mm: float, stop_mm: float) -> Cone:
        """Return the cone between two offsets, in mm of a hip of size 1."""
        return Cone(self.at(*start), self.at(*stop), self.size * start_mm, self.size * stop_mm)

    def ellipsoid(self, centre: Point, radii_mm: Point) -> Ellipsoid:
        """Return the ellipsoid at an offset, in mm of a hip of size 1."""
        a, b, c = radii_mm
        return Ellipsoid(self.at(*centre), (self.size * a, self.size * b, self.size * c))


def union(solids: Sequence[Solid], points: np.ndarray, *, blend_mm: float) -> np.ndarray:
    """Return the distance to several solids in one, fillets where they meet (polynomial smooth minimum, I. Quilez)."""
    total = solids[0].distance_mm(points)
    for solid in solids[1:]:
        other = solid.distance_mm(points)
        overlap = np.maximum(blend_mm - np.abs(total - other), 0)
        total = np.minimum(total, other) - overlap**2 / (4 * blend_mm)
    return total


def draw_waves(rng: np.random.Generator, count: int, *, shortest_mm: float, longest_mm: float) -> np.ndarray:
    """Draw wave vectors in rad/mm, of random direction and length, and phases, (count, 4)."""
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wavelength_mm = rng.uniform(shortest_mm, longest_mm, (count, 1))
    return np.hstack([2 * np.pi / wavelength_mm * direction, rng.uniform(0, 2 * np.pi, (count, 1))])


def wave_field(waves: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a smooth random field of mean 0 and variance 1 at points (3, ...)."""
    total = np.zeros(points.shape[1:], np.float32)
    for wave in waves:
        total += np.sin(dot(wave[:3], points) + np.float32(wave[3]))
    return total * np.float32(np.sqrt(2 / len(waves)))


def column(vector: Point | np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a 3-vector shaped to broadcast over points (3, ...)."""
    return np.asarray(vector, np.float32).reshape(3, *[1] * (points.ndim - 1))


def dot(vector: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the scalar product of a vector (3,) with each of points (3, ...), float32."""
    return np.asarray(np.tensordot(vector.astype(np.float32), points, 1))


def length(vectors: np.ndarray) -> np.ndarray:
    """Return the length of each of the vectors (3, ...)."""
    return np.sqrt(np.einsum("i...,i...->...", vectors, vectors))
