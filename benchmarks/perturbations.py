"""What can be wrong with a scan: noise, contrast, blur, a wrong region, a wrong header.

Each takes a scan on canonical axes with its reference mask and gives both changed alike, so that the mask stays the
truth: a scan that is flipped has its mask flipped, one that is cut has its mask cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from femur_tf import study, volume
from femur_tf.volume import Volume

RIGHT, ANTERIOR, SUPERIOR = range(3)
"""Canonical axes."""
BRIGHT_PERCENTILE = 99.5
"""The grey value that strengths are shares of."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """A scan and its reference mask."""

    image: Volume
    """(X, Y, Z) float32, canonical axes."""
    mask: np.ndarray
    """(X, Y, Z) bool."""

    @property
    def bright(self) -> float:
        """A grey value near the top of the range."""
        return float(np.percentile(self.image.data, BRIGHT_PERCENTILE))

    def with_grey(self, data: np.ndarray) -> Scan:
        """Return the scan with other grey values."""
        return Scan(Volume(data.astype(np.float32), self.image.affine), self.mask)

    def with_voxels(self, change: Callable[[np.ndarray], np.ndarray]) -> Scan:
        """Return the scan with image and mask changed alike; the header stays."""
        return Scan(Volume(np.ascontiguousarray(change(self.image.data)), self.image.affine), change(self.mask))


def read(plan: study.Plan, case: study.Case) -> Scan:
    """Return a case on canonical axes."""
    loaded = study.load_case(plan, case)
    image = volume.canonical(loaded.image.volume)
    mask = volume.canonical(Volume(loaded.reference, loaded.image.volume.affine)).data
    return Scan(Volume(image.data.astype(np.float32), image.affine), mask)


def noise(scan: Scan, strength: float) -> Scan:
    """Add Gaussian noise of a standard deviation of `strength` times a bright grey, and take the magnitude."""
    rng = np.random.default_rng(2017)
    drawn = rng.standard_normal(scan.mask.shape, np.float32)
    return scan.with_grey(np.abs(scan.image.data + drawn * np.float32(strength * scan.bright)))


def gamma(scan: Scan, strength: float) -> Scan:
    """Raise grey values, as shares of a bright one, to the power `strength`."""
    share = np.clip(scan.image.data / scan.bright, 0, None)
    return scan.with_grey(share ** np.float32(strength))


def inverted(scan: Scan, strength: float) -> Scan:
    """Make dark bright: `strength` times a bright grey less the grey value."""
    return scan.with_grey(np.clip(strength * scan.bright - scan.image.data, 0, None))


def bias(scan: Scan, strength: float) -> Scan:
    """Brighten the scan towards the patient's right, by a factor of `strength` from side to side."""
    ramp = np.linspace(-0.5, 0.5, scan.mask.shape[RIGHT], dtype=np.float32)[:, None, None]
    return scan.with_grey(scan.image.data * np.float32(strength) ** ramp)


def blur(scan: Scan, strength: float) -> Scan:
    """Smooth by a Gaussian of `strength` mm."""
    sigma = [strength / spacing for spacing in scan.image.spacing_mm]
    return scan.with_grey(ndimage.gaussian_filter(scan.image.data, sigma, mode="nearest"))


def ghost(scan: Scan, strength: float) -> Scan:
    """Add the scan moved by a seventh of its height, `strength` times, as motion between the lines does."""
    moved = np.roll(scan.image.data, scan.mask.shape[SUPERIOR] // 7, axis=SUPERIOR)
    return scan.with_grey(scan.image.data + np.float32(strength) * moved)


def flipped(axis: int) -> Callable[[Scan, float], Scan]:
    """Return the change that reverses an axis under an unchanged header; its strength says nothing."""
    return lambda scan, _: scan.with_voxels(lambda data: np.flip(data, axis))


def cut(axis: int, *, upper: bool) -> Callable[[Scan, float], Scan]:
    """Return the change that takes the share `strength` of a volume away, from one end of an axis."""

    def change(scan: Scan, strength: float) -> Scan:
        length = scan.mask.shape[axis]
        gone = round(strength * length)
        side = [slice(None)] * 3
        side[axis] = slice(0, length - gone) if upper else slice(gone, length)
        return scan.with_voxels(lambda data: data[tuple(side)])

    return change


def turned(scan: Scan, strength: float) -> Scan:
    """Turn the patient in the coronal plane by `strength` degrees, in a field of view of the same size."""
    spacing = np.array(scan.image.spacing_mm)[[RIGHT, SUPERIOR]]
    sine, cosine = np.sin(np.deg2rad(strength)), np.cos(np.deg2rad(strength))
    matrix = np.eye(3)
    matrix[np.ix_([RIGHT, SUPERIOR], [RIGHT, SUPERIOR])] = (
        np.array([[cosine, -sine], [sine, cosine]]) * spacing / spacing[:, None]
    )
    centre = (np.array(scan.mask.shape) - 1) / 2

    def move(data: np.ndarray) -> np.ndarray:
        return ndimage.affine_transform(data, matrix, centre - matrix @ centre, order=1, mode="constant")

    return Scan(Volume(move(scan.image.data), scan.image.affine), move(scan.mask.astype(np.float32)) >= 0.5)


def misread(scan: Scan, strength: float) -> Scan:
    """Make the header say that voxels are `strength` times as large as they are."""
    affine = scan.image.affine.copy()
    affine[:3, :3] *= strength
    return Scan(Volume(scan.image.data, affine), scan.mask)


PERTURBATIONS: dict[str, tuple[Callable[[Scan, float], Scan], tuple[float, ...]]] = {
    "noise": (noise, (0.05, 0.1, 0.2, 0.4)),
    "gamma, darker": (gamma, (1.5, 2.0, 3.0)),
    "gamma, brighter": (gamma, (0.67, 0.5, 0.33)),
    "inverted": (inverted, (1.0,)),
    "bias": (bias, (2.0, 8.0)),
    "blur mm": (blur, (1.0, 2.0, 4.0)),
    "ghost": (ghost, (0.2, 0.5)),
    "flipped left-right": (flipped(RIGHT), (1.0,)),
    "flipped front-back": (flipped(ANTERIOR), (1.0,)),
    "flipped upside down": (flipped(SUPERIOR), (1.0,)),
    "cut above": (cut(SUPERIOR, upper=True), (0.2, 0.4, 0.6)),
    "cut below": (cut(SUPERIOR, upper=False), (0.2, 0.4, 0.6)),
    "cut in front": (cut(ANTERIOR, upper=True), (0.3, 0.5)),
    "cut behind": (cut(ANTERIOR, upper=False), (0.3, 0.5)),
    "cut on the right": (cut(RIGHT, upper=True), (0.3, 0.5)),
    "turned degrees": (turned, (10.0, 30.0, 90.0)),
    "voxels read smaller": (misread, (0.8, 0.6)),
    "voxels read larger": (misread, (1.25, 1.5)),
}
"""Each change by name, with its strengths, from slight to severe."""
