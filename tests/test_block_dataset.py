"""Batches of blocks: what the network is given, mirrored and weighted."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tiny

from femur_tf import block_dataset, block_network, block_records, blocks, files, records, study
from femur_tf.config import AugmentConfig, BlockConfig, PatchConfig, TrainConfig
from femur_tf.errors import DataError
from femur_tf.patches import Cutter
from tests import networks

EXACT = 2e-6
"""The order of sums."""
PLAIN = TrainConfig(examples="blocks", augment=AugmentConfig(False, 0, 0, 0))
COPIES = 3


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The work folder of a tiny study with blocks; not to be changed."""
    work = tmp_path_factory.mktemp("work")
    tiny.write_all(work, blocks=tiny.BLOCK, copies=COPIES)
    return work


def batches_of(work, part="train", **options):
    """Return all batches of one pass."""
    folder = study.records_path(work)
    manifest = records.read_manifest(folder)
    return list(block_dataset.batches(folder, manifest, part, rule=manifest.data.patch, **options))


def test_weights_by_hand():
    label = np.array([1, 0, 0, blocks.OUTSIDE], np.uint8).reshape(1, 4, 1, 1)
    assert block_dataset.weights(label, 1.0, None).numpy().ravel().tolist() == [1, 1, 1, 0]
    assert block_dataset.weights(label, 3.0, None).numpy().ravel().tolist() == [3, 1, 1, 0]
    # Half of the weight of three voxels is bone's.
    assert block_dataset.weights(label, 1.0, 0.5).numpy().ravel().tolist() == [1.5, 0.75, 0.75, 0]
    assert block_dataset.weights(label[:, 1:], 1.0, 0.5).numpy().ravel().tolist() == [1, 1, 0]


def test_a_record_comes_back():
    rule, block = tiny.RULE, tiny.BLOCK
    grid, mask, corner = networks.volume(tiny.SHAPE), tiny.ball(), np.array([7, 3, 2])
    planes, label = blocks.cut(Cutter.of(grid, rule), block, corner), blocks.labels(mask, block, corner)
    line = block_records.encode(planes, label, corner, b"hip_01")
    found = block_records.parse(tf.constant([line, line]), rule, block)
    for one, other in zip(found["planes"], planes, strict=True):
        np.testing.assert_array_equal(one[1], other)
    np.testing.assert_array_equal(found["label"][1], label)
    assert found["corner"].numpy().tolist() == [[7, 3, 2]] * 2
    assert found["case"].numpy().tolist() == [b"hip_01"] * 2
    assert len(line) == pytest.approx(block_records.size_bytes(rule, block), abs=100)


def test_the_records_hold_the_planned_blocks_and_check_finds_them_sound(written):
    folder = study.records_path(written)
    manifest = records.read_manifest(folder)
    assert {case.case: len(case.blocks) for case in manifest.cases} == dict.fromkeys(("hip_01", "hip_02", "hip_03"), 1)
    assert (manifest.count_blocks("train"), manifest.count_blocks("validation")) == (12, 6)
    assert all(0 < shard.examples["bone"] < shard.count for shard in manifest.blocks("train"))
    assert records.check(folder) == []
    lines = tiny.serialized(folder, manifest.blocks("train"))
    names = block_records.parse(tf.constant(lines), manifest.data.patch, manifest.data.blocks)["case"].numpy().tolist()
    assert {name: names.count(name) for name in set(names)} == {
        f"{case}{copy}".encode(): 2 for case in ("hip_01", "hip_02") for copy in ("", "~1", "~2")
    }


def test_a_shard_of_blocks_that_is_cut_is_found(tmp_path):
    tiny.write_all(tmp_path, blocks=tiny.BLOCK)
    path = next((tmp_path / "records/blocks").iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    (problem,) = records.check(tmp_path / "records")
    assert problem.startswith(f"{path}: expected") and "is damaged" in problem


def test_a_pass_without_training_gives_blocks_as_written(written):
    folder = study.records_path(written)
    manifest = records.read_manifest(folder)
    lines = tiny.serialized(folder, manifest.blocks("validation"))
    held = block_records.parse(tf.constant(lines), manifest.data.patch, manifest.data.blocks)
    found = batches_of(written, "validation", batch=4)
    assert [batch.planes[0].shape[0] for batch, _, _ in found] == [4, 2]
    for tower, planes in enumerate(held["planes"]):
        given = np.concatenate([batch.planes[tower] for batch, _, _ in found])
        np.testing.assert_array_equal(given, planes[:, :, :-1, :-1])
    np.testing.assert_array_equal(np.concatenate([y for _, y, _ in found])[:, 0], np.ravel(held["label"] == 1))
    limited = batches_of(written, "validation", limit=2)
    assert len(limited) == 2


def test_training_shuffles_varies_and_repeats_with_its_seed(written):
    first, again, other = (
        batches_of(written, batch=3, training=TrainConfig(seed=seed), epochs=range(2), steps=3) for seed in (1, 1, 2)
    )
    assert len(first) == 6
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one[0].planes[0], same[0].planes[0])
        assert not np.array_equal(one[0].planes[0], different[0].planes[0])


MIRRORED = {
    "even patches": (PatchConfig(size=12, spacing_mm=(1.0, 2.0, 1.0), scales_mm=(0.0, 4.0)), (8, 2, 4)),
    "odd patches": (PatchConfig(size=11, spacing_mm=(1.0, 2.0, 1.0), scales_mm=(0.0, 4.0)), (4, 2, 4)),
    "cells that do not divide": (PatchConfig(size=12, spacing_mm=(1.0, 2.0, 1.0), scales_mm=(0.0, 4.0)), (5, 3, 3)),
}


@pytest.mark.parametrize(("rule", "apart"), MIRRORED.values(), ids=MIRRORED)
@pytest.mark.parametrize("corner", [(0, 0, 0), (2, 1, 3), (7, 2, 5)])
def test_a_mirrored_block_is_that_of_the_mirrored_volume(rule, apart, corner):
    shape, block = (24, 8, 16), BlockConfig(apart=apart, samples=(3, 2, 2))
    grid, mask = networks.volume(shape), networks.volume(shape, 3) > 127
    corner = np.array(corner)
    example = {
        "planes": [tf.constant(p[None]) for p in blocks.cut(Cutter.of(grid, rule), block, corner)],
        "label": tf.constant(blocks.labels(mask, block, corner)[None]),
    }
    coin = tf.constant([True])
    block_dataset.mirror(example, coin, rule)
    offsets = [
        [
            tf.constant(blocks.offsets(block, axis, step, int(corner[axis]))[None], tf.int32)
            for axis, step in enumerate(s)
        ]
        for s in rule.steps
    ]
    for of_scale, steps in zip(offsets, rule.steps, strict=True):
        of_scale[0] = block_dataset.mirrored_offsets(of_scale[0], block.cells(0, steps[0]), coin)
    batch = block_dataset.Batch(tuple(p[:, :, :-1, :-1] for p in example["planes"]), tuple(map(tuple, offsets)))
    network = networks.spread(rule)
    found = np.asarray(block_network.BlockNetwork(network, rule, block)(batch))[:, 0]
    x, y, z = blocks.voxels(block, corner)
    places = np.stack(np.meshgrid(shape[0] - 1 - x[::-1], y, z, indexing="ij"), -1).reshape(-1, 3)
    expected = np.asarray(network(Cutter.of(np.ascontiguousarray(grid[::-1]), rule).cut(places)))[:, 0]
    np.testing.assert_allclose(found, expected, atol=EXACT)
    np.testing.assert_array_equal(np.ravel(example["label"]), mask[::-1][tuple(places.T)])


def test_half_of_the_blocks_are_mirrored(written):
    training = dataclasses.replace(PLAIN, augment=AugmentConfig(True, 0, 0, 0))
    given = [np.asarray(batch.planes[0]) for batch, _, _ in batches_of(written, training=training, epochs=range(8))]
    plain = {np.asarray(batch.planes[0]).tobytes() for batch, _, _ in batches_of(written, training=PLAIN)}
    share = np.mean([planes.tobytes() in plain for planes in given])
    assert 0.25 < share < 0.75


def test_without_blocks_the_message_says_what_to_do(tmp_path):
    tiny.write_all(tmp_path)
    with pytest.raises(DataError, match=r"expected blocks of the part 'train'. Received: none. Plan and write"):
        batches_of(tmp_path)


def test_a_record_of_another_length_is_refused(written):
    manifest = files.read_json(records.manifest_path(study.records_path(written)))
    assert manifest["data"]["blocks"]["samples"] == [3, 3, 3]
    other = BlockConfig(apart=(4, 4, 2), samples=(3, 3, 2))
    lines = tiny.serialized(
        study.records_path(written), records.read_manifest(study.records_path(written)).blocks("train")
    )
    with pytest.raises(tf.errors.InvalidArgumentError):
        block_records.parse(tf.constant(lines), tiny.RULE, other)
