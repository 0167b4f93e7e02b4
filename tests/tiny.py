"""A study small enough for tests: three or four scans of a few thousand voxels, their plan and their records."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_prep import fitted, write_records
from femur_tf import config, files, records, study

SHAPE = (24, 20, 12)
SPACING_MM = (1.0, 1.0, 2.0)
RULE = config.PatchConfig(size=8, spacing_mm=SPACING_MM, scales_mm=(0.0, 3.6))
"""Steps (1, 1, 1) and (4, 4, 2): every step divides the shape."""
SAMPLING = config.SamplingConfig(per_case=90, near_mm=4.0)
DATA = config.DataConfig(patch=RULE, sampling=SAMPLING, variation=dataclasses.replace(fitted.VARIATION, copies=1))
PARTS: dict[str, study.Part] = {"hip_01": "train", "hip_02": "train", "hip_03": "validation", "hip_04": "test"}
SHARD_EXAMPLES = 30


def ball(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return an ellipsoid in the middle of a volume, with half its extents."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    return sum(((axis - n / 2) / (n / 4)) ** 2 for axis, n in zip(axes, shape, strict=True)) <= 1


def scan(name: str) -> np.ndarray:
    """Return an int16 scan whose ball is bright; its noise makes every patch unique."""
    noise = np.random.default_rng(list(name.encode())).normal(100, 20, SHAPE)
    return (noise + 120 * ball()).astype(np.int16)


def write_study(
    work: Path, *, rule: config.PatchConfig = RULE, affine: np.ndarray | None = None, copies: int = 1
) -> study.Plan:
    """Write the scans, their masks and the plan of a study."""
    affine = np.diag([*SPACING_MM, 1.0]) if affine is None else affine
    cases = []
    for name, part in PARTS.items():
        paths = [work / folder / f"{name}.nii.gz" for folder in ("images", "masks")]
        for path, data in zip(paths, (scan(name), ball().astype(np.uint8)), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(data, affine), path)
        cases.append(study.Case(name, *map(str, paths), part))
    variation = dataclasses.replace(fitted.VARIATION, copies=copies)
    plan = study.Plan(tuple(cases), dataclasses.replace(DATA, patch=rule, variation=variation))
    files.write_json(study.plan_path(work), config.to_dict(plan))
    return plan


def write_all(work: Path, *, mode: records.Mode = "patches", **options) -> records.Manifest:
    """Write a study and its records, three shards a case, without starting processes."""
    write_study(work, **options)
    return write_its_records(work, mode=mode)


def write_its_records(work: Path, *, mode: records.Mode = "patches", **_) -> records.Manifest:
    """Write the records of a study as `data_prep.write_records.write` does, without starting processes."""
    plan = study.read_plan(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_records, "SHARD_EXAMPLES", SHARD_EXAMPLES)
        cases = [write_records.write_case(work, plan, case, mode) for case in plan.cases if case.part != "test"]
    manifest = records.Manifest(plan.data, mode, tuple(cases))
    files.write_json(records.manifest_path(study.records_path(work)), config.to_dict(manifest))
    return manifest


def serialized(folder: Path, shards: list[records.Shard]) -> list[bytes]:
    """Return the serialized examples of shards, in their order."""
    import tensorflow as tf

    return list(tf.data.TFRecordDataset([str(folder / shard.file.name) for shard in shards]).as_numpy_iterator())
