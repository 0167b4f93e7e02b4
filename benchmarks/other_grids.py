"""A run on scans of other voxel sizes: the validation cases, resampled.

Example: python -m benchmarks.other_grids work/ --run default

Scan and reference are brought to each grid and segmented there as any scan is. A resampled scan is blurred where a real
one of that grid would be sharp, and the reference keeps the steps of its own slices: the figures are a lower bound. A
table and one JSON line; test cases are not read.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from femur_tf import command, config, lineage, metrics, postprocess, quiet, study, volume
from femur_tf.patch_config import Triple

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle

GRIDS: dict[str, Triple | None] = {
    "as scanned": None,
    "coronal, fine in plane": (0.6, 5.2, 0.6),
    "coronal, coarse in plane": (1.3, 5.2, 1.3),
    "coronal, thin slices": (0.9, 3.0, 0.9),
    "coronal, fine, 4 mm slices": (0.7, 4.0, 0.7),
    "coronal, thick slices": (0.9, 6.5, 0.9),
    "isotropic": (1.0, 1.0, 1.0),
    "axial stack": (0.9, 0.9, 5.0),
    "sagittal stack": (4.0, 0.9, 0.9),
}
"""Spacing towards right, anterior and superior, mm."""


@dataclasses.dataclass(frozen=True)
class GridsArguments:
    """Segment validation cases on grids of other voxel sizes; one JSON line.

    Example: python -m benchmarks.other_grids work/ --run default
    """

    work: command.Work
    run: str = "default"
    """Name of the run; it needs a recipe."""


def resampled(loaded: study.LoadedCase, spacing_mm: Triple | None) -> tuple[volume.Volume, np.ndarray]:
    """Return a case's scan and reference on canonical axes, at a spacing or, with None, as they are."""
    image = volume.canonical(loaded.image.volume)
    found = volume.to_working(image, spacing_mm or image.spacing_mm)
    return found, volume.mask_to_working(loaded.reference, loaded.image.volume.affine, found)


def score(bundle: Bundle, image: volume.Volume, reference: np.ndarray) -> dict[str, float]:
    """Segment a scan as `segment --fast --precision bfloat16` does, and score the mask."""
    from femur_tf import bundle as bundles

    options = config.PredictConfig(precision="bfloat16", fast=True)
    found = bundles.working_map(bundle, study.prepare(image, bundle.settings.data), options)
    own = volume.from_working(found, image)
    mask = postprocess.apply(own, bundle.recipe, spacing_mm=image.spacing_mm)
    return {
        "dice": metrics.dice(mask, reference),
        "surface_mm": metrics.surface_distances(mask, reference, spacing_mm=image.spacing_mm).mean_mm,
        "volume": float(mask.sum() / reference.sum()),
    }


def scores(arguments: GridsArguments) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of each grid and case."""
    from femur_tf import bundle as bundles

    bundle = bundles.load(study.run_path(arguments.work, arguments.run))
    plan = dataclasses.replace(study.read_plan(arguments.work), data=bundle.settings.data)
    cases = study.needed(arguments.work, plan, "validation")
    lineage.require_unseen(bundle.folder, [case.name for case in cases], "validation")
    loaded = [study.load_case(plan, case) for case in cases]
    return {
        name: {one.case.name: score(bundle, *resampled(one, spacing_mm)) for one in loaded}
        for name, spacing_mm in command.track(GRIDS.items(), "grids")
    }


def main(arguments: GridsArguments) -> None:
    """Print a table and one JSON line."""
    quiet.start_tensorflow()
    line = scores(arguments)
    rows: list[tuple[Any, ...]] = []
    for name, cases in line.items():
        text = " x ".join(f"{s:g}" for s in GRIDS[name] or ())
        means = (float(np.mean([one[key] for one in cases.values()])) for key in ("dice", "surface_mm", "volume"))
        rows.append((name, text, *means))
    command.table("Other grids, validation cases", ("scan", "mm", "Dice", "ASSD mm", "volume / reference"), rows)
    command.say(json.dumps(line))


if __name__ == "__main__":
    command.run(main, GridsArguments)
