"""What lies beside the graph: metadata, warm-up requests and the server's own files, each read as a server reads it."""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys
from pathlib import Path

import bright
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import saved_model_runtime
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from networks import RULE, RULES, volume

from femur_tf import bundle, config, export, served
from femur_tf.config import PatchConfig
from femur_tf.errors import DataError
from femur_tf.patches import Cutter

SAVED_MODELS = Path(__file__).parents[1] / "saved_models"
NAME = "femur_t1_coronal"
LARGEST_WARM_UP = 1000
"""Records; a server refuses more."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return bundle.load(bright.save_run(tmp_path_factory.mktemp("runs") / "default"))


@pytest.fixture(scope="module")
def version(run, tmp_path_factory):
    return export.export(run, tmp_path_factory.mktemp("saved_models") / NAME, card="# Card\n")


@pytest.fixture(scope="module")
def logs(version):
    """The warm-up's records, as a server's own message class reads them."""
    pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason="needs the extra serving")
    records = tf.data.TFRecordDataset(str(version / "assets.extra" / served.WARM_UP))
    return [pb2.PredictionLog.FromString(record) for record in records.as_numpy_iterator()]


def numbers(name, kind):
    """Return the field of a message that holds a number or a text in a wrapper."""
    return name, "message", f".google.protobuf.{kind}"


MESSAGES = {
    "BatchingParameters": [
        numbers("max_batch_size", "Int64Value"),
        numbers("batch_timeout_micros", "Int64Value"),
        numbers("max_enqueued_batches", "Int64Value"),
        numbers("num_batch_threads", "Int64Value"),
        numbers("thread_pool_name", "StringValue"),
        ("allowed_batch_sizes", "repeated int64", ""),
        ("pad_variable_length_inputs", "bool", ""),
    ],
    "PrometheusConfig": [("enable", "bool", ""), ("path", "string", "")],
    "MonitoringConfig": [("prometheus_config", "message", ".PrometheusConfig")],
}
"""What tensorflow-serving-api leaves out, from session_bundle_config.proto and monitoring_config.proto.
Fields are numbered from 1."""


def parse(name, text):
    """Return the message `name` of MESSAGES that a text stands for, as strictly as the server reads it."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="server.proto", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message, fields in MESSAGES.items():
        added = file.message_type.add(name=message)
        for number, (own, kind, type_name) in enumerate(fields, start=1):
            label = field.LABEL_REPEATED if kind.startswith("repeated") else field.LABEL_OPTIONAL
            type_ = getattr(field, f"TYPE_{kind.split()[-1].upper()}")
            added.field.add(name=own, number=number, label=label, type=type_, type_name=type_name or None)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return text_format.Parse(text, message_factory.GetMessageClass(pool.FindMessageTypeByName(name))())


@pytest.fixture(scope="module")
def batching():
    return parse("BatchingParameters", (SAVED_MODELS / "batching.config").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (PatchConfig(size=8), ((4, 3),) * 3),
        (PatchConfig(size=5, scales_mm=(0.0, 3.0)), ((6, 6),) * 3),
        (PatchConfig(size=8, spacing_mm=(1, 2, 1), scales_mm=(4.0,)), ((16, 12), (8, 6), (16, 12))),
        (PatchConfig(size=8, planes=("coronal",)), ((4, 3), (0, 0), (4, 3))),
        (PatchConfig(size=8, scales_mm=(0.0, 5.0), planes=("all", "axial")), ((20, 15), (20, 15), (4, 3))),
    ],
    ids=["one scale", "two scales", "unequal spacing", "across its plane nothing is read", "the widest plane counts"],
)
def test_halo_is_what_the_widest_patch_reads(rule, expected):
    assert served.halo(rule) == expected


@pytest.mark.parametrize(("scales_mm", "expected"), [((0.0,), (1, 1, 1)), ((4.0,), (4, 2, 4)), ((2.0, 3.0), (6, 2, 6))])
def test_steps_are_the_common_multiple_of_all_scales(scales_mm, expected):
    assert PatchConfig(spacing_mm=(1, 2, 1), scales_mm=scales_mm).common_step == expected


def test_metadata_says_what_a_client_must_know(run):
    found = served.metadata(run, NAME, "# Card\n")
    assert (found.name, found.model_card, found.cohort, found.format_version) == (NAME, "# Card\n", None, 2)
    assert found.config.data.patch == run.settings.data.patch
    assert found.config.data.normalisation == run.settings.data.normalisation
    assert config.from_dict(bundle.ChosenRecipe, found.recipe) == run.chosen
    assert (found.padding, found.steps) == ("edge", (4, 4, 2))
    assert found.halo == ((32, 28), (32, 28), (16, 14))
    assert found.digest == run.origin.digest


@pytest.mark.parametrize("cohort", [None, {"median": 81.5, "cases": 14}])
def test_metadata_survives_json(run, cohort):
    found = dataclasses.replace(served.metadata(run, NAME, "größer\n"), cohort=cohort)
    assert served.from_json(served.to_json(found), "server") == found


def test_a_log_in_bytes():
    found = served.prediction_log("m", "s", {})
    request = b"\x0a\x06" + b"\x0a\x01m" + b"\x1a\x01s"  # 1: ModelSpec(1: "m", 3: "s")
    assert found == b"\x32\x0a" + b"\x0a\x08" + request  # 6: PredictLog(1: PredictRequest)


@hypothesis.given(RULES, st.integers(0, 2**32 - 1))
@hypothesis.settings(max_examples=15)
def test_nothing_beyond_the_halo_is_read(rule, seed):
    rng = np.random.default_rng(seed)
    steps = rule.common_step
    start = [int(step * rng.integers(0, 3)) for step in steps]
    stop = [first + int(step * rng.integers(1, 3)) for first, step in zip(start, steps, strict=True)]
    # Whole cells of every scale, beyond the halo and within it.
    shape = [last + after + int(rng.integers(1, 9)) for last, (_, after) in zip(stop, served.halo(rule), strict=True)]
    grid = volume(tuple(shape), seed % 100)
    other = rng.integers(0, 256, grid.shape, np.uint8)
    reach = [
        slice(max(0, first - before), last + after)
        for first, last, (before, after) in zip(start, stop, served.halo(rule), strict=True)
    ]
    other[tuple(reach)] = grid[tuple(reach)]
    corners = np.array([start, [last - 1 for last in stop]])
    np.testing.assert_array_equal(Cutter.of(grid, rule).cut(corners), Cutter.of(other, rule).cut(corners))


@hypothesis.given(st.integers(1, 2**40))
def test_numbers_are_written_as_protocol_buffers_write_them(value):
    assert b"\x08" + served._varint(value) == wrappers_pb2.UInt64Value(value=value).SerializeToString()


@pytest.mark.slow
def test_the_warm_up_has_a_small_request_for_each_signature(version, logs):
    assert len(logs) <= LARGEST_WARM_UP
    requests = [log.predict_log.request for log in logs]
    assert {request.model_spec.name for request in requests} == {NAME}
    signatures = saved_model_runtime.read_signatures(version)
    assert {r.model_spec.signature_name: set(r.inputs) for r in requests} == {
        name: set(signature.inputs) for name, signature in signatures.items()
    }
    assert all(tf.make_ndarray(tensor).nbytes < 10**5 for request in requests for tensor in request.inputs.values())


def test_the_warm_up_is_written_as_the_servers_own_classes_write_it(logs, version):
    records = tf.data.TFRecordDataset(str(version / "assets.extra" / served.WARM_UP)).as_numpy_iterator()
    for log, record in zip(logs, records, strict=True):
        assert not log.HasField("log_metadata")
        assert type(log).FromString(log.SerializeToString(deterministic=True)) == log
        assert len(log.SerializeToString()) == len(record)  # no field that the class does not know


@pytest.mark.slow
def test_the_warm_up_replayed_in_the_c_library_raises_nothing(version, logs, tmp_path):
    requests = [
        (request.model_spec.signature_name, {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()})
        for request in (log.predict_log.request for log in logs)
    ]
    (tmp_path / "requests").write_bytes(pickle.dumps(requests))
    command = [sys.executable, saved_model_runtime.__file__, version, tmp_path / "requests", tmp_path / "answers"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    answers = pickle.loads((tmp_path / "answers").read_bytes())
    assert len(answers) == len(requests) == 5
    assert all(isinstance(answer, dict) for answer in answers), answers


def test_the_servers_models_parse_and_labels_name_loaded_versions():
    pb2 = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2", reason="needs the extra serving")
    found = text_format.Parse((SAVED_MODELS / "models.config").read_text(encoding="utf-8"), pb2.ModelServerConfig())
    (model,) = found.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == (NAME, f"/models/{NAME}", "tensorflow")
    assert set(model.version_labels) == {"stable", "canary"}
    # A version that no label names would take memory for nothing.
    assert set(model.model_version_policy.specific.versions) == set(model.version_labels.values())


def test_batches_keep_the_servers_rules(batching):
    sizes = list(batching.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == batching.max_batch_size.value
    assert min(batching.batch_timeout_micros.value, batching.max_enqueued_batches.value) >= 0
    assert batching.num_batch_threads.value >= 1


def test_a_volume_of_the_warm_up_is_not_padded_to_two(batching, logs):
    for request in (log.predict_log.request for log in logs):
        if request.model_spec.signature_name.startswith("segment"):
            batch = {tensor.tensor_shape.dim[0].size for tensor in request.inputs.values()}
            assert batch == {1}
            assert min(size for size in batching.allowed_batch_sizes if size >= 1) == 1


def test_monitoring_is_on():
    found = parse("MonitoringConfig", (SAVED_MODELS / "monitoring.config").read_text(encoding="utf-8"))
    assert found.prometheus_config.enable
    assert found.prometheus_config.path.startswith("/")


def test_the_readme_names_the_files_and_the_model_as_they_are():
    text = (SAVED_MODELS / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"/models/([\w.]+\.config)", text))
    assert named == {path.name for path in SAVED_MODELS.glob("*.config")}
    assert set(re.findall(r"v1/models/(\w+)", text)) == {NAME}
    path = parse(
        "MonitoringConfig", (SAVED_MODELS / "monitoring.config").read_text(encoding="utf-8")
    ).prometheus_config.path
    assert path in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no json", "expected JSON"),
        ("[]", "expected format_version 2. Received: None"),
        ('{"format_version": 1}', "expected format_version 2. Received: 1. Use the femur_tf that exported"),
        ('{"format_version": 2}', "expected the fields of Metadata"),
    ],
)
def test_other_metadata_is_refused(text, words):
    with pytest.raises(DataError, match=f"hospital:8500: {words}"):
        served.from_json(text, "hospital:8500")


@pytest.mark.parametrize("text", ["max_batch_size: 4", "max_batch { value: 4 }", "enable: true"])
def test_the_check_of_the_servers_files_sees_a_mistake(text):
    with pytest.raises(text_format.ParseError):
        parse("BatchingParameters", text)


def test_a_patch_rule_of_one_tower_needs_no_extra_scale():
    rule = dataclasses.replace(RULE, scales_mm=(0.0,), planes=("axial",))
    assert (served.halo(rule), rule.common_step) == (((6, 5), (6, 5), (0, 0)), (1, 1, 1))
