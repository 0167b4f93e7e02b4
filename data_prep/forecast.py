"""What the records of a plan will take: disk and time."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep import cohort
from femur_tf import command, files, study
from femur_tf.errors import DataError
from femur_tf.patch_config import PatchConfig
from femur_tf.records import Mode

RECORD_BYTES = 90
"""An example without its patch: label, centre, case name and framing, about."""
RECORDS_PER_S = 20_000
"""Examples written a second on two cores: an estimate, for the forecast only."""
VARIED_PER_S = 9_000_000
"""Voxels of varied copies made a second on two cores, likewise."""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What the records of a plan will take."""

    examples: int
    """Of the train and validation cases; test cases get no records."""
    patch_bytes: int
    """On disk, with patches."""
    index_bytes: int
    """On disk, with centres and working grids only."""
    seconds: float
    """To write the patches, an estimate."""


def example_bytes(patch: PatchConfig, mode: Mode) -> int:
    """Return what an example takes on disk, about."""
    return RECORD_BYTES + ((patch.size + 1) ** 2 * patch.channels if mode == "patches" else 0)


def forecast(plan: study.Plan, facts: Sequence[cohort.Facts]) -> Forecast:
    """Forecast the records of a plan."""
    patch, shapes = (
        plan.data.patch,
        {case.name: cohort.working_shape(case, plan.data.patch.spacing_mm) for case in facts},
    )
    used = [*plan.part("train"), *plan.part("validation")]
    examples = plan.data.sampling.per_case * len(used)
    voxels = [int(np.prod(shapes[case.name])) for case in used]
    volumes = [plan.volumes(case) for case in used]
    grids = sum(size * count for size, count in zip(voxels, volumes, strict=True))
    return Forecast(
        examples,
        patch_bytes=examples * example_bytes(patch, "patches"),
        index_bytes=examples * example_bytes(patch, "index") + grids,
        seconds=examples / RECORDS_PER_S + (grids - sum(voxels)) / VARIED_PER_S,
    )


def require_disk(work: Path, size_bytes: int, what: str, otherwise: str) -> int:
    """Return the free disk in bytes.

    Args:
      work: the study's work folder, which may not exist yet.
      size_bytes: of what is to be written.
      what: is to be written, for the message.
      otherwise: what to do but to free some, likewise.

    Raises:
      DataError: there is less.
    """
    free = shutil.disk_usage(files.nearest_folder(work / "records")).free
    if size_bytes > free:
        raise DataError(
            f"{work}: expected {gigabytes(size_bytes)} of free disk for {what}. "
            f"Received: {gigabytes(free)}. Free some, or {otherwise}."
        )
    return free


def check_disk(work: Path, expected: Forecast) -> int:
    """Return the free disk in bytes, with a warning where the records fit in index-only mode alone.

    Raises:
      DataError: not even the index-only records fit.
    """
    fewer = "plan fewer examples (--per-case) or a wider --spacing"
    free = require_disk(work, expected.index_bytes, "the records, index-only", fewer)
    if expected.patch_bytes > free:
        command.warn(
            f"{work}: {gigabytes(free)} free, patch records need {gigabytes(expected.patch_bytes)}. "
            "Pass --index-only to data_prep.write_records, free some disk, or plan fewer examples (--per-case)."
        )
    return free


def gigabytes(size_bytes: int) -> str:
    """Return a size as a person reads it."""
    return f"{size_bytes / 1e9:.3g} GB"
