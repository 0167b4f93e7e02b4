"""Early stopping of poor trials: the median rule, on what the run folders hold.

A trial is poor when its best value so far is worse than the median of what the finished
trials had reached at the same share of their time (Golovin et al., "Google Vizier", KDD
2017, section 3.2.2). A curve that ended early counts with its last value.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from femur_tf import config
from tuning import trials
from tuning.trials import Direction, Objective

COLUMNS: dict[Objective, str] = {"val_loss": "val_log_loss", "val_auc": "val_auc", "dice": "val_auc"}
"""Of the history: what is compared within a trial. Dice of whole scans is known at its end alone."""
DIRECTIONS: dict[Objective, Direction] = {"val_loss": "min", "val_auc": "max", "dice": "max"}
FROM_SHARE = 0.3
"""Of a trial's time: before it nothing is stopped."""
AT_LEAST = 4
"""Finished trials to compare with."""

Curve = Sequence[tuple[float, float]]
"""(share of the time, value) of each epoch."""


def share_done(settings: config.TrainConfig, seconds: float, epochs: int) -> float:
    """Return how much of a run's time is used, in [0, 1]."""
    done = epochs / settings.epochs if settings.minutes is None else seconds / (60 * settings.minutes)
    return min(1.0, done)


def read_curve(folder: Path, objective: Objective) -> list[tuple[float, float]]:
    """Return the curve of a run folder; empty where there is none, or it cannot be read."""
    try:
        settings = config.load(config.RunConfig, folder / "config.json").train
        with (folder / "history.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        pairs = [(float(row["seconds"]), float(row[COLUMNS[objective]])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [(share_done(settings, seconds, n), value) for n, (seconds, value) in enumerate(pairs, 1)]


def finished_curves(folder: Path, objective: Objective) -> list[list[tuple[float, float]]]:
    """Return the curves of the COMPLETED trials of the search in `folder`."""
    _, rows = trials.read(folder)
    done = [trials.trial_folder(folder, row.trial_id) for row in rows if row.status == trials.COMPLETED]
    curves = [read_curve(path / trials.RUN, objective) for path in done]
    return [curve for curve in curves if curve]


def _best_until(curve: Curve, share: float, sign: int) -> float:
    """Return the least signed value of a curve up to a share of the time, NaN where it has none."""
    return min((sign * value for at, value in curve if at <= share), default=math.nan)


def is_poor(curve: Curve, others: Sequence[Curve], direction: Direction) -> bool:
    """Return whether a trial is to be stopped.

    Args:
      curve: of the trial, up to now; not empty.
      others: of the finished trials.
      direction: `min` where smaller values are better.
    """
    sign = 1 if direction == "min" else -1
    share = curve[-1][0]
    if share < FROM_SHARE or share >= 1:
        return False
    known = [value for value in (_best_until(other, share, sign) for other in others) if not math.isnan(value)]
    return len(known) >= AT_LEAST and _best_until(curve, share, sign) > float(np.median(known))
