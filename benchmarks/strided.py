"""Compare runs patch by patch at every eighth voxel of a slice: for networks that have no dense form.

Example: python -m benchmarks.strided work/ --run early --run late

A whole map of early fusion takes hours; one voxel in 64 tells the ROC as well. Voxels of the validation cases on the
working grid, as the network gives them: no calibration and no steps, one cut-off a run, the best on these voxels. A
table and one JSON line; test cases are not read.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from femur_tf import command, lineage, metrics, quiet, study
from femur_tf.errors import DataError

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle


@dataclasses.dataclass(frozen=True)
class StridedArguments:
    """Score runs at every so many voxels of the validation cases, patch by patch; one JSON line.

    Example: python -m benchmarks.strided work/ --run early --run late
    """

    work: command.Work
    run: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A run; once for each. By default the run `default`."""
    every: int = 8
    """Voxels from one to the next, along the axes that are sampled finest."""


def centres(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], every: int) -> np.ndarray:
    """Return every so many voxels of a grid, (N, 3); all along an axis whose voxels are over twice the shortest.

    Example:
      >>> len(centres((16, 3, 8), (1.0, 5.0, 1.0), 8))
      6
    """
    steps = [every if s <= 2 * min(spacing_mm) else 1 for s in spacing_mm]
    axes = np.meshgrid(*(np.arange(0, n, step) for n, step in zip(shape, steps, strict=True)), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 3)


def score(bundle: Bundle, arguments: StridedArguments) -> dict[str, Any]:
    """Return voxel AUC, and the Dice of each validation case at the best common cut-off."""
    from femur_tf import evaluator

    plan = dataclasses.replace(study.read_plan(arguments.work), data=bundle.settings.data)
    cases = study.needed(arguments.work, plan, "validation")
    lineage.require_unseen(bundle.folder, [case.name for case in cases], "validation")
    counts, found = metrics.VoxelCounts(), {}
    for case in cases:
        loaded = study.load_case(plan, case)
        grid, rule = loaded.working.data, bundle.settings.data.patch
        chosen = centres(loaded.working.shape, loaded.working.spacing_mm, arguments.every)
        probability = evaluator.by_patches(bundle.model, grid, rule, chosen).astype(np.float16)
        reference = loaded.working_mask[tuple(chosen.T)]
        counts.add(probability, reference)
        found[case.name] = (probability, reference)
    cutoff = metrics.best_dice(counts)
    dice = {name: metrics.dice(p >= cutoff, reference) for name, (p, reference) in found.items()}
    return {"auc": metrics.auc(counts), "cutoff": cutoff, "dice": float(np.mean(list(dice.values()))), "cases": dice}


def main(arguments: StridedArguments) -> None:
    """Print a table and one JSON line."""
    if arguments.every < 1:
        raise DataError(f"--every: expected at least 1. Received: {arguments.every}.")
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles

    line = {}
    for run in arguments.run or ("default",):
        line[run] = score(bundles.load(study.run_path(arguments.work, run), calibrated=False), arguments)
    rows = [(run, f"{one['auc']:.4f}", f"{one['dice']:.3f}") for run, one in line.items()]
    command.table(f"Every {arguments.every}th voxel, validation cases", ("run", "AUC", "mean Dice"), rows)
    command.say(json.dumps(line))


if __name__ == "__main__":
    command.run(main, StridedArguments)
