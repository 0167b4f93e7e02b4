"""Probability maps: dense, in blocks, and patch by patch."""

import dataclasses

import keras
import numpy as np
import pytest

from femur_tf import memory, model, predict
from femur_tf.config import ModelConfig, PatchConfig
from femur_tf.patches import Cutter

HALF_TOLERANCE = 2**-11
"""A float16 in [0, 1] is within 2**-12 of what was rounded; the rest is the order of sums."""
PATCHWISE_TOLERANCE = 1e-6
"""The same network on the same bytes, in batches of another length."""
RULE = PatchConfig(size=12, spacing_mm=(1.0, 2.0, 1.0), scales_mm=(0.0, 4.0))
"""Steps (1, 1, 1) and (4, 2, 4)."""
SHAPE = (7, 5, 6)
"""No step of the coarse scale divides it."""


def network_of(rule=RULE, **settings):
    """Return a network whose probabilities spread over (0, 1)."""
    keras.utils.set_random_seed(1)
    network = model.build(ModelConfig(filters=(3, 4), dense=(5,), **settings), rule)
    kernel, bias = network.layers[-1].get_weights()
    network.layers[-1].set_weights([kernel * 8, bias - 2])
    return network


def volume(shape=SHAPE):
    """Return a random uint8 volume."""
    return np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)


def voxels(shape=SHAPE):
    """Return every voxel, (N, 3)."""
    return np.argwhere(np.ones(shape, bool))


def reference(network, grid, rule=RULE):
    """Return what the network says of every patch."""
    return np.asarray(network(Cutter.of(grid, rule).cut(voxels(grid.shape))))[:, 0].reshape(grid.shape)


def test_patch_by_patch_is_the_network_on_each_patch(monkeypatch):
    monkeypatch.setattr(predict, "PATCH_BATCH", 100)  # 210 voxels: the last batch is short
    network, grid = network_of(), volume()
    found = predict.by_patches(network, grid, RULE, voxels())
    assert (found.shape, found.dtype) == ((210,), np.float32)
    np.testing.assert_allclose(found.reshape(SHAPE), reference(network, grid), rtol=0, atol=PATCHWISE_TOLERANCE)


def test_the_map_is_the_network_at_every_voxel():
    network, grid = network_of(), volume()
    found = predict.probability_map(network, grid, RULE)
    expected = reference(network, grid)
    assert (found.shape, found.dtype) == (SHAPE, np.float16)
    assert np.ptp(expected) > 100 * HALF_TOLERANCE  # the network tells voxels apart
    np.testing.assert_allclose(found, expected, rtol=0, atol=HALF_TOLERANCE)


def test_planes_one_by_one_change_nothing(monkeypatch):
    network, grid = network_of(), volume()
    whole = predict.probability_map(network, grid, RULE)
    monkeypatch.setattr(memory, "BATCH_BYTES", 1)
    np.testing.assert_allclose(predict.probability_map(network, grid, RULE), whole, rtol=0, atol=HALF_TOLERANCE)


@pytest.mark.parametrize("block", [(4, 2, 4), (4, 4, 8), (8, 2, 4)])
def test_blocks_change_nothing(monkeypatch, block):
    network, grid = network_of(), volume()
    whole = predict.probability_map(network, grid, RULE)
    plan_blocks = memory.plan_blocks

    def smaller(*arguments):
        return dataclasses.replace(plan_blocks(*arguments), shape=block)

    monkeypatch.setattr(memory, "plan_blocks", smaller)
    np.testing.assert_allclose(predict.probability_map(network, grid, RULE), whole, rtol=0, atol=HALF_TOLERANCE)


def test_a_network_of_one_coarse_scale_gives_equal_values_within_a_cell():
    rule = PatchConfig(size=12, scales_mm=(3.0,))
    found = predict.probability_map(network_of(rule), volume(), rule)
    cells = found[::3, ::3, ::3]
    np.testing.assert_array_equal(found, cells.repeat(3, 0).repeat(3, 1).repeat(3, 2)[:7, :5, :6])


def test_a_network_without_dense_form_is_evaluated_patch_by_patch_with_a_warning(capsys):
    network, grid = network_of(fusion="early"), volume()
    found = predict.probability_map(network, grid, RULE)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, reference(network, grid), rtol=0, atol=HALF_TOLERANCE)
    shown = capsys.readouterr().err
    assert "early fusion" in shown
    assert "Going on patch by patch" in shown


def test_a_network_on_other_patches_is_refused():
    with pytest.raises(ValueError, match=r"patches of shape \(12, 12, 3\)\. Received: \(12, 12, 6\)"):
        predict.probability_map(network_of(), volume(), PatchConfig(size=12))


def test_no_centre_gives_no_probability():
    assert predict.by_patches(network_of(), volume(), RULE, np.empty((0, 3), int)).shape == (0,)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 40, 2)])
def test_volumes_thinner_than_a_patch_are_evaluated(shape):
    network, grid = network_of(), volume(shape)
    found = predict.probability_map(network, grid, RULE)
    np.testing.assert_allclose(found, reference(network, grid), rtol=0, atol=HALF_TOLERANCE)


def test_a_constant_volume_gives_one_value():
    found = predict.probability_map(network_of(), np.full(SHAPE, 9, np.uint8), RULE)
    assert np.ptp(found) <= HALF_TOLERANCE
