"""A network on blocks gives what the patch network gives for each voxel's patch, and the same gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from femur_tf import block_dataset, block_network, blocks
from femur_tf.config import BlockConfig, PatchConfig
from femur_tf.dense_steps import NotDenseError, TowerNormalisation
from femur_tf.patches import Cutter
from tests import networks

EXACT = 2e-6
"""Sums of the same float32 products in another order, for probabilities and for gradients of the order of 1."""
SHAPE = (19, 11, 17)
RULE = PatchConfig(size=12, spacing_mm=(1.0, 2.0, 1.0), scales_mm=(0.0, 4.0), planes=("finest", "all"))
ODD = PatchConfig(size=11, spacing_mm=(1.0, 1.0, 1.0), scales_mm=(0.0, 3.0))

SETTINGS = {
    "every voxel": (networks.RULE, BlockConfig(apart=(1, 1, 1), samples=(6, 4, 5))),
    "poolings strided": (networks.RULE, BlockConfig(apart=(4, 2, 4), samples=(3, 4, 3))),
    "beyond the network's stride": (networks.RULE, BlockConfig(apart=(8, 8, 8), samples=(2, 2, 2))),
    "cells that do not divide": (networks.RULE, BlockConfig(apart=(6, 3, 5), samples=(3, 3, 2))),
    "chosen planes": (RULE, BlockConfig(apart=(8, 1, 8), samples=(2, 6, 2))),
    "odd patches": (ODD, BlockConfig(apart=(4, 2, 3), samples=(3, 3, 3))),
    "longer than the volume": (networks.RULE, BlockConfig(apart=(4, 4, 4), samples=(6, 4, 5))),
}
NORMALISED = SETTINGS["poolings strided"]


def normalised(rule: PatchConfig) -> keras.Sequential:
    """Return a network with batch normalisation whose statistics are not those that it starts with."""
    network = networks.spread(rule, batch_norm=True)
    rng = np.random.default_rng(1)
    for variable in network.non_trainable_variables:
        if variable.name.startswith("moving"):
            variable.assign(rng.uniform(0.01, 0.1, variable.shape))
    return network


def batch_of(grid: np.ndarray, rule: PatchConfig, block: BlockConfig, corners: np.ndarray) -> block_dataset.Batch:
    """Return blocks as the network takes them."""
    cut = [blocks.cut(Cutter.of(grid, rule), block, corner) for corner in corners]
    planes = tuple(tf.constant(np.stack(parts)[:, :, :-1, :-1]) for parts in zip(*cut, strict=True))
    offsets = tuple(
        tuple(
            tf.constant(
                np.stack([blocks.offsets(block, axis, step, int(corner[axis])) for corner in corners]).astype(np.int32)
            )
            for axis, step in enumerate(steps)
        )
        for steps in rule.steps
    )
    return block_dataset.Batch(planes, offsets)


def inside(block: BlockConfig, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all voxels of some blocks, block by block, and which of them lie in the volume."""
    places = np.concatenate(
        [np.stack(np.meshgrid(*blocks.voxels(block, c), indexing="ij"), -1).reshape(-1, 3) for c in corners]
    )
    return places, (places < SHAPE).all(axis=1)


@pytest.fixture(params=[*SETTINGS, "normalised"])
def case(request):
    """A network, its patches and blocks."""
    rule, block = SETTINGS.get(request.param, NORMALISED)
    return normalised(rule) if request.param == "normalised" else networks.spread(rule), rule, block


def test_probabilities_are_those_of_the_patches(case):
    network, rule, block = case
    grid, corners = networks.volume(SHAPE), np.array([[0, 0, 0], [3, 1, 2], [5, 2, 1]])
    found = np.asarray(block_network.BlockNetwork(network, rule, block)(batch_of(grid, rule, block, corners)))[:, 0]
    places, there = inside(block, corners)
    expected = np.asarray(network(Cutter.of(grid, rule).cut(places[there])))[:, 0]
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(found[there], expected, atol=EXACT)


def test_the_gradient_is_that_of_the_patches_together(case):
    network, rule, block = case
    grid, corners = networks.volume(SHAPE), np.array([[1, 0, 2]])
    places, there = inside(block, corners)
    weights = np.random.default_rng(0).normal(size=there.sum()).astype(np.float32)

    def gradient(function):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(function() * weights)
        return tape.gradient(loss, network.trainable_variables)

    on_blocks = block_network.BlockNetwork(network, rule, block)
    assert [v.path for v in on_blocks.trainable_variables] == [v.path for v in network.trainable_variables]
    patches = Cutter.of(grid, rule).cut(places[there])
    batch = batch_of(grid, rule, block, corners)
    found = gradient(lambda: tf.boolean_mask(on_blocks(batch)[:, 0], there))
    for one, other in zip(found, gradient(lambda: network(patches)[:, 0]), strict=True):
        np.testing.assert_allclose(one, other, atol=EXACT)


def test_dropout_acts_in_training_alone():
    rule, block = SETTINGS["poolings strided"]
    network = networks.spread(rule, dropout_dense=0.5, dropout_conv=0.2)
    batch = batch_of(networks.volume(SHAPE), rule, block, np.array([[0, 0, 0]]))
    on_blocks = block_network.BlockNetwork(network, rule, block)
    plain = [np.asarray(on_blocks(batch, training=False)) for _ in range(2)]
    np.testing.assert_array_equal(*plain)
    assert np.abs(np.asarray(on_blocks(batch, training=True)) - plain[0]).max() > 0.01


@pytest.mark.parametrize("whole", [True, False], ids=["scale and offset", "neither"])
@pytest.mark.parametrize("training", [True, False])
def test_towers_are_normalised_as_the_layer_does(rng, training, whole):
    towers, width = 3, 2
    layer, again = (layers.BatchNormalization(momentum=0.7, center=whole, scale=whole) for _ in range(2))
    maps = rng.normal(1, 2, (2, 4, 5, towers * width)).astype(np.float32)
    for one in (layer, again):
        one.build(maps.shape)
        one.set_weights([np.linspace(0.5, 1 + n, towers * width) for n in range(len(one.weights))])
    found = TowerNormalisation(layer, towers)
    each = [found(part, tf.constant(n), training=training) for n, part in enumerate(np.split(maps, towers, axis=-1))]
    np.testing.assert_allclose(np.concatenate(each, axis=-1), again(maps, training=training), atol=1e-5)
    for one, other in zip(layer.weights, again.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_statistics_follow_in_training_alone():
    network, (rule, block) = normalised(NORMALISED[0]), NORMALISED
    batch = batch_of(networks.volume(SHAPE), rule, block, np.array([[0, 0, 0]]))
    on_blocks = block_network.BlockNetwork(network, rule, block)
    moving = [v for v in network.non_trainable_variables if v.name.startswith("moving")]
    assert len(moving) == 4
    for training in (False, True):
        before = [v.numpy() for v in moving]
        on_blocks(batch, training=training)
        assert [bool((v.numpy() != b).all()) for v, b in zip(moving, before, strict=True)] == [training] * 4


def test_the_penalty_on_kernels_is_the_networks():
    rule, block = SETTINGS["poolings strided"]
    network = networks.spread(rule, l2=0.01)
    on_blocks = block_network.BlockNetwork(network, rule, block)
    assert float(sum(on_blocks.losses)) == pytest.approx(float(sum(network.losses)), rel=1e-6)


def test_a_layer_that_trains_on_patches_alone_is_named():
    rule = networks.RULE
    inner = [layers.Flatten(), layers.Dense(2), layers.BatchNormalization(name="norm"), layers.Dense(1)]
    with pytest.raises(NotDenseError, match=r"'norm' .*: it is trained on patches only"):
        block_network.BlockNetwork(networks.sequential(rule, *inner), rule, BlockConfig())
    early = keras.Sequential([keras.Input((12, 12, 6)), layers.Conv2D(3, 3, name="mixed"), layers.Flatten()])
    early.add(layers.Dense(1))
    with pytest.raises(NotDenseError, match="'mixed'"):
        block_network.BlockNetwork(early, rule, BlockConfig())
