"""A trained model with its settings and recipe, in one folder."""

from __future__ import annotations

import dataclasses
import json
import shutil

import bright
import numpy as np
import pytest
import tiny

from data_prep import fitted
from femur_tf import bundle, calibration, config, evaluator, files, study, training, volume
from femur_tf.errors import DataError
from femur_tf.volume import Volume

HALF_TOLERANCE = 2**-11
"""A map of float16 is within half of its last place of the network's float32, 2**-12 at most; the rest is summation."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder, for tests that only read it."""
    return bright.save_run(tmp_path_factory.mktemp("work") / "runs" / "default")


@pytest.fixture
def copy(run, tmp_path):
    """A run folder of one's own."""
    return shutil.copytree(run, tmp_path / "run")


@pytest.fixture
def image():
    """A scan on the working grid's spacing, its first axis to the left."""
    return Volume(tiny.scan("hip_09")[::-1], np.diag([-1.0, 1.0, 2.0, 1.0]))


@pytest.mark.parametrize(
    ("where", "asked", "expected"),
    [
        (".", ".", "."),  # a run folder
        ("3/assets.extra", ".", "3/assets.extra"),  # a saved model
        ("3/assets.extra", "3", "3/assets.extra"),  # one version of it
        ("3/assets.extra", "3/assets.extra", "3/assets.extra"),
    ],
)
def test_a_model_is_found_in_a_run_a_saved_model_and_a_version(tmp_path, where, asked, expected):
    (tmp_path / where).mkdir(parents=True, exist_ok=True)
    (tmp_path / where / bundle.MODEL).touch()
    assert bundle.find(tmp_path / asked) == tmp_path / expected


def test_the_highest_version_is_taken_by_number(tmp_path):
    for number in ("9", "10", "2", "notes"):
        (tmp_path / number / bundle.EXTRA).mkdir(parents=True)
        (tmp_path / number / bundle.EXTRA / bundle.MODEL).touch()
    assert [path.name for path in bundle.versions(tmp_path)] == ["2", "9", "10"]
    assert bundle.find(tmp_path) == tmp_path / "10" / bundle.EXTRA


def test_a_version_without_a_model_is_passed_over(tmp_path):
    (tmp_path / "1" / bundle.EXTRA).mkdir(parents=True)
    (tmp_path / "1" / bundle.EXTRA / bundle.MODEL).touch()
    (tmp_path / "2" / "variables").mkdir(parents=True)
    assert bundle.find(tmp_path) == tmp_path / "1" / bundle.EXTRA


def test_a_folder_that_is_not_there_has_no_versions(tmp_path):
    assert bundle.versions(tmp_path / "none") == []


def test_what_was_saved_is_loaded(run):
    found = bundle.load(run)
    assert (found.folder, found.settings, found.chosen) == (run, bright.SETTINGS, bright.CHOSEN)
    assert found.recipe == bright.RECIPE
    for one, other in zip(found.model.get_weights(), bright.network().get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_working_map_is_the_networks_own_answer_at_each_voxel(run, image):
    found = bundle.load(run)
    working = study.prepare(image, found.settings.data)
    map_ = bundle.working_map(found, working)
    centres = np.stack(np.unravel_index(np.arange(0, working.data.size, 97), working.shape), axis=1)
    expected = evaluator.by_patches(found.model, working.data, bright.RULE, centres)
    assert map_.data.dtype == np.float16
    np.testing.assert_array_equal(map_.affine, working.affine)
    np.testing.assert_allclose(map_.data[tuple(centres.T)], expected, atol=HALF_TOLERANCE)


def test_a_map_comes_back_to_the_images_own_axes(run, image):
    found = bundle.load(run)
    map_ = bundle.working_map(found, study.prepare(image, found.settings.data))
    own = volume.from_working(map_, image)
    assert own.dtype == np.float32
    np.testing.assert_array_equal(own, map_.data[::-1].astype(np.float32))  # no interpolation: the spacings agree


def test_a_run_that_was_not_evaluated_loads_but_has_no_recipe(copy):
    (copy / bundle.RECIPE).unlink()
    found = bundle.load(copy)
    assert found.chosen is None
    with pytest.raises(DataError, match=r"recipe\.json: expected a recipe, found none.*femur_tf\.evaluate"):
        _ = found.recipe


@pytest.mark.parametrize(("make", "received"), [(False, "no such folder"), (True, "a folder without one")])
def test_a_folder_without_a_model_is_refused(tmp_path, make, received):
    folder = tmp_path / "model"
    if make:
        folder.mkdir()
    with pytest.raises(DataError, match=f"model: expected a model: a run folder.*Received: {received}"):
        bundle.load(folder)


@pytest.mark.parametrize("name", [bundle.CONFIG, bundle.RECIPE])
@pytest.mark.parametrize("version", [2, None])
def test_another_format_version_is_refused(copy, name, version):
    values = json.loads((copy / name).read_text(encoding="utf-8")) | {"format_version": version}
    (copy / name).write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"{name}: expected format_version 1. Received: {version}.*train again"):
        bundle.load(copy)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (bundle.CONFIG, "{", "expected JSON"),
        (bundle.CONFIG, "[]", "expected format_version 1. Received: None"),
        (bundle.CONFIG, '{"format_version": 1, "data": 3}', "expected the fields of RunConfig"),
        (bundle.RECIPE, '{"format_version": 1}', "expected the fields of ChosenRecipe"),
    ],
)
def test_damaged_settings_are_named(copy, name, text, words):
    (copy / name).write_text(text)
    with pytest.raises(DataError, match=f"{name}: {words}"):
        bundle.load(copy)


def test_a_model_without_its_settings_is_refused(copy):
    (copy / bundle.CONFIG).unlink()
    with pytest.raises(DataError, match=r"config\.json: expected the settings beside the model"):
        bundle.load(copy)


@pytest.mark.parametrize("damage", ["no zip", "cut short", "a byte turned"])
def test_a_damaged_model_is_named(copy, damage):
    path = copy / bundle.MODEL
    data = bytearray(path.read_bytes())
    if damage == "no zip":
        data = bytearray(b"no model")
    elif damage == "cut short":
        del data[len(data) // 2 :]
    else:
        place = data.index(b"class_name")  # in the description of the network, stored as it is
        data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"model\.keras: expected a Keras model that can be loaded"):
        bundle.load(copy)


def test_the_digest_is_that_of_all_that_makes_a_map(tmp_path):
    run = bright.save_run(tmp_path / "run")
    digest = bundle.load(run).digest
    files.remove(run / bundle.RECIPE)
    assert bundle.load(run).digest == digest  # a recipe without a calibration makes no map
    fitted = dataclasses.replace(bright.CHOSEN, calibration=calibration.Calibration(2.0, 1.0))
    files.write_json(run / bundle.RECIPE, config.to_dict(fitted))
    assert bundle.load(run).digest != digest
    assert bundle.load(run, calibrated=False).digest == digest


def test_the_digest_knows_nothing_of_training(tmp_path):
    """So that a setting of it that comes later tells no masks apart."""
    found = bundle.load(bright.save_run(tmp_path / "run"))
    data = found.settings.data
    trained = dataclasses.replace(data, sided=True, variation=fitted.VARIATION)
    read = dataclasses.replace(data, normalisation=config.NormalisationConfig(upper_medians=2.0))
    same, other = (
        dataclasses.replace(found, settings=dataclasses.replace(found.settings, data=one)) for one in (trained, read)
    )
    assert same.digest == found.digest != other.digest


def test_a_network_trained_in_mixed_precision_computes_in_float32(tmp_path):
    settings = dataclasses.replace(bright.SETTINGS, train=config.TrainConfig(mixed_precision=True))
    folder = bright.save_run(tmp_path / "run", settings=settings)
    plain = bundle.load(folder)
    mixed = training.compiled(settings)
    assert {layer.compute_dtype for layer in mixed.layers} != {"float32"}
    mixed.set_weights(bright.network().get_weights())
    mixed.save(folder / bundle.MODEL)
    found = bundle.load(folder)
    assert {layer.compute_dtype for layer in found.model.layers} == {"float32"}
    patches = np.random.default_rng(1).integers(0, 256, (64, *plain.model.input_shape[1:]), np.uint8)
    np.testing.assert_array_equal(found.model.predict(patches, verbose=0), plain.model.predict(patches, verbose=0))
