"""What a search does around the epochs of a trial: count its time, stop it when it is poor, or when it must end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
from keras_tuner.errors import FatalError

from femur_tf import config
from femur_tf.callbacks import Clock
from tuning import early, trials
from tuning.early import COLUMNS, DIRECTIONS, Curve
from tuning.trials import About, Objective


class Halted(FatalError):
    """The search ends within a trial, which goes on at its last checkpoint when the search does."""


class Stopwatch:
    """Tells the time of training from the time around it, on the wall."""

    def __init__(self, start: float) -> None:
        """Count from `start`, of `time.monotonic`."""
        self.start = start
        self.training = 0.0
        self._since: float | None = None

    def train(self) -> None:
        """Training begins, or goes on."""
        self._since = self._since or time.monotonic()

    def pause(self) -> None:
        """Training ends, or waits."""
        if self._since is not None:
            self.training += time.monotonic() - self._since
        self._since = None

    @property
    def outside(self) -> float:
        """Seconds that were not training, up to now."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return time.monotonic() - self.start - self.training - running


class Watch(keras.callbacks.Callback):
    """Follows one trial; hand it to `femur_tf.training.train`, which calls it before it writes a checkpoint."""

    def __init__(
        self,
        folder: Path,
        about: About,
        stopwatch: Stopwatch,
        halt: Callable[[], str | None],
        others: tuple[Objective, Sequence[Curve]],
    ) -> None:
        """Keep what is followed.

        Args:
          folder: of the trial.
          about: changed in place, and written after each epoch.
          stopwatch: of this trial.
          halt: asked at each step for a reason to end the search here.
          others: the objective, and the curves of finished trials; none: the trial is not stopped early.
        """
        super().__init__()
        self.folder, self.about, self.stopwatch, self.halt = folder, about, stopwatch, halt
        self.objective, self.others = others
        self.before = (about.training_seconds, about.outside_seconds)
        self.settings = config.from_dict(config.RunConfig, about.config).train

    def note(self) -> None:
        """Write what the trial took up to now."""
        self.about.training_seconds = self.before[0] + self.stopwatch.training
        self.about.outside_seconds = self.before[1] + self.stopwatch.outside
        trials.write_about(self.folder, self.about)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Begin to count, where an interrupted run ended."""
        self.stopwatch.train()
        self.curve = early.read_curve(self.folder / trials.RUN, self.objective)
        used = self.curve[-1][0] * 60 * self.settings.minutes if self.curve and self.settings.minutes else 0.0
        self.clock = Clock(used)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """End the search where it must."""
        reason = self.halt()
        if reason is not None:
            raise Halted(reason)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Training goes on after the checkpoint."""
        self.stopwatch.train()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note the epoch; stop the trial where it is poor. What follows is the checkpoint."""
        self.stopwatch.pause()
        value = float((logs or {})[COLUMNS[self.objective]])
        self.curve.append((early.share_done(self.settings, self.clock.seconds(), epoch + 1), value))
        if early.is_poor(self.curve, self.others, DIRECTIONS[self.objective]):
            self.about.stopped_early = self.model.stop_training = True
        self.about.epochs, self.about.starts = epoch + 1, 0
        self.note()
