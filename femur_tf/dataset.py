"""Records of patches -> shuffled, augmented batches (tf.data); `femur_tf.streaming` gives their order."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from femur_tf import draws, records, streaming
from femur_tf.config import PLANES, AugmentConfig, PatchConfig
from femur_tf.errors import DataError
from femur_tf.patch_config import PLANE_AXES
from femur_tf.patches import Cutter


def _gather(folder: Path, manifest: records.Manifest, part: str) -> tf.types.experimental.GenericFunction:
    """Return a function (case, centre) -> patches that cuts from the working grids of index mode."""
    cutters = {
        Path(grid.name).stem.encode(): Cutter.of(np.load(folder / grid.name), manifest.data.patch)
        for case in manifest.cases
        if case.part == part
        for grid in case.grids
    }
    patch = manifest.data.patch
    shape = (patch.size + 1, patch.size + 1, patch.channels)

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


def grey_tables(count: tf.Tensor, settings: AugmentConfig, seeds: list[tf.Tensor]) -> tf.Tensor:
    """Draw what each grey value becomes in each of `count` examples, (count, 256) uint8.

    A look-up of 256 values an example replaces arithmetic on each sample.
    """
    scale = 1 + tf.random.stateless_uniform((count, 1), seeds[0], -1, 1) * settings.intensity_scale
    shift = 255 * tf.random.stateless_uniform((count, 1), seeds[1], -1, 1) * settings.intensity_shift
    grey = tf.range(256, dtype=tf.float32) * scale + shift
    return tf.cast(tf.clip_by_value(tf.round(grey), 0, 255), tf.uint8)


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
        patch = tf.gather(grey_tables(count, settings, seeds[2:]), tf.cast(patch, tf.int32), batch_dims=1)
    return patch


def channels_of(rule: PatchConfig, held: PatchConfig, source: str) -> list[int]:
    """Return which channels of the records' patches are those of `rule`.

    Raises:
      DataError: size, spacing or padding differ, or a plane of a scale is not in the records.
    """
    wanted, there = ([(r.scales_mm[scale], plane) for scale, plane in r.towers] for r in (rule, held))
    alike = (rule.size, rule.spacing_mm, rule.padding) == (held.size, held.spacing_mm, held.padding)
    if not alike or not set(wanted) <= set(there):
        raise DataError(
            f"{source}: expected records with the patches of {rule}. Received: {held}. "
            "Make a plan with these settings and write its records in another work folder."
        )
    return [there.index(tower) for tower in wanted]


def _finisher(
    folder: Path,
    manifest: records.Manifest,
    part: str,
    rule: PatchConfig,
    *,
    seed: int,
    training: AugmentConfig | None,
    bone_share: float | None,
) -> streaming.Finish:
    """Return a function (batch's number, serialized examples, number of the pass) -> (patch, label)."""
    held = manifest.data.patch
    channels = channels_of(rule, held, str(records.manifest_path(folder)))
    gather = _gather(folder, manifest, part) if manifest.mode == "index" else None

    def finish(number: tf.Tensor, serialized: tf.Tensor, turn: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Parse, draw by class and augment one batch."""
        example = records.parse(serialized, held, manifest.mode)
        seeds = tf.stack([turn + seed * 100_003, number])
        if training and bone_share:
            places = draws.redraw(example["label"], bone_share, tf.random.fold_in(seeds, 1))
            example = {name: tf.gather(values, places) for name, values in example.items()}
        patch = example["patch"] if gather is None else gather(example["case"], example["centre"])
        if channels != list(range(held.channels)):
            patch = tf.gather(patch, channels, axis=-1)
        patch = augment(patch, training, rule, seeds) if training else patch[:, : rule.size, : rule.size]
        return patch, tf.cast(example["label"], tf.float32)[:, None]

    return finish


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
    if not manifest.count(part):
        raise DataError(f"{folder}: expected examples of the part {part!r}. Received: none. Make a plan that has some.")
    rule = rule or manifest.data.patch
    finish = _finisher(folder, manifest, part, rule, seed=seed, training=training, bone_share=bone_share)
    held = manifest.data.patch
    example_bytes = (held.size + 1) ** 2 * held.channels if manifest.mode == "patches" else 100
    source = streaming.stored(folder, [case.shards for case in manifest.cases if case.part == part], example_bytes)
    order = {"seed": seed} if training else {"seed": None, "limit": limit}
    return streaming.stream(source, finish, batch=batch, epochs=epochs, steps=steps, **order)
