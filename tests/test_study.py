"""The work folder: its paths, its plan, and a case on its way to the working grid."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny

from femur_tf import config, files, study
from femur_tf.errors import DataError
from femur_tf.volume import Volume

OBLIQUE = np.array([[0.0, -0.6, 1.6, 5.0], [0.0, 0.8, 1.2, -7.0], [-1.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
"""First axis to inferior, spacing (1, 1, 2) mm, turned by 37 degrees about the patient's long axis."""


def test_a_study_has_its_plan_records_and_runs_at_known_places():
    assert study.plan_path(Path("work")) == Path("work/plan.json")
    assert study.records_path(Path("work")) == Path("work/records")
    assert study.run_path(Path("work"), "wide") == Path("work/runs/wide")


def test_parts_keep_the_order_of_the_plan(tmp_path):
    plan = tiny.write_study(tmp_path)
    assert [case.name for case in plan.part("train")] == ["hip_01", "hip_02"]
    assert [case.name for case in plan.part("test")] == ["hip_04"]


def test_a_plan_comes_back_from_its_file(tmp_path):
    assert tiny.write_study(tmp_path) == study.read_plan(tmp_path)


def test_prepare_makes_grey_values_of_the_whole_range_on_canonical_axes(rng):
    data = rng.normal(100, 20, (6, 5, 4)).astype(np.float32)
    image = Volume(data, np.diag([-1.0, 1.0, 2.0, 1.0]))  # the first axis runs to the left
    working = study.prepare(image, config.DataConfig(patch=tiny.RULE))
    assert working.data.dtype == np.uint8
    assert (working.data.min(), working.data.max()) == (0, 255)
    ranks = np.corrcoef(working.data.ravel(), data[::-1].ravel())[0, 1]
    assert ranks > 0.99
    assert working.affine[0, 0] > 0


def test_prepare_corrects_the_bias_field_where_it_is_asked(monkeypatch, rng):
    image = Volume(rng.normal(100, 20, (6, 5, 4)).astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    calls = []
    monkeypatch.setattr(study.intensity, "correct_bias", lambda volume: calls.append(volume) or volume)
    data = config.DataConfig(patch=tiny.RULE)
    study.prepare(image, data)
    assert not calls
    study.prepare(image, dataclasses.replace(data, normalisation=config.NormalisationConfig(n4=True)))
    assert [(call.data == image.data).all() for call in calls] == [True]


def test_a_case_has_its_reference_on_its_own_grid_and_on_the_working_grid(tmp_path):
    plan = tiny.write_study(tmp_path)
    case = study.load_case(plan, plan.cases[0])
    np.testing.assert_array_equal(case.reference, tiny.ball())
    np.testing.assert_array_equal(case.working_mask, tiny.ball())
    assert case.reference.dtype == case.working_mask.dtype == bool
    assert case.working.data.shape == tiny.SHAPE


def test_image_and_mask_of_an_oblique_case_stay_together(tmp_path):
    rule = config.PatchConfig(size=8, spacing_mm=(2.0, 1.0, 1.0))  # the scan's own, so that nothing is resampled
    plan = tiny.write_study(tmp_path, affine=OBLIQUE, rule=rule)
    case = study.load_case(plan, plan.cases[0])
    assert case.working.data.shape == case.working_mask.shape == (12, 20, 24)
    assert case.working_mask.sum() == tiny.ball().sum()
    assert case.working.data[case.working_mask].mean() > case.working.data[~case.working_mask].mean() + 80


def test_a_resampled_mask_keeps_its_volume(tmp_path):
    plan = tiny.write_study(tmp_path, rule=config.PatchConfig(size=8, spacing_mm=(0.7, 0.7, 1.5)))
    case = study.load_case(plan, plan.cases[0])
    voxel_mm3 = float(np.prod(case.working.spacing_mm))
    assert case.working_mask.sum() * voxel_mm3 == pytest.approx(tiny.ball().sum() * 2.0, rel=0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"expected format_version 1\. Received: None"),
        ({"format_version": 2}, r"expected format_version 1\. Received: 2\. Make the plan again"),
        ({"format_version": 1, "cases": []}, r"expected the fields of Plan.*data"),
    ],
)
def test_other_than_a_plan_of_this_version_is_refused(tmp_path, values, message):
    files.write_json(study.plan_path(tmp_path), values)
    with pytest.raises(DataError, match=rf"plan\.json: {message}"):
        study.read_plan(tmp_path)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "..", ""])
def test_a_case_whose_name_leads_elsewhere_is_refused(tmp_path, name):
    plan = tiny.write_study(tmp_path)
    changed = (dataclasses.replace(plan.cases[0], name=name), *plan.cases[1:])
    files.write_json(study.plan_path(tmp_path), config.to_dict(dataclasses.replace(plan, cases=changed)))
    with pytest.raises(DataError, match=rf"plan\.json: expected names of cases without slashes\. Received: '{name}'\."):
        study.read_plan(tmp_path)


def test_a_folder_without_a_plan_says_what_to_run_first(tmp_path):
    with pytest.raises(DataError, match=r"plan\.json: expected a plan.*Run first: python -m data_prep\.plan"):
        study.read_plan(tmp_path)


def test_a_spacing_a_thousandfold_is_refused_with_the_file(tmp_path):
    plan = tiny.write_study(tmp_path, affine=np.diag([1000.0, 1000.0, 2000.0, 1.0]))
    with pytest.raises(DataError, match=r"hip_01\.nii\.gz: expected a working grid .* in another unit"):
        study.load_case(plan, plan.cases[0])


def test_a_missing_scan_is_named(tmp_path):
    plan = tiny.write_study(tmp_path)
    Path(plan.cases[0].image).unlink()
    with pytest.raises((DataError, FileNotFoundError), match=r"hip_01\.nii\.gz"):
        study.load_case(plan, plan.cases[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_volume_in_memory_that_is_not_finite_is_refused(value):
    data = np.ones((4, 4, 4), np.float32)
    data[1, 2, 3] = value
    with pytest.raises(DataError, match=r"volume: expected finite voxels\. Received: NaN or infinite"):
        study.prepare(Volume(data, np.eye(4)), config.DataConfig())


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_files_that_were_moved_are_said_with_what_to_do(tmp_path, folder):
    plan = tiny.write_study(tmp_path)
    (tmp_path / folder).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"Received: nothing there\. Put it back, or plan again with the new folders"):
        study.load_case(plan, plan.cases[0])
