"""The score of a trained run: of the epoch whose model was kept."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from femur_tf import bundle as bundles
from femur_tf import calibration, case_maps, recipe, records, study
from femur_tf.callbacks import State
from femur_tf.case_maps import CaseMap
from tuning.early import COLUMNS
from tuning.trials import Objective


def kept_epoch(state: State) -> dict[str, float]:
    """Return the history's row of the epoch whose model was kept: that of the highest validation AUC."""
    return max(state.history, key=lambda row: row["val_auc"])


@functools.cache
def cases(work: Path) -> Sequence[study.LoadedCase]:
    """Return the validation cases of a study, read once a process.

    Raises:
      DataError: the study has none.
    """
    # The grid of the records, and so of the runs: the plan may have been made anew since.
    data = records.read_manifest(study.records_path(work)).data
    plan = dataclasses.replace(study.read_plan(work), data=data)
    return [study.load_case(plan, case) for case in study.needed(work, plan, "validation")]


def whole_volume_dice(cases: Sequence[study.LoadedCase], run: Path) -> float:
    """Return the mean Dice of a run on whole validation scans, with the recipe that `evaluate` would choose.

    Args:
      cases: the validation cases.
      run: the run folder; a scan is evaluated densely at every voxel.

    Raises:
      DataError: the run has no model.
      ValueError: no validation case holds bone.
    """
    bundle = bundles.load(run, calibrated=False)
    maps = [CaseMap(loaded, bundles.working_map(bundle, loaded.working)) for loaded in cases]
    try:
        fitted = calibration.fit(case_maps.raw_counts(maps))
    except ValueError:  # a network that knows nothing has a Dice all the same
        fitted = calibration.NONE
    return recipe.choose([one.sample(fitted) for one in maps]).dice


def score(objective: Objective, state: State, dice: Callable[[], float]) -> float:
    """Return the score of a run that was trained.

    Args:
      objective: what is scored.
      state: of the run.
      dice: gives the Dice of whole scans.
    """
    return dice() if objective == "dice" else kept_epoch(state)[COLUMNS[objective]]
