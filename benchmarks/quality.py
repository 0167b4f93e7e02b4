"""Does the quality flag rise before the Dice falls? Scans are perturbed, segmented, judged and scored.

Example: python -m benchmarks.quality --model work/runs/default --work work/

The cohort is made of the study's training and validation cases; test cases are not read. A case is always judged by
a cohort without it. A table and one JSON line; docs/quality.md says what the figures mean. Maps are kept in
WORK/quality, so that an interrupted run goes on.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import perturbations
from benchmarks.perturbations import PERTURBATIONS, Scan
from femur_tf import command, config, measures, metrics, postprocess, quality, quiet, study
from femur_tf import volume as volumes
from femur_tf.errors import DataError

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle

DROP = 0.05
"""A Dice lower than the untouched scan's by more than this is a failure that the flag has to show."""
QUICK = config.PredictConfig(fast=True, precision="bfloat16")
NONE = "none"


@dataclasses.dataclass(frozen=True)
class QualityArguments:
    """Perturb scans of a study and see whether the quality flag rises before the Dice falls; one JSON line.

    Example: python -m benchmarks.quality --model work/runs/default --work work/
    """

    model: Path
    """A run or saved model, with a recipe."""
    work: Path
    """The study; its test cases are not read."""
    cases: int = 2
    """How many cases are perturbed: those of validation first, then those of training."""
    exact: bool = False
    """Compute maps exactly; by default by --fast and in bfloat16, a third of the time."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One scan, perturbed or not."""

    case: str
    perturbation: str
    strength: float
    dice: float
    """NaN where neither mask nor reference has a voxel."""
    profile: measures.Profile


@dataclasses.dataclass(frozen=True)
class Judged:
    """An outcome beside the untouched scan."""

    outcome: Outcome
    drop: float
    """Dice of the untouched scan less this one's; all of it where the Dice is not defined."""
    reasons: tuple[str, ...]


def run(
    bundle: Bundle, scan: Scan, name: tuple[str, str, float], folder: Path, options: config.PredictConfig
) -> Outcome:
    """Segment a scan, score it and measure it.

    Args:
      bundle: the model.
      scan: the scan, perturbed or not.
      name: case, perturbation and strength.
      folder: where maps are kept.
      options: how maps are computed.
    """
    from femur_tf import case_maps

    working = study.prepare(scan.image, bundle.settings.data)
    map_ = case_maps.kept(bundle, working, folder, name[0], options)
    own = volumes.from_working(volumes.Volume(map_, working.affine), scan.image)
    mask = postprocess.apply(own, bundle.recipe, spacing_mm=scan.image.spacing_mm)
    found = measures.profile(volumes.Volume(own, scan.image.affine), mask, working, bundle.recipe.cutoff)
    return Outcome(*name, metrics.dice(mask, scan.mask), found)


def outcomes(arguments: QualityArguments, bundle: Bundle) -> Iterator[Outcome]:
    """Yield every untouched case, then every perturbation of the cases chosen."""
    plan = dataclasses.replace(study.read_plan(arguments.work), data=bundle.settings.data)
    folder, options = arguments.work / "quality", config.PredictConfig() if arguments.exact else QUICK
    cases = [*plan.part("validation"), *plan.part("train")]
    for case in cases:
        yield run(bundle, perturbations.read(plan, case), (case.name, NONE, 0.0), folder, options)
    for case in cases[: arguments.cases]:
        scan = perturbations.read(plan, case)
        for name, (change, strengths) in PERTURBATIONS.items():
            for strength in strengths:
                command.say(f"{case.name}: {name} {strength:g}")
                yield run(bundle, change(scan, strength), (case.name, name, strength), folder, options)


def judged(found: Sequence[Outcome]) -> list[Judged]:
    """Judge each outcome by the untouched cases but its own."""
    untouched = {one.case: one for one in found if one.perturbation == NONE}
    result = []
    for one in found:
        cohort = quality.build([other.profile for case, other in untouched.items() if case != one.case])
        whole = untouched[one.case].dice
        drop = whole - one.dice if np.isfinite(one.dice) else whole
        result.append(Judged(one, drop, quality.judge(one.profile, cohort).reasons))
    return result


def _short(reasons: Sequence[str]) -> str:
    """Return reasons without their figures."""
    return ", ".join(reason.partition(":")[0] for reason in reasons)


def summary(found: Sequence[Judged]) -> dict[str, Any]:
    """Return the figures of the JSON line."""
    untouched = [one for one in found if one.outcome.perturbation == NONE]
    perturbed = [one for one in found if one.outcome.perturbation != NONE]
    failed = [one for one in perturbed if one.drop > DROP]
    missed = [one for one in failed if not one.reasons]
    reasons = collections.Counter(r.partition(":")[0] for one in failed for r in one.reasons)
    return {
        "cases": len(untouched),
        "false_alarms": {one.outcome.case: _short(one.reasons) for one in untouched if one.reasons},
        "perturbed": len(perturbed),
        "dice_fell": len(failed),
        "dice_fell_and_flagged": len(failed) - len(missed),
        "missed": [[o.case, o.perturbation, o.strength, o.dice] for o in (one.outcome for one in missed)],
        "dice_held": len(perturbed) - len(failed),
        "dice_held_and_flagged": sum(bool(one.reasons) for one in perturbed if one.drop <= DROP),
        "reasons": dict(reasons.most_common()),
    }


def main(arguments: QualityArguments) -> None:
    """Perturb, judge, print one table and one JSON line."""
    if arguments.cases < 0:
        raise DataError(f"--cases: expected 0 or more. Received: {arguments.cases}.")
    quiet.start_tensorflow()
    from femur_tf import bundle as bundles

    found = judged(list(outcomes(arguments, bundles.load(arguments.model))))
    rows = [
        (o.case, o.perturbation, f"{o.strength:g}", o.dice, one.drop, len(one.reasons), _short(one.reasons))
        for one in found
        for o in (one.outcome,)
    ]
    header = ("case", "perturbation", "strength", "Dice", "drop", "reasons", "which")
    command.table("Quality flag on perturbed scans", header, rows)
    command.say(json.dumps(summary(found)))


if __name__ == "__main__":
    command.run(main, QualityArguments)
