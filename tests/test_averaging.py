"""Averaging maps: by hand, and one line from a tiny study."""

import json

import bright
import numpy as np
import pytest
import tiny

from benchmarks import averaging
from femur_tf import bundle, files, log_odds, study
from femur_tf.errors import DataError


def test_the_mean_is_that_of_logits():
    maps = [np.array([0.5, 0.9, 0.0, 1.0], np.float16), np.array([0.5, 0.1, 0.0, 0.0], np.float16)]
    found = averaging.mean_of(maps)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, [0.5, 0.5, log_odds.LEAST, 0.5], atol=2e-3)
    np.testing.assert_array_equal(averaging.mean_of(maps[:1] * 3)[:2], maps[0][:2])


@pytest.mark.slow
def test_the_line_has_each_run_its_mirror_image_and_all(tmp_path, capsys):
    tiny.write_study(tmp_path, rule=bright.RULE)
    for run in ("one", "two"):
        bright.save_run(study.run_path(tmp_path, run), chosen=None)
    averaging.main(averaging.AveragingArguments(tmp_path, ("one", "two")))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(line) == ["one", "one, mirrored too", "two", "two, mirrored too", "all runs"]
    assert line["one"] == line["two"] and line["one"]["cases"].keys() == {"hip_03"}
    assert line["all runs"]["dice"] == pytest.approx(line["one"]["dice"], abs=0.02)
    assert 0.8 < line["one, mirrored too"]["dice"] <= 1


def test_a_mirrored_map_lies_where_the_scan_does(tmp_path):
    plan = tiny.write_study(tmp_path, rule=bright.RULE)
    run = bundle.load(bright.save_run(study.run_path(tmp_path, "one"), chosen=None), calibrated=False)
    from femur_tf import case_maps

    maps = [case_maps.read(run, plan, plan.cases[0])]
    (found,) = averaging.mirrored(run, maps)
    inside = maps[0].loaded.working_mask
    assert found.raw.data[inside].mean() > 0.5 > found.raw.data[~inside].mean()
    assert len(list((run.folder / "maps").rglob("*.npz"))) == 2


def test_a_study_without_validation_cases_is_refused(tmp_path):
    plan = tiny.write_study(tmp_path, rule=bright.RULE)
    values = files.read_json(study.plan_path(tmp_path))
    values["cases"] = [case for case in values["cases"] if case["part"] != "validation"]
    files.write_json(study.plan_path(tmp_path), values)
    assert plan.cases
    with pytest.raises(DataError, match="expected validation cases"):
        averaging.main(averaging.AveragingArguments(tmp_path))
