"""What a search leaves on disk: models of the best trials, and the best config."""

import pytest
import searches

from femur_tf import config, train
from femur_tf.config import RunConfig, TrainConfig
from tuning import keeping, trials
from tuning.trials import COMPLETED, FAILED, RUNNING


@pytest.fixture
def work(tmp_path):
    """A study with a search of four completed trials, a failed and a running one."""
    folder = tmp_path / "tuning" / "bayesian"
    searches.write_search(folder, work=str(tmp_path), records="a")
    for number, score in enumerate((0.7, 0.9, 0.6, 0.8)):
        searches.write_trial(folder, number, COMPLETED, score)
    searches.write_trial(folder, 4, FAILED, None)
    searches.write_trial(folder, 5, RUNNING, None)
    return tmp_path


def kept(folder):
    """Return the numbers of the trials that have a model and a checkpoint."""
    runs = sorted(folder.glob("trial_*/run"))
    assert all((run / "model.keras").exists() == (run / "checkpoint").exists() for run in runs)
    assert all((run / "config.json").exists() and (run / "history.csv").exists() for run in runs)
    return [int(run.parent.name[-1]) for run in runs if (run / "model.keras").exists()]


@pytest.mark.parametrize(
    ("keep", "needed", "expected"),
    [(2, (), [1, 3, 5]), (0, (), [5]), (9, (), [0, 1, 2, 3, 5]), (1, ("2", "4"), [1, 2, 4, 5])],
)
def test_models_of_the_best_are_kept_and_of_trials_that_run(work, keep, needed, expected):
    folder = work / "tuning" / "bayesian"
    keeping.prune(folder, keep, needed)
    assert kept(folder) == expected


def test_trials_are_ranked_by_their_score(work):
    _, rows = trials.read(work / "tuning" / "bayesian")
    assert [row.number for row in keeping.ranked(rows, "max")] == [1, 3, 0, 2]
    assert [row.number for row in keeping.ranked(rows, "min")] == [2, 0, 3, 1]


def test_the_best_config_is_that_of_the_best_trial_made_for_a_full_training(work):
    folder = work / "tuning" / "bayesian"
    assert keeping.write_best(folder, work).number == 1
    found = config.load(RunConfig, folder / "best_config.json")
    made = config.load(RunConfig, folder / "trial_1" / "run" / "config.json")
    assert found.model == made.model
    assert found.data == made.data
    assert found.train.learning_rate == made.train.learning_rate
    assert (found.train.minutes, found.train.epoch_examples, found.train.patience) == (None, None, 8)


def test_what_made_a_trial_short_is_left_out():
    short = TrainConfig(minutes=1.0, epochs=2, epoch_examples=9, validation_examples=9, patience=1, seed=3, batch=64)
    assert keeping.to_train(RunConfig(train=short)).train == TrainConfig(batch=64)


def test_the_command_that_trains_takes_the_best_config(work):
    keeping.write_best(work / "tuning" / "bayesian", work)
    arguments = train.TrainArguments(work, config=work / "tuning" / "best_config.json", minutes=30.0)
    found = train.settings(arguments, searches.DATA)
    assert found.train.minutes == 30.0
    assert found.model == config.load(RunConfig, work / "tuning" / "bayesian" / "best_config.json").model


@pytest.mark.parametrize(
    ("changes", "winner"),
    [
        ({"records": "a"}, "random"),
        ({"records": "b"}, "bayesian"),  # scores on other records say nothing
        ({"records": "a", "objective": "dice"}, "bayesian"),
    ],
)
def test_the_best_of_all_searches_is_of_searches_that_can_be_compared(work, changes, winner):
    other = work / "tuning" / "random"
    searches.write_search(other, algorithm="random", **changes)
    searches.write_trial(other, 7, COMPLETED, 0.95)
    keeping.write_best(work / "tuning" / "bayesian", work)
    expected = config.load(
        RunConfig, work / "tuning" / winner / f"trial_{7 if winner == 'random' else 1}/run/config.json"
    )
    assert config.load(RunConfig, work / "tuning" / "best_config.json").model == expected.model


def test_a_search_without_a_completed_trial_has_no_best(tmp_path):
    folder = tmp_path / "tuning" / "random"
    searches.write_search(folder)
    searches.write_trial(folder, 0, FAILED, None)
    assert keeping.write_best(folder, tmp_path) is None
    assert not (folder / "best_config.json").exists()


def test_the_bytes_of_a_folder_are_counted(tmp_path):
    for name in ("a", "b/c"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 500)
    assert keeping.folder_bytes(tmp_path) - keeping.folder_bytes(tmp_path / "b") >= 500
    assert keeping.folder_bytes(tmp_path / "b") == 500
