"""The record spec: there and back, and a check that names what is damaged."""

import dataclasses
import shutil

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
import tiny

from femur_tf import config, files, records
from femur_tf.errors import DataError

FRAME_BYTES = 16
"""Of a TFRecord beside its data: length, its checksum, the checksum of the data."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The work folder of a study with records; not to be changed."""
    work = tmp_path_factory.mktemp("work")
    tiny.write_all(work)
    return work


@pytest.fixture
def folder(written, tmp_path):
    """A copy of the records that a test may damage."""
    return shutil.copytree(written / "records", tmp_path / "records")


def first_shard(folder):
    """Return the path of the first shard of a records folder."""
    return folder / records.read_manifest(folder).cases[0].shards[0].file.name


def test_an_example_has_these_features():
    patch = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    feature = tf.train.Example.FromString(records.encode(patch, 1, (4, 5, 6), b"hip_01")).features.feature
    assert sorted(feature) == ["case", "centre", "label", "patch"]
    assert feature["patch"].bytes_list.value == [bytes(range(12))]
    assert feature["label"].int64_list.value == [1]
    assert feature["centre"].int64_list.value == [4, 5, 6]
    assert feature["case"].bytes_list.value == [b"hip_01"]


def test_an_index_example_has_no_patch():
    feature = tf.train.Example.FromString(records.encode(None, 0, (4, 5, 6), b"hip_01")).features.feature
    assert sorted(feature) == ["case", "centre", "label"]


def test_shards_are_named_by_case_and_number():
    assert records.shard_name("hip_01", 3, 16) == "shards/hip_01-00003-of-00016.tfrecord"


def test_the_manifest_counts_its_examples(written):
    manifest = records.read_manifest(written / "records")
    assert [case.case for case in manifest.cases] == ["hip_01", "hip_02", "hip_03"]
    assert manifest.count("train") == 2 * tiny.SAMPLING.per_case
    assert manifest.count("validation") == tiny.SAMPLING.per_case
    assert manifest.count("test") == 0
    assert len(manifest.shards("train")) == 6
    assert manifest.shards("train")[0].count == tiny.SHARD_EXAMPLES


@hypothesis.given(
    count=st.integers(1, 5), size=st.integers(2, 6), scales=st.integers(1, 2), index=st.booleans(), data=st.data()
)
def test_a_batch_of_examples_comes_back(count, size, scales, index, data):
    rule = config.PatchConfig(size=size, scales_mm=(0.0, 3.0)[:scales])
    patch = np.random.default_rng(size).integers(0, 256, (count, size + 1, size + 1, 3 * scales)).astype(np.uint8)
    label = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    centre = data.draw(st.lists(st.tuples(*[st.integers(0, 999)] * 3), min_size=count, max_size=count))
    case = data.draw(st.lists(st.text(min_size=1), min_size=count, max_size=count))
    lines = [
        records.encode(None if index else p, y, c, n.encode())
        for p, y, c, n in zip(patch, label, centre, case, strict=True)
    ]
    example = records.parse(tf.constant(lines), rule, "index" if index else "patches")
    assert example["label"].numpy().tolist() == label
    assert [tuple(c) for c in example["centre"].numpy().tolist()] == centre
    assert [n.decode() for n in example["case"].numpy()] == case
    assert ("patch" in example) != index
    if not index:
        np.testing.assert_array_equal(example["patch"], patch)


def test_a_manifest_comes_back_from_its_file(tmp_path):
    shard = records.Shard(records.FileEntry("shards/a", 12, "ab"), "a", {"bone": 1, "near": 2, "far": 3})
    case = records.CaseRecords("a", "train", (shard,), "cd", (records.FileEntry("grids/a.npy", 5, "ef"),))
    manifest = records.Manifest(config.DataConfig(), "index", (case,))
    files.write_json(records.manifest_path(tmp_path), config.to_dict(manifest))
    assert records.read_manifest(tmp_path) == manifest


def test_sound_records_have_no_problem(written):
    assert records.check(written / "records") == []


@pytest.mark.parametrize("number", [0, 11])
def test_a_flipped_byte_is_found_in_its_record(folder, number):
    path = first_shard(folder)
    lengths = [len(line) + FRAME_BYTES for line in tf.data.TFRecordDataset([str(path)]).as_numpy_iterator()]
    content = bytearray(path.read_bytes())
    content[sum(lengths[:number]) + lengths[number] // 2] ^= 1
    path.write_bytes(content)
    (problem,) = records.check(folder)
    assert problem.startswith(f"{path}: expected sha256")
    assert problem.endswith(f"; the record that starts at byte {sum(lengths[:number])} is damaged")


def test_a_truncated_shard_is_found_with_both_sizes(folder):
    path = first_shard(folder)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    (problem,) = records.check(folder)
    assert problem.startswith(f"{path}: expected {len(content)} bytes. Received: {len(content) - 5} bytes; the record")


def test_a_shard_cut_between_two_records_is_readable_but_found(folder):
    path = first_shard(folder)
    path.write_bytes(b"")
    (problem,) = records.check(folder)
    assert problem.endswith("Received: 0 bytes; every record can be read, up to byte 0")


def test_a_deleted_shard_is_found(folder):
    path = first_shard(folder)
    path.unlink()
    (problem,) = records.check(folder)
    assert problem.startswith(f"{path}: expected a file of ")
    assert problem.endswith("Received: no file")


def replace_first_shard(folder, lines):
    """Write other examples to the first shard, and a manifest that knows its size and digest."""
    manifest = records.read_manifest(folder)
    case = manifest.cases[0]
    with tf.io.TFRecordWriter(str(folder / case.shards[0].file.name)) as writer:
        for line in lines:
            writer.write(line)
    shard = dataclasses.replace(case.shards[0], file=records.file_entry(folder, case.shards[0].file.name))
    case = dataclasses.replace(case, shards=(shard, *case.shards[1:]))
    changed = dataclasses.replace(manifest, cases=(case, *manifest.cases[1:]))
    files.write_json(records.manifest_path(folder), config.to_dict(changed))


def test_other_counts_than_the_manifest_says_are_found(folder):
    shard = records.read_manifest(folder).cases[0].shards[0]
    replace_first_shard(folder, tiny.serialized(folder, [shard])[1:])
    (problem,) = records.check(folder)
    assert f"expected {shard.count} examples, {shard.examples['bone']} of them bone. Received: " in problem
    assert f"Received: {shard.count - 1} and" in problem


@pytest.mark.parametrize("line", [b"no example", records.encode(np.zeros((3, 3, 6), np.uint8), 0, (0, 0, 0), b"a")])
def test_other_than_examples_of_the_spec_are_found(folder, line):
    replace_first_shard(folder, [line])
    (problem,) = records.check(folder)
    assert f"{first_shard(folder)}: expected examples of the record spec. Received: " in problem


def test_a_damaged_grid_of_index_mode_is_found(tmp_path):
    tiny.write_all(tmp_path, mode="index")
    folder = tmp_path / "records"
    assert records.check(folder) == []
    path = folder / "grids/hip_02.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    (problem,) = records.check(folder)
    assert problem.startswith(f"{path}: expected sha256")


def test_the_command_counts_and_returns_its_status(folder, capsys):
    arguments = records.CheckArguments(folder.parent)
    assert records.main(arguments) == 0
    assert "All files are as the manifest says." in capsys.readouterr().out
    first_shard(folder).unlink()
    assert records.main(arguments) == 2
    shown = capsys.readouterr()
    assert "1 bad file(s)." in shown.out
    assert "hip_01-00000-of-00003.tfrecord" in shown.err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format_version": 2}, r"expected format_version 1\. Received: 2\. Write the records again"),
        ([1], r"expected format_version 1\. Received: None"),
        ({"format_version": 1, "mode": "pictures"}, r"expected one of 'patches', 'index'\. Received: 'pictures'"),
    ],
)
def test_other_than_a_manifest_of_this_version_is_refused(tmp_path, values, message):
    files.write_json(records.manifest_path(tmp_path), values)
    with pytest.raises(DataError, match=rf"manifest\.json: .*{message}"):
        records.read_manifest(tmp_path)


def test_without_a_manifest_the_message_says_what_to_run_first(tmp_path):
    with pytest.raises(DataError, match=r"expected records, found none or an unfinished set\. Run first: python -m"):
        records.check(tmp_path / "records")
