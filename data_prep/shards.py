"""Serialized examples -> TFRecord shards, with what the manifest says of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from femur_tf import files, records

SHARD_EXAMPLES = 9_000
"""Examples a shard, about: at 6.5 kB an example a shard is 60 MB."""
SHARD_BLOCKS = 64
"""Blocks a shard, about: at 0.4 MB a block of a hip scan a shard is 25 MB."""


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """One serialized block."""

    serialized: bytes
    bone: np.ndarray
    """bool, which of its voxels are bone."""


def write_file(path: Path, examples: list[bytes]) -> None:
    """Write serialized examples to one TFRecord file, whole."""
    import tensorflow as tf

    with files.whole(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
        for example in examples:
            writer.write(example)


def write_patches(folder: Path, case: str, examples: list[bytes], kinds: np.ndarray) -> tuple[records.Shard, ...]:
    """Write examples, in their order, to shards.

    Args:
      folder: of the records.
      case: name of the case.
      examples: serialized.
      kinds: (N,) positions in `KINDS`.
    """
    total = max(1, round(len(examples) / SHARD_EXAMPLES))
    written = []
    for index, part in enumerate(np.array_split(np.arange(len(examples)), total)):
        name = records.shard_name(case, index, total)
        write_file(folder / name, [examples[i] for i in part])
        counts = {kind: int((kinds[part] == number).sum()) for number, kind in enumerate(records.KINDS)}
        written.append(records.Shard(records.file_entry(folder, name), case, counts))
    return tuple(written)


def write_blocks(
    folder: Path, case: str, found: Sequence[Block], rng: np.random.Generator
) -> tuple[records.Shard, ...]:
    """Write blocks, in random order, to shards; none where there are none.

    Args:
      folder: of the records.
      case: name of the case.
      found: its blocks.
      rng: the source of chance.
    """
    total = -(-len(found) // SHARD_BLOCKS)
    written = []
    for index, part in enumerate(np.array_split(rng.permutation(len(found)), total) if total else []):
        name = records.shard_name(case, index, total, "blocks")
        write_file(folder / name, [found[i].serialized for i in part])
        bone, voxels = (sum(int(count(found[i].bone)) for i in part) for count in (np.sum, np.size))
        counts = {"bone": bone, "background": voxels - bone}
        written.append(records.Shard(records.file_entry(folder, name), case, counts))
    return tuple(written)
