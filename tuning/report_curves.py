"""How far searches have come: the best score so far after each trial, alone and over searches of one algorithm."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tuning import trials
from tuning.trials import Search, TrialRow

ALIKE = ("algorithm", "minutes", "epochs", "epoch_examples", "max_cost", "from_default", "space")
"""Settings that the searches of a group have in common."""
FAR = 3.0
"""Scores beyond this many interquartile ranges on the worse side are far from the others."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The progress of one search. A trial that failed counts, and changes nothing; one that runs does not count."""

    name: str
    search: Search
    scores: np.ndarray
    """float64 (trials,): NaN where a trial failed."""
    best: np.ndarray
    """float64 (trials,): the best score so far; NaN before the first."""
    minutes: np.ndarray
    """float64 (trials,): what the trials took up to here, added up, training and all else."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Searches of equal settings that differ in their seed, over the trials that all of them have made."""

    label: str
    curves: tuple[Curve, ...]

    @property
    def trials(self) -> int:
        """Trials that all searches have made."""
        return min(len(curve.best) for curve in self.curves)

    @property
    def best(self) -> np.ndarray:
        """Best score so far: float64 (searches, trials)."""
        return np.array([curve.best[: self.trials] for curve in self.curves]).reshape(len(self.curves), -1)

    def at_minutes(self, minutes: np.ndarray) -> np.ndarray:
        """Return the best score of each search at given times: float64 (searches, times), NaN before the first."""
        rows = []
        for curve in self.curves:
            done = np.searchsorted(curve.minutes, minutes, side="right")
            rows.append(np.array([np.nan, *curve.best])[done])
        return np.array(rows)

    @property
    def minutes(self) -> float:
        """The time that all searches have used."""
        return min(float(curve.minutes[-1]) if len(curve.minutes) else 0.0 for curve in self.curves)


def curve(name: str, search: Search, rows: Sequence[TrialRow]) -> Curve:
    """Return the progress of a search.

    Args:
      name: of the search.
      search: its settings.
      rows: its trials, in their order.
    """
    ended = [row for row in rows if row.status != trials.RUNNING]
    known = [row.score if is_finished(row) else None for row in ended]
    scores = np.array(known, float)  # None becomes NaN
    best = np.fmin.accumulate(scores) if search.direction == "min" else np.fmax.accumulate(scores)
    spent_s = np.array([row.training_seconds + row.outside_seconds for row in ended], float)
    return Curve(name, search, scores, best, np.cumsum(spent_s) / 60)


def is_finished(row: TrialRow) -> bool:
    """Return whether a trial has come to a score."""
    return row.status == trials.COMPLETED and row.score is not None


def group(curves: Sequence[Curve]) -> list[Group]:
    """Return searches of equal settings that differ in their seed as groups; others, and repeated seeds, stand alone.

    The order is that of the first search of each group.
    """
    members: dict[tuple[object, ...], list[Curve]] = {}
    seen: Counter[tuple[object, ...]] = Counter()
    for item in curves:
        kind = tuple(getattr(item.search, name) for name in ALIKE)
        seed = (*kind, item.search.seed)
        members.setdefault((*kind, seen[seed]), []).append(item)  # a seed's second search, in another group
        seen[seed] += 1
    groups = [tuple(found) for found in members.values()]
    algorithms = Counter(found[0].search.algorithm for found in groups if len(found) > 1)
    return [Group(_label(found, unique=algorithms[found[0].search.algorithm] == 1), found) for found in groups]


def _label(curves: Sequence[Curve], *, unique: bool) -> str:
    """Return what a group is called: by its algorithm, and its searches where another group has the same one."""
    names = [item.name for item in curves]
    if len(names) == 1:
        return names[0]
    label = f"{curves[0].search.algorithm}, {len(names)} seeds"
    return label if unique else f"{label} ({', '.join(names)})"


def score_limits(scores: np.ndarray, direction: str) -> tuple[float, float]:
    """Return the range of scores that are worth telling apart: all but those far on the worse side, and a margin.

    Args:
      scores: float (trials,), finite, at least one.
      direction: `min` or `max`.
    """
    low, high = float(scores.min()), float(scores.max())
    quarter, three_quarters = np.percentile(scores, (25, 75))
    reach = FAR * float(three_quarters - quarter)
    if reach > 0 and direction == "min":
        high = min(high, float(three_quarters) + reach)
    elif reach > 0:
        low = max(low, float(quarter) - reach)
    margin = 0.06 * (high - low) or 0.01 * max(abs(high), 1.0)
    return low - margin, high + margin
