"""What a server and its clients need of a version, beside the graph.

`Metadata` is what the signature `metadata` answers: all that a client needs to turn a
scan into a request and the answer into a mask. `write_warm_up` writes the requests that
TensorFlow Serving runs before it takes a version into use, so that no user waits for
the preparation of a graph.

A warm-up file is a TFRecord of `tensorflow.serving.PredictionLog` messages, whose classes
come with tensorflow-serving-api, an extra. A log is a request in two wrappers, which are
written here directly (protocol buffers' wire format: a key, a length and that many bytes).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from femur_tf import config, messages
from femur_tf.errors import DataError
from femur_tf.patch_config import PatchConfig

if TYPE_CHECKING:
    from femur_tf.bundle import Bundle

WARM_UP = "tf_serving_warmup_requests"
"""The name that TensorFlow Serving looks for, in `assets.extra`."""
FORMAT_VERSION = 2
Halo = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a scan becomes a working grid: of the settings under `data` in a run's `config.json` what a client needs."""

    patch: PatchConfig
    normalisation: config.NormalisationConfig

    @property
    def data(self) -> config.DataConfig:
        """The same as settings of a study, whose other fields no scan depends on."""
        return config.DataConfig(patch=self.patch, normalisation=self.normalisation)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What the signature `metadata` answers, as JSON (`config.to_dict`, `config.from_dict`)."""

    name: str
    """Of the saved model."""
    config: Preparation
    recipe: dict[str, Any]
    """The content of `recipe.json`: how a map becomes a mask, and the validation numbers that chose it."""
    padding: str
    """What lies beyond a volume's border."""
    halo: Halo
    """Voxels that an exact tile needs before and after it along each axis, where the volume has them."""
    steps: tuple[int, int, int]
    """A tile's origin, halo included, and its end lie on multiples of these, or on the volume's border."""
    model_card: str
    """Markdown."""
    digest: str
    """As of `origin.Origin`: masks of two models differ where these do."""
    cohort: dict[str, Any] | None = None
    """The content of `cohort.json`, for the quality flag; None where the run did not keep one."""
    format_version: int = FORMAT_VERSION


def halo(rule: PatchConfig) -> Halo:
    """Return how many voxels before and after a box, aligned to all steps, the patches in it read along x, y, z."""
    before, after = rule.size // 2, rule.size - 1 - rule.size // 2
    x, y, z = ((before * step, after * step) for step in rule.widest_steps)
    return x, y, z


def metadata(bundle: Bundle, name: str, card: str) -> Metadata:
    """Return what a client must know of a model.

    Args:
      bundle: the model.
      name: of the saved model.
      card: the model card.

    Raises:
      DataError: no recipe has been chosen.
    """
    rule = bundle.settings.data.patch
    return Metadata(
        name,
        Preparation(rule, bundle.settings.data.normalisation),
        config.to_dict(bundle.chosen) if bundle.chosen else {},
        rule.padding,
        halo(rule),
        rule.common_step,
        card,
        bundle.origin.digest,
        config.to_dict(bundle.cohort) if bundle.cohort else None,
    )


def to_json(values: Metadata) -> str:
    """Return the metadata as one line of JSON."""
    return json.dumps(config.to_dict(values))


def from_json(text: str, source: str) -> Metadata:
    """Return the metadata that a model answered.

    Args:
      text: JSON.
      source: named in the error.

    Raises:
      DataError: not JSON, another format version, or other fields.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"{source}: expected JSON. Received: {error}") from error
    found = values.get("format_version") if isinstance(values, dict) else None
    if found != FORMAT_VERSION:
        advice = "Use the femur_tf that exported the model, or export it again."
        raise DataError(f"{source}: expected format_version {FORMAT_VERSION}. Received: {found!r}. {advice}")
    return config.from_dict(Metadata, values, source)


def _varint(value: int) -> bytes:
    """Return a number in groups of seven bits, the lowest first; all but the last have the eighth bit set."""
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def _field(number: int, content: bytes) -> bytes:
    """Return a field of a message that holds a text or another message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def prediction_log(name: str, signature: str, inputs: dict[str, np.ndarray]) -> bytes:
    """Return a serialized `tensorflow.serving.PredictionLog` of one request.

    Args:
      name: of the model.
      signature: its signature's name.
      inputs: strings as an array of `bytes` objects.
    """
    request = messages.predict_request(messages.Target(name), signature, inputs)
    return _field(6, _field(1, request))  # PredictionLog: predict_log; PredictLog: request


def write_warm_up(path: Path, name: str, requests: Iterable[tuple[str, dict[str, np.ndarray]]]) -> None:
    """Write the requests that a server runs when it loads a version.

    Args:
      path: the file.
      name: of the model.
      requests: for each its signature and its inputs.
    """
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            writer.write(prediction_log(name, signature, inputs))
