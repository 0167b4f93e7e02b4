"""Records -> run folder: the training loop.

runs/NAME/config.json           the RunConfig, and the run's seed
runs/NAME/lineage.json          the cases that it learns from
runs/NAME/checkpoint/epoch-0007 model with optimizer state, and what else a resumed run needs
runs/NAME/history.csv           one row an epoch
runs/NAME/logs/                 TensorBoard
runs/NAME/model.keras           the epoch with the highest validation AUC; of a study without validation cases, the last
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from femur_tf import command, config, dataset, files, lineage, machine, mined_records, model, record_match, records
from femur_tf.callbacks import Checkpoint, Finite, Progress, State, checkpoints, dropout_states, has_gpu, read_state
from femur_tf.errors import DataError

AUC_THRESHOLDS = tuple((1 / (1 + np.exp(-np.linspace(-16, 16, 257)))).tolist())
"""Probabilities between which ranks are told apart, an eighth of a logit from each other. Keras's own, evenly spaced in
probability, hold most examples of a network that is sure in their first and last interval (docs/experiments.md)."""

ENDLESS = 100_000
"""Epochs of a run that minutes end."""


class Bounds(NamedTuple):
    """How many examples a run of minutes uses at a time, at most."""

    a_minute: int
    """So many for each of its minutes: a short run has several epochs to choose from, and time left to train."""
    at_most: int
    """Of 61 cases, a pass over the records would take a run whole, with nothing saved."""


EPOCH_EXAMPLES, VALIDATION_EXAMPLES = Bounds(15_000, 600_000), Bounds(3_000, 120_000)


def _optimizer(settings: config.TrainConfig) -> keras.optimizers.Optimizer:
    """Return the optimizer of the settings."""
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(settings.learning_rate, momentum=settings.momentum)
    kind = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}[settings.optimizer]
    return kind(settings.learning_rate, beta_1=settings.momentum)


def _policy(train: config.TrainConfig) -> str:
    """Return Keras's name of the precision to compute in."""
    mixed = "mixed_float16" if has_gpu() else "mixed_bfloat16"
    return mixed if train.mixed_precision else "float32"


def compiled(settings: config.RunConfig) -> keras.Sequential:
    """Return the untrained network, ready for `fit`.

    Seeds Keras's global random state with the run's seed, which kernels and dropout draw from.
    """
    train = settings.train
    keras.utils.set_random_seed(train.seed)
    with model.computing_in(_policy(train)):
        network = model.build(settings.model, settings.data.patch)
    focal = keras.losses.BinaryFocalCrossentropy(gamma=train.focal_gamma)
    network.compile(
        optimizer=_optimizer(train),
        loss=focal if train.loss == "focal" else keras.losses.BinaryCrossentropy(),
        metrics=[
            keras.metrics.AUC(name="auc", thresholds=AUC_THRESHOLDS),
            keras.metrics.F1Score(threshold=0.5, average="micro", name="dice"),
            # Comparable between losses and penalties, which `loss` is not.
            keras.metrics.BinaryCrossentropy(name="log_loss"),
        ],
        # XLA trains this network three times slower than oneDNN on a CPU (docs/performance.md).
        jit_compile="auto" if has_gpu() else False,
    )
    return network


def _earlier(folder: Path, settings: config.RunConfig) -> Path | None:
    """Return the folder of the run to start from, if any.

    Raises:
      DataError: it is the run itself, or no name of a run.
    """
    run = settings.train.start
    if run == folder.name:
        raise DataError(f"{folder}: expected another run to start from (--start). Received: this one.")
    return files.child(folder.parent, run) if run else None


def _first(folder: Path, settings: config.RunConfig) -> keras.Sequential:
    """Return the network that training starts from.

    Raises:
      DataError: the run to start from is missing, or its network is another.
    """
    network, run = compiled(settings), _earlier(folder, settings)
    if run is None:
        return network
    path = run / "model.keras"
    if not path.exists():
        raise DataError(f"{path}: expected the run to start from (--start). Received: no such file.")
    earlier = model.load(path, compiled=False)
    if [w.shape for w in earlier.weights] != [w.shape for w in network.weights]:
        raise DataError(f"{path}: expected the network of this run. Received: another. Use the same model settings.")
    network.set_weights(earlier.get_weights())
    return network


def _start(
    folder: Path, settings: config.RunConfig, manifest: records.Manifest, *, overwrite: bool
) -> tuple[keras.Sequential, State]:
    """Return the model and the state to go on with: those of the last checkpoint, or new ones; note what they are.

    A run that is overwritten is removed when all is known to be well.

    Raises:
      DataError: a run folder made with other settings or records, or nothing to start from.
    """
    found = [] if overwrite else checkpoints(folder)
    learned = lineage.of(manifest, None if found else _earlier(folder, settings))
    if not overwrite:
        require_same_settings(folder, settings)
        lineage.require_same(folder, learned)
    if not found:
        first = _first(folder, settings)
        if overwrite:
            files.clear(folder)
        files.write_json(folder / "config.json", config.to_dict(settings))
        files.write_json(folder / lineage.NAME, config.to_dict(learned))
        return first, State()
    state = read_state(found[-1] / "state.json")
    network = model.load(found[-1] / "model.keras", compiled=True)
    for chance, words in zip(dropout_states(network), state.dropout, strict=True):
        chance.assign(words)
    return network, state


def require_same_settings(folder: Path, settings: config.RunConfig) -> None:
    """Raise where the run folder was made with other settings.

    Raises:
      DataError: it was; they are named.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    found = config.to_dict(config.load(config.RunConfig, path))
    differing = sorted(config.differences(found, config.to_dict(settings)))
    if differing:
        raise DataError(
            f"{path}: expected the settings of this command. Received: another {', '.join(differing)}. "
            f"Choose another name with --run, go on with the run's own (--config {path}), or start it anew: with "
            "--overwrite, or without its folder."
        )


def announce_device() -> None:
    """Say what the training runs on."""
    if has_gpu():
        command.say(f"Training on GPU: {', '.join(keras.distribution.list_devices('gpu'))}")
    else:
        command.warn(f"NO GPU FOUND: training on {machine.cores()} CPU cores. For CUDA: pip install 'femur_tf[gpu]'")


def _callbacks(
    folder: Path,
    settings: config.TrainConfig,
    state: State,
    progress: Progress,
    further: Sequence[keras.callbacks.Callback],
    *,
    validated: bool,
) -> list[keras.callbacks.Callback]:
    """Return what happens around the epochs. The last one saves what the others decided."""
    # Calibration mends what the loss would count against a network too sure of itself; the AUC is blind to it.
    stopping = keras.callbacks.EarlyStopping("val_auc", mode="max", patience=settings.patience) if validated else None
    for part in ("train", "validation"):  # TensorFlow would make them its user's alone, whatever the umask
        (folder / "logs" / part).mkdir(parents=True, exist_ok=True)
    board = keras.callbacks.TensorBoard(folder / "logs", write_graph=False)
    saved = Checkpoint(folder, state, progress, stopping)
    return [progress, Finite(folder, progress), *([stopping] if stopping else []), board, *further, saved]


def limited(chosen: int | None, bounds: Bounds, settings: config.TrainConfig, there: int) -> int:
    """Return how many examples of those there are used at a time: those chosen; in a run of minutes within `bounds`."""
    if chosen is not None or settings.minutes is None:
        return chosen or there
    return min(there, bounds.at_most, max(1, int(bounds.a_minute * settings.minutes)))


def _examples(
    folder: Path, manifest: records.Manifest, settings: config.RunConfig, epochs: range, steps: int
) -> tuple[Any, Any]:
    """Return the batches to train with, `steps` an epoch, and those to validate with, None without validation cases."""
    chosen = settings.train
    batches = functools.partial(dataset.batches, folder, manifest, batch=chosen.batch, rule=settings.data.patch)
    augment = dataclasses.replace(chosen.augment, flip=chosen.augment.flip and not settings.data.sided)
    drawn = batches(
        "train",
        seed=chosen.seed,
        training=augment,
        bone_share=chosen.bone_share,
        epochs=epochs,
        steps=steps,
    )
    there = manifest.count("validation")
    limit = limited(chosen.validation_examples, VALIDATION_EXAMPLES, chosen, there)
    return drawn, batches("validation", limit=limit if limit < there else None) if there else None


@contextlib.contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Raise a `DataError` for a shard that TensorFlow cannot read: of its size, but with another content."""
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
        received = f"one that cannot be read ({type(error).__name__})"
        raise DataError(f"{folder}: expected whole shards. Received: {received}. {records.advice(folder)}") from error


def train(
    records_folder: Path,
    folder: Path,
    settings: config.RunConfig,
    *,
    overwrite: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    announce: bool = True,
) -> State:
    """Train a run, or go on with it at its last checkpoint.

    Args:
      records_folder: with manifest and shards.
      folder: of the run.
      settings: everything the run is made with. Its minutes, if any, are those of all starts together.
      overwrite: start anew where there is a run, which is removed.
      callbacks: called after those of this loop, before the checkpoint is written.
      announce: say what the training runs on.

    Returns:
      The state at the end, with the history.

    Raises:
      DataError: no records, damaged ones, records of another split or made with other data settings, a run folder
        made with other settings or records, or no run to start from.
      Diverged: a figure or a weight is no number any more; what earlier epochs left stays.
    """
    manifest = mined_records.read_manifest(records_folder, settings.train.mined)
    record_match.require_data(settings.data, manifest.data, str(records.manifest_path(records_folder)))
    lineage.require_split(records_folder, manifest)
    records.require_whole(records_folder, manifest)
    network, state = _start(folder, settings, manifest, overwrite=overwrite)
    if state.finished:
        command.say(f"{folder}: this run is finished ({state.epoch} epochs, {state.seconds / 60:.1f} min).")
        return state
    if state.epoch:
        command.say(f"{folder}: goes on after epoch {state.epoch} ({state.seconds / 60:.1f} min).")
    if announce:
        announce_device()
    chosen = settings.train
    epochs = range(state.epoch, chosen.epochs if chosen.minutes is None else ENDLESS)
    steps = math.ceil(limited(chosen.epoch_examples, EPOCH_EXAMPLES, chosen, manifest.count("train")) / chosen.batch)
    drawn, validation = _examples(records_folder, manifest, settings, epochs, steps)
    progress = Progress(chosen, state, steps)
    with progress.display, _damage_named(records_folder):
        network.fit(
            drawn,
            validation_data=validation,
            initial_epoch=epochs.start,
            epochs=epochs.stop,
            steps_per_epoch=steps,
            shuffle=False,  # Keras warns otherwise; the dataset shuffles
            class_weight={0: 1.0, 1: chosen.bone_weight} if chosen.loss == "weighted" else None,
            callbacks=_callbacks(folder, chosen, state, progress, callbacks, validated=validation is not None),
            verbose=0,
        )
    if validation is not None and state.waited >= chosen.patience:
        _say_early(folder, chosen, state)
    return state


def _say_early(folder: Path, settings: config.TrainConfig, state: State) -> None:
    """Say that training ended before its time, and which network is kept."""
    used, of = f"{state.epoch} epochs", f"{settings.epochs}"
    if settings.minutes is not None:
        used, of = f"{state.seconds / 60:.1f} min", f"{settings.minutes:g}"
    command.say(
        f"{folder}: stopped early, after {used} of {of}: the validation AUC has not risen for {state.waited} epochs. "
        f"Kept: epoch {state.epoch - state.waited}."
    )
