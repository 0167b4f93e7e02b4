"""What a rule by which recipes are chosen is worth: chosen on a study's validation cases, measured on its test cases.

Example: python -m benchmarks.recipes work/folds/*

The folds of `benchmarks.cross_validation` are studies whose test cases are no study's test cases otherwise. A rule that
is picked by what is shown here has been picked by these cases, and no score of theirs is a test of it any more. A table
and one JSON line; maps that are there are not computed again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import tyro

from benchmarks import derived, scoring
from femur_tf import command, lineage, quiet, recipe, study
from femur_tf.errors import DataError

NEVER = math.inf
PARTS: Final[tuple[study.Part, ...]] = ("validation", "test")
RULES: Final[Mapping[str, tuple[float, float]]] = {
    "in use": (recipe.GAIN, recipe.STEP_GAIN),
    "steps, too, for the gain of the cut-off": (recipe.GAIN, recipe.GAIN),
    "cut-off, too, for the gain of a step": (recipe.STEP_GAIN, recipe.STEP_GAIN),
    "cut-off alone": (recipe.GAIN, NEVER),
    "steps alone": (NEVER, recipe.STEP_GAIN),
    "nothing changed": (NEVER, NEVER),
}
"""Gains of mean Dice for which `femur_tf.recipe.choose` changes cut-off and steps; nothing changed: the cut-off of the
ROC, and the steps it starts with."""


@dataclasses.dataclass(frozen=True)
class RecipesArguments:
    """Compare rules by which a recipe is chosen, on the validation and test cases of studies.

    Example: python -m benchmarks.recipes work/folds/*
    """

    works: tyro.conf.Positional[tuple[Path, ...]]
    """Work folders, each with validation and test cases."""
    run: str = derived.PRESET
    """The run of each."""


def of_study(work: Path, run: str) -> dict[str, dict[study.Part, dict[str, float]]]:
    """Return the Dice of each case, by rule, part (`validation`, `test`) and name.

    Args:
      work: the study.
      run: its run.

    Raises:
      DataError: the run or cases are missing, or the run has seen them.
    """
    from femur_tf import bundle as bundles
    from femur_tf import calibration, case_maps

    bundle = bundles.load(study.run_path(work, run), calibrated=False)
    plan = study.read_plan(work)
    cases = {part: study.needed(work, plan, part) for part in PARTS}
    for part, some in cases.items():
        lineage.require_unseen(bundle.folder, [case.name for case in some], part)
    maps = {part: [case_maps.read(bundle, plan, case) for case in some] for part, some in cases.items()}
    fitted = calibration.fit(case_maps.raw_counts(maps["validation"]))
    samples = {part: [one.sample(fitted) for one in some] for part, some in maps.items()}
    names = {part: [one.loaded.case.name for one in some] for part, some in maps.items()}
    result = {}
    for rule, (gain, step_gain) in RULES.items():
        chosen = recipe.choose(samples["validation"], gain=gain, step_gain=step_gain).recipe
        result[rule] = {
            part: dict(zip(names[part], scoring.case_dice(some, chosen), strict=True)) for part, some in samples.items()
        }
    return result


def main(arguments: RecipesArguments) -> None:
    """Print a table and one JSON line."""
    if not arguments.works:
        raise DataError("WORK: expected a work folder or more. Received: none. Try benchmarks.cross_validation first.")
    quiet.start_tensorflow()
    found = [of_study(work, arguments.run) for work in arguments.works]
    rows, line = [], {}
    for rule in RULES:
        means = {part: float(np.mean([dice for one in found for dice in one[rule][part].values()])) for part in PARTS}
        rows.append((rule, *(f"{mean:.3f}" for mean in means.values())))
        line[rule] = means | {"cases": [one[rule]["test"] for one in found]}
    command.table(f"Rules, {len(found)} studies", ("rule", "Dice, validation", "Dice, test"), rows)
    command.say(json.dumps(line))


if __name__ == "__main__":
    command.run(main, RecipesArguments)
