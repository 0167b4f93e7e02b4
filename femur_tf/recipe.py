"""Choosing the post-processing recipe on validation cases.

The cut-off comes from the ROC over all voxels of the validation cases, and cut-offs
near it are tried with the usual steps in place. Then each step is tried with other
values, one step at a time, and a change is kept only where the mean Dice grows. The
cut-off comes first because it can mend what a step takes from the surface; the step
would else be left out, and what it guards against may be in no validation case.
The map and the reference are those of the image's own grid.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from femur_tf import command, metrics, postprocess
from femur_tf.config import RecipeConfig, Step

Method = Literal["dice", "youden", "specificity"]

GAIN = 1e-3
"""Smallest gain of mean Dice for which the cut-off is changed: less is chance, with a handful of cases."""

STEP_GAIN = 5e-3
"""Smallest gain for which a step's value is changed: what it guards against may be in none of the cases
(docs/experiments.md)."""

CANDIDATES: dict[str, tuple[float, ...]] = {
    "opening": (0.0, 1.0, 2.0, 3.0, 4.0),
    "largest": (0, 1, 2),
    "small_clusters": (0.0,),
    "fill_holes": (0.0, 1e5),
    "fill_planes": (0.0, 300.0),
}
"""Values tried for each step; 0 leaves the step out. mm, number, mm3, mm2."""

MOST_FEMURS = 2
SMALL = 0.25
"""Clusters below this share of the smallest part of any reference are strays; a part that the scan cuts is larger."""

CUTOFF_STEPS = (-0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15)


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A validation case: what was predicted, and what is true."""

    probability: np.ndarray
    """float32 (X, Y, Z), on the image's own grid."""
    reference: np.ndarray
    """bool, the same shape."""
    spacing_mm: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The recipe chosen, and what it gives on the validation cases."""

    recipe: RecipeConfig
    auc: float
    raw_dice: float
    dice: float


def count_voxels(samples: Sequence[Sample], counts: metrics.VoxelCounts | None = None) -> metrics.VoxelCounts:
    """Count the voxels of all samples by probability and class.

    Args:
      samples: the cases.
      counts: to add to; by default new ones.
    """
    counts = metrics.VoxelCounts() if counts is None else counts
    for sample in samples:
        counts.add(sample.probability.astype(np.float16), sample.reference)
    return counts


def first_cutoff(counts: metrics.VoxelCounts, method: Method, specificity: float) -> float:
    """Return the cut-off that the ROC gives.

    Voxels are counted by their probability in float16. The cut-off lies half a step below the one that was found there,
    so that it parts probabilities in float32, which a resampled map has, as they were counted.
    """
    if method == "youden":
        found = metrics.youden(counts)
    elif method == "specificity":
        found = metrics.at_specificity(counts, specificity)
    else:
        found = metrics.best_dice(counts)
    below = np.nextafter(np.float16(found), np.float16(0))
    return (found + float(below)) / 2


def mean_dice(samples: Sequence[Sample], recipe: RecipeConfig) -> float:
    """Return the mean Dice of a recipe over the cases where it is defined, not where mask and reference are empty."""
    scores = [
        metrics.dice(postprocess.apply(s.probability, recipe, spacing_mm=s.spacing_mm), s.reference) for s in samples
    ]
    defined = [score for score in scores if not math.isnan(score)]
    return float(np.mean(defined)) if defined else math.nan


def prior(samples: Sequence[Sample]) -> RecipeConfig:
    """Return where the search starts: as many parts as the references have, at most, without cavities.

    Of a structure of more than two parts, such as vertebrae, a scan to come may show more than these have: what is
    left out there is what is far smaller than their smallest part.

    Args:
      samples: the cases.
    """
    found = [(postprocess.part_voxels(s.reference, share=postprocess.PART_SHARE), s.spacing_mm) for s in samples]
    parts = max(voxels.size for voxels, _ in found)
    kept = Step("largest", parts)
    if parts > MOST_FEMURS:
        smallest_mm3 = min(voxels.min() * math.prod(spacing_mm) for voxels, spacing_mm in found if voxels.size)
        kept = Step("small_clusters", SMALL * float(smallest_mm3))
    return RecipeConfig(steps=(Step("opening", 1.0), kept, Step("fill_holes", 1e5), Step("fill_planes", 0.0)))


def _with_cutoff(recipe: RecipeConfig, cutoff: float) -> RecipeConfig:
    """Return the recipe with another cut-off, within [0.01, 0.99]."""
    return dataclasses.replace(recipe, cutoff=float(np.clip(cutoff, 0.01, 0.99)))


def _with_step(recipe: RecipeConfig, index: int, value: float) -> RecipeConfig:
    """Return the recipe with another value for one step."""
    steps = list(recipe.steps)
    steps[index] = Step(steps[index].name, value)
    return dataclasses.replace(recipe, steps=tuple(steps))


def _without_idle_steps(recipe: RecipeConfig) -> RecipeConfig:
    """Return the recipe without the steps of value 0, which stand for "left out"."""
    return dataclasses.replace(recipe, steps=tuple(step for step in recipe.steps if step.value > 0))


def choose(
    samples: Sequence[Sample],
    *,
    method: Method = "dice",
    specificity: float = 0.99,
    gain: float = GAIN,
    step_gain: float = STEP_GAIN,
) -> Choice:
    """Choose a recipe on validation cases.

    Args:
      samples: the cases.
      method: how the cut-off is taken from the ROC: largest Dice, Youden's index, or a specificity. Only with
        "dice" are cut-offs near it tried with the steps in place.
      specificity: least specificity, for that method.
      gain: of mean Dice, above which the cut-off is changed.
      step_gain: above which a step's value is changed.

    Raises:
      ValueError: no sample holds bone, or the specificity cannot be reached.
    """
    counts = count_voxels(samples)
    cutoff = first_cutoff(counts, method, specificity)
    raw = mean_dice(samples, RecipeConfig(cutoff, ()))
    best = dataclasses.replace(prior(samples), cutoff=cutoff)
    score = mean_dice(samples, _without_idle_steps(best))
    shifts = CUTOFF_STEPS if method == "dice" else ()
    changes = [(functools.partial(_with_cutoff, cutoff=cutoff + shift), gain) for shift in shifts]
    changes += [
        (functools.partial(_with_step, index=index, value=value), step_gain)
        for index, step in enumerate(best.steps)
        for value in CANDIDATES[step.name]
    ]
    for change, least in command.track(changes, "recipe"):
        trial = change(best)
        found = mean_dice(samples, _without_idle_steps(trial))
        if found > score + least:
            best, score = trial, found
    return Choice(_without_idle_steps(best), metrics.auc(counts), raw, score)
