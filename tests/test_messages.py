"""The messages against tensorflow-serving-api's own."""

from __future__ import annotations

import numpy as np
import pytest
from conformance import to_array, to_tensor
from hypothesis import given
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2

from femur_tf import messages
from femur_tf.errors import DataError
from femur_tf.messages import Target

ARRAYS = {
    "volume": np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4),
    "shape": np.array([[2, 3, 4]], np.int64),
    "text": np.array([b"\x00a", b""], object),
    "half": np.array([0.0, 0.5, 1.0, 0.333], np.float16),
    "single": np.array([[0.25], [1e-7]], np.float32),
}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\x05", [5]),
        # 300 = 2 * 128 + 44, the lower part first, with the mark that more follows
        (b"\xac\x02", [300]),
        (b"\x00\xac\x02\x7f\x80\x01\xff\xff\x03", [0, 300, 127, 128, 65535]),
    ],
)
def test_numbers_of_a_packed_field(data, expected):
    assert messages.decode_varints(data).tolist() == expected


@given(st.lists(st.integers(0, 2**31 - 1), max_size=30))
def test_packed_numbers_are_those_that_were_packed(numbers):
    packed = tensor_pb2.TensorProto(int_val=numbers).SerializeToString()
    found = messages._classes()["TensorProto"].FromString(packed)
    assert messages.decode_varints(found.int_val).tolist() == numbers


@pytest.mark.parametrize(
    ("target", "version", "label"),
    [
        (Target("femur"), None, ""),
        (Target("femur", 3), 3, ""),
        (Target("femur", 0), 0, ""),
        (Target("femur", None, "stable"), None, "stable"),
    ],
)
def test_a_request_names_its_model(target, version, label):
    data = messages.predict_request(target, "segment", ARRAYS)
    request = predict_pb2.PredictRequest.FromString(data)
    spec = request.model_spec
    assert (spec.name, spec.signature_name, spec.version_label) == ("femur", "segment", label)
    assert (spec.version.value if spec.HasField("version") else None) == version
    found = get_model_metadata_pb2.GetModelMetadataRequest.FromString(messages.metadata_request(target))
    assert list(found.metadata_field) == ["signature_def"]
    assert (found.model_spec.name, found.model_spec.version_label) == ("femur", label)


def test_a_request_holds_its_arrays_and_little_else():
    data = messages.predict_request(Target("femur"), "segment", ARRAYS)
    request = predict_pb2.PredictRequest.FromString(data)
    assert set(request.inputs) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(to_array(request.inputs[name]), array)
    large = np.zeros((1, 100, 100, 10), np.uint8)
    assert len(messages.predict_request(Target("femur"), "segment", {"volume": large})) < large.size + 100


@pytest.mark.parametrize("content", [False, True])
def test_both_forms_of_an_answer_are_read(content):
    answer = predict_pb2.PredictResponse()
    answer.model_spec.version.value = 3
    for name, array in ARRAYS.items():
        answer.outputs[name].CopyFrom(to_tensor(array, content=content))
    found = messages.predict_response(answer.SerializeToString())
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_one_value_may_stand_for_all():
    answer = predict_pb2.PredictResponse()
    tensor = to_tensor(np.zeros(6, np.float32), content=False)
    del tensor.float_val[1:]
    answer.outputs["single"].CopyFrom(tensor)
    assert messages.predict_response(answer.SerializeToString())["single"].tolist() == [0] * 6


def test_signatures_and_version_of_a_description():
    answer = get_model_metadata_pb2.GetModelMetadataResponse()
    known = get_model_metadata_pb2.SignatureDefMap()
    for name in ("segment", "metadata"):
        known.signature_def[name].inputs["x"].name = "x:0"
    answer.metadata["signature_def"].Pack(known)
    assert messages.metadata_response(answer.SerializeToString()) == ({"segment", "metadata"}, None)
    answer.model_spec.version.value = 7
    assert messages.metadata_response(answer.SerializeToString()) == ({"segment", "metadata"}, 7)
    assert messages.metadata_response(b"") == (frozenset(), None)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("TensorProto", tensor_pb2.TensorProto),
        ("PredictRequest", predict_pb2.PredictRequest),
        ("PredictResponse", predict_pb2.PredictResponse),
        ("ModelSpec", type(predict_pb2.PredictRequest().model_spec)),
        ("GetModelMetadataRequest", get_model_metadata_pb2.GetModelMetadataRequest),
        ("GetModelMetadataResponse", get_model_metadata_pb2.GetModelMetadataResponse),
        ("SignatureDefMap", get_model_metadata_pb2.SignatureDefMap),
    ],
)
def test_every_field_has_the_originals_name_and_number(name, original):
    ours, theirs = messages._classes()[name].DESCRIPTOR, original.DESCRIPTOR
    assert ours.fields
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert other.number == field.number
        # Packed numbers are read as bytes; an enumeration is a number.
        assert other.type == field.type or other.is_packed or other.enum_type


def test_the_methods_are_the_originals():
    service = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"]
    for path, name in ((messages.PREDICT, "Predict"), (messages.METADATA, "GetModelMetadata")):
        assert path == f"/{service.full_name}/{service.methods_by_name[name].name}"


@pytest.mark.parametrize("read", [messages.predict_response, messages.metadata_response])
def test_bytes_that_are_no_message_are_refused(read):
    with pytest.raises(DataError, match=r"expected a (PredictResponse|GetModelMetadataResponse)\. Received: "):
        read(b"\xff\xfegarbage")


def test_an_unknown_type_and_missing_values_are_refused():
    answer = predict_pb2.PredictResponse()
    answer.outputs["odd"].dtype = 18  # complex128
    with pytest.raises(DataError, match=r"output odd: expected a known type\. Received: DataType 18"):
        messages.predict_response(answer.SerializeToString())
    answer = predict_pb2.PredictResponse()
    tensor = to_tensor(np.zeros(6, np.float32), content=False)
    del tensor.float_val[2:]
    answer.outputs["short"].CopyFrom(tensor)
    with pytest.raises(DataError, match=r"output short: expected 6 values\. Received: 2"):
        messages.predict_response(answer.SerializeToString())


def test_an_empty_array_is_empty():
    answer = predict_pb2.PredictResponse()
    answer.outputs["none"].CopyFrom(to_tensor(np.zeros((1, 0), np.float16), content=False))
    assert messages.predict_response(answer.SerializeToString())["none"].shape == (1, 0)
