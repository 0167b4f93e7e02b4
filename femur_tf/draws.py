"""Choosing among the examples of a part of the records: a few of each case, or more of one class."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from femur_tf.records import Manifest


def first_of_each_case(folder: Path, manifest: Manifest, part: str, limit: int) -> list[tuple[list[str], int]]:
    """Return, for each case, its shards and how many examples to read of them: `limit` in all, evenly."""
    cases = [case for case in manifest.cases if case.part == part and case.shards]
    each, more = divmod(limit, len(cases))
    return [
        (
            [str(folder / shard.file.name) for shard in case.shards],
            min(each + (number < more), sum(shard.count for shard in case.shards)),
        )
        for number, case in enumerate(cases)
    ]


def concatenated(chosen: list[tuple[list[str], int]]) -> tf.data.Dataset:
    """Return the first serialized examples of each list of shards, one list after the other."""
    # One dataset of lists: concatenated one by one, hundreds of cases would make as deep a chain.
    names, counts = tf.ragged.constant([names for names, _ in chosen]), tf.constant([n for _, n in chosen], tf.int64)
    lists = tf.data.Dataset.from_tensor_slices((names, counts))
    return lists.flat_map(lambda some, count: tf.data.TFRecordDataset(some).take(count))


def redraw(label: tf.Tensor, share: float, seed: tf.Tensor) -> tf.Tensor:
    """Return which examples of a batch to take so that a share of them is bone.

    Systematic resampling: each example is taken as often as its class needs on average, rounded down or up, so that
    as few as possible come twice.

    Args:
      label: (N,) int64, 1 for bone.
      share: of bone, in (0, 1); a batch of one class alone stays as it is.
      seed: (2,) int64; the same seed gives the same draw.

    Returns:
      (N,) int32 places in the batch.
    """
    order = tf.argsort(label, stable=True)  # each class in one piece, so that its share is exact
    bone = tf.cast(tf.gather(label, order), tf.float64)
    total = tf.cast(tf.size(label), tf.float64)
    bones = tf.reduce_sum(bone)
    weight = bone * tf.math.divide_no_nan(tf.cast(share, tf.float64), bones)
    weight += (1 - bone) * tf.math.divide_no_nan(tf.cast(1 - share, tf.float64), total - bones)
    upper = tf.cumsum(weight) / tf.reduce_sum(weight)
    positions = (tf.range(total, dtype=tf.float64) + tf.random.stateless_uniform((), seed, dtype=tf.float64)) / total
    return tf.gather(order, tf.minimum(tf.searchsorted(upper, positions, side="right"), tf.size(label) - 1))
