"""The search space: which hyper-parameters, over which ranges, and the network that each point is.

A point is a value for every parameter. A parameter that has no effect at a point (the
third layer's width in a network of two layers) stands at its default there, so that
points which are one network are one point. Every network of the space has late fusion
and leaves at least 1 x 1 of a patch, so it can be built and evaluated densely; a point
whose counted cost is over the limit is no point of the space, and is never tried.

    layers, filters_1 ...    blocks, and the filters a tower of each
    dense_layers, dense      hidden Dense layers, and the units of each
    centre                   window of the first maps that the first Dense layer sees
    planes_0mm ...           planes read at each scale of the records
    bone_share               share of femur in a batch: the sampling share

TensorFlow is not imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from femur_tf import config, cost
from femur_tf.errors import DataError

Value = str | int | float
Values = dict[str, Any]
NONE = "none"
"""The choice of planes that leaves a scale out."""
WIDTHS: tuple[tuple[int, ...], ...] = (
    (8, 12, 16, 24, 32, 48),
    (16, 24, 32, 48, 64, 96),
    (32, 48, 64, 96, 128, 192),
    (32, 48, 64, 96, 128, 192),
)
"""Filters of the first, second, ... block."""
CENTRES = (0, 3, 5)
"""Sides of the window of the first maps; 0: none."""
BONE_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6)
APART = 0.05
"""Of shares nearer than this to the records' own, the records' own is taken."""
DEFAULT = config.PRESETS["default"]
DIGITS = 6
"""Significant digits of a number that is drawn from a range."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One hyper-parameter: a choice, or a range of which logarithms are drawn."""

    name: str
    default: Value
    choices: tuple[Value, ...] = ()
    log_range: tuple[float, float] = (0.0, 0.0)
    """Ends of the range where there are no `choices`."""
    only: tuple[str, tuple[Value, ...]] | None = None
    """It has an effect only where the parameter of this name has one of these values."""

    def declare(self, parameters: Any) -> None:
        """Register with keras-tuner's `HyperParameters`."""
        if self.choices:
            parameters.Choice(self.name, list(self.choices), default=self.default)
        else:
            parameters.Float(self.name, *self.log_range, sampling="log", default=self.default)

    def at(self, place: float) -> Value:
        """Return the value at a place in [0, 1]."""
        if self.choices:
            return self.choices[min(int(place * len(self.choices)), len(self.choices) - 1)]
        low, high = self.log_range
        return float(np.exp(np.log(low) + place * np.log(high / low)))

    def place(self, value: Value) -> float:
        """Return the place of a value in [0, 1]: of a choice, the middle of its share."""
        if self.choices:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        low, high = self.log_range
        return float(np.log(float(value) / low) / np.log(high / low))


def _plane_choices(rule: config.PatchConfig) -> list[Parameter]:
    """Return a parameter for each scale of the records: which of its planes to read."""
    own = rule.planes or ("all",) * len(rule.scales_mm)
    preset = DEFAULT.patch(rule)
    wanted = dict(zip(preset.scales_mm, preset.planes, strict=True))
    found = []
    for scale, choice in zip(rule.scales_mm, own, strict=True):
        finest, whole = (dataclasses.replace(rule, scales_mm=(scale,), planes=(one,)) for one in ("finest", "all"))
        fewer = choice == "all" and finest.towers != whole.towers  # of an isotropic volume all planes are fine
        several = len(rule.scales_mm) > 1  # a network reads one scale at least
        choices = (*([NONE] if several else []), *(["finest"] if fewer else []), choice)
        default = wanted.get(scale, NONE)
        found.append(Parameter(f"planes_{scale:g}mm", default if default in choices else choice, choices))
    return found


def _layers(rule: config.PatchConfig) -> list[Parameter]:
    """Return the parameters of the blocks: as many as a patch allows, or one less."""
    most = 1
    while most < len(WIDTHS) and _fits(config.ModelConfig(filters=(1,) * (most + 1)), rule):
        most += 1
    hand_made = DEFAULT.model.filters
    layers = Parameter("layers", min(most, len(hand_made)), tuple(range(max(1, most - 1), most + 1)))
    widths = [
        Parameter(
            f"filters_{number}",
            hand_made[number - 1] if number <= len(hand_made) else WIDTHS[number - 1][0],
            WIDTHS[number - 1],
            only=("layers", tuple(range(number, most + 1))),
        )
        for number in range(1, most + 1)
    ]
    return [layers, *widths]


def _fits(network: config.ModelConfig, rule: config.PatchConfig) -> bool:
    """Return whether the blocks leave at least 1 x 1 of a patch, whose first maps hold the centre."""
    try:
        cost.map_sizes(network, rule.size)
        cost.centre_start(network, rule.size)
    except DataError:
        return False
    return True


def _centre(rule: config.PatchConfig) -> Parameter:
    """Return the parameter of the centre: none, and the windows that lie within the first maps of a patch."""
    choices = tuple(side for side in CENTRES if side == 0 or _fits(config.ModelConfig(filters=(1,), centre=side), rule))
    own = DEFAULT.model.centre
    return Parameter("centre", own if own in choices else choices[-1], choices)


def _training(data: config.DataConfig) -> list[Parameter]:
    """Return the parameters of regularisation and training."""
    train, network, own = DEFAULT.train, DEFAULT.model, round(data.sampling.share_bone, DIGITS)
    shares = tuple(sorted([own, *(share for share in BONE_SHARES if round(abs(share - own), DIGITS) >= APART)]))
    return [
        Parameter("dropout_conv", network.dropout_conv, (0.0, 0.05, 0.1, 0.2, 0.3)),
        Parameter("dropout_dense", network.dropout_dense, (0.0, 0.125, 0.25, 0.375, 0.5, 0.625)),
        Parameter("l2", network.l2, log_range=(1e-7, 1e-3)),
        Parameter("optimizer", train.optimizer, ("adam", "adamw", "sgd")),
        Parameter("learning_rate", train.learning_rate, log_range=(1e-4, 3e-2)),
        Parameter("one_minus_momentum", 0.1, log_range=(0.01, 0.3)),
        Parameter("batch", train.batch, (64, 128, 256, 512)),
        Parameter("bone_share", own, shares),
        Parameter("loss", train.loss, ("binary_crossentropy", "weighted", "focal")),
        Parameter("bone_weight", train.bone_weight, log_range=(0.3, 3.0), only=("loss", ("weighted",))),
        Parameter("focal_gamma", train.focal_gamma, (1.0, 1.5, 2.0, 3.0), only=("loss", ("focal",))),
    ]


def _rounded(value: Any) -> Any:
    """Return a value with as many digits as one would write."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


class Space:
    """The search space over the records of a study."""

    def __init__(self, data: config.DataConfig, max_cost: float) -> None:
        """Make the space.

        Args:
          data: what the records were made with.
          max_cost: multiply-adds a voxel that a network may have.

        Raises:
          DataError: not even the smallest network costs as little.
        """
        self.data, self.max_cost = data, max_cost
        dense = DEFAULT.model.dense
        self.parameters: tuple[Parameter, ...] = (
            *_layers(data.patch),
            Parameter("dense_layers", len(dense), (1, 2)),
            Parameter("dense", dense[0], (16, 24, 32, 48, 64, 96, 128)),
            _centre(data.patch),
            *_plane_choices(data.patch),
            *_training(data),
        )
        least = min(self.cost(values) for values in self._smallest())
        if least > max_cost:
            raise DataError(
                f"--max-cost: expected at least {least:.0f} multiply-adds a voxel, the smallest network of the "
                f"space. Received: {max_cost:g}."
            )

    def _smallest(self) -> list[Values]:
        """Return the points of least widths, for each number of layers and choice of planes."""
        by_name = {p.name: p.choices for p in self.parameters}
        names = ["layers", *(p.name for p in self.parameters if p.name.startswith("planes_"))]
        least = {
            name: choices[0] for name, choices in by_name.items() if name.startswith(("filters_", "dense", "centre"))
        }
        points = itertools.product(*(by_name[name] for name in names))
        found = [self.canonical({**least, **dict(zip(names, point, strict=True))}) for point in points]
        return [values for values in found if self.scales(values)]

    @property
    def digest(self) -> str:
        """A digest of all parameters: a point of one space says nothing in another."""
        return hashlib.sha256(repr(self.parameters).encode()).hexdigest()[:16]

    def declare(self, parameters: Any) -> None:
        """Register all parameters with keras-tuner's `HyperParameters`."""
        for parameter in self.parameters:
            parameter.declare(parameters)

    def default(self) -> Values:
        """Return the point of the hand-made `default`, as near as the records allow."""
        return self.canonical({})

    def active(self, values: Mapping[str, Any]) -> Values:
        """Return the parameters that have an effect at a point."""
        return {
            p.name: _rounded(values[p.name])
            for p in self.parameters
            if p.only is None or values[p.only[0]] in p.only[1]
        }

    def canonical(self, values: Mapping[str, Any]) -> Values:
        """Return a point with parameters that are missing, or have no effect, at their defaults."""
        defaults = {p.name: p.default for p in self.parameters}
        known = {name: value for name, value in values.items() if name in defaults}
        return {**defaults, **self.active({**defaults, **known})}

    def draw(self, rng: np.random.Generator) -> Values:
        """Return a point, uniform over places of all parameters; it may be none of the space (`fault`)."""
        places = rng.random(len(self.parameters))
        return self.canonical({p.name: p.at(place) for p, place in zip(self.parameters, places, strict=True)})

    def scales(self, values: Mapping[str, Any]) -> list[tuple[float, config.PlaneChoice]]:
        """Return the scales in mm that a point reads, each with its planes."""
        choices = [(scale, values[f"planes_{scale:g}mm"]) for scale in self.data.patch.scales_mm]
        return [(scale, choice) for scale, choice in choices if choice != NONE]

    def fault(self, values: Mapping[str, Any]) -> str | None:
        """Return why a point is none of the space, or None."""
        if not self.scales(values):
            return "it reads no scale"
        found = self.cost(values)
        if found > self.max_cost:
            return f"it costs {found:.0f} multiply-adds a voxel; --max-cost is {self.max_cost:g}"
        return None

    def cost(self, values: Mapping[str, Any]) -> float:
        """Return the multiply-adds a voxel of a point that reads a scale."""
        return cost.macs_per_voxel(_network(values), self.rule(values))

    def rule(self, values: Mapping[str, Any]) -> config.PatchConfig:
        """Return the patch rule of a point that reads a scale."""
        scales, planes = zip(*self.scales(values), strict=True)
        return dataclasses.replace(self.data.patch, scales_mm=scales, planes=planes)

    def settings(self, values: Mapping[str, Any]) -> config.RunConfig:
        """Return what a run of a point is made with; time, examples and seed are those of the `default`."""
        share = values["bone_share"]
        train = dataclasses.replace(
            DEFAULT.train,
            optimizer=values["optimizer"],
            learning_rate=values["learning_rate"],
            momentum=_rounded(1 - values["one_minus_momentum"]),
            batch=values["batch"],
            bone_share=None if share == round(self.data.sampling.share_bone, DIGITS) else share,
            loss=values["loss"],
            bone_weight=values["bone_weight"],
            focal_gamma=values["focal_gamma"],
        )
        return config.RunConfig(dataclasses.replace(self.data, patch=self.rule(values)), _network(values), train)


def _network(values: Mapping[str, Any]) -> config.ModelConfig:
    """Return the network of a point."""
    return dataclasses.replace(
        DEFAULT.model,
        filters=tuple(values[f"filters_{number}"] for number in range(1, values["layers"] + 1)),
        dense=(values["dense"],) * values["dense_layers"],
        centre=values["centre"],
        dropout_conv=values["dropout_conv"],
        dropout_dense=values["dropout_dense"],
        l2=values["l2"],
    )
