"""Settings of a plan: those in use, and those that follow from its cohort: scales, copies, mirroring, grey values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data_prep.cohort import Facts, working_shape
from femur_tf.config import VariationConfig
from femur_tf.patch_config import PatchConfig, Triple

SPANNED = 0.5
"""Share of a volume's extent. In volumes of 35 x 51 x 35 voxels, of which patches of 32 span 0.63 and more, a wider
scale costs more than it gives; in those of 64 x 90 x 64 it does neither, and of a hip scan patches span a twelfth
(docs/experiments.md)."""
NEAR_VOLUME = 2.0
VARIATION = VariationConfig(shift=0.1, warp=0.04, tone=2.0, blur_mm=1.0, cut_mm=20.0)
"""In use, and named in each plan: what a file does not name was not done (docs/experiments.md)."""
COPIED_VOXELS = 500_000_000
"""Of all volumes that a cohort's training cases are drawn from: a minute of two cores, and half a gigabyte of
grids in index mode. Nine hip scans of 7 million voxels would have eight copies each: the least number counts."""
MOST_COPIES = 192


def scales_with_more_to_see(facts: Sequence[Facts], wanted: PatchConfig) -> tuple[float, ...]:
    """Return the scales of a patch rule that show a network more of a volume than those before them.

    A scale is left out where the patches of one before it span `SPANNED` of the volume, or more, along every axis. Of
    scales with the same steps, as in a coarse volume, the last one is kept: a preset reads more planes of a wide one.

    Args:
      facts: of the cohort, whose median shape on the working grid counts.
      wanted: the patch rule with all scales.
    """
    shape = np.median([working_shape(case, wanted.spacing_mm) for case in facts], axis=0)
    kept: dict[Triple, float] = {}
    widest = np.zeros(3)
    for scale_mm, steps in zip(wanted.scales_mm, wanted.steps, strict=True):
        if steps in kept or (widest < SPANNED * shape).any():
            kept[steps] = scale_mm
            widest = np.maximum(widest, np.multiply(wanted.size, steps))
    return tuple(kept.values())


def copies(training: Sequence[Facts], spacing_mm: Triple, per_case: int) -> int:
    """Return how many volumes each training case is drawn from.

    As many as have `COPIED_VOXELS` together; at most `MOST_COPIES` and one an example, at least
    `VariationConfig.copies`.

    Args:
      training: facts of the training cases.
      spacing_mm: of the working grid.
      per_case: examples drawn from each.
    """
    voxels = sum(int(np.prod(working_shape(case, spacing_mm))) for case in training)
    return max(VariationConfig.copies, min(MOST_COPIES, per_case, COPIED_VOXELS // max(1, voxels)))


def one_sided(facts: Sequence[Facts]) -> bool:
    """Return whether the structure lies on one side of the patient, the same in all cases.

    A mirrored patch of such a cohort shows the other side, whose structure is not drawn, labelled as if it were: a
    network that learns from them finds now one and now the other (docs/plan.md).
    """
    return {case.half for case in facts} in ({"left"}, {"right"})


def upper_medians(facts: Sequence[Facts]) -> float | None:
    """Return the limit of `NormalisationConfig.upper_medians` that changes no case; None where a case has none.

    The most of all cases, rounded up to a tenth.
    """
    most = max(case.medians for case in facts)
    return math.ceil(most * 10) / 10 if math.isfinite(most) else None
