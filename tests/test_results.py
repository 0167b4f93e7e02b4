"""The shipped model's figures: which cases, what is printed, which pictures are drawn."""

import dataclasses
import json
import math
import subprocess
from pathlib import Path

import bright
import pytest
import tiny

from benchmarks import results, scoring
from femur_tf import case_scores
from femur_tf.errors import DataError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("numbers", ["7", "1,77"])
def test_a_case_that_is_not_there_is_named(tmp_path, numbers):
    tiny.write_study(tmp_path)
    with pytest.raises(DataError, match=f"Received: '{numbers.split(',')[-1]}' is none of hip_01"):
        results.chosen(tmp_path, numbers)


def test_a_measure_that_no_case_has_is_null_and_others_are_means():
    row = case_scores.CaseScore("hip_03", *[0.5] * 8)
    empty = dataclasses.replace(row, dice=0.0, ppv=math.nan, surface_mm=math.nan)
    assert scoring.means([row, empty]) == {"dice": 0.25, "ppv": 0.5, "sensitivity": 0.5, "surface_mm": 0.5}
    assert scoring.means([empty])["ppv"] is None


def test_a_folder_may_have_a_blank_in_its_name():
    words = ["make", "--dry-run", "results", "DATA=hip scans"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert '-m benchmarks.results "hip scans"' in said


@pytest.mark.slow
def test_a_case_is_scored_and_pictured(tmp_path, capsys):
    tiny.write_study(tmp_path)
    model = bright.save_run(tmp_path / "run", chosen=dataclasses.replace(bright.CHOSEN, cases=("hip_02",)))
    results.main(results.ResultsArguments(tmp_path, model, "3,4", tmp_path / "pictures", beside=model))
    lines = capsys.readouterr().out.splitlines()
    (found,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert sorted(found["cases"]) == ["hip_03", "hip_04"]
    assert found["dice"] > 0.5
    assert found["beside"] == {"hip_03": 1.0, "hip_04": 1.0}
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"roc.png", "bars.png", "reliability.png", "case_hip_03.png", "case_hip_04.png"}
