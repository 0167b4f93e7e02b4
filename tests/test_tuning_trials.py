"""What a search left on disk, read as far as it can be."""

import dataclasses
import subprocess
import sys

import hypothesis
import pytest
import searches
from hypothesis import strategies as st

from femur_tf.errors import DataError
from tuning import trials
from tuning.trials import COMPLETED, FAILED, INVALID, RUNNING, TrialRow


@pytest.fixture
def folder(tmp_path):
    """A search with a completed, a failed and a running trial."""
    path = tmp_path / "tuning" / "bayesian"
    searches.write_search(path)
    searches.write_trial(path, 0, COMPLETED, 0.9, training_seconds=60.0, outside_seconds=5.0, epochs=5)
    searches.write_trial(path, 1, FAILED, None, reason="Diverged: the loss is nan")
    searches.write_trial(path, 2, RUNNING, None)
    return path


def row(number, score, status=COMPLETED):
    """Return a trial."""
    return TrialRow(str(number), number, status, score, {}, 1.0, 1.0, 1.0, 1, False, None)


def test_a_search_is_read_in_the_order_of_its_trials(folder):
    search, rows = trials.read(folder)
    assert search == searches.SEARCH
    assert [(r.trial_id, r.number, r.status, r.score) for r in rows] == [
        ("0", 0, COMPLETED, 0.9),
        ("1", 1, FAILED, None),
        ("2", 2, RUNNING, None),
    ]
    assert (rows[0].training_seconds, rows[0].outside_seconds, rows[0].epochs) == (60.0, 5.0, 5)
    assert rows[0].cost == 1000.0
    assert rows[1].reason == "Diverged: the loss is nan"
    assert "optimizer" in rows[0].values


def test_hyperbands_own_values_are_not_hyper_parameters(tmp_path):
    searches.write_search(tmp_path)
    searches.write_trial(tmp_path, 0, COMPLETED, 0.9, values={"batch": 64, "tuner/epochs": 3})
    assert trials.read(tmp_path)[1][0].values == {"batch": 64}


@pytest.mark.parametrize("damaged", [trials.ABOUT, trials.TRIAL])
def test_either_file_of_a_trial_is_enough(folder, damaged):
    _, before = trials.read(folder)
    searches.truncate(folder / "trial_0" / damaged)
    _, rows = trials.read(folder)
    assert (rows[0].status, rows[0].score) == (COMPLETED, 0.9)
    assert rows[0].values.items() >= before[0].values.items()
    assert rows[1:] == before[1:]


def test_a_trial_without_a_file_that_can_be_read_is_invalid_with_a_reason(folder):
    searches.truncate(folder / "trial_0" / trials.ABOUT)
    (folder / "trial_0" / trials.TRIAL).unlink()
    _, rows = trials.read(folder)
    assert (rows[0].trial_id, rows[0].number, rows[0].status, rows[0].score) == ("0", 0, INVALID, None)
    assert "about.json: expected JSON" in rows[0].reason
    assert [r.status for r in rows[1:]] == [FAILED, RUNNING]


def test_a_state_that_is_no_trials_is_damaged(folder):
    (folder / "trial_1" / trials.TRIAL).write_text('{"status": "COMPLETED"}')
    with pytest.raises(DataError, match=r"trial\.json: expected the state of a trial"):
        trials.read_trial(folder / "trial_1")


def test_what_is_written_is_read_again(folder):
    about = trials.read_about(folder / "trial_0")
    changed = dataclasses.replace(about, score=0.5, stopped_early=True, starts=2)
    trials.write_about(folder / "trial_0", changed)
    assert trials.read_about(folder / "trial_0") == changed


@pytest.mark.parametrize(
    ("scores", "direction", "best"),
    [([0.1, 0.3, 0.2], "max", 1), ([0.1, 0.3, 0.2], "min", 0), ([0.3, 0.3], "max", 0), ([None, 0.1], "max", 1)],
)
def test_the_best_trial_is_the_first_of_the_best(scores, direction, best):
    assert trials.best([row(n, score) for n, score in enumerate(scores)], direction).number == best


def test_a_trial_that_is_not_completed_is_not_the_best():
    assert trials.best([row(0, 0.9, FAILED), row(1, 0.1)], "max").number == 1
    assert trials.best([row(0, 0.9, RUNNING)], "max") is None


@hypothesis.given(st.lists(st.floats(-5, 5), min_size=1), st.sampled_from(["min", "max"]))
def test_no_trial_is_better_than_the_best(scores, direction):
    best = trials.best([row(n, score) for n, score in enumerate(scores)], direction)
    assert best.score == (min if direction == "min" else max)(scores)


def test_no_search_says_what_to_run(tmp_path):
    words = r"search\.json: expected a search, found none of that name; .*Run first: python -m tuning"
    with pytest.raises(DataError, match=words):
        trials.read(tmp_path / "tuning" / "x")


def test_another_format_is_refused(tmp_path):
    searches.write_search(tmp_path, format_version=2)
    with pytest.raises(DataError, match=r"expected format_version 1\. Received: 2\. Start it anew with --overwrite"):
        trials.read(tmp_path)


def test_reading_needs_no_tensorflow():
    line = "import sys, tuning.trials, tuning.search_space; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0
