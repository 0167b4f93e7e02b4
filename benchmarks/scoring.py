"""What the maps of some cases are worth: Dice after a recipe, or after one chosen on these cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from femur_tf import calibration, config, metrics, postprocess, recipe

if TYPE_CHECKING:
    from femur_tf.case_maps import CaseMap


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
