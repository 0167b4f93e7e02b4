"""The probability maps of a study's cases: computed once, kept beside the model, calibrated when they are used.

What is kept is the map of the network as it was trained. A calibration is applied to the map on the working grid,
before it is brought to the scan's own grid, as a calibrated network would give it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from femur_tf import bundle as bundles
from femur_tf import calibration, command, files, measures, metrics, postprocess, predict, quality, recipe, study
from femur_tf.config import PredictConfig, RecipeConfig
from femur_tf.volume import Volume, from_working

MOST_TRAINING = 100
"""Training cases that tell what is usual, evenly from the plan's: each takes a map, and more tell little more."""
FAILED_DICE = 0.5
"""A segmentation below it has failed (source: cases under 0.50 are told apart)."""


@dataclasses.dataclass(frozen=True, eq=False)
class CaseMap:
    """A case and its map."""

    loaded: study.LoadedCase
    raw: Volume
    """float16 on the working grid, not calibrated."""

    def sample(self, settings: calibration.Calibration) -> recipe.Sample:
        """Return the calibrated map and the reference on the image's own grid."""
        map_ = Volume(calibration.apply(self.raw.data, settings), self.raw.affine)
        image = self.loaded.image.volume
        return recipe.Sample(from_working(map_, image), self.loaded.reference, image.spacing_mm)

    def profile(self, chosen: RecipeConfig, settings: calibration.Calibration) -> tuple[measures.Profile, float]:
        """Return what is measured of the case's mask, map and grey values, and the mask's Dice."""
        sample, affine = self.sample(settings), self.loaded.image.volume.affine
        mask = postprocess.apply(sample.probability, chosen, spacing_mm=sample.spacing_mm)
        found = measures.profile(Volume(sample.probability, affine), mask, self.loaded.working, chosen.cutoff)
        return found, metrics.dice(mask, sample.reference)


def read(
    bundle: bundles.Bundle,
    plan: study.Plan,
    case: study.Case,
    options: PredictConfig = predict.DEFAULT,
) -> CaseMap:
    """Return a case with its map, computed once for a model and a working grid.

    Args:
      bundle: the model, not calibrated.
      plan: of the study.
      case: one of its cases.
      options: how the map is computed.
    """
    loaded = study.load_case(dataclasses.replace(plan, data=bundle.settings.data), case)
    found = kept(bundle, loaded.working, bundle.folder / "maps", case.name, options)
    return CaseMap(loaded, Volume(found, loaded.working.affine))


def kept(
    bundle: bundles.Bundle,
    working: Volume,
    folder: Path,
    name: str,
    options: PredictConfig = predict.DEFAULT,
) -> np.ndarray:
    """Return the map of a working grid, computed once: another network, grid or option has another file.

    Args:
      bundle: the model.
      working: uint8, as `study.prepare` makes it.
      folder: of the maps that are kept.
      name: of the scan, for the file's name and what is said.
      options: how the map is computed.

    Returns:
      float16 in [0, 1], of the shape of `working`.
    """
    made_from = repr((working.shape, options.of_map)).encode() + working.data.tobytes()
    path = folder / bundle.digest[:12] / f"{name}-{hashlib.sha256(made_from).hexdigest()[:12]}.npz"
    found = _read_map(path)
    if found is None:
        command.say(f"{name}: {' x '.join(map(str, working.shape))} voxels")
        found = bundles.working_map(bundle, working, options).data
        # Where another user has begun the folder it may not be kept: it will be computed again.
        with contextlib.suppress(PermissionError), files.whole(path) as temporary:
            np.savez_compressed(temporary, map=found)
    return found


def _read_map(path: Path) -> np.ndarray | None:
    """Return a map that is kept; None where there is none, or it is damaged, as by a copy that was cut short."""
    try:
        with path.open("rb") as stream, np.load(stream) as archive:
            map_: np.ndarray = archive["map"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        command.warn(f"{path}: expected a map. Received: a damaged file. It is computed again.")
        return None
    return map_


def raw_counts(maps: Iterable[CaseMap]) -> metrics.VoxelCounts:
    """Return the voxels of all cases by the probability that is not calibrated: what a calibration is fitted to.

    Of maps that an iterator makes one is held at a time.
    """
    counts = metrics.VoxelCounts()
    for one in maps:
        recipe.count_voxels([one.sample(calibration.NONE)], counts)
        del one  # before the next one is made
    return counts


def cohort(
    bundle: bundles.Bundle,
    plan: study.Plan,
    chosen: RecipeConfig,
    settings: calibration.Calibration,
    options: PredictConfig = predict.DEFAULT,
) -> quality.Cohort | None:
    """Return what is usual among validation cases and at most `MOST_TRAINING` training cases; None of fewer than two.

    A case that failed, its Dice below `FAILED_DICE`, is named and left out: with it, any failure would be usual.

    Args:
      bundle: the model, not calibrated.
      plan: of the study; its test cases are not read.
      chosen: the recipe.
      settings: the calibration.
      options: how maps are computed.
    """
    profiles = []
    training = plan.part("train")
    training = training[:: max(1, math.ceil(len(training) / MOST_TRAINING))]
    for case in command.track([*plan.part("validation"), *training], "cohort"):
        found, dice = read(bundle, plan, case, options).profile(chosen, settings)
        if dice < FAILED_DICE:
            command.warn(f"{case.name}: a Dice of {dice:.2f} has failed, and tells nothing of what is usual. Left out.")
        else:
            profiles.append(found)
    return quality.build(profiles) if len(profiles) > 1 else None
