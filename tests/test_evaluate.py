"""Evaluating: scores by hand, what is saved, what validation may choose and a test may not."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
import weakref

import bright
import numpy as np
import pytest
import tiny

from femur_tf import (
    bundle,
    case_maps,
    case_scores,
    command,
    config,
    evaluate,
    files,
    lineage,
    metrics,
    postprocess,
    predict,
    study,
    volume,
)
from femur_tf.errors import DataError
from femur_tf.evaluate import EvaluateArguments


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run without a recipe."""
    return bright.save_run(tmp_path_factory.mktemp("model"), chosen=None)


@pytest.fixture
def work(tmp_path, model, monkeypatch):
    """A study with a run that was not evaluated. The network is loaded once a test."""
    tiny.write_study(tmp_path, rule=bright.RULE)
    run = tmp_path / "runs" / "default"
    run.mkdir(parents=True)
    for name in (bundle.MODEL, bundle.CONFIG):
        (run / name).write_bytes((model / name).read_bytes())
    return tmp_path


def choose(work, **options):
    return evaluate.evaluate(EvaluateArguments(work, **options))


def test_the_scores_of_a_shifted_cube_by_hand():
    reference, mask = np.zeros((2, 6, 6, 6), bool)
    reference[1:3, 1:3, 1:3] = True
    mask[2:4, 1:3, 1:3] = True  # half of it, shifted by one voxel of 2 mm
    score = case_scores.score("a", mask, reference, (2.0, 1.0, 1.0))
    assert (score.dice, score.ppv, score.sensitivity) == (0.5, 0.5, 0.5)
    assert score.specificity == pytest.approx(1 - 4 / 208)
    assert (score.surface_mm, score.hausdorff95_mm) == (1.0, 2.0)  # half of the voxels lie 2 mm apart, half on it
    assert (score.volume_cm3, score.reference_cm3) == (0.016, 0.016)


def test_an_empty_mask_has_no_distance_and_no_ppv():
    score = case_scores.score("a", np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool), (1.0, 1.0, 1.0))
    assert (score.dice, score.sensitivity, score.volume_cm3) == (0.0, 0.0, 0.0)
    assert math.isnan(score.ppv) and math.isnan(score.surface_mm) and math.isnan(score.hausdorff95_mm)


@pytest.mark.slow
def test_validation_chooses_and_test_only_measures(work):
    choose(work)
    run = work / "runs" / "default"
    chosen = config.load(bundle.ChosenRecipe, run / bundle.RECIPE)
    assert (chosen.cases, chosen.method) == (("hip_03",), "dice")
    before = (run / bundle.RECIPE).read_bytes()
    scores = choose(work, part="test")
    assert [score.case for score in scores] == ["hip_04"]
    assert (run / bundle.RECIPE).read_bytes() == before


@pytest.mark.slow
def test_the_score_is_that_of_the_recipe_against_the_untouched_reference(work):
    (score,) = choose(work)
    found = bundle.load(work / "runs" / "default")
    loaded = study.load_case(study.read_plan(work), study.read_plan(work).part("validation")[0])
    map_ = bundle.working_map(found, loaded.working)
    own = volume.from_working(map_, loaded.image.volume)
    mask = postprocess.apply(own, found.recipe, spacing_mm=tiny.SPACING_MM)
    assert score.dice == metrics.dice(mask, tiny.ball())
    assert found.chosen.dice == pytest.approx(score.dice)


@pytest.mark.slow
def test_a_report_has_the_table_as_csv_as_json_and_as_a_page(work):
    (score,) = choose(work)
    folder = work / "reports" / "default"
    with (folder / "validation.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["case"], float(row["dice"])) == ("hip_03", score.dice)
    saved = json.loads((folder / "validation.json").read_text(encoding="utf-8"))
    assert (saved["part"], saved["cases"][0]["dice"]) == ("validation", score.dice)
    assert "hip_03" in (folder / "validation.html").read_text(encoding="utf-8")


def test_undefined_scores_are_null_in_json(tmp_path):
    nothing = case_scores.score("a", np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool), (1.0, 1.0, 1.0))
    nan = float("nan")
    summary = {"auc": nan, "reliability": {"error": nan, "table": [[0.5, nan]]}}
    case_scores.save(tmp_path, "test", [nothing], summary)

    def refuse(name):
        raise ValueError(name)

    saved = json.loads((tmp_path / "test.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert saved["auc"] is None and saved["cases"][0]["ppv"] is None
    assert saved["reliability"] == {"error": None, "table": [[0.5, None]]}


@pytest.mark.slow
def test_a_map_is_computed_once(work, monkeypatch):
    choose(work)
    monkeypatch.setattr(predict, "dense_map", lambda *_: pytest.fail("computed again"))
    choose(work)


@pytest.mark.slow
def test_a_map_that_is_damaged_is_computed_again(work, capsys):
    first = choose(work)
    path = next((work / "runs" / "default" / "maps").rglob("*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    assert choose(work) == first
    assert "expected a map. Received: a damaged file. It is computed again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recipe_is_not_saved_beside_another_network(work, monkeypatch):
    run = work / "runs" / "default"
    real = case_maps.raw_counts

    def trained_meanwhile(maps):
        found = bundle.load(run, calibrated=False)
        found.model.set_weights([2 * weight for weight in found.model.get_weights()])
        found.model.save(run / bundle.MODEL)
        return real(maps)

    monkeypatch.setattr(case_maps, "raw_counts", trained_meanwhile)
    with pytest.raises(DataError, match=r"expected the network that was evaluated\. .* Evaluate again when it has"):
        choose(work)
    assert not (run / bundle.RECIPE).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("part", "times"), [("test", 1), ("validation", 3)])
def test_of_the_cases_none_is_held_while_the_next_one_is_computed(work, monkeypatch, part, times):
    if part == "test":
        choose(work)
    plan = study.read_plan(work)
    more = [dataclasses.replace(case, name=f"{case.name}{n}") for case in plan.part(part) for n in "abc"]
    files.write_json(study.plan_path(work), config.to_dict(dataclasses.replace(plan, cases=(*plan.cases, *more))))
    read, made = case_maps.read, []

    def watched(*arguments):
        assert not any(one() for one in made)
        made.append(weakref.ref(found := read(*arguments)))
        return found

    monkeypatch.setattr(case_maps, "read", watched)
    assert len(choose(work, part=part, cohort=False)) == 4
    assert len(made) == 4 * times


@pytest.mark.slow
def test_another_scan_under_the_same_name_gets_a_map_of_its_own(work):
    first = choose(work)
    bright.save(work / "images" / "hip_03.nii.gz", tiny.scan("another"))
    assert choose(work) != first


@pytest.mark.slow
def test_the_working_grid_is_that_of_the_run_and_not_of_a_later_plan(work):
    first = choose(work)
    plan = study.read_plan(work)
    other = dataclasses.replace(plan.data, patch=dataclasses.replace(plan.data.patch, spacing_mm=(3.0, 3.0, 3.0)))
    files.write_json(study.plan_path(work), config.to_dict(dataclasses.replace(plan, data=other)))
    assert choose(work) == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "method"),
    [({"cutoff": "youden"}, "youden"), ({"cutoff": "specificity", "specificity": 0.9}, "specificity")],
)
def test_the_cutoff_can_be_chosen_otherwise(work, options, method):
    choose(work, **options)
    assert config.load(bundle.ChosenRecipe, work / "runs" / "default" / bundle.RECIPE).method == method


@pytest.mark.slow
def test_the_command_prints_every_score_and_their_mean(work, capsys, monkeypatch):
    monkeypatch.setattr(command.console, "width", 200)
    evaluate.main(EvaluateArguments(work))
    shown = capsys.readouterr().out
    assert "hip_03" in shown and "mean" in shown and "sd" in shown
    assert f"Report: {work / 'reports' / 'default' / 'validation.html'}" in shown


def test_the_mean_leaves_undefined_scores_out():
    defined = case_scores.CaseScore("a", 0.5, 0.5, 1.0, 1.0, 2.0, 4.0, 1.0, 1.0)
    mean, sd = case_scores.last_rows(
        [defined, dataclasses.replace(defined, dice=0.7, ppv=math.nan, surface_mm=math.nan)]
    )
    assert (mean[:3], sd[:3]) == (["mean", "0.600", "0.500"], ["sd", "0.100", "0.000"])
    mean, sd = case_scores.last_rows([dataclasses.replace(defined, ppv=math.nan)])
    assert (mean[2], sd[2]) == ("nan", "nan")


def test_numbers_of_hips_stay_whole_in_80_columns(monkeypatch, capsys):
    monkeypatch.setattr(command.console, "width", 80)
    case = case_scores.CaseScore("hip_01", 0.9, 0.91, 0.92, 0.999, 12.345, 110.4, 229.268, 1259.1)
    case_scores.show("Run default, test cases", [case, case])
    shown = capsys.readouterr().out
    assert all(number in shown for number in ("0.900", "12.35", "110.4", "229.3", "1259.1"))


@pytest.mark.parametrize("options", [{"cutoff": "dice"}, {"specificity": 0.9}])
def test_a_choice_on_test_cases_is_refused(work, options):
    with pytest.raises(DataError, match="Expected no choice on test cases"):
        choose(work, part="test", **options)


def test_a_test_before_the_choice_is_refused(work):
    with pytest.raises(DataError, match="Choose one on the validation cases first"):
        choose(work, part="test")
    assert not (work / "reports").exists()


def test_a_specificity_that_would_be_ignored_or_is_no_share_is_refused(work):
    with pytest.raises(DataError, match="Expected --cutoff specificity"):
        choose(work, specificity=0.9)
    with pytest.raises(DataError, match=r"--specificity: expected a share in \(0, 1\), such as 0\.99\. Received: 99"):
        choose(work, cutoff="specificity", specificity=99)


def all_train(work):
    """Make every case but the test's one to train with; return the run folder of the study that it was."""
    plan = study.read_plan(work)
    cases = tuple(c if c.part == "test" else dataclasses.replace(c, part="train") for c in plan.cases)
    files.write_json(study.plan_path(work), config.to_dict(dataclasses.replace(plan, cases=cases)))
    other = work / "runs" / "earlier"
    shutil.copytree(work / "runs" / "default", other)
    for name in (bundle.RECIPE, bundle.COHORT):
        (work / "runs" / "default" / name).unlink(missing_ok=True)
    return other


@pytest.mark.slow
def test_a_run_on_all_cases_takes_over_a_recipe(work):
    choose(work)
    earlier = all_train(work)
    evaluate.main(EvaluateArguments(work, recipe_from=earlier))
    run = work / "runs" / "default"
    found = bundle.load(run)
    assert found.chosen == bundle.load(earlier).chosen
    assert found.cohort.cases == 3
    assert [score.case for score in choose(work, part="test")] == ["hip_04"]


@pytest.mark.slow
def test_a_recipe_of_other_settings_is_refused_and_named(work):
    choose(work)
    earlier = all_train(work)
    found = files.read_json(earlier / bundle.CONFIG)
    found["train"] |= {"batch": 7, "seed": 7, "epochs": 7, "epoch_examples": 7, "validation_examples": 7}
    found["data"]["variation"]["copies"] = 7
    files.write_json(earlier / bundle.CONFIG, found)
    with pytest.raises(DataError, match=r"earlier: expected a run of the same settings.*another train\.batch\. Train"):
        evaluate.main(EvaluateArguments(work, recipe_from=earlier))
    with pytest.raises(DataError, match="Choose one on the validation cases first"):
        evaluate.main(EvaluateArguments(work, recipe_from=work / "runs" / "default"))


def test_a_recipe_is_taken_over_without_validation_cases_alone(work):
    with pytest.raises(DataError, match=r"expected no validation cases with --recipe-from\. Received: hip_03"):
        evaluate.main(EvaluateArguments(work, recipe_from=work))
    for options, named in (({"part": "test"}, "--part test"), ({"cutoff": "dice"}, "--cutoff")):
        with pytest.raises(DataError, match=f"Expected --recipe-from alone.*{named} as well"):
            evaluate.main(EvaluateArguments(work, recipe_from=work, **options))


def test_a_study_without_that_run_or_that_part_is_told_what_to_do(work, tmp_path):
    words = r"runs/wide: expected a trained run. .* there are: default. Run first: python -m femur_tf\.train"
    with pytest.raises(DataError, match=words):
        choose(work, run="wide")
    plan = study.read_plan(work)
    files.write_json(study.plan_path(work), config.to_dict(dataclasses.replace(plan, cases=plan.part("train"))))
    with pytest.raises(DataError, match=r"expected validation cases\. Received: none"):
        choose(work)
    with pytest.raises(DataError, match=r"expected a plan, found none. Run first: python -m data_prep\.plan"):
        choose(tmp_path / "empty")


def learned(work, cases, earlier=()):
    """Let the run of a study say what it has learned from."""
    found = lineage.Lineage(*(tuple(lineage.Seen(*one, "0") for one in some) for some in (cases, earlier)))
    files.write_json(work / "runs/default" / lineage.NAME, config.to_dict(found))


@pytest.mark.parametrize(
    ("cases", "earlier"), [([("hip_03", "train")], []), ([("hip_01", "train")], [("hip_03", "train")])]
)
def test_a_run_that_was_trained_on_a_validation_case_is_refused(work, cases, earlier):
    learned(work, cases, earlier)
    with pytest.raises(DataError, match=r"has not seen the validation cases\. Received: one made with hip_03, before"):
        choose(work)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_run_that_has_seen_a_test_case_is_refused(work, part):
    choose(work, cohort=False)
    learned(work, [("hip_04", part)])
    with pytest.raises(DataError, match=r"has not seen the test cases\. Received: one made with hip_04"):
        choose(work, part="test")


def test_a_recipe_that_a_test_case_chose_is_refused(work):
    choose(work, cohort=False)
    plan = study.read_plan(work)
    parts = {"hip_03": "test", "hip_04": "train"}
    cases = tuple(dataclasses.replace(case, part=parts.get(case.name, case.part)) for case in plan.cases)
    files.write_json(study.plan_path(work), config.to_dict(dataclasses.replace(plan, cases=cases)))
    with pytest.raises(DataError, match="Received: one made with hip_03"):
        choose(work, part="test")


@pytest.mark.slow
def test_a_validation_case_is_no_secret_of_its_own_run(work):
    learned(work, [("hip_01", "train"), ("hip_02", "train"), ("hip_03", "validation")])
    choose(work, cohort=False)
    assert choose(work, part="test")[0].case == "hip_04"


@pytest.mark.slow
def test_the_cohort_goes_with_its_recipe(work):
    cohort = work / "runs/default" / bundle.COHORT
    choose(work)
    choose(work, cohort=False)
    assert cohort.exists()
    choose(work, cohort=False, cutoff="youden")
    assert not cohort.exists()


def test_memory_is_the_users_choice(work):
    with pytest.raises(DataError, match=r"--max-memory: expected at least 1 MB\. Received: 0"):
        choose(work, max_memory=0)
    with pytest.raises(DataError, match=r"--max-memory: expected at least \d+ MB for a volume.* Received: 1 MB"):
        choose(work, max_memory=1)
