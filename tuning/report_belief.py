"""What a Bayesian search believes of the trials it has not made.

The model is the one that the search asks (`tuning.acquisition`): a Gaussian process on
the unit cube of hyper-parameters (`report_space`), with a noise of its own, to which a
failed trial is as bad as the worst. It can be fitted to the trials of any search, random
ones too. scikit-learn is imported when the first model is fitted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tuning import report_space, trials
from tuning.report_curves import is_finished
from tuning.report_space import Axis, Value
from tuning.search_space import Space, Values
from tuning.trials import Search, TrialRow

if TYPE_CHECKING:
    from sklearn.gaussian_process import GaussianProcessRegressor

BETA = 2.6
"""keras-tuner's default."""
MIN_TRIALS = 3
"""With fewer finished trials there is nothing to fit."""
PLACES = 61
"""Points along the axis of a continuous hyper-parameter."""


@dataclasses.dataclass(frozen=True)
class Belief:
    """A fitted model. It knows losses: scores, with their sign changed where larger is better."""

    axes: tuple[Axis, ...]
    points: np.ndarray
    """float64 (trials, axes), in [0, 1]: what it was fitted to."""
    losses: np.ndarray
    """float64 (trials,): NaN where a trial failed."""
    bounded: np.ndarray
    """float64 (trials,): the losses that it was told, without outliers on the bad side."""
    sign: int
    """1 where a smaller score is better, -1 where a larger one is."""
    model: GaussianProcessRegressor

    @property
    def scale(self) -> float:
        """What the model takes for 1, in the score's unit."""
        return float(self.bounded.std())

    @property
    def length(self) -> float:
        """How far, in shares of a range, a trial says something of others."""
        return float(self.model.kernel_.k1.length_scale)

    @property
    def noise(self) -> float:
        """Standard deviation of the score of one and the same trial, made again."""
        return math.sqrt(self.model.kernel_.k2.noise_level) * self.scale

    def predict(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the score at points (n, axes), without its noise: float64 (n,)."""
        from tuning import acquisition

        mean, sd = acquisition.predict(self.model, points)
        return self.sign * (self.bounded.mean() + self.scale * mean), self.scale * sd


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A trial that has not been made, and the score expected of it."""

    values: Values
    """Hyper-parameters that have an effect."""
    cost: float
    """Multiply-adds a voxel."""
    mean: float
    sd: float


@dataclasses.dataclass(frozen=True)
class Line:
    """The score expected along the axis of one hyper-parameter, all others as in the best trial."""

    axis: Axis
    values: tuple[Value, ...]
    mean: np.ndarray
    sd: np.ndarray


def can_fit(rows: Sequence[TrialRow]) -> bool:
    """Return whether a model can be fitted to these trials: enough have finished, and not all scores are equal."""
    scores = [row.score for row in rows if is_finished(row)]
    return len(scores) >= MIN_TRIALS and len(set(scores)) > 1


def fit(axes: Sequence[Axis], rows: Sequence[TrialRow], search: Search) -> Belief:
    """Fit the model to trials.

    Args:
      axes: of the search.
      rows: its trials; those that run, or cannot be read, are left out.
      search: its settings.

    Raises:
      ValueError: fewer than `MIN_TRIALS` finished trials, or all scores equal.
    """
    from tuning import acquisition

    if not can_fit(rows):
        raise ValueError(f"expected {MIN_TRIALS} finished trials or more, of unequal scores. Received: {len(rows)}")
    ended = [row for row in rows if is_ended(row)]
    points, sign = report_space.to_points(axes, [row.values for row in ended]), sign_of(search)
    losses = np.array([loss(row, sign) for row in ended])
    bounded = acquisition.bounded(losses)
    belief = Belief(tuple(axes), points, losses, bounded, sign, acquisition.process(search.seed))
    acquisition.fit(belief.model, points, (bounded - bounded.mean()) / belief.scale)
    return belief


def left_out_errors(belief: Belief) -> tuple[float, float]:
    """Return how well the model predicts each finished trial from the others, its kernel as fitted to all.

    Returns:
      Mean absolute error of the model, and of the mean of the others in its place: a model that is not clearly the
      better one has learned nothing yet. Outliers are bounded.
    """
    from sklearn.base import clone
    from sklearn.model_selection import LeaveOneOut, cross_val_predict

    rigid = clone(belief.model).set_params(kernel=belief.model.kernel_, optimizer=None, normalize_y=True)
    predicted = cross_val_predict(rigid, belief.points, belief.bounded, cv=LeaveOneOut())
    others = (belief.bounded.sum() - belief.bounded) / (len(belief.bounded) - 1)
    finished = np.isfinite(belief.losses)
    errors = [np.abs(guess - belief.bounded)[finished].mean() for guess in (predicted, others)]
    return float(errors[0]), float(errors[1])


def propose(
    belief: Belief, space: Space, rows: Sequence[TrialRow], search: Search, *, betas: Sequence[float]
) -> list[Proposal]:
    """Return the trials that a Bayesian search would start now, one after the other.

    Args:
      belief: the model, for the scores expected.
      space: of the search.
      rows: its trials.
      search: its settings.
      betas: for each proposal, how many standard deviations an uncertain point is forgiven. A proposal takes those
        before it as under way.

    Returns:
      One a beta; fewer where no more points are left.
    """
    from tuning import acquisition

    known = [acquisition.Known(space.canonical(r.values), loss(r, belief.sign)) for r in rows if is_ended(r)]
    running = [space.canonical(row.values) for row in rows if row.status == trials.RUNNING]
    made = [space.canonical(row.values) for row in rows]
    chosen: list[Proposal] = []
    for number, beta in enumerate(betas, len(rows)):
        seed = (search.seed, number)
        values = acquisition.propose(space, known, running, tried=made.__contains__, beta=beta, seed=seed)
        if values is None:
            break
        mean, sd = belief.predict(report_space.to_points(belief.axes, [values]))
        chosen.append(Proposal(space.active(values), space.cost(values), float(mean[0]), float(sd[0])))
        running.append(values)
        made.append(values)
    return chosen


def along(belief: Belief, axis: Axis, values: Mapping[str, Value], space: Space | None = None) -> Line:
    """Return the belief along one axis through a trial.

    Args:
      belief: the model.
      axis: one of its axes.
      values: of the trial; a hyper-parameter that only the change makes active stands at its default.
      space: brings those to their default that the change makes idle; None: they stay.
    """
    places = axis.levels or tuple(axis.from_unit(place) for place in np.linspace(0, 1, PLACES))
    changed = [{**values, axis.name: value} for value in places]
    points = report_space.to_points(belief.axes, [space.canonical(trial) for trial in changed] if space else changed)
    return Line(axis, places, *belief.predict(points))


def sign_of(search: Search) -> int:
    """Return 1 where a smaller score is better, -1 where a larger one is."""
    return 1 if search.direction == "min" else -1


def is_ended(row: TrialRow) -> bool:
    """Return whether a trial tells the model something: it finished, or it failed."""
    return is_finished(row) or row.status == trials.FAILED


def loss(row: TrialRow, sign: int) -> float:
    """Return the loss of a trial, NaN where it failed."""
    return math.nan if row.score is None else sign * row.score
