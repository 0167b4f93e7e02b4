"""What looks wrong in a case that can be used: shown to a person, and the case is kept.

Most rules compare a case with the medians of its cohort, so they fit any protocol: a
far spacing or femur volume, another axis order, another number of femurs. The others
stand alone: stray islands, one femur much smaller than the other, a femur that the
border of the volume cuts off, a volume smaller than a patch, a femur with fewer voxels
than examples are asked, one mask in two cases. Names of mask values count where masks
have them, as those of 3D Slicer do.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.cohort import Facts, median_spacing, millimetres, resampled, working_shape
from data_prep.sampling import asked
from femur_tf.config import DataConfig, PatchConfig
from femur_tf.patch_config import Triple

SPACING_FACTOR = 1.25
"""A spacing further than this factor, either way, from the cohort's median is suspicious."""
VOLUME_FACTOR = 2.0
"""A femur volume further than this factor, either way, from the cohort's median is suspicious."""
ASYMMETRY = 0.2
"""The smaller femur may lack up to this share of the larger one; above it is suspicious."""


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """Why a person should look at a case that will be used."""

    kind: str
    """One or two words, for the table."""
    message: str


def suspicions(
    facts: Sequence[Facts], data: DataConfig, volumes: Mapping[str, int]
) -> dict[str, tuple[Suspicion, ...]]:
    """Judge each case beside the rest of the cohort.

    Args:
      facts: the cases.
      data: the settings of the plan: working spacing, patch rule, sampling.
      volumes: for each case name, the volumes that its examples are drawn from.

    Returns:
      For each case name what looks wrong; nothing is an empty tuple.
    """
    typical_mm, femur_mm3 = median_spacing(facts), float(np.median([case.femur_mm3 for case in facts]))
    codes, _ = collections.Counter(case.axis_codes for case in facts).most_common(1)[0]
    numbers = collections.Counter(len(case.femurs_mm3) for case in facts)
    femurs = max(numbers, key=lambda number: (numbers[number], number))
    masks = collections.defaultdict(list)
    names: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for case in facts:
        masks[case.mask_digest].append(case.name)
        for value, name in case.label_names.items():
            names[value][name.casefold()] += 1
    usual = {value: counted.most_common(1)[0][0] for value, counted in names.items()}
    return {
        case.name: tuple(
            _of_grid(case, typical_mm=typical_mm, spacing_mm=data.patch.spacing_mm, codes=codes)
            + _of_extent(case, data.patch)
            + _of_parts(case, femurs=femurs)
            + _of_volume(case, femur_mm3=femur_mm3)
            + _of_sampling(case, data, volumes[case.name])
            + _of_twins(case, masks[case.mask_digest])
            + _of_names(case, usual)
        )
        for case in facts
    }


def _of_grid(case: Facts, *, typical_mm: Triple, spacing_mm: Triple, codes: str) -> list[Suspicion]:
    """Judge spacing and axis order."""
    found = []
    factors = np.divide(case.spacing_mm, typical_mm)
    far = (factors > SPACING_FACTOR) | (factors < 1 / SPACING_FACTOR)
    if far.any():
        axes = ", ".join(np.array(("x", "y", "z"))[far])
        compared = f"{millimetres(case.spacing_mm)} is far along {axes} from the median {millimetres(typical_mm)}"
        what = f"will be resampled to {millimetres(spacing_mm)}" if resampled(case, spacing_mm) else "check the header"
        found.append(Suspicion("spacing", f"{compared}: {what}"))
    if case.axis_codes != codes:
        found.append(Suspicion("axes", f"axes run {case.axis_codes}, in most cases {codes}: check the header"))
    return found


def _of_extent(case: Facts, patch: PatchConfig) -> list[Suspicion]:
    """Judge whether the volume holds a patch of the finest scale and the whole femur."""
    found = []
    needed = [patch.size * min(steps) for steps in zip(*patch.steps, strict=True)]
    shape = working_shape(case, patch.spacing_mm)
    small = [f"{axis} {n} of {least}" for axis, n, least in zip("xyz", shape, needed, strict=True) if n < least]
    if small:
        voxels = ", ".join(small)
        found.append(Suspicion("small", f"smaller than a patch ({voxels} voxels): the patches are padded"))
    if case.borders:
        found.append(Suspicion("cut off", f"the femur touches the {', '.join(case.borders)} border of the volume"))
    return found


def _of_parts(case: Facts, *, femurs: int) -> list[Suspicion]:
    """Judge the connected parts: stray islands, number of femurs, and one much smaller than the other."""
    found = []
    islands = case.parts[len(case.femurs_mm3) :]
    if islands:
        sizes = ", ".join(str(voxels) for voxels in islands[:8]) + (", ..." if len(islands) > 8 else "")
        found.append(Suspicion("islands", f"stray islands in the mask, of {sizes} voxels"))
    if len(case.femurs_mm3) != femurs:
        found.append(Suspicion("parts", f"{len(case.femurs_mm3)} large parts in the mask, in most cases {femurs}"))
    if len(case.femurs_mm3) == 2 and min(case.femurs_mm3) < (1 - ASYMMETRY) * max(case.femurs_mm3):
        left, right = (mm3 / 1000 for mm3 in case.femurs_mm3)
        found.append(Suspicion("uneven", f"left femur {left:.1f} cm3, right femur {right:.1f} cm3"))
    return found


def _of_volume(case: Facts, *, femur_mm3: float) -> list[Suspicion]:
    """Judge the volume of the mask."""
    if femur_mm3 / VOLUME_FACTOR <= case.femur_mm3 <= femur_mm3 * VOLUME_FACTOR:
        return []
    return [Suspicion("volume", f"femur of {case.femur_mm3 / 1000:.1f} cm3, the median is {femur_mm3 / 1000:.1f} cm3")]


def _of_sampling(case: Facts, data: DataConfig, volumes: int) -> list[Suspicion]:
    """Judge whether the femur has as many voxels on its working grids as bone examples are asked."""
    voxels, wanted = case.femur_mm3 / float(np.prod(data.patch.spacing_mm)) * volumes, asked(data.sampling)["bone"]
    if voxels >= wanted or not volumes:
        return []
    return [
        Suspicion("few", f"about {voxels:,.0f} femur voxels for {wanted:,} bone examples: all are taken, once each")
    ]


def _of_twins(case: Facts, names: Sequence[str]) -> list[Suspicion]:
    """Judge whether another case has the very same mask."""
    others = [name for name in names if name != case.name]
    return [Suspicion("same mask", f"the same mask as {', '.join(others)}")] if others else []


def _of_names(case: Facts, usual: Mapping[int, str]) -> list[Suspicion]:
    """Judge whether a mask value has another name than in most cases, in whatever case of letters."""
    other = [
        f"mask value {value} is named {name or 'nothing'}, in most cases {usual[value] or 'nothing'}"
        for value, name in case.label_names.items()
        if name.casefold() != usual[value]
    ]
    return [Suspicion("name", f"{'; '.join(other)}: are values exchanged?")] if other else []
