"""Records -> run folder: the training loop, its clock, its checkpoints.

    runs/NAME/config.json           the RunConfig, and the run's seed
    runs/NAME/checkpoint/epoch-0007 model with optimizer state, and what else a resumed run needs
    runs/NAME/history.csv           one row an epoch
    runs/NAME/logs/                 TensorBoard
    runs/NAME/model.keras           the epoch with the lowest validation loss
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import time
from pathlib import Path
from typing import Any

import keras

from femur_tf import command, config, dataset, files, model, records
from femur_tf.errors import DataError

FINAL_SHARE = 0.01
"""Of the learning rate, reached at the end of a cosine schedule."""


@dataclasses.dataclass
class State:
    """What a resumed run needs beside the model: saved with every checkpoint."""

    epoch: int = 0
    """Epochs completed."""
    seconds: float = 0.0
    """Training time so far, as `Clock` counts it."""
    best_loss: float = math.inf
    waited: int = 0
    """Epochs since the validation loss was lowest."""
    finished: bool = False
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


def has_gpu() -> bool:
    """Return whether TensorFlow sees a GPU."""
    return bool(keras.distribution.list_devices("gpu"))


class Clock:
    """Training time: seconds on the wall with a GPU, else CPU seconds of this process over the cores it may use.

    On a shared machine the CPU count is the same whatever else runs, so that a training of so many minutes is the
    same work.
    """

    def __init__(self, before: float) -> None:
        """Start at `before` seconds."""
        self.before = before
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.on_gpu = has_gpu()
        self.start = self._now()

    def _now(self) -> float:
        return time.monotonic() if self.on_gpu else time.process_time() / self.cores

    def seconds(self) -> float:
        """Return the training time so far."""
        return self.before + self._now() - self.start


class Progress(keras.callbacks.Callback):
    """Sets the learning rate by progress, ends the run when the minutes are used, shows the time left."""

    def __init__(self, settings: config.TrainConfig, state: State, steps: int, minutes: float | None) -> None:
        """Keep the settings.

        Args:
          settings: schedule, learning rate, epochs.
          state: of the run; its history is written by `Checkpoint`.
          steps: batches an epoch.
          minutes: training time to use; None: as many epochs as the settings say.
        """
        super().__init__()
        self.settings, self.state, self.steps, self.minutes = settings, state, steps, minutes
        self.epoch = state.epoch

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Start the clock and the display."""
        self.clock = Clock(self.state.seconds)
        self.display = command.progress(percent=True)
        self.bar = self.display.add_task("training", total=100)
        self.display.start()

    def share(self, batch: int) -> float:
        """Return how much of the run is done, in [0, 1]."""
        if self.minutes is not None:
            return min(1.0, self.clock.seconds() / (60 * self.minutes))
        return (self.epoch + batch / self.steps) / self.settings.epochs

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note the epoch."""
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Set the learning rate."""
        self.model.optimizer.learning_rate = learning_rate(self.settings, self.share(batch))

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Move the bar; stop when the minutes are used."""
        share = self.share(batch + 1)
        if batch % 10 == 0 or share >= 1:
            loss = (logs or {}).get("loss", math.nan)
            text = f"epoch {self.epoch + 1}, step {batch + 1}/{self.steps}, loss {loss:.4f}"
            self.display.update(self.bar, completed=100 * share, description=text)
        if self.minutes is not None and share >= 1:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Print the epoch's line."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        self.display.console.print(f"epoch {epoch + 1}: {values}  ({self.clock.seconds() / 60:.1f} min)")

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Close the display."""
        self.display.stop()


class Checkpoint(keras.callbacks.Callback):
    """Writes the checkpoint, the history and the best model at each epoch's end, each file whole."""

    def __init__(self, folder: Path, state: State, progress: Progress, stopping: keras.callbacks.EarlyStopping) -> None:
        """Keep what is saved.

        Args:
          folder: the run folder.
          state: of the run, changed in place.
          progress: holds the clock.
          stopping: its counters are restored at the start; list it before this callback.
        """
        super().__init__()
        self.folder, self.state, self.progress, self.stopping = folder, state, progress, stopping

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Hand the counters of the interrupted run to `EarlyStopping`, which has just reset them."""
        self.stopping.wait = self.state.waited
        if math.isfinite(self.state.best_loss):
            self.stopping.best = self.state.best_loss

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Save."""
        values = {name: float(value) for name, value in (logs or {}).items()}
        better = values["val_loss"] < self.state.best_loss
        state = self.state
        state.epoch, state.seconds = epoch + 1, self.progress.clock.seconds()
        state.best_loss = min(state.best_loss, values["val_loss"])
        state.waited = 0 if better else state.waited + 1
        rate = float(self.model.optimizer.learning_rate)
        state.history.append({"epoch": epoch + 1, "seconds": state.seconds, "learning_rate": rate, **values})
        with files.whole(checkpoint_path(self.folder, state.epoch)) as temporary:
            temporary.mkdir()
            self.model.save(temporary / "model.keras")
            files.write_json(temporary / "state.json", dataclasses.asdict(state))
        for old in checkpoints(self.folder)[:-1]:
            files.remove(old)
        if better:
            with files.whole(self.folder / "model.keras") as temporary:
                self.model.save(temporary)
        files.write_text(self.folder / "history.csv", _csv(state.history))


def _csv(rows: list[dict[str, float]]) -> str:
    """Return rows with equal keys as CSV text."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Return the checkpoint folder after `epoch` epochs."""
    return folder / "checkpoint" / f"epoch-{epoch:04d}"


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted((folder / "checkpoint").glob("epoch-*"))


def learning_rate(settings: config.TrainConfig, share: float) -> float:
    """Return the learning rate when `share`, in [0, 1], of the run is done."""
    if settings.schedule == "constant":
        return settings.learning_rate
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return settings.learning_rate * (FINAL_SHARE + (1 - FINAL_SHARE) * falling)


def _optimizer(settings: config.TrainConfig) -> keras.optimizers.Optimizer:
    """Return the optimizer of the settings."""
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(settings.learning_rate, momentum=settings.momentum)
    kind = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[settings.optimizer]
    return kind(settings.learning_rate, beta_1=settings.momentum)


def compiled(settings: config.RunConfig) -> keras.Sequential:
    """Return the untrained network, ready for `fit`.

    Seeds Keras's global random state with the run's seed, which kernels and dropout draw from.
    """
    train = settings.train
    keras.utils.set_random_seed(train.seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16" if train.mixed_precision else "float32")
    try:
        network = model.build(settings.model, settings.data.patch)
    finally:
        keras.config.set_dtype_policy(before)
    focal = keras.losses.BinaryFocalCrossentropy(gamma=train.focal_gamma)
    network.compile(
        optimizer=_optimizer(train),
        loss=focal if train.loss == "focal" else keras.losses.BinaryCrossentropy(),
        metrics=[keras.metrics.AUC(name="auc"), keras.metrics.F1Score(threshold=0.5, average="micro", name="dice")],
        # XLA trains this network three times slower than oneDNN on a CPU (docs/performance.md).
        jit_compile="auto" if has_gpu() else False,
    )
    return network


def _start(folder: Path, settings: config.RunConfig) -> tuple[keras.Sequential, State]:
    """Return the model and the state to go on with: those of the last checkpoint, or new ones."""
    found = checkpoints(folder)
    if not found:
        return compiled(settings), State()
    state = State(**files.read_json(found[-1] / "state.json"))
    keras.utils.set_random_seed(settings.train.seed + state.epoch)
    return keras.saving.load_model(found[-1] / "model.keras"), state


def _open_run(folder: Path, settings: config.RunConfig) -> None:
    """Make the run folder, or check that the one there was made with the same settings."""
    path = folder / "config.json"
    values = config.to_dict(settings)
    if not path.exists():
        files.write_json(path, values)
        return
    found = config.to_dict(config.load(config.RunConfig, path))
    differing = sorted(_differences(found, values))
    if differing:
        raise DataError(
            f"{path}: expected the settings of this command. Received: another {', '.join(differing)}. "
            "Choose another name with --run, or start it anew with --overwrite."
        )


def _differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of the fields in which two nested dictionaries differ."""
    found = set()
    for name in one:
        if isinstance(one[name], dict):
            found |= _differences(one[name], other[name], f"{prefix}{name}.")
        elif _plain(one[name]) != _plain(other[name]):
            found.add(prefix + name)
    return found


def _plain(value: Any) -> Any:
    """Return tuples as lists, as JSON has them."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def announce_device() -> None:
    """Say what the training runs on."""
    if has_gpu():
        command.say(f"Training on GPU: {', '.join(keras.distribution.list_devices('gpu'))}")
    else:
        command.warn(f"NO GPU FOUND: training on {os.cpu_count()} CPU cores. For CUDA: pip install 'femur_tf[gpu]'")


def train(records_folder: Path, folder: Path, settings: config.RunConfig, *, minutes: float | None = None) -> State:
    """Train a run, or go on with it at its last checkpoint.

    Args:
      records_folder: with manifest and shards.
      folder: of the run.
      settings: everything the run is made with.
      minutes: training time (see `Clock`) to use in all; None: `settings.train.epochs` epochs.

    Returns:
      The state at the end, with the history.

    Raises:
      DataError: no records, records without the patches of the settings, or a run folder made with other settings.
    """
    manifest = records.read_manifest(records_folder)
    rule, train_settings = settings.data.patch, settings.train
    dataset.channels_of(rule, manifest.data.patch, str(records.manifest_path(records_folder)))
    _open_run(folder, settings)
    network, state = _start(folder, settings)
    if state.finished:
        command.say(f"{folder}: this run is finished ({state.epoch} epochs, {state.seconds / 60:.1f} min).")
        return state
    if state.epoch:
        command.say(f"{folder}: goes on after epoch {state.epoch} ({state.seconds / 60:.1f} min).")
    announce_device()
    common = {"batch": train_settings.batch, "rule": rule}
    epochs = range(state.epoch, train_settings.epochs if minutes is None else 100_000)
    examples = dataset.batches(
        records_folder, manifest, "train", seed=train_settings.seed, training=train_settings.augment, epochs=epochs, **common
    )
    steps = math.ceil(manifest.count("train") / train_settings.batch)
    progress = Progress(train_settings, state, steps, minutes)
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=train_settings.patience)
    network.fit(
        examples,
        validation_data=dataset.batches(records_folder, manifest, "validation", **common),
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        steps_per_epoch=steps,
        shuffle=False,  # Keras warns otherwise; the dataset shuffles
        class_weight={0: 1.0, 1: train_settings.bone_weight} if train_settings.loss == "weighted" else None,
        callbacks=[
            progress,
            stopping,
            keras.callbacks.TensorBoard(folder / "logs", write_graph=False),
            Checkpoint(folder, state, progress, stopping),
        ],
        verbose=0,
    )
    state.finished = True
    files.write_json(checkpoint_path(folder, state.epoch) / "state.json", dataclasses.asdict(state))
    return state
