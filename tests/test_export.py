"""Exporting: a version holds all that is needed, and gives the model's own numbers wherever it is run."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import bright
import keras
import numpy as np
import pytest
import saved_model_runtime
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from femur_tf import bundle, config, export, files, lineage, predict, served
from femur_tf.errors import DataError, WriteError
from femur_tf.export import ExportArguments

SERVED_TOLERANCE = 1e-6
"""The same float32 graph, in batches of another length."""
OTHER_RUNTIME_TOLERANCE = 1e-5
"""float32 as well, with sums in another order."""
HALF_STEP = 2.0**-11
"""One step of float16 below 1."""
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
"""OpenVINO computes in bfloat16 where the processor can, which moves probabilities by 1e-3."""


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


@pytest.mark.slow
def test_a_version_holds_all_that_is_needed_to_use_it(version):
    assert version.name == "1"
    assert sorted(path.name for path in (version / "assets.extra").iterdir()) == [
        "config.json",
        "model.keras",
        "model_card.md",
        "recipe.json",
        "tf_serving_warmup_requests",
    ]
    assert (version / "saved_model.pb").is_file()


@pytest.mark.slow
def test_the_exported_model_loads_as_the_run_does(work, version, patches):
    run, exported = bundle.load(work / "runs/default"), bundle.load(version.parent)
    cases = tuple(lineage.pseudonym(case) for case in run.chosen.cases)
    assert (exported.settings, exported.chosen) == (run.settings, dataclasses.replace(run.chosen, cases=cases))
    np.testing.assert_array_equal(exported.model.predict_on_batch(patches), run.model.predict_on_batch(patches))


@pytest.mark.slow
def test_an_exported_model_is_without_its_optimizer(tmp_path, patches):
    run = bright.save_run(tmp_path / "run")
    model = keras.saving.load_model(run / "model.keras")
    model.compile("adam", "binary_crossentropy")
    model.fit(patches, np.zeros(len(patches)), verbose=0)
    model.save(run / "model.keras")
    assert keras.saving.load_model(run / "model.keras").optimizer is not None
    version = export.export(bundle.load(run), tmp_path / "femur")
    found = keras.saving.load_model(version / "assets.extra" / "model.keras")
    assert getattr(found, "optimizer", None) is None
    for one, other in zip(found.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_each_export_is_the_next_version_and_keeps_the_others(work, tmp_path):
    (tmp_path / "femur" / "7" / "kept").mkdir(parents=True)
    found = export.export(bundle.load(work / "runs/default"), tmp_path / "femur", card="# Mine\n")
    assert found == tmp_path / "femur" / "8"
    assert (tmp_path / "femur" / "7" / "kept").is_dir()
    assert (found / "assets.extra" / "model_card.md").read_text(encoding="utf-8") == "# Mine\n"
    assert sorted(path.name for path in (tmp_path / "femur").iterdir()) == [".versions.lock", "7", "8"]


def test_a_model_card_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "card.md").write_bytes("für".encode("latin-1"))
    with pytest.raises(DataError, match=r"card\.md: expected text in UTF-8"):
        export.main(export.ExportArguments(tmp_path, to=tmp_path / "femur", card=tmp_path / "card.md"))


def test_the_model_card_has_the_validation_numbers(version):
    card = (version / "assets.extra" / "model_card.md").read_text(encoding="utf-8")
    assert card.startswith("# Model card: femur\n")
    words = (
        "Not for diagnosis",
        "1 x 1 x 2 mm",
        "16 x 16",
        "validation cases: 1",
        "mean Dice 0.850",
        "cut-off: 0.5000",
    )
    assert all(one in card for one in words)


def test_the_signature_takes_uint8_patches_by_stable_names(version, patches):
    served = tf.saved_model.load(str(version)).signatures["serving_default"]
    (name, spec), *more = served.structured_input_signature[1].items()
    assert (name, spec.dtype, spec.shape.as_list(), more) == ("patches", tf.uint8, [None, 16, 16, 6], [])
    result = served(patches=tf.constant(patches))
    assert list(result) == ["probability"]
    expected = bright.network().predict_on_batch(patches)
    np.testing.assert_allclose(result["probability"], expected, atol=SERVED_TOLERANCE)


def test_a_version_answers_with_its_own_metadata_in_the_library_that_servers_are_made_of(version, work):
    answer = saved_model_runtime.Runtime(version).run("metadata", {"request": np.array([b""], object)})
    found = served.from_json(answer["metadata_json"].item().decode(), "the model")
    card = (version / "assets.extra" / "model_card.md").read_text(encoding="utf-8")
    assert found == served.metadata(bundle.load(version), "femur", card)
    assert found.config.patch == bundle.load(work / "runs/default").settings.data.patch


def test_no_name_of_a_case_leaves_with_a_model(tmp_path):
    found = bundle.load(bright.save_run(tmp_path / "run"))
    version = export.export(found, tmp_path / "saved")
    name = bright.CHOSEN.cases[0].encode()
    assert not [path for path in version.rglob("*") if path.is_file() and name in path.read_bytes()]
    exported = bundle.load(version)
    assert exported.origin.digest == found.origin.digest
    with pytest.raises(DataError, match=r"not seen the test cases\. Received: one made with hip_03"):
        lineage.require_unseen(exported.folder, ["hip_02", "hip_03"], "test", exported.chosen.cases)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(type(keras.export.ExportArchive()), "write_out", full)
    found = bundle.load(bright.save_run(tmp_path / "run"))
    with pytest.raises(WriteError, match=r"expected room for a saved model\. Received: No space left on device\. Free"):
        export.export(found, tmp_path / "saved")


def test_the_shipped_version_answers_with_what_its_files_hold():
    shipped = bundle.load(bundle.shipped())
    answer = saved_model_runtime.Runtime(shipped.folder.parent).run("metadata", {"request": np.array([b""], object)})
    found = served.from_json(answer["metadata_json"].item().decode(), "the shipped model")
    card = (shipped.folder / "model_card.md").read_text(encoding="utf-8")
    assert found == served.metadata(shipped, bundle.SHIPPED, card)


def test_every_signature_is_of_the_kind_that_the_server_predicts_with(version):
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    (graph,) = saved.meta_graphs
    assert list(graph.meta_info_def.tags) == ["serve"]
    names = set(saved_model_runtime.read_signatures(version))
    assert {graph.signature_def[name].method_name for name in names} == {"tensorflow/serving/predict"}


def test_a_card_says_which_planes_each_scale_has():
    rule = config.PatchConfig(size=16, spacing_mm=(1.0, 5.0, 1.0), scales_mm=(0.0, 4.0), planes=("finest", "all"))
    data = dataclasses.replace(bright.SETTINGS.data, patch=rule)
    settings = dataclasses.replace(bright.SETTINGS, data=data)
    found = export.model_card(bundle.Bundle(Path(), None, settings, None), "femur")
    assert "16 x 16 samples; steps (1, 1, 1) voxels: coronal; steps (4, 1, 4) voxels: axial, coronal, sagittal" in found


def with_signature(version, name, folder):
    """Copy a SavedModel with `name` as its only signature, called serving_default, the one that OpenVINO reads."""
    shutil.copytree(version, folder)
    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    chosen = type(signatures[name]).FromString(signatures[name].SerializeToString())
    for other in [key for key in signatures if not key.startswith("__")]:
        del signatures[other]
    signatures["serving_default"].CopyFrom(chosen)
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


@pytest.mark.slow
def test_openvino_gives_the_same_map(work, tmp_path, rng):
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    found = bundle.load(work / "runs/default")
    rule = dataclasses.replace(bright.RULE, planes=("coronal", "coronal"))
    settings = dataclasses.replace(found.settings, data=config.DataConfig(patch=rule))
    found = dataclasses.replace(found, settings=settings, model=bright.network(settings))
    export.write_saved_model(found, tmp_path / "1")
    core = openvino.Core()
    plain = core.compile_model(with_signature(tmp_path / "1", "segment", tmp_path / "2"), "CPU", F32)
    for shape in ((9, 7, 5), (4, 6, 8)):
        grid = rng.integers(0, 256, shape, np.uint8)
        expected = predict.Predictor(found.model, rule).probability_map(grid).astype(np.float32)
        np.testing.assert_allclose(plain(grid[None])[0][0].astype(np.float32), expected, atol=HALF_STEP, rtol=0)


def test_openvino_gives_the_same_probabilities(version, patches):
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    found = openvino.Core().compile_model(version, "CPU", F32)(patches)[0]
    np.testing.assert_allclose(found, bright.network().predict_on_batch(patches), atol=OTHER_RUNTIME_TOLERANCE)


def test_an_export_without_a_recipe_is_refused(work, tmp_path):
    found = dataclasses.replace(bundle.load(work / "runs/default"), chosen=None)
    with pytest.raises(DataError, match="expected a recipe, found none"):
        export.export(found, tmp_path / "femur")
    assert not (tmp_path / "femur").exists()


@pytest.mark.slow
def test_the_command_lists_every_file_and_says_how_to_go_on(work, tmp_path, capsys):
    (tmp_path / "card.md").write_text("# Card\n")
    export.main(ExportArguments(work, tmp_path / "femur", card=tmp_path / "card.md"))
    shown = capsys.readouterr().out
    files = [path for path in (tmp_path / "femur" / "1").rglob("*") if path.is_file()]
    assert files
    assert all(path.name in shown for path in files)
    assert f"Next: python -m femur_tf.segment IMAGE MASK --model {tmp_path / 'femur'}" in shown


@pytest.fixture
def unsaved(monkeypatch):
    """Leave out what takes seconds and is not looked at: the SavedModel."""
    monkeypatch.setattr(export, "write_saved_model", lambda *_: [])


def test_two_exports_at_once_do_not_take_the_same_number(work, tmp_path, unsaved):
    found = bundle.load(work / "runs/default")
    with (
        files.locked(tmp_path / "femur" / "versions", ""),
        pytest.raises(DataError, match=r"femur/versions: another process is working here\. Wait for it to end\."),
    ):
        export.export(found, tmp_path / "femur")
    assert export.export(found, tmp_path / "femur").name == "1"


def test_the_folder_one_is_in_has_its_name(work, tmp_path, unsaved, monkeypatch):
    found = bundle.load(work / "runs/default")
    (tmp_path / "femur").mkdir()
    monkeypatch.chdir(tmp_path / "femur")
    assert export.export(found, Path()) == Path("1")
    card = tmp_path / "femur" / "1" / "assets.extra" / "model_card.md"
    assert card.read_text(encoding="utf-8").startswith("# Model card: femur\n")


def test_a_model_that_knows_nothing_usual_says_so(work, tmp_path, unsaved, capsys):
    found = bundle.load(work / "runs/default")
    export.export(dataclasses.replace(found, cohort=None), tmp_path / "femur")
    assert "finds nothing unusual but empty masks" in capsys.readouterr().err


def test_an_empty_card_is_a_card(work, tmp_path, unsaved):
    version = export.export(bundle.load(work / "runs/default"), tmp_path / "femur", card="")
    assert (version / "assets.extra" / "model_card.md").read_bytes() == b""


def test_a_file_in_the_place_of_the_folder_is_refused_first(tmp_path):
    (tmp_path / "femur").write_text("")
    with pytest.raises(DataError, match=r"expected a place for a file\. Received: .*femur, a file"):
        export.main(ExportArguments(tmp_path, tmp_path / "femur"))


def test_a_run_that_is_not_there_is_refused(work, tmp_path):
    with pytest.raises(DataError, match="runs/wide: expected a model"):
        export.main(ExportArguments(work, tmp_path / "femur", run="wide"))


def test_a_disk_that_fills_up_leaves_no_half_version(work, tmp_path, monkeypatch):
    def full(source, target):
        assert not bundle.versions(tmp_path / "femur")  # what a server that polls sees while it is being written
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        export.export(bundle.load(work / "runs/default"), tmp_path / "femur")
    assert [path.name for path in (tmp_path / "femur").iterdir()] == [".versions.lock"]
