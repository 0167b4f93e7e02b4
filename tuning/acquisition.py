"""Where to look next: the point that a Gaussian process holds for most promising, among points of the space.

keras-tuner maximises its upper confidence bound over the unit cube and rounds the result;
what it finds may cost too much, or be a point that was tried (keras-tuner#608). Here the
bound is taken at many points drawn from the space itself, at random and around the best
trials, so that what is proposed is new, can be built and costs no more than allowed. The
process learns from points of the space alone: none is moved to another's place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

from tuning.search_space import Space, Values

CANDIDATES = 1500
"""Points drawn over the whole space; those that cost too much fall out."""
AROUND = 100
"""Points drawn around each of the best trials."""
BEST = 5
SPREAD = 0.2
"""Standard deviation of a move around a good trial, of the whole range."""
MOVED = 2
"""Parameters moved around a good trial, on average."""
WORST = 3.0
"""A score is brought to at most so many times the distance between median and best from the median: a training that
diverged says "bad", not how bad. Where most trials share the best score, the next one stands for the median."""
RESTARTS = 5
LENGTHS = (1.0, 3.0)
"""Of the process: how far, in ranges of a parameter, one trial says something of another."""


class Known(NamedTuple):
    """A finished trial."""

    values: Values
    score: float
    """Smaller is better; NaN: the trial failed, which counts as the worst."""


def process(seed: int) -> GaussianProcessRegressor:
    """Return keras-tuner's kernel with bounds, and with a noise of its own: a short training is a noisy measurement.

    Two points of twenty parameters drawn at random are 1.8 apart. With a length well below that, a dozen trials teach
    nothing of the rest of the space; well above it, they seem to have taught all, and the best one is repeated.
    """
    kernel = kernels.Matern(length_scale=1.5, length_scale_bounds=LENGTHS, nu=2.5)
    noise = kernels.WhiteKernel(0.1, noise_level_bounds=(1e-3, 1.0))
    return GaussianProcessRegressor(kernel + noise, n_restarts_optimizer=RESTARTS, random_state=seed)


def places(space: Space, points: Sequence[Values]) -> np.ndarray:
    """Return points as float64 (points, parameters) places in [0, 1]."""
    rows = [[p.place(values[p.name]) for p in space.parameters] for values in points]
    return np.array(rows, np.float64).reshape(len(points), len(space.parameters))


def bounded(scores: np.ndarray) -> np.ndarray:
    """Return scores without outliers on the bad side.

    Args:
      scores: float64 (trials,), smaller is better, one finite at least; NaN: the trial failed, and is the worst.
    """
    finite = scores[np.isfinite(scores)]
    best, usual = finite.min(), np.median(finite)
    if usual == best:
        usual = min(finite[finite > best], default=best)
    known = np.where(np.isfinite(scores), scores, finite.max())
    limited: np.ndarray = np.minimum(known, usual + WORST * (usual - best))
    return limited


def _targets(known: Sequence[Known]) -> np.ndarray:
    """Return the bounded scores, float64, of mean 0 and deviation 1."""
    scores = bounded(np.array([one.score for one in known], np.float64))
    deviation = scores.std()
    centred: np.ndarray = scores - scores.mean()
    return centred / deviation if deviation > 0 else centred


def fit(model: GaussianProcessRegressor, x: np.ndarray, y: np.ndarray) -> GaussianProcessRegressor:
    """Fit; a length or a noise at its bound is an answer, not a fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


def predict(model: GaussianProcessRegressor, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the function itself, without the noise of measuring it."""
    mean, deviation = model.predict(x, return_std=True)
    noise = model.kernel_.k2.noise_level
    return mean, np.sqrt(np.maximum(deviation**2 - noise, 0.0))


def _around(space: Space, values: Values, rng: np.random.Generator) -> Values:
    """Return a point near another: some of its parameters moved."""
    moved = rng.random(len(space.parameters)) < MOVED / len(space.parameters)
    steps = rng.normal(0.0, SPREAD, len(space.parameters))
    near = np.clip(places(space, [values])[0] + steps, 0.0, 1.0)
    changes = {p.name: p.at(near[i]) for i, p in enumerate(space.parameters) if moved[i]}
    return space.canonical({**values, **changes})


def _candidates(
    space: Space, known: Sequence[Known], tried: Callable[[Values], bool], rng: np.random.Generator
) -> list[Values]:
    """Return points of the space that were not tried."""
    scored = sorted((one for one in known if np.isfinite(one.score)), key=lambda one: one.score)
    drawn = [space.draw(rng) for _ in range(CANDIDATES)]
    drawn += [_around(space, one.values, rng) for one in scored[:BEST] for _ in range(AROUND)]
    return [values for values in drawn if space.fault(values) is None and not tried(values)]


def propose(
    space: Space,
    known: Sequence[Known],
    running: Sequence[Values],
    *,
    tried: Callable[[Values], bool],
    beta: float,
    seed: Sequence[int],
) -> Values | None:
    """Return the point with the lowest lower confidence bound of the score.

    Args:
      space: the search space.
      known: finished trials, one with a score at least.
      running: points under way; each is taken to score a standard deviation worse than expected, so that workers
        are sent to different places.
      tried: whether a point was tried.
      beta: how much an uncertain point is worth trying: standard deviations taken off its expected score.
      seed: of all draws.

    Returns:
      A point that was not tried; None where none was drawn.
    """
    rng = np.random.default_rng(list(seed))
    candidates = _candidates(space, known, tried, rng)
    if not candidates:
        return None
    x, y = places(space, [one.values for one in known]), _targets(known)
    model = fit(process(int(rng.integers(2**31))), x, y)
    for values in running:
        place = places(space, [values])
        mean, deviation = predict(model, place)
        x, y = np.concatenate([x, place]), np.concatenate([y, mean + deviation])
        model = GaussianProcessRegressor(model.kernel_, optimizer=None).fit(x, y)
    mean, deviation = predict(model, places(space, candidates))
    return candidates[int(np.argmin(mean - beta * deviation))]
