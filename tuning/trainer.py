"""keras-tuner's worker: each trial is a run of `femur_tf.training`, in the trial's own folder.

So a trial has what a run has: it goes on at its last epoch, keeps a history and
TensorBoard logs, and its minutes are those of `femur_tf.train`. TensorFlow stays loaded
between trials.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.engine.trial import Trial
from keras_tuner.errors import FailedTrialError

from femur_tf import callbacks, config, files, lineage, records, study, training
from femur_tf.config import RunConfig
from femur_tf.errors import DataError, WriteError
from tuning import budget, early, hparams, scoring, trials
from tuning.noted import Noted
from tuning.oracles import Durable
from tuning.search_space import Space
from tuning.trials import COMPLETED, FAILED, RUN, RUNNING, About, Search
from tuning.watch import Halted, Stopwatch, Watch

STARTS = 3
"""A trial whose process died so often before an epoch ended is set aside."""
REASON_LETTERS = 500
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""The disk is full or fails: no trial's fault, and the next one would fare no better."""


@dataclasses.dataclass
class Surroundings:
    """What a trainer asks, and is told, by the search around it."""

    halt: Callable[[], str | None] = lambda: None
    """A reason to end the search within a trial, or None."""
    begun: Callable[[str], None] = lambda trial_id: None
    """Called when a trial begins."""
    ended: Callable[[], None] = lambda: None
    """Called when a trial has ended and is noted."""


def adopt(past: Path, run: Path, settings: RunConfig) -> None:
    """Make a run that goes on where another one ended, with more time; nothing happens where that one is gone.

    Args:
      past: run folder with a checkpoint.
      run: run folder to make.
      settings: of the new run.
    """
    found = callbacks.checkpoints(past)
    if (run / "config.json").exists() or not found:
        return
    with files.whole(run) as temporary:
        shutil.copytree(past, temporary, ignore=shutil.ignore_patterns("logs", "maps"))
        state = temporary / found[-1].relative_to(past) / "state.json"
        files.write_json(state, {**files.read_json(state), "finished": False, "waited": 0})
        files.write_json(temporary / "config.json", config.to_dict(settings))


def remove_damaged(run: Path) -> None:
    """Remove checkpoints that cannot be read, all where its lineage cannot: the run goes on before, or begins anew."""
    try:
        lineage.read(run)
    except DataError:
        files.remove(run)
    for path in callbacks.checkpoints(run):
        try:
            callbacks.State(**files.read_json(path / "state.json"))
            with zipfile.ZipFile(path / "model.keras") as archive:
                sound = archive.testzip() is None
        except (OSError, DataError, TypeError, zipfile.BadZipFile):
            sound = False
        if not sound:
            files.remove(path)


def is_of_disk(error: Exception) -> bool:
    """Tell whether the disk is full or fails, by the number of the error or, of TensorFlow's, by its words."""
    if isinstance(error, OSError):
        return error.errno in DISK_ERRORS
    return isinstance(error, WriteError) or any(os.strerror(number) in str(error) for number in DISK_ERRORS)


@contextlib.contextmanager
def halting() -> Iterator[None]:
    """End the search where what all trials read cannot be used: the next trial would fare no better.

    Raises:
      Halted: in place of a `DataError`, but for those of the trial itself and of the disk.
    """
    try:
        yield
    except (callbacks.Diverged, WriteError):
        raise
    except DataError as error:
        raise Halted(str(error)) from error


class Trainer(BaseTuner):
    """Runs the trials that an oracle hands out."""

    def __init__(self, oracle: Durable, work: Path, start: float, surroundings: Surroundings) -> None:
        """Make a worker.

        Args:
          oracle: the search's own, or one that stands for a chief's.
          work: the study's folder.
          start: when this process began, of `time.monotonic`: the first trial bears its start-up.
          surroundings: of the search.
        """
        self.search_settings: Search = oracle.settings
        self.space: Space = oracle.space
        self.folder = oracle.folder
        super().__init__(oracle, directory=str(self.folder.parent), project_name=self.folder.name)
        self.work, self.around, self.mark = work, surroundings, start
        self.manifest = records.read_manifest(study.records_path(work))
        self.watch: Watch | None = None
        self.reason: str | None = None

    def save(self) -> None:
        """Write nothing: the oracle writes itself, and a worker has no state."""

    def reload(self) -> None:
        """Read nothing: see `save`."""

    def _about(self, trial: Trial) -> About:
        """Return what is known of a trial: of an earlier start, with the settings that its run was made with."""
        path = trials.trial_folder(self.folder, trial.trial_id)
        values, number = trial.hyperparameters.values, int(trial.trial_id)
        point = self.space.canonical(values)
        further = {name: value for name, value in values.items() if "/" in name}
        data = (self.manifest, budget.speeds(self.folder))
        made = budget.settings(self.space, self.search_settings, {**point, **further}, number, data)
        about = About(number, {**self.space.active(point), **further}, config.to_dict(made), self.space.cost(point))
        with contextlib.suppress(FileNotFoundError, DataError):  # one that is damaged is made anew
            about = trials.read_about(path)
        settings = path / RUN / "config.json"
        if settings.exists():
            try:
                about.config = config.to_dict(config.load(RunConfig, settings))
            except DataError:
                files.write_json(settings, about.config)
        return about

    def on_trial_begin(self, trial: Trial) -> None:
        """Free what the trial before has left."""
        self.watch, self.reason = None, None
        keras.utils.clear_session()
        gc.collect()
        self.around.begun(trial.trial_id)

    def run_trial(self, trial: Trial, *_: Any, **__: Any) -> dict[str, float]:
        """Train a trial, or go on with it, and return its score.

        Raises:
          FailedTrialError: the trial ended its process again and again.
          Halted: the search ends, the records cannot be used, or the disk is full or fails; the trial goes on when the
            search does.
          Diverged: a figure or a weight is no number.
        """
        with Noted(self._note):
            return self._run(trial)

    def _note(self, error: BaseException) -> None:
        """Keep why the trial ended."""
        first_line = next(iter(str(error).strip().splitlines()), "")
        self.reason = f"{type(error).__name__}: {first_line}"[:REASON_LETTERS]

    def _run(self, trial: Trial) -> dict[str, float]:
        """Train a trial, or go on with it, and return its score."""
        path = trials.trial_folder(self.folder, trial.trial_id)
        about = self._about(trial)
        objective = self.search_settings.objective
        halves = self.search_settings.algorithm == "hyperband"
        others = [] if halves else early.finished_curves(self.folder, objective)
        watch = self.watch = Watch(path, about, Stopwatch(self.mark), self.around.halt, (objective, others))
        about.status, about.reason = RUNNING, None
        about.starts += 1
        try:
            watch.note()
            if about.starts > STARTS:
                raise FailedTrialError(f"its process died {STARTS} times before an epoch ended")
            score = self._train(path, watch)
            if not math.isfinite(score):
                raise callbacks.Diverged(f"the score is {score}")
            hparams.write_score(path / RUN / "logs", objective, score)
        except (KeyboardInterrupt, Halted):
            about.starts = 0
            watch.note()
            raise
        except (OSError, WriteError, tf.errors.OpError) as error:
            if not is_of_disk(error):
                raise
            about.starts = 0
            with contextlib.suppress(OSError):  # there may be no room for this, either
                watch.note()
            raise Halted(f"{path}: {error}") from error
        about.score = score
        return {objective: score}

    def _train(self, path: Path, watch: Watch) -> float:
        """Train a trial and return its score, which may be no number."""
        about, run = watch.about, path / RUN
        settings = config.from_dict(RunConfig, about.config)
        past = about.values.get("tuner/trial_id")
        if past is not None:
            adopt(trials.trial_folder(self.folder, past) / RUN, run, settings)
        remove_damaged(run)
        hparams.write_values(run / "logs", about.values, path.name)
        data = study.records_path(self.work)
        with halting():
            state = training.train(data, run, settings, callbacks=[watch], announce=False)
        about.epochs = state.epoch
        watch.stopwatch.train()
        score = scoring.score(self.search_settings.objective, state, lambda: self._dice(run))
        watch.stopwatch.pause()
        return score

    def _dice(self, run: Path) -> float:
        """Return the Dice of a run on whole validation scans."""
        with halting():
            cases = scoring.cases(self.work)
        return scoring.whole_volume_dice(cases, run)

    def on_trial_end(self, trial: Trial) -> None:
        """Note how the trial ended, here and with the oracle."""
        if trial.status != COMPLETED:
            trial.status = FAILED
            trial.message = self.reason
        if self.watch is not None:
            self.watch.about.status, self.watch.about.reason = trial.status, self.reason
            self.watch.stopwatch.pause()
            self.watch.note()
            self.mark = time.monotonic()
        self.oracle.end_trial(trial)
        self.around.ended()
