"""What comes before and after the trials of a search: its settings, its folder, its limits, its outcome."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import time
from pathlib import Path

from femur_tf import command, config, files, lineage, records, study
from femur_tf.errors import DataError, typed
from tuning import board, keeping, trials
from tuning.early import DIRECTIONS
from tuning.search_space import Space
from tuning.trials import COMPLETED, Algorithm, Objective, Search

FAILED_STATUS, STOPPED_STATUS = 1, 3
"""Exit status of a search with trials that failed, and of one that ended before its last trial and can go on."""
MINUTES = 2.0
BUDGET = 250_000.0
"""Multiply-adds a voxel: on hip scans `default` has 168,000; where all planes are as fine, three times as many."""
FREE = ("trials", "started", "work")
"""Settings that may change when a search goes on."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a search is asked to do: the settings that its folder remembers."""

    work: Path
    name: str
    algorithm: Algorithm
    objective: Objective
    trials: int
    minutes: float | None
    epochs: int | None
    epoch_examples: int | None
    seed: int
    max_cost: float | None
    from_default: bool

    @property
    def folder(self) -> Path:
        """The folder of the search; a `DataError` where its name would lead elsewhere."""
        return files.child(study.tuning_path(self.work), self.name)


def usual_cost(data: config.DataConfig) -> float:
    """Return the limit on cost where none is asked for: the hand-made network is within it, as the one to beat."""
    space = Space(data, math.inf)
    return max(BUDGET, float(space.cost(space.default())))


def settings(wanted: Wanted) -> Search:
    """Return the settings of a search, checked.

    Raises:
      DataError: both minutes and epochs, no records or not all of them, or a value out of range.
    """
    if wanted.minutes is not None and wanted.epochs is not None:
        raise DataError("Expected --minutes or --epochs. Received: both. Leave one out.")
    minutes = MINUTES if wanted.minutes is None and wanted.epochs is None else wanted.minutes
    above = "a number above 0"
    for name, value, fine, expected in (
        ("trials", wanted.trials, wanted.trials >= 1, above),
        ("minutes", minutes, minutes is None or minutes > 0, above),
        ("epochs", wanted.epochs, wanted.epochs is None or wanted.epochs >= 1, above),
        ("epoch-examples", wanted.epoch_examples, wanted.epoch_examples is None or wanted.epoch_examples >= 1, above),
        ("seed", wanted.seed, wanted.seed >= 0, "a number of at least 0"),
    ):
        if not fine:
            raise DataError(f"--{name}: expected {expected}. Received: {value}")
    folder = study.records_path(wanted.work)
    manifest = records.read_manifest(folder)
    lineage.require_split(folder, manifest)
    records.require_whole(folder, manifest)
    max_cost = usual_cost(manifest.data) if wanted.max_cost is None else wanted.max_cost
    space = Space(manifest.data, max_cost)
    if not manifest.count("validation"):
        study.needed(wanted.work, study.read_plan(wanted.work), "validation")  # says how to plan some
        raise DataError(
            f"{records.manifest_path(folder)}: expected validation examples. Received: none. "
            f"Write them: {typed('data_prep.write_records', wanted.work)}"
        )
    if wanted.objective == "dice":
        study.needed(wanted.work, study.read_plan(wanted.work), "validation")
    return Search(
        algorithm=wanted.algorithm,
        objective=wanted.objective,
        direction=DIRECTIONS[wanted.objective],
        seed=wanted.seed,
        max_cost=max_cost,
        trials=wanted.trials,
        minutes=minutes,
        epochs=wanted.epochs,
        work=str(wanted.work),
        started=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        epoch_examples=wanted.epoch_examples,
        from_default=wanted.from_default,
        records=records.digest(folder),
        space=space.digest,
    )


def require_same(search: Search, work: Path) -> None:
    """Raise unless the records of a study, and the space that this package makes of them, are those of a search.

    Raises:
      DataError: they are not, or there are no records.
    """
    folder = study.records_path(work)
    space = Space(records.read_manifest(folder).data, search.max_cost)
    if records.digest(folder) != search.records:
        raise DataError(
            f"{folder}: expected the records that the search was begun with. Received: others. "
            "Pass the chief's work folder, or a copy of it."
        )
    if space.digest != search.space:
        raise DataError(
            f"{folder}: expected the space that the search was begun with. Received: another. "
            "Run the chief and its workers with one version of femur_tf."
        )


def _earlier(folder: Path) -> Search | None:
    """Return the settings that a search was begun with; None where there are none, or they are damaged."""
    path = trials.search_path(folder)
    try:
        files.read_json(path)
    except FileNotFoundError:
        return None
    except DataError as error:
        command.warn(f"{error}. It is written anew, from this command's settings.")
        return None
    return trials.read_search(folder)


def prepare(wanted: Wanted, *, overwrite: bool) -> Search:
    """Make the folder of a search, or take up the one that is there.

    Args:
      wanted: what is asked for.
      overwrite: remove what is there.

    Returns:
      The settings, as the folder now holds them.

    Raises:
      DataError: the settings cannot be used, or the search was begun with others.
    """
    search = settings(wanted)
    if overwrite:
        files.remove(wanted.folder)
    earlier = _earlier(wanted.folder)
    if earlier is not None:
        found, asked = (config.to_dict(one) for one in (earlier, search))
        differing = sorted(name for name in asked if name not in FREE and found[name] != asked[name])
        if differing:
            raise DataError(
                f"{trials.search_path(wanted.folder)}: expected the settings of this command. Received: another "
                f"{', '.join(differing)}. Choose another name with --name, or start it anew with --overwrite. "
                "What an earlier version has found stays usable: python -m tuning.report, best_config.json."
            )
        search = dataclasses.replace(search, started=earlier.started)
    files.write_json(trials.search_path(wanted.folder), config.to_dict(search))
    return search


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a search ends before its last trial."""

    folder: Path
    max_hours: float | None
    max_disk: float | None
    """GB, 10^9 bytes."""
    begun: float = dataclasses.field(default_factory=time.monotonic)

    def hours(self) -> str | None:
        """Return that the hours are used, or None."""
        if self.max_hours is None or time.monotonic() - self.begun < 3600 * self.max_hours:
            return None
        return f"--max-hours {self.max_hours:g} are used"

    def reason(self) -> str | None:
        """Return why no further trial may start, or None."""
        if self.max_disk is not None:
            used = keeping.folder_bytes(self.folder) / 1e9
            if used >= self.max_disk:
                held = f"{self.folder} holds {used:.3g} GB; --max-disk is {self.max_disk:g}"
                return f"{held}: allow more, or keep fewer models (--keep-best)"
        return self.hours()


def is_finished(folder: Path) -> bool:
    """Return whether all trials of a search have ended."""
    try:
        search, rows = trials.read(folder)
    except (DataError, OSError):
        return False
    return sum(row.status in (COMPLETED, trials.FAILED) for row in rows) >= search.trials


def finish(folder: Path, work: Path, stopped: str | None) -> int:
    """Show the trials and what to do next.

    Args:
      folder: of the search.
      work: the study's.
      stopped: why the search ended before its last trial, or None.

    Returns:
      The exit status: 0 where as many trials as were asked for are COMPLETED.
    """
    search, rows = trials.read(folder)
    title = f"{folder}: {board.summary(search, rows)}"
    command.console.print(board.table(rows, title, command.console.width))
    best = keeping.write_best(folder, work)
    if best is not None:
        path = study.tuning_path(work) / keeping.BEST
        words = ("--config", folder / keeping.BEST, "--run", folder.name)
        command.say(f"Best of {search.objective}: trial {best.trial_id} (best of all searches: {path}). Train it:")
        command.say(f"  {typed('femur_tf.train', work, *words)}")
        first = next((row for row in rows if row.number == 0 and row.score is not None), None)
        if search.from_default and first is not None:
            command.say(f"The first trial, the preset default where its cost allows: {first.score:.4g}.")
        command.say(
            "Trials are short, and networks that learn fast win them: train `default` for as long as the best, and "
            "compare on whole validation scans (femur_tf.evaluate), before you use it."
        )
    set_aside = [row for row in rows if row.status in (trials.FAILED, trials.INVALID)]
    for row in set_aside:
        command.warn(f"trial {row.trial_id} was set aside: {row.reason}")
    done = sum(row.status == COMPLETED for row in rows)
    if stopped is not None and done < search.trials:
        command.fail(f"Stopped after {done} of {search.trials} trials: {stopped}. Run the command again to go on.")
        return STOPPED_STATUS
    if done < search.trials:
        lacking = f"{len(set_aside)} set aside" if set_aside else "the space holds no more points"
        command.fail(f"Expected {search.trials} COMPLETED trials. Received: {done}; {lacking}.")
        return FAILED_STATUS
    return 0
