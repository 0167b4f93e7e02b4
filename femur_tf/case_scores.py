"""The scores of cases: how one is made, shown and saved."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from femur_tf import command, files, metrics

DIGITS = (3, 3, 3, 3, 2, 1, 1, 1)
"""Decimals of each column of the table, but the name's: what four test cases can tell, and fits 80 columns."""


@dataclasses.dataclass(frozen=True)
class CaseScore:
    """One row of the table."""

    case: str
    dice: float
    ppv: float
    sensitivity: float
    specificity: float
    surface_mm: float
    """Average symmetric surface distance."""
    hausdorff95_mm: float
    volume_cm3: float
    reference_cm3: float


def score(name: str, mask: np.ndarray, reference: np.ndarray, spacing_mm: tuple[float, float, float]) -> CaseScore:
    """Score one mask.

    Args:
      name: of the case.
      mask: (X, Y, Z) bool.
      reference: the same shape.
      spacing_mm: of both.
    """
    distances = metrics.surface_distances(mask, reference, spacing_mm=spacing_mm)
    cm3 = float(np.prod(spacing_mm)) / 1000
    return CaseScore(
        name,
        metrics.dice(mask, reference),
        metrics.ppv(mask, reference),
        metrics.sensitivity(mask, reference),
        metrics.specificity(mask, reference),
        distances.mean_mm,
        distances.hausdorff95_mm,
        mask.sum() * cm3,
        reference.sum() * cm3,
    )


def _cells(first: str, values: Sequence[float]) -> list[str]:
    """Return a row of the table."""
    return [first, *(f"{value:.{digits}f}" for value, digits in zip(values, DIGITS, strict=True))]


def last_rows(scores: list[CaseScore]) -> list[list[str]]:
    """Return the table's last rows: mean and standard deviation of each column, over the cases that have a value."""
    columns = np.array([dataclasses.astuple(s)[1:] for s in scores], float)
    known = [column[np.isfinite(column)] for column in columns.T]
    return [
        _cells(name, [float(measure(k)) if k.size else math.nan for k in known])
        for name, measure in (("mean", np.mean), ("sd", np.std))
    ]


def _defined(values: Any) -> Any:
    """Return values, and what they hold, with None, JSON's null, for undefined scores: JSON has no NaN."""
    if isinstance(values, dict):
        return {name: _defined(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_defined(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def save(folder: Path, part: str, scores: list[CaseScore], summary: dict[str, object]) -> None:
    """Write the scores as CSV and JSON."""
    names = [field.name for field in dataclasses.fields(CaseScore)]
    with files.whole(folder / f"{part}.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(dataclasses.astuple(s) for s in scores)
    rows = [_defined(dataclasses.asdict(s)) for s in scores]
    files.write_json(folder / f"{part}.json", {**_defined(summary), "cases": rows})


def show(title: str, scores: list[CaseScore]) -> None:
    """Print one table: a row a case, the mean and the standard deviation; 80 columns hold it."""
    header = ("case", "Dice", "PPV", "sens.", "spec.", "ASSD mm", "HD95 mm", "cm3", "ref. cm3")
    rows = [_cells(s.case, dataclasses.astuple(s)[1:]) for s in scores]
    command.table(title, header, [*rows, *last_rows(scores)])
