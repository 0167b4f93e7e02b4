"""Rules by which a recipe is chosen, side by side: one line from two tiny studies."""

import json

import bright
import pytest
import tiny

from benchmarks import recipes
from femur_tf import study
from femur_tf.errors import DataError


@pytest.mark.slow
def test_each_rule_is_chosen_on_validation_cases_and_measured_on_test_cases(tmp_path, capsys):
    works = tuple(tmp_path / name for name in ("one", "two"))
    for work in works:
        tiny.write_study(work, rule=bright.RULE)
        bright.save_run(study.run_path(work, "default"), chosen=None)
    recipes.main(recipes.RecipesArguments(works))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line.keys() == recipes.RULES.keys()
    for found in line.values():
        assert [list(cases) for cases in found["cases"]] == [["hip_04"], ["hip_04"]]
        assert found["test"] == pytest.approx(found["cases"][0]["hip_04"])  # both studies are of the same scans
    least = min(found["validation"] for found in line.values())
    assert line["nothing changed"]["validation"] == least  # every change is one for the better on these cases


def test_no_study_is_refused():
    with pytest.raises(DataError, match="expected a work folder or more"):
        recipes.main(recipes.RecipesArguments(()))
