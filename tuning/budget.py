"""How much of a training a trial is: its time, the examples of its epochs, its seed.

A trial of a minute or two would end within its first pass over the records. Its epochs
are therefore parts of a pass, about five a trial, so that it can be compared with others
on the way, and go on after a kill. How many examples that is follows from the speed of
the trials before. What a trial is validated with is the same for all trials of a search.
"""

from __future__ import annotations

import csv
import dataclasses
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from femur_tf import config, cost, machine, records
from femur_tf.config import RunConfig
from femur_tf.errors import DataError
from tuning import oracles, trials
from tuning.search_space import Space
from tuning.trials import Search

EPOCHS = 5
"""Of a trial of minutes, about."""
VALIDATION_PER_MINUTE = 4096
"""Examples; validation then takes about a tenth of the time."""
LEAST_VALIDATION = 512
RATE_OF_A_CORE = 14e9
"""Multiply-adds of forward passes that a core trains through in a second; measured, as is the next."""
AROUND_S = 0.8e-3
"""Of a core, for what an example takes besides: reading, varying, validating."""


def validation_examples(search: Search, manifest: records.Manifest) -> int | None:
    """Return how many examples each trial of a search is validated with; None: all."""
    if search.minutes is None:
        return None
    return min(manifest.count("validation"), max(LEAST_VALIDATION, int(search.minutes * VALIDATION_PER_MINUTE)))


def seconds_an_example(settings: RunConfig) -> float:
    """Return how long training takes with one example, on a machine whose cores are like those measured."""
    macs = cost.macs_per_patch(settings.model, settings.data.patch)
    return (AROUND_S + macs / RATE_OF_A_CORE) / machine.cores()


def speeds(folder: Path) -> list[float]:
    """Return how many times as fast as `seconds_an_example` says each finished trial of a search trained."""
    found = []
    _, rows = trials.read(folder)
    for row in rows:
        run = trials.trial_folder(folder, row.trial_id) / trials.RUN
        if row.status == trials.COMPLETED and (speed := _speed(run)) is not None:
            found.append(speed)
    return found


def _speed(run: Path) -> float | None:
    """Return how many times as fast as expected a run trained; None where its files do not say."""
    try:
        settings = config.load(RunConfig, run / "config.json")
        with (run / "history.csv").open() as stream:
            seconds = [float(row["seconds"]) for row in csv.DictReader(stream)]
    except (OSError, DataError, KeyError, ValueError):
        return None
    examples = settings.train.epoch_examples
    if examples is None or len(seconds) < 2:
        return None
    # The minutes end within the last epoch.
    return seconds_an_example(settings) * examples * (len(seconds) - 1) / seconds[-2]


def epoch_examples(search: Search, settings: RunConfig, examples: int, known: list[float]) -> int | None:
    """Return how many examples an epoch of a trial has; None: all of them.

    Args:
      search: the settings of the search.
      settings: of the trial.
      examples: to train with, in all.
      known: `speeds` of trials before.
    """
    if search.epoch_examples is not None or search.minutes is None:
        return search.epoch_examples
    speed = statistics.median(known) if known else 1.0
    batch = settings.train.batch
    steps = round(speed * 60 * search.minutes / seconds_an_example(settings) / EPOCHS / batch)
    return min(examples, max(1, steps) * batch)


def settings(
    space: Space, search: Search, values: Mapping[str, Any], number: int, data: tuple[records.Manifest, list[float]]
) -> RunConfig:
    """Return what the run of a trial is made with.

    Args:
      space: the search space.
      search: the settings of the search.
      values: of the trial.
      number: of the trial; it chooses its seed.
      data: the records' manifest, and `speeds` of the trials before.
    """
    manifest, known = data
    plain = space.settings(space.canonical(values))
    minutes, epochs = search.minutes, search.epochs
    part = values.get("tuner/epochs")
    if part is not None:
        minutes = None if minutes is None else minutes * part / oracles.PARTS
        epochs = None if epochs is None else part
    train = dataclasses.replace(
        plain.train,
        seed=search.seed + number,
        minutes=minutes,
        epochs=plain.train.epochs if epochs is None else epochs,
        epoch_examples=epoch_examples(search, plain, manifest.count("train"), known),
        validation_examples=validation_examples(search, manifest),
    )
    return dataclasses.replace(plain, train=train)
