"""The oracles: which points they hand out, and what is left of them after a kill or a damaged file."""

import dataclasses

import numpy as np
import pytest
import searches

from femur_tf import files
from tuning import oracles, trials
from tuning.trials import COMPLETED, FAILED, RUNNING, About

# keras-tuner 1.4.8 asks for the thread in a way that Python 3.10 deprecated; theirs to change.
pytestmark = pytest.mark.filterwarnings("ignore:(currentThread|getName)")
SPACE = searches.space()
ALGORITHMS = ("bayesian", "random", "hyperband")


def make(folder, algorithm="random", **changes):
    """Return an oracle that has read what is in its folder."""
    search = dataclasses.replace(searches.SEARCH, **{"algorithm": algorithm, "trials": 6, **changes})
    oracle = oracles.make(search, SPACE, folder)
    oracle.reload()
    return oracle


def note(oracle, trial, status=COMPLETED, score=None):
    """Write `about.json`, as a trainer does."""
    values = trial.hyperparameters.values
    further = {name: value for name, value in values.items() if "/" in name}
    about = About(int(trial.trial_id), {**SPACE.active(SPACE.canonical(values)), **further}, {}, 1.0, status, score)
    trials.write_about(trials.trial_folder(oracle.folder, trial.trial_id), about)


def end(oracle, trial, status=COMPLETED):
    """End a trial with the score that `searches` gives its point."""
    trial.status = status
    score = searches.score(SPACE.canonical(trial.hyperparameters.values), SPACE) if status == COMPLETED else None
    if score is not None:
        oracle.update_trial(trial.trial_id, {"val_auc": score})
    note(oracle, trial, status, score)
    oracle.end_trial(trial)


def run(oracle, count, tuner="tuner0"):
    """Run some trials to their end, and return their values."""
    found = []
    for _ in range(count):
        trial = oracle.create_trial(tuner)
        if trial.status == "STOPPED":
            break
        found.append(dict(trial.hyperparameters.values))
        end(oracle, trial)
    return found


def shown(oracle):
    """Return what is known of each trial."""
    return {t.trial_id: (t.status, t.score, t.hyperparameters.values) for t in oracle.trials.values()}


@pytest.fixture(scope="module", params=ALGORITHMS)
def whole(request, tmp_path_factory):
    """An algorithm, and the values of six trials without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return request.param, run(make(folder, request.param), 20)


@pytest.mark.slow
def test_as_many_trials_are_handed_out_as_were_asked_for_and_no_point_twice(whole):
    _, values = whole
    assert len(values) == 6
    firsts = [{n: v for n, v in one.items() if "/" not in n} for one in values if "tuner/trial_id" not in one]
    assert len({repr(one) for one in firsts}) == len(firsts)
    assert all(SPACE.fault(one) is None for one in firsts)


def test_the_first_trial_is_the_default_unless_another_is_wanted(tmp_path):
    assert run(make(tmp_path / "a"), 1) == [SPACE.default()]
    assert run(make(tmp_path / "b", from_default=False), 1) != [SPACE.default()]


def test_another_seed_draws_others(tmp_path):
    one, other = (run(make(tmp_path / str(seed), seed=seed), 3) for seed in (0, 1))
    assert one[0] == other[0]
    assert one[1:] != other[1:]


@pytest.mark.slow
def test_a_search_that_goes_on_draws_what_it_would_have_drawn(whole, tmp_path):
    algorithm, values = whole
    first = run(make(tmp_path, algorithm), 3)
    again = make(tmp_path, algorithm)
    assert [(t.status, t.score is not None) for t in again.trials.values()] == [(COMPLETED, True)] * 3
    assert first + run(again, 20) == values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("oracle.json", "truncate"),
        ("oracle.json", "empty"),
        ("trial_1/trial.json", "truncate"),
        ("trial_1/trial.json", "remove"),
        ("trial_1/about.json", "empty"),
    ],
)
def test_nothing_is_lost_with_a_file(whole, tmp_path, name, harm):
    algorithm, values = whole
    oracle = make(tmp_path, algorithm)
    run(oracle, 4)
    path = tmp_path / name
    {"truncate": lambda: searches.truncate(path), "empty": lambda: path.write_bytes(b""), "remove": path.unlink}[harm]()
    again = make(tmp_path, algorithm)
    assert shown(again) == shown(oracle)
    # A damaged about.json is not needed here, a file that is gone is no damage.
    assert len(again.damaged) == (0 if harm == "remove" or "about" in name else 1)
    assert values[4:] == run(again, 20)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_trial_whose_files_are_all_lost_is_drawn_anew(tmp_path, algorithm):
    run(make(tmp_path, algorithm), 4)
    for name in (trials.ABOUT, trials.TRIAL):
        searches.truncate(tmp_path / "trial_1" / name)
    files.remove(tmp_path / "trial_2")
    again = make(tmp_path, algorithm)
    assert [t.status for t in again.trials.values()].count(COMPLETED) == 2
    run(again, 20)
    assert sorted(again.trials) == [str(n) for n in range(6)]
    assert {t.status for t in again.trials.values()} == {COMPLETED}


def test_an_interrupted_trial_goes_back_to_its_tuner(tmp_path):
    oracle = make(tmp_path)
    run(oracle, 1)
    one, two = oracle.create_trial("worker-0"), oracle.create_trial("worker-1")
    again = make(tmp_path)
    assert {name: t.trial_id for name, t in again.ongoing_trials.items()} == {"worker-0": "1", "worker-1": "2"}
    assert again.create_trial("worker-1").hyperparameters.values == two.hyperparameters.values
    again.forget("worker-0")
    assert again.create_trial("worker-2").trial_id == one.trial_id


def test_an_interrupted_trial_is_handed_to_the_next_where_nobody_knows_whose_it_was(tmp_path):
    oracle = make(tmp_path)
    ids = [oracle.create_trial(f"worker-{n}").trial_id for n in range(3)]
    files.remove(tmp_path / "oracle.json")
    again = make(tmp_path)
    assert [again.create_trial(f"worker-{n}").trial_id for n in range(3)] == ids


def test_more_trials_can_be_asked_for(tmp_path):
    run(make(tmp_path), 20)
    again = make(tmp_path, trials=12)
    run(again, 20)
    assert [int(trial_id) for trial_id in again.trials] == list(range(12))
    assert "06" in again.trials  # named with two digits
    assert [int(trial_id) for trial_id in make(tmp_path, trials=12).trials] == list(range(12))


def test_a_score_that_is_reported_twice_counts_once(tmp_path):
    oracle = make(tmp_path)
    trial = oracle.create_trial("tuner0")
    for score in (0.2, 0.8):
        oracle.update_trial(trial.trial_id, {"val_auc": score})
    trial.status = COMPLETED
    oracle.end_trial(trial)
    assert oracle.trials[trial.trial_id].score == 0.8


def test_trials_that_fail_in_a_row_end_the_search(tmp_path):
    oracle = make(tmp_path, trials=20)
    for _ in range(oracles.IN_A_ROW):
        end(oracle, oracle.create_trial("tuner0"), FAILED)
    assert oracle.create_trial("tuner0").status == "STOPPED"
    assert oracle.stopped == "5 trials failed one after the other"


def test_a_failed_trial_is_no_reason_to_stop(tmp_path):
    oracle = make(tmp_path, "bayesian", trials=8)
    for number in range(8):
        end(oracle, oracle.create_trial("tuner0"), FAILED if number % 2 else COMPLETED)
    assert [t.status for t in oracle.trials.values()] == [COMPLETED, FAILED] * 4


def test_a_refusal_ends_the_search_but_not_a_trial_under_way(tmp_path):
    oracle = make(tmp_path)
    trial = oracle.create_trial("worker-0")
    oracle.refusal = lambda: "the disk is full"
    assert oracle.create_trial("worker-1").status == "STOPPED"
    assert oracle.create_trial("worker-0").trial_id == trial.trial_id
    assert oracle.stopped == "the disk is full"


def test_a_search_that_is_complete_needs_no_room(tmp_path):
    oracle = make(tmp_path, trials=1)
    end(oracle, oracle.create_trial("tuner0"), COMPLETED)
    oracle.refusal = lambda: "the disk is full"
    assert oracle.create_trial("tuner0").status == "STOPPED"
    assert oracle.stopped is None


def test_a_space_that_holds_few_points_ends_the_search(tmp_path, monkeypatch):
    oracle = make(tmp_path)
    point = SPACE.default()
    monkeypatch.setattr(oracles, "DRAWS", 5)
    monkeypatch.setattr(oracle.space, "draw", lambda rng: point, raising=False)
    assert run(oracle, 20) == [point]


@pytest.mark.slow
def test_bayesian_search_learns(tmp_path):
    oracle = make(tmp_path, "bayesian", trials=15)
    run(oracle, 15)
    scores = [trial.score for trial in oracle.trials.values()]
    at_random = oracle.num_initial_points
    assert np.mean(scores[at_random:]) > np.mean(scores[:at_random])


@pytest.mark.parametrize(
    ("wanted", "first"), [(3, 3), (8, 4), (12, 6), (20, 6), (45, 15), (900, len(SPACE.parameters) + 1)]
)
def test_bayesian_search_begins_at_random(tmp_path, wanted, first):
    assert make(tmp_path, "bayesian", trials=wanted).num_initial_points == first


def test_hyperband_continues_the_best_for_longer(tmp_path):
    oracle = make(tmp_path, "hyperband", trials=18, epochs=9)
    run(oracle, 18)
    later = [t for t in oracle.trials.values() if t.hyperparameters.values.get("tuner/trial_id")]
    assert later
    for trial in later:
        values = trial.hyperparameters.values
        past = oracle.trials[values["tuner/trial_id"]].hyperparameters.values
        assert values["tuner/epochs"] > past["tuner/epochs"]
        assert values["batch"] == past["batch"]


def test_hyperband_keeps_what_it_may_continue(tmp_path):
    oracle = make(tmp_path, "hyperband", epochs=9)
    run(oracle, 5)
    assert oracle.may_go_on() == set(oracle.trials)
    assert make(tmp_path, "random").may_go_on() == set()


def test_a_running_trial_is_not_scored(tmp_path):
    oracle = make(tmp_path)
    note(oracle, oracle.create_trial("tuner0"), RUNNING)
    files.remove(tmp_path / "trial_0" / trials.TRIAL)
    assert [t.status for t in make(tmp_path).trials.values()] == [RUNNING]
