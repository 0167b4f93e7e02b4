"""The training loop: that it learns, stops when it should, and goes on after a kill as if there had been none."""

import contextlib
import csv
import dataclasses
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from sklearn.metrics import roc_auc_score

from femur_tf import bundle, callbacks, config, files, lineage, study, training
from femur_tf.callbacks import State
from femur_tf.config import AugmentConfig, ModelConfig, RunConfig, TrainConfig
from femur_tf.errors import DataError

ROOT = Path(__file__).parents[1]
WEIGHT_TOLERANCE = 1e-6
"""The order of sums in threads."""
RATE_TOLERANCE = 1e-6
"""A learning rate is a float32."""
MODEL = ModelConfig(filters=(3,), dense=(4,), dropout_dense=0.0)
TRAIN = TrainConfig(batch=64, epochs=3, learning_rate=1e-2)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The records folder of a tiny study; not to be changed."""
    work = tmp_path_factory.mktemp("work")
    tiny.write_all(work)
    return work / "records"


def changed_data(**changes):
    """Return settings whose data are not those of the records."""
    found = settings()
    return dataclasses.replace(found, data=dataclasses.replace(found.data, **changes))


def settings(network=MODEL, **changes):
    """Return the settings of a run on the tiny records."""
    return RunConfig(tiny.DATA, network, dataclasses.replace(TRAIN, **changes))


def weights(folder, epoch):
    """Return model and optimizer weights of a checkpoint."""
    network = keras.saving.load_model(callbacks.checkpoint_path(folder, epoch) / "model.keras")
    return [variable.numpy() for variable in (*network.weights, *network.optimizer.variables)]


def rows(folder):
    """Return the rows of a run's history."""
    with (folder / "history.csv").open() as stream:
        return list(csv.DictReader(stream))


class Killed(RuntimeError):
    """Stands for the end of the process."""


def killed(*arguments):
    """Stand for a function in which the process ends."""
    raise Killed


@contextlib.contextmanager
def killed_after(epochs):
    """Let a training end, with no chance to clean up, right after a checkpoint."""
    save = callbacks.Checkpoint.on_epoch_end

    def on_epoch_end(self, epoch, logs=None):
        save(self, epoch, logs)
        if epoch + 1 == epochs:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Checkpoint, "on_epoch_end", on_epoch_end)
        yield


@pytest.fixture(scope="module")
def uninterrupted(written, tmp_path_factory):
    """A run of three epochs, and its state."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, training.train(written, folder, settings())


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1.0), (0.5, 0.505), (1.0, 0.01), (1.5, 0.01)],  # half-way between 1 and a hundredth
)
def test_a_cosine_falls_to_a_hundredth(share, expected):
    rate = callbacks.learning_rate(TrainConfig(learning_rate=1.0, schedule="cosine"), share)
    assert rate == pytest.approx(expected)


def test_a_constant_rate_stays():
    train = TrainConfig(learning_rate=0.3, schedule="constant")
    assert {callbacks.learning_rate(train, share) for share in (0.0, 0.5, 1.0)} == {0.3}


def test_checkpoints_are_listed_oldest_first(tmp_path):
    for epoch in (10000, 10, 2):
        place = callbacks.checkpoint_path(tmp_path, epoch)
        place.mkdir(parents=True)
        for name in ("model.keras", "state.json"):
            (place / name).touch()
    (tmp_path / "checkpoint/.partial-1-epoch-0011").mkdir()
    assert [path.name for path in callbacks.checkpoints(tmp_path)] == ["epoch-0002", "epoch-0010", "epoch-10000"]


def test_the_clock_counts_on_from_earlier_seconds():
    clock = callbacks.Clock(100.0)
    end = time.process_time() + 0.02 * clock.cores
    while time.process_time() < end:
        math.sqrt(2.0)
    assert 100.015 < clock.seconds() < 110


@pytest.mark.parametrize(
    ("changes", "kind", "momentum"),
    [
        ({"optimizer": "sgd", "momentum": 0.8}, keras.optimizers.SGD, "momentum"),
        ({"optimizer": "adam", "momentum": 0.8}, keras.optimizers.Adam, "beta_1"),
        ({"optimizer": "adamw", "momentum": 0.8}, keras.optimizers.AdamW, "beta_1"),
    ],
)
def test_the_optimizer_is_that_of_the_settings(changes, kind, momentum):
    optimizer = training.compiled(settings(**changes)).optimizer
    assert type(optimizer) is kind
    assert getattr(optimizer, momentum) == 0.8


def test_the_same_seed_starts_from_the_same_weights():
    one, same, other = (training.compiled(settings(seed=seed)).get_weights() for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("gpu", "expected"), [(True, "float16"), (False, "bfloat16")])
def test_mixed_precision_computes_in_what_the_device_has_and_leaves_the_process_as_it_was(monkeypatch, gpu, expected):
    monkeypatch.setattr(training, "has_gpu", lambda: gpu)
    network = training.compiled(settings(mixed_precision=True))
    assert network.layers[1].compute_dtype == expected
    assert network.layers[-1].compute_dtype == "float32"
    assert all(weight.dtype == "float32" for weight in network.weights)
    assert keras.config.dtype_policy().name == "float32"


def test_the_device_is_announced(capsys):
    training.announce_device()
    shown = capsys.readouterr()
    assert "Training on GPU" in shown.out if callbacks.has_gpu() else "NO GPU FOUND" in shown.err


@pytest.mark.slow
def test_a_run_learns_and_leaves_its_files(uninterrupted):
    folder, state = uninterrupted
    assert (state.epoch, state.finished) == (3, True)
    assert state.history[-1]["loss"] < state.history[0]["loss"]
    assert state.history[-1]["val_auc"] > 0.8  # the ball is bright
    assert config.load(RunConfig, folder / "config.json") == settings()
    assert keras.saving.load_model(folder / "model.keras").input_shape == (None, 8, 8, 6)
    assert list((folder / "logs/validation").iterdir())
    assert [path.name for path in callbacks.checkpoints(folder)] == ["epoch-0003"]


def test_the_history_has_a_row_an_epoch(uninterrupted):
    folder, state = uninterrupted
    found = rows(folder)
    assert [int(row["epoch"]) for row in found] == [1, 2, 3]
    assert list(found[0]) == [
        "epoch", "seconds", "learning_rate", "auc", "dice", "log_loss", "loss",
        "val_auc", "val_dice", "val_log_loss", "val_loss",
    ]  # fmt: skip
    assert [float(row["val_loss"]) for row in found] == [row["val_loss"] for row in state.history]


def test_the_best_model_is_that_of_the_highest_validation_auc(uninterrupted, written):
    folder, state = uninterrupted
    assert state.best == max(row["val_auc"] for row in state.history)
    best = keras.saving.load_model(folder / "model.keras")
    manifest = training.records.read_manifest(written)
    batches = training.dataset.batches(written, manifest, "validation", batch=64)
    assert best.evaluate(batches, return_dict=True, verbose=0)["auc"] == pytest.approx(state.best, abs=1e-5)


def test_the_auc_tells_ranks_apart_where_a_network_is_sure():
    rng = np.random.default_rng(0)
    truth = rng.random(20_000) < 0.4
    logit = 30 * (truth - 0.5) + rng.normal(0, 10, truth.size)
    measure = training.compiled(settings(seed=1))
    measure.evaluate(np.zeros((1, 8, 8, 6), np.uint8), np.zeros((1, 1)), verbose=0)  # builds the metrics
    found = next(one for one in measure.metrics[-1].metrics if one.name == "auc")
    found.reset_state()
    found.update_state(truth[:, None].astype(np.float32), (1 / (1 + np.exp(-logit)))[:, None].astype(np.float32))
    assert float(found.result()) == pytest.approx(roc_auc_score(truth, logit), abs=1e-3)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(uninterrupted, written, tmp_path):
    whole, expected = uninterrupted
    folder = tmp_path / "killed"
    with killed_after(2), pytest.raises(Killed):
        training.train(written, folder, settings())
    assert [path.name for path in callbacks.checkpoints(folder)] == ["epoch-0002"]
    state = training.train(written, folder, settings())
    for found, known in zip(weights(folder, 3), weights(whole, 3), strict=True):
        np.testing.assert_allclose(found, known, rtol=0, atol=WEIGHT_TOLERANCE)
    assert [int(row["epoch"]) for row in rows(folder)] == [1, 2, 3]
    assert state.seconds > state.history[1]["seconds"]
    for row, known in zip(state.history, expected.history, strict=True):
        assert row["learning_rate"] == pytest.approx(known["learning_rate"], rel=RATE_TOLERANCE)
        assert row["val_loss"] == pytest.approx(known["val_loss"], abs=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_dropout_that_it_would_have_had(written, tmp_path):
    network = dataclasses.replace(MODEL, dropout_conv=0.2, dropout_dense=0.3)
    training.train(written, tmp_path / "whole", settings(network, epochs=2))
    with killed_after(1), pytest.raises(Killed):
        training.train(written, tmp_path / "killed", settings(network, epochs=2))
    training.train(written, tmp_path / "killed", settings(network, epochs=2))
    for found, known in zip(weights(tmp_path / "killed", 2), weights(tmp_path / "whole", 2), strict=True):
        np.testing.assert_allclose(found, known, rtol=0, atol=WEIGHT_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("gpu", "later"), [(True, True), (False, False), (True, False), (False, True)])
def test_a_killed_run_in_mixed_precision_goes_on_in_it(written, tmp_path, monkeypatch, gpu, later):
    """On another device, too: what it was begun in counts."""
    monkeypatch.setattr(training, "has_gpu", lambda: gpu)
    mixed = settings(epochs=2, mixed_precision=True)
    expected = training.train(written, tmp_path / "whole", mixed)
    with killed_after(1), pytest.raises(Killed):
        training.train(written, tmp_path / "killed", mixed)
    monkeypatch.setattr(training, "has_gpu", lambda: later)
    found = training.train(written, tmp_path / "killed", mixed)
    assert found.history[-1]["val_loss"] == pytest.approx(expected.history[-1]["val_loss"], abs=1e-5)


@pytest.mark.slow
def test_a_checkpoint_that_is_damaged_is_named(written, tmp_path):
    training.train(written, tmp_path / "run", settings(epochs=2))
    path = callbacks.checkpoints(tmp_path / "run")[-1] / "model.keras"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"model\.keras: expected a Keras model that can be loaded"):
        training.train(written, tmp_path / "run", settings(epochs=2))


@pytest.mark.parametrize("seed", [-1, 2**32, 202504121230])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed: expected a whole number in \[0, 2\^32\)"):
        TrainConfig(seed=seed)


@pytest.mark.slow
def test_a_killed_run_of_minutes_goes_on_with_what_is_left_of_them(written, tmp_path, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(callbacks.Clock, "_now", lambda self: float(next(ticks)))
    folder = tmp_path / "run"
    with killed_after(1), pytest.raises(Killed):
        training.train(written, folder, settings(minutes=0.5))
    used = State(**files.read_json(callbacks.checkpoints(folder)[-1] / "state.json")).seconds
    state = training.train(written, folder, settings(minutes=0.5))
    assert 0 < used < 30 <= state.seconds < 45
    with pytest.raises(DataError, match=r"config\.json: .*another train\.minutes\."):
        training.train(written, folder, settings())


@pytest.mark.slow
def test_a_run_killed_while_it_saves_does_the_epoch_again(written, tmp_path):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "checkpoint_path", killed)
        with pytest.raises(Killed):
            training.train(written, folder, settings(epochs=1))
    assert callbacks.checkpoints(folder) == []
    state = training.train(written, folder, settings(epochs=1))
    assert [int(row["epoch"]) for row in rows(folder)] == [1] == [row["epoch"] for row in state.history]


def test_a_finished_run_is_not_trained_again(uninterrupted, written, monkeypatch, capsys):
    folder, state = uninterrupted
    monkeypatch.setattr(keras.Sequential, "fit", None)
    assert training.train(written, folder, settings()) == state
    assert "this run is finished (3 epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_run_is_trained_anew_when_it_may_be_overwritten(written, tmp_path):
    folder = tmp_path / "run"
    training.train(written, folder, settings(epochs=1))
    state = training.train(written, folder, settings(epochs=1, batch=90), overwrite=True)
    assert len(rows(folder)) == 1
    assert state.history[0]["epoch"] == 1
    assert config.load(RunConfig, folder / "config.json").train.batch == 90


@pytest.mark.slow
def test_minutes_end_a_run_within_an_epoch(written, tmp_path, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(callbacks.Clock, "_now", lambda self: float(next(ticks)))
    state = training.train(written, tmp_path / "run", settings(minutes=0.5))  # 30 looks at the clock
    assert state.finished
    assert config.load(RunConfig, tmp_path / "run/config.json").train.minutes == 0.5
    assert 2 <= state.epoch < 30
    assert state.seconds >= 30
    rates = [row["learning_rate"] for row in state.history]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.05 * TRAIN.learning_rate  # the cosine ends with the minutes


@pytest.mark.slow
def test_a_study_without_validation_cases_keeps_the_last_epoch(tmp_path):
    plan = tiny.write_study(tmp_path)
    cases = tuple(case for case in plan.cases if case.part == "train")
    files.write_json(study.plan_path(tmp_path), config.to_dict(dataclasses.replace(plan, cases=cases)))
    tiny.write_its_records(tmp_path)
    run = tmp_path / "runs" / "all"
    with killed_after(1), pytest.raises(Killed):
        training.train(tmp_path / "records", run, settings(epochs=3))
    state = training.train(tmp_path / "records", run, settings(epochs=3))
    assert (state.finished, state.epoch, state.best) == (True, 3, None)
    assert not any(name.startswith("val_") for row in state.history for name in row)
    kept = keras.saving.load_model(run / "model.keras").get_weights()
    last = keras.saving.load_model(callbacks.checkpoint_path(run, 3) / "model.keras").get_weights()
    for one, other in zip(kept, last, strict=True):
        np.testing.assert_array_equal(one, other)


def test_epochs_of_a_run_of_minutes_are_bounded():
    timed, short, counted = (TrainConfig(**budget) for budget in ({"minutes": 90.0}, {"minutes": 2.0}, {"epochs": 3}))
    bounds = training.EPOCH_EXAMPLES
    for there, expected in ((2_560_000, [600_000, 30_000, 2_560_000]), (2560, [2560, 2560, 2560])):
        assert [training.limited(None, bounds, each, there) for each in (timed, short, counted)] == expected
    assert training.limited(200_000, training.VALIDATION_EXAMPLES, timed, 300_000) == 200_000


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "used"), [({"epochs": 50}, "epochs of 50"), ({"minutes": 9.0}, "min of 9")])
def test_training_stops_when_the_validation_auc_has_not_risen(written, tmp_path, capsys, budget, used):
    still = {"learning_rate": 1e-12, "patience": 2, "optimizer": "sgd", "schedule": "constant"}
    state = training.train(written, tmp_path / "run", settings(**still, **budget))
    assert state.finished
    assert state.waited >= 2
    assert state.epoch < 10
    shown = " ".join(capsys.readouterr().out.split())
    assert "stopped early" in shown
    assert f"{used}: the validation AUC has not risen for 2 epochs. Kept: epoch {state.epoch - 2}." in shown


@pytest.mark.slow
def test_short_epochs_go_on_where_the_one_before_ended(written, tmp_path):
    short = settings(epoch_examples=100, validation_examples=30, bone_share=0.5, epochs=4)
    with killed_after(2), pytest.raises(Killed):
        training.train(written, tmp_path / "killed", short)
    resumed = training.train(written, tmp_path / "killed", short)
    whole = training.train(written, tmp_path / "whole", short)
    for row, known in zip(resumed.history, whole.history, strict=True):
        assert row["loss"] == pytest.approx(known["loss"], abs=1e-5)
        assert row["val_loss"] == pytest.approx(known["val_loss"], abs=1e-5)


@pytest.mark.slow
def test_log_loss_leaves_out_the_penalty(written, tmp_path):
    network = dataclasses.replace(MODEL, l2=1.0)
    (row,) = training.train(written, tmp_path / "run", settings(network, epochs=1)).history
    assert row["val_loss"] > row["val_log_loss"] + 1


def spoilt_after(epochs):
    """Return a callback that makes a weight no number in the epoch after so many."""

    class Spoilt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == epochs:
                kernel = self.model.layers[-1].kernel
                kernel.assign(np.full(kernel.shape, np.nan))

    return Spoilt()


@pytest.mark.parametrize("epochs", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_network_that_diverged_is_not_kept(written, tmp_path, epochs):
    run = tmp_path / "run"
    expected = r"the loss is nan in step 1 of epoch \d\n.*run: expected a number.*--set train\.learning_rate=0\.0025"
    with pytest.raises(callbacks.Diverged, match=expected):
        training.train(written, run, settings(), callbacks=[spoilt_after(epochs)])
    assert len(callbacks.checkpoints(run)) == epochs
    if epochs:
        kept = keras.saving.load_model(run / "model.keras")
        assert all(np.isfinite(weight).all() for weight in kept.get_weights())
    assert (run / "model.keras").exists() == bool(epochs)


@pytest.mark.slow
def test_a_weight_that_the_last_step_spoilt_is_seen(written, tmp_path):
    class Spoilt(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            weight = self.model.weights[0]
            weight.assign(np.full(weight.shape, np.inf))

    with pytest.raises(callbacks.Diverged, match="after epoch 1"):
        training.train(written, tmp_path / "run", settings(), callbacks=[Spoilt()])
    assert not callbacks.checkpoints(tmp_path / "run")


@pytest.mark.slow
def test_a_damaged_shard_ends_a_training_with_what_to_do(written, tmp_path):
    folder = tmp_path / "records"
    shutil.copytree(written, folder)
    shard = sorted((folder / "shards").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"expected whole shards\. Received: .*DataLossError.*femur_tf\.records check"):
        training.train(folder, tmp_path / "run", settings(epochs=2))


def test_a_missing_shard_is_named_before_training_begins(written, tmp_path):
    folder = tmp_path / "records"
    shutil.copytree(written, folder)
    shard = sorted((folder / "shards").iterdir())[0]
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard.name}: expected a file of \d+ bytes\. Received: no file\. Find all"):
        training.train(folder, tmp_path / "run", settings())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_further_callbacks_act_before_the_checkpoint_is_written(written, tmp_path, capsys):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    state = training.train(written, tmp_path / "run", settings(), callbacks=[Stop()], announce=False)
    assert (state.epoch, state.finished) == (1, True)
    assert "GPU" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal"},
        pytest.param({"loss": "weighted", "bone_weight": 5.0}, marks=pytest.mark.slow),
        pytest.param({"mixed_precision": True}, marks=pytest.mark.slow),
    ],
)
def test_other_losses_and_precision_train(written, tmp_path, changes):
    state = training.train(written, tmp_path / "run", settings(epochs=1, **changes))
    assert math.isfinite(state.history[0]["loss"])
    assert state.best == state.history[0]["val_auc"]


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [1.0, 2.0])
@pytest.mark.parametrize(("logit", "label"), [(90.0, 1.0), (-90.0, 0.0)])
def test_the_focal_loss_has_a_slope_where_the_network_is_sure_and_right(gamma, logit, label):
    loss = training.compiled(settings(loss="focal", focal_gamma=gamma)).loss
    sure = tf.constant([[logit]])
    with tf.GradientTape() as tape:
        tape.watch(sure)
        found = loss(tf.constant([[label]]), tf.sigmoid(sure))
    assert np.isfinite(tape.gradient(found, sure))


@pytest.mark.slow
def test_a_weight_moves_the_loss(written, tmp_path):
    plain, heavy = (
        training.train(written, tmp_path / str(weight), settings(epochs=1, loss="weighted", bone_weight=weight))
        for weight in (1.0, 20.0)
    )
    assert heavy.history[0]["loss"] > 2 * plain.history[0]["loss"]


START = """
import dataclasses, sys
from pathlib import Path
import tiny
from femur_tf import config, training
settings = config.load(config.RunConfig, Path(sys.argv[3]))
training.train(Path(sys.argv[1]), Path(sys.argv[2]), settings)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_run_that_goes_on(written, tmp_path):
    folder = tmp_path / "run"
    endless = settings(epochs=400, patience=400)
    files.write_json(tmp_path / "settings.json", config.to_dict(endless))
    command = [sys.executable, "-c", START, str(written), str(folder), str(tmp_path / "settings.json")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + 120
        while not callbacks.checkpoints(folder) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        _, shown = process.communicate()
    assert process.returncode == -signal.SIGKILL, shown.decode()
    before = State(**files.read_json(callbacks.checkpoints(folder)[-1] / "state.json"))
    assert before.epoch >= 1
    with killed_after(before.epoch + 2), pytest.raises(Killed):
        training.train(written, folder, endless)
    assert [int(row["epoch"]) for row in rows(folder)] == list(range(1, before.epoch + 3))


@pytest.mark.slow
def test_a_checkpoint_of_another_user_stays_and_the_training_goes_on(tmp_path, written, monkeypatch):
    remove = files.remove

    def of_another(path):
        if path.name.startswith("epoch-"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr(files, "remove", of_another)
    before = os.umask(0o002)
    try:
        training.train(written, tmp_path / "run", settings(epochs=2))
    finally:
        os.umask(before)
    assert [path.name for path in callbacks.checkpoints(tmp_path / "run")] == ["epoch-0001", "epoch-0002"]
    logs = tmp_path / "run" / "logs"
    assert {path.stat().st_mode & 0o777 for path in (logs, logs / "train", logs / "validation")} == {0o775}


def test_a_checkpoint_that_is_half_removed_does_not_count(tmp_path):
    for number, names in {1: ("model.keras", "state.json"), 2: ("model.keras",), 3: ("state.json",)}.items():
        place = callbacks.checkpoint_path(tmp_path, number)
        place.mkdir(parents=True)
        for name in names:
            (place / name).touch()
    assert callbacks.checkpoints(tmp_path) == [callbacks.checkpoint_path(tmp_path, 1)]


def test_a_checkpoint_of_a_version_that_kept_other_things_is_refused(uninterrupted, tmp_path, written):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted[0], folder)
    path = callbacks.checkpoints(folder)[-1] / "state.json"
    files.write_json(path, files.read_json(path) | {"best_loss": 0.1})
    with pytest.raises(DataError, match=r"state\.json: expected the state of a training of this.* best_loss\. Go on"):
        training.train(written, folder, settings())


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (settings(epochs=4), r"train\.epochs\."),
        (settings(minutes=3.0), r"train\.minutes\."),
        (settings(dataclasses.replace(MODEL, filters=(4,)), seed=1), r"model\.filters, train\.seed\."),
        (settings(augment=AugmentConfig(flip=False)), r"train\.augment\.flip\."),
    ],
)
def test_a_run_made_with_other_settings_is_refused_and_named(uninterrupted, written, other, named):
    folder, _ = uninterrupted
    with pytest.raises(
        DataError, match=rf"config\.json: expected the settings of this command\. .*another {named}.* go on with"
    ):
        training.train(written, folder, other)


def test_a_folder_without_records_says_what_to_run_first(tmp_path):
    with pytest.raises(DataError, match=r"Run first: python -m data_prep\.write_records"):
        training.train(tmp_path / "records", tmp_path / "run", settings())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dataclasses.replace(settings(), data=config.DataConfig()), "expected records with the patches of"),
        (changed_data(normalisation=config.NormalisationConfig(n4=True)), r"another data\.normalisation\.n4\. Leave"),
        (changed_data(sampling=dataclasses.replace(tiny.SAMPLING, per_case=77)), r"another data\.sampling\.per_case"),
        (settings(dataclasses.replace(MODEL, filters=(1, 1, 1))), "leaves at least 1x1"),
    ],
)
def test_settings_that_cannot_be_trained_leave_no_trace(written, tmp_path, bad, message):
    with pytest.raises(DataError, match=message):
        training.train(written, tmp_path / "run", bad)
    assert not (tmp_path / "run").exists()


def test_a_run_is_kept_where_its_successor_cannot_be_trained(uninterrupted, written):
    folder, _ = uninterrupted
    bad = dataclasses.replace(settings(), data=config.DataConfig())
    with pytest.raises(DataError, match="expected records with the patches of"):
        training.train(written, folder, bad, overwrite=True)
    assert (folder / "model.keras").exists()


@pytest.mark.parametrize(
    ("start", "words"),
    [("run", r"another run to start from \(--start\)\. Received: this one"), ("gone", "no such file")],
)
def test_a_run_is_kept_where_its_successor_has_nothing_to_start_from(written, tmp_path, start, words):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.keras").write_bytes(b"kept")
    with pytest.raises(DataError, match=words):
        training.train(written, folder, settings(start=start), overwrite=True)
    assert (folder / "model.keras").read_bytes() == b"kept"


@pytest.mark.slow
def test_another_network_has_no_recipe_yet(written, tmp_path):
    """A recipe that was chosen between two epochs is for the network that was there then."""
    folder = tmp_path / "run"
    with killed_after(1), pytest.raises(Killed):
        training.train(written, folder, settings())
    for name in (bundle.RECIPE, bundle.COHORT):
        (folder / name).write_text("{}")
    state = training.train(written, folder, settings())
    improved = state.history[-1]["val_auc"] > state.history[0]["val_auc"]
    assert improved and not (folder / bundle.RECIPE).exists() and not (folder / bundle.COHORT).exists()


@pytest.mark.slow
def test_a_run_says_what_it_learns_from_and_goes_on_with_nothing_else(written, tmp_path):
    folder = tmp_path / "run"
    with killed_after(1), pytest.raises(Killed):
        training.train(written, folder, settings())
    found = lineage.read(folder)
    assert (found.names("train"), found.names("validation")) == ({"hip_01", "hip_02"}, {"hip_03"})
    other = dataclasses.replace(found.cases[0], fingerprint="0")
    changed = dataclasses.replace(found, cases=(other, *found.cases[1:]))
    files.write_json(folder / lineage.NAME, config.to_dict(changed))
    with pytest.raises(DataError, match=r"lineage\.json: expected the records that this run began with.* of hip_01\. "):
        training.train(written, folder, settings())
    training.train(written, folder, settings(), overwrite=True)
    assert lineage.read(folder) == found


@pytest.mark.parametrize(("sided", "wanted", "flip"), [(False, True, True), (True, True, False), (False, False, False)])
def test_patches_of_a_sided_structure_are_not_mirrored(written, monkeypatch, sided, wanted, flip):
    seen = []
    monkeypatch.setattr(training.dataset, "batches", lambda *args, training=None, **more: seen.append(training))
    manifest = training.mined_records.read_manifest(written)
    asked = settings(augment=AugmentConfig(flip=wanted))
    asked = dataclasses.replace(asked, data=dataclasses.replace(asked.data, sided=sided))
    training._examples(written, manifest, asked, range(1), 1)
    assert seen[0] == AugmentConfig(flip=flip)
