"""Settings: their source, their range, and their way through JSON."""

from __future__ import annotations

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import pytest

from femur_tf import config, files
from femur_tf.errors import DataError

KINDS = [
    config.PatchConfig,
    config.NormalisationConfig,
    config.SamplingConfig,
    config.ModelConfig,
    config.AugmentConfig,
    config.TrainConfig,
    config.RecipeConfig,
    config.DataConfig,
    config.RunConfig,
]
PAPER = config.PRESETS["paper"]


@pytest.mark.parametrize(
    ("value", "source"),
    [
        (config.PatchConfig().size, 32),
        (PAPER.scales_mm, (0.0,)),  # one scale, every voxel
        (len(PAPER.model.filters), 3),  # 3 convolutions, 3 poolings and a dense layer: 7
        (len(PAPER.model.dense), 1),
        (PAPER.model.kernel, 3),
        (PAPER.model.dropout_conv, 0.5),
        (PAPER.model.dropout_dense, 0.5),
        (PAPER.model.bias, 0.10),
        (PAPER.train.optimizer, "sgd"),
        (PAPER.train.learning_rate, 1e-4),
        (PAPER.train.schedule, "constant"),
        (PAPER.train.batch, 256),
        (PAPER.train.epochs, 62),
        (PAPER.train.loss, "binary_crossentropy"),
    ],
)
def test_the_paper_preset_has_the_values_of_the_source(value, source):
    assert value == source


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        (PAPER.model.fusion, "late"),
        (PAPER.model.l2, 5e-4),
        (PAPER.train.momentum, 0.9),
        (PAPER.train.augment, config.AugmentConfig(False, 0, 0, 0)),
    ],
)
def test_where_the_source_is_silent_the_paper_preset_has_our_choice(value, choice):
    assert value == choice


def test_the_default_preset_is_the_defaults_and_what_older_files_lack():
    preset = config.PRESETS["default"]
    network = config.ModelConfig(dense=(64,), batch_norm=True, centre=5)
    assert (preset.model, preset.train) == (network, config.TrainConfig(batch=64))
    assert preset.scales_mm == config.DataConfig().patch.scales_mm  # what a plan writes is what it trains on


@pytest.mark.parametrize(
    ("scales_mm", "spacing_mm", "steps"),
    [
        ((0.0,), (1.8, 1.8, 5.2), ((1, 1, 1),)),  # 0 is every voxel
        ((0.0, 3.6), (1.8, 5.2, 1.8), ((1, 1, 1), (2, 1, 2))),  # 3.6 / 5.2 is nearest to 1
        ((1.0,), (1.8, 1.8, 5.2), ((1, 1, 1),)),  # never less than a voxel
        ((3.0,), (0.25, 0.5, 1.5), ((12, 6, 2),)),
    ],
)
def test_steps_are_whole_voxels_nearest_to_the_scale(scales_mm, spacing_mm, steps):
    patch = config.PatchConfig(spacing_mm=spacing_mm, scales_mm=scales_mm)
    assert patch.steps == steps
    assert patch.channels == 3 * len(steps)


@pytest.mark.parametrize(
    ("planes", "spacing_mm", "towers"),
    [
        ((), (1.0, 1.0, 1.0), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),  # axial, coronal, sagittal of each
        (("all", "all"), (1.0, 1.0, 1.0), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
        (("coronal", "axial"), (1.0, 1.0, 1.0), [(0, 1), (1, 0)]),
        (("finest", "sagittal"), (0.9, 5.2, 0.9), [(0, 1), (1, 2)]),  # a coronal stack
        (("finest", "sagittal"), (0.4, 0.4, 4.0), [(0, 0), (1, 2)]),  # an axial stack
        (("finest", "sagittal"), (1.0, 1.5, 1.0), [(0, 0), (0, 1), (0, 2), (1, 2)]),  # nearly isotropic
        (("finest", "sagittal"), (0.5, 3.0, 4.0), [(0, 0), (1, 2)]),  # one fine axis: the least coarse plane
    ],
)
def test_towers_are_the_chosen_planes_scale_by_scale(planes, spacing_mm, towers):
    patch = config.PatchConfig(spacing_mm=spacing_mm, scales_mm=(0.0, 3.6), planes=planes)
    assert list(patch.towers) == towers
    assert patch.channels == len(towers)


@hypothesis.given(spacing_mm=st.floats(1.0, 99), scale_mm=st.floats(0, 200))
def test_a_step_is_within_half_a_voxel_of_its_scale_or_one(spacing_mm, scale_mm):
    ((step, _, _),) = config.PatchConfig(spacing_mm=(spacing_mm, 1, 1), scales_mm=(scale_mm,)).steps
    assert step >= 1
    assert step == 1 or abs(step - scale_mm / spacing_mm) <= 0.5


def through_json(value):
    """Return a config after a way through JSON text."""
    return config.from_dict(type(value), json.loads(json.dumps(config.to_dict(value))))


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_come_back_from_json(kind):
    assert through_json(kind()) == kind()


@pytest.mark.parametrize("preset", config.PRESETS.values(), ids=config.PRESETS)
def test_presets_come_back_from_json(preset):
    assert through_json(preset) == preset


PATCHES = st.builds(
    config.PatchConfig,
    size=st.integers(2, 64),
    spacing_mm=st.tuples(*[st.floats(1.0, 99)] * 3),
    scales_mm=st.tuples(st.floats(0, 200), st.floats(0, 200)),
    planes=st.sampled_from([(), ("finest", "all"), ("coronal", "axial")]),
)
MODELS = st.builds(
    config.ModelConfig,
    filters=st.lists(st.integers(1, 512), min_size=1, max_size=4).map(tuple),
    dense=st.lists(st.integers(1, 512), max_size=2).map(tuple),
    fusion=st.sampled_from(["late", "early"]),
    dropout_dense=st.floats(0, 1, exclude_max=True),
)
RECIPES = st.builds(
    config.RecipeConfig,
    cutoff=st.floats(0, 1),
    steps=st.lists(
        st.builds(config.Step, st.sampled_from(["opening", "largest", "fill_planes"]), st.floats(0, 1e6)), max_size=4
    ).map(tuple),
)


@hypothesis.given(value=PATCHES | MODELS | RECIPES)
def test_any_setting_comes_back_from_json(value):
    assert through_json(value) == value


def test_settings_load_from_a_file(tmp_path):
    path = tmp_path / "config.json"
    files.write_json(path, config.to_dict(config.RunConfig()))
    assert config.load(config.RunConfig, path) == config.RunConfig()


def test_a_field_left_out_has_its_default():
    assert config.from_dict(config.PatchConfig, {"size": 16}) == config.PatchConfig(size=16)


def test_settings_saved_before_they_held_minutes_still_load():
    values = config.to_dict(config.RunConfig())
    assert values["train"].pop("minutes") is None
    assert config.from_dict(config.RunConfig, values) == config.RunConfig()


def test_minutes_come_back_from_json():
    assert through_json(config.TrainConfig(minutes=1.5)).minutes == 1.5


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (config.PatchConfig, {"size": 1}, "at least 2 samples"),
        (config.PatchConfig, {"spacing_mm": (1.0, 0.0, 1.0)}, r"in \(0, 100\) mm"),
        (config.PatchConfig, {"spacing_mm": (1.0, 100.0, 1.0)}, r"in \(0, 100\) mm"),
        (config.PatchConfig, {"scales_mm": ()}, "one scale or more"),
        (config.PatchConfig, {"scales_mm": (-1.0,)}, r"in \[0, 200\] mm"),
        (config.PatchConfig, {"spacing_mm": (0.5, 0.5, 0.5), "scales_mm": (130.0,)}, "cells of at most"),
        (config.PatchConfig, {"planes": ("oblique",)}, "all, finest or a plane's name"),
        (config.PatchConfig, {"planes": ("all", "all")}, "for each scale, or nothing"),
        (config.PatchConfig, {"padding": "zero"}, "'edge'"),
        (config.NormalisationConfig, {"lower_percentile": 50}, r"in \[0, 50\)"),
        (config.NormalisationConfig, {"upper_percentile": 100.1}, r"in \(50, 100\]"),
        (config.SamplingConfig, {"per_case": 0}, "at least 1 example"),
        (config.SamplingConfig, {"share_bone": float("nan")}, r"in \(0, 1\)"),
        (config.SamplingConfig, {"share_near": 0.7}, "of at most 1"),
        (config.SamplingConfig, {"seed": -1}, "at least 0"),
        (config.SamplingConfig, {"near_mm": 0}, r"in \(0, 1e6\) mm"),
        (config.SamplingConfig, {"near_volume": 0}, r"in \(0, 1e9\)"),
        (config.ModelConfig, {"filters": ()}, "one width or more"),
        (config.ModelConfig, {"filters": (8, 0)}, "each at least 1"),
        (config.ModelConfig, {"kernel": 0}, "at least 1"),
        (config.ModelConfig, {"pool": 0}, "at least 1"),
        (config.ModelConfig, {"dense": (0,)}, "widths of at least 1"),
        (config.ModelConfig, {"fusion": "middle"}, "'late' or 'early'"),
        (config.ModelConfig, {"centre": 2}, "0, or an odd number of samples"),
        (config.ModelConfig, {"centre": -1}, "0, or an odd number of samples"),
        (config.ModelConfig, {"dropout_conv": 1.0}, r"in \[0, 1\)"),
        (config.ModelConfig, {"dropout_dense": -0.1}, r"in \[0, 1\)"),
        (config.ModelConfig, {"l2": -1e-9}, "at least 0"),
        (config.AugmentConfig, {"intensity_scale": 1}, r"in \[0, 1\)"),
        (config.AugmentConfig, {"intensity_shift": -0.1}, r"in \[0, 1\)"),
        (config.AugmentConfig, {"rotation_degrees": 46}, r"in \[0, 45\] degrees"),
        (config.TrainConfig, {"learning_rate": 0}, r"in \(0, 10\)"),
        (config.TrainConfig, {"momentum": 1}, r"in \[0, 1\)"),
        (config.TrainConfig, {"batch": 0}, "at least 1"),
        (config.TrainConfig, {"epochs": 0}, "at least 1"),
        (config.TrainConfig, {"minutes": 0.0}, r"in \(0, 1e6\) minutes"),
        (config.TrainConfig, {"minutes": float("nan")}, r"in \(0, 1e6\) minutes"),
        (config.TrainConfig, {"bone_weight": 0}, "above 0"),
        (config.TrainConfig, {"focal_gamma": 0.5}, "at least 1"),
        (config.TrainConfig, {"patience": 0}, "at least 1 epoch"),
        (config.RecipeConfig, {"cutoff": 1.01}, r"in \[0, 1\]"),
        (config.Step, {"name": "closing", "value": 1}, "one of opening, "),
        (config.Step, {"name": "opening", "value": -1}, "at least 0"),
    ],
)
def test_a_value_out_of_range_is_named(kind, values, expected):
    field = list(values)[-1] if "closing" not in values.values() else "name"
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.{field}: expected .*{expected}.*\. Received: {field}="):
        kind(**values)


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (config.PatchConfig, {"sise": 32}, "sise.*PatchConfig"),
        (config.RunConfig, {"data": {"patch": {"sise": 32}}}, r"sise.*RunConfig\.data\.patch"),
        (config.Step, {"name": "opening"}, r"Step\.value"),
        (config.PatchConfig, {"size": "wide"}, r"PatchConfig\.size"),
        (config.PatchConfig, {"size": 1}, "at least 2 samples"),
        (config.PatchConfig, {"spacing_mm": [1, 2]}, r"PatchConfig\.spacing_mm"),
        (config.PatchConfig, {"size": 16.0}, r"expected a whole number\. Received: 16\.0 @ PatchConfig\.size"),
        (config.PatchConfig, {"size": True}, r"expected a whole number\. Received: True"),
        (config.PatchConfig, {"size": "16"}, r"expected a whole number\. Received: '16'"),
        (config.PatchConfig, {"scales_mm": "12"}, r"expected a number\. Received: '1'"),
        (config.ModelConfig, {"filters": [8, 2.5]}, r"Received: 2\.5 @ ModelConfig\.filters\[1\]"),
        (config.ModelConfig, {"l2": False}, r"expected a number\. Received: False"),
        (config.TrainConfig, {"mixed_precision": "no"}, r"expected true or false\. Received: 'no'"),
        (config.TrainConfig, {"mixed_precision": 0}, r"expected true or false\. Received: 0"),
        (config.TrainConfig, {"minutes": "3"}, r"expected a number\. Received: '3' @ TrainConfig\.minutes"),
        (config.TrainConfig, {"loss": "hinge"}, r"expected one of .*'focal'\. Received: 'hinge' @ TrainConfig\.loss"),
        (config.PatchConfig, [32], "PatchConfig"),
        (config.PatchConfig, None, "PatchConfig"),
    ],
)
def test_a_bad_file_names_itself_and_the_field(tmp_path, kind, values, named):
    path = tmp_path / "config.json"
    files.write_json(path, values)
    with pytest.raises(DataError, match=rf"config\.json: expected the fields of {kind.__name__}\. Received: .*{named}"):
        config.load(kind, path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        config.load(config.RunConfig, tmp_path / "config.json")


@pytest.mark.parametrize("kind", KINDS)
def test_settings_cannot_be_changed(kind):
    value = kind()
    field = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, getattr(value, field))


def test_what_a_file_does_not_name_was_not_done():
    """Files of earlier versions are read as what they are."""
    found = config.from_dict(config.DataConfig, {"patch": {}, "sampling": {}, "variation": {"copies": 3}})
    varied = found.variation
    assert (varied.shift, varied.warp, varied.tone, varied.blur_mm, varied.cut_mm) == (0,) * 5
    assert (found.sampling.near_volume, found.normalisation.upper_medians, found.sided) == (None, None, False)
