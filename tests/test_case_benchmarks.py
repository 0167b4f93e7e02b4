"""Cross-validation, learning curve and label ceiling: which case does what, and what undoing a flaw gives."""

import dataclasses
import json
from pathlib import Path

import bright
import numpy as np
import pytest
import tiny
import tyro

from benchmarks import cross_validation, derived, label_ceiling, learning_curve, scoring
from femur_tf import case_maps, config, files, study, volume
from femur_tf.errors import DataError

NAMES = [f"hip_{number:02d}" for number in range(1, 12)]
PARTS = {"hip_01": "train", "hip_03": "test"}
WIDE = {"run": "wide", "set": ("model.filters=[24,48]",)}


def cases(test=2):
    """Return cases of a study, some of them for the test."""
    parts = ["train"] * len(NAMES) + ["test"] * test
    return [study.Case(f"hip_{n + 1:02d}", "", "", part) for n, part in enumerate(parts)]


def test_each_case_is_left_out_once():
    found = cross_validation.folds(NAMES, 3, seed=1)
    left_out = [name for parts in found for name, part in parts.items() if part == "test"]
    assert sorted(left_out) == NAMES
    for parts in found:
        assert sorted(parts) == NAMES
        assert list(parts.values()).count("validation") == 2
        assert list(parts.values()).count("train") >= 5


@pytest.mark.parametrize("count", [3, 5, 11])
def test_the_cases_that_choose_are_spread(count):
    found = cross_validation.folds(NAMES, count, seed=1)
    chosen = [name for parts in found for name, part in parts.items() if part == "validation"]
    assert max(chosen.count(name) for name in NAMES) <= -(-2 * count // len(NAMES))
    trained = {name for parts in found for name, part in parts.items() if part == "train"}
    assert sorted(trained) == NAMES


@pytest.mark.parametrize("count", [1, 12])
def test_folds_that_cannot_be_are_refused(count):
    with pytest.raises(DataError, match=f"--folds: expected 2 or more.*Received: {count} of 11"):
        cross_validation.folds(NAMES, count, seed=1)


def test_folds_that_leave_too_few_are_refused():
    with pytest.raises(DataError, match="two cases outside each"):
        cross_validation.folds(NAMES[:2], 2, seed=1)


def test_a_larger_study_holds_the_smaller_one():
    small, large = (learning_curve.parts_of(cases(), count, seed=1) for count in (3, 11))
    assert set(small) <= set(large)
    assert list(small.values()).count("train") == 2
    assert list(large.values()).count("validation") == 2
    assert [name for name, part in large.items() if part == "test"] == ["hip_12", "hip_13"]


@pytest.mark.parametrize(("count", "test"), [(1, 2), (12, 2), (3, 0)])
def test_numbers_of_cases_that_cannot_be_are_refused(count, test):
    with pytest.raises(DataError, match="expected 2 to 11 cases, and a test case"):
        learning_curve.parts_of(cases(test), count, seed=1)


def derive(work, **changes):
    """Make the derived study `one` as far as its plan; return its folder."""
    settings = derived.settings(derived.Making(work, **changes))
    derived.derive(work, work / "one", PARTS, settings.data)
    return work / "one"


def scores(work, **changes):
    """Return the scores of the derived study `one`."""
    arguments = derived.Making(work, **changes)
    return derived.scores(arguments, work / "one", PARTS, derived.settings(arguments))


def test_a_derived_study_has_the_presets_rule_and_the_parts_asked_for(tmp_path):
    plan = tiny.write_study(tmp_path)
    found = study.read_plan(derive(tmp_path))
    assert [(case.name, case.part) for case in found.cases] == [("hip_01", "train"), ("hip_03", "test")]
    assert found.data == dataclasses.replace(plan.data, patch=config.PRESETS["default"].patch(plan.data.patch))


def test_a_derived_study_has_the_settings_asked_for(tmp_path):
    """Those of a file, then those that are named; of the file's data its patches, the rest is the study's."""
    plan = tiny.write_study(tmp_path)
    rule = dataclasses.replace(plan.data.patch, scales_mm=(3.6,), planes=("finest",))
    best = config.RunConfig(config.DataConfig(rule), config.ModelConfig(l2=0.123), config.TrainConfig(batch=32))
    files.write_json(tmp_path / "best.json", config.to_dict(best))
    asked = derived.Making(tmp_path, config=tmp_path / "best.json", set=("model.filters=[24,48]",), minutes=3)
    found = derived.settings(asked)
    assert found.data == dataclasses.replace(plan.data, patch=rule)
    assert found.model == config.ModelConfig(filters=(24, 48), l2=0.123)
    assert found.train == config.TrainConfig(batch=32, minutes=3)
    derived.derive(tmp_path, tmp_path / "one", PARTS, found.data)
    assert study.read_plan(tmp_path / "one").data == found.data


@pytest.mark.parametrize("kind", [cross_validation.FoldsArguments, learning_curve.CurveArguments])
def test_settings_are_named_as_those_of_a_training(kind):
    words = ["work", "--run", "best", "--config", "best.json", "--set", "model.l2=0", "--set", "train.batch=32"]
    found = tyro.cli(kind, args=words)
    assert (found.work, found.run, found.config) == (Path("work"), "best", Path("best.json"))
    assert found.set == ("model.l2=0", "train.batch=32")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.minutes=3", r"--set: expected no training time\. Received: train\.minutes=3\. Use --minutes"),
        ("train.epochs=3", "expected no training time"),
        ("train.start=near", r"without a run to start from.*Received: train\.start='near', train\.mined=\[\]"),
        ('train.mined=["hard"]', r"or mined sets.*Received: .*train\.mined=\['hard'\]"),
        ("model.filter=3", r"--set: expected NAME=VALUE.*Perhaps you meant model\.filters"),
    ],
)
def test_settings_that_a_derived_study_cannot_have_are_refused(tmp_path, assignment, words):
    tiny.write_study(tmp_path)
    with pytest.raises(DataError, match=words):
        derived.settings(derived.Making(tmp_path, set=(assignment,)))


def test_runs_of_other_names_lie_in_other_folders():
    places = [derived.folder_of(derived.Studies(Path("work"), run), "folds", "3-0") for run in ("default", "wide")]
    assert places == [Path("work/folds/3-0-10min-2017"), Path("work/folds-wide/3-0-10min-2017")]
    with pytest.raises(DataError, match="expected the name of a folder in it"):
        derived.folder_of(derived.Studies(Path("work"), "../wide"), "folds", "3-0")


def test_scores_that_are_there_are_not_made_again(tmp_path):
    tiny.write_study(tmp_path)
    rows = [{"case": "hip_03", "dice": 0.9}]
    files.write_json(derived.scores_path(derive(tmp_path), "default"), {"cases": rows})
    assert scores(tmp_path) == rows


@pytest.mark.parametrize("changes", [{}, {"set": ("model.filters=[24,48]",)}])
def test_scores_of_other_settings_are_refused(tmp_path, changes):
    plan = tiny.write_study(tmp_path)
    folder = derive(tmp_path)
    files.write_json(derived.scores_path(folder, "default"), {"cases": []})
    earlier = config.RunConfig(plan.data, config.ModelConfig(l2=0.123), config.TrainConfig())
    files.write_json(study.run_path(folder, "default") / "config.json", config.to_dict(earlier))
    with pytest.raises(DataError, match=r"expected the settings of this command\. Received: another .*l2.*--run"):
        scores(tmp_path, **changes)


def test_a_derived_study_of_other_patches_is_refused(tmp_path):
    tiny.write_study(tmp_path)
    derive(tmp_path)
    with pytest.raises(DataError, match=r"expected a study derived.*Received: another plan.*Choose another --run"):
        derive(tmp_path, set=("data.patch.planes=[]",))


def test_a_run_is_made_in_its_folder_with_its_settings(tmp_path, monkeypatch):
    """What is written, trained and evaluated, without any of it."""
    from femur_tf import training

    tiny.write_study(tmp_path)
    asked = []
    monkeypatch.setattr(derived.write_records, "write", lambda folder, processes: asked.append(folder))
    monkeypatch.setattr(training, "train", lambda records, run, settings: asked.append((run, settings.model.filters)))

    def evaluated(arguments):
        asked.append((arguments.run, arguments.part))
        rows = [{"case": "hip_03", "dice": 0.9}]
        files.write_json(arguments.work / "reports" / arguments.run / f"{arguments.part}.json", {"cases": rows})

    monkeypatch.setattr(derived.evaluate, "main", evaluated)
    assert scores(tmp_path, **WIDE) == [{"case": "hip_03", "dice": 0.9}]
    folder = tmp_path / "one"
    assert asked == [folder, (folder / "runs/wide", (24, 48)), ("wide", "validation"), ("wide", "test")]


def test_each_command_makes_the_studies_of_its_run(tmp_path, monkeypatch, capsys):
    tiny.write_study(tmp_path)
    made = []

    def row(arguments, folder, parts, settings):
        made.append((str(folder.relative_to(tmp_path)), settings.model.filters))
        (case,) = (name for name, part in parts.items() if part == "test")
        return [{"case": case, **dict.fromkeys(scoring.MEASURES, 0.5)}]

    monkeypatch.setattr(derived, "scores", row)
    monkeypatch.setattr(cross_validation, "pooled", lambda folders, run: dict.fromkeys(tiny.PARTS, 0.5))
    cross_validation.main(cross_validation.FoldsArguments(tmp_path, **WIDE))
    learning_curve.main(learning_curve.CurveArguments(tmp_path, cases=(3,), **WIDE))
    folders = [*(f"folds-wide/3-{number}-10min-2017" for number in range(3)), "curve-wide/3-10min-2017"]
    assert made == [(folder, (24, 48)) for folder in folders]
    assert "Run wide, 3 folds of 3 cases" in capsys.readouterr().out


SPACING_MM = (1.0, 5.0, 1.0)


def ceiling(masks, reference, probability=None):
    """Return the ceiling of a case; without a map of its own the mask stands for it."""
    map_ = masks[1].astype(np.float32) if probability is None else probability
    return label_ceiling.ceiling(masks, map_, reference, SPACING_MM)


def square(shape=(20, 3, 20), low=6, high=14):
    """Return a mask of a square in each slice of the middle axis."""
    mask = np.zeros(shape, bool)
    mask[low:high, :, low:high] = True
    return mask


def test_a_mask_is_moved_within_its_slices():
    found = label_ceiling.moved(square(), (2, -1), (0, 2))
    assert np.argwhere(found).min(axis=0).tolist() == [8, 0, 5]
    assert found.sum() == square().sum()
    np.testing.assert_array_equal(label_ceiling.moved(square(), (0, 0), (0, 2)), square())


def test_a_shift_is_found_and_undone():
    masks = {1: square()}
    found = ceiling(masks, label_ceiling.moved(square(), (2, -1), (0, 2)))
    assert found.shift == (-2, 1)
    assert found.shifted == found.both == 1.0
    assert found.dice == found.thickened < 0.8


def test_a_thick_contour_is_found_and_undone():
    masks = {1: square(), 0.25: square(low=5, high=15)}
    found = ceiling(masks, square(low=5, high=15))
    assert (found.odds, found.shift, found.both) == (0.25, (0, 0), 1.0)
    assert found.thickened == 1.0 > found.dice


def test_slices_of_one_mask_alone_are_the_ends():
    reference = square()
    reference[:, 0] = False
    found = ceiling({1: square()}, reference)
    assert found.dice == pytest.approx(0.8)
    assert found.ends == pytest.approx(0.2)


def test_wide_errors_are_undone_and_the_contour_is_not():
    reference, mask, contour = (square((60, 3, 60), low, 60 - low) for low in (10, 11, 11))
    reference[:, 0] = contour[:, 0] = False  # the mask has the bone in a slice more
    mask[0:8, 2, 0:8] = True  # and something beside it
    probability = np.where(mask, 0.9, 0.2).astype(np.float32)
    probability[0:8, 2, 0:8] = 0.7
    found = ceiling({1: mask}, reference, probability)
    left = 2 * contour.sum() / (contour.sum() + reference.sum())
    assert found.wide == pytest.approx(left, abs=0.01)  # a disc leaves the corners of a square
    assert found.dice < left - 0.1
    assert (found.missed, found.extra) == (None, pytest.approx(0.9))
    swapped = ceiling({1: reference}, mask, np.full(mask.shape, 0.2, np.float32))
    assert (swapped.missed, swapped.extra) == (pytest.approx(0.2), None)


def test_a_case_gets_what_the_cases_of_other_folds_choose(tmp_path, monkeypatch):
    """Two of three maps say 0.3 for bone; with their cut-off the one whose own would be higher is whole as well."""
    plan = tiny.write_study(tmp_path)
    maps = {}
    for case, high in zip(plan.cases, (0.3, 0.3, 0.9), strict=False):
        loaded = study.load_case(plan, case)
        grey = np.where(loaded.working_mask, high, 0.02).astype(np.float16)
        maps[tmp_path / case.name] = [case_maps.CaseMap(loaded, volume.Volume(grey, loaded.working.affine))]
    monkeypatch.setattr(derived, "left_out", lambda folder, run: (None, maps[folder]))
    found = cross_validation.pooled(list(maps), "default")
    assert sorted(found) == ["hip_01", "hip_02", "hip_03"]
    assert found["hip_03"] > 0.95


def test_a_ceiling_needs_folds(tmp_path):
    tiny.write_study(tmp_path)
    arguments = label_ceiling.CeilingArguments(tmp_path, run="wide", minutes=2.5)
    words = r"folds-wide/3-0-2\.5min-2017: expected a fold.* --run wide --folds 3 --minutes 2\.5 --seed 2017"
    with pytest.raises(DataError, match=words):
        next(iter(label_ceiling.left_out(arguments)))


def test_a_ceiling_of_no_folds_is_refused(tmp_path):
    tiny.write_study(tmp_path)
    with pytest.raises(DataError, match=r"--folds: expected 2 or more.*Received: 0 of 3"):
        next(iter(label_ceiling.left_out(label_ceiling.CeilingArguments(tmp_path, folds=0))))


def test_an_empty_mask_has_no_ends():
    assert ceiling({1: np.zeros_like(square())}, square()).ends is None


def test_means_are_those_of_the_cases_that_have_a_value(tmp_path, monkeypatch, capsys):
    tiny.write_study(tmp_path)
    names = iter(["hip_01", "hip_02", "hip_03"])
    ppv = {"hip_01": None, "hip_02": 0.6, "hip_03": 0.8}

    def scores(arguments, folder, parts, settings):
        name = next(names)
        return [{"case": name, "dice": 0.5, "ppv": ppv[name], "sensitivity": 0.5, "surface_mm": None}]

    monkeypatch.setattr(derived, "scores", scores)
    monkeypatch.setattr(cross_validation, "pooled", lambda folders, run: dict.fromkeys(ppv, 0.5))
    cross_validation.main(cross_validation.FoldsArguments(tmp_path))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["ppv"] == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.1)}
    assert found["surface_mm"] == {"mean": None, "sd": None}
    assert found["dice"] == {"mean": 0.5, "sd": 0.0}


def correct_mask(plan):
    """Write another mask of the study's first case."""
    bright.save(Path(plan.cases[0].mask), np.roll(tiny.ball(), 1, axis=0).astype(np.uint8))


def test_scores_of_a_mask_that_was_corrected_since_are_refused(tmp_path):
    plan = tiny.write_study(tmp_path)
    derive(tmp_path)
    derive(tmp_path)
    correct_mask(plan)
    words = r"expected the scans and masks that this study .*Received: others of hip_01,.*Remove its folder"
    with pytest.raises(DataError, match=words):
        derive(tmp_path)
    with pytest.raises(DataError, match=words):
        derived.left_out(tmp_path / "one", "default")


def test_a_derived_study_that_does_not_say_what_it_was_made_from_stays(tmp_path):
    plan = tiny.write_study(tmp_path)
    (derive(tmp_path) / derived.MADE_FROM).unlink()
    derive(tmp_path)
    correct_mask(plan)
    with pytest.raises(DataError, match="others of hip_01"):
        derive(tmp_path)


def test_records_of_which_only_a_part_was_removed_go(tmp_path):
    tiny.write_study(tmp_path)
    folder = derive(tmp_path)
    files.write_json(derived.scores_path(folder, "default"), {"cases": []})
    files.write_text(study.records_path(folder) / "shards/hip_01-00000-of-00001.tfrecord", "")
    scores(tmp_path)
    assert not study.records_path(folder).exists()


def test_a_derived_study_that_another_process_makes_is_refused(tmp_path):
    tiny.write_study(tmp_path)
    with (
        files.locked(study.run_path(tmp_path / "one", "default"), ""),
        pytest.raises(DataError, match=r"runs/default: another process is working here\. Wait for it\."),
    ):
        scores(tmp_path)


def test_a_derived_study_of_another_plan_is_refused(tmp_path):
    plan = tiny.write_study(tmp_path)
    derive(tmp_path)
    derive(tmp_path)
    sampling = dataclasses.replace(plan.data.sampling, per_case=91)
    changed = dataclasses.replace(plan, data=dataclasses.replace(plan.data, sampling=sampling))
    files.write_json(study.plan_path(tmp_path), config.to_dict(changed))
    with pytest.raises(DataError, match=r"expected a study derived from the plan of .*remove its folder"):
        derive(tmp_path)


@pytest.mark.slow
def test_folds_then_their_ceiling(tmp_path, monkeypatch, capsys):
    tiny.write_study(tmp_path)
    small = config.Preset(config.ModelConfig(filters=(4,), dense=(8,)), config.TrainConfig(batch=32), (0.0,))
    monkeypatch.setitem(config.PRESETS, "default", small)
    monkeypatch.setattr(derived.write_records, "write", tiny.write_its_records)
    arguments = cross_validation.FoldsArguments(tmp_path, minutes=0.05, processes=1)
    cross_validation.main(arguments)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sorted(found["cases"]) == ["hip_01", "hip_02", "hip_03"]
    assert found["dice"]["mean"] > 0.5
    assert sorted(found["pooled_cases"]) == sorted(found["cases"])
    assert 0 <= found["pooled"]["mean"] <= 1  # three networks that have trained for seconds do not agree
    assert not list(tmp_path.glob("folds/*/records"))
    label_ceiling.main(label_ceiling.CeilingArguments(tmp_path, minutes=0.05))
    ceiling = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ceiling["dice"] == pytest.approx(found["dice"]["mean"], abs=1e-6)
    assert ceiling["both"] >= ceiling["shifted"] >= ceiling["dice"]
