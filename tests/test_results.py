"""The shipped model's figures: which cases, what is printed, which pictures are drawn."""

import json

import bright
import pytest
import tiny

from benchmarks import results
from femur_tf.errors import DataError


@pytest.mark.parametrize("numbers", ["7", "1,77"])
def test_a_case_that_is_not_there_is_named(tmp_path, numbers):
    tiny.write_study(tmp_path)
    with pytest.raises(DataError, match=f"Received: '{numbers.split(',')[-1]}' is none of hip_01"):
        results.chosen(tmp_path, numbers)


@pytest.mark.slow
def test_a_case_is_scored_and_pictured(tmp_path, capsys):
    tiny.write_study(tmp_path)
    model = bright.save_run(tmp_path / "run")
    results.main(results.ResultsArguments(tmp_path, model, "3,4", tmp_path / "pictures", beside=model))
    lines = capsys.readouterr().out.splitlines()
    (found,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert sorted(found["cases"]) == ["hip_03", "hip_04"]
    assert found["dice"] > 0.5
    assert found["beside"] == {"hip_03": 1.0, "hip_04": 1.0}
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {"roc.png", "bars.png", "reliability.png", "case_hip_03.png", "case_hip_04.png"}
