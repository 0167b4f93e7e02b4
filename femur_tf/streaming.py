"""Shards -> shuffled batches (tf.data), epoch after epoch.

The order of work: draw the order of the shards for this pass, read sixteen of them
in turns, shuffle the serialized examples, make batches, then parse and augment a
whole batch at once. Every draw depends on (seed, pass) alone, so that the same seed
gives the same order, and a training that goes on at an epoch sees what it would have
seen. A pass holds each example once. An epoch is a pass, or a given number of steps
that goes on in the passes where the epoch before ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from femur_tf import draws, machine, records

AHEAD = 4
"""Batches made ahead of the one that is asked for."""

READERS = 16
"""Shards read in turns."""

SHUFFLE_BYTES = 256 * 2**20
"""Memory of the shuffle buffer; shards are shuffled when written, so it only has to mix cases."""


Finish = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Any]
"""(batch's number, serialized examples, number of the pass) -> what the network is given."""


class Stored(NamedTuple):
    """The examples of one part of the records, as files."""

    cases: list[tuple[list[str], int]]
    """Of each case, its shards and how many examples they hold."""
    example_bytes: int

    @property
    def examples(self) -> int:
        """Number of examples."""
        return sum(count for _, count in self.cases)


def stored(folder: Path, cases: Sequence[Sequence[records.Shard]], example_bytes: int, voxels: int = 1) -> Stored:
    """Return the shards of some cases.

    Args:
      folder: of the records.
      cases: of each case, its shards.
      example_bytes: of one example, about.
      voxels: of one example.
    """
    found = [([str(folder / s.file.name) for s in shards], sum(s.count for s in shards) // voxels) for shards in cases]
    return Stored([(names, count) for names, count in found if count], example_bytes)


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


def _options() -> tf.data.Options:
    """Return options without tuning: its thread keeps whoever ends an iterator waiting, up to 20 s on one core."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def stream(
    source: Stored,
    finish: Finish,
    *,
    batch: int,
    seed: int | None,
    epochs: range = range(1),
    steps: int | None = None,
    limit: int | None = None,
) -> tf.data.Dataset:
    """Return batches, epoch after epoch.

    Args:
      source: the examples.
      finish: makes a batch of serialized examples what the network is given.
      batch: examples a batch; the last one of a pass may be shorter.
      seed: of the order; None: the order of the shards.
      epochs: numbers of the epochs to give.
      steps: batches an epoch, which goes on in the passes where the epoch before ended; None: a whole pass.
      limit: without a seed: how many examples, taken evenly from the cases, always the same; None: all.
    """
    names = [name for shards, _ in source.cases for name in shards]
    buffer = 0 if seed is None else min(source.examples, max(1, SHUFFLE_BYTES // source.example_bytes))
    chosen = None if limit is None else draws.evenly(source.cases, limit)

    def whole_pass(turn: tf.Tensor) -> tf.data.Dataset:
        return _read(names, seed or 0, turn, buffer) if chosen is None else draws.concatenated(chosen)

    a_pass = -(-(source.examples if chosen is None else sum(count for _, count in chosen)) // batch)
    start, stop = ((steps or a_pass) * number for number in (epochs.start, epochs.stop))

    def one_pass(turn: tf.Tensor) -> tf.data.Dataset:
        batched = whole_pass(turn).batch(batch).enumerate()
        # Skipped before they are parsed: a run that goes on within a pass starts at once.
        batched = batched.skip(tf.where(turn == start // a_pass, tf.constant(start % a_pass, tf.int64), 0))
        return batched.map(lambda n, s: finish(n, s, turn), num_parallel_calls=machine.cores(), deterministic=True)

    dataset = tf.data.Dataset.range(start // a_pass, -(-stop // a_pass)).flat_map(one_pass).take(stop - start)
    return dataset.apply(tf.data.experimental.assert_cardinality(stop - start)).prefetch(AHEAD).with_options(_options())
