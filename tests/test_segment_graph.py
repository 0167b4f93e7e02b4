"""The signature `segment`: the Python path's numbers, from one graph, for any shape."""

from __future__ import annotations

import bright
import numpy as np
import pytest
import tensorflow as tf
from networks import RULE, spread, volume

from femur_tf import bundle, dense, export, predict, segment_graph
from femur_tf.config import PatchConfig

HALF_STEP = 2.0**-11
"""One step of float16 below 1: planes are cut elsewhere, so that sums may round the other way."""
ANY_VOLUME = tf.TensorSpec((None, None, None, None), tf.uint8)


@pytest.fixture(scope="module")
def network():
    return dense.convert(spread(), RULE)


@pytest.fixture(scope="module")
def segment(network):
    """The signature as a server would call it: one graph for all shapes."""
    return tf.function(segment_graph.segment_function(network), input_signature=[ANY_VOLUME], autograph=False)


def assert_within_a_step(found, expected):
    """Compare two float16 maps."""
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=0, atol=HALF_STEP)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [(7, 5, 6), (8, 4, 8), (1, 1, 1), (13, 3, 30)],
    ids=["no step divides it", "every step divides it", "one voxel", "longer than a patch along z"],
)
def test_the_graph_gives_the_map_of_the_python_path(network, segment, shape):
    grid = volume(shape)
    found = segment(grid[None])["probability"].numpy()
    assert found.dtype == np.float16
    assert_within_a_step(found[0], predict.dense_map(network, grid))


@pytest.mark.slow
def test_blocks_change_nothing(network, monkeypatch):
    grid = volume((19, 5, 6))
    monkeypatch.setattr(segment_graph, "BLOCK_BYTES", 1)
    small = tf.function(segment_graph.segment_function(network), input_signature=[ANY_VOLUME], autograph=False)
    assert_within_a_step(small(grid[None])["probability"].numpy()[0], predict.dense_map(network, grid))


@pytest.mark.slow
def test_a_coarse_scale_alone_needs_no_fine_one():
    rule = PatchConfig(size=12, spacing_mm=(1.0, 2.0, 1.0), scales_mm=(4.0,))
    coarse = dense.convert(spread(rule), rule)
    grid = volume((9, 5, 7))
    found = segment_graph.segment_function(coarse)(tf.constant(grid[None]))["probability"].numpy()[0]
    assert_within_a_step(found, predict.dense_map(coarse, grid))


@pytest.mark.slow
def test_a_centre_is_in_the_graph():
    centred = dense.convert(spread(centre=3, batch_norm=True), RULE)
    grid = volume((13, 5, 14))
    found = segment_graph.segment_function(centred)(tf.constant(grid[None]))["probability"].numpy()[0]
    assert_within_a_step(found, predict.dense_map(centred, grid))


def test_two_volumes_at_once_are_refused(segment):
    with pytest.raises(tf.errors.InvalidArgumentError):
        segment(np.zeros((2, 5, 5, 5), np.uint8))


@pytest.mark.parametrize("shape", [(1, 0, 4, 4), (1, 4, 0, 4), (1, 4, 4, 0)])
def test_a_volume_without_voxels_is_refused(segment, shape):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Expected a volume with voxels"):
        segment(tf.zeros(shape, tf.uint8))


@pytest.mark.slow
def test_the_signature_survives_export_and_reload(tmp_path):
    bright.save_run(tmp_path / "run")
    loaded = bundle.load(tmp_path / "run")
    export.write_saved_model(loaded, tmp_path / "saved")
    signature = tf.saved_model.load(str(tmp_path / "saved")).signatures["segment"]
    grid = volume((9, 6, 7))
    found = signature(volume=tf.constant(grid[None]))["probability"].numpy()[0]
    expected = predict.Predictor(loaded.model, bright.RULE).probability_map(grid)
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=HALF_STEP, rtol=0)
