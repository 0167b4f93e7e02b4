"""tuning.report and its parts: one page about a search, whatever it left on disk."""

import copy
import csv
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from femur_tf import config, files, records, study
from femur_tf.errors import DataError
from tuning import (
    acquisition,
    importance,
    report,
    report_belief,
    report_curves,
    report_findings,
    report_found,
    report_page,
    report_space,
    trials,
)
from tuning.report_space import Axis
from tuning.search_space import Space
from tuning.trials import About, Search

ROUNDING = 1e-9
"""Of places computed from logarithms."""
NOISE = 0.05
"""What the model takes for chance in scores without any, over a range of 1: its noise is bounded from below."""


def _entry(kind, name, **config):
    """Return one entry of a space, as keras-tuner writes it."""
    return {"class_name": kind, "config": {"name": name, "conditions": [], **config}}


def _needs(name, *values):
    """Return a condition, as keras-tuner writes it."""
    return [{"class_name": "Parent", "config": {"name": name, "values": list(values)}}]


def _numbers(low, high, step=None, sampling="linear", default=None):
    """Return the fields of a range."""
    return {"default": default, "min_value": low, "max_value": high, "step": step, "sampling": sampling}


SPACE = [
    _entry("Int", "layers", **_numbers(2, 3, 1)),
    _entry("Int", "filters_1", **_numbers(8, 32, 4)),
    _entry("Int", "filters_3", **{**_numbers(16, 64, 2, "log"), "conditions": _needs("layers", 3)}),
    _entry("Float", "learning_rate", **_numbers(1e-4, 1e-1, None, "log")),
    _entry("Float", "dropout", **_numbers(0.0, 0.5)),
    _entry("Choice", "optimizer", default=None, values=["sgd", "adam", "nadam"], ordered=False),
    _entry("Choice", "batch", default=64, values=[32, 64, 128, 512], ordered=True),
    _entry("Boolean", "weighted", default=False),
    _entry("Fixed", "plan", value="default"),
]
"""One hyper-parameter of each kind."""


def _loss(values, rng):
    """Return a made-up validation loss: learning rate and dropout matter, a little noise."""
    rate = math.log10(values["learning_rate"]) + 2.2
    return 0.15 + 0.05 * rate**2 + 0.2 * (values["dropout"] - 0.2) ** 2 + 0.01 * rng.standard_normal()


def _write_trial(folder, about, state):
    """Write the two files of a trial."""
    place = trials.trial_folder(folder, f"{about.number:04d}")
    trials.write_about(place, about)
    values = {**about.values, "plan": "default"}
    files.write_json(place / "trial.json", {"hyperparameters": {"space": SPACE, "values": values}, **state})


def write_search(work, name, *, count=25, score=_loss, failed=(), running=(), **fields):
    """Write a search of random trials, as keras-tuner and `tuning.search` leave it.

    Args:
      work: the study's folder.
      name: of the search.
      count: trials.
      score: (values, rng) -> score.
      failed: numbers of the trials that failed.
      running: numbers of those that run.
      fields: of the search.
    """
    folder, seed = work / "tuning" / name, fields.get("seed", 1)
    base = {"algorithm": "bayesian", "objective": "val_loss", "direction": "min", "seed": 1, "max_cost": 250_000.0}
    base |= {"trials": count, "minutes": 2.0, "epochs": None, "work": "work", "started": "2026-11-23T04:00:00"}
    files.write_json(folder / "search.json", config.to_dict(Search(**{**base, **fields})))
    oracle = {"hyperparameters": {"space": SPACE, "values": {}}, "alpha": 1e-4, "beta": 2.6, "num_initial_points": 10}
    files.write_json(folder / "oracle.json", oracle)
    axes, rng = report_space.read_space(folder), np.random.default_rng(seed)
    for number in range(count):
        values = report_space.from_point(axes, rng.random(len(axes)))
        about = About(number, values, {}, cost=20_000.0 + 6_000 * values["filters_1"], training_seconds=110.0)
        about.outside_seconds, about.epochs, about.stopped_early = 10.0, 12, number % 5 == 1
        about.status, about.score = trials.COMPLETED, float(score(values, rng))
        if number in failed:
            about.status, about.score, about.reason = trials.FAILED, None, f"ValueError: <out> of memory {number}"
        if number in running:
            about.status, about.score = trials.RUNNING, None
        _write_trial(folder, about, {"status": about.status, "score": about.score})


def _write_report(work, name="night", compare=()):
    """Write a page with few splits and proposals, and return its text and its pictures' descriptions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importance, "SPLITS", 2)
        patch.setattr(report_findings, "PROPOSALS", 1)
        report.report(report.ReportArguments(work, name, compare))
    text = (work / "reports" / f"tuning-{name}" / "report.html").read_text("ascii")
    return text, re.findall(r'<img alt="([^"]*)" src="data:image/png;base64,', text)


def _cells(text, first):
    """Return the rows of the table whose first heading is `first`."""
    tables = re.findall(r"<table>(.*?)</table>", text)
    body = next(t for t in tables if re.search(r"<th>(.*?)</th>", t)[1] == first)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", body)]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A study with one search of 25 trials and four of 6."""
    work = tmp_path_factory.mktemp("study")
    write_search(work, "night", failed=(4, 17), running=(24,), trials=30)
    for seed in (1, 2):
        write_search(work, f"bayesian{seed}", count=6, seed=seed)
        write_search(work, f"random{seed}", count=6, seed=10 + seed, algorithm="random")
    return work


@pytest.fixture(scope="module")
def page(work):
    """The page of the large search and its pictures' descriptions."""
    return _write_report(work)


RATE = Axis("rate", 1e-3, (), 1e-4, 1e-1, "log")
AXES = (
    Axis("layers", 2, (2, 3)),
    Axis("width", 16, (16, 32, 64), conditions=(("layers", (3,)),)),
    RATE,
    Axis("dropout", 0.0, (), 0.0, 0.5),
    Axis("optimizer", "sgd", ("sgd", "adam", "nadam")),
)


@pytest.mark.parametrize(
    ("axis", "value", "place"),
    [
        (Axis("a", 0.0, (), 0.0, 0.5), 0.25, 0.5),
        (RATE, 1e-2, 2 / 3),
        (Axis("a", 0.1, (), 0.1, 1.0, "reverse_log"), 1.0, 1.0),
        (Axis("a", 0.1, (), 0.1, 1.0, "reverse_log"), 0.1, 0.0),
        (Axis("a", 8, (), 8, 32 + 1, "log", whole=True), 8, math.log(8.5 / 8) / math.log(33 / 8)),
        (Axis("a", 2, (2, 3)), 3, 0.75),  # the middle of its half
        (Axis("a", False, (False, True)), True, 0.75),
        (Axis("a", "x", ("x", "y", "z")), "x", 1 / 6),
        (Axis("a", 0.1, (0.1, 0.2, 0.4)), 0.35, 5 / 6),  # none of the levels: the closest
        (RATE, 5.0, 1.0),  # beyond the range: its end
    ],
)
def test_a_value_has_its_place(axis, value, place):
    assert axis.to_unit(value) == pytest.approx(place, abs=ROUNDING)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (0.123456, "0.1235"),
        (250_000.0, "250,000"),
        ("sgd", "sgd"),
        (3, "3"),
        (1e-4, "0.0001"),
    ],
)
def test_values_are_shown_short(value, text):
    assert report_space.show(value) == text


def test_an_unused_hyper_parameter_stands_at_its_default():
    deep, flat = {"layers": 3, "width": 64}, {"layers": 2, "width": 64}
    rest = {"rate": 1e-4, "dropout": 0.0, "optimizer": "sgd"}
    points = report_space.to_points(AXES, [deep | rest, flat | rest])
    np.testing.assert_allclose(points[:, 1], [5 / 6, 1 / 6])
    assert "width" not in report_space.from_point(AXES, np.zeros(5))
    assert report_space.from_point(AXES, np.ones(5))["width"] == 64


def test_the_best_so_far_passes_over_failed_and_running_trials():
    rows = [_row(0, 0.5), _row(1, 0.7), _row(2, None, trials.FAILED), _row(3, 0.4), _row(4, None, trials.RUNNING)]
    curve = report_curves.curve("a", _search(), rows)
    np.testing.assert_array_equal(curve.best, [0.5, 0.5, 0.5, 0.4])
    np.testing.assert_array_equal(curve.minutes, [2, 4, 6, 8])
    upward = report_curves.curve("a", _search(direction="max"), rows[::-1])
    np.testing.assert_array_equal(upward.best, [0.4, 0.4, 0.7, 0.7])


def test_nothing_is_best_before_a_trial_finished():
    rows = [_row(0, None, trials.FAILED), _row(1, 0.7)]
    np.testing.assert_array_equal(report_curves.curve("a", _search(), rows).best, [np.nan, 0.7])


def test_searches_of_one_algorithm_and_other_seeds_are_one_group():
    kinds = [("bayesian", 1), ("random", 1), ("bayesian", 2), ("random", 1)]
    curves = [
        report_curves.curve(
            f"s{n}", _search(algorithm=kind, seed=seed), [_row(0, float(n)), _row(1, float(n))][: n + 1]
        )
        for n, (kind, seed) in enumerate(kinds)
    ]
    groups = report_curves.group(curves)
    assert [item.label for item in groups] == ["bayesian, 2 seeds", "s1", "s3"]  # one seed twice is no second opinion
    np.testing.assert_array_equal(groups[0].best, [[0.0], [2.0]])  # up to the shorter search
    np.testing.assert_array_equal(groups[0].at_minutes(np.array([0.0, 2.0])), [[np.nan, 0.0], [np.nan, 2.0]])


def test_searches_of_other_settings_are_no_group():
    kinds = [{"minutes": 2.0}, {"minutes": 60.0}, {"minutes": 2.0, "seed": 2}, {"minutes": 60.0, "seed": 2}]
    kinds += [{"max_cost": 1e6}, {"from_default": False}, {"minutes": None, "epochs": 3}, {"epoch_examples": 64}]
    curves = [report_curves.curve(f"s{n}", _search(**kind), [_row(0, 0.5)]) for n, kind in enumerate(kinds)]
    labels = [item.label for item in report_curves.group(curves)]
    assert labels == ["bayesian, 2 seeds (s0, s2)", "bayesian, 2 seeds (s1, s3)", "s4", "s5", "s6", "s7"]


def _search(**fields):
    """Return the settings of a search."""
    base = {"algorithm": "bayesian", "objective": "val_loss", "direction": "min", "seed": 1, "max_cost": 1e5}
    base |= {"trials": 5, "minutes": 2.0, "epochs": None, "work": "work", "started": "2026-11-23T04:00:00"}
    return Search(**{**base, **fields})


def _row(number, score, status=trials.COMPLETED, values=None):
    """Return a trial of 110 seconds of training and 10 others."""
    return trials.TrialRow(
        str(number), number, status, score, values or {}, 1e5, 110.0, 10.0, 3, False, None if score else "why"
    )


@pytest.mark.parametrize(
    ("scores", "direction", "limits"),
    [
        ([1.0, 2.0, 3.0, 4.0], "min", (1 - 0.18, 4 + 0.18)),
        ([1.0, 2.0, 3.0, 100.0], "min", (1 - 5.94, 100 + 5.94)),  # quartiles 1.75 and 27.25: within reach
        ([1.0, 1.0, 2.0, 2.0, 50.0], "min", (1 - 0.24, 5 + 0.24)),  # quartiles 1 and 2: up to 2 + 3
        ([1.0, 1.0, 2.0, 2.0, -50.0], "max", (-2 - 0.24, 2 + 0.24)),
        ([0.5, 0.5], "min", (0.49, 0.51)),  # equal scores
    ],
)
def test_limits_leave_out_what_is_far_worse(scores, direction, limits):
    assert report_curves.score_limits(np.array(scores), direction) == pytest.approx(limits)


@pytest.mark.parametrize(("outside", "training", "share"), [(10, 90, 0.1), (0, 0, math.nan), (5, 0, 1.0)])
def test_the_share_outside_training(outside, training, share):
    row = trials.TrialRow("1", 1, trials.RUNNING, None, {}, None, training, outside, 0, False, None)
    assert report_found.outside_share([row]) == pytest.approx(share, nan_ok=True)


@settings(deadline=None, max_examples=60)
@given(
    place=st.floats(0, 1),
    axis=st.sampled_from(
        [*AXES, Axis("n", 8, (), 8, 33, "log", whole=True), Axis("r", 1.0, (), 1.0, 9.0, "reverse_log")]
    ),
)
def test_a_place_gives_a_value_of_about_that_place(axis, place):
    value = axis.from_unit(place)
    width = 1 / len(axis.levels) if axis.levels else (0.1 if axis.whole else ROUNDING)
    assert abs(axis.to_unit(value) - place) <= width
    assert axis.from_unit(axis.to_unit(value)) == (value if axis.levels or axis.whole else pytest.approx(value))


@settings(deadline=None, max_examples=30)
@given(scores=st.lists(st.none() | st.floats(-1, 1), max_size=12), direction=st.sampled_from(["min", "max"]))
def test_the_best_so_far_never_worsens(scores, direction):
    rows = [_row(n, s, trials.FAILED if s is None else trials.COMPLETED) for n, s in enumerate(scores)]
    best = report_curves.curve("a", _search(direction=direction), rows).best
    known = best[np.isfinite(best)]
    assert (np.diff(known) * (1 if direction == "min" else -1) <= 0).all()
    row = trials.best(rows, direction)
    assert row is None or known[-1] == row.score


def test_the_strongest_hyper_parameter_is_the_most_important():
    rng = np.random.default_rng(3)
    points = rng.random((40, 4))
    scores = 3 * points[:, 2] + points[:, 1] + 0.05 * rng.standard_normal(40)
    found = importance.measure(points, scores, splits=range(3))
    assert found.learned
    assert list(np.argsort(-found.mean))[:2] == [2, 1]
    assert (found.sd >= 0).all()


def test_scores_of_chance_are_said_to_teach_nothing():
    rng = np.random.default_rng(4)
    assert not importance.measure(rng.random((20, 5)), rng.standard_normal(20), splits=range(4)).learned


def _belief(count=30, direction="min"):
    """Return a model of a score that grows with the place of the rate, on random trials of AXES."""
    rng, sign = np.random.default_rng(5), 1 if direction == "min" else -1
    values = [report_space.from_point(AXES, rng.random(5)) for _ in range(count)]
    rows = [_row(number, sign * RATE.to_unit(each["rate"]), values=each) for number, each in enumerate(values)]
    rows.append(_row(count, None, trials.FAILED, {**values[0], "rate": 0.1}))
    return report_belief.fit(AXES, rows, _search(direction=direction))


@pytest.mark.parametrize("direction", ["min", "max"])
def test_the_model_believes_the_trials_and_what_they_say(direction):
    belief = _belief(direction=direction)
    mean, sd = belief.predict(belief.points)
    np.testing.assert_allclose(belief.sign * mean, belief.bounded, atol=NOISE)
    assert (sd < NOISE).all()
    assert belief.bounded[-1] == np.nanmax(belief.losses)  # the failed trial is as bad as the worst
    error, mean_error = report_belief.left_out_errors(belief)
    assert error < importance.LEARNED * mean_error
    line = report_belief.along(belief, RATE, report_space.from_point(AXES, np.full(5, 0.6)))
    assert (np.diff(belief.sign * line.mean) > 0).all()


def test_one_score_apart_from_equal_ones_is_believed():
    rows = [_row(n, 0.9 if n == 3 else 0.5, values={"a": n}) for n in range(5)]
    belief = report_belief.fit([Axis("a", 0, (0, 1, 2, 3, 4))], rows, _search())
    assert belief.bounded.tolist() == [0.5, 0.5, 0.5, 0.9, 0.5]
    assert belief.predict(np.full((1, 1), 0.7))[0] > 0.5


def test_a_model_without_error_where_the_mean_has_none_has_learned_nothing():
    assert not importance.Importance(np.zeros(1), np.zeros(1), 0.0, 0.0).learned


def _entry_of(parameter):
    """Return a parameter of the search space as keras-tuner writes it."""
    if parameter.choices:
        return _entry(
            "Choice", parameter.name, default=parameter.default, values=list(parameter.choices), ordered=False
        )
    return _entry("Float", parameter.name, **_numbers(*parameter.log_range, None, "log", parameter.default))


def _write_real_search(work, count):
    """Write the records' manifest of a study and a search over its real space; return the space."""
    data = config.DataConfig()
    space, folder = Space(data, 100_000), work / "tuning/night"
    manifest = records.Manifest(data, "patches", ())
    files.write_json(records.manifest_path(study.records_path(work)), config.to_dict(manifest))
    write_search(work, "night", count=0, max_cost=100_000, records=records.digest(study.records_path(work)))
    files.write_json(folder / "oracle.json", {"hyperparameters": {"space": [_entry_of(p) for p in space.parameters]}})
    rng = np.random.default_rng(0)
    drawn = (space.draw(rng) for _ in range(1000))
    for number, values in zip(range(count), (v for v in drawn if not space.fault(v)), strict=False):
        about = About(number, space.active(values), {}, space.cost(values), trials.COMPLETED, rng.random())
        _write_trial(folder, about, {"status": about.status, "score": about.score})
    return space


def test_the_space_on_disk_is_that_of_the_search(tmp_path):
    space = _write_real_search(tmp_path, 5)
    found = report_found.read(tmp_path, "night")
    assert [axis.name for axis in found.axes] == [parameter.name for parameter in space.parameters]
    assert found.space is not None
    values = [space.canonical(row.values) for row in found.rows]
    np.testing.assert_allclose(found.points, acquisition.places(space, values), atol=ROUNDING)


def test_records_written_again_are_not_those_of_the_search(tmp_path):
    _write_real_search(tmp_path, 5)
    manifest = records.Manifest(config.DataConfig(sampling=config.SamplingConfig(share_bone=0.5)), "patches", ())
    files.write_json(records.manifest_path(study.records_path(tmp_path)), config.to_dict(manifest))
    assert report_found.read(tmp_path, "night").space is None


def test_another_space_than_that_of_the_search_is_not_proposed_from(tmp_path, capsys):
    space, path = _write_real_search(tmp_path, 5), tmp_path / "tuning/night/oracle.json"
    entries = {parameter.name: _entry_of(parameter) for parameter in space.parameters}
    wider = _entry("Choice", "dropout_dense", default=0.5, values=[0.0, 0.25, 0.5, 0.75, 0.625], ordered=False)
    longer = _entry("Float", "l2", **_numbers(1e-9, 1e-3, None, "log", 1e-6))
    fewer = {name: entry for name, entry in entries.items() if name != "centre"}
    for other in (entries | {"dropout_dense": wider}, entries | {"l2": longer}, fewer):
        files.write_json(path, {"hyperparameters": {"space": list(other.values())}})
        assert report_found.read(tmp_path, "night").space is None
    text, _ = _write_report(tmp_path)
    assert "No trials are proposed" in text
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_proposals_are_new_and_keep_the_limit_on_cost(tmp_path):
    space = _write_real_search(tmp_path, 6)
    text, pictures = _write_report(tmp_path)
    assert len(pictures) == 3
    proposed = re.findall(r"<tr><td>(?:next, \d|best predicted)</td>(.*?)</tr>", text)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in proposed]
    assert len(cells) == 2  # the next, and the best predicted
    assert float(cells[1][0]) == min(float(row[0]) for row in cells)
    found = report_found.read(tmp_path, "night")
    made = {tuple(report_space.show(row.values.get(axis.name)) for axis in found.axes) for row in found.rows}
    assert made.isdisjoint(tuple(row[3:]) for row in cells)
    assert max(float(row[2].replace(",", "")) for row in cells) <= space.max_cost
    assert "does not ask it" in text


@pytest.mark.parametrize(
    ("direction", "following", "sure", "best"),
    [("min", [0.3, 0.2], 0.1, "0.1"), ("min", [0.3, 0.1], 0.2, "0.1"), ("max", [0.3, 0.1], 0.2, "0.3")],
)
def test_the_best_predicted_is_the_best_of_all_proposals(tmp_path, monkeypatch, direction, following, sure, best):
    space, tables = _write_real_search(tmp_path, 5), []
    found = report_found.read(tmp_path, "night")

    def propose(*_, betas):
        means = [sure] if betas == [0.0] else following
        return [report_belief.Proposal(space.default(), 1.0, mean, 0.0) for mean in means]

    class Tables:
        """In the place of a page."""

        def add_table(self, header, body, **_):
            tables.extend(body)

        def add_text(self, text):
            """Take what a page takes."""

    monkeypatch.setattr(report_belief, "propose", propose)
    report_findings._add_proposals(Tables(), _belief(direction=direction), found)
    assert [row[:2] for row in tables][-1] == ("best predicted", best)
    assert [row[0] for row in tables[:-1]] == ["next, 1", "next, 2"]


@pytest.mark.slow
def test_the_first_proposal_is_what_the_search_would_try(tmp_path):
    space = _write_real_search(tmp_path, 5)
    found = report_found.read(tmp_path, "night")
    belief = report_belief.fit(found.axes, found.rows, found.search)
    known = [acquisition.Known(space.canonical(row.values), row.score) for row in found.rows]
    wanted = acquisition.propose(space, known, [], tried=lambda values: False, beta=1.0, seed=(1, 5))
    (first,) = report_belief.propose(belief, space, found.rows, found.search, betas=[1.0])
    assert first.values == space.active(wanted)


@pytest.mark.slow
def test_points_are_those_of_keras_tuner(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner")
    from keras_tuner.src.engine import trial as kt_trial

    def hyper(values):
        """Return keras-tuner's hyper-parameters; it changes what it is given."""
        return keras_tuner.HyperParameters.from_config({"space": copy.deepcopy(SPACE), "values": values})

    objective = keras_tuner.Objective("val_loss", "min")
    oracle = keras_tuner.oracles.BayesianOptimizationOracle(objective, hyperparameters=hyper({}), seed=7)
    write_search(tmp_path, "night", count=20, seed=7)
    found = report_found.read(tmp_path, "night")
    for row in found.rows:
        oracle.trials[row.trial_id] = kt_trial.Trial(hyper({**row.values, "plan": "default"}), row.trial_id, row.status)
        oracle.trials[row.trial_id].score = row.score
    np.testing.assert_allclose(found.points, oracle._vectorize_trials()[0], atol=ROUNDING)


@pytest.mark.slow
def test_a_page_says_what_was_searched(page):
    text, pictures = page
    summary = dict(_cells(text, "search"))
    assert summary["algorithm"] == "bayesian"
    assert summary["objective"] == "val_loss, smaller is better"
    assert summary["trials made"] == "22 COMPLETED, 2 FAILED, 1 RUNNING"
    assert summary["share of time outside training"] == "8.3%"
    assert "22 of 30 trials are COMPLETED: this search is not whole." in text
    assert len(pictures) == 4
    assert all(len(description) > 60 for description in pictures)
    assert "learning_rate" in pictures[1]


def test_a_page_tells_time_on_the_wall_from_the_minutes_of_a_trial(page):
    names = dict(_cells(page[0], "search"))
    assert {"training, wall minutes", "outside training, wall minutes", "training of a trial"} <= set(names)
    assert "training, wall minutes" in _cells(page[0], "trial")[0]
    assert "The minutes that a trial is given are, on a CPU, CPU minutes" in page[0]


def test_a_page_needs_nothing_from_elsewhere(page):
    text, _ = page
    assert "<script" not in text
    assert "http" not in text
    assert {source[:22] for source in re.findall(r'(?:src|href)="([^"]*)"', text)} == {"data:image/png;base64,"}


def test_the_best_are_in_order_with_cost_and_values(page, work):
    rows = _cells(page[0], "trial")
    assert rows[0][:3] == ["trial", "val_loss", "multiply-adds a voxel"]
    assert rows[0][5:] == [entry["config"]["name"] for entry in SPACE[:-1]]
    scores = [float(row[1]) for row in rows[1:]]
    assert len(scores) == 10
    assert scores == sorted(scores)
    best = trials.best(trials.read(work / "tuning/night")[1], "min")
    assert rows[1][0] == str(best.number)
    assert rows[1][2] == f"{best.cost:,.0f}"


def test_failed_trials_have_their_reason(page):
    rows = _cells(page[0], "trial and reason")
    assert [row[0] for row in rows[1:]] == [f"{n}: ValueError: &lt;out&gt; of memory {n}" for n in (4, 17)]
    assert all(row[1] == "FAILED" and "learning_rate" in row[2] for row in rows[1:])


def test_the_table_of_all_trials_is_beside_the_page(page, work):
    with (work / "reports/tuning-night/trials.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["number"]) for row in rows] == list(range(25))
    assert rows[4]["reason"] == "ValueError: <out> of memory 4"
    assert rows[4]["score"] == ""
    deep = {row["hp_layers"]: row["hp_filters_3"] for row in rows}
    assert deep["2"] == ""
    assert deep["3"] != ""


@pytest.mark.slow
def test_searches_to_compare_are_grouped_by_algorithm(work):
    text, pictures = _write_report(work, "bayesian1", ("bayesian2", "random1", "random2", "bayesian1"))
    rows = _cells(text, "searches")
    assert [row[:2] for row in rows[1:]] == [["bayesian, 2 seeds", "2"], ["random, 2 seeds", "2"]]
    assert rows[0][2:5] == ["after 2 trials", "after 3 trials", "after 6 trials"]
    assert "bayesian, 2 seeds" in pictures[0] and "random, 2 seeds" in pictures[0]
    found = [trials.best(trials.read(work / "tuning" / f"random{seed}")[1], "min").score for seed in (1, 2)]
    assert rows[2][4].startswith(report_space.show(float(np.mean(found))))


@pytest.mark.slow
def test_a_search_may_be_compared_before_its_first_trial(tmp_path):
    write_search(tmp_path, "a", count=2)
    write_search(tmp_path, "b", count=0, algorithm="random")
    text, _ = _write_report(tmp_path, "a", ("b",))
    assert [row[:3] for row in _cells(text, "searches")[1:]] == [["a", "1", "2"], ["b", "1", "0"]]


def test_errors_say_which_search(work, tmp_path):
    with pytest.raises(DataError, match=r"expected one search, or --name. Received: bayesian1, bayesian2, night, "):
        report.report(report.ReportArguments(work))
    with pytest.raises(DataError, match=r"expected one search, or --name. Received: no search"):
        report.report(report.ReportArguments(tmp_path))
    with pytest.raises(DataError, match="expected a search, found none"):
        report.report(report.ReportArguments(work, "nothing"))
    write_search(tmp_path, "a", count=0)
    write_search(tmp_path, "b", count=0, objective="dice", direction="max")
    with pytest.raises(DataError, match=r"--compare b: expected the objective of a, val_loss. Received: dice"):
        report.report(report.ReportArguments(tmp_path, "a", ("b",)))
    for name in ("../tuning/a", "a/"):
        with pytest.raises(DataError, match=r"tuning: expected the name of a folder in it\. Received: .*slashes"):
            report.report(report.ReportArguments(tmp_path, name))


def test_searches_of_other_records_are_not_compared(tmp_path):
    for name, known in (("a", "one"), ("b", "two"), ("early", "")):
        write_search(tmp_path, name, count=0, records=known)
    with pytest.raises(DataError, match=r"--compare b: expected the records of a\. Received: others\. Leave it out"):
        report.read_searches(report.ReportArguments(tmp_path, "a", ("early", "b")))
    assert len(report.read_searches(report.ReportArguments(tmp_path, "a", ("early",)))) == 2


def test_too_few_trials_are_no_model_and_no_importance():
    with pytest.raises(ValueError, match=r"expected 10 trials or more, of unequal scores. Received: 9"):
        importance.measure(np.zeros((9, 2)), np.arange(9.0))
    with pytest.raises(ValueError, match=r"expected 3 finished trials or more, of unequal scores. Received: 2"):
        report_belief.fit(AXES, [_row(0, 0.5), _row(1, 0.6)], _search())


@pytest.mark.parametrize(
    "entry",
    [
        {"class_name": "Shape", "config": {"name": "a"}},
        {"class_name": "Int", "config": {"name": "a"}},
        {"class_name": "Choice"},
        "layers",
    ],
)
def test_a_space_that_is_none_is_refused(entry, tmp_path):
    files.write_json(tmp_path / "oracle.json", {"hyperparameters": {"space": [entry]}})
    with pytest.raises(DataError, match=r"oracle.json: expected the state of a search, as keras-tuner 1.4 writes it"):
        report_space.read_space(tmp_path)


def test_a_name_that_the_space_does_not_have_is_refused():
    with pytest.raises(DataError, match=r"optimizer: expected one of \('sgd', 'adam', 'nadam'\).*Received: 'rmsprop'"):
        AXES[4].to_unit("rmsprop")


def test_conditions_on_what_never_varies_are_settled(tmp_path):
    inside = _entry("Int", "a", **{**_numbers(1, 3, 1), "conditions": _needs("plan", "default")})
    outside = _entry("Int", "b", **{**_numbers(1, 3, 1), "conditions": _needs("plan", "other")})
    single = _entry("Choice", "c", default=None, values=[5], ordered=True)
    state = {"hyperparameters": {"space": [SPACE[-1], inside, outside, single]}}
    files.write_json(tmp_path / "oracle.json", state)
    axes = report_space.read_space(tmp_path)
    assert [axis.name for axis in axes] == ["a", "b"]
    assert report_space.from_point(axes, np.zeros(2)) == {"a": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words", "pictures"),
    [
        ({"count": 0}, "No trial has finished yet.", 0),
        ({"count": 1}, "There are 1.", 2),
        ({"count": 2, "running": (1,)}, "1 COMPLETED, 1 RUNNING", 2),
        ({"count": 3, "failed": (0, 1, 2)}, "3 FAILED", 0),
        ({"count": 2}, "a model takes 3 finished trials of unequal scores. There are 2.", 2),
        ({"count": 11, "score": lambda values, rng: 0.5}, "There are 11.", 2),  # nothing to learn
        ({"count": 3, "direction": "max", "objective": "dice"}, "it takes 10 finished trials of unequal scores", 3),
        ({"count": 1, "minutes": None, "epochs": 3}, "<td>3 epochs</td>", 2),
    ],
)
def test_a_page_is_made_of_whatever_there_is(options, words, pictures, tmp_path):
    write_search(tmp_path, "night", **options)
    text, found = _write_report(tmp_path)
    assert words in text
    assert len(found) == pictures


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"hyperparameters": {"space": [{"class_name": "Int"}]}}'])
def test_a_damaged_state_of_keras_tuner_leaves_a_page_without_ranges(text, tmp_path, capsys):
    write_search(tmp_path, "night", count=3)
    path = tmp_path / "tuning/night/oracle.json"
    path.unlink() if text is None else path.write_text(text)
    page, pictures = _write_report(tmp_path)
    assert len(pictures) == 2  # the curve, and the score against cost
    assert page.count("The ranges of the hyper-parameters are not known: oracle.json") == 2
    assert "finished trials of unequal scores" not in page  # they are not what is missing
    assert bool(capsys.readouterr().err) == (text is not None)


def test_a_page_is_made_where_neither_ranges_nor_costs_are_left(tmp_path):
    write_search(tmp_path, "night", count=3)
    for path in (tmp_path / "tuning/night").rglob("*.json"):
        if path.name in ("oracle.json", "about.json"):
            path.unlink()
    page, pictures = _write_report(tmp_path)
    assert len(pictures) == 1
    assert "What the trials cost is not known, either." in page


def test_a_damaged_trial_is_named_among_the_failed(tmp_path):
    write_search(tmp_path, "night", count=2)
    place = tmp_path / "tuning/night/trial_0001"
    for name in ("trial.json", "about.json"):
        (place / name).write_text("{")
    text, _ = _write_report(tmp_path)
    assert "<td>INVALID</td>" in text
    assert "1 COMPLETED, 1 INVALID" in text


def test_long_reasons_are_cut(tmp_path):
    reason = "very " * 200 + "long"
    row = trials.TrialRow("1", 1, trials.FAILED, None, {}, None, 0.0, 0.0, 0, False, reason)
    assert len(report_page._short(row.reason)) == report_page.REASON_CHARACTERS + len(" ...")


@pytest.mark.slow
def test_a_page_is_replaced_whole_and_the_search_is_left_alone(tmp_path, capsys):
    write_search(tmp_path, "night", count=1)
    before = {path: path.read_bytes() for path in (tmp_path / "tuning").rglob("*.json")}
    _write_report(tmp_path)
    assert "Replacing" not in capsys.readouterr().out
    _write_report(tmp_path)
    assert "Replacing the earlier page" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "tuning").rglob("*.*")} == before
    assert sorted(p.name for p in (tmp_path / "reports/tuning-night").iterdir()) == ["report.html", "trials.csv"]


def test_the_command_prints_where_the_page_lies(tmp_path, capsys):
    write_search(tmp_path, "night", count=2)
    report.main(report.ReportArguments(tmp_path))
    out = capsys.readouterr().out
    assert "Search night: 2 of 2 trials finished; the best" in out
    assert "training, wall minutes" in out
    assert "report.html" in out and "trials.csv" in out


@pytest.mark.slow
def test_nothing_heavy_waits_at_the_start():
    heavy = "{'tensorflow', 'keras', 'keras_tuner', 'matplotlib', 'sklearn'}"
    code = f"import sys, tuning.report; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
