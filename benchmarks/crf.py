"""What the conditional random field gives on validation cases, and what it costs.

Example: python -m benchmarks.crf work/ --run default

One JSON line. `before` is the run's map with cut-off and steps chosen by `femur_tf.recipe`; `after` the same with the
field in between, whose parameters a search along one coordinate after another chose on the same cases. That choice is
made and measured on the same few cases, so `left_out` is the honest figure: each case with the settings that the
others prefer, beside `left_out_before`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import scoring
from benchmarks.dense import unit_s
from femur_tf import command, config, lineage, recipe, study
from femur_tf import volume as volumes
from femur_tf.crf import CrfConfig, refine

CANDIDATES: dict[str, tuple[float, ...]] = {
    "appearance_weight": (0.0, 1.0, 4.0, 8.0),
    "smoothness_weight": (0.0, 2.0, 4.0),
    "appearance_grey": (10.0, 40.0),
    "appearance_mm": (2.0, 8.0),
    "radius_mm": (3.0, 8.0),
}
"""Values tried for each parameter, beside its default."""
OFF = CrfConfig(iterations=0)


@dataclasses.dataclass(frozen=True)
class CrfArguments:
    """Tune the conditional random field on the validation cases of a study; one JSON line.

    Example: python -m benchmarks.crf work/ --run default
    """

    work: command.Work
    run: str = "default"
    """Name of the run whose probability maps are refined; they are kept in WORK/crf/NAME."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """A validation case in memory."""

    loaded: study.LoadedCase
    probability: np.ndarray
    """(X, Y, Z) float16, on the working grid."""

    def sample(self, settings: CrfConfig) -> recipe.Sample:
        """Return the case with its refined map on its own grid."""
        working, image = self.loaded.working, self.loaded.image.volume
        found = refine(self.probability.astype(np.float32), working.data, settings, spacing_mm=working.spacing_mm)
        own = volumes.from_working(volumes.Volume(found, working.affine), image)
        return recipe.Sample(own, self.loaded.reference, image.spacing_mm)


@dataclasses.dataclass(frozen=True)
class Trial:
    """Settings, and the Dice of each case with the steps chosen without the field."""

    settings: CrfConfig
    dice: tuple[float, ...]


def read_scans(arguments: CrfArguments) -> list[Scan]:
    """Return the validation cases with their maps, computed once and kept.

    Raises:
      DataError: the run is missing, or was trained on them.
    """
    from femur_tf import bundle as bundles
    from femur_tf import case_maps

    bundle = bundles.load(study.run_path(arguments.work, arguments.run))
    plan = dataclasses.replace(study.read_plan(arguments.work), data=bundle.settings.data)
    cases = study.needed(arguments.work, plan, "validation")
    lineage.require_unseen(bundle.folder, [case.name for case in cases], "validation")
    folder = arguments.work / "crf" / arguments.run
    scans = []
    for case in cases:
        loaded = study.load_case(plan, case)
        scans.append(Scan(loaded, case_maps.kept(bundle, loaded.working, folder, case.name)))
    return scans


def search(scans: Sequence[Scan], chosen: config.RecipeConfig, first: CrfConfig) -> list[Trial]:
    """Return all trials of a search along one coordinate after another, each from the best so far.

    Args:
      scans: the validation cases.
      chosen: the recipe of the maps without the field; its cut-off is `neutral` throughout.
      first: where the search starts.
    """

    def tried(settings: CrfConfig) -> Trial:
        return Trial(settings, scoring.case_dice([scan.sample(settings) for scan in scans], chosen))

    best = tried(first)
    trials = [tried(OFF), best]
    for name, value in command.track([(n, v) for n, values in CANDIDATES.items() for v in values], "field"):
        change: dict[str, Any] = {name: value}
        trial = tried(dataclasses.replace(best.settings, **change))
        trials.append(trial)
        if np.mean(trial.dice) > np.mean(best.dice):
            best = trial
    return trials


def left_out(trials: Sequence[Trial]) -> list[float]:
    """Return the Dice of each case in the trial that is best in the mean of all others."""
    dice = np.array([trial.dice for trial in trials])  # (T, cases)
    others = (dice.sum(axis=1, keepdims=True) - dice) / max(1, dice.shape[1] - 1)
    return [float(dice[np.argmax(others[:, case]), case]) for case in range(dice.shape[1])]


def main(arguments: CrfArguments) -> None:
    """Search, measure, and print one JSON line."""
    scans = read_scans(arguments)
    chosen, before = scoring.chosen_anew([scan.sample(OFF) for scan in scans])
    trials = search(scans, chosen, CrfConfig(neutral=chosen.cutoff))
    best = max(trials[1:], key=lambda trial: float(np.mean(trial.dice)))
    unit, start = unit_s(), time.perf_counter()
    samples = [scan.sample(best.settings) for scan in scans]
    seconds = (time.perf_counter() - start) / len(scans)
    line = {
        "before": before,
        "after": scoring.chosen_anew(samples)[1],
        "left_out_before": float(np.mean(trials[0].dice)),
        "left_out": float(np.mean(left_out(trials))),
        "settings": dataclasses.asdict(best.settings),
        "trials": [
            {**{name: getattr(t.settings, name) for name in CANDIDATES}, "dice": [round(d, 4) for d in t.dice]}
            for t in trials[1:]
        ],
        "seconds_a_volume": seconds,
        "units_a_volume": seconds / unit,
    }
    command.say(json.dumps(line))


if __name__ == "__main__":
    command.run(main, CrfArguments)
