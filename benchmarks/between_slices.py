"""What a map loses between its slices, by the way it is interpolated: linear in the probability, or in the log-odds.

Example: python -m benchmarks.between_slices work/ --run default

Every other slice of a validation case's map is left out, made again as the middle of its neighbours, cut off as the
recipe says, and compared with the reference's slice there. A scan of another slice distance than the network's meets
such gaps, half as wide. A table and one JSON line; test cases are not read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from femur_tf import calibration, command, lineage, log_odds, metrics, quiet, study

if TYPE_CHECKING:
    from femur_tf.case_maps import CaseMap

Middle = Callable[[np.ndarray, np.ndarray], np.ndarray]
WAYS: dict[str, Middle] = {
    "probability": lambda first, second: (first + second) / 2,
    "log-odds": lambda first, second: log_odds.mean([first, second]),
}
ITSELF = "the network's own slice"


@dataclasses.dataclass(frozen=True)
class BetweenArguments:
    """Make every other slice of a map again from its neighbours, on validation cases; one JSON line.

    Example: python -m benchmarks.between_slices work/ --run default
    """

    work: command.Work
    run: str = "default"
    """Name of the run; it needs a recipe."""


def made_again(map_: np.ndarray, middle: Middle) -> np.ndarray:
    """Return the slices of a map but its first and last, each made of its two neighbours.

    Example:
      >>> made_again(np.array([0.0, 0.2, 0.6, 1.0]), WAYS["probability"]).tolist()
      [0.3, 0.6]
    """
    return middle(map_[:-2], map_[2:])


def masks(one: CaseMap, settings: calibration.Calibration, cutoff: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the mask of each way, and the reference: all slices but the first and the last, on the working grid."""
    across = int(np.argmax(one.raw.spacing_mm))
    map_ = np.moveaxis(calibration.apply(one.raw.data, settings).astype(np.float32), across, 0)
    reference = np.moveaxis(one.loaded.working_mask, across, 0)
    found = {ITSELF: map_[1:-1]} | {name: made_again(map_, middle) for name, middle in WAYS.items()}
    return {name: values >= cutoff for name, values in found.items()}, reference[1:-1]


def score(arguments: BetweenArguments) -> dict[str, dict[str, Any]]:
    """Return Dice and volume, as a share of the reference's, of each way and case; no steps but the cut-off."""
    from femur_tf import bundle as bundles
    from femur_tf import case_maps

    bundle = bundles.load(study.run_path(arguments.work, arguments.run), calibrated=False)
    cutoff, settings = bundle.recipe.cutoff, bundle.calibration
    plan = study.read_plan(arguments.work)
    cases = study.needed(arguments.work, plan, "validation")
    lineage.require_unseen(bundle.folder, [case.name for case in cases], "validation")
    result: dict[str, dict[str, Any]] = {name: {"dice": {}, "volume": {}} for name in (ITSELF, *WAYS)}
    for case in cases:
        found, reference = masks(case_maps.read(bundle, plan, case), settings, cutoff)
        for name, mask in found.items():
            result[name]["dice"][case.name] = metrics.dice(mask, reference)
            result[name]["volume"][case.name] = float(mask.sum() / reference.sum())
    return result


def main(arguments: BetweenArguments) -> None:
    """Print a table and one JSON line."""
    quiet.start_tensorflow()
    line = score(arguments)
    rows = [
        (name, *(float(np.mean(list(one[key].values()))) for key in ("dice", "volume"))) for name, one in line.items()
    ]
    command.table("Slices between slices, validation cases", ("interpolated", "Dice", "volume / reference"), rows)
    command.say(json.dumps(line))


if __name__ == "__main__":
    command.run(main, BetweenArguments)
