"""keras-tuner's oracles, with a state that survives and a space that keeps a cost.

An oracle decides which point is tried next and keeps the trials. keras-tuner writes its
state in place, and does not load what a kill left half written. Here each file is written
whole, and `reload` needs `oracle.json` for one thing alone, who was training what:
everything else follows from the trials, each of which is kept twice (`tuning.trials`).
What is drawn depends on the seed and on the trials so far, so a search that goes on draws
what it would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial
from keras_tuner.src.engine.metrics_tracking import MetricsTracker

from femur_tf import files
from femur_tf.errors import DataError
from tuning import acquisition, trials
from tuning.search_space import Space, Values
from tuning.trials import COMPLETED, FAILED, RUNNING, Search

DRAWS = 20_000
"""Points drawn before the space counts as used up."""
IN_A_ROW = 5
"""Trials that fail one after the other end a search: the next would fail, too."""
BETA = 2.6
AT_RANDOM = 6
"""Trials drawn at random before the process is asked, or half of a short search; of a long one, a third."""
PARTS = 9
"""Hyperband divides the minutes of a trial into so many parts, and begins with one of them."""
ENDLESS = 1_000_000


class Durable(keras_tuner.Oracle):
    """What all three oracles share: mixed into keras-tuner's own."""

    def __init__(self, space: Space, search: Search, folder: Path, **options: Any) -> None:
        """Make an oracle without trials.

        Args:
          space: what is drawn from.
          search: the settings.
          folder: of the search.
          options: of keras-tuner's oracle.
        """
        parameters = keras_tuner.HyperParameters()
        space.declare(parameters)
        objective = keras_tuner.Objective(search.objective, search.direction)
        super().__init__(objective=objective, hyperparameters=parameters, seed=search.seed, **options)
        self.seed = search.seed  # keras-tuner takes 0 for "none given"
        self.space, self.settings, self.folder = space, search, folder
        self.max_trials = search.trials
        self.verbose = 0
        self.refusal: Callable[[], str | None] = lambda: None
        """Why no further trial may start, or None."""
        self.stopped: str | None = None
        """Why the search ended before its last trial."""
        self.damaged: list[str] = []
        """What `reload` could not read."""

    def save(self) -> None:
        """Write `oracle.json`, whole."""
        files.write_json(self.folder / "oracle.json", self.get_state())

    def _save_trial(self, trial: Trial) -> None:
        """Write `trial.json`, whole."""
        files.write_json(trials.trial_folder(self.folder, trial.trial_id) / trials.TRIAL, trial.get_state())

    def create_trial(self, tuner_id: str) -> Trial:
        """Return the next trial; one with the status STOPPED when there is none, or none may start."""
        left = len(self.trials) < self.max_trials or self._retry_queue
        if tuner_id not in self.ongoing_trials and self.stopped is None and left:
            self.stopped = self.refusal()
        if self.stopped is not None and tuner_id not in self.ongoing_trials:
            self.tuner_ids.discard(tuner_id)
            return Trial(self.hyperparameters.copy(), "", "STOPPED")
        return super().create_trial(tuner_id)

    def update_trial(self, trial_id: str, metrics: dict[str, float], step: int = 0) -> Trial:
        """Keep the scores of a trial; those of an earlier report of the same trial are replaced."""
        self.trials[trial_id].metrics = MetricsTracker()
        return super().update_trial(trial_id, metrics, step)

    def _check_consecutive_failures(self) -> None:
        """Stop the search where trials fail in a row; keras-tuner would raise, and keep its lock."""
        last = [self.trials[trial_id] for trial_id in self.end_order[-IN_A_ROW:]]
        if len(last) == IN_A_ROW and all(trial.status == FAILED for trial in last):
            self.stopped = f"{IN_A_ROW} trials failed one after the other"

    def _random_values(self) -> Values | None:
        """Return a point of the space that was not tried, None where none was drawn."""
        default = self.space.default()
        if self.settings.from_default and not self.trials and self.space.fault(default) is None:
            return default
        rng = np.random.default_rng([self.seed, len(self.trials)])
        for _ in range(DRAWS):
            values = self.space.draw(rng)
            if self.space.fault(values) is None and not self._duplicate(values):
                return values
        return None

    def may_go_on(self) -> set[str]:
        """Return the finished trials that a later one may continue."""
        return set()

    def reload(self) -> None:
        """Rebuild the state from the trials on disk, and from as much of `oracle.json` as can be read."""
        self.trials, self.damaged = {}, []
        numbers = {}
        for path in sorted(self.folder.glob("trial_*")):
            trial_id = path.name.removeprefix("trial_")
            if trial_id.isdecimal():
                numbers[int(trial_id)] = trial_id
        lost = []
        for number in range(max(numbers, default=-1) + 1):
            trial_id = numbers.get(number, str(number).zfill(len(str(self.max_trials))))
            trial = self._read_trial(trial_id)
            if trial is None:
                lost.append(trial_id)
            else:
                self.trials[trial_id] = trial
        self._order()
        self._ongoing()
        for trial_id in lost:
            self._redraw(trial_id)

    def _read_trial(self, trial_id: str) -> Trial | None:
        """Return a trial from either of its files, None where both are lost."""
        path = trials.trial_folder(self.folder, trial_id)
        try:
            trials.read_trial(path)
            return Trial.load(str(path / trials.TRIAL))
        except FileNotFoundError:
            pass
        except (DataError, KeyError, TypeError, ValueError) as error:
            self.damaged.append(str(error))
        try:
            about = trials.read_about(path)
        except (FileNotFoundError, DataError) as error:
            self.damaged.append(str(error))
            return None
        parameters = self.hyperparameters.copy()
        further = {name: value for name, value in about.values.items() if "/" in name}
        parameters.values = {**self.space.canonical(about.values), **further}
        trial = Trial(parameters, trial_id, about.status, about.reason)
        if about.status == COMPLETED and about.score is not None:
            trial.metrics.register(self.objective.name, self.objective.direction)
            trial.metrics.update(self.objective.name, about.score)
            trial.score = about.score
        self._save_trial(trial)
        return trial

    def _order(self) -> None:
        """Put the trials that were read in order."""
        self.start_order = list(self.trials)
        ended = [trial_id for trial_id, trial in self.trials.items() if trial.status != RUNNING]
        self.end_order = ended
        self._run_times.update(dict.fromkeys(ended, 1))
        self._retry_queue = [trial_id for trial_id in reversed(self.trials) if trial_id not in ended]
        for trial in self.trials.values():
            self._record_values(trial)

    def _ongoing(self) -> None:
        """Give trials that did not end back to those who trained them, as far as `oracle.json` says who did."""
        try:
            found = files.read_json(self.folder / "oracle.json")["ongoing_trials"].items()
        except FileNotFoundError:
            return
        except (DataError, KeyError, TypeError, AttributeError) as error:
            self.damaged.append(f"{self.folder / 'oracle.json'}: expected an oracle's state. Received: {error}")
            return
        for tuner_id, trial_id in found:
            if trial_id in self._retry_queue:
                self._retry_queue.remove(trial_id)
                self.ongoing_trials[tuner_id] = self.trials[trial_id]

    def forget(self, tuner_id: str) -> None:
        """Put the trial of a tuner that is gone back, for the next one that asks."""
        trial = self.ongoing_trials.pop(tuner_id, None)
        self.tuner_ids.discard(tuner_id)
        if trial is not None:
            self._retry_queue.append(trial.trial_id)
            self.save()

    def _redraw(self, trial_id: str) -> None:
        """Draw a trial anew whose files are lost."""
        files.remove(trials.trial_folder(self.folder, trial_id))
        values = self.populate_space(trial_id).get("values")
        parameters = self.hyperparameters.copy()
        parameters.values = values or self.space.default()
        trial = Trial(parameters, trial_id, RUNNING if values else FAILED, None if values else "its files are lost")
        self.trials[trial_id] = trial
        self.start_order.append(trial_id)
        (self._retry_queue if values else self.end_order).append(trial_id)
        self._record_values(trial)
        self._save_trial(trial)


class RandomOracle(Durable, keras_tuner.oracles.RandomSearchOracle):
    """Random search over the points of the space."""


class BayesianOracle(Durable, keras_tuner.oracles.BayesianOptimizationOracle):
    """Bayesian optimisation over the points of the space."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """Return the first points at random, later ones by `acquisition.propose`."""
        ended = [trial for trial in self.trials.values() if trial.status in (COMPLETED, FAILED)]
        scored = [trial for trial in ended if trial.status == COMPLETED and trial.score is not None]
        if len(scored) < self.num_initial_points:
            return self._random_populate_space()
        sign = 1 if self.objective.direction == "min" else -1
        values = acquisition.propose(
            self.space,
            [acquisition.Known(t.hyperparameters.values, sign * t.score if t in scored else math.nan) for t in ended],
            [trial.hyperparameters.values for trial in self.trials.values() if trial.status == RUNNING],
            tried=self._duplicate,
            beta=self.beta,
            seed=(self.seed, len(self.trials)),
        )
        return {"status": "STOPPED" if values is None else RUNNING, "values": values}


class HyperbandOracle(Durable, keras_tuner.oracles.HyperbandOracle):
    """Hyperband: many points for a part of the time each, the best of them for longer."""

    def may_go_on(self) -> set[str]:
        """Return the trials of the brackets that are not complete."""
        self._remove_completed_brackets()
        return {info["id"] for bracket in self._brackets for turn in bracket["rounds"] for info in turn}

    def _order(self) -> None:
        """Put the trials in order, and fill the brackets with them again."""
        super()._order()
        for trial_id, trial in self.trials.items():
            past_id = trial.hyperparameters.values.get("tuner/trial_id")
            self._place(trial_id, past_id if past_id in self.trials else None)

    def _place(self, trial_id: str, past_id: str | None) -> None:
        """Put a trial into its bracket: after the trial that it continues, or where first ones are wanted."""
        if past_id is None:
            bracket = self._brackets[-1]
            if len(bracket["rounds"][0]) >= self._get_size(bracket["bracket_num"], 0):
                self._increment_bracket_num()
                self._start_new_bracket()
            self._brackets[-1]["rounds"][0].append({"past_id": None, "id": trial_id})
            return
        for bracket in self._brackets:
            for earlier, later in zip(bracket["rounds"], bracket["rounds"][1:], strict=False):
                if past_id in {info["id"] for info in earlier}:
                    later.append({"past_id": past_id, "id": trial_id})


def make(search: Search, space: Space, folder: Path) -> Durable:
    """Return the oracle of a search, without trials."""
    if search.algorithm == "random":
        return RandomOracle(space, search, folder, max_trials=search.trials)
    if search.algorithm == "hyperband":
        parts = PARTS if search.epochs is None else search.epochs
        return HyperbandOracle(space, search, folder, max_epochs=parts, factor=3, hyperband_iterations=ENDLESS)
    first = max(3, min(AT_RANDOM, search.trials // 2), min(search.trials // 3, len(space.parameters) + 1))
    return BayesianOracle(space, search, folder, max_trials=search.trials, num_initial_points=first, beta=BETA)
