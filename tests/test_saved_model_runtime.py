"""The runtime that other tests serve with: it reads what Python's TensorFlow reads, and never imports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import saved_model_runtime
import tensorflow as tf
from saved_model_runtime import FAILED_PRECONDITION, INVALID_ARGUMENT, Runtime, RuntimeFailure

FREE = (None, 2)


class Echo(tf.Module):
    """Gives back what it gets, of each type that a signature may have."""

    @tf.function(input_signature=[tf.TensorSpec(FREE, kind, name=kind.name) for kind in (
        tf.uint8, tf.int32, tf.int64, tf.float16, tf.float32, tf.bool, tf.string)])  # fmt: skip
    def echo(self, *values: tf.Tensor) -> dict[str, tf.Tensor]:
        return {f"same_{value.dtype.name}": tf.identity(value) for value in values}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="any"), tf.TensorSpec((), tf.int32, name="k")])
    def scale(self, any: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:  # noqa: A002
        positive = tf.debugging.Assert(k > 0, ["expected k above 0. Received:", k])
        with tf.control_dependencies([positive]):
            return {"scaled": any * tf.cast(k, tf.float32)}


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "1"
    module = Echo()
    tf.saved_model.save(module, str(folder), signatures={"echo": module.echo, "scale": module.scale})
    return folder


@pytest.fixture(scope="module")
def runtime(version):
    found = Runtime(version)
    yield found
    found.close()


@pytest.fixture
def inputs(rng):
    numbers = rng.normal(0, 50, (3, 2))
    texts = np.array([[b"", b"short"], [b"\0 in the middle", bytes(range(256))], [b"long " * 1000, b"x"]], object)
    kinds = (np.uint8, np.int32, np.int64, np.float16, np.float32, np.bool_)
    return {np.dtype(kind).name: numbers.astype(np.int64).astype(kind) for kind in kinds} | {"string": texts}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", []),
        (b"\x08\x96\x01", [(1, 150)]),  # the example of the format's description
        (b"\x12\x07testing", [(2, b"testing")]),
        (b"\x08" + b"\xff" * 9 + b"\x01", [(1, 2**64 - 1)]),  # -1
        (b"\x09" + b"12345678" + b"\x15" + b"abcd", [(1, b"12345678"), (2, b"abcd")]),
    ],
    ids=["empty", "number", "text", "-1", "fixed lengths"],
)
def test_fields_of_a_message(message, expected):
    assert list(saved_model_runtime.fields(message)) == expected


def test_signatures_have_names_types_and_shapes(version, runtime):
    assert set(runtime.signatures) == {"echo", "scale"}
    loaded = tf.saved_model.load(str(version))
    for name, spec in loaded.signatures["echo"].structured_input_signature[1].items():
        found = runtime.signatures["echo"].inputs[name]
        assert (found.dtype, found.shape) == (spec.dtype.as_numpy_dtype, FREE)
    scale = runtime.signatures["scale"]
    assert (scale.inputs["any"].shape, scale.inputs["k"].shape, scale.outputs["scaled"].shape) == (None, (), None)


def test_every_type_comes_back_as_it_went(runtime, inputs):
    found = runtime.run("echo", inputs)
    for name, values in inputs.items():
        np.testing.assert_array_equal(found[f"same_{name}"], values)
        assert found[f"same_{name}"].dtype == values.dtype


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (2, 3, 4)])
def test_shapes_are_kept(runtime, rng, shape):
    values = rng.random(shape, np.float32)
    found = runtime.run("scale", {"any": values, "k": np.array(2, np.int32)})["scaled"]
    assert found.shape == shape
    np.testing.assert_array_equal(found, 2 * values)


def test_arrays_need_not_be_contiguous(runtime, rng):
    values = rng.random((4, 3), np.float32).T[:, ::2]
    np.testing.assert_array_equal(runtime.run("scale", {"any": values, "k": np.int32(1)})["scaled"], values)


def test_a_process_that_serves_imports_no_tensorflow(version):
    code = (
        "import sys; from pathlib import Path; import saved_model_runtime as s;"
        f"s.Runtime(Path({str(version)!r})); assert 'tensorflow' not in sys.modules;"
        "s.use_protos_alone(); from tensorflow.core.framework import tensor_pb2;"
        "assert not hasattr(sys.modules['tensorflow'], 'constant')"
    )
    folder = Path(saved_model_runtime.__file__).parent
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("signature", "given", "code", "words"),
    [
        ("paint", {}, FAILED_PRECONDITION, 'Serving signature key "paint" not found'),
        ("scale", {"any": np.float32(1)}, INVALID_ARGUMENT, r"expected \['any', 'k'\]. Received: \['any'\]"),
        ("scale", {"any": np.float64(1), "k": np.int32(1)}, INVALID_ARGUMENT, "expected float32 .* Received: float64"),
        ("scale", {"any": np.float32(1), "k": np.int32(0)}, INVALID_ARGUMENT, "expected k above 0"),
    ],
    ids=["no such signature", "an input is missing", "another type", "the graph refuses"],
)
def test_what_is_refused_has_its_code_and_its_reason(runtime, signature, given, code, words):
    with pytest.raises(RuntimeFailure, match=words) as caught:
        runtime.run(signature, given)
    assert caught.value.code == code


def test_a_folder_that_is_no_saved_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"saved_model\.pb"):
        Runtime(tmp_path)


def test_a_version_that_is_not_for_serving_is_refused(version, tmp_path):
    graph = (version / "saved_model.pb").read_bytes()
    assert b"\x05serve" in graph
    (tmp_path / "saved_model.pb").write_bytes(graph.replace(b"\x05serve", b"\x05train"))
    with pytest.raises(RuntimeFailure, match="Could not find meta graph def matching supplied tags"):
        Runtime(tmp_path)
