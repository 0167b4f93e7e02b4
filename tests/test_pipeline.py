"""From phantoms to a report and the mask of a new scan, by the functions of the commands, on a tiny cohort."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data_prep import plan, write_records
from femur_tf import config, demo, evaluate, export, files, image_io, records, segment, study, train

pytestmark = pytest.mark.slow

SHAPE = (48, 48, 16)
"""Of a phantom of 2.3 x 2.3 x 4.8 mm: one femoral head, coarse but whole."""
CASES = ("hip_01", "hip_02", "hip_03", "hip_04")
TINY = {"model": {"filters": [4, 8, 8], "dense": [8], "dropout_dense": 0.0}, "train": {"batch": 64}}
"""A network that learns in seconds, on the patches of 32 x 32 that every study has."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """A folder with images/, masks/ and a scan that is in neither."""
    folder = tmp_path_factory.mktemp("cohort")
    for index, name in enumerate(CASES):
        paths = (folder / kind / f"{name}.nii.gz" for kind in ("images", "masks"))
        demo.write_phantom((1, index), *paths, shape=SHAPE)
    demo.write_phantom((1, 9), folder / "new.nii.gz", folder / "new_true.nii.gz", shape=SHAPE)
    return folder


@pytest.fixture(scope="module")
def work(cohort) -> Path:
    """The study, from the plan to the exported model."""
    work = cohort / "work"
    flags = {"images": cohort / "images", "masks": cohort / "masks", "test": "4", "validation": 1, "per_case": 600}
    # What a plan of whole hips has: of volumes as coarse as these it leaves the second scale out.
    flags |= {"scales_mm": "0,3.6", "copies": 12}
    plan.main(plan.PlanArguments(work, processes=1, **flags))
    write_records.main(write_records.WriteArguments(work, processes=1))
    files.write_json(cohort / "tiny.json", TINY)
    train.main(train.TrainArguments(work, config=cohort / "tiny.json", epochs=1, run="tiny"))
    evaluate.main(evaluate.EvaluateArguments(work, run="tiny"))
    evaluate.main(evaluate.EvaluateArguments(work, run="tiny", part="test"))
    export.main(export.ExportArguments(work, cohort / "femur", run="tiny"))
    return work


def test_the_records_are_as_the_manifest_says(work):
    assert records.check(study.records_path(work)) == []
    manifest = records.read_manifest(study.records_path(work))
    assert {case.case: case.part for case in manifest.cases}.keys() == set(CASES) - {"hip_04"}  # no records of a test
    assert manifest.count("train") == 1200


def test_every_stage_has_the_patch_rule_of_the_plan(cohort, work):
    rule = study.read_plan(work).data.patch
    run = config.load(config.RunConfig, study.run_path(work, "tiny") / "config.json")
    exported = config.load(config.RunConfig, cohort / "femur" / "1" / "assets.extra" / "config.json")
    assert run.data.patch == exported.data.patch == rule
    assert run.model.filters == (4, 8, 8)


def test_the_recipe_was_chosen_on_validation_cases_alone(work):
    chosen = json.loads((study.run_path(work, "tiny") / "recipe.json").read_text(encoding="utf-8"))
    assert chosen["cases"] == [case.name for case in study.read_plan(work).part("validation")]


def test_the_report_of_the_test_has_every_score(work):
    folder = work / "reports" / "tiny"
    with (folder / "test.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["case"] == "hip_04"
    assert 0 <= float(row["dice"]) <= 1
    assert "hip_04" in (folder / "test.html").read_text(encoding="utf-8")


def test_a_training_of_seconds_ranks_bone_above_background(work):
    assert json.loads((work / "reports" / "tiny" / "test.json").read_text(encoding="utf-8"))["auc"] > 0.7


def test_a_new_scan_gets_a_mask_on_its_own_grid_from_the_exported_folder_alone(cohort, work, tmp_path):
    moved = (cohort / "femur").rename(tmp_path / "elsewhere")
    scan, mask = cohort / "new.nii.gz", tmp_path / "mask.nii.gz"
    arguments = segment.SegmentArguments(scan, mask, moved, probability=tmp_path / "map.nii.gz", sides=True)
    assert segment.main(arguments) == 0
    found, original = nibabel.load(mask), nibabel.load(scan)
    assert found.shape == original.shape
    np.testing.assert_array_equal(found.affine, original.affine)
    assert set(np.unique(np.asarray(found.dataobj))) <= {0, 1, 2}
    assert image_io.read_image(tmp_path / "map.nii.gz").volume.data.dtype == np.float32
    moved.rename(cohort / "femur")
