"""Studies derived from a study: the same cases in other parts, the whole line from records to scores.

A derived study is an ordinary work folder below the study's own, made, trained and evaluated by the same code. A killed
run goes on where it stopped; records, the bulk of it, are removed when the scores are there. `made_from.json` holds the
digests of the scans and masks that it is made from, so that a mask that is corrected is noticed.

    work/folds/...        with the run `default` (here of benchmarks.cross_validation)
    work/folds-NAME/...   with the run NAME, of other settings
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tyro

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


@dataclasses.dataclass(frozen=True)
class Studies:
    """Which derived studies of a study."""

    work: command.Work
    run: str = PRESET
    """Name of the run, and of the folder that its studies lie in: another one for other settings."""
    minutes: float = 10.0
    """Of training, each: minutes on the GPU, or CPU minutes over the number of cores."""
    seed: int = 2017
    """Of the order in which cases are taken."""


@dataclasses.dataclass(frozen=True)
class Making(Studies):
    """What derived studies are made with: settings are named as those of `femur_tf.train`."""

    config: Path | None = None
    """JSON file with `model` and `train` settings, such as a search's best_config.json, in place of the preset
    `default`."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting to change, as NAME=VALUE with the value in JSON; once for each."""
    processes: int = 2
    """Cases whose records are written side by side."""


def settings(arguments: Making) -> config.RunConfig:
    """Return what each of the derived studies is made with; its `data` are those of its plan.

    Raises:
      DataError: as `train.settings` does; a time among them, which `--minutes` would overrule; a run or mined sets to
        begin with, which lie in the study.
    """
    if times := [one for one in arguments.set if one.partition("=")[0] in ("train.minutes", "train.epochs")]:
        raise DataError(f"--set: expected no training time. Received: {', '.join(times)}. Use --minutes.")
    asked = train.TrainArguments(
        arguments.work, preset=PRESET, config=arguments.config, set=arguments.set, minutes=arguments.minutes
    )
    found = train.settings(asked, study.read_plan(arguments.work).data)
    if found.train.start or found.train.mined:
        raise DataError(
            f"Expected settings without a run to start from or mined sets: a study derived from {arguments.work} has "
            f"none. Received: train.start={found.train.start!r}, train.mined={list(found.train.mined)}. "
            "Leave them out: --set train.start=null --set train.mined=[]"
        )
    return found


def folder_of(arguments: Studies, kind: str, name: str) -> Path:
    """Return the folder of a derived study.

    Args:
      arguments: which of them.
      kind: of what it is made for, such as "folds".
      name: of it, beside time and seed.

    Raises:
      DataError: the name of the run would lead elsewhere.
    """
    own = kind if arguments.run == PRESET else f"{kind}-{arguments.run}"
    return files.child(arguments.work, own) / f"{name}-{arguments.minutes:g}min-{arguments.seed}"


def derive(work: Path, folder: Path, parts: Mapping[str, study.Part], data: config.DataConfig) -> None:
    """Write the plan of a derived study.

    Args:
      work: the study.
      folder: of the derived one.
      parts: the part of each case that it takes.
      data: what its records are made with.

    Raises:
      DataError: the folder holds a study of another plan, or of other scans and masks.
    """
    plan = study.read_plan(work)
    cases = tuple(dataclasses.replace(case, part=parts[case.name]) for case in plan.cases if case.name in parts)
    derived = study.Plan(cases, data, plan.label)
    path = study.plan_path(folder)
    if path.exists() and study.read_plan(folder) != derived:
        raise DataError(
            f"{path}: expected a study derived from the plan of {work}, with the data settings of this command. "
            "Received: another plan, whose scores would stand for this one. Choose another --run, or remove its folder."
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


def left_out(folder: Path, run: str) -> tuple[Bundle, list[CaseMap]]:
    """Return the run of a derived study, not calibrated, and the maps of its test cases.

    Raises:
      DataError: the run or its recipe is missing, or it was made from other scans and masks.
    """
    from femur_tf import bundle as bundles
    from femur_tf import case_maps

    plan = study.read_plan(folder)
    require_same_files(folder, plan)
    bundle = bundles.load(study.run_path(folder, run), calibrated=False)
    _ = bundle.recipe  # raises where none has been chosen
    return bundle, [case_maps.read(bundle, plan, case) for case in plan.part("test")]


def scores_path(folder: Path, run: str) -> Path:
    """Return where the scores of a derived study lie."""
    return folder / "reports" / run / "test.json"


def scores(
    arguments: Making, folder: Path, parts: Mapping[str, study.Part], settings: config.RunConfig
) -> list[dict[str, Any]]:
    """Make a derived study, train it, choose its recipe on its validation cases and score its test cases, once.

    Args:
      arguments: the command's.
      folder: of the derived study.
      parts: the part of each case that it takes.
      settings: of its run.

    Returns:
      One row of `reports/RUN/test.json` for each test case.

    Raises:
      DataError: as `derive` does; the folder holds a run with other settings, as of an earlier `default`; or another
        process makes it.
    """
    from femur_tf import training

    found, run = scores_path(folder, arguments.run), study.run_path(folder, arguments.run)
    derive(arguments.work, folder, parts, settings.data)
    training.require_same_settings(run, settings)
    with files.locked(run, "Wait for it."):
        if not found.exists():
            write_records.write(folder, processes=arguments.processes)
            training.train(study.records_path(folder), run, settings)
            asked = evaluate.EvaluateArguments(folder, run.name, cohort=False, max_memory=MEMORY_MB)
            evaluate.main(asked)
            evaluate.main(dataclasses.replace(asked, part="test"))
        files.remove(study.records_path(folder))
    rows: list[dict[str, Any]] = files.read_json(found)["cases"]
    command.say(f"{folder.name}: " + "  ".join(f"{row['case']} {row['dice']:.3f}" for row in rows))
    return rows
