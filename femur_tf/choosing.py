"""What is chosen for a run and saved beside its model: calibration and recipe, and what is usual among its cases.

A run whose study has validation cases chooses on them. One that was trained on all cases, to make use of each, has
none left: it takes over what a run of the same settings chose that was trained on a part of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence

from femur_tf import bundle as bundles
from femur_tf import calibration, case_maps, command, config, files, recipe, study
from femur_tf.errors import DataError

MAY_DIFFER = {
    "data.variation.copies",
    *(f"train.{name}" for name in ("epochs", "epoch_examples", "validation_examples", "minutes", "patience", "seed")),
}
"""Of two runs alike: a plan with more training cases makes fewer copies of each; one that early stopping ended is
repeated by `--epochs`; how often one is saved, nothing."""


def choose(
    bundle: bundles.Bundle,
    names: Sequence[str],
    maps: Callable[[], Iterable[case_maps.CaseMap]],
    *,
    method: recipe.Method,
    specificity: float,
) -> bundles.ChosenRecipe:
    """Fit the calibration, choose the recipe for calibrated probabilities, and save both in the run folder.

    Args:
      bundle: the model, not calibrated.
      names: of the validation cases.
      maps: makes their maps, one after the other, as often as it is asked. Of all cases at once no more is held than
        the map and the reference on the scan's own grid, 5 bytes a voxel.
      method: how the ROC gives the cut-off.
      specificity: least specificity, for that method.

    Raises:
      DataError: the validation cases do not allow the choice asked for; the run has another network by now.
    """
    try:
        fitted = calibration.fit(case_maps.raw_counts(maps()))
        samples = list(map(operator.methodcaller("sample", fitted), maps()))
        choice = recipe.choose(samples, method=method, specificity=specificity)
    except ValueError as error:
        raise DataError(f"{bundle.folder}: cut-off on {', '.join(names)}: {error}") from error
    chosen = bundles.ChosenRecipe(choice.recipe, method, tuple(names), choice.auc, choice.raw_dice, choice.dice, fitted)
    _save(bundle, chosen)
    return chosen


def adopt(bundle: bundles.Bundle, other: bundles.Bundle) -> bundles.ChosenRecipe:
    """Take over another run's calibration and recipe, and save them in the run folder.

    Args:
      bundle: the model, not calibrated.
      other: a run with a recipe.

    Raises:
      DataError: the other run has no recipe, or other settings.
    """
    _ = other.recipe  # raises where none has been chosen
    differing = config.differences(config.to_dict(bundle.settings), config.to_dict(other.settings)) - MAY_DIFFER
    if differing or other.chosen is None:
        raise DataError(
            f"{other.folder}: expected a run of the same settings, whose calibration fits. "
            f"Received: another {', '.join(sorted(differing))}. Train this run with the settings of that one."
        )
    _save(bundle, other.chosen)
    return other.chosen


def _require_same_network(bundle: bundles.Bundle) -> None:
    """Raise where the run has another network by now, that of a training that went on.

    Raises:
      DataError: it has.
    """
    if bundles.load(bundle.folder, calibrated=False).digest != bundle.digest:
        raise DataError(
            f"{bundle.folder}: expected the network that was evaluated. Received: another one, the training went on "
            "meanwhile. Evaluate again when it has ended."
        )


def _save(bundle: bundles.Bundle, chosen: bundles.ChosenRecipe) -> None:
    """Write the recipe beside the model; what was usual with another recipe is removed."""
    _require_same_network(bundle)
    if chosen != bundle.chosen:
        files.remove(bundle.folder / bundles.COHORT)
    files.write_json(bundle.folder / bundles.RECIPE, config.to_dict(chosen))
    command.say(f"Recipe saved: {bundle.folder / bundles.RECIPE}")


def save_cohort(
    bundle: bundles.Bundle, plan: study.Plan, chosen: bundles.ChosenRecipe, options: config.PredictConfig
) -> None:
    """Measure what is usual among training and validation cases, for the quality flag.

    Args:
      bundle: the model, not calibrated.
      plan: of the study.
      chosen: recipe and calibration.
      options: how maps are computed.
    """
    found = case_maps.cohort(bundle, plan, chosen.recipe, chosen.calibration, options)
    if found is None:
        command.warn(
            "The quality flag needs two or more training or validation cases that have not failed: it is left out."
        )
        return
    _require_same_network(bundle)
    files.write_json(bundle.folder / bundles.COHORT, config.to_dict(found))
    command.say(f"Cohort of {found.cases} cases saved: {bundle.folder / bundles.COHORT}")
