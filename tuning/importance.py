"""How much each hyper-parameter matters to the score, as far as a few trials can tell.

A random forest learns the scores of most trials; the others are then predicted, once as
they are and once with the values of one hyper-parameter exchanged among them. What the
exchange adds to the mean absolute error is that hyper-parameter's importance
(permutation importance: Breiman, "Random Forests", Machine Learning 45, 2001). It is
measured on trials that the forest did not see, in many random splits: the spread over
splits says how far to trust it, and the forest's error beside that of the plain mean
says whether it learned anything. Two hyper-parameters that say the same, such as two
widths that were always large together, share their importance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

MIN_TRIALS = 10
"""With fewer finished trials nothing is measured: two or three would be left to predict."""
TRIALS_PER_PARAMETER = 3
"""With fewer finished trials a hyper-parameter, importances are a hint at most."""
LEARNED = 0.9
"""A model whose error on trials not seen is below this times that of their mean has learned something."""
SPLITS = 16
HELD_OUT = 0.25
"""Share of the trials that the forest does not see."""
REPEATS = 3
"""Exchanges a split and hyper-parameter."""
TREES = 50


@dataclasses.dataclass(frozen=True)
class Importance:
    """What the splits gave. All figures are in the score's unit."""

    mean: np.ndarray
    """float64 (hyper-parameters,): added error on trials not seen, mean over splits; below 0 by chance."""
    sd: np.ndarray
    """float64 (hyper-parameters,): its standard deviation over splits."""
    error: float
    """Mean absolute error of the forest on trials not seen."""
    mean_error: float
    """Of the mean of the trials seen, in its place."""

    @property
    def learned(self) -> bool:
        """Whether the forest predicts trials clearly better than their mean does; else importances say nothing."""
        return self.error < LEARNED * self.mean_error


def can_measure(scores: np.ndarray) -> bool:
    """Return whether importances can be measured on these scores: enough of them, and not all equal."""
    return len(scores) >= MIN_TRIALS and bool(np.ptp(scores) > 0)


def measure(points: np.ndarray, scores: np.ndarray, *, splits: Iterable[int] = range(SPLITS)) -> Importance:
    """Measure the importance of each hyper-parameter.

    Args:
      points: float (trials, hyper-parameters), in [0, 1].
      scores: float (trials,), finite.
      splits: a seed for each split of the trials.

    Raises:
      ValueError: fewer than `MIN_TRIALS` trials, or all scores equal.
    """
    if not can_measure(scores):
        raise ValueError(f"expected {MIN_TRIALS} trials or more, of unequal scores. Received: {len(scores)}")
    rows = np.array([_one_split(points, scores, seed) for seed in splits])  # (splits, hyper-parameters + 2)
    mean, sd = rows.mean(axis=0), rows.std(axis=0)
    return Importance(mean[:-2], sd[:-2], float(mean[-2]), float(mean[-1]))


def _one_split(points: np.ndarray, scores: np.ndarray, seed: int) -> np.ndarray:
    """Return added errors, the forest's error and the mean's error on the trials that one split leaves out."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import train_test_split

    seen, unseen, known, wanted = train_test_split(points, scores, test_size=HELD_OUT, random_state=seed)
    forest = RandomForestRegressor(TREES, max_features=0.5, min_samples_leaf=2, random_state=seed).fit(seen, known)
    options = {"scoring": "neg_mean_absolute_error", "n_repeats": REPEATS, "random_state": seed}
    added = permutation_importance(forest, unseen, wanted, **options).importances_mean
    error = np.abs(forest.predict(unseen) - wanted).mean()
    return np.array([*added, error, np.abs(known.mean() - wanted).mean()])
