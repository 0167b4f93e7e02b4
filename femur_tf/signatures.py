"""What an exported model answers to: its signatures, their inputs and outputs by stable names.

    serving_default  patches (N, S, S, C) uint8            -> probability (N, 1) float32
    serving_bytes    patches_bytes (N,) string             -> probability (N, 1) float32
    segment          volume (1, X, Y, Z) uint8             -> probability (1, X, Y, Z) float16
    segment_bytes    volume_bytes (1,) string, shape (1, 3) int64 -> probability_bytes (1,) string
    metadata         request (N,) string, not read         -> metadata_json (N,) string

Bytes are those of an array in C order; float16 is little-endian. They are for REST,
where numbers are decimal text, many times slower, and an answer whose name ends in
`_bytes` is sent as base64. No operation turns numbers into bytes directly: what
`serialize_tensor` writes ends with them. Not every operation that can be exported has a
kernel (`tf.io.decode_raw` to float16 has none), so the tests run each signature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from femur_tf import command
from femur_tf.config import PatchConfig
from femur_tf.dense import convert
from femur_tf.dense_steps import NotDenseError
from femur_tf.segment_graph import segment_function

Tensors = dict[str, tf.Tensor]

WARM_UP_PATCHES = 2
WARM_UP_SHAPE = (16, 16, 8)
"""A volume that takes little time: what the first request of a signature costs is the graph's preparation."""


class Endpoint(NamedTuple):
    """One signature."""

    name: str
    function: Callable[..., Tensors]
    """Of tensors in the order of `inputs`."""
    inputs: tuple[tf.TensorSpec, ...]
    example: dict[str, np.ndarray]
    """A small request, by the names of `inputs`; strings as an array of `bytes` objects."""


def _refuse_unless(fine: tf.Tensor, expected: str, *received: tf.Tensor) -> tf.Operation:
    """Return an operation that raises InvalidArgument unless `fine`."""
    return tf.debugging.Assert(fine, [f"expected {expected}. Received:", *received], summarize=8)


def to_bytes(values: tf.Tensor) -> tf.Tensor:
    """Return the bytes of a tensor in C order, as a scalar string."""
    count = tf.size(values) * values.dtype.size
    return tf.strings.substr(tf.io.serialize_tensor(values), -count, count)


def patches_endpoint(model: keras.Sequential, rule: PatchConfig) -> Endpoint:
    """Return `serving_default`: uint8 patches -> probability. None at all is an InvalidArgument error."""
    shape = (rule.size, rule.size, rule.channels)

    def serve(patches: tf.Tensor) -> Tensors:
        """Refuse no patches, which some kernels evaluate and others refuse."""
        with tf.control_dependencies([_refuse_unless(tf.shape(patches)[0] > 0, "at least one patch")]):
            return {"probability": model(tf.identity(patches))}

    example = {"patches": np.zeros((WARM_UP_PATCHES, *shape), np.uint8)}
    spec = tf.TensorSpec((None, *shape), tf.uint8, name="patches")
    return Endpoint("serving_default", serve, (spec,), example)


def patches_bytes_endpoint(model: keras.Sequential, rule: PatchConfig) -> Endpoint:
    """Return `serving_bytes`: a text of bytes for each patch -> probability.

    Another number of bytes is an InvalidArgument error that names both numbers; no text at all is one, too.
    """
    shape = (rule.size, rule.size, rule.channels)
    count = int(np.prod(shape))

    def serve(patches_bytes: tf.Tensor) -> Tensors:
        lengths = tf.strings.length(patches_bytes)
        wrong = tf.boolean_mask(lengths, lengths != count)
        expected = f"{count} bytes, {' x '.join(map(str, shape))} uint8, for each patch"
        some = _refuse_unless(tf.size(lengths) > 0, "at least one patch")
        with tf.control_dependencies([some, _refuse_unless(tf.size(wrong) == 0, expected, wrong)]):
            values = tf.io.decode_raw(patches_bytes, tf.uint8)
        return {"probability": model(tf.reshape(values, (-1, *shape)))}

    example = {"patches_bytes": np.array([bytes(count)] * WARM_UP_PATCHES, object)}
    return Endpoint("serving_bytes", serve, (tf.TensorSpec((None,), tf.string, name="patches_bytes"),), example)


def volume_endpoint(segment: Callable[[tf.Tensor], Tensors]) -> Endpoint:
    """Return `segment`: a uint8 working grid -> its probability map."""
    example = {"volume": np.zeros((1, *WARM_UP_SHAPE), np.uint8)}
    return Endpoint("segment", segment, (tf.TensorSpec((None,) * 4, tf.uint8, name="volume"),), example)


def volume_bytes_endpoint(segment: Callable[[tf.Tensor], Tensors]) -> Endpoint:
    """Return `segment_bytes`: the bytes and the shape of a uint8 working grid -> the bytes of its float16 map.

    More than one volume, a shape without voxels and another number of bytes are InvalidArgument errors.
    """

    def serve(volume_bytes: tf.Tensor, shape: tf.Tensor) -> Tensors:
        """Check the bytes against the shape and segment the volume."""
        one = tf.logical_and(tf.size(volume_bytes) == 1, tf.size(shape) == 3)
        sizes = tf.shape(volume_bytes), tf.shape(shape)
        with tf.control_dependencies([_refuse_unless(one, "one volume, and the shape (1, 3) of shape", *sizes)]):
            extent, data = tf.reshape(shape, (3,)), tf.reshape(volume_bytes, (1,))
        length = tf.strings.length(data[0])
        voxels = tf.reduce_prod(tf.cast(extent, tf.float64))  # exact as far as it matters, and never wraps around
        fits = tf.logical_and(tf.reduce_all(extent > 0), voxels == tf.cast(length, tf.float64))
        with tf.control_dependencies([_refuse_unless(fits, "a byte for each voxel of shape", extent, length)]):
            volume = tf.reshape(tf.io.decode_raw(data, tf.uint8), tf.concat([[1], extent], 0))
        return {"probability_bytes": to_bytes(segment(volume)["probability"])[None]}

    inputs = (
        tf.TensorSpec((None,), tf.string, name="volume_bytes"),
        tf.TensorSpec((None, 3), tf.int64, name="shape"),
    )
    example = {
        "volume_bytes": np.array([bytes(int(np.prod(WARM_UP_SHAPE)))], object),
        "shape": np.array([WARM_UP_SHAPE], np.int64),
    }
    return Endpoint("segment_bytes", serve, inputs, example)


def metadata_endpoint(text: str) -> Endpoint:
    """Return `metadata`: what a client must know, once for each text of the request, whatever that says."""
    spec = tf.TensorSpec((None,), tf.string, name="request")
    example = {"request": np.array([b""], object)}
    return Endpoint("metadata", lambda request: {"metadata_json": tf.fill(tf.shape(request), text)}, (spec,), example)


def endpoints(model: keras.Sequential, rule: PatchConfig, metadata: str) -> list[Endpoint]:
    """Return the signatures of a model; one without a dense form has none for volumes, which is warned about.

    Args:
      model: a network on the patches of `rule`.
      rule: the patch rule.
      metadata: the JSON that `metadata` answers.
    """
    found = [patches_endpoint(model, rule), patches_bytes_endpoint(model, rule), metadata_endpoint(metadata)]
    try:
        network = convert(model, rule)
    except NotDenseError as error:
        command.warn(f"{error} The saved model has no signature `segment` or `segment_bytes`.")
        return found
    # One function for both, or the file would hold its graph and weights twice.
    volume: Any = tf.TensorSpec((None,) * 4, tf.uint8)
    segment = tf.function(segment_function(network), input_signature=[volume], autograph=False)
    return [*found, volume_endpoint(segment), volume_bytes_endpoint(segment)]
