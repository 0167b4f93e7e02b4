"""How a network does on cases that it has not seen: folds of a study's training and validation cases.

Example: python -m benchmarks.cross_validation work/ --minutes 10

Another than `default`: python -m benchmarks.cross_validation work/ --run wide --set model.filters=[24,48,96]

Each fold is left out once, as the test part of a study of its own (WORK/folds/, of another run WORK/folds-NAME/): of
the next fold's cases as many as a plan takes by default choose the recipe, so that cases take turns; all others train.
`pooled` is the Dice with a recipe and a calibration that the left-out cases of the other folds have chosen: more
annotated cases, none of them the case itself, though maps of another network. Test cases of the study are not read. A
table and one JSON line; a killed run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import derived, scoring
from data_prep import split
from femur_tf import command, quiet, study
from femur_tf.errors import DataError


@dataclasses.dataclass(frozen=True)
class Folds(derived.Studies):
    """Which folds of a study."""

    folds: int = 3
    """Number of folds."""


@dataclasses.dataclass(frozen=True)
class FoldsArguments(Folds, derived.Making):
    """Cross-validate a network on the training and validation cases of a study.

    Example: python -m benchmarks.cross_validation work/ --minutes 10

    The best of a search: python -m benchmarks.cross_validation work/ --run best --config work/tuning/best_config.json
    """


def folds(names: Sequence[str], count: int, seed: int) -> list[dict[str, study.Part]]:
    """Return the parts of each fold's study; those who choose come from the next fold, the first one's after the last.

    Args:
      names: of the cases; a case is a patient.
      count: number of folds.
      seed: of their order.

    Raises:
      DataError: fewer than two folds, or folds that leave fewer than two cases to train and to choose with.
    """
    if not 2 <= count <= len(names) or len(names) - -(-len(names) // count) < 2:
        raise DataError(f"--folds: expected 2 or more, and two cases outside each. Received: {count} of {len(names)}.")
    order = sorted(names, key=lambda name: split.place(name, seed))
    groups = [order[number::count] for number in range(count)]
    result = []
    for number, left_out in enumerate(groups):
        rest = [name for group in groups[number + 1 :] + groups[:number] for name in group]
        chosen = rest[: split.usual_validation(len(rest))]
        parts: dict[str, study.Part] = {
            n: "test" if n in left_out else "validation" if n in chosen else "train" for n in order
        }
        result.append(parts)
    return result


def studies(arguments: Folds) -> dict[Path, dict[str, study.Part]]:
    """Return the folder of each fold's study, and the part of each case in it.

    Raises:
      DataError: as `folds` and `derived.folder_of` do.
    """
    names = [case.name for case in study.read_plan(arguments.work).cases if case.part != "test"]
    found = folds(names, arguments.folds, arguments.seed)
    return {
        derived.folder_of(arguments, "folds", f"{arguments.folds}-{number}"): parts
        for number, parts in enumerate(found)
    }


def pooled(folders: Sequence[Path], run: str) -> dict[str, float]:
    """Return the Dice of each left-out case, with the recipe that the left-out cases of the other folds choose."""
    from femur_tf import calibration, case_maps, recipe

    maps = [derived.left_out(folder, run)[1] for folder in folders]
    result: dict[str, float] = {}
    for number, fold in enumerate(maps):
        others = [one for place, some in enumerate(maps) if place != number for one in some]
        fitted = calibration.fit(case_maps.raw_counts(others))
        chosen = recipe.choose([one.sample(fitted) for one in others]).recipe
        dice = scoring.case_dice([one.sample(fitted) for one in fold], chosen)
        result |= {one.loaded.case.name: value for one, value in zip(fold, dice, strict=True)}
    return result


def main(arguments: FoldsArguments) -> None:
    """Train and score every fold; print a table and one JSON line."""
    found, settings = studies(arguments), derived.settings(arguments)
    quiet.start_tensorflow()
    rows = [row for folder, parts in found.items() for row in derived.scores(arguments, folder, parts, settings)]
    again = pooled(list(found), arguments.run)
    table = np.array([[*(row[name] for name in scoring.MEASURES), again[row["case"]]] for row in rows], float)
    columns = (*scoring.MEASURES, "pooled")
    line = {
        name: {"mean": scoring.over_defined(np.mean, column), "sd": scoring.over_defined(np.std, column)}
        for name, column in zip(columns, table.T, strict=True)
    }
    lines = [(row["case"], *(f"{v:.3f}" for v in values)) for row, values in zip(rows, table, strict=True)]
    last = ("mean", *(" ± ".join("nan" if v is None else f"{v:.3f}" for v in one.values()) for one in line.values()))
    title = f"Run {arguments.run}, {arguments.folds} folds of {len(rows)} cases"
    command.table(title, ("case", *columns), [*sorted(lines), last])
    command.say(json.dumps(line | {"cases": {row["case"]: row["dice"] for row in rows}, "pooled_cases": again}))


if __name__ == "__main__":
    command.run(main, FoldsArguments)
