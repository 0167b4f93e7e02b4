"""What a search left on disk: its settings and its trials, read without TensorFlow.

    work/tuning/NAME/search.json              the settings of the search (`Search`)
    work/tuning/NAME/oracle.json              keras-tuner's own: the order of trials, what runs
    work/tuning/NAME/trial_ID/trial.json      keras-tuner's own: values, status, score
    work/tuning/NAME/trial_ID/about.json      what it trained and what it took (`About`)
    work/tuning/NAME/trial_ID/run/            the run folder that `femur_tf.training` made

A trial's values, status and score stand in both of its files, so that either is
enough. All are written whole; one that cannot be read all the same makes its trial
INVALID with a reason, and the others stay readable.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from femur_tf import config, files
from femur_tf.errors import DataError, typed

FORMAT_VERSION = 1
Algorithm = Literal["bayesian", "random", "hyperband"]
Objective = Literal["val_loss", "val_auc", "dice"]
Direction = Literal["min", "max"]
COMPLETED, RUNNING, INVALID, FAILED = "COMPLETED", "RUNNING", "INVALID", "FAILED"
TRIAL, ABOUT, RUN = "trial.json", "about.json", "run"


@dataclasses.dataclass(frozen=True)
class Search:
    """The settings of a search: what `search.json` holds."""

    algorithm: Algorithm
    objective: Objective
    direction: Direction
    """`min` where a smaller score is better."""
    seed: int
    max_cost: float
    """Multiply-adds a voxel that a network may have."""
    trials: int
    """Trials asked for."""
    minutes: float | None
    """Training time of a trial; None where `epochs` are given."""
    epochs: int | None
    work: str
    """The study's work folder."""
    started: str
    """Time of the first start, ISO 8601."""
    epoch_examples: int | None = None
    """Examples an epoch; None: chosen for each trial."""
    from_default: bool = True
    """The first trial is the hand-made `default`."""
    records: str = ""
    """Digest of the records' manifest."""
    space: str = ""
    """Digest of the parameters; none in a search of an early version."""
    format_version: int = FORMAT_VERSION


@dataclasses.dataclass
class About:
    """What a trial trained and what it took: what `about.json` holds."""

    number: int
    """Of the trial, counted from 0."""
    values: dict[str, Any]
    """Hyper-parameters that have an effect, by name."""
    config: dict[str, Any]
    """The RunConfig."""
    cost: float
    """Multiply-adds a voxel."""
    status: str = RUNNING
    score: float | None = None
    training_seconds: float = 0.0
    """On the wall, validation included."""
    outside_seconds: float = 0.0
    """On the wall: start-up, tuner, building the network, checkpoints."""
    epochs: int = 0
    """Completed."""
    stopped_early: bool = False
    reason: str | None = None
    """Why the trial failed."""
    starts: int = 0
    """Starts since an epoch was last completed."""


@dataclasses.dataclass(frozen=True)
class TrialRow:
    """One trial."""

    trial_id: str
    number: int
    status: str
    """COMPLETED, RUNNING, FAILED, or INVALID: not to be read."""
    score: float | None
    values: dict[str, Any]
    """Hyper-parameters that have an effect, by name."""
    cost: float | None
    """Multiply-adds a voxel."""
    training_seconds: float
    outside_seconds: float
    epochs: int
    stopped_early: bool
    reason: str | None
    """Why the trial failed, or which of its files cannot be read."""


def identity(folder: Path, search: Search) -> str:
    """Return what tells a search from all others: a chief and its workers have to be of one."""
    return hashlib.sha256(f"{folder.name}\n{search.started}\n{search.seed}".encode()).hexdigest()[:16]


def search_path(folder: Path) -> Path:
    """Return where the settings of the search in `folder` lie."""
    return folder / "search.json"


def trial_folder(folder: Path, trial_id: str) -> Path:
    """Return the folder of a trial, named as keras-tuner names it."""
    return folder / f"trial_{trial_id}"


def read_search(folder: Path) -> Search:
    """Read the settings of the search in `folder`.

    Raises:
      DataError: there is no search, its file is damaged, or it has another format version.
    """
    path = search_path(folder)
    if not path.exists():
        there = files.names_beside(folder, path.name)
        raise DataError(
            f"{path}: expected a search, found none of that name; there are: {there}. "
            f"Run first: {typed('tuning.search', folder.parent.parent, '--name', folder.name)}"
        )
    advice = "Start it anew with --overwrite, or choose another --name."
    return config.from_dict(Search, files.read_versioned(path, FORMAT_VERSION, advice), str(path))


def write_about(folder: Path, about: About) -> None:
    """Write `about.json` of the trial in `folder`, whole."""
    files.write_json(folder / ABOUT, dataclasses.asdict(about))


def read_about(folder: Path) -> About:
    """Read `about.json` of the trial in `folder`.

    Raises:
      FileNotFoundError: no such file.
      DataError: it is damaged.
    """
    return config.load(About, folder / ABOUT)


def read_trial(folder: Path) -> dict[str, Any]:
    """Return keras-tuner's state of the trial in `folder`.

    Raises:
      FileNotFoundError: no such file.
      DataError: it is damaged.
    """
    path = folder / TRIAL
    state = files.read_json(path)
    try:
        complete = {**state, "values": state["hyperparameters"]["values"], "status": state["status"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: expected the state of a trial. Received: no {error}") from error
    return complete


def _row(folder: Path) -> TrialRow:
    """Return the row of one trial, from what can be read of it."""
    about, state, problems = None, None, []
    try:
        about = read_about(folder)
    except (OSError, DataError) as error:
        problems.append(str(error))
    try:
        state = read_trial(folder)
    except (OSError, DataError) as error:
        problems.append(str(error))
    trial_id = folder.name.removeprefix("trial_")
    number = int(trial_id) if trial_id.isdecimal() else -1
    if about is None and state is None:
        return TrialRow(trial_id, number, INVALID, None, {}, None, 0.0, 0.0, 0, False, "; ".join(problems))
    if about is None:
        about = About(number, state["values"], {}, math.nan)  # type: ignore[index]
        about.reason = state.get("message")  # type: ignore[union-attr]
    status = state["status"] if state else about.status
    score = state.get("score") if state else about.score
    return TrialRow(
        trial_id,
        about.number,
        status,
        score if score is not None and math.isfinite(score) else None,
        {name: value for name, value in about.values.items() if "/" not in name},
        about.cost if math.isfinite(about.cost) else None,
        about.training_seconds,
        about.outside_seconds,
        about.epochs,
        about.stopped_early,
        about.reason if status != COMPLETED else None,
    )


def read(folder: Path) -> tuple[Search, tuple[TrialRow, ...]]:
    """Read a search.

    Args:
      folder: `work/tuning/NAME`.

    Returns:
      Its settings, and its trials in their order; a trial whose files are missing or damaged has the status INVALID
      and a reason.

    Raises:
      DataError: there is no search, or its settings cannot be read.
    """
    rows = [_row(path) for path in folder.glob("trial_*") if path.is_dir()]
    return read_search(folder), tuple(sorted(rows, key=lambda row: (row.number, row.trial_id)))


def best(rows: Iterable[TrialRow], direction: Direction) -> TrialRow | None:
    """Return the COMPLETED trial with the best score, the first of equals; None where there is none."""
    scored = [row for row in rows if row.status == COMPLETED and row.score is not None]
    sign = 1 if direction == "min" else -1
    return min(scored, key=lambda row: (sign * (row.score or 0.0), row.number), default=None)
