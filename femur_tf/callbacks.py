"""What happens around the epochs of a run: the clock, the learning rate, the progress shown, the checkpoints."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import math
import time
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from femur_tf import bundle as bundles
from femur_tf import command, config, files, machine, model
from femur_tf.errors import DataError

EVERY = 10
"""Steps between two looks at the loss: each waits for the device."""
FINAL_SHARE = 0.01
"""Of the learning rate, reached at the end of a cosine schedule."""


@dataclasses.dataclass
class State:
    """What a resumed run needs beside the model: saved with every checkpoint."""

    epoch: int = 0
    """Epochs completed."""
    seconds: float = 0.0
    """Training time so far, as `Clock` counts it."""
    best: float | None = None
    """What `EarlyStopping` monitors, in the best epoch so far; None before one, and without validation."""
    waited: int = 0
    """Epochs since the best one."""
    finished: bool = False
    dropout: list[list[int]] = dataclasses.field(default_factory=list)
    """The state of chance of each Dropout layer, which a saved model leaves out."""
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


def read_state(path: Path) -> State:
    """Read the state of a checkpoint.

    Raises:
      DataError: another version of this package wrote it.
    """
    values, known = files.read_json(path), {field.name for field in dataclasses.fields(State)}
    if set(values) != known:
        received = ", ".join(sorted(set(values) ^ known))
        raise DataError(
            f"{path}: expected the state of a training of this version of femur_tf. Received: one that differs in "
            f"{received}. Go on with the version that began it, or start anew with --overwrite; model.keras is usable."
        )
    return State(**values)


def has_gpu() -> bool:
    """Return whether TensorFlow sees a GPU."""
    return bool(keras.distribution.list_devices("gpu"))


def dropout_states(network: keras.Sequential) -> list[keras.Variable]:
    """Return the state of chance of each Dropout layer, (2,) uint32, which goes on at every step."""
    return [layer.seed_generator.state for layer in model.layers_of(network) if isinstance(layer, keras.layers.Dropout)]


class Clock:
    """Training time: seconds on the wall with a GPU, else CPU seconds of this process over the cores it may use.

    On a shared machine the CPU count is the same whatever else runs, so that a training of so many minutes is the
    same work.
    """

    def __init__(self, before: float) -> None:
        """Start at `before` seconds."""
        self.before = before
        self.cores = machine.cores()
        self.on_gpu = has_gpu()
        self.start = self._now()

    def _now(self) -> float:
        return time.monotonic() if self.on_gpu else time.process_time() / self.cores

    def seconds(self) -> float:
        """Return the training time so far."""
        return self.before + self._now() - self.start


def learning_rate(settings: config.TrainConfig, share: float) -> float:
    """Return the learning rate when `share`, in [0, 1], of the run is done."""
    if settings.schedule == "constant":
        return settings.learning_rate
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return settings.learning_rate * (FINAL_SHARE + (1 - FINAL_SHARE) * falling)


class Progress(keras.callbacks.Callback):
    """Sets the learning rate by progress, ends the run when the minutes are used, shows the time left.

    Train under `with progress.display`, which is also closed when training is interrupted.
    """

    def __init__(self, settings: config.TrainConfig, state: State, steps: int) -> None:
        """Keep the settings.

        Args:
          settings: schedule, learning rate, epochs or minutes.
          state: of the run; its history is written by `Checkpoint`.
          steps: batches an epoch.
        """
        super().__init__()
        self.settings, self.state, self.steps = settings, state, steps
        self.epoch = state.epoch
        self.display = command.progress(percent=True)
        self.bar = self.display.add_task("training", total=100)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Start the clock."""
        self.clock = Clock(self.state.seconds)

    def share(self, batch: int) -> float:
        """Return how much of the run is done, in [0, 1]."""
        if self.settings.minutes is not None:
            return min(1.0, self.clock.seconds() / (60 * self.settings.minutes))
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
        if batch % EVERY == 0 or share >= 1:
            loss = (logs or {}).get("loss", math.nan)
            text = f"epoch {self.epoch + 1}, step {batch + 1}/{self.steps}, loss {loss:.4f}"
            self.display.update(self.bar, completed=100 * share, description=text)
        if self.settings.minutes is not None and share >= 1:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Print the epoch's line."""
        values = "  ".join(f"{name} {value:.4f}" for name, value in (logs or {}).items())
        text = f"epoch {epoch + 1}: {values}  ({self.clock.seconds() / 60:.1f} min)"
        self.display.console.print(text, soft_wrap=True)  # one line, in a log too


class Diverged(DataError):
    """The loss of a training, or a weight, is no number any more."""


class Finite(keras.callbacks.Callback):
    """Ends a run that has diverged; list it before what keeps anything of an epoch.

    Raises `Diverged`. What the epochs before have left stays as it is.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        """Keep what the message names: the run folder, and the progress, which holds epoch and settings."""
        super().__init__()
        self.folder, self.progress = folder, progress

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Look at the loss."""
        if batch % EVERY == 0:
            when = f"in step {batch + 1} of epoch {self.progress.epoch + 1}"
            self._require({"the loss": (logs or {}).get("loss", 0.0)}, when)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Look at all figures, and at the weights, which the last step may have spoilt."""
        when = f"after epoch {epoch + 1}"
        self._require(logs or {}, when)
        self._require({weight.path: float(np.abs(weight.numpy()).max()) for weight in self.model.weights}, when)

    def _require(self, values: Mapping[str, float], when: str) -> None:
        """Raise unless all values are numbers."""
        for name, value in values.items():
            if not math.isfinite(value):
                lower = f"--set train.learning_rate={self.progress.settings.learning_rate / 4:g}"
                # The first line is all that a search shows of it.
                raise Diverged(
                    f"{name} is {value} {when}\n{self.folder}: expected a number, received none: the training has "
                    f"diverged. Start it anew with a lower learning rate ({lower}) and --overwrite."
                )


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Return the checkpoint folder after `epoch` epochs."""
    return folder / "checkpoint" / f"epoch-{epoch:04d}"


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = [
        path
        for path in (folder / "checkpoint").glob("epoch-*")
        if all((path / name).is_file() for name in ("model.keras", "state.json"))  # one may be half removed
    ]
    return sorted(found, key=lambda path: int(path.name.removeprefix("epoch-")))


class Checkpoint(keras.callbacks.Callback):
    """Writes the checkpoint, the history and the best model at each epoch's end, each file whole."""

    def __init__(
        self, folder: Path, state: State, progress: Progress, stopping: keras.callbacks.EarlyStopping | None
    ) -> None:
        """Keep what is saved.

        Args:
          folder: the run folder.
          state: of the run, changed in place.
          progress: holds the clock.
          stopping: its counters are restored at the start; list it, as all that may stop the run, before this
            callback. None without validation, where each epoch's model is the one to keep.
        """
        super().__init__()
        self.folder, self.state, self.progress, self.stopping = folder, state, progress, stopping

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Hand the counters of the interrupted run to `EarlyStopping`, which has just reset them."""
        if self.stopping is None:
            return
        self.stopping.wait = self.state.waited
        self.stopping.best = self.state.best

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Save; the checkpoint last, so that a run killed before it does the epoch again."""
        values = {name: float(value) for name, value in (logs or {}).items()}
        self._note(epoch, values)
        if not self.state.waited:
            for chosen in (bundles.RECIPE, bundles.COHORT):  # for the network that is replaced
                files.remove(self.folder / chosen)
            with files.whole(self.folder / "model.keras") as temporary:
                self.model.save(temporary)
        files.write_text(self.folder / "history.csv", _csv(self.state.history))
        with files.whole(checkpoint_path(self.folder, self.state.epoch)) as temporary:
            temporary.mkdir()
            self.model.save(temporary / "model.keras")
            files.write_json(temporary / "state.json", dataclasses.asdict(self.state))
        for old in checkpoints(self.folder)[:-1]:
            with contextlib.suppress(PermissionError):  # of another user of the study
                files.remove(old)

    def _note(self, epoch: int, values: dict[str, float]) -> None:
        """Bring the state to the end of an epoch."""
        state = self.state
        state.epoch, state.seconds = epoch + 1, self.progress.clock.seconds()
        state.dropout = [[int(word) for word in chance.numpy()] for chance in dropout_states(self.model)]
        if self.stopping is not None:
            state.best, state.waited = self.stopping.best, self.stopping.wait
        state.finished = bool(self.model.stop_training) or state.epoch >= self.params["epochs"]
        rate = float(self.model.optimizer.learning_rate)
        state.history.append({"epoch": epoch + 1, "seconds": state.seconds, "learning_rate": rate, **values})


def _csv(rows: list[dict[str, float]]) -> str:
    """Return rows with equal keys as CSV text."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
