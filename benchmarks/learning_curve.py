"""How many cases a laboratory needs: a network made from 3, 6 and all cases of a study.

Example: python -m benchmarks.learning_curve work/ --minutes 10

Another than `default`: python -m benchmarks.learning_curve work/ --run wide --set model.filters=[24,48,96]

Each number is a study of its own (WORK/curve/, of another run WORK/curve-NAME/), as a laboratory with so many cases
would make it: as many as a plan takes by default choose the recipe, the others train. All are scored on the same test
cases, which choose nothing. A table and one JSON line; a killed run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from benchmarks import derived
from data_prep import split
from femur_tf import command, quiet, study
from femur_tf.errors import DataError


@dataclasses.dataclass(frozen=True)
class CurveArguments(derived.Making):
    """Measure a network made from growing numbers of a study's cases.

    Example: python -m benchmarks.learning_curve work/ --minutes 10
    """

    cases: tuple[int, ...] = (3, 6, 11)
    """Numbers of cases, those that choose the recipe among them."""


def parts_of(cases: Sequence[study.Case], count: int, seed: int) -> dict[str, study.Part]:
    """Return the parts of a study of `count` cases that are not for the test, and of all test cases.

    Raises:
      DataError: there are not so many, fewer than two are asked for, or there is no test case.
    """
    order = sorted((case.name for case in cases if case.part != "test"), key=lambda name: split.place(name, seed))
    test = [case.name for case in cases if case.part == "test"]
    if not 2 <= count <= len(order) or not test:
        raise DataError(
            f"--cases: expected 2 to {len(order)} cases, and a test case to score. "
            f"Received: {count}, and {len(test)} test cases."
        )
    chosen = set(order[: split.usual_validation(count)])
    parts: dict[str, study.Part] = {n: "validation" if n in chosen else "train" for n in order[:count]}
    return parts | dict.fromkeys(test, "test")


def main(arguments: CurveArguments) -> None:
    """Train and score every number of cases; print a table and one JSON line."""
    cases = study.read_plan(arguments.work).cases
    studies = [(count, parts_of(cases, count, arguments.seed)) for count in arguments.cases]
    settings = derived.settings(arguments)
    quiet.start_tensorflow()
    lines, line = [], {}
    for count, parts in studies:
        rows = derived.scores(arguments, derived.folder_of(arguments, "curve", str(count)), parts, settings)
        dice = [float(row["dice"]) for row in rows]
        line[str(count)] = {"dice": float(np.mean(dice)), "cases": {row["case"]: row["dice"] for row in rows}}
        lines.append((count, f"{np.mean(dice):.3f}", f"{min(dice):.3f}", f"{max(dice):.3f}"))
    title = f"Run {arguments.run}, {arguments.minutes:g} training minutes"
    command.table(title, ("cases", "mean Dice", "lowest", "highest"), lines)
    command.say(json.dumps(line))


if __name__ == "__main__":
    command.run(main, CurveArguments)
