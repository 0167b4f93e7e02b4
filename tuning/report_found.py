"""A search as its page shows it: what was found on disk, and values as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from femur_tf import command, files, records, study
from femur_tf.errors import DataError
from tuning import report_space, trials
from tuning.report_curves import is_finished
from tuning.report_space import Axis
from tuning.search_space import Space
from tuning.trials import Search, TrialRow

BETTER = {"min": "smaller is better", "max": "larger is better"}


@dataclasses.dataclass(frozen=True)
class Found:
    """A search as it was found on disk."""

    name: str
    search: Search
    rows: tuple[TrialRow, ...]
    axes: tuple[Axis, ...]
    """Hyper-parameters that may vary; none where keras-tuner's state is missing or damaged."""
    settings: Mapping[str, Any]
    """Of the Bayesian model."""
    space: Space | None = None
    """What trials could be made; None where the records or the space are not those of the search any more."""

    @property
    def finished(self) -> list[TrialRow]:
        """Trials that came to a score, in their order."""
        return [row for row in self.rows if is_finished(row)]

    @property
    def ranked(self) -> list[TrialRow]:
        """Finished trials, the best first."""
        sign = 1 if self.search.direction == "min" else -1
        return sorted(self.finished, key=lambda row: (sign * (row.score or 0.0), row.number))

    @property
    def scores(self) -> np.ndarray:
        """Scores of the finished trials: float64 (trials,)."""
        return np.array([row.score for row in self.finished], float)

    @property
    def points(self) -> np.ndarray:
        """The finished trials in the unit cube: float64 (trials, axes)."""
        return report_space.to_points(self.axes, [row.values for row in self.finished])


def read(work: Path, name: str) -> Found:
    """Read the search `name` of a study; warn where keras-tuner's own state of it cannot be read.

    Raises:
      DataError: there is no search, or its settings are damaged, or the name would lead elsewhere.
    """
    folder = files.child(study.tuning_path(work), name)
    search, rows = trials.read(folder)
    try:
        axes, settings = report_space.read_space(folder), report_space.read_settings(folder)
        report_space.to_points(axes, [row.values for row in rows])
    except DataError as error:
        command.warn(f"{error} The page is made without what needs the ranges of hyper-parameters.")
        axes, settings = (), {}
    return Found(name, search, rows, axes, settings, _read_space(work, search, axes))


def _read_space(work: Path, search: Search, axes: Sequence[Axis]) -> Space | None:
    """Return the space of a search over the records of a study, None where it is another one or of other records."""
    folder = study.records_path(work)
    try:
        if search.records not in (records.digest(folder), ""):  # an early search does not tell
            return None
        space = Space(records.read_manifest(folder).data, search.max_cost)
    except (DataError, FileNotFoundError):
        return None
    found = {axis.name: axis.levels or (axis.low, axis.high) for axis in axes}
    wanted = {one.name: one.choices or one.log_range for one in space.parameters if len(one.choices) != 1}
    return space if found == wanted else None


def parameter_names(found: Found) -> list[str]:
    """Return the hyper-parameters of a search: those that may vary, then others that a trial has."""
    names = [axis.name for axis in found.axes]
    return list(dict.fromkeys([*names, *(name for row in found.rows for name in row.values)]))


def outside_share(rows: Sequence[TrialRow]) -> float:
    """Return the share of the trials' time that was not training, NaN before there is any."""
    outside_s = sum(row.outside_seconds for row in rows)
    all_s = outside_s + sum(row.training_seconds for row in rows)
    return outside_s / all_s if all_s > 0 else float("nan")
