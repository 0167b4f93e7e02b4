"""Shards -> shuffled, augmented batches (tf.data).

The order of work: draw the order of the shards for this pass, read sixteen of them
in turns, shuffle the serialized examples, make batches, then parse and augment a
whole batch at once. Every draw depends on (seed, pass) alone, so that the same seed
gives the same order, and a training that goes on at an epoch sees what it would have
seen. A pass holds each example once. An epoch is a pass, or a given number of steps
that goes on in the passes where the epoch before ended.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from femur_tf import draws, machine, record_match, records
from femur_tf.config import PLANES, AugmentConfig, PatchConfig
from femur_tf.errors import DataError
from femur_tf.patch_config import PLANE_AXES
from femur_tf.patches import Cutter

AHEAD = 4
"""Batches made ahead of the one that is asked for."""

READERS = 16
"""Shards read in turns."""

SHUFFLE_BYTES = 256 * 2**20
"""Memory of the shuffle buffer; shards are shuffled when written, so it only has to mix cases."""


def _read(shards: list[str], seed: int, number: tf.Tensor, shuffle: int) -> tf.data.Dataset:
    """Return the serialized examples of one pass, mixed unless `shuffle`, the buffer's length, is 0."""
    names = tf.constant(shards)
    if shuffle:
        names = tf.random.experimental.stateless_shuffle(names, seed=tf.stack([tf.cast(seed, tf.int64), number]))
    in_turns = min(READERS, len(shards))
    dataset = tf.data.Dataset.from_tensor_slices(names).interleave(
        tf.data.TFRecordDataset,
        cycle_length=in_turns,
        block_length=32,
        num_parallel_calls=min(machine.cores(), in_turns),
        deterministic=True,
    )
    # In the graph of this pass: the order would else depend on the seed of the process, too.
    tf.random.set_seed(1)
    return dataset.shuffle(shuffle, seed=number + seed * 100_003) if shuffle else dataset


def _gather(
    folder: Path, manifest: records.Manifest, part: str, rule: PatchConfig
) -> tf.types.experimental.GenericFunction:
    """Return a function (case, centre) -> patches of `rule` that cuts from the working grids of index mode."""
    cutters = {
        Path(grid.name).stem.encode(): Cutter.of(np.load(folder / grid.name), rule)
        for case in manifest.cases
        if case.part == part
        for grid in case.grids
    }
    shape = (rule.size + 1, rule.size + 1, rule.channels)

    def cut(cases: np.ndarray, centres: np.ndarray) -> np.ndarray:
        result = np.empty((len(cases), *shape), np.uint8)
        for case in np.unique(cases):
            here = cases == case
            result[here] = cutters[case].cut(centres[here], extra=True)
        return result

    def gather(cases: tf.Tensor, centres: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(cut, [cases, centres], tf.uint8), (None, *shape))

    return gather


def flip_left_right(patch: tf.Tensor, rule: PatchConfig) -> tf.Tensor:
    """Mirror patches left-right.

    Args:
      patch: (N, S + 1, S + 1, C); axial and coronal rows run along x, sagittal patches do not contain x.
      rule: the patch rule.

    Returns:
      The same shape. Its first S samples along each axis are the patch of the mirrored volume at the mirrored
      centre, on every scale whose step divides the volume's extent along x.
    """
    along_x = [PLANES[plane] != "sagittal" for _, plane in rule.towers]
    mirrored = tf.reverse(patch, axis=[1])
    if patch.shape[1] % 2 == 0:
        # An odd S reaches as far on both sides: its own samples are mirrored, the additional one stays the last.
        mirrored = tf.roll(mirrored, -1, axis=1)
    return tf.where(along_x, mirrored, patch)


def rotations(angle: tf.Tensor, spacing: tuple[float, float], size: int) -> tf.Tensor:
    """Return the transforms that rotate patches about their centre sample, true to scale.

    Args:
      angle: (N,) float32, radians.
      spacing: mm between rows and between columns.
      size: samples along each axis of the patches to rotate, S + 1.

    Returns:
      (N, 8) float32 for `keras.ops.image.affine_transform`, output (column, row) -> input (column, row).
    """
    middle = float((size - 1) // 2)
    ratio = spacing[0] / spacing[1]
    cos, sin = tf.cos(angle), tf.sin(angle)
    across, down = -sin * ratio, sin / ratio  # column from row, row from column
    offset_column = middle - cos * middle - across * middle
    offset_row = middle - down * middle - cos * middle
    zero = tf.zeros_like(angle)
    return tf.stack([cos, across, offset_column, down, cos, offset_row, zero, zero], axis=1)


def _rotate(patch: tf.Tensor, degrees: float, rule: PatchConfig, seed: tf.Tensor) -> tf.Tensor:
    """Rotate each plane of each example by its own angle, the same on every scale."""
    limit = degrees * np.pi / 180
    angles = tf.random.stateless_uniform((tf.shape(patch)[0], len(PLANES)), seed, -limit, limit)
    turned = []
    for channel, (scale, plane) in enumerate(rule.towers):
        row_mm, column_mm = (rule.spacing_mm[axis] * rule.steps[scale][axis] for axis in PLANE_AXES[plane][1:])
        transform = rotations(angles[:, plane], (row_mm, column_mm), rule.size + 1)
        image = tf.cast(patch[..., channel : channel + 1], tf.float32)
        turned.append(keras.ops.image.affine_transform(image, transform, "bilinear", "nearest"))
    return tf.cast(tf.round(tf.concat(turned, axis=-1)), tf.uint8)


def augment(patch: tf.Tensor, settings: AugmentConfig, rule: PatchConfig, seed: tf.Tensor) -> tf.Tensor:
    """Change a batch of training patches at random.

    Args:
      patch: (N, S + 1, S + 1, C) uint8.
      settings: which changes, and how large.
      rule: the patch rule.
      seed: (2,) int64; the same seed gives the same changes.

    Returns:
      (N, S, S, C) uint8.
    """
    seeds = tf.unstack(tf.random.split(seed, 4), num=4)
    count = tf.shape(patch)[0]
    one = (count, 1, 1, 1)
    if settings.rotation_degrees:
        patch = _rotate(patch, settings.rotation_degrees, rule, seeds[0])
    if settings.flip:
        coin = tf.random.stateless_uniform(one, seeds[1]) < 0.5
        patch = tf.where(coin, flip_left_right(patch, rule), patch)
    patch = patch[:, : rule.size, : rule.size]
    if settings.intensity_scale or settings.intensity_shift:
        scale = 1 + tf.random.stateless_uniform(one, seeds[2], -1, 1) * settings.intensity_scale
        shift = 255 * tf.random.stateless_uniform(one, seeds[3], -1, 1) * settings.intensity_shift
        grey = tf.range(256, dtype=tf.float32)[None] * scale[:, :, 0, 0] + shift[:, :, 0, 0]  # (N, 256)
        table = tf.cast(tf.clip_by_value(tf.round(grey), 0, 255), tf.uint8)
        # A look-up of 256 values an example replaces arithmetic on each sample.
        patch = tf.gather(table, tf.cast(patch, tf.int32), batch_dims=1)
    return patch


def _shuffled(
    folder: Path, manifest: records.Manifest, part: str, seed: int, *, shuffle: bool
) -> Callable[[tf.Tensor], tf.data.Dataset]:
    """Return a function from the number of a pass to all serialized examples of a part, in that pass's order."""
    names = [str(folder / shard.file.name) for shard in manifest.shards(part)]
    held = manifest.data.patch
    example_bytes = (held.size + 1) ** 2 * held.channels  # in index mode too: both modes mix alike
    buffer = min(manifest.count(part), SHUFFLE_BYTES // example_bytes) if shuffle else 0
    return lambda turn: _read(names, seed, turn, buffer)


Finish = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def _finisher(
    folder: Path,
    manifest: records.Manifest,
    part: str,
    rule: PatchConfig,
    *,
    seed: int,
    training: AugmentConfig | None,
    bone_share: float | None,
) -> Finish:
    """Return a function (batch's number, serialized examples, number of the pass) -> (patch, label)."""
    held = manifest.data.patch
    channels = record_match.channels_of(rule, held, str(records.manifest_path(folder)))
    # By the run's own rule: the planes of all towers of the records may take several times the memory.
    gather = _gather(folder, manifest, part, rule) if manifest.mode == "index" else None

    def finish(number: tf.Tensor, serialized: tf.Tensor, turn: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Parse, draw by class and augment one batch."""
        example = records.parse(serialized, held, manifest.mode)
        seeds = tf.stack([turn + seed * 100_003, number])
        if training and bone_share:
            places = draws.redraw(example["label"], bone_share, tf.random.fold_in(seeds, 1))
            example = {name: tf.gather(values, places) for name, values in example.items()}
        if gather:
            patch = gather(example["case"], example["centre"])
        elif channels == list(range(held.channels)):
            patch = example["patch"]
        else:
            patch = tf.gather(example["patch"], channels, axis=-1)
        patch = augment(patch, training, rule, seeds) if training else patch[:, : rule.size, : rule.size]
        return patch, tf.cast(example["label"], tf.float32)[:, None]

    return finish


def _options() -> tf.data.Options:
    """Return options without tuning: its thread keeps whoever ends an iterator waiting, up to 20 s on one core."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def batches(
    folder: Path,
    manifest: records.Manifest,
    part: str,
    *,
    batch: int,
    seed: int = 0,
    rule: PatchConfig | None = None,
    training: AugmentConfig | None = None,
    bone_share: float | None = None,
    epochs: range = range(1),
    steps: int | None = None,
    limit: int | None = None,
) -> tf.data.Dataset:
    """Return batches of (patch, label), epoch after epoch.

    Args:
      folder: the records folder.
      manifest: of that folder.
      part: "train", "validation" or "test".
      batch: examples a batch; the last one of a pass may be shorter.
      seed: of the order and of the augmentation.
      rule: the patch rule to give; its scales are among those of the records. None: the records' own.
      training: the augmentation; None gives the examples unchanged and in the shards' order.
      bone_share: with `training`: the share of bone in a batch; None: as in the records.
      epochs: numbers of the epochs to give.
      steps: batches an epoch, which goes on in the passes where the epoch before ended; None: a whole pass.
      limit: without `training`: examples of the part, taken evenly from its cases, always the same; None: all.

    Returns:
      A dataset of (N, S, S, C) uint8 and (N, 1) float32, label 1 for bone.

    Raises:
      DataError: the records have no example of that part, or not the patches of `rule`.
    """
    examples = manifest.count(part)
    if not examples:
        raise DataError(f"{folder}: expected examples of the part {part!r}. Received: none. Make a plan that has some.")
    rule = rule or manifest.data.patch
    finish = _finisher(folder, manifest, part, rule, seed=seed, training=training, bone_share=bone_share)
    if limit is None or training:
        source = _shuffled(folder, manifest, part, seed, shuffle=training is not None)
    else:
        chosen = draws.first_of_each_case(folder, manifest, part, limit)
        examples = sum(count for _, count in chosen)

        def source(_turn: tf.Tensor) -> tf.data.Dataset:
            return draws.concatenated(chosen)

    a_pass = -(-examples // batch)
    start, stop = ((steps or a_pass) * number for number in (epochs.start, epochs.stop))

    def one_pass(turn: tf.Tensor) -> tf.data.Dataset:
        batched = source(turn).batch(batch).enumerate()
        # Skipped before they are parsed: a run that goes on within a pass starts at once.
        batched = batched.skip(tf.where(turn == start // a_pass, tf.constant(start % a_pass, tf.int64), 0))
        return batched.map(lambda n, s: finish(n, s, turn), num_parallel_calls=machine.cores(), deterministic=True)

    dataset = tf.data.Dataset.range(start // a_pass, -(-stop // a_pass)).flat_map(one_pass).take(stop - start)
    return dataset.apply(tf.data.experimental.assert_cardinality(stop - start)).prefetch(AHEAD).with_options(_options())
