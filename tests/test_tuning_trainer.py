"""Trials that train: in one process, on the tiny records."""

import dataclasses
import errno
import math
import time
import zipfile

import keras
import numpy as np
import pytest
import searches
import tensorflow as tf
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from femur_tf import callbacks, config, files, train, training
from femur_tf.config import RunConfig
from femur_tf.errors import DataError, WriteError
from tuning import launch, oracles, scoring, search, trainer, trials
from tuning.launch import Limits
from tuning.search import SearchArguments
from tuning.trainer import Surroundings, Trainer
from tuning.trials import COMPLETED, FAILED, RUNNING
from tuning.watch import Halted, Stopwatch

# keras-tuner 1.4.8 asks for the thread in a way that Python 3.10 deprecated; theirs to change.
pytestmark = pytest.mark.filterwarnings("ignore:(currentThread|getName)")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A study with records; searches of several names are made in it."""
    folder = tmp_path_factory.mktemp("work")
    tiny.write_all(folder)
    return folder


def make(work, name, halt=lambda: None, **changes):
    """Return a trainer of a random search of one-epoch trials that has read what its folder holds."""
    arguments = SearchArguments(work, **{"epochs": 1, "name": name, "algorithm": "random", "trials": 3, **changes})
    found = launch.prepare(arguments.wanted, overwrite=False)
    oracle = oracles.make(found, searches.space(), arguments.wanted.folder)
    around = Surroundings(halt=halt, ended=lambda: search.tidy(arguments, oracle))
    result = Trainer(oracle, work, time.monotonic(), around)
    oracle.reload()
    for tuner_id in list(oracle.ongoing_trials):
        oracle.forget(tuner_id)
    return result


def rows(result):
    """Return the trials on disk."""
    return trials.read(result.folder)[1]


@pytest.fixture(scope="module")
def done(work):
    """A search of three trials, of which the second fails."""
    with pytest.MonkeyPatch.context() as patch:
        real = training.train

        def fails_once(records, folder, settings, **options):
            if folder.parent.name == "trial_1":
                raise MemoryError("no room\nfor more")
            return real(records, folder, settings, **options)

        patch.setattr(training, "train", fails_once)
        result = make(work, "done", keep_best=1)
        result.search()
    return result


@pytest.mark.slow
def test_a_broken_trial_is_set_aside_with_its_reason_and_the_search_goes_on(done):
    found = rows(done)
    assert [row.status for row in found] == [COMPLETED, FAILED, COMPLETED]
    assert found[1].reason == "MemoryError: no room"
    assert [row.score is None for row in found] == [False, True, False]
    assert [row.epochs for row in found] == [1, 0, 1]


def test_a_trial_knows_what_it_took_and_what_it_trained(done):
    row = rows(done)[0]
    assert row.training_seconds > 0
    assert row.outside_seconds > 0
    assert row.cost == searches.space().cost(searches.space().default())
    about = trials.read_about(done.folder / "trial_0")
    made = config.from_dict(RunConfig, about.config)
    assert made == config.load(RunConfig, done.folder / "trial_0" / "run" / "config.json")
    assert (made.train.epochs, made.train.seed) == (1, 2017)
    assert about.starts == 0


def test_the_score_is_that_of_the_kept_epoch(done):
    rows = [{"val_log_loss": 2.0, "val_auc": 0.9}, {"val_log_loss": 1.0, "val_auc": 0.8}]
    state = callbacks.State(history=rows)
    assert scoring.score("val_auc", state, lambda: math.nan) == 0.9
    assert scoring.score("val_loss", state, lambda: math.nan) == 2.0
    assert scoring.score("dice", state, lambda: 0.7) == 0.7


def test_models_of_all_but_the_best_are_removed(done):
    best = trials.best(rows(done), "max")
    kept = {path.parent.parent.name for path in done.folder.glob("trial_*/run/model.keras")}
    assert kept == {f"trial_{best.trial_id}"}


def test_the_best_config_is_there_for_the_command_that_trains(done, work):
    best = trials.best(rows(done), "max")
    arguments = train.TrainArguments(work, config=done.folder / "best_config.json")
    about = trials.read_about(done.folder / f"trial_{best.trial_id}")
    settings = train.settings(arguments, searches.DATA)
    assert settings.model == config.from_dict(RunConfig, about.config).model
    assert (settings.train.epochs, settings.train.minutes) == (62, None)


def test_values_and_score_are_shown_by_tensorboard(done):
    logs = EventAccumulator(str(done.folder / "trial_0" / "run" / "logs")).Reload()
    assert {"_hparams_/session_start_info", "objective/val_auc"} <= set(logs.Tags()["tensors"])


def test_a_search_that_is_finished_trains_nothing(done, work, monkeypatch):
    monkeypatch.setattr(training, "train", None)
    again = make(work, "done")
    again.search()
    assert rows(again) == rows(done)


@pytest.mark.slow
def test_an_interrupted_trial_goes_on_at_its_epoch(work):
    steps = iter(range(1000))
    halts = make(work, "halted", lambda: "enough" if next(steps) == 4 else None, epochs=3, trials=1, epoch_examples=150)
    with pytest.raises(Halted, match="enough"):
        halts.search()
    (row,) = rows(halts)
    assert row.status == RUNNING
    assert row.epochs >= 1
    before = callbacks.checkpoints(halts.folder / "trial_0" / "run")
    again = make(work, "halted", epochs=3, trials=1, epoch_examples=150)
    again.search()
    (row,) = rows(again)
    assert (row.status, row.epochs) == (COMPLETED, 3)
    history = (again.folder / "trial_0" / "run" / "history.csv").read_text(encoding="utf-8").splitlines()
    assert len(before) == 1
    assert len(history) == 4


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_no_trial(work):
    steps = iter(range(1000))
    halts = make(work, "harmed", lambda: "enough" if next(steps) == 4 else None, epochs=2, trials=1, epoch_examples=150)
    with pytest.raises(Halted):
        halts.search()
    run = halts.folder / "trial_0" / "run"
    searches.truncate(callbacks.checkpoints(run)[-1] / "model.keras")
    searches.truncate(run / "config.json")
    again = make(work, "harmed", epochs=2, trials=1, epoch_examples=150)
    again.search()
    assert [row.status for row in rows(again)] == [COMPLETED]


@pytest.mark.parametrize("harm", ["state.json", "model.keras", "within"])
def test_only_damaged_checkpoints_are_removed(tmp_path, harm):
    for epoch in (1, 2):
        path = callbacks.checkpoint_path(tmp_path, epoch)
        files.write_json(path / "state.json", dataclasses.asdict(callbacks.State(epoch=epoch)))
        with zipfile.ZipFile(path / "model.keras", "w") as archive:
            archive.writestr("config.json", "{}" * 100)
    if harm == "within":
        path = callbacks.checkpoint_path(tmp_path, 2) / "model.keras"
        path.write_bytes(path.read_bytes().replace(b"{}{}{}", b"{}{}[]", 1))
    else:
        searches.truncate(callbacks.checkpoint_path(tmp_path, 2) / harm)
    trainer.remove_damaged(tmp_path)
    assert [path.name for path in callbacks.checkpoints(tmp_path)] == ["epoch-0001"]


@pytest.mark.slow
def test_a_trial_that_kills_its_process_again_and_again_is_set_aside(work, monkeypatch):
    result = make(work, "deadly", trials=1)
    trial = result.oracle.create_trial("tuner0")
    monkeypatch.setattr(trainer.training, "train", lambda *a, **o: (_ for _ in ()).throw(SystemExit))
    for _ in range(trainer.STARTS):
        result.on_trial_begin(trial)
        with pytest.raises(SystemExit):
            result.run_trial(trial)
    result.search()
    (row,) = rows(result)
    assert row.status == FAILED
    assert row.reason == "FailedTrialError: its process died 3 times before an epoch ended"


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        WriteError("no room"),
        tf.errors.ResourceExhaustedError(None, None, "events; No space left on device"),
    ],
)
def test_a_disk_that_is_full_ends_the_search_and_costs_no_trial(work, monkeypatch, error):
    result = make(work, f"full_{type(error).__name__}", trials=1)
    with monkeypatch.context() as patch:
        patch.setattr(trainer.training, "train", lambda *a, **o: (_ for _ in ()).throw(error))
        for _ in range(trainer.STARTS + 1):
            with pytest.raises(Halted, match=r"trial_0: .*(No space left|no room)"):
                result.search()
    (row,) = rows(result)
    assert row.status == RUNNING


def test_records_that_cannot_be_used_end_the_search_and_cost_no_trial(work, monkeypatch):
    result = make(work, "damaged", trials=1)
    damage = DataError("records: expected whole shards. Received: one that cannot be read.")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.training, "train", lambda *a, **o: (_ for _ in ()).throw(damage))
        for _ in range(trainer.STARTS + 1):
            with pytest.raises(Halted, match="expected whole shards"):
                result.search()
    (row,) = rows(result)
    assert row.status == RUNNING


def test_scans_that_cannot_be_read_end_the_search_too(work, monkeypatch):
    result = make(work, "unread", trials=1, objective="dice")
    monkeypatch.setattr(scoring, "cases", lambda work: (_ for _ in ()).throw(DataError("hip_03: expected a scan")))
    with pytest.raises(Halted, match="hip_03"):
        result._dice(work)


def test_a_lineage_that_cannot_be_read_costs_no_trial(tmp_path):
    files.write_json(tmp_path / "run" / "lineage.json", {})
    trainer.remove_damaged(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_error_of_the_system_sets_a_trial_aside(work, monkeypatch):
    result = make(work, "denied", trials=1)
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(trainer.training, "train", lambda *a, **o: (_ for _ in ()).throw(denied))
    result.search()
    assert [row.status for row in rows(result)] == [FAILED]


@pytest.mark.slow
def test_a_loss_that_is_no_number_sets_a_trial_aside(work, monkeypatch):
    compiled = training.compiled

    def broken(settings):
        network = compiled(settings)
        network.layers[-1].kernel.assign(np.full(network.layers[-1].kernel.shape, np.nan))
        return network

    monkeypatch.setattr(training, "compiled", broken)
    result = make(work, "nan", trials=1)
    result.search()
    (row,) = rows(result)
    assert row.status == FAILED
    assert row.reason == "Diverged: the loss is nan in step 1 of epoch 1"


@pytest.mark.slow
def test_a_poor_trial_is_stopped_early_and_scored(work, monkeypatch):
    curves = [[(0.25, 2.0), (1.0, 2.0)]] * 4
    monkeypatch.setattr(trainer.early, "finished_curves", lambda folder, objective: curves)
    result = make(work, "poor", epochs=4, trials=1, objective="val_auc")
    result.search()
    (row,) = rows(result)
    assert (row.status, row.stopped_early, row.epochs) == (COMPLETED, True, 2)
    assert row.score is not None


@pytest.mark.slow
def test_dice_of_whole_scans_can_be_the_objective(work):
    result = make(work, "dice", trials=1, epochs=2, objective="dice")
    result.search()
    (row,) = rows(result)
    assert row.status == COMPLETED
    assert 0 <= row.score <= 1


@pytest.mark.slow
def test_hyperband_goes_on_with_the_best_trials(work):
    result = make(work, "hyperband", algorithm="hyperband", trials=4, epochs=3)
    result.search()
    found = rows(result)
    assert {row.status for row in found} == {COMPLETED}
    later = [t for t in result.oracle.trials.values() if t.hyperparameters.values.get("tuner/trial_id")]
    assert later
    run = result.folder / f"trial_{later[0].trial_id}" / "run"
    history = (run / "history.csv").read_text(encoding="utf-8").splitlines()
    assert len(history) == 1 + 3
    past = result.folder / f"trial_{later[0].hyperparameters.values['tuner/trial_id']}" / "run" / "history.csv"
    assert past.read_text(encoding="utf-8").splitlines()[1] == history[1]


def test_a_run_is_not_adopted_twice_nor_from_nothing(tmp_path):
    settings = searches.space().settings(searches.space().default())
    trainer.adopt(tmp_path / "gone", tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()
    files.write_text(tmp_path / "run" / "config.json", "own")
    files.write_json(callbacks.checkpoint_path(tmp_path / "past", 1) / "state.json", {})
    trainer.adopt(tmp_path / "past", tmp_path / "run", settings)
    assert (tmp_path / "run" / "config.json").read_text(encoding="utf-8") == "own"


def test_the_stopwatch_tells_training_from_the_rest(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stopwatch = Stopwatch(90.0)
    for seconds, change in ((1, stopwatch.train), (5, stopwatch.train), (2, stopwatch.pause), (3, stopwatch.pause)):
        now[0] += seconds
        change()
    assert stopwatch.training == 7.0
    assert stopwatch.outside == 10 + 1 + 3
    stopwatch.train()
    now[0] += 50
    assert stopwatch.outside == 10 + 1 + 3


@pytest.mark.slow
def test_a_whole_search_in_one_process(work, capsys):
    assert search.main(SearchArguments(work, trials=1, epochs=1, name="main", algorithm="random")) == 0
    shown = capsys.readouterr()
    assert "1 of 1 trials" in shown.out
    assert "best_config.json" in shown.out
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
def test_a_full_disk_ends_the_search_between_trials_and_it_goes_on(work, capsys):
    arguments = SearchArguments(work, trials=1, epochs=1, name="disk", algorithm="random", max_disk=1e-9)
    assert search.main(arguments) == launch.STOPPED_STATUS
    assert (
        "--max-disk is 1e-09: allow more, or keep fewer models (--keep-best). Run the command again to go on."
        in capsys.readouterr().err
    )
    assert search.main(dataclasses.replace(arguments, max_disk=1.0)) == 0


@pytest.mark.slow
def test_hours_that_are_used_end_the_search_within_a_trial(work, capsys, monkeypatch):
    calls = iter(range(100))
    monkeypatch.setattr(Limits, "hours", lambda self: "--max-hours 1 are used" if next(calls) > 1 else None)
    arguments = SearchArguments(work, trials=2, epochs=1, name="hours", algorithm="random", epoch_examples=150)
    assert search.main(arguments) == launch.STOPPED_STATUS
    assert "0 of 2 trials: --max-hours 1 are used" in capsys.readouterr().err


def test_records_without_validation_examples_are_refused(tmp_path, monkeypatch):
    tiny.write_all(tmp_path)
    for path in (tmp_path / "records" / "manifest.json", tmp_path / "plan.json"):
        values = files.read_json(path)
        values["cases"] = [case for case in values["cases"] if case["part"] == "train"]
        files.write_json(path, values)
    with pytest.raises(DataError, match=r"plan\.json: expected validation cases\. Received: none\. Plan some: "):
        search.main(SearchArguments(tmp_path))
