"""The pictures of a search's page, as PNG. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from femur_tf.pictures import png
from femur_tf.reliability_picture import COLOURS
from tuning.importance import Importance
from tuning.report_belief import Line
from tuning.report_curves import Group, score_limits
from tuning.report_space import Axis, Value, is_used, show
from tuning.trials import TrialRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
GREY, RED, BLUE = "#9aa4b2", COLOURS[0], COLOURS[1]
LABEL_LEVELS = 8
"""A hyper-parameter of at most so many values has a tick at each."""
CHARACTERS = 20
"""Names longer than this together are broken into lines."""
WIDE = 1000.0
"""A range whose upper end is over this many times its lower one has room for a tick a decade."""


def progress_png(groups: Sequence[Group], objective: str, direction: str) -> bytes:
    """Draw the best score so far, against trials and against time.

    Args:
      groups: one line for each; a band from the worst to the best search where it holds several.
      objective: what the score is.
      direction: `min` or `max`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, item in enumerate(groups):
        colour, dashes = COLOURS[index % len(COLOURS)], ("-", "--", ":")[index // len(COLOURS) % 3]
        for curve in item.curves:
            _steps(left, np.arange(1, len(curve.best) + 1), curve.best, colour)
            _steps(right, curve.minutes, curve.best, colour)
        trials = np.arange(1, item.trials + 1)
        _band(left, trials, item.best, (colour, dashes, item.label))
        minutes = np.linspace(0, item.minutes, 200)
        _band(right, minutes, item.at_minutes(minutes), (colour, dashes, item.label))
    _mark_scores((left, right), groups, direction)
    left.set(xlabel="trials ended", ylabel=f"best {objective} so far", xlim=(0.5, None))
    right.set(xlabel="time of all trials, wall minutes", xlim=(0, None))
    left.legend(loc="upper right" if direction == "min" else "lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return png(figure)


def importance_png(importance: Importance, names: Sequence[str], objective: str) -> bytes:
    """Draw importances as bars, the largest on top, with their standard deviation over splits."""
    from matplotlib.figure import Figure

    order = np.argsort(importance.mean)
    figure = Figure(figsize=(8, 0.9 + 0.34 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(np.arange(len(order)), importance.mean[order], color=BLUE, alpha=0.75)
    axes.errorbar(importance.mean[order], np.arange(len(order)), xerr=importance.sd[order], fmt="none", color="#1c2430")
    axes.axvline(0, color=GREY)
    axes.set_yticks(np.arange(len(order)), [names[index] for index in order])
    axes.set(xlabel=f"error added when its values are exchanged, {objective}")
    axes.grid(axis="x", alpha=0.3)
    return png(figure)


def panels_png(
    axes: Sequence[Axis], rows: Sequence[TrialRow], best: TrialRow, *, objective: str, direction: str
) -> bytes:
    """Draw the score of each finished trial against each hyper-parameter that some used, and against its cost.

    Args:
      axes: the hyper-parameters.
      rows: finished trials, at least one.
      best: the best of them.
      objective: what the score is.
      direction: `min` or `max`.
    """
    costly = [row for row in rows if row.cost is not None]
    limits = score_limits(_scores(rows), direction)
    axes = [axis for axis in axes if any(is_used(axis, row.values) for row in rows)]

    def panel(index: int, place: Axes) -> None:
        """Draw the scores along one hyper-parameter, or along the cost."""
        if index == len(axes):
            costs = np.array([row.cost for row in costly], float)
            _dots(place, costs, costly, best, limits)
            place.set(xlabel="cost, multiply-adds a voxel")
            place.ticklabel_format(axis="x", style="sci", scilimits=(3, 5))
            return
        axis = axes[index]
        used = [row for row in rows if is_used(axis, row.values)]
        _dots(place, _positions(axis, used), used, best, limits)
        _label(place, axis)

    return _grid(len(axes) + bool(costly), panel, objective)


def belief_png(lines: Sequence[Line], best: TrialRow, *, objective: str) -> bytes:
    """Draw the belief along each hyper-parameter through the best trial, with bands of 1 and 2 standard deviations.

    Args:
      lines: one for each panel.
      best: the trial they pass through.
      objective: what the score is.
    """

    def panel(index: int, place: Axes) -> None:
        """Draw the belief along one hyper-parameter."""
        line = lines[index]
        x = np.array([_position(line.axis, value) for value in line.values])
        if line.axis.levels:
            place.errorbar(x, line.mean, yerr=2 * line.sd, fmt="none", color=BLUE, alpha=0.35, linewidth=5)
            place.errorbar(x, line.mean, yerr=line.sd, fmt="o", color=BLUE, markersize=4)
        else:
            for width, alpha in ((2, 0.15), (1, 0.25)):
                low, high = line.mean - width * line.sd, line.mean + width * line.sd
                place.fill_between(x, low, high, color=BLUE, alpha=alpha, linewidth=0)
            place.plot(x, line.mean, color=BLUE)
        place.plot(_positions(line.axis, [best]), _scores([best]), "*", color=RED, markersize=13)
        _label(place, line.axis)

    return _grid(len(lines), panel, objective)


def _scores(rows: Sequence[TrialRow]) -> np.ndarray:
    """Return the scores of finished trials."""
    return np.array([row.score for row in rows], float)


def _steps(axes: Axes, x: np.ndarray, best: np.ndarray, colour: str) -> None:
    """Draw the best score so far of one search, thinly."""
    axes.step(x, best, where="post", color=colour, alpha=0.45, linewidth=0.9)


def _band(axes: Axes, x: np.ndarray, best: np.ndarray, style: tuple[str, str, str]) -> None:
    """Draw the mean of searches from where all have a score, and a band over them where they are several.

    Args:
      axes: to draw on.
      x: (places,).
      best: (searches, places), NaN where a search has no score yet.
      style: colour, line style, label.
    """
    colour, dashes, label = style
    known = np.isfinite(best).all(axis=0)
    x, best = x[known], best[:, known]
    axes.step(x, best.mean(axis=0), dashes, where="post", color=colour, linewidth=2.2, label=label)
    if len(best) > 1:
        axes.fill_between(x, best.min(axis=0), best.max(axis=0), step="post", color=colour, alpha=0.15, linewidth=0)


def _mark_scores(places: Sequence[Axes], groups: Sequence[Group], direction: str) -> None:
    """Set the range of scores, and mark each trial's score where only one search is shown.

    Args:
      places: the axes against trials, and those against time.
      groups: as they are drawn.
      direction: `min` or `max`.
    """
    curves = [curve for item in groups for curve in item.curves]
    scores = np.concatenate([curve.scores for curve in curves])
    known = scores[np.isfinite(scores)]
    if not known.size:
        return
    limits = score_limits(known, direction)
    if len(curves) == 1:
        for axes, x in zip(places, (np.arange(1, len(scores) + 1), curves[0].minutes), strict=True):
            axes.plot(x, _within(scores, limits), "o", color=GREY, markersize=4, label="each trial", zorder=0)
    for axes in places:
        axes.set(ylim=limits)


def _within(scores: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return scores, those beyond the limits just inside them, where a whole mark can be seen."""
    margin = 0.02 * (limits[1] - limits[0])
    return scores.clip(limits[0] + margin, limits[1] - margin)


def _grid(count: int, panel: Callable[[int, Axes], None], objective: str) -> bytes:
    """Draw panels, `COLUMNS` in a row, on one scale of scores."""
    from matplotlib.figure import Figure

    rows = math.ceil(count / COLUMNS)
    figure = Figure(figsize=(11, 2.9 * rows), layout="constrained")
    first: Axes | None = None
    for index in range(count):
        place = figure.add_subplot(rows, COLUMNS, index + 1, sharey=first)
        first = first or place
        panel(index, place)
        place.grid(alpha=0.3)
        if index % COLUMNS == 0:
            place.set(ylabel=objective)
        else:
            place.tick_params(labelleft=False)
    return png(figure)


def _dots(axes: Axes, x: np.ndarray, rows: Sequence[TrialRow], best: TrialRow, limits: tuple[float, float]) -> None:
    """Draw trials as dots, early ones pale, the best one as a star; those beyond the limits are triangles there."""
    scores = _scores(rows)
    order = np.array([row.number for row in rows], float)
    latest = float(order.max(initial=1))
    shades: dict[str, Any] = {"cmap": "Blues", "vmin": -latest / 2, "vmax": latest}
    outline: dict[str, Any] = {"edgecolors": "#4a5566", "linewidths": 0.4}
    shown = _within(scores, limits)
    high, low = scores > limits[1], scores < limits[0]
    for chosen, marker in ((~high & ~low, "o"), (high, "^"), (low, "v")):
        axes.scatter(x[chosen], shown[chosen], s=24, c=order[chosen], marker=marker, **shades, **outline)
    star = np.array([row.trial_id == best.trial_id for row in rows], bool)
    axes.plot(x[star], scores[star], "*", color=RED, markersize=13)
    axes.set(ylim=limits)


def _position(axis: Axis, value: Value) -> float:
    """Return where a value stands on the x axis: itself, or the number of a name."""
    return float(axis.levels.index(value)) if axis.categorical else float(value)


def _positions(axis: Axis, rows: Sequence[TrialRow]) -> np.ndarray:
    """Return where trials stand on the x axis; those of one name stand side by side, in their order."""
    places = np.array([_position(axis, row.values[axis.name]) for row in rows], float)
    if axis.categorical:
        for level in np.unique(places):
            same = places == level
            places[same] += np.linspace(-0.3, 0.3, same.sum()) if same.sum() > 1 else 0
    return places


def _label(axes: Axes, axis: Axis) -> None:
    """Name the x axis; logarithmic where values span decades, names or few values as ticks."""
    axes.set(xlabel=axis.name)
    if axis.categorical:
        names = [show(level) for level in axis.levels]
        if sum(map(len, names)) > CHARACTERS:
            names = [name.replace("_", "_\n") for name in names]
        axes.set_xticks(range(len(names)), names)
        axes.set(xlim=(-0.5, len(names) - 0.5))
        return
    if axis.logarithmic:
        _logarithmic(axes, wide=not axis.levels and axis.high > WIDE * axis.low)
    if 0 < len(axis.levels) <= LABEL_LEVELS:
        axes.set_xticks([float(level) for level in axis.levels], [show(level) for level in axis.levels])


def _logarithmic(axes: Axes, *, wide: bool) -> None:
    """Make the x axis logarithmic, with ticks at 1 and 3 of each decade, or at each decade where it is wide."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set(xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 3.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter("")
