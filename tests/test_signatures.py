"""The signatures, run where servers run them: in TensorFlow's C library, by a process without Python's TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import bright
import numpy as np
import pytest
import saved_model_runtime
import tensorflow as tf
from networks import RULE, spread
from saved_model_runtime import INVALID_ARGUMENT

from femur_tf import bundle, config, export, predict, signatures

SERVED_TOLERANCE = 1e-6
"""The same float32 graph, in batches of another length."""
HALF_STEP = 2.0**-11
"""One step of float16 below 1: a loaded graph folds constants, so that sums may round the other way."""
TEXT = '{"name": "füße"}'
SHAPES = ((7, 5, 6), (1, 1, 1), (13, 3, 30))
COUNT = RULE.size * RULE.size * RULE.channels
SETTINGS = config.RunConfig(config.DataConfig(patch=RULE), bright.SETTINGS.model)


def of(network):
    """Return a bundle of a network on the patches of RULE."""
    return bundle.Bundle(Path(), network, SETTINGS, None)


def strings(*texts):
    return np.array(texts, object)


def request_of_bytes(volume):
    return {"volume_bytes": strings(volume.tobytes()), "shape": np.array([volume.shape], np.int64)}


@pytest.fixture(scope="module")
def network():
    return spread()


@pytest.fixture(scope="module")
def version(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "1"
    export.write_saved_model(of(network), folder, TEXT)
    return folder


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(3).integers(0, 256, (5, RULE.size, RULE.size, RULE.channels), np.uint8)


@pytest.fixture(scope="module")
def volumes():
    return [np.random.default_rng(4).integers(0, 256, shape, np.uint8) for shape in SHAPES]


@pytest.fixture(scope="module")
def maps(network, volumes):
    return [predict.Predictor(network, RULE).probability_map(volume) for volume in volumes]


FINE = np.zeros((2, 3, 2), np.uint8)
PATCH = bytes(COUNT)
REFUSED = {
    "a patch too short": ("serving_bytes", {"patches_bytes": strings(PATCH, PATCH[1:])}, [COUNT, COUNT - 1]),
    "patches too long": ("serving_bytes", {"patches_bytes": strings(PATCH * 2, PATCH * 2)}, [COUNT, 2 * COUNT]),
    "two volumes": ("segment", {"volume": np.stack([FINE, FINE])}, []),
    "no volume": ("segment", {"volume": FINE[None][:0]}, []),
    "bytes of two volumes": (
        "segment_bytes", {"volume_bytes": strings(bytes(12), bytes(12)), "shape": np.array([[2, 3, 2]] * 2)}, [2],
    ),
    "bytes of no volume": ("segment_bytes", {"volume_bytes": strings(), "shape": np.zeros((0, 3), np.int64)}, [0]),
    "a byte too few": ("segment_bytes", request_of_bytes(FINE) | {"volume_bytes": strings(bytes(11))}, [2, 3, 2, 11]),
    "no voxels": ("segment_bytes", request_of_bytes(FINE[:0]), [0, 3, 2]),
    "negative lengths": ("segment_bytes", request_of_bytes(FINE) | {"shape": np.array([[-2, -3, 2]])}, [-2, -3, 2, 12]),
    "lengths that overflow": (
        "segment_bytes", {"volume_bytes": strings(b""), "shape": np.array([[2**32, 2**32, 4]])}, [2**32, 0],
    ),
    "two lengths": ("segment_bytes", request_of_bytes(FINE) | {"shape": np.array([[6, 2]])}, [1, 2]),
}  # fmt: skip
"""What must be refused: the request, and numbers that the message must name."""


@pytest.fixture(scope="module")
def answers(version, patches, volumes, tmp_path_factory):
    """All requests of this file, answered by one process."""
    requests = [
        ("serving_default", {"patches": patches}),
        ("serving_default", {"patches": patches[:0]}),
        ("serving_bytes", {"patches_bytes": strings(*(patch.tobytes() for patch in patches))}),
        ("serving_bytes", {"patches_bytes": strings()}),
        ("metadata", {"request": strings(b"")}),
        ("metadata", {"request": strings(b"a", b"b")}),
        *(("segment", {"volume": volume[None]}) for volume in volumes),
        *(("segment_bytes", request_of_bytes(volume)) for volume in volumes),
        *((name, inputs) for name, inputs, _ in REFUSED.values()),
    ]
    folder = tmp_path_factory.mktemp("answers")
    (folder / "requests").write_bytes(pickle.dumps(requests))
    command = [sys.executable, saved_model_runtime.__file__, version, folder / "requests", folder / "answers"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = pickle.loads((folder / "answers").read_bytes())
    return dict(zip((*("default", "default of none", "bytes", "bytes of none", "metadata", "metadata twice"),
                     *(("segment", shape) for shape in SHAPES), *(("bytes", shape) for shape in SHAPES),
                     *REFUSED), found, strict=True))  # fmt: skip


@pytest.mark.slow
def test_names_types_and_shapes_are_as_documented(version):
    found = {
        name: tuple(
            {key: (str(tensor.dtype), tensor.shape) for key, tensor in side.items()}
            for side in (signature.inputs, signature.outputs)
        )
        for name, signature in saved_model_runtime.read_signatures(version).items()
    }
    text, free = ("object", (None,)), (None,) * 4
    chance = {"probability": ("float32", (None, 1))}
    assert found == {
        "serving_default": ({"patches": ("uint8", (None, RULE.size, RULE.size, RULE.channels))}, chance),
        "serving_bytes": ({"patches_bytes": text}, chance),
        "segment": ({"volume": ("uint8", free)}, {"probability": ("float16", (1, None, None, None))}),
        "segment_bytes": (
            {"volume_bytes": text, "shape": ("int64", (None, 3))},
            {"probability_bytes": ("object", (1,))},
        ),
        "metadata": ({"request": text}, {"metadata_json": text}),
    }


@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (1, 2, 3, 4)])
def test_bytes_are_those_of_the_array(rng, shape):
    values = rng.random(shape).astype(np.float16)
    assert signatures.to_bytes(tf.constant(values)).numpy() == values.astype("<f2").tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "bytes"])
def test_patches_get_the_models_own_probabilities(network, patches, answers, name):
    expected = network.predict_on_batch(patches)
    found = answers[name]["probability"]
    assert (found.dtype, found.shape) == (np.float32, (5, 1))
    np.testing.assert_allclose(found, expected, atol=SERVED_TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_volume_gets_the_map_that_python_computes(maps, answers, shape):
    expected, found = maps[SHAPES.index(shape)], answers["segment", shape]["probability"]
    assert (found.dtype, found.shape) == (np.float16, (1, *shape))
    np.testing.assert_allclose(found[0].astype(np.float32), expected.astype(np.float32), atol=HALF_STEP, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_volume_as_bytes_gets_the_same_map_as_bytes(answers, shape):
    (found,) = answers["bytes", shape]["probability_bytes"]
    np.testing.assert_array_equal(np.frombuffer(found, "<f2"), answers["segment", shape]["probability"].ravel())


def test_metadata_comes_once_for_each_text_asked_with(answers):
    assert json.loads(answers["metadata"]["metadata_json"].item()) == json.loads(TEXT)
    assert answers["metadata twice"]["metadata_json"].tolist() == [TEXT.encode()] * 2


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_request_is_an_invalid_argument_that_names_the_numbers(answers, case):
    code, message = answers[case]
    assert code == INVALID_ARGUMENT, message
    assert not [number for number in REFUSED[case][2] if str(number) not in message]


@pytest.mark.slow
def test_early_fusion_has_no_signature_for_volumes(tmp_path, capsys):
    found = export.write_saved_model(of(spread(fusion="early")), tmp_path / "1")
    names = ["serving_default", "serving_bytes", "metadata"]
    assert [endpoint.name for endpoint in found] == names
    assert set(saved_model_runtime.read_signatures(tmp_path / "1")) == set(names)
    assert "no signature `segment` or `segment_bytes`" in capsys.readouterr().err


def test_every_signature_has_an_example_that_it_takes(network):
    for endpoint in signatures.endpoints(network, RULE, TEXT):
        assert list(endpoint.example) == [spec.name for spec in endpoint.inputs]
        for spec in endpoint.inputs:
            assert spec.is_compatible_with(tf.constant(endpoint.example[spec.name]))


@pytest.mark.slow
def test_one_plane_alone_is_served_too(tmp_path, rng):
    rule = dataclasses.replace(RULE, planes=("coronal", "coronal"))
    network = spread(rule)
    settings = dataclasses.replace(SETTINGS, data=config.DataConfig(patch=rule))
    export.write_saved_model(bundle.Bundle(Path(), network, settings, None), tmp_path / "1")
    grid = rng.integers(0, 256, (6, 5, 7), np.uint8)
    found = saved_model_runtime.Runtime(tmp_path / "1").run("segment", {"volume": grid[None]})["probability"][0]
    expected = predict.Predictor(network, rule).probability_map(grid)
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=HALF_STEP, rtol=0)


def test_no_patches_are_refused(answers):
    assert [answers[name][0] for name in ("default of none", "bytes of none")] == [INVALID_ARGUMENT] * 2
