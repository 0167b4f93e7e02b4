"""What flaws of the reference masks cost: how far each is shifted, or drawn too thick or too thin, beside its scan.

Example: python -m benchmarks.label_ceiling work/ --minutes 10  (after benchmarks.cross_validation, with its --run)

A network that is trained on many cases draws the average annotator's contour where it has not seen a case. So for each
left-out case of the folds two things that an annotator does to a whole case are undone: a shift in the plane of the
slices, and a contour that lies inside or outside the usual one (another cut-off). What the Dice gains is what these
flaws cost, at most: the network's own systematic errors are undone with them, and the best of many values is taken.
`ends` is what is lost in slices where only one of the two masks has bone. `wide` undoes all errors but those along the
contour: what a disc of 2 mm fits into, in the plane of the slices, such as a shaft that one of the masks has in a slice
more. What is left to 1 is the place of the contour. `missed` and `extra` say how sure the network was of the wide
errors: their median probability, where bone was missed and where it was found in vain. A table and one JSON line.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import cross_validation, derived, scoring
from femur_tf import command, config, log_odds, metrics, postprocess, quiet
from femur_tf.errors import DataError, typed

if TYPE_CHECKING:
    from femur_tf.recipe import Sample

SHIFTS = range(-3, 4)
"""Voxels, along each axis of the slices."""
ODDS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16)
"""What the odds of the cut-off are multiplied by."""
WIDE_MM = 2.0
"""Radius of a disc that fits into a wide error: about two voxels, as far as two hands disagree along a contour."""


@dataclasses.dataclass(frozen=True)
class CeilingArguments(cross_validation.Folds):
    """Estimate what flaws of the reference masks cost, from the left-out cases of a cross-validation.

    Example: python -m benchmarks.label_ceiling work/ --minutes 10
    """


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """Dice of one case: as it is, and with flaws undone."""

    dice: float
    shifted: float
    """With the best shift."""
    thickened: float
    """With the best cut-off."""
    both: float
    shift: tuple[int, int]
    """Voxels, along the axes of the slices, by which the reference is moved."""
    odds: float
    """What the odds of the cut-off are multiplied by."""
    ends: float | None
    """Dice where only slices count in which both masks have bone, less `dice`; None where there are none."""
    wide: float
    """With wide errors undone."""
    missed: float | None
    """Median probability of the bone that lies in wide errors; None where there are none."""
    extra: float | None
    """And of what is no bone in them."""


def moved(mask: np.ndarray, shift: tuple[int, int], axes: tuple[int, int]) -> np.ndarray:
    """Return a mask moved within its slices; what leaves the volume is lost."""
    result = np.zeros_like(mask)
    source, target = [slice(None)] * 3, [slice(None)] * 3
    for axis, by in zip(axes, shift, strict=True):
        length = mask.shape[axis]
        source[axis], target[axis] = slice(max(0, -by), length - max(0, by)), slice(max(0, by), length - max(0, -by))
    result[tuple(target)] = mask[tuple(source)]
    return result


def _lost_at_ends(mask: np.ndarray, reference: np.ndarray, across: int) -> float | None:
    """Return what slices cost in which only one of the masks has bone; None where no slice has bone in both."""
    others = tuple(axis for axis in range(3) if axis != across)
    both = mask.any(axis=others) & reference.any(axis=others)
    if not both.any():
        return None
    inner = metrics.dice(mask.compress(both, axis=across), reference.compress(both, axis=across))
    return inner - metrics.dice(mask, reference)


def _wide(error: np.ndarray, spacing_mm: postprocess.Spacing) -> np.ndarray:
    """Return the wide errors among all of a kind."""
    return postprocess.apply_step(error, config.Step("opening", WIDE_MM), spacing_mm=spacing_mm)


def _median(probability: np.ndarray, where: np.ndarray) -> float | None:
    """Return the median of a map in some voxels, None where there are none."""
    return float(np.median(probability[where])) if where.any() else None


def ceiling(
    masks: dict[float, np.ndarray], probability: np.ndarray, reference: np.ndarray, spacing_mm: postprocess.Spacing
) -> Ceiling:
    """Undo flaws of one case.

    Args:
      masks: what is found, for each of some multiples of the cut-off's odds, 1 among them.
      probability: what they are made from, float32, the same shape.
      reference: bool, the same shape.
      spacing_mm: voxel spacing along the three axes; slices lie across that of the coarsest.
    """
    across = int(np.argmax(spacing_mm))
    first, second = (axis for axis in range(3) if axis != across)
    shifts = list(itertools.product(SHIFTS, SHIFTS))
    moves = {shift: moved(reference, shift, (first, second)) for shift in shifts}
    table = {(odds, s): metrics.dice(mask, moves[s]) for odds, mask in masks.items() for s in shifts}
    best = max(table, key=lambda key: table[key])
    missed, extra = (_wide(error, spacing_mm) for error in (reference & ~masks[1], masks[1] & ~reference))
    return Ceiling(
        dice=table[1, (0, 0)],
        shifted=max(table[1, s] for s in shifts),
        thickened=max(table[odds, (0, 0)] for odds in masks),
        both=table[best],
        shift=best[1],
        odds=best[0],
        ends=_lost_at_ends(masks[1], reference, across),
        wide=metrics.dice((masks[1] | missed) & ~extra, reference),
        missed=_median(probability, missed),
        extra=_median(probability, extra),
    )


def _cropped(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return map and reference around the bone, with room for a shift; shifts of the whole volume would take long."""
    found = np.argwhere(sample.reference | (sample.probability > 1e-3))
    low, high = found.min(axis=0), found.max(axis=0) + 1
    box = tuple(slice(max(0, a - 4), b + 4) for a, b in zip(low, high, strict=True))
    return sample.probability[box], sample.reference[box]


def left_out(arguments: CeilingArguments) -> Iterable[tuple[str, Ceiling]]:
    """Yield each left-out case of the folds of a study.

    Raises:
      DataError: a fold is missing, has no scores or was made from other masks, or there can be no such folds.
    """
    folders = list(cross_validation.studies(arguments))
    numbers = ("--folds", arguments.folds, "--minutes", f"{arguments.minutes:g}", "--seed", arguments.seed)
    words = typed("benchmarks.cross_validation", arguments.work, "--run", arguments.run, *numbers)
    for folder in folders:
        if not derived.scores_path(folder, arguments.run).exists():
            raise DataError(
                f"{folder}: expected a fold with its scores. Run first, with that run's --config and --set: {words}"
            )
    for folder in folders:
        bundle, maps = derived.left_out(folder, arguments.run)
        fitted = bundle.calibration
        for one in maps:
            sample = one.sample(fitted)
            probability, reference = _cropped(sample)
            recipes = {
                odds: dataclasses.replace(bundle.recipe, cutoff=log_odds.times(bundle.recipe.cutoff, odds))
                for odds in ODDS
            }
            masks = {
                odds: postprocess.apply(probability, recipe, spacing_mm=sample.spacing_mm)
                for odds, recipe in recipes.items()
            }
            yield one.loaded.case.name, ceiling(masks, probability, reference, sample.spacing_mm)


def _cell(value: float | None, digits: int = 3) -> str:
    """Return a value as the table shows it, nothing where it is not defined."""
    return "" if value is None else f"{value:.{digits}f}"


def main(arguments: CeilingArguments) -> None:
    """Print a table and one JSON line."""
    quiet.start_tensorflow()
    found = dict(command.track(left_out(arguments), "cases"))
    names = ("dice", "shifted", "thickened", "both", "ends", "wide")
    rows = [
        (
            case,
            *(_cell(getattr(c, n)) for n in names),
            *(_cell(p, 2) for p in (c.missed, c.extra)),
            f"{c.shift[0]}, {c.shift[1]}",
            f"{c.odds:g}",
        )
        for case, c in sorted(found.items())
    ]
    means = {name: scoring.over_defined(np.mean, [getattr(c, name) for c in found.values()]) for name in names}
    rows.append(("mean", *map(_cell, means.values()), "", "", "", ""))
    command.table("Flaws undone", ("case", *names, "missed", "extra", "shift", "odds"), rows)
    command.say(json.dumps(means | {"cases": {case: dataclasses.asdict(c) for case, c in sorted(found.items())}}))


if __name__ == "__main__":
    command.run(main, CeilingArguments)
