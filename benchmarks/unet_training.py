"""The U-Net of `benchmarks.unet`: the network, its training on crops of slices, its maps and its scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from benchmarks import scoring
from benchmarks.crops import BATCH, STEPS, batches, neighbours, padded, read_pairs, validation_slices
from benchmarks.dense import unit_s
from femur_tf import bundle as bundles
from femur_tf import callbacks, case_scores, config, files, postprocess, recipe, study
from femur_tf.errors import DataError
from femur_tf.volume import Volume, from_working

FILTERS = (16, 32, 64, 128, 256)
"""From the finest level to the coarsest; each halves the sides (`crops.GRAIN`)."""
LEARNING_RATE = 1e-3
ENDLESS = 100_000
"""Epochs of a run that minutes end."""


@keras.saving.register_keras_serializable(package="femur_tf_benchmarks")
def dice(true: Any, probability: Any) -> Any:
    """Return the Dice coefficient of a batch at the cut-off 0.5."""
    true, found = ops.cast(true, "float32"), ops.cast(probability >= 0.5, "float32")
    return (2 * ops.sum(true * found) + 1) / (ops.sum(true) + ops.sum(found) + 1)


@keras.saving.register_keras_serializable(package="femur_tf_benchmarks")
def dice_and_cross_entropy(true: Any, probability: Any) -> Any:
    """Return soft Dice loss over the batch plus mean cross-entropy."""
    true = ops.cast(true, "float32")
    return keras.losses.dice(true, probability) + ops.mean(keras.losses.binary_crossentropy(true, probability))


def _block(inputs: Any, filters: int) -> Any:
    """Return two convolutions, each with BatchNorm and ReLU."""
    for _ in range(2):
        inputs = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(inputs)
        inputs = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(inputs))
    return inputs


def build() -> keras.Model:
    """Return the untrained U-Net: (batch, X, Z, 3) grey values to (batch, X, Z, 1) probability of bone."""
    inputs = keras.Input((None, None, 3))
    found, skipped = layers.Rescaling(1 / 255)(inputs), []
    for filters in FILTERS[:-1]:
        found = _block(found, filters)
        skipped.append(found)
        found = layers.MaxPooling2D()(found)
    found = _block(found, FILTERS[-1])
    for filters, skip in zip(reversed(FILTERS[:-1]), reversed(skipped), strict=True):
        found = layers.Conv2DTranspose(filters, 2, strides=2)(found)
        found = _block(layers.Concatenate()([skip, found]), filters)
    network = keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(found))
    network.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=dice_and_cross_entropy,
        metrics=[dice],
        jit_compile="auto" if callbacks.has_gpu() else False,
    )
    return network


def _start(folder: Path, seed: int, *, overwrite: bool) -> tuple[keras.Model, callbacks.State]:
    """Return the model and the state to go on with: those of the last checkpoint, or new ones."""
    found = [] if overwrite else callbacks.checkpoints(folder)
    if found:
        state = callbacks.State(**files.read_json(found[-1] / "state.json"))
        return keras.saving.load_model(found[-1] / bundles.MODEL), state
    keras.utils.set_random_seed(seed)
    return build(), callbacks.State()


def settings_of(plan: study.Plan, *, minutes: float, seed: int) -> dict[str, Any]:
    """Return what a run is made with, as plain JSON types: its clock, its working grid, its cases."""
    return {
        "minutes": minutes,
        "seed": seed,
        "spacing_mm": list(plan.data.patch.spacing_mm),
        "normalisation": config.to_dict(plan.data.normalisation),
        "label": plan.label,
        **{part: [case.name for case in plan.part(part)] for part in ("train", "validation")},
    }


def train(folder: Path, plan: study.Plan, *, minutes: float, seed: int, overwrite: bool) -> callbacks.State:
    """Train, or go on at the last checkpoint until the minutes are used.

    Args:
      folder: of the run.
      plan: the study.
      minutes: of training, as `femur_tf.train` counts them.
      seed: of weights and crops.
      overwrite: train anew where the folder holds a run, which is removed when all is known to be well.

    Raises:
      DataError: minutes that are none; the folder holds a run with other minutes, another seed, another working grid
        or other cases.
    """
    schedule = config.from_dict(config.TrainConfig, {"learning_rate": LEARNING_RATE, "minutes": minutes}, "--minutes")
    settings, written = settings_of(plan, minutes=minutes, seed=seed), folder / "settings.json"
    found = files.read_json(written) if written.exists() and not overwrite else settings
    if found != settings:
        raise DataError(
            f"{folder}: expected a run of {settings}. Received: {found}. Pass another --run or --overwrite."
        )
    network, state = _start(folder, seed, overwrite=overwrite)
    if state.finished:
        return state
    training, validation = (read_pairs(plan, part) for part in ("train", "validation"))
    if overwrite:
        files.clear(folder)
    files.write_json(written, settings)
    progress = callbacks.Progress(schedule, state, STEPS)
    never = keras.callbacks.EarlyStopping("val_loss", mode="min", patience=ENDLESS)
    with progress.display:
        network.fit(
            batches(training, seed, state.epoch),
            validation_data=validation_slices(validation),
            validation_batch_size=2 * BATCH,
            initial_epoch=state.epoch,
            epochs=ENDLESS,
            steps_per_epoch=STEPS,
            shuffle=False,  # Keras warns otherwise; the crops are drawn at random
            callbacks=[progress, never, callbacks.Checkpoint(folder, state, progress, never)],
            verbose=0,
        )
    return state


def probability_map(network: keras.Model, grid: np.ndarray) -> np.ndarray:
    """Return the probability of bone, (X, Y, Z) float16, of a working grid (X, Y, Z) uint8."""
    x, _, z = grid.shape
    slices = np.stack([padded(neighbours(grid, y), (x, z)) for y in range(grid.shape[1])])
    found = network.predict(slices, batch_size=BATCH, verbose=0)[:, :x, :z, 0]  # (Y, X, Z)
    return np.moveaxis(found, 0, 1).astype(np.float16)


def read_samples(
    network: keras.Model, plan: study.Plan, cases: Sequence[study.Case]
) -> tuple[list[recipe.Sample], list[float]]:
    """Return the cases with their maps on their own grids, and the seconds of each map on the working grid."""
    samples, seconds = [], []
    for case in cases:
        loaded = study.load_case(plan, case)
        probability_map(network, loaded.working.data[:, :1])  # traces this shape
        start = time.perf_counter()
        found = probability_map(network, loaded.working.data)
        seconds.append(time.perf_counter() - start)
        own = from_working(Volume(found, loaded.working.affine), loaded.image.volume)
        samples.append(recipe.Sample(own, loaded.reference, loaded.image.volume.spacing_mm))
    return samples, seconds


def measure(network: keras.Model, plan: study.Plan, part: study.Part, folder: Path) -> dict[str, Any]:
    """Score a part of the study; on validation cases choose the recipe first and save it.

    Returns:
      The Dice of each case; means of Dice, PPV, sensitivity and surface distance; seconds of a volume's map, and the
      same in units of the product of two 4096 x 4096 matrices.
    """
    cases, before = plan.part(part), unit_s()
    samples, seconds = read_samples(network, plan, cases)
    unit, names = (before + unit_s()) / 2, tuple(case.name for case in cases)
    if part == "validation":
        choice = recipe.choose(samples)
        saved = bundles.ChosenRecipe(choice.recipe, "dice", names, choice.auc, choice.raw_dice, choice.dice)
        files.write_json(folder / bundles.RECIPE, config.to_dict(saved))
    chosen = config.from_dict(bundles.ChosenRecipe, files.read_json(folder / bundles.RECIPE), bundles.RECIPE).recipe
    masks = [postprocess.apply(s.probability, chosen, spacing_mm=s.spacing_mm) for s in samples]
    scores = [
        case_scores.score(n, mask, s.reference, s.spacing_mm) for n, mask, s in zip(names, masks, samples, strict=True)
    ]
    result: dict[str, Any] = {f"{part}_{name}": value for name, value in scoring.means(scores).items()}
    result[f"{part}_cases"] = {s.case: round(s.dice, 4) for s in scores}
    mean_s = float(np.mean(seconds))
    return result | {"seconds_a_volume": mean_s, "units_a_volume": mean_s / unit}
