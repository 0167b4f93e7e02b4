"""What a search leaves on disk: models of the best trials alone, and the best config."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from femur_tf import config, files, study
from femur_tf.config import RunConfig, TrainConfig
from femur_tf.errors import DataError
from tuning import trials
from tuning.trials import COMPLETED, FAILED, Direction, Search, TrialRow

LARGE = ("checkpoint", "model.keras")
"""Of a run folder: what a trial that is not kept loses. Settings, history and logs stay."""
BEST = "best_config.json"


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for path, _, names in os.walk(folder):  # `Path.rglob` raises where a folder vanishes
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(path, name).lstat().st_size
    return total


def prune(folder: Path, keep: int, needed: Collection[str]) -> None:
    """Remove the models and checkpoints of finished trials but the best.

    Args:
      folder: of the search.
      keep: how many of the best keep theirs.
      needed: trials that keep theirs in any case.
    """
    search, rows = trials.read(folder)
    ended = [row for row in rows if row.status in (COMPLETED, FAILED)]
    kept = {row.trial_id for row in ranked(ended, search.direction)[:keep]} | set(needed)
    for row in ended:
        if row.trial_id not in kept:
            for name in LARGE:
                files.remove(trials.trial_folder(folder, row.trial_id) / trials.RUN / name)


def ranked(rows: Collection[TrialRow], direction: Direction) -> list[TrialRow]:
    """Return the COMPLETED trials, the best first."""
    left, found = list(rows), []
    while (one := trials.best(left, direction)) is not None:
        found.append(one)
        left.remove(one)
    return found


def to_train(settings: RunConfig) -> RunConfig:
    """Return a trial's settings for a full training: without what made it short."""
    plain = TrainConfig()
    short = ("minutes", "epochs", "epoch_examples", "validation_examples", "patience", "seed")
    train = dataclasses.replace(settings.train, **{name: getattr(plain, name) for name in short})
    return dataclasses.replace(settings, train=train)


def _best_of(folder: Path) -> tuple[Search, TrialRow, RunConfig] | None:
    """Return a search's best trial and its settings; None where it has none, or cannot be read."""
    try:
        search, rows = trials.read(folder)
        row = trials.best(rows, search.direction)
        if row is None:
            return None
        path = trials.trial_folder(folder, row.trial_id)
        return search, row, config.load(RunConfig, path / trials.RUN / "config.json")
    except (OSError, DataError):
        return None


def write_best(folder: Path, work: Path) -> TrialRow | None:
    """Write the best config of a search, and that of all searches like it: same objective, same records.

    Args:
      folder: of the search.
      work: the study's.

    Returns:
      The search's best trial; None where none is COMPLETED.
    """
    own = _best_of(folder)
    if own is None:
        return None
    search, row, settings = own
    files.write_json(folder / BEST, config.to_dict(to_train(settings)))
    places = sorted(path.parent for path in study.tuning_path(work).glob("*/search.json"))
    others = [found for found in map(_best_of, places) if found is not None]
    alike = [one for one in others if (one[0].objective, one[0].records) == (search.objective, search.records)]
    sign = 1 if search.direction == "min" else -1
    best = min(alike, key=lambda one: sign * (one[1].score or 0.0))
    files.write_json(study.tuning_path(work) / BEST, config.to_dict(to_train(best[2])))
    return row
