"""What the maps of some cases are worth: Dice after a recipe, or after one chosen on these cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from femur_tf import calibration, case_scores, config, metrics, postprocess, recipe

if TYPE_CHECKING:
    from femur_tf.case_maps import CaseMap


MEASURES = ("dice", "ppv", "sensitivity", "surface_mm")
"""What a line of JSON says of scores."""


def over_defined(measure: Callable[[np.ndarray], float], values: Iterable[float | None]) -> float | None:
    """Return what a measure, such as a mean, gives over the values that are defined: an empty mask has no PPV.

    Args:
      measure: of (N,) float64.
      values: None or NaN where not defined.

    Returns:
      None, JSON's null, where no value is defined.

    Example:
      >>> over_defined(np.mean, [0.5, 1.0, float("nan"), None])
      0.75
    """
    known = np.array([value for value in values if value is not None and np.isfinite(value)])
    return float(measure(known)) if known.size else None


def means(scores: Sequence[case_scores.CaseScore]) -> dict[str, float | None]:
    """Return the mean of each of `MEASURES` over the cases that have it."""
    return {name: over_defined(np.mean, [getattr(one, name) for one in scores]) for name in MEASURES}


def case_dice(samples: Sequence[recipe.Sample], chosen: config.RecipeConfig) -> tuple[float, ...]:
    """Return the Dice of each sample after a recipe."""
    masks = [postprocess.apply(s.probability, chosen, spacing_mm=s.spacing_mm) for s in samples]
    return tuple(metrics.dice(mask, s.reference) for mask, s in zip(masks, samples, strict=True))


def chosen_anew(samples: Sequence[recipe.Sample]) -> tuple[config.RecipeConfig, dict[str, Any]]:
    """Choose a recipe on samples.

    Returns:
      The recipe; and voxel AUC, mean Dice of the cut-off alone and of the recipe, and the recipe's Dice of each sample
      in their order (`auc`, `cutoff_dice`, `dice`, `cases`).
    """
    choice = recipe.choose(samples)
    dice = list(case_dice(samples, choice.recipe))
    return choice.recipe, {"auc": choice.auc, "cutoff_dice": choice.raw_dice, "dice": choice.dice, "cases": dice}


def of_maps(maps: Sequence[CaseMap]) -> dict[str, Any]:
    """Return what calibration and recipe, chosen on the cases, give on them; `cases` by name."""
    from femur_tf import case_maps

    fitted = calibration.fit(case_maps.raw_counts(maps))
    line = chosen_anew([one.sample(fitted) for one in maps])[1]
    names = [one.loaded.case.name for one in maps]
    return line | {"cases": dict(zip(names, line["cases"], strict=True))}
