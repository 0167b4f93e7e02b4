"""Records of blocks -> shuffled, augmented batches (tf.data); `femur_tf.streaming` gives their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from femur_tf import block_records, blocks, dataset, records, streaming
from femur_tf.config import AugmentConfig, BlockConfig, PatchConfig, TrainConfig
from femur_tf.errors import DataError
from femur_tf.patch_config import PLANE_AXES


class Batch(NamedTuple):
    """What the network is given of B blocks."""

    planes: tuple[tf.Tensor, ...]
    """Of each tower (B, N, A, C) uint8: those of `blocks.shapes`, without the last sample."""
    offsets: tuple[tuple[tf.Tensor, ...], ...]
    """Of each scale, along x, y, z (B, samples) int32: as `blocks.offsets` says."""


def block_of(folder: Path, manifest: records.Manifest, part: str) -> BlockConfig:
    """Return what the blocks of the records are.

    Raises:
      DataError: the records hold no block of that part.
    """
    if manifest.data.blocks is None or not manifest.count_blocks(part):
        raise DataError(
            f"{records.manifest_path(folder)}: expected blocks of the part {part!r}. Received: none. Plan and write "
            "the records again, or train on patches: --set train.examples=patches"
        )
    return manifest.data.blocks


def _offsets(block: BlockConfig, axis: int, step: int, phase: tf.Tensor) -> tf.Tensor:
    """Return `blocks.offsets` of a batch, (B, samples) int32, of the corners' phases (B,)."""
    table = tf.constant(np.stack([blocks.offsets(block, axis, step, start) for start in range(step)]), tf.int32)
    return tf.gather(table, phase)


def _chosen(coin: tf.Tensor, mirrored: tf.Tensor, plain: tf.Tensor) -> tf.Tensor:
    """Return, block by block, the mirrored or the plain one."""
    return tf.where(tf.reshape(coin, (-1, *[1] * (len(plain.shape) - 1))), mirrored, plain)


def mirror(example: dict[str, Any], coin: tf.Tensor, rule: PatchConfig) -> None:
    """Mirror blocks left-right, in place.

    Args:
      example: `planes` with the additional sample, of the towers of `rule`, and `label`.
      coin: (B,) bool, which blocks.
      rule: the patch rule.
    """
    for tower, (_, plane) in enumerate(rule.towers):
        axes = PLANE_AXES[plane]
        along_x = 1 + axes.index(0)
        planes = example["planes"][tower]
        mirrored = tf.reverse(planes, [along_x])
        if along_x > 1 and rule.size % 2:
            # An odd size reaches as far on both sides: the additional sample stays the last.
            mirrored = tf.roll(mirrored, -1, along_x)
        example["planes"][tower] = _chosen(coin, mirrored, planes)
    example["label"] = _chosen(coin, tf.reverse(example["label"], [1]), example["label"])


def mirrored_offsets(found: tf.Tensor, most: int, coin: tf.Tensor) -> tf.Tensor:
    """Return offsets along x with those of mirrored blocks turned round; `most` cells lie between first and last."""
    return _chosen(coin, most - tf.reverse(found, [1]), found)


def weights(label: tf.Tensor, bone_weight: float, bone_share: float | None) -> tf.Tensor:
    """Return how much each voxel of a batch counts.

    Args:
      label: (B, x, y, z) uint8.
      bone_weight: of a bone voxel.
      bone_share: the share of all weight that bone is to have, in a batch that has any; None: as it comes.

    Returns:
      (B, x, y, z) float32, 0 beyond the volume.
    """
    inside = tf.cast(label != blocks.OUTSIDE, tf.float32)
    bone = tf.cast(label == 1, tf.float32)
    if bone_share is not None:
        total, bones = tf.reduce_sum(inside), tf.reduce_sum(bone)
        other = total - bones
        both = (bones > 0) & (other > 0)
        of_bone, of_other = (
            tf.where(both, tf.math.divide_no_nan(share * total, count), 1.0)
            for share, count in ((bone_share, bones), (1 - bone_share, other))
        )
        inside *= tf.where(bone > 0, of_bone, of_other)
    return inside * (1 + (bone_weight - 1) * bone)


def _finisher(
    folder: Path, manifest: records.Manifest, part: str, rule: PatchConfig, training: TrainConfig | None
) -> streaming.Finish:
    """Return a function (batch's number, serialized blocks, number of the pass) -> (Batch, labels, weights)."""
    held, block = manifest.data.patch, block_of(folder, manifest, part)
    channels = dataset.channels_of(rule, held, str(records.manifest_path(folder)))

    def finish(number: tf.Tensor, serialized: tf.Tensor, turn: tf.Tensor) -> tuple[Batch, tf.Tensor, tf.Tensor]:
        example = block_records.parse(serialized, held, block)
        example["planes"] = [example["planes"][channel] for channel in channels]
        count = tf.shape(example["label"])[0]
        coin = tf.zeros(count, tf.bool)
        if training:
            seeds = tf.unstack(tf.random.split(tf.stack([turn + training.seed * 100_003, number]), 3), num=3)
            if training.augment.flip:
                coin = tf.random.stateless_uniform((count,), seeds[0]) < 0.5
            example["planes"] = _varied(example["planes"], training.augment, seeds[1:])
        offsets = [
            [_offsets(block, axis, step, example["corner"][:, axis] % step) for axis, step in enumerate(steps)]
            for steps in rule.steps
        ]
        mirror(example, coin, rule)
        for of_scale, steps in zip(offsets, rule.steps, strict=True):
            of_scale[0] = mirrored_offsets(of_scale[0], block.cells(0, steps[0]), coin)
        batch = Batch(tuple(planes[:, :, :-1, :-1] for planes in example["planes"]), tuple(map(tuple, offsets)))
        weight = weights(example["label"], _bone_weight(training), training.bone_share if training else None)
        label = tf.cast(example["label"] == 1, tf.float32)
        return batch, tf.reshape(label, (-1, 1)), tf.reshape(weight, (-1,))

    return finish


def _bone_weight(training: TrainConfig | None) -> float:
    """Return how much a bone voxel counts."""
    return training.bone_weight if training and training.loss == "weighted" else 1.0


def _varied(planes: list[tf.Tensor], augment: AugmentConfig, seeds: list[tf.Tensor]) -> list[tf.Tensor]:
    """Change the grey values of a batch, those of a block alike in all towers."""
    if not (augment.intensity_scale or augment.intensity_shift):
        return planes
    tables = dataset.grey_tables(tf.shape(planes[0])[0], augment, seeds)
    return [tf.gather(tables, tf.cast(part, tf.int32), batch_dims=1) for part in planes]


def batches(
    folder: Path,
    manifest: records.Manifest,
    part: str,
    *,
    rule: PatchConfig,
    batch: int = 1,
    training: TrainConfig | None = None,
    epochs: range = range(1),
    steps: int | None = None,
    limit: int | None = None,
) -> tf.data.Dataset:
    """Return batches of blocks, epoch after epoch.

    Args:
      folder: the records folder.
      manifest: of that folder.
      part: "train", "validation" or "test".
      rule: the patch rule to give; its scales are among those of the records.
      batch: blocks a batch; the last one of a pass may be shorter.
      training: seed, augmentation, weight and share of bone; None gives the blocks unchanged, in the shards' order.
      epochs: numbers of the epochs to give.
      steps: batches an epoch; None: a whole pass.
      limit: without `training`: blocks of the part, taken evenly from its cases, always the same; None: all.

    Returns:
      A dataset of (`Batch`, labels (voxels, 1) float32, weights (voxels,) float32), all voxels of a batch in one row.

    Raises:
      DataError: the records have no block of that part, or not the patches of `rule`.
    """
    finish = _finisher(folder, manifest, part, rule, training)
    block = block_of(folder, manifest, part)
    shards = [case.blocks for case in manifest.cases if case.part == part]
    source = streaming.stored(folder, shards, block_records.size_bytes(manifest.data.patch, block), block.count)
    seed = None if training is None else training.seed
    return streaming.stream(
        source, finish, batch=batch, seed=seed, epochs=epochs, steps=steps, limit=None if training else limit
    )
