"""Exporting: a version holds all that is needed, its signature gives the model's own numbers, in C++ too."""

from __future__ import annotations

import ctypes
import dataclasses
import shutil
from pathlib import Path

import bright
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from femur_tf import bundle, export
from femur_tf.errors import DataError
from femur_tf.export import ExportArguments

SERVED_TOLERANCE = 1e-6
"""The same float32 graph, in batches of another length."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A study with a run, for tests that only read it."""
    folder = tmp_path_factory.mktemp("work")
    bright.save_run(folder / "runs" / "default")
    return folder


@pytest.fixture(scope="module")
def version(work, tmp_path_factory):
    """A version of the exported run."""
    return export.export(bundle.load(work / "runs/default"), tmp_path_factory.mktemp("saved_models") / "femur")


@pytest.fixture
def patches(rng):
    return rng.integers(0, 256, (5, 16, 16, bright.RULE.channels), np.uint8)


def test_a_version_holds_all_that_is_needed_to_use_it(version):
    assert version.name == "1"
    assert sorted(path.name for path in (version / "assets.extra").iterdir()) == [
        "config.json",
        "model.keras",
        "model_card.md",
        "recipe.json",
    ]
    assert (version / "saved_model.pb").is_file()


def test_the_exported_model_loads_as_the_run_does(work, version, patches):
    run, exported = bundle.load(work / "runs/default"), bundle.load(version.parent)
    assert (exported.settings, exported.chosen) == (run.settings, run.chosen)
    np.testing.assert_array_equal(exported.model.predict_on_batch(patches), run.model.predict_on_batch(patches))


def test_each_export_is_the_next_version_and_keeps_the_others(work, tmp_path):
    (tmp_path / "femur" / "7" / "kept").mkdir(parents=True)
    found = export.export(bundle.load(work / "runs/default"), tmp_path / "femur", card="# Mine\n")
    assert found == tmp_path / "femur" / "8"
    assert (tmp_path / "femur" / "7" / "kept").is_dir()
    assert (found / "assets.extra" / "model_card.md").read_text() == "# Mine\n"
    assert sorted(path.name for path in (tmp_path / "femur").iterdir()) == ["7", "8"]  # nothing temporary is left


def test_the_model_card_has_the_validation_numbers(version):
    card = (version / "assets.extra" / "model_card.md").read_text()
    assert card.startswith("# Model card: femur\n")
    for words in ("Not for diagnosis", "1 x 1 x 2 mm", "16 x 16", "hip_03", "mean Dice 0.850", "cut-off: 0.5000"):
        assert words in card


def test_the_signature_takes_uint8_patches_by_stable_names(version, patches):
    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    (name, spec), *more = served.structured_input_signature[1].items()
    assert (name, spec.dtype, spec.shape.as_list(), more) == ("patches", tf.uint8, [None, 16, 16, 6], [])
    result = served(patches=tf.constant(patches))
    assert list(result) == ["probability"]
    expected = bright.network().predict_on_batch(patches)
    np.testing.assert_allclose(result["probability"], expected, atol=SERVED_TOLERANCE)


class _Output(ctypes.Structure):
    """TF_Output: an operation and the number of its output."""

    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


def run_in_c(folder: Path, patches: np.ndarray, names: tuple[str, str]) -> np.ndarray:
    """Load a SavedModel with TensorFlow's C library, as a server does, and run it on patches.

    Args:
      folder: of the version.
      patches: (N, S, S, C) uint8.
      names: of the input's and the output's operation.
    """
    place = Path(tf.sysconfig.get_lib())
    library = ctypes.CDLL(str(next(place.glob("libtensorflow_cc.so.*"))))
    for name in ("NewStatus", "NewGraph", "NewSessionOptions", "GraphOperationByName", "LoadSessionFromSavedModel"):
        getattr(library, f"TF_{name}").restype = ctypes.c_void_p
    for name in ("AllocateTensor", "TensorData"):
        getattr(library, f"TF_{name}").restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    pointer = ctypes.c_void_p
    status, graph = pointer(library.TF_NewStatus()), pointer(library.TF_NewGraph())
    tags = (ctypes.c_char_p * 1)(b"serve")
    options = pointer(library.TF_NewSessionOptions())
    session = pointer(
        library.TF_LoadSessionFromSavedModel(options, None, str(folder).encode(), tags, 1, graph, None, status)
    )
    assert library.TF_GetCode(status) == 0, library.TF_Message(status)
    shape = (ctypes.c_int64 * patches.ndim)(*patches.shape)
    tensor = pointer(library.TF_AllocateTensor(4, shape, patches.ndim, ctypes.c_size_t(patches.nbytes)))  # 4: uint8
    ctypes.memmove(library.TF_TensorData(tensor), patches.ctypes.data, patches.nbytes)
    ends = [_Output(library.TF_GraphOperationByName(graph, name.encode()), 0) for name in names]
    results = (pointer * 1)()
    library.TF_SessionRun(
        session, None,
        ctypes.byref(ends[0]), ctypes.byref(tensor), 1,
        ctypes.byref(ends[1]), results, 1,
        None, 0, None, status,
    )  # fmt: skip
    assert library.TF_GetCode(status) == 0, library.TF_Message(status)
    found = (ctypes.c_float * len(patches)).from_address(library.TF_TensorData(pointer(results[0])))
    return np.array(found, np.float32)[:, None]


def test_the_signature_runs_in_the_c_library_that_servers_are_made_of(version, patches):
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["serving_default"]
    ends = signature.inputs["patches"].name, signature.outputs["probability"].name
    served = run_in_c(version, patches, tuple(end.removesuffix(":0") for end in ends))
    np.testing.assert_allclose(served, bright.network().predict_on_batch(patches), atol=SERVED_TOLERANCE)


def test_an_export_without_a_recipe_is_refused(work, tmp_path):
    found = dataclasses.replace(bundle.load(work / "runs/default"), chosen=None)
    with pytest.raises(DataError, match="expected a recipe, found none"):
        export.export(found, tmp_path / "femur")
    assert not (tmp_path / "femur").exists()


def test_the_command_lists_every_file_and_says_how_to_go_on(work, tmp_path, capsys):
    (tmp_path / "card.md").write_text("# Card\n")
    export.main(ExportArguments(work, tmp_path / "femur", card=tmp_path / "card.md"))
    shown = capsys.readouterr().out
    files = [path for path in (tmp_path / "femur" / "1").rglob("*") if path.is_file()]
    assert files
    assert all(path.name in shown for path in files)
    assert f"Next: python -m femur_tf.segment IMAGE MASK --model {tmp_path / 'femur'}" in shown


def test_a_run_that_is_not_there_is_refused(work, tmp_path):
    with pytest.raises(DataError, match="runs/wide: expected a model"):
        export.main(ExportArguments(work, tmp_path / "femur", run="wide"))


def test_a_disk_that_fills_up_leaves_no_half_version(work, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        export.export(bundle.load(work / "runs/default"), tmp_path / "femur")
    assert list((tmp_path / "femur").iterdir()) == []
