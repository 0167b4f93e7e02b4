"""The quality flag: does a segmented scan look like those that the model was made with?

A cohort holds, for each measure of `femur_tf.measures`, the limits that its own cases give, with a margin. A measure
beyond its limits is a reason to look twice, and a case with a reason is flagged. No reference mask is needed.

Grey values are compared by quantiles: the mean distance between the quantiles of two samples is their 1-Wasserstein
distance. A case is as far from a cohort as from the nearest of its cases.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from femur_tf import command
from femur_tf.errors import DataError
from femur_tf.measures import AXES, BORDERS, Profile, profile
from femur_tf.volume import Volume

FEW = 25
TAIL = 0.038
"""Of so many cases the least and the most are usual. Of more, ever more of either end is left out, up to this share:
the extremes of a large cohort are its failures (docs/quality.md, large cohorts)."""
MARGIN = 1.0
"""Limits lie this many spreads (highest less lowest) beyond the cases of the cohort. A new case of the same kind is
beyond the extremes of eleven cases, in a measure that is normally distributed, once in six, and beyond such limits
once in eight hundred."""
ENOUGH = 10
"""Of fewer cases the extremes are too narrow: the margin grows as the number falls below this."""
TOLERANCE = 1e-9

Side = Literal["both", "low", "high", "none"]


@dataclasses.dataclass(frozen=True)
class Measure:
    """How a measure is judged and shown."""

    text: str
    """What it is, in a sentence."""
    unusual: Side
    """On which side of its limits it is a reason."""
    unit: str = ""
    scale: float = 1.0
    """What it is multiplied by to have `unit`."""
    least_spread: float = 0.05
    """A spread counts at least this share of the cohort's median: a small cohort hides its own."""
    least: float = 0.0
    """And at least this much, for a measure whose median may be 0."""
    enough: float = 0.0
    """Share of the cohort's lowest value that is enough, and the lower limit, in place of one by spreads; 0: none."""


MEASURES: dict[str, Measure] = {
    "volume_mm3": Measure("volume", "both", "cm3", 1e-3),
    "parts": Measure("number of parts", "both", least_spread=0),
    "smaller_side": Measure("smaller femur as a share of the larger", "low"),
    "left_half": Measure("share that lies in the left half of the scan", "both", least_spread=0, least=0.2),
    "beyond_mm": Measure("distance from the mask to the end of the scan, across the slices", "low", "mm", enough=0.5),
    **{f"extent_{axis}_mm": Measure(f"extent towards {axis}", "both", "mm") for axis in AXES},
    **{f"balance_{axis}": Measure(f"centre along its extent towards {axis}", "both") for axis in AXES[1:]},
    **{
        f"cut_{border}_mm2": Measure(
            f"area cut by the {border} border", "none" if border == "inferior" else "high", "cm2", 1e-2, 0
        )
        for pair in BORDERS
        for border in pair
    },
    "certainty": Measure("mean probability in the mask", "low"),
    # A network is surer of the cases it was trained on than of others.
    "boundary_bits": Measure("mean entropy at the boundary", "high", "bits", least_spread=0.2),
    "cutoff_dice": Measure("Dice between masks of a lower and a higher cut-off", "low"),
    "steps_dice": Measure("Dice between the masks before and after the steps", "low"),
    "grey_distance": Measure("distance of the grey values of the body", "high", "grey values"),
    "bone_distance": Measure("distance of the grey values in the mask", "high", "grey values"),
    "texture_distance": Measure("distance of the differences between neighbours", "high", "grey values"),
}
"""Every measure, in the order in which reasons are given. The shaft leaves the field of view below: no reason."""
DISTANCES = {"grey": "grey_distance", "bone": "bone_distance", "texture": "texture_distance"}
"""The sample of grey values that each distance compares."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is usual, both ends included."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Cohort:
    """What `cohort.json` holds: the limits that the cases of a cohort give, and their grey values."""

    cases: int
    limits: dict[str, Limits]
    quantiles: dict[str, tuple[tuple[float, ...], ...]]
    """For each sample of grey values, the quantiles of each case."""
    format_version: int = 1


@dataclasses.dataclass(frozen=True)
class Quality:
    """What is known of a mask without a reference."""

    measures: dict[str, float]
    reasons: tuple[str, ...]
    """Why to look twice; none: nothing unusual."""

    @property
    def flagged(self) -> bool:
        """Whether there is a reason."""
        return bool(self.reasons)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; what is not defined is None."""
        values = {name: value if math.isfinite(value) else None for name, value in self.measures.items()}
        return {"flagged": self.flagged, "reasons": list(self.reasons), "measures": values}


def build(profiles: Sequence[Profile]) -> Cohort:
    """Return the cohort of some cases whose masks are good.

    A distance has no lower limit but 0; its upper one comes from the distance of each case to the nearest other one.

    Args:
      profiles: of the cases; cases that the network was not trained on are worth more, as it is surer of the others.

    Raises:
      ValueError: fewer than two cases.
    """
    if len(profiles) < 2:
        raise ValueError(f"expected two cases or more. Received: {len(profiles)}")
    quantiles = {name: tuple(p.quantiles[name] for p in profiles if p.quantiles[name]) for name in DISTANCES}
    values = {name: [p.measures[name] for p in profiles] for name in MEASURES if name in profiles[0].measures}
    for sample, name in DISTANCES.items():
        known = quantiles[sample]
        values[name] = [_nearest(one, known[:i] + known[i + 1 :]) for i, one in enumerate(known)]
    limits = {name: _limits(np.array(found), MEASURES[name]) for name, found in values.items()}
    return Cohort(len(profiles), {name: found for name, found in limits.items() if found}, quantiles)


def judge(found: Profile, cohort: Cohort | None) -> Quality:
    """Compare a case with a cohort.

    Args:
      found: the case.
      cohort: None: distances are not defined, and an empty mask alone is a reason.
    """
    measures = dict(found.measures)
    for sample, name in DISTANCES.items():
        measures[name] = _nearest(found.quantiles[sample], cohort.quantiles[sample]) if cohort else math.nan
    if measures["parts"] == 0:
        return Quality(measures, ("no femur was found",))
    reasons = (_reason(name, measures[name], cohort.limits.get(name)) for name in MEASURES) if cohort else ()
    return Quality(measures, tuple(reason for reason in reasons if reason))


def assess(
    probability: Volume, mask: np.ndarray, working: Volume, cutoff: float, cohort: Cohort | None = None
) -> Quality:
    """Measure one case and compare it with a cohort; arguments as for `profile` and `judge`."""
    return judge(profile(probability, mask, working, cutoff), cohort)


def _nearest(one: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """Return the least distance of a sample of grey values to others; NaN where there is nothing to compare."""
    if not len(one) or not len(others):
        return math.nan
    return float(np.abs(np.array(others) - np.array(one)).mean(axis=1).min())


def _limits(values: np.ndarray, measure: Measure) -> Limits | None:
    """Return the limits that the cases of a cohort give for a measure; None where it is defined in no case."""
    known = values[np.isfinite(values)]
    if not known.size:
        return None
    tail = TAIL * max(0.0, 1 - (FEW - 1) / max(1, known.size - 1))
    least, most = (float(one) for one in np.quantile(known, (tail, 1 - tail)))
    spread = max(most - least, measure.least_spread * float(np.median(known)), measure.least)
    margin = MARGIN * max(1.0, ENOUGH / known.size) * spread
    low = measure.enough * least if measure.enough else least - margin
    return Limits(max(0.0, low), most + margin)


def _reason(name: str, value: float, limits: Limits | None) -> str | None:
    """Return why a measure is unusual, or None."""
    measure = MEASURES[name]
    if limits is None or not math.isfinite(value) or measure.unusual == "none":
        return None
    low, high = value < limits.low - TOLERANCE, value > limits.high + TOLERANCE
    if not (low and measure.unusual != "high") and not (high and measure.unusual != "low"):
        return None
    bound = f"at least {limits.low * measure.scale:.3g}" if low else f"at most {limits.high * measure.scale:.3g}"
    return f"{measure.text}: {value * measure.scale:.3g} {measure.unit}".rstrip() + f", usual is {bound}"


def require_cohort(place: str, cohort: Cohort | None, *, strict: bool = False) -> None:
    """Warn where a model does not say what is usual, so that only empty masks are flagged.

    Args:
      place: the model.
      cohort: what is usual, if anything.
      strict: whether a flag decides the exit status: no flag would then look like a mask that is well.

    Raises:
      DataError: there is none, and `strict`.
    """
    if cohort is not None:
        return
    text = (
        f"{place}: expected a model that knows what is usual among its cases (cohort.json). Received: one without, "
        "which finds nothing unusual but empty masks. Evaluate its run to the end, and export it again."
    )
    if strict:
        raise DataError(f"--strict: {text}")
    command.warn(text)
