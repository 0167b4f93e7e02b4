"""What is fitted, and to what: the patch network to patches, or one on blocks that trains it to blocks."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import keras

from femur_tf import block_dataset, block_network, config, dataset, records
from femur_tf.callbacks import has_gpu

ENDLESS = 100_000
"""Epochs of a run that minutes end."""


class Bounds(NamedTuple):
    """How many examples of a kind a run of minutes uses at a time, at most."""

    a_minute: int
    """So many for each of its minutes: a short run has several epochs to choose from, and time left to train."""
    at_most: int
    """Of 61 cases, a pass over the records would take a run whole, with nothing saved."""


EPOCH_EXAMPLES, VALIDATION_EXAMPLES = Bounds(15_000, 600_000), Bounds(3_000, 120_000)
EPOCH_BLOCKS, VALIDATION_BLOCKS = Bounds(60, 1_200), Bounds(12, 240)


class Fit(NamedTuple):
    """What is fitted, and to what."""

    network: keras.Model
    """The patch network, or one on blocks that trains it."""
    drawn: Any
    """Batches to train with, `steps` an epoch."""
    validation: Any
    """Batches to validate with; None without validation cases."""
    steps: int
    class_weight: dict[int, float] | None


def compile_for(
    network: keras.Model, settings: config.TrainConfig, optimizer: keras.optimizers.Optimizer, *, weighted: bool = False
) -> None:
    """Give a network what `fit` asks for.

    Args:
      network: to compile.
      settings: which loss.
      optimizer: of the run.
      weighted: whether examples have weights, by which loss and metrics are means.
    """
    kind: dict[str, Any] = {"reduction": "mean_with_sample_weight"} if weighted else {}
    focal = keras.losses.BinaryFocalCrossentropy(gamma=settings.focal_gamma, **kind)
    metrics = [
        keras.metrics.AUC(name="auc"),
        keras.metrics.F1Score(threshold=0.5, average="micro", name="dice"),
        # Comparable between losses and penalties, which `loss` is not.
        keras.metrics.BinaryCrossentropy(name="log_loss"),
    ]
    network.compile(
        optimizer=optimizer,
        loss=focal if settings.loss == "focal" else keras.losses.BinaryCrossentropy(**kind),
        metrics=None if weighted else metrics,
        weighted_metrics=metrics if weighted else None,
        # XLA trains this network three times slower than oneDNN on a CPU (docs/performance.md).
        jit_compile="auto" if has_gpu() else False,
    )


def limited(chosen: int | None, bounds: Bounds, settings: config.TrainConfig, there: int) -> int:
    """Return how many examples of those there are used at a time: those chosen; in a run of minutes within `bounds`."""
    if chosen is not None or settings.minutes is None:
        return chosen or there
    return min(there, bounds.at_most, max(1, int(bounds.a_minute * settings.minutes)))


def _on_patches(
    folder: Path, manifest: records.Manifest, network: keras.Sequential, settings: config.RunConfig, start: int
) -> Fit:
    """Return what is fitted to patches; arguments as for `fit_of`."""
    chosen = settings.train
    batches = functools.partial(dataset.batches, folder, manifest, batch=chosen.batch, rule=settings.data.patch)
    steps = math.ceil(limited(chosen.epoch_examples, EPOCH_EXAMPLES, chosen, manifest.count("train")) / chosen.batch)
    drawn = batches(
        "train",
        seed=chosen.seed,
        training=chosen.augment,
        bone_share=chosen.bone_share,
        epochs=epochs_of(chosen, start),
        steps=steps,
    )
    there = manifest.count("validation")
    limit = limited(chosen.validation_examples, VALIDATION_EXAMPLES, chosen, there)
    validation = batches("validation", limit=limit if limit < there else None) if there else None
    return Fit(
        network, drawn, validation, steps, {0: 1.0, 1: chosen.bone_weight} if chosen.loss == "weighted" else None
    )


def _on_blocks(
    folder: Path, manifest: records.Manifest, network: keras.Sequential, settings: config.RunConfig, start: int
) -> Fit:
    """Return what is fitted to blocks; arguments as for `fit_of`."""
    chosen, rule = settings.train, settings.data.patch
    block = block_dataset.block_of(folder, manifest, "train")
    batches = functools.partial(block_dataset.batches, folder, manifest, rule=rule)
    at_once = math.ceil(chosen.batch / block.count)
    chosen_blocks, chosen_validation = (
        None if examples is None else math.ceil(examples / block.count)
        for examples in (chosen.epoch_examples, chosen.validation_examples)
    )
    steps = math.ceil(limited(chosen_blocks, EPOCH_BLOCKS, chosen, manifest.count_blocks("train")) / at_once)
    drawn = batches("train", batch=at_once, training=chosen, epochs=epochs_of(chosen, start), steps=steps)
    there = manifest.count_blocks("validation")
    limit = limited(chosen_validation, VALIDATION_BLOCKS, chosen, there)
    validation = batches("validation", limit=limit if limit < there else None) if there else None
    fitted = block_network.BlockNetwork(network, rule, block)
    compile_for(fitted, chosen, network.optimizer, weighted=True)
    return Fit(fitted, drawn, validation, steps, None)


def epochs_of(settings: config.TrainConfig, start: int) -> range:
    """Return the numbers of the epochs of a run from `start` on."""
    return range(start, settings.epochs if settings.minutes is None else ENDLESS)


def fit_of(
    folder: Path, manifest: records.Manifest, network: keras.Sequential, settings: config.RunConfig, start: int
) -> Fit:
    """Return what is fitted in a run.

    Args:
      folder: of the records.
      manifest: of the records and of mined sets.
      network: the patch network, compiled.
      settings: of the run.
      start: the first epoch.

    Raises:
      DataError: the records have no examples of the kind that the settings ask for.
    """
    on = _on_blocks if settings.train.examples == "blocks" else _on_patches
    return on(folder, manifest, network, settings, start)
