"""The probability maps of a study's cases: computed once, kept beside the model, calibrated when they are used.

What is kept is the map of the network as it was trained. A calibration is applied to the map on the working grid,
before it is brought to the scan's own grid, as a calibrated network would give it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from femur_tf import bundle as bundles
from femur_tf import calibration, command, files, measures, metrics, postprocess, quality, recipe, study
from femur_tf.config import RecipeConfig
from femur_tf.volume import Volume, from_working


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

    def profile(self, chosen: RecipeConfig, settings: calibration.Calibration) -> measures.Profile:
        """Return what is measured of the case's mask, map and grey values."""
        sample, affine = self.sample(settings), self.loaded.image.volume.affine
        mask = postprocess.apply(sample.probability, chosen, spacing_mm=sample.spacing_mm)
        return measures.profile(Volume(sample.probability, affine), mask, self.loaded.working, chosen.cutoff)


def read(bundle: bundles.Bundle, plan: study.Plan, case: study.Case) -> CaseMap:
    """Return a case with its map, computed once for a model and a working grid.

    Args:
      bundle: the model, not calibrated.
      plan: of the study.
      case: one of its cases.
    """
    loaded = study.load_case(dataclasses.replace(plan, data=bundle.settings.data), case)
    path = _path(bundle, loaded)
    if not path.exists():
        command.say(f"{case.name}: {' x '.join(map(str, loaded.working.shape))} voxels")
        with files.whole(path) as temporary:
            np.save(temporary, bundles.working_map(bundle, loaded.working).data)
    return CaseMap(loaded, Volume(np.load(path), loaded.working.affine))


def raw_counts(maps: Iterable[CaseMap]) -> metrics.VoxelCounts:
    """Return the voxels of all cases by the probability that is not calibrated: what a calibration is fitted to."""
    return recipe.count_voxels([one.sample(calibration.NONE) for one in maps])


def _path(bundle: bundles.Bundle, loaded: study.LoadedCase) -> Path:
    """Return where the map of a case is kept."""
    model = files.sha256(bundle.folder / bundles.MODEL)[:12]
    grid = hashlib.sha256(repr(loaded.working.shape).encode() + loaded.working.data.tobytes()).hexdigest()[:12]
    return bundle.folder / "maps" / model / f"{loaded.case.name}-{grid}.npy"


def cohort(
    bundle: bundles.Bundle, plan: study.Plan, chosen: RecipeConfig, settings: calibration.Calibration
) -> quality.Cohort | None:
    """Return what is usual among the training and validation cases; None of fewer than two.

    Args:
      bundle: the model, not calibrated.
      plan: of the study; its test cases are not read.
      chosen: the recipe.
      settings: the calibration.
    """
    cases: Iterable[study.Case] = [*plan.part("validation"), *plan.part("train")]
    profiles = [read(bundle, plan, case).profile(chosen, settings) for case in command.track(cases, "cohort")]
    return quality.build(profiles) if len(profiles) > 1 else None
