"""Batches: which examples, in which order, and what augmentation does to them."""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from femur_tf import dataset, records
from femur_tf.config import AugmentConfig, PatchConfig
from femur_tf.errors import DataError
from femur_tf.patches import Cutter

OFF = AugmentConfig(flip=False, intensity_scale=0.0, intensity_shift=0.0, rotation_degrees=0.0)
ALL = AugmentConfig(rotation_degrees=10.0)
ROUNDED = 0.5
"""Grey values are rounded to whole numbers."""
BATCH = 32
SEED = tf.constant([3, 4], tf.int64)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The records folder of a tiny study and its manifest; not to be changed."""
    work = tmp_path_factory.mktemp("work")
    return work / "records", tiny.write_all(work)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """The same study with records of centres alone; not to be changed."""
    work = tmp_path_factory.mktemp("indexed")
    return work / "records", tiny.write_all(work, mode="index")


@pytest.fixture(scope="module")
def parsed(written):
    """The examples of the training part, as written."""
    folder, manifest = written
    lines = tiny.serialized(folder, manifest.shards("train"))
    return {name: value.numpy() for name, value in records.parse(tf.constant(lines), tiny.RULE, "patches").items()}


def read(written, part="train", **options):
    """Return the batches of a part as a list of (patch, label) arrays."""
    folder, manifest = written
    return list(dataset.batches(folder, manifest, part, **{"batch": BATCH, **options}).as_numpy_iterator())


def assert_equal_batches(found, expected):
    """Compare two lists of batches, bit for bit."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def identities(batches):
    """Return the bytes of each patch: they name an example of (case, centre), as no two patches are equal."""
    return [patch.tobytes() for patches, _ in batches for patch in patches]


def changed(patch, rule=tiny.RULE, **settings):
    """Augment a batch with some changes switched on, all others off."""
    return dataset.augment(tf.constant(patch), dataclasses.replace(OFF, **settings), rule, SEED).numpy()


def flat(grey, count=64):
    """Return patches, one sample larger than the rule's, of one grey value."""
    return np.full((count, tiny.RULE.size + 1, tiny.RULE.size + 1, tiny.RULE.channels), grey, np.uint8)


def test_batches_have_patches_and_labels_and_the_last_one_may_be_short(written):
    batches = read(written, "validation")
    assert [len(patch) for patch, _ in batches] == [32, 32, 26]
    patch, label = batches[0]
    assert (patch.shape[1:], patch.dtype) == ((8, 8, 6), np.uint8)
    assert (label.shape, label.dtype) == ((32, 1), np.float32)


def test_without_training_examples_come_unchanged_in_the_order_of_the_shards(written):
    folder, manifest = written
    batches = read(written, "validation", batch=90)
    example = records.parse(tf.constant(tiny.serialized(folder, manifest.shards("validation"))), tiny.RULE, "patches")
    # Three shards of 30 are read in turns of 32: one after the other.
    np.testing.assert_array_equal(batches[0][0], example["patch"][:, :8, :8])
    np.testing.assert_array_equal(batches[0][1][:, 0], example["label"])


def test_the_number_of_batches_is_known(written):
    folder, manifest = written
    found = dataset.batches(folder, manifest, "train", batch=BATCH, training=OFF, epochs=range(2, 5))
    assert int(found.cardinality()) == 3 * 6
    assert len(list(found)) == 3 * 6


def test_a_flip_reverses_the_rows_of_axial_and_coronal_planes():
    patch = tf.constant(np.arange(9).reshape(1, 3, 3, 1) * np.ones(3, int))
    axial, coronal, sagittal = np.moveaxis(dataset.flip_left_right(patch, PatchConfig(size=2)).numpy()[0], -1, 0)
    assert axial.tolist() == coronal.tolist() == [[6, 7, 8], [3, 4, 5], [0, 1, 2]]
    assert sagittal.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("size", [7, 8])
def test_a_flipped_patch_is_the_patch_of_the_mirrored_volume(rng, size):
    rule = dataclasses.replace(tiny.RULE, size=size)
    grid = rng.integers(0, 256, tiny.SHAPE).astype(np.uint8)
    centres = np.argwhere(np.ones(tiny.SHAPE, bool))[::37]
    patch = dataset.flip_left_right(tf.constant(Cutter.of(grid, rule).cut(centres, extra=True)), rule)
    mirrored = centres * (-1, 1, 1) + (tiny.SHAPE[0] - 1, 0, 0)
    np.testing.assert_array_equal(patch[:, :size, :size], Cutter.of(grid[::-1], rule).cut(mirrored))


def turned(image, degrees, spacing=(1.0, 1.0)):
    """Rotate one square image about its centre sample."""
    image = tf.constant(image, tf.float32)[None, ..., None]
    transform = dataset.rotations(tf.constant([degrees], tf.float32) * np.pi / 180, spacing, image.shape[1])
    return keras.ops.image.affine_transform(image, transform, "bilinear", "nearest").numpy()[0, ..., 0]


def test_a_quarter_turn_is_the_known_one():
    image = np.arange(9).reshape(3, 3)
    np.testing.assert_allclose(turned(image, 90), np.rot90(image), atol=1e-5)
    np.testing.assert_allclose(turned(image, 180), np.rot90(image, 2), atol=1e-5)


def test_a_rotation_is_true_to_scale():
    image = np.zeros((9, 9))
    image[5, 4] = 1  # one row of 2 mm from the centre
    expected = np.zeros((9, 9))
    expected[4, 5:8] = (0.5, 1, 0.5)  # two columns of 1 mm from it; half-way rows are interpolated
    np.testing.assert_allclose(turned(image, 90, spacing=(2.0, 1.0)), expected, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
def test_a_rotation_keeps_the_centre_sample(rng, size):
    rule = dataclasses.replace(tiny.RULE, size=size)
    patch = rng.integers(0, 256, (16, size + 1, size + 1, rule.channels)).astype(np.uint8)
    found = changed(patch, rule, rotation_degrees=30.0)
    np.testing.assert_array_equal(found[:, size // 2, size // 2], patch[:, size // 2, size // 2])
    assert (found != patch[:, :size, :size]).mean() > 0.5


def test_each_plane_turns_by_one_angle_on_every_scale(rng):
    rule = dataclasses.replace(tiny.RULE, spacing_mm=(1.0, 1.0, 1.0), scales_mm=(0.0, 4.0))
    image = rng.integers(0, 256, (16, 9, 9, 1)).astype(np.uint8)
    found = changed(np.tile(image, 6), rule, rotation_degrees=30.0)
    np.testing.assert_array_equal(found[..., :3], found[..., 3:])
    assert (found[..., 0] != found[..., 1]).any()


def test_no_change_gives_the_records_own_bytes(parsed):
    np.testing.assert_array_equal(changed(parsed["patch"]), parsed["patch"][:, :8, :8])


def test_flips_come_in_one_example_of_two(parsed):
    patch = parsed["patch"]
    found = changed(patch, flip=True)
    mirrored = dataset.flip_left_right(tf.constant(patch), tiny.RULE).numpy()[:, :8, :8]
    flipped = (found == mirrored).all(axis=(1, 2, 3))
    kept = (found == patch[:, :8, :8]).all(axis=(1, 2, 3))
    assert (flipped ^ kept).all()
    assert 0.35 < flipped.mean() < 0.65


@pytest.mark.parametrize(
    ("settings", "grey", "low", "high"),
    [
        ({"intensity_scale": 0.2}, 100, 80, 120),
        ({"intensity_scale": 0.2}, 0, 0, 0),
        ({"intensity_scale": 0.2}, 255, 204, 255),  # clipped
        ({"intensity_shift": 0.1}, 100, 74.5, 125.5),
        ({"intensity_shift": 0.1}, 0, 0, 25.5),
        ({"rotation_degrees": 20.0}, 77, 77, 77),
    ],
)
def test_grey_values_stay_within_the_stated_range(settings, grey, low, high):
    found = changed(flat(grey), **settings).astype(float)
    assert (found == found[:, :1, :1, :1]).all()  # one change for the whole patch
    assert low - ROUNDED <= found.min() and found.max() <= high + ROUNDED
    if low < high:
        assert np.ptp(found) > 0.5 * (high - low)


def test_the_same_seed_makes_the_same_changes(parsed):
    patch = tf.constant(parsed["patch"])
    one, same = (dataset.augment(patch, ALL, tiny.RULE, SEED) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    assert (one != dataset.augment(patch, ALL, tiny.RULE, SEED + 1)).numpy().any()


def test_an_epoch_holds_each_example_once(written, parsed):
    expected = [patch.tobytes() for patch in parsed["patch"][:, :8, :8]]
    places = set(zip(parsed["case"].tolist(), map(tuple, parsed["centre"].tolist()), strict=True))
    assert len(set(expected)) == len(places) == len(expected) == 180
    found = identities(read(written, training=OFF))
    assert sorted(found) == sorted(expected)
    assert found != expected  # in another order


def test_the_same_seed_gives_the_same_order_whatever_the_seed_of_the_process(written):
    tf.random.set_seed(1)
    first = read(written, training=ALL, seed=5)
    tf.random.set_seed(2)
    assert_equal_batches(read(written, training=ALL, seed=5), first)


def test_another_seed_and_another_epoch_give_other_orders(written):
    orders = [
        identities(read(written, training=OFF, seed=seed, epochs=range(epoch, epoch + 1)))
        for seed, epoch in [(5, 0), (6, 0), (5, 1)]
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert all(one != other for one, other in itertools.combinations(orders, 2))


def test_a_training_that_goes_on_sees_what_it_would_have_seen(written):
    tf.random.set_seed(1)
    uninterrupted = read(written, training=ALL, seed=5, epochs=range(4))
    tf.random.set_seed(2)
    assert_equal_batches(read(written, training=ALL, seed=5, epochs=range(2, 4)), uninterrupted[12:])


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "batch"), [(2, 32), (4, 32), (5, 60), (7, 50)])  # a pass has 6, 6, 3 and 4 batches
def test_short_epochs_are_parts_of_one_sequence_of_passes(written, steps, batch):
    passes = read(written, training=ALL, seed=5, batch=batch, epochs=range(4))
    found = read(written, training=ALL, seed=5, batch=batch, epochs=range(2), steps=steps)
    assert_equal_batches(found, passes[: 2 * steps])
    later = read(written, training=ALL, seed=5, batch=batch, epochs=range(1, 2), steps=steps)
    assert_equal_batches(later, passes[steps : 2 * steps])


def test_a_small_buffer_still_gives_each_example_once(written, monkeypatch):
    whole = identities(read(written, training=OFF))
    monkeypatch.setattr(dataset, "SHUFFLE_BYTES", 10 * 9 * 9 * 6)
    small = identities(read(written, training=OFF))
    assert sorted(small) == sorted(whole)
    assert small != whole


@pytest.mark.slow
@pytest.mark.parametrize("held", [None, 10])
def test_index_mode_gives_the_same_batches_bit_for_bit(written, indexed, monkeypatch, held):
    if held:  # of a real study the buffer holds a part of the examples
        monkeypatch.setattr(dataset, "SHUFFLE_BYTES", held * 9 * 9 * 6)
    for options in ({"training": ALL, "seed": 7, "epochs": range(1, 2)}, {"training": None}):
        assert_equal_batches(read(indexed, **options), read(written, **options))


@pytest.mark.parametrize(
    ("scales_mm", "planes", "channels"),
    [
        ((0.0,), (), [0, 1, 2]),
        ((3.6,), (), [3, 4, 5]),
        ((3.6, 0.0), (), [3, 4, 5, 0, 1, 2]),
        ((0.0, 3.6), ("finest", "all"), [0, 3, 4, 5]),
        ((3.6, 0.0), ("sagittal", "coronal"), [5, 1]),
    ],
)
def test_some_towers_of_the_records_can_be_read_alone(written, indexed, scales_mm, planes, channels):
    rule = dataclasses.replace(tiny.RULE, scales_mm=scales_mm, planes=planes)
    expected = [(patch[..., channels], label) for patch, label in read(written)]
    for source in (written, indexed):
        assert_equal_batches(read(source, rule=rule), expected)


def test_index_mode_prepares_the_towers_alone_that_a_run_reads(written, indexed, monkeypatch):
    """The planes of all towers of the records may take several times the memory."""
    rule, prepared, of = dataclasses.replace(tiny.RULE, planes=("finest", "all")), [], Cutter.of
    monkeypatch.setattr(Cutter, "of", lambda grid, config: prepared.append(config) or of(grid, config))
    options = {"rule": rule, "training": ALL, "seed": 7}
    assert_equal_batches(read(indexed, **options), read(written, **options))
    assert prepared == [rule, rule]  # one a grid


@pytest.mark.slow
def test_a_share_of_bone_is_drawn_anew_in_each_batch(written):
    labels = [label for _, label in read(written, training=OFF, seed=5, batch=90, bone_share=0.5)]
    assert [len(label) for label in labels] == [90, 90]
    assert [label.sum() for label in labels] == [45, 45]
    first, again = (read(written, training=ALL, seed=5, bone_share=0.7) for _ in range(2))
    assert_equal_batches(first, again)


def test_a_share_of_bone_is_the_same_in_index_mode(written, indexed):
    options = {"training": ALL, "seed": 7, "bone_share": 0.2}
    assert_equal_batches(read(indexed, **options), read(written, **options))


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "each"), [(7, (4, 3)), (8, (4, 4)), (70, (35, 35)), (1000, (90, 90))])
def test_a_limit_takes_the_first_examples_of_each_case_evenly(written, parsed, limit, each):
    found = identities(read(written, batch=1000, limit=limit))
    patches = parsed["patch"][:, :8, :8]
    assert found == [patch.tobytes() for patch in (*patches[: each[0]], *patches[90 : 90 + each[1]])]


@pytest.mark.parametrize(
    "other",
    [{"size": 16}, {"spacing_mm": (1.0, 1.0, 1.0)}, {"scales_mm": (0.0, 7.2)}],
)
def test_patches_that_the_records_do_not_hold_are_refused(written, other):
    rule = dataclasses.replace(tiny.RULE, **other)
    with pytest.raises(
        DataError, match=r"manifest\.json: expected records with the patches of .*Received: PatchConfig"
    ):
        read(written, rule=rule)


def test_a_part_without_examples_is_refused(written):
    with pytest.raises(DataError, match=r"expected examples of the part 'test'\. Received: none"):
        read(written, "test")


def test_more_shards_than_readers_are_all_read(written, monkeypatch):
    monkeypatch.setattr(dataset, "READERS", 2)
    assert len(set(identities(read(written, training=OFF)))) == 180


def test_one_scale_at_every_voxel_can_be_augmented(rng):
    rule = PatchConfig(size=8)
    patch = rng.integers(0, 256, (4, 9, 9, 3)).astype(np.uint8)
    assert dataset.augment(tf.constant(patch), ALL, rule, SEED).shape == (4, 8, 8, 3)


def test_nothing_is_left_to_wait_for_when_batches_are_given_up(written):
    """With its tuning thread on, an iterator that is given up keeps one core busy for up to 20 seconds."""
    folder, manifest = written
    assert dataset.batches(folder, manifest, "train", batch=BATCH).options().autotune.enabled is False


def test_more_cores_than_shards_read_them_all(written, monkeypatch):
    monkeypatch.setattr(dataset.machine, "cores", lambda: 64)
    assert sum(len(label) for _, label in read(written)) == written[1].count("train")
