"""The shipped model on the test cases: the figures of its card and of docs/results.md, again.

Example: python -m benchmarks.results DATA, or: make results DATA=DIR

DATA holds `images/NAME.nii.gz` and `masks/NAME.nii.gz`. A table, and one JSON line.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from data_prep import cohort
from femur_tf import command, evaluate, metrics, postprocess, quiet, study
from femur_tf.errors import DataError

TEST = "17,19,20,22"
"""The test cases of the fixed split of the shared hip scans, by the number their names end with."""


@dataclasses.dataclass(frozen=True)
class ResultsArguments:
    """Score a model on the test cases.

    Example: python -m benchmarks.results DATA
    """

    data: Annotated[Path, tyro.conf.Positional]
    """Folder with images/ and masks/."""
    model: Path | None = None
    """A saved model or a run; by default the one that is shipped."""
    cases: str = TEST
    """The numbers that the cases' names end with, separated by commas."""


def chosen(data: Path, numbers: str) -> list[study.Case]:
    """Return the cases of a folder whose names end with one of the numbers.

    Raises:
      DataError: no case ends with one of them.
    """
    pairing = cohort.pair(data / "images", data / "masks")
    found = []
    for number in numbers.split(","):
        here = [pair for pair in pairing.pairs if pair.name.endswith(number)]
        if len(here) != 1:
            raise DataError(f"{data}: expected one case whose name ends with {number}. Received: {len(here)}.")
        found.append(study.Case(here[0].name, str(here[0].image), str(here[0].mask), "test"))
    return found


def main(arguments: ResultsArguments) -> None:
    """Segment and score each case; print a table and one JSON line."""
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles

    bundle = bundles.load(arguments.model or bundles.shipped())
    plan = study.Plan(tuple(chosen(arguments.data, arguments.cases)), bundle.settings.data)
    scores, counts = [], metrics.VoxelCounts()
    for case in command.track(plan.cases, "cases"):
        loaded = study.load_case(plan, case)
        spacing_mm = loaded.image.volume.spacing_mm
        own = bundles.to_own_grid(bundles.working_map(bundle, loaded.working), loaded.image.volume)
        counts.add(own.astype(np.float16), loaded.reference)
        mask = postprocess.apply(own, bundle.recipe, spacing_mm=spacing_mm)
        scores.append(evaluate.score(case.name, mask, loaded.reference, spacing_mm))
    evaluate.show(f"{bundle.folder}, test cases", scores)
    names = ("dice", "ppv", "sensitivity", "surface_mm")
    means = {name: float(np.mean([getattr(s, name) for s in scores])) for name in names}
    line = {"auc": metrics.auc(counts), **means, "cases": {s.case: s.dice for s in scores}}
    command.say(json.dumps(line))


if __name__ == "__main__":
    command.run(main, ResultsArguments)
