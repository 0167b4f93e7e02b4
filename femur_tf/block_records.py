"""The record spec of blocks (`femur_tf.blocks`).

A record holds `planes` (uint8 bytes: those of each tower in turn), `label` (uint8
bytes, a voxel of the block each: 1 bone, 0 background, 255 beyond the volume),
`corner` (3 voxels of the working grid) and `case`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from femur_tf import blocks
from femur_tf.patch_config import BlockConfig, PatchConfig

if TYPE_CHECKING:
    import tensorflow as tf


def size_bytes(rule: PatchConfig, block: BlockConfig) -> int:
    """Return the bytes of the planes and labels of a block."""
    return sum(map(math.prod, blocks.shapes(rule, block))) + block.count


def encode(planes: Sequence[np.ndarray], label: np.ndarray, corner: np.ndarray, case: bytes) -> bytes:
    """Return one serialized block.

    Args:
      planes: as `blocks.cut` gives them.
      label: as `blocks.labels` gives it.
      corner: (3,) integers, its first voxel.
      case: name of the volume, UTF-8.
    """
    import tensorflow as tf

    example = tf.train.Example()
    features = example.features.feature
    features["planes"].bytes_list.value.append(b"".join(part.tobytes() for part in planes))
    features["label"].bytes_list.value.append(label.tobytes())
    features["corner"].int64_list.value.extend(corner.tolist())
    features["case"].bytes_list.value.append(case)
    serialized: bytes = example.SerializeToString(deterministic=True)
    return serialized


def parse(serialized: tf.Tensor, rule: PatchConfig, block: BlockConfig) -> dict[str, Any]:
    """Parse a whole batch of serialized blocks; works inside a graph.

    Args:
      serialized: (B,) string.
      rule: the patch rule of the records.
      block: what their blocks are.

    Returns:
      `planes`, a list over the towers of (B, N, A, C) uint8, `label` (B, x, y, z) uint8, `corner` (B, 3) int64 and
      `case` (B,) string.
    """
    import tensorflow as tf

    spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ("planes", "label", "case")}
    spec["corner"] = tf.io.FixedLenFeature([3], tf.int64)
    example: dict[str, Any] = tf.io.parse_example(serialized, spec)
    shapes = blocks.shapes(rule, block)
    # Reshaped whole first, so that a record of another length is refused.
    flat = tf.reshape(tf.io.decode_raw(example["planes"], tf.uint8), (-1, sum(map(math.prod, shapes))))
    parts = tf.split(flat, [math.prod(shape) for shape in shapes], axis=1)
    example["planes"] = [tf.reshape(part, (-1, *shape)) for part, shape in zip(parts, shapes, strict=True)]
    example["label"] = tf.reshape(tf.io.decode_raw(example["label"], tf.uint8), (-1, *block.samples))
    return example
