"""A trained model with all that is needed to use it, in one folder.

A run folder (`work/runs/NAME`) and a version of a saved model
(`saved_models/NAME/VERSION/assets.extra`) hold the same files: `model.keras`,
`config.json` (what it was made with), `recipe.json` (how its logits are calibrated, and
its probabilities become a mask) and `cohort.json` (what is usual among its cases).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import keras

from femur_tf import calibration, config, files, folding, predict, quality, volume
from femur_tf import model as networks
from femur_tf.errors import DataError
from femur_tf.origin import Origin

MODEL, CONFIG, RECIPE, COHORT = "model.keras", "config.json", "recipe.json", "cohort.json"
EXTRA = "assets.extra"
SHIPPED = "femur_t1_coronal"
"""The saved model that comes with the package."""
FORMAT_VERSION = 1
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ChosenRecipe:
    """What `recipe.json` holds: the recipe, and the validation numbers that chose it."""

    recipe: config.RecipeConfig
    method: str
    """How the first cut-off was chosen: dice, youden or specificity."""
    cases: tuple[str, ...]
    """The validation cases."""
    auc: float
    """Area under the ROC curve over all their voxels."""
    raw_dice: float
    """Mean Dice of the first cut-off alone."""
    dice: float
    """Mean Dice of the recipe."""
    calibration: calibration.Calibration = calibration.NONE
    """Of the logits of `model.keras`; `load` folds it into the last layer, and the recipe is for what that gives."""
    format_version: int = FORMAT_VERSION


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A model in memory."""

    folder: Path
    model: keras.Sequential
    settings: config.RunConfig
    chosen: ChosenRecipe | None
    """None until `femur_tf.evaluate` has chosen a recipe."""
    cohort: quality.Cohort | None = None
    """What is usual, for the quality flag; None until `femur_tf.evaluate` has measured the cases."""

    @property
    def recipe(self) -> config.RecipeConfig:
        """The recipe to use.

        Raises:
          DataError: none has been chosen.
        """
        if self.chosen is None:
            raise DataError(
                f"{self.folder / RECIPE}: expected a recipe, found none. Choose one on the validation cases first: "
                "python -m femur_tf.evaluate WORK --run NAME"
            )
        return self.chosen.recipe

    @property
    def calibration(self) -> calibration.Calibration:
        """Of the logits of `model.keras`; none until `femur_tf.evaluate` has chosen it."""
        return self.chosen.calibration if self.chosen else calibration.NONE

    @functools.cached_property
    def predictor(self) -> predict.Predictor:
        """What gives the maps of the model."""
        return predict.Predictor(self.model, self.settings.data.patch)

    @functools.cached_property
    def digest(self) -> str:
        """A digest of all that a map is made with: preparation, network, and weights with the calibration in them.

        What is not in use is left out, so that a setting that comes later changes no digest.
        """
        data = self.settings.data
        values = [_used(config.to_dict(one)) for one in (data.patch, data.normalisation, self.settings.model)]
        found = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        for weight in self.model.get_weights():
            found.update(weight.tobytes())
        return found.hexdigest()

    @property
    def origin(self) -> Origin:
        """What masks of the model say of their making.

        Raises:
          DataError: no recipe has been chosen.
        """
        made_with = self.digest + json.dumps(config.to_dict(self.recipe), sort_keys=True)
        place, version = self.folder.resolve(), ""
        if place.name == EXTRA:
            place, version = place.parents[1], place.parent.name
        return Origin(place.name, version, hashlib.sha256(made_with.encode()).hexdigest())


def _used(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are in use: neither 0 nor false, null or empty."""
    return {name: value for name, value in values.items() if value}


def versions(folder: Path) -> list[Path]:
    """Return the version folders of a saved model, lowest number first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda path: int(path.name))


def find(folder: Path) -> Path:
    """Return the folder that holds `model.keras`: a run, a version of a saved model, or its highest version.

    Raises:
      DataError: there is none.
    """
    places = [folder, folder / EXTRA, *(version / EXTRA for version in reversed(versions(folder)))]
    for place in places:
        if (place / MODEL).is_file():
            return place
    found = "no such folder" if not folder.exists() else "a folder without one"
    raise DataError(
        f"{folder}: expected a model: a run folder (work/runs/NAME) or a saved model (saved_models/NAME), with "
        f"{MODEL} in it. Received: {found}."
    )


def shipped() -> Path:
    """Return the folder of the saved model that comes with the package.

    It lies in the package of an installation, and beside it in a source tree.

    Raises:
      DataError: this installation came without it.
    """
    package = Path(__file__).parent
    for place in (package / "saved_models" / SHIPPED, package.parent / "saved_models" / SHIPPED):
        if versions(place):
            return place
    raise DataError(f"{package}: expected the shipped model {SHIPPED}, found none. Name one with --model.")


def _read(kind: type[T], path: Path) -> T:
    """Read one of the bundle's JSON files, refusing another format version."""
    advice = "Use the version of femur_tf that made it, or train again."
    return config.from_dict(kind, files.read_versioned(path, FORMAT_VERSION, advice), str(path))


def network(place: Path, settings: config.RunConfig) -> keras.Sequential:
    """Load the network in a folder, to compute in float32 even where it was trained in mixed precision.

    Args:
      place: the folder that holds `model.keras`.
      settings: what it was made with.

    Raises:
      DataError: the file is damaged.
    """
    found = networks.load(place / MODEL, compiled=False)
    if all(layer.compute_dtype == layer.variable_dtype for layer in found.layers):
        return found
    result = networks.build(settings.model, settings.data.patch)
    result.set_weights(found.get_weights())
    return result


def load(folder: Path, *, calibrated: bool = True) -> Bundle:
    """Load the model in `folder`.

    Args:
      folder: a run folder, a version of a saved model, or a saved model, whose highest version is taken.
      calibrated: fold the calibration of `recipe.json`, if any, into the last layer; False to choose it anew.

    Raises:
      DataError: there is no model, its files are damaged, or they have another format version.
    """
    place = find(folder)
    if not (place / CONFIG).exists():
        raise DataError(f"{place / CONFIG}: expected the settings beside the model, found none. Copy the whole folder.")
    settings = _read(config.RunConfig, place / CONFIG)
    chosen = _read(ChosenRecipe, place / RECIPE) if (place / RECIPE).exists() else None
    model = network(place, settings)
    if calibrated and chosen and chosen.calibration != calibration.NONE:
        folding.fold(model, chosen.calibration)
    cohort = _read(quality.Cohort, place / COHORT) if (place / COHORT).exists() else None
    return Bundle(place, model, settings, chosen, cohort)


def working_map(
    bundle: Bundle,
    working: volume.Volume,
    options: config.PredictConfig = predict.DEFAULT,
    *,
    verify: int = 0,
    held_bytes: int = 0,
) -> volume.Volume:
    """Return the probability of bone on the working grid.

    Args:
      bundle: the model.
      working: uint8, as `study.prepare` makes it.
      options: precision, memory limit, coarse to fine or not.
      verify: number of random voxels to compare with patch-wise evaluation.
      held_bytes: what else is held meanwhile, as of `memory.plan_blocks`.

    Returns:
      float16 in [0, 1] on the working grid.

    Raises:
      DataError: as `Predictor.probability_map` does.
    """
    found = bundle.predictor.probability_map(working.data, options, verify=verify, held_bytes=held_bytes)
    return volume.Volume(found, working.affine)
