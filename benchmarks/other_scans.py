"""A run on scans of other voxel sizes, fields of view, patient sizes and brightness: the validation cases, changed.

Example: python -m benchmarks.other_scans work/ --run default

Scan and reference are changed alike and segmented as any scan is. A resampled scan is blurred where a real one of that
grid would be sharp, and the reference keeps the steps of its own slices: the figures of other grids are a lower bound.
A table and one JSON line; test cases are not read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import perturbations
from benchmarks.perturbations import RIGHT, Scan
from femur_tf import command, config, content, lineage, metrics, postprocess, quiet, study, volume
from femur_tf.content import Box
from femur_tf.patch_config import Triple

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle

MARGIN_MM = 30.0
"""Around the femur, of a narrow field of view."""
SLICES = (0, 1, 2, 3)
"""On either side of the femur, of stacks that end near it."""
ORGAN_SHARE = 0.005
"""Of the voxels, in the ball of a bright organ: as many as the upper percentile leaves out of a whole scan, and several
times as many as it leaves out of the foreground."""
AIR = 0.05
"""Share of a bright grey (`Scan.bright`) below which a voxel is taken for air."""


@dataclasses.dataclass(frozen=True)
class ScansArguments:
    """Segment validation cases of other voxel sizes, fields of view, patient sizes and brightness; one JSON line.

    Example: python -m benchmarks.other_scans work/ --run default
    """

    work: command.Work
    run: str = "default"
    """Name of the run; it needs a recipe."""


def resampled(scan: Scan, spacing_mm: Triple) -> Scan:
    """Return scan and reference on a grid of another spacing."""
    image = volume.to_working(scan.image, spacing_mm)
    return Scan(image, volume.mask_to_working(scan.mask, scan.image.affine, image))


def _box(scan: Scan, *, sides: int) -> Box:
    """Return the voxels within `MARGIN_MM` of both femurs (2) or the right one (1)."""
    middle = scan.mask.shape[RIGHT] // 2
    bone = np.argwhere(scan.mask)
    bone = bone if sides == 2 else bone[bone[:, RIGHT] >= middle]
    margin = np.round(MARGIN_MM / np.array(scan.image.spacing_mm)).astype(int)
    start, stop = np.maximum(0, bone.min(0) - margin), np.minimum(scan.mask.shape, bone.max(0) + margin + 1)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return x, y, z


def around_femur(scan: Scan, *, sides: int) -> Scan:
    """Return the part of a scan around both femurs (2) or the right one (1)."""
    box = _box(scan, sides=sides)
    return Scan(content.part(scan.image, box), scan.mask[box])


def few_slices(scan: Scan, beyond: int) -> Scan:
    """Return the slices of a scan that hold bone and so many on either side; they lie across the coarsest spacing."""
    axis = int(np.argmax(scan.image.spacing_mm))
    held = metrics.bounding_box(scan.mask)[axis]
    inside = [slice(0, length) for length in scan.mask.shape]
    inside[axis] = slice(max(0, held.start - beyond), held.stop + beyond)
    x, y, z = inside
    return Scan(content.part(scan.image, (x, y, z)), scan.mask[x, y, z])


def padded(scan: Scan) -> Scan:
    """Return a scan that is 0 beyond its part around both femurs, with the reference there alone."""
    inside = np.zeros(scan.mask.shape, bool)
    inside[_box(scan, sides=2)] = True
    return Scan(scan.with_grey(np.where(inside, scan.image.data, 0)).image, scan.mask & inside)


def bright_organ(scan: Scan, factor: float) -> Scan:
    """Return a scan in which a ball in the middle, `ORGAN_SHARE` of the voxels, is so many times as bright."""
    away = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(scan.mask.shape, scan.image.spacing_mm, strict=True)]
    squared = np.add.outer(np.add.outer(away[0] ** 2, away[1] ** 2), away[2] ** 2)
    ball = squared <= np.quantile(squared, ORGAN_SHARE)
    return scan.with_grey(np.where(ball, factor * scan.image.data, scan.image.data))


def filled_air(scan: Scan, fill: float) -> Scan:
    """Return a scan with a value that stands for no image wherever it is darker than `AIR` of a bright grey."""
    return scan.with_grey(np.where(scan.image.data < AIR * scan.bright, fill, scan.image.data))


def grid(right: float, anterior: float, superior: float) -> Callable[[Scan], Scan]:
    """Return the change to a spacing towards right, anterior and superior, mm."""
    return functools.partial(resampled, spacing_mm=(right, anterior, superior))


SCANS: dict[str, Callable[[Scan], Scan]] = {
    "as scanned": lambda scan: scan,
    "coronal, fine in plane: 0.6 x 5.2 x 0.6 mm": grid(0.6, 5.2, 0.6),
    "coronal, coarse in plane: 1.3 x 5.2 x 1.3 mm": grid(1.3, 5.2, 1.3),
    "coronal, thin slices: 0.9 x 3 x 0.9 mm": grid(0.9, 3.0, 0.9),
    "coronal, fine, 4 mm slices: 0.7 x 4 x 0.7 mm": grid(0.7, 4.0, 0.7),
    "coronal, thick slices: 0.9 x 6.5 x 0.9 mm": grid(0.9, 6.5, 0.9),
    "isotropic: 1 x 1 x 1 mm": grid(1.0, 1.0, 1.0),
    "axial stack: 0.9 x 0.9 x 5 mm": grid(0.9, 0.9, 5.0),
    "sagittal stack: 4 x 0.9 x 0.9 mm": grid(4.0, 0.9, 0.9),
    "the right half": lambda scan: perturbations.cut(RIGHT, upper=False)(scan, 0.5),
    "both femurs and 30 mm around": functools.partial(around_femur, sides=2),
    "the same, padded with zeros to the size of the scan": padded,
    "the right femur and 30 mm around": functools.partial(around_femur, sides=1),
    **{f"{n} slices beyond the femur": functools.partial(few_slices, beyond=n) for n in SLICES},
    "a patient 15 % smaller": lambda scan: perturbations.misread(scan, 0.85),
    "a patient 15 % larger": lambda scan: perturbations.misread(scan, 1.15),
    "8 times as bright on one side as on the other": lambda scan: perturbations.bias(scan, 8.0),
    "an organ of 0.5 % of the volume, 4 times as bright": functools.partial(bright_organ, factor=4.0),
    "air of -1024": functools.partial(filled_air, fill=-1024.0),
}
"""Each change by name."""


def score(bundle: Bundle, scan: Scan) -> dict[str, float]:
    """Segment a scan as `segment --fast --precision bfloat16` does, and score the mask."""
    from femur_tf import bundle as bundles

    options = config.PredictConfig(precision="bfloat16", fast=True)
    found = bundles.working_map(bundle, study.prepare(scan.image, bundle.settings.data), options)
    own = volume.from_working(found, scan.image)
    spacing_mm = scan.image.spacing_mm
    mask = postprocess.apply(own, bundle.recipe, spacing_mm=spacing_mm)
    return {
        "dice": metrics.dice(mask, scan.mask),
        "surface_mm": metrics.surface_distances(mask, scan.mask, spacing_mm=spacing_mm).mean_mm,
        "volume": float(mask.sum() / scan.mask.sum()),
    }


def scores(arguments: ScansArguments) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of each change and case."""
    from femur_tf import bundle as bundles

    bundle = bundles.load(study.run_path(arguments.work, arguments.run))
    plan = dataclasses.replace(study.read_plan(arguments.work), data=bundle.settings.data)
    cases = study.needed(arguments.work, plan, "validation")
    lineage.require_unseen(bundle.folder, [case.name for case in cases], "validation")
    scans = {case.name: perturbations.read(plan, case) for case in cases}
    return {
        name: {case: score(bundle, change(scan)) for case, scan in scans.items()}
        for name, change in command.track(SCANS.items(), "scans")
    }


def main(arguments: ScansArguments) -> None:
    """Print a table and one JSON line."""
    quiet.start_tensorflow()
    line = scores(arguments)
    keys = ("dice", "surface_mm", "volume")
    rows = [
        (name, *(float(np.mean([one[key] for one in cases.values()])) for key in keys)) for name, cases in line.items()
    ]
    command.table("Other scans, validation cases", ("scan", "Dice", "ASSD mm", "volume / reference"), rows)
    command.say(json.dumps(line))


if __name__ == "__main__":
    command.run(main, ScansArguments)
