"""A phantom cohort of small volumes, as one crops an organ of a few centimetres: a curved tube among things like it.

Volumes of 35 x 51 x 35 mm at 1 mm, or of another `--shape`. In each a tube of about 3 mm radius runs along the
volume, bent, tilted and shifted; a thicker body of the same grey touches its end, a thinner tube of the same grey runs
below it, a dark one above it, and folds of the same grey lie around. What the tube is follows from its place among
these alone.

    python -m benchmarks.small_volumes DIR
    python -m data_prep.plan work/ --images DIR/images --masks DIR/masks --test 8,9,10,11 --validation 2

and so on as for any cohort. Scores on it say how training fares with small volumes, nothing about an organ.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import tyro
from scipy import ndimage

from femur_tf import command, files
from femur_tf.errors import DataError

Shape = tuple[int, int, int]
SHAPE: Shape = (35, 51, 35)
WHITE, GREY, DARK = 150.0, 100.0, 45.0
CLEAR_MM = 2.5
"""Around the tube, free of folds."""
NOISE = 7.0


@dataclasses.dataclass(frozen=True)
class SmallArguments:
    """Write a phantom cohort of small volumes: DIR/images and DIR/masks.

    Example: python -m benchmarks.small_volumes small/
    """

    folder: tyro.conf.Positional[Path]
    """Folder to write to."""
    cases: int = 12
    """How many volumes."""
    first: int = 0
    """Number of the first volume; other numbers are other volumes."""
    shape: Shape = SHAPE
    """Voxels along x, y, z; what lies around the middle is the same."""
    overwrite: bool = False
    """Replace a cohort that is there."""


def _smooth(rng: np.random.Generator, shape: Shape, width: float, deviation: float) -> np.ndarray:
    """Return smooth noise of a standard deviation."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), width)
    return np.asarray(deviation * field / field.std())


def _distance(places: np.ndarray, points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return the signed distance to the union of balls, negative inside."""
    each = [np.linalg.norm(places - p, axis=-1) - r for p, r in zip(points, radii, strict=True)]
    return np.asarray(np.minimum.reduce(each))


def volume(rng: np.random.Generator, shape: Shape = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Return one volume, (X, Y, Z) float32 grey values and bool mask.

    Args:
      rng: the source of chance.
      shape: voxels along x, y, z.
    """
    places = np.stack(np.meshgrid(*[np.arange(float(n)) for n in shape], indexing="ij"), axis=-1)
    along = np.linspace(-1, 1, 40)
    centre = np.array(shape) // 2 + rng.uniform(-3, 3, 3)
    bend, length, tilt, turn = rng.uniform((3, 15, 3, -1), (6, 19, 6, 1))
    points = centre + np.stack([bend * (along**2 - 0.5) + turn * along, length * along, tilt * along], axis=-1)
    radii = np.interp(along, [-1, -0.6, 0, 0.6, 1], [2, 3, 3.5, 5, 4]) * rng.uniform(0.9, 1.1)
    tube = _distance(places, points, radii) + _smooth(rng, shape, 3, 0.5)
    ball = np.linalg.norm(places - points[-1] - [0, 6, 3], axis=-1) - rng.uniform(5, 6.5) + _smooth(rng, shape, 3, 0.5)
    below = _distance(places, points - [rng.uniform(1, 2), 0, 8.5], 0.7 * radii) + _smooth(rng, shape, 3, 0.6)
    above = _distance(places, points + [1.5, 0, 6.5], 0.45 * radii) + _smooth(rng, shape, 2, 0.3)
    clearing = 0.35 * np.maximum(0, 10 - np.linalg.norm((places - centre) / [1, 1.4, 1], axis=-1))
    folds = _smooth(rng, shape, 4, 1) + clearing
    grey = np.where(folds < -0.6, GREY, WHITE)
    grey[np.abs(folds + 0.6) < 0.15] = DARK
    grey[tube <= CLEAR_MM] = WHITE
    for part, value in ((below, GREY), (above, DARK), (ball, GREY), (tube, GREY)):
        grey[part < 0] = value
    grey = ndimage.gaussian_filter(grey, 0.6) * np.exp(_smooth(rng, shape, 12, 0.06)) + rng.normal(0, NOISE, shape)
    return np.clip(grey * rng.uniform(0.7, 1.4), 0, None).astype(np.float32), tube < 0


def main(arguments: SmallArguments) -> None:
    """Write the cohort."""
    if arguments.cases < 1 or arguments.first < 0:
        raise DataError(
            "--cases, --first: expected at least 1 volume, numbered from 0 or more. "
            f"Received: {arguments.cases}, from {arguments.first}."
        )
    places = [arguments.folder / name for name in ("images", "masks")]
    for place in places:
        files.refuse_existing(place, overwrite=arguments.overwrite)
    with files.whole(places[0]) as images, files.whole(places[1]) as masks:
        for folder in (images, masks):
            folder.mkdir()
        for number in range(arguments.first, arguments.first + arguments.cases):
            grey, mask = volume(np.random.default_rng(number), arguments.shape)
            for folder, data in ((images, grey), (masks, mask.astype(np.uint8))):
                nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), folder / f"small_{number:02d}.nii.gz")
    command.say(f"{arguments.cases} volumes: {places[0]}, {places[1]}")


if __name__ == "__main__":
    command.run(main, SmallArguments)
