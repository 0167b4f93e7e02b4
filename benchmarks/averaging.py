"""What averaging gives on validation cases: a run's map with that of the mirrored scan, and the maps of several runs.

Example: python -m benchmarks.averaging work/ --run default --run m20

Logits are averaged; every average gets a calibration and a recipe of its own on the same cases, as a run does. Each map
costs as much as the first one. A table and one JSON line; test cases are not read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tyro

from benchmarks import scoring
from femur_tf import command, lineage, log_odds, quiet, study
from femur_tf.volume import Volume

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle
    from femur_tf.case_maps import CaseMap


@dataclasses.dataclass(frozen=True)
class AveragingArguments:
    """Average the maps of a scan and its mirror image, and of several runs, on validation cases; one JSON line.

    Example: python -m benchmarks.averaging work/ --run default --run m20
    """

    work: command.Work
    run: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A run; once for each. By default the run `default`."""


def mean_of(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of maps of probabilities, float16: of their logits.

    Example:
      >>> mean_of([np.array([0.2], np.float16), np.array([0.8], np.float16)]).tolist()
      [0.5]
    """
    return log_odds.mean(maps).astype(np.float16)


def averaged(groups: Sequence[Sequence[CaseMap]]) -> list[CaseMap]:
    """Return the average maps of cases, each group a map of every case in the same order."""
    return [
        dataclasses.replace(same[0], raw=Volume(mean_of([one.raw.data for one in same]), same[0].raw.affine))
        for same in zip(*groups, strict=True)
    ]


def mirrored(bundle: Bundle, maps: Sequence[CaseMap]) -> list[CaseMap]:
    """Return the maps of the cases mirrored left to right, mirrored back."""
    from femur_tf import case_maps

    result = []
    for one in maps:
        working = one.loaded.working
        other = Volume(np.ascontiguousarray(working.data[::-1]), working.affine)
        found = case_maps.kept(bundle, other, bundle.folder / "maps", f"{one.loaded.case.name}-mirrored")
        result.append(dataclasses.replace(one, raw=Volume(found[::-1], working.affine)))
    return result


def groups(arguments: AveragingArguments) -> Mapping[str, list[CaseMap]]:
    """Return the maps of each run, of its mirror images, and the averages, by name.

    Raises:
      DataError: a run is missing, or was trained on the validation cases.
    """
    from femur_tf import bundle as bundles
    from femur_tf import case_maps

    plan = study.read_plan(arguments.work)
    cases = study.needed(arguments.work, plan, "validation")
    found, result = [], {}
    for run in arguments.run or ("default",):
        bundle = bundles.load(study.run_path(arguments.work, run), calibrated=False)
        lineage.require_unseen(bundle.folder, [case.name for case in cases], "validation")
        found.append([case_maps.read(bundle, plan, case) for case in cases])
        result[run] = found[-1]
        result[f"{run}, mirrored too"] = averaged([found[-1], mirrored(bundle, found[-1])])
    if len(found) > 1:
        result["all runs"] = averaged(found)
    return result


def main(arguments: AveragingArguments) -> None:
    """Print a table and one JSON line."""
    quiet.start_tensorflow()
    line = {name: scoring.of_maps(maps) for name, maps in groups(arguments).items()}
    rows = [
        (name, f"{one['auc']:.5f}", f"{one['cutoff_dice']:.3f}", f"{one['dice']:.3f}") for name, one in line.items()
    ]
    command.table("Averages, validation cases", ("map", "voxel AUC", "Dice, cut-off", "Dice, recipe"), rows)
    command.say(json.dumps(line))


if __name__ == "__main__":
    command.run(main, AveragingArguments)
