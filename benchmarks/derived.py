"""Studies derived from a study: the same cases in other parts, the whole line from records to scores.

A derived study is an ordinary work folder below the study's own, made, trained and evaluated by the same code. A killed
run goes on where it stopped; records, the bulk of it, are removed when the scores are there. `made_from.json` holds the
digests of the scans and masks that it is made from, so that a mask that is corrected is noticed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from data_prep import write_records
from femur_tf import command, config, evaluate, files, study, train
from femur_tf.errors import DataError

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle
    from femur_tf.case_maps import CaseMap

PRESET: Final = "default"
MADE_FROM = "made_from.json"
MEMORY_MB = 6000
"""For maps, in the process that has trained before and holds what that took."""


def derive(work: Path, folder: Path, parts: Mapping[str, study.Part]) -> None:
    """Write the plan of a derived study, with the patch rule of the `default` preset.

    Args:
      work: the study.
      folder: of the derived one.
      parts: the part of each case that it takes.

    Raises:
      DataError: the folder holds a study of another plan, or of other scans and masks.
    """
    plan = study.read_plan(work)
    cases = tuple(dataclasses.replace(case, part=parts[case.name]) for case in plan.cases if case.name in parts)
    patch = config.PRESETS[PRESET].patch(plan.data.patch)
    derived = study.Plan(cases, dataclasses.replace(plan.data, patch=patch), plan.label)
    path = study.plan_path(folder)
    if path.exists() and study.read_plan(folder) != derived:
        raise DataError(
            f"{path}: expected a study derived from the plan of {work}. Received: one of another plan, whose scores "
            "would stand for this one. Remove its folder."
        )
    require_same_files(folder, derived)
    files.write_json(path, config.to_dict(derived))


def require_same_files(folder: Path, plan: study.Plan) -> None:
    """Raise where scans or masks are not those that a derived study is made from; note them where nothing says so yet.

    Args:
      folder: of the derived study.
      plan: its own.

    Raises:
      DataError: they are others, or one is gone.
    """
    path = folder / MADE_FROM
    now = {case.name: [study.digests(Path(image)) for image in (case.image, case.mask)] for case in plan.cases}
    if not path.exists():
        files.write_json(path, now)
    before = files.read_json(path)
    differing = sorted(name for name in now if before.get(name) != now[name])
    if differing:
        raise DataError(
            f"{path}: expected the scans and masks that this study was made from. Received: others of "
            f"{', '.join(differing)}, for which its scores would not stand. Remove its folder."
        )


def left_out(folder: Path) -> tuple[Bundle, list[CaseMap]]:
    """Return the run of a derived study, not calibrated, and the maps of its test cases.

    Raises:
      DataError: the run or its recipe is missing, or it was made from other scans and masks.
    """
    from femur_tf import bundle as bundles
    from femur_tf import case_maps

    plan = study.read_plan(folder)
    require_same_files(folder, plan)
    bundle = bundles.load(study.run_path(folder, PRESET), calibrated=False)
    _ = bundle.recipe  # raises where none has been chosen
    return bundle, [case_maps.read(bundle, plan, case) for case in plan.part("test")]


def scores_path(folder: Path) -> Path:
    """Return where the scores of a derived study lie."""
    return folder / "reports" / PRESET / "test.json"


def scores(folder: Path, minutes: float, processes: int) -> list[dict[str, Any]]:
    """Train a derived study, choose its recipe on its validation cases and score its test cases, once.

    Args:
      folder: the derived study.
      minutes: of training.
      processes: that write records.

    Returns:
      One row of `reports/default/test.json` for each test case.

    Raises:
      DataError: the folder holds a run with other settings, as of an earlier `default`, or another process makes it.
    """
    from femur_tf import training

    found, run = scores_path(folder), study.run_path(folder, PRESET)
    settings = train.settings(
        train.TrainArguments(folder, preset=PRESET, minutes=minutes), study.read_plan(folder).data
    )
    training.require_same_settings(run, settings)
    with files.locked(run, "Wait for it."):
        if not found.exists():
            write_records.write(folder, processes=processes)
            training.train(study.records_path(folder), run, settings)
            evaluate.main(evaluate.EvaluateArguments(folder, cohort=False, max_memory=MEMORY_MB))
            evaluate.main(evaluate.EvaluateArguments(folder, part="test", max_memory=MEMORY_MB))
        files.remove(study.records_path(folder))
    rows: list[dict[str, Any]] = files.read_json(found)["cases"]
    command.say(f"{folder.name}: " + "  ".join(f"{row['case']} {row['dice']:.3f}" for row in rows))
    return rows
