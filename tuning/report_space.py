"""The space of a search, as keras-tuner wrote it, and its trials as points of the unit cube.

keras-tuner's Bayesian search sees a trial as one number in [0, 1] for each hyper-parameter
that may vary: a range is mapped linearly or, with `sampling="log"`, by its logarithm; a
choice, or a range with steps, is the middle of its share of [0, 1]. A hyper-parameter
that a trial does not use (a third layer's width in a network of two) stands at its
default. The same is done here from `oracle.json` alone: keras-tuner imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from femur_tf import files
from femur_tf.errors import DataError

Value = bool | int | float | str
DECADE = 10.0
"""A range whose upper end is at least this many times its lower one spans decades."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One hyper-parameter that may vary.

    It has either `levels`, all its values in their order, or a continuous range from `low` to `high`.
    """

    name: str
    default: Value
    levels: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 1.0
    """Of a continuous range; of whole numbers without steps, the largest plus 1."""
    sampling: Literal["linear", "log", "reverse_log"] = "linear"
    whole: bool = False
    """A continuous range, rounded down to whole numbers."""
    conditions: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    """Used only in trials in which each named hyper-parameter has one of these values."""

    @property
    def categorical(self) -> bool:
        """Whether its values have no order: names, or yes and no."""
        return any(isinstance(level, bool | str) for level in self.levels)

    @property
    def logarithmic(self) -> bool:
        """Whether its values span decades, all of them above 0."""
        values = [level for level in self.levels if not isinstance(level, str)] or [self.low, self.high]
        return not self.categorical and min(values) > 0 and max(values) >= DECADE * min(values)

    def active(self, values: Mapping[str, Any]) -> bool:
        """Return whether a trial of these values uses this hyper-parameter."""
        return all(name in values and values[name] in wanted for name, wanted in self.conditions)

    def to_unit(self, value: Value) -> float:
        """Return the place of a value in [0, 1]; a number outside the range is brought to its end.

        Raises:
          DataError: a value that is none of the names the hyper-parameter may have.
        """
        if self.levels:
            return (self._nearest(value) + 0.5) / len(self.levels)
        number = float(value) + (0.5 if self.whole else 0.0)
        number = min(max(number, self.low), self.high)
        if self.sampling == "linear":
            return (number - self.low) / (self.high - self.low)
        if self.sampling == "log":
            return math.log(number / self.low) / math.log(self.high / self.low)
        return 1 - math.log((self.high + self.low - number) / self.low) / math.log(self.high / self.low)

    def from_unit(self, place: float) -> Value:
        """Return the value at a place in [0, 1]."""
        if self.levels:
            return self.levels[min(int(place * len(self.levels)), len(self.levels) - 1)]
        ratio = self.high / self.low if self.sampling != "linear" else 1.0
        number = {
            "linear": self.low + place * (self.high - self.low),
            "log": self.low * ratio**place,
            "reverse_log": self.high + self.low - self.low * ratio ** (1 - place),
        }[self.sampling]
        return min(int(number), int(self.high) - 1) if self.whole else number

    def _nearest(self, value: Value) -> int:
        """Return the index of a level, of the closest one where a number is none of them."""
        if value in self.levels:
            return self.levels.index(value)
        if self.categorical or isinstance(value, str):
            raise DataError(f"{self.name}: expected one of {self.levels}, the space of the search. Received: {value!r}")
        return int(np.argmin([abs(float(level) - float(value)) for level in self.levels]))


def read_space(folder: Path) -> tuple[Axis, ...]:
    """Return the hyper-parameters of the search in `folder` that may vary, in keras-tuner's order.

    Args:
      folder: of the search; without `oracle.json`, as before its first trial, there are none.

    Raises:
      DataError: `oracle.json` is not what keras-tuner writes.
    """
    path = folder / "oracle.json"
    if not path.exists():
        return ()
    state = files.read_json(path)
    try:
        axes = [_axis(entry["class_name"], entry["config"]) for entry in state["hyperparameters"]["space"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: expected the state of a search, as keras-tuner 1.4 writes it. Received: {error!r}"
        ) from error
    constants = {axis.name: axis.default for axis in axes if not _varies(axis)}
    return tuple(_without(axis, constants) for axis in axes if _varies(axis))


def read_settings(folder: Path) -> dict[str, Any]:
    """Return what `oracle.json` says of a Bayesian search's model, nothing for another search.

    Returns:
      `beta`, and `initial`: the finished trials with which the model begins to be asked.
    """
    path = folder / "oracle.json"
    state = files.read_json(path) if path.exists() else {}
    if "beta" not in state:
        return {}
    dimensions = len(state["hyperparameters"]["space"])
    initial = state.get("num_initial_points") or max(3 * dimensions, 3)  # keras-tuner's rule
    return {"beta": state["beta"], "initial": initial}


def to_point(axes: Sequence[Axis], values: Mapping[str, Any]) -> np.ndarray:
    """Return a trial as a point of the unit cube.

    Args:
      axes: of the search.
      values: of the trial, by name; those it does not use may be missing, and stand at their default.

    Returns:
      float64 (axes,), in [0, 1].
    """
    used = (values[axis.name] if is_used(axis, values) else axis.default for axis in axes)
    return np.array([axis.to_unit(value) for axis, value in zip(axes, used, strict=True)], float)


def to_points(axes: Sequence[Axis], trials: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """Return trials as points: float64 (trials, axes)."""
    points = [to_point(axes, values) for values in trials]
    return np.array(points, float).reshape(len(points), len(axes))


def from_point(axes: Sequence[Axis], point: np.ndarray) -> dict[str, Value]:
    """Return the values of the trial at a point of the unit cube, without those that it does not use.

    Args:
      axes: of the search; one that depends on another comes after it, as in keras-tuner's own order.
      point: (axes,), in [0, 1].
    """
    values: dict[str, Value] = {}
    for axis, place in zip(axes, point, strict=True):
        if axis.active(values):
            values[axis.name] = axis.from_unit(float(place))
    return values


def is_used(axis: Axis, values: Mapping[str, Any]) -> bool:
    """Return whether a trial used a hyper-parameter: it is active there, and known, since it may have come later."""
    return axis.active(values) and axis.name in values


def show(value: object) -> str:
    """Return a value as text: four figures, large numbers whole and by thousands, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def _varies(axis: Axis) -> bool:
    """Return whether a hyper-parameter has more than one value."""
    return len(axis.levels) != 1 and axis.low < axis.high


def _without(axis: Axis, constants: Mapping[str, Value]) -> Axis:
    """Return a hyper-parameter without the conditions that hyper-parameters of one value fulfil."""
    open_ = [(name, wanted) for name, wanted in axis.conditions if constants.get(name) not in wanted]
    return dataclasses.replace(axis, conditions=tuple(open_))


def _axis(kind: str, config: Mapping[str, Any]) -> Axis:
    """Return one entry of keras-tuner's space."""
    needs = [(c["config"]["name"], tuple(c["config"]["values"])) for c in config.get("conditions") or ()]
    name, conditions = str(config["name"]), tuple(needs)
    if kind == "Fixed":
        return Axis(name, config["value"], (config["value"],), conditions=conditions)
    levels = _levels(kind, config)
    default = config.get("default")
    if default is None:
        default = levels[0] if levels else config["min_value"]
    if levels:
        return Axis(name, default, levels, conditions=conditions)
    whole = kind == "Int"
    low, high = float(config["min_value"]), float(config["max_value"]) + whole
    return Axis(name, default, (), low, high, config["sampling"], whole, conditions)


def _levels(kind: str, config: Mapping[str, Any]) -> tuple[Value, ...]:
    """Return all values of an entry of keras-tuner's space, none of a continuous range.

    Raises:
      ValueError: an entry of a kind that keras-tuner 1.4 does not have.
    """
    if kind == "Choice":
        return tuple(config["values"])
    if kind == "Boolean":
        return (False, True)  # keras-tuner puts yes in the upper half
    if kind not in ("Int", "Float"):
        raise ValueError(f"class_name: expected Choice, Boolean, Fixed, Int or Float. Received: {kind}")
    low, high, step = config["min_value"], config["max_value"], config["step"]
    if step is None:
        return (low,) if low == high else ()
    if config["sampling"] == "linear":
        numbers = [low + index * step for index in range(int((high - low) // step) + 1)]
    else:
        count = int(math.log(high / low, step) + 1e-8) + 1
        powers = [low * math.pow(step, index) for index in range(count)]
        numbers = powers if config["sampling"] == "log" else [high + low - power for power in powers]
    return tuple(int(number) if kind == "Int" else float(number) for number in numbers)
