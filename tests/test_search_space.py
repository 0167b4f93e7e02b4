"""The search space: every point is a network that can be built, evaluated densely, and afforded."""

import dataclasses
import json

import hypothesis
import numpy as np
import pytest
import searches
import tiny
from hypothesis import strategies as st

from femur_tf import config, cost, dense, model
from femur_tf.config import ModelConfig, PatchConfig
from femur_tf.errors import DataError
from tuning.search_space import NONE, Space

CORONAL = PatchConfig(spacing_mm=(0.7, 4.0, 0.7), scales_mm=(0.0, 3.6), planes=("finest", "all"))
FULL = Space(config.DataConfig(patch=CORONAL), 250_000)
RULE = PatchConfig(size=8, spacing_mm=(1.0, 1.0, 2.0), scales_mm=(0.0, 4.0))


def test_the_default_of_the_space_is_the_hand_made_default():
    settings, made = FULL.settings(FULL.default()), config.PRESETS["default"]
    assert (settings.model, settings.train) == (made.model, made.train)
    assert settings.data.patch == CORONAL


@pytest.mark.parametrize(
    ("network", "rule", "expected"),
    [
        # 3 x 3 kernels: 9 * 2, then a 3 x 3 map * 2 * 4 units; 3 planes; 4 to the output.
        (ModelConfig(filters=(2,), dense=(4,)), PatchConfig(size=8), 3 * (18 + 72) + 4),
        (ModelConfig(filters=(2,), dense=()), PatchConfig(size=8), 3 * (18 + 18)),
        # The coarse scale has cells of 4 * 4 * 2 voxels.
        (ModelConfig(filters=(2,), dense=(4,)), RULE, 3 * (18 + 72) * (1 + 1 / 32) + 4),
    ],
)
def test_the_cost_is_counted(network, rule, expected):
    assert cost.macs_per_voxel(network, rule) == expected


def test_the_cost_of_a_patch_is_counted():
    # A 3 x 3 convolution at 6 x 6 places, then a 3 x 3 map * 2 * 4 units; 3 planes; 4 to the output.
    network = ModelConfig(filters=(2,), dense=(4,))
    assert cost.macs_per_patch(network, PatchConfig(size=8)) == 3 * (36 * 18 + 72) + 4


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [("layers", 0.0, 2), ("layers", 1.0, 3), ("l2", 0.0, 1e-7), ("l2", 0.5, 1e-5), ("optimizer", 0.5, "adamw")],
)
def test_a_place_has_a_value(name, place, value):
    parameter = next(p for p in FULL.parameters if p.name == name)
    assert parameter.at(place) == pytest.approx(value) if isinstance(value, float) else parameter.at(place) == value


def test_parameters_without_effect_stand_at_their_defaults():
    point = FULL.canonical({"layers": 2, "filters_3": 32, "loss": "focal", "bone_weight": 3.0})
    assert (point["filters_3"], point["bone_weight"]) == (128, 1.0)
    assert {"filters_3", "bone_weight"}.isdisjoint(FULL.active(point))
    assert "focal_gamma" in FULL.active(point)


def test_scales_are_among_those_of_the_records():
    point = FULL.canonical({"planes_0mm": NONE, "planes_3.6mm": "finest"})
    rule = FULL.settings(point).data.patch
    assert (rule.scales_mm, rule.planes) == ((3.6,), ("finest",))
    assert FULL.settings({**point, "centre": 5}).model.centre == 5
    assert FULL.fault({**point, "planes_3.6mm": NONE}) == "it reads no scale"


def test_spaces_of_other_parameters_have_another_digest():
    others = [
        dataclasses.replace(CORONAL, scales_mm=(0.0, 7.2)),  # another name
        dataclasses.replace(CORONAL, planes=("all", "all")),
        dataclasses.replace(CORONAL, size=64),  # other choices
    ]
    digests = {Space(config.DataConfig(patch=rule), 1e6).digest for rule in others}
    assert len(digests - {FULL.digest}) == len(others)
    assert Space(FULL.data, 1e6).digest == FULL.digest  # the limit on cost is a setting of its own


def test_shares_of_bone_are_those_apart_from_the_records_own():
    (shares,) = (parameter.choices for parameter in FULL.parameters if parameter.name == "bone_share")
    assert shares == (0.2, 0.3, 0.35, 0.4, 0.5, 0.6)


def test_a_share_of_bone_as_in_the_records_changes_nothing():
    assert FULL.settings(FULL.default()).train.bone_share is None
    assert FULL.settings({**FULL.default(), "bone_share": 0.6}).train.bone_share == 0.6


@hypothesis.given(st.integers(0, 10_000))
def test_a_point_is_the_same_after_it_was_written(seed):
    point = FULL.draw(np.random.default_rng(seed))
    assert FULL.canonical(json.loads(json.dumps(point))) == point


@hypothesis.given(st.integers(0, 10_000))
def test_a_values_place_leads_back_to_it(seed):
    point = FULL.draw(np.random.default_rng(seed))
    for parameter in FULL.parameters:
        value = parameter.at(parameter.place(point[parameter.name]))
        assert value == (pytest.approx(point[parameter.name]) if isinstance(value, float) else point[parameter.name])


@hypothesis.given(st.integers(0, 10_000), st.floats(3e4, 5e5))
def test_every_point_of_the_space_is_under_its_cost(seed, max_cost):
    space = Space(config.DataConfig(patch=CORONAL), max_cost)
    point = space.draw(np.random.default_rng(seed))
    fault = space.fault(point)
    if fault is None:
        settings = space.settings(point)
        assert cost.macs_per_voxel(settings.model, settings.data.patch) <= max_cost
        assert settings.model.fusion == "late"
        assert cost.map_sizes(settings.model, settings.data.patch.size)[-1] >= 1
    elif "costs" in fault:
        assert space.cost(point) > max_cost


@pytest.mark.parametrize("seed", range(6))
def test_points_are_built_and_their_cost_is_that_of_dense_evaluation(seed):
    space = searches.space() if seed % 2 else FULL
    rng = np.random.default_rng(seed)
    point = next(p for p in iter(lambda: space.draw(rng), None) if space.fault(p) is None)
    settings = space.settings(point)
    network = dense.convert(model.build(settings.model, settings.data.patch), settings.data.patch)
    assert network.macs_per_voxel == pytest.approx(space.cost(point))


@pytest.mark.parametrize(("size", "layers"), [(8, (1,)), (16, (1, 2)), (32, (2, 3)), (64, (3, 4)), (200, (3, 4))])
def test_as_many_layers_as_a_patch_allows(size, layers):
    rule = dataclasses.replace(tiny.RULE, size=size)
    parameter = Space(config.DataConfig(patch=rule), 1e7).parameters[0]
    assert (parameter.name, parameter.choices) == ("layers", layers)


@pytest.mark.parametrize(("size", "centres"), [(32, (0, 3, 5)), (7, (0, 3, 5)), (6, (0, 3)), (4, (0,))])
def test_a_centre_lies_within_the_first_maps_of_a_patch(size, centres):
    space = Space(config.DataConfig(patch=dataclasses.replace(tiny.RULE, size=size)), 1e7)
    parameter = next(p for p in space.parameters if p.name == "centre")
    assert parameter.choices == centres
    assert parameter.default in centres


def test_a_scale_that_no_preset_has_is_read_where_it_is_alone():
    rule = PatchConfig(size=16, scales_mm=(7.0,), planes=("coronal",))
    space = Space(config.DataConfig(patch=rule), 1e6)
    assert space.default()["planes_7mm"] == "coronal"
    assert space.fault(space.default()) is None
    assert all(space.scales(space.draw(np.random.default_rng(seed))) == [(7.0, "coronal")] for seed in range(20))


@pytest.mark.parametrize(
    ("spacing_mm", "scales_mm", "choices"),
    [
        ((1.0, 5.0, 1.0), (0.0, 4.0), (NONE, "finest", "all")),
        ((1.0, 5.0, 1.0), (0.0,), ("finest", "all")),
        ((1.0, 1.0, 1.0), (0.0, 4.0), (NONE, "all")),
        ((1.0, 1.0, 1.0), (0.0,), ("all",)),
    ],
)
def test_planes_that_are_one_network_are_one_choice(spacing_mm, scales_mm, choices):
    space = Space(config.DataConfig(patch=PatchConfig(spacing_mm=spacing_mm, scales_mm=scales_mm)), 1e6)
    parameter = next(p for p in space.parameters if p.name == "planes_0mm")
    assert parameter.choices == choices
    assert parameter.default in choices


def test_a_cost_below_the_smallest_network_is_refused():
    with pytest.raises(DataError, match=r"--max-cost: expected at least \d+ multiply-adds a voxel.*Received: 10"):
        searches.space(10)


def test_early_fusion_has_no_cost_a_voxel():
    with pytest.raises(DataError, match="Expected a network of late fusion"):
        cost.macs_per_voxel(ModelConfig(fusion="early"), PatchConfig())
