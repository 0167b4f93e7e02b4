"""TensorFlow Serving's gRPC messages, as far as a client needs them, without TensorFlow.

The classes that come with `tensorflow-serving-api` import all of TensorFlow. The few
messages that are used here are described below, field by field, in a pool of their own.
Sources: tensorflow/core/framework/tensor.proto and tensorflow_serving/apis/*.proto;
a test compares them with the originals.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from femur_tf.errors import DataError

PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
SIGNATURES = "signature_def"
"""The one kind of metadata that a server has."""

_Field = descriptor_pb2.FieldDescriptorProto
_ANY, _INT64_VALUE = ".google.protobuf.Any", ".google.protobuf.Int64Value"
# Message -> fields (number, name, type); a type's name is a message's, `map` and `repeated` precede it.
_MESSAGES = {
    "Dim": [(1, "size", "int64")],
    "TensorShapeProto": [(2, "dim", "repeated Dim")],
    "TensorProto": [
        (1, "dtype", "int32"),  # an enumeration: the same on the wire
        (2, "tensor_shape", "TensorShapeProto"),
        (4, "tensor_content", "bytes"),
        # Packed numbers are one run of bytes on the wire; read as such they can be decoded by NumPy.
        (5, "float_val", "bytes"),
        (7, "int_val", "bytes"),
        (8, "string_val", "repeated bytes"),
        (10, "int64_val", "bytes"),
        (13, "half_val", "bytes"),
    ],
    "ModelSpec": [
        (1, "name", "string"),
        (2, "version", _INT64_VALUE),
        (3, "signature_name", "string"),
        (4, "version_label", "string"),
    ],
    "PredictRequest": [(1, "model_spec", "ModelSpec"), (2, "inputs", "map TensorProto")],
    "PredictResponse": [(1, "outputs", "map TensorProto"), (2, "model_spec", "ModelSpec")],
    "GetModelMetadataRequest": [(1, "model_spec", "ModelSpec"), (2, "metadata_field", "repeated string")],
    "GetModelMetadataResponse": [(1, "model_spec", "ModelSpec"), (2, "metadata", f"map {_ANY}")],
    # The signatures' names are read, not what they hold.
    "Signature": [],
    "SignatureDefMap": [(1, "signature_def", "map Signature")],
}
_DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<f4"),
    4: np.dtype(np.uint8),
    7: np.dtype(object),
    9: np.dtype("<i8"),
    19: np.dtype("<f2"),
}
"""DataType -> dtype; object holds bytes, TensorFlow's string."""
_FIXED, _VARINTS = {"<f4": "float_val"}, {"|u1": "int_val", "<i8": "int64_val", "<f2": "half_val"}
_VARINT_BLOCK = 1 << 18
"""Values decoded at a time: what is in work stays in a cache."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A model on a server: its newest version, one version, or the one that a label names."""

    name: str
    version: int | None = None
    label: str | None = None


def _add_field(message: descriptor_pb2.DescriptorProto, number: int, name: str, kind: str) -> None:
    """Add a field to a message; a map adds the message of its entries too."""
    words = kind.split()
    if words[0] == "map":
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, 1, "key", "string")
        _add_field(entry, 2, "value", words[1])
        words = ["repeated", f".femur.{message.name}.{entry.name}"]
    field = message.field.add(name=name, number=number)
    field.label = _Field.LABEL_REPEATED if words[0] == "repeated" else _Field.LABEL_OPTIONAL
    scalar = getattr(_Field, f"TYPE_{words[-1].upper()}", None)
    field.type = scalar or _Field.TYPE_MESSAGE
    if not scalar:
        field.type_name = words[-1] if words[-1].startswith(".") else f".femur.{words[-1]}"


@functools.cache
def _classes() -> dict[str, Any]:
    """Return the message classes by name."""
    file = descriptor_pb2.FileDescriptorProto(name="femur.proto", package="femur", syntax="proto3")
    file.dependency.extend([any_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name])
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add_field(message, *field)
    pool = descriptor_pool.DescriptorPool()
    for needed in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(needed.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"femur.{name}")) for name in _MESSAGES}


def _parse(name: str, data: bytes) -> Any:
    """Return a serialized message.

    Raises:
      DataError: the bytes are none.
    """
    try:
        return _classes()[name].FromString(data)
    except DecodeError as error:
        raise DataError(f"expected a {name}. Received: {error}") from error


def _fill_spec(spec: Any, target: Target, signature: str = "") -> None:
    """Write which model is meant."""
    spec.name, spec.signature_name = target.name, signature
    if target.version is not None:
        spec.version.value = target.version
    elif target.label is not None:
        spec.version_label = target.label


def _fill_tensor(tensor: Any, array: np.ndarray) -> None:
    """Write an array: uint8, int64, float32, float16, or object with `bytes` in it."""
    kind = array.dtype.newbyteorder("<")
    tensor.dtype = next(code for code, dtype in _DTYPES.items() if dtype == kind)
    for length in array.shape:
        tensor.tensor_shape.dim.add(size=length)
    if array.dtype == object:
        tensor.string_val.extend(array.ravel().tolist())
    else:
        tensor.tensor_content = np.ascontiguousarray(array, kind).tobytes()


def decode_varints(data: bytes) -> np.ndarray:
    """Return the numbers of a packed field, (N,) int64."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 128)  # the last byte of each number
    starts = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    result = np.empty(ends.size, np.int64)
    for begin in range(0, ends.size, _VARINT_BLOCK):
        first, last = (places[begin : begin + _VARINT_BLOCK] for places in (starts, ends))
        values = (raw[first] & 127).astype(np.int64)
        for byte in range(1, int((last - first).max()) + 1):
            more = np.flatnonzero(last - first >= byte)
            values[more] |= (raw[first[more] + byte] & 127).astype(np.int64) << (7 * byte)
        result[begin : begin + _VARINT_BLOCK] = values
    return result


def _values(tensor: Any, kind: np.dtype) -> np.ndarray:
    """Return the values of a tensor, flat. A server writes numbers one by one or, if told to, as `tensor_content`."""
    if kind.hasobject:
        return np.array(list(tensor.string_val), object)
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, kind)
    if kind.str in _FIXED:
        return np.frombuffer(getattr(tensor, _FIXED[kind.str]), kind)
    numbers = decode_varints(getattr(tensor, _VARINTS[kind.str]))
    return numbers.astype("<u2").view(kind) if kind.kind == "f" else numbers.astype(kind)


def _to_array(name: str, tensor: Any) -> np.ndarray:
    """Return a tensor as an array."""
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype not in _DTYPES:
        raise DataError(f"output {name}: expected a known type. Received: DataType {tensor.dtype}")
    values = _values(tensor, _DTYPES[tensor.dtype])
    if values.size == 1:  # one value may stand for all
        values = np.repeat(values, int(np.prod(shape)))
    if values.size != np.prod(shape):
        raise DataError(f"output {name}: expected {int(np.prod(shape))} values. Received: {values.size}")
    return values.reshape(shape)


def predict_request(target: Target, signature: str, inputs: dict[str, np.ndarray]) -> bytes:
    """Return a PredictRequest.

    Args:
      target: the model.
      signature: its signature.
      inputs: an array for each input: uint8, int64, float32, float16 or, for strings, object with `bytes` in it.
    """
    request = _classes()["PredictRequest"]()
    _fill_spec(request.model_spec, target, signature)
    for name, array in inputs.items():
        _fill_tensor(request.inputs[name], array)
    return bytes(request.SerializeToString())


def predict_response(data: bytes) -> dict[str, np.ndarray]:
    """Return the outputs of a PredictResponse.

    Raises:
      DataError: no such message, a type that is not used here, or another number of values than the shape says.
    """
    response = _parse("PredictResponse", data)
    return {name: _to_array(name, tensor) for name, tensor in response.outputs.items()}


def metadata_request(target: Target) -> bytes:
    """Return a GetModelMetadataRequest for the model's signatures."""
    request = _classes()["GetModelMetadataRequest"](metadata_field=[SIGNATURES])
    _fill_spec(request.model_spec, target)
    return bytes(request.SerializeToString())


def metadata_response(data: bytes) -> tuple[frozenset[str], int | None]:
    """Return what a GetModelMetadataResponse says: the signatures' names, and the version or None.

    Raises:
      DataError: no such message.
    """
    response = _parse("GetModelMetadataResponse", data)
    found = _parse("SignatureDefMap", response.metadata[SIGNATURES].value)
    spec = response.model_spec
    return frozenset(found.signature_def), spec.version.value if spec.HasField("version") else None
