"""Writing records: what a case gives, how a killed command goes on, and the guard of the whole design."""

import dataclasses
import errno
import multiprocessing
import os
import shutil
import time
import types
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import keras
import nibabel
import numpy as np
import pytest
import tensorflow as tf
import tiny

from data_prep import made_from, sampling, write_records
from femur_tf import config, evaluator, files, image_io, model, predict, records, study
from femur_tf.errors import DataError
from femur_tf.patches import Cutter

OBLIQUE = np.array([[0.0, -0.6, 1.6, 5.0], [0.0, 0.8, 1.2, -7.0], [-1.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
"""First axis to inferior, spacing (1, 1, 2) mm, turned by 37 degrees about the patient's long axis."""
PATCHWISE_TOLERANCE = 1e-6
"""The same network on the same bytes, in batches of another length."""
HALF_TOLERANCE = 2**-11
"""A float16 probability is within half of its last place, 2**-12 at most; the rest is the order of sums."""


@pytest.fixture
def in_threads(in_threads, monkeypatch):
    """Write cases in threads of this process, in short shards."""
    monkeypatch.setattr(write_records, "SHARD_EXAMPLES", tiny.SHARD_EXAMPLES)


def examples_of(work, manifest, part="train"):
    """Return the parsed examples of one part."""
    folder = study.records_path(work)
    lines = tiny.serialized(folder, manifest.shards(part))
    return records.parse(tf.constant(lines), manifest.data.patch, manifest.mode)


def spread_network(rule, patches):
    """Return a network whose probabilities of some patches spread about 0.5."""
    keras.utils.set_random_seed(1)
    network = model.build(config.ModelConfig(filters=(3, 4), kernel=2, dense=(5,)), rule)
    kernel, bias = network.layers[-1].get_weights()
    probability = np.median(network(patches))
    network.layers[-1].set_weights([kernel * 20, (bias - np.log(probability / (1 - probability))) * 20])
    return network


def times_ns(work):
    """Return when each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted((work / "records/shards").iterdir())}


def test_a_case_gives_its_drawn_examples_in_shards(tmp_path):
    manifest = tiny.write_all(tmp_path)
    case = manifest.cases[0]
    assert [shard.count for shard in case.shards] == [tiny.SHARD_EXAMPLES] * 3
    kinds = {kind: sum(shard.examples[kind] for shard in case.shards) for kind in records.KINDS}
    assert kinds == {"bone": 31, "near": 32, "far": 27}  # 35 %, 35 % and 30 % of 90, rounded
    assert all((tmp_path / "records" / shard.file.name).stat().st_size == shard.file.bytes for shard in case.shards)


def test_labels_are_those_of_the_mask(tmp_path):
    manifest = tiny.write_all(tmp_path)
    example = examples_of(tmp_path, manifest)
    expected = tiny.ball()[tuple(example["centre"].numpy().T)]
    np.testing.assert_array_equal(example["label"], expected)


def test_no_voxel_is_drawn_twice_from_a_case(tmp_path):
    example = examples_of(tmp_path, tiny.write_all(tmp_path), "validation")
    assert len(np.unique(example["centre"], axis=0)) == tiny.SAMPLING.per_case


def test_both_modes_draw_the_same_centres(tmp_path):
    patches = examples_of(tmp_path / "a", tiny.write_all(tmp_path / "a"))
    index = examples_of(tmp_path / "b", tiny.write_all(tmp_path / "b", mode="index"))
    np.testing.assert_array_equal(patches["centre"], index["centre"])
    np.testing.assert_array_equal(patches["label"], index["label"])
    assert not (tmp_path / "a/records/grids").exists()


def test_index_mode_keeps_the_working_grid(tmp_path):
    manifest = tiny.write_all(tmp_path, mode="index")
    plan = study.read_plan(tmp_path)
    grid = np.load(tmp_path / "records" / manifest.cases[0].grids[0].name)
    np.testing.assert_array_equal(grid, study.load_case(plan, plan.cases[0]).working.data)


def test_a_training_case_is_drawn_from_its_scan_and_from_varied_copies(tmp_path):
    manifest = tiny.write_all(tmp_path, mode="index", copies=3)
    names = [Path(grid.name).stem for case in manifest.cases for grid in case.grids]
    assert names == ["hip_01", "hip_01~1", "hip_01~2", "hip_02", "hip_02~1", "hip_02~2", "hip_03"]  # 03 is validation
    example = examples_of(tmp_path, manifest)
    drawn, counts = np.unique(example["case"].numpy(), return_counts=True)
    assert [name.decode() for name in drawn] == names[:-1]
    assert set(counts) <= {29, 30, 31}  # a third of 90, of each kind
    first, *others = [np.load(tmp_path / "records" / grid.name) for grid in manifest.cases[0].grids]
    assert all((first != other).mean() > 0.5 for other in others)


def test_few_examples_of_many_copies_keep_their_shares(tmp_path):
    plan = tiny.write_study(tmp_path, copies=60)  # of 90 examples: 32 bone, 31 near, 27 far
    written = write_records.write_case(tmp_path, plan, plan.cases[0], "index")
    counts = {kind: sum(shard.examples[kind] for shard in written.shards) for kind in records.KINDS}
    assert counts == sampling.asked(plan.data.sampling)


def test_copies_are_the_same_in_both_modes(tmp_path):
    index = tiny.write_all(tmp_path / "index", mode="index", copies=2)
    patches = tiny.write_all(tmp_path / "patches", copies=2)
    example = examples_of(tmp_path / "patches", patches)
    grids = {Path(g.name).stem: np.load(tmp_path / "index/records" / g.name) for c in index.cases for g in c.grids}
    for name, grid in grids.items():
        here = example["case"].numpy() == name.encode()
        cut = Cutter.of(grid, tiny.RULE).cut(example["centre"].numpy()[here], extra=True)
        np.testing.assert_array_equal(cut, example["patch"].numpy()[here])


def test_a_case_draws_by_the_seed_and_its_own_name():
    def draw(seed, case):
        return write_records.case_rng(seed, case).integers(0, 2**60)

    assert draw(1, "hip_01") == draw(1, "hip_01")
    assert len({draw(1, "hip_01"), draw(2, "hip_01"), draw(1, "hip_02")}) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("affine", "spacing_mm"),
    [
        (None, tiny.SPACING_MM),
        (OBLIQUE, (2.0, 1.0, 1.0)),  # axes permuted and flipped
        (OBLIQUE, (1.3, 1.1, 1.2)),  # resampled
    ],
    ids=["own grid", "oblique", "resampled"],
)
def test_the_patch_that_was_written_is_the_patch_that_inference_reads(tmp_path, affine, spacing_mm):
    rule = dataclasses.replace(tiny.RULE, spacing_mm=spacing_mm)
    manifest = tiny.write_all(tmp_path, rule=rule, affine=affine)
    example = examples_of(tmp_path, manifest, "validation")
    centres, written = example["centre"].numpy(), example["patch"].numpy()

    # What a new scan goes through: read, prepared by the rule in the manifest, cut or evaluated densely.
    case = study.read_plan(tmp_path).part("validation")[0]
    grid = study.prepare(image_io.read_image(Path(case.image)).volume, manifest.data).data
    np.testing.assert_array_equal(written, Cutter.of(grid, rule).cut(centres, extra=True))

    patches = written[:, : rule.size, : rule.size]
    network = spread_network(rule, patches)
    expected = np.asarray(network(patches))[:, 0]
    assert np.ptp(expected) > 100 * HALF_TOLERANCE  # the network tells the patches apart
    by_patches = evaluator.by_patches(network, grid, rule, centres)
    np.testing.assert_allclose(by_patches, expected, rtol=0, atol=PATCHWISE_TOLERANCE)
    dense = predict.Predictor(network, rule).probability_map(grid)[tuple(centres.T)]
    np.testing.assert_allclose(dense, expected, rtol=0, atol=HALF_TOLERANCE)


def test_test_cases_get_no_records(tmp_path, in_threads):
    tiny.write_study(tmp_path)
    manifest = write_records.write(tmp_path)
    assert [(case.case, case.part) for case in manifest.cases] == [
        ("hip_01", "train"),
        ("hip_02", "train"),
        ("hip_03", "validation"),
    ]
    assert records.read_manifest(tmp_path / "records") == manifest
    assert records.check(tmp_path / "records") == []


def test_a_killed_command_goes_on_with_the_first_unfinished_case(tmp_path, in_threads):
    tiny.write_study(tmp_path)
    manifest = write_records.write(tmp_path)
    before = times_ns(tmp_path)
    (tmp_path / "records/cases/hip_02.json").unlink()
    records.manifest_path(tmp_path / "records").unlink()
    (tmp_path / "records/shards/hip_02-00001-of-00003.tfrecord").unlink()
    assert write_records.write(tmp_path) == manifest  # the same bytes, too: the digests agree
    changed = {name for name, time_ns in times_ns(tmp_path).items() if time_ns != before[name]}
    assert changed == {name for name in before if name.startswith("hip_02")}


def test_a_finished_set_is_not_written_again(tmp_path, in_threads):
    tiny.write_study(tmp_path)
    manifest = write_records.write(tmp_path)
    before = times_ns(tmp_path)
    assert write_records.write(tmp_path) == manifest
    assert times_ns(tmp_path) == before


def test_files_that_were_copied_elsewhere_are_the_same_input(tmp_path, in_threads):
    one, other = tmp_path / "one", tmp_path / "other"
    tiny.write_study(one)
    write_records.write(one)
    shutil.copytree(one, other, copy_function=shutil.copy)  # with new times
    text = study.plan_path(other).read_text(encoding="utf-8").replace(str(one), str(other))
    study.plan_path(other).write_text(text, encoding="utf-8")
    before = times_ns(other)
    write_records.write(other)
    assert times_ns(other) == before


def remove(path):
    """Lose a file."""
    path.unlink()


def shorten(path):
    """Lose the end of a file."""
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [remove, shorten])
@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("patches", "shards/hip_02-00001-of-00003.tfrecord"),
        ("index", "shards/hip_02-00001-of-00003.tfrecord"),
        ("index", "grids/hip_02.npy"),
    ],
)
def test_a_case_that_lacks_a_file_is_written_again_and_no_other(tmp_path, in_threads, capsys, mode, name, damage):
    tiny.write_study(tmp_path)
    manifest = write_records.write(tmp_path, mode=mode)
    before = times_ns(tmp_path)
    damage(tmp_path / "records" / name)
    assert write_records.write(tmp_path, mode=mode) == manifest
    assert records.check(tmp_path / "records") == []
    changed = {name for name, time_ns in times_ns(tmp_path).items() if time_ns != before[name]}
    assert changed == {name for name in before if name.startswith("hip_02")}
    told = " ".join(capsys.readouterr().err.split())
    assert f"hip_02: missing or of another size, the case is written again: {name}" in told


def test_a_case_added_to_the_plan_leaves_the_others_as_they_are(tmp_path, in_threads):
    plan = tiny.write_study(tmp_path)
    fewer = dataclasses.replace(plan, cases=plan.cases[1:])
    files.write_json(study.plan_path(tmp_path), config.to_dict(fewer))
    first = write_records.write(tmp_path)
    before = times_ns(tmp_path)
    files.write_json(study.plan_path(tmp_path), config.to_dict(plan))
    assert write_records.write(tmp_path).cases[1:] == first.cases
    assert before.items() <= times_ns(tmp_path).items()


def change_seed(work):
    """Change the plan of a study: other centres would be drawn."""
    plan = study.read_plan(work)
    sampling = dataclasses.replace(plan.data.sampling, seed=1)
    changed = dataclasses.replace(plan, data=dataclasses.replace(plan.data, sampling=sampling))
    files.write_json(study.plan_path(work), config.to_dict(changed))


def change_mask(work):
    """Add a voxel to a mask."""
    path = work / "masks/hip_01.nii.gz"
    mask = nibabel.load(path)
    data = np.asarray(mask.dataobj).copy()
    data[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(data, mask.affine), path)


def test_an_image_of_several_files_has_the_digest_of_each(tmp_path):
    for name in ("hip_1.nhdr", "hip_1.RAW", "hip_10.nhdr", "series/a.dcm", "series/b.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = study.digests(tmp_path / "hip_1.nhdr")
    assert found == sorted(files.sha256(tmp_path / name) for name in ("hip_1.nhdr", "hip_1.RAW"))
    assert len(study.digests(tmp_path / "series")) == 2


def test_what_lies_beside_an_image_is_not_the_image(tmp_path):
    for name in ("1.2.nii.gz", "1.2.json", "1.2.7.nii.gz"):
        (tmp_path / name).write_text(name)
    assert study.digests(tmp_path / "1.2.nii.gz") == [files.sha256(tmp_path / "1.2.nii.gz")]


def test_a_mask_that_changes_while_its_case_is_written_is_noticed(tmp_path, in_threads, monkeypatch):
    tiny.write_study(tmp_path)
    read = study.load_case

    def read_then_changed(plan, case):
        found = read(plan, case)
        if case.name == "hip_01":
            change_mask(tmp_path)
        return found

    monkeypatch.setattr(study, "load_case", read_then_changed)
    write_records.write(tmp_path)
    with pytest.raises(DataError, match=r"hip_01\.json: expected what this command makes.*other settings or"):
        write_records.write(tmp_path)


def test_two_processes_that_write_one_study_are_refused(tmp_path):
    tiny.write_study(tmp_path)
    with (
        files.locked(study.records_path(tmp_path), ""),
        pytest.raises(DataError, match=r"records: another process is working here\. Wait for it to end"),
    ):
        write_records.write(tmp_path)


def test_records_that_lie_on_another_disk_stay_there(tmp_path, in_threads):
    tiny.write_study(tmp_path)
    (tmp_path / "disk").mkdir()
    study.records_path(tmp_path).symlink_to(tmp_path / "disk")
    write_records.write(tmp_path)
    write_records.write(tmp_path, mode="index", overwrite=True)
    assert study.records_path(tmp_path).is_symlink()
    assert records.read_manifest(tmp_path / "disk").mode == "index"


def test_a_plan_without_training_cases_is_refused(tmp_path):
    plan = tiny.write_study(tmp_path)
    cases = tuple(dataclasses.replace(case, part="test") for case in plan.cases)
    files.write_json(study.plan_path(tmp_path), config.to_dict(dataclasses.replace(plan, cases=cases)))
    with pytest.raises(DataError, match=r"plan\.json: expected train cases\. Received: none"):
        write_records.write(tmp_path)


@pytest.mark.parametrize(
    ("change", "mode"), [(change_seed, "patches"), (change_mask, "patches"), (lambda work: None, "index")]
)
def test_records_made_from_something_else_are_kept_until_overwritten(tmp_path, in_threads, change, mode):
    tiny.write_study(tmp_path)
    write_records.write(tmp_path)
    before = times_ns(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=r"hip_01\.json: expected what this command makes.*--overwrite"):
        write_records.write(tmp_path, mode=mode)
    assert times_ns(tmp_path) == before
    assert records.check(tmp_path / "records") == []
    manifest = write_records.write(tmp_path, mode=mode, overwrite=True)
    assert manifest.mode == mode
    assert records.check(tmp_path / "records") == []


def test_the_command_prints_the_counts_of_each_case(tmp_path, in_threads, capsys):
    tiny.write_study(tmp_path)
    write_records.main(write_records.WriteArguments(tmp_path, index_only=True, processes=1))
    shown = capsys.readouterr().out
    assert "(index)" in shown
    assert "hip_03" in shown
    assert f"Next: python -m femur_tf.train {tmp_path}" in shown


@pytest.mark.slow
def test_processes_write_what_one_process_writes(tmp_path):
    tiny.write_study(tmp_path)
    plan = study.read_plan(tmp_path)
    alone = tuple(write_records.write_case(tmp_path, plan, case, "patches") for case in plan.cases[:3])
    files.remove(tmp_path / "records")
    assert write_records.write(tmp_path, processes=2).cases == alone


def test_a_process_that_is_ended_from_outside_says_what_may_help(tmp_path, in_threads, monkeypatch):
    def ended(*arguments):
        raise BrokenProcessPool

    tiny.write_study(tmp_path)
    monkeypatch.setattr(write_records, "write_case", ended)
    with pytest.raises(DataError, match=r"for want of memory\. Pass fewer --processes than 1; cases that are written"):
        write_records.write(tmp_path)


def test_an_interrupt_ends_the_workers(tmp_path, in_threads, monkeypatch):
    """Those cases that a pool has handed out would all be written first."""
    ended = []
    worker = types.SimpleNamespace(terminate=lambda: ended.append("ended"))
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [worker])

    def interrupted(*arguments):
        raise KeyboardInterrupt

    tiny.write_study(tmp_path)
    monkeypatch.setattr(write_records, "write_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_records.write(tmp_path)
    assert ended == ["ended"]


def test_what_a_killed_command_has_left_of_shards_is_removed(tmp_path, in_threads):
    tiny.write_study(tmp_path)
    left = tmp_path / "records" / "shards" / ".partial-00000000-x.tfrecord"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    write_records.write(tmp_path)
    assert not left.exists()


def test_records_are_kept_where_a_scan_is_gone(tmp_path, in_threads):
    plan = tiny.write_study(tmp_path)
    write_records.write(tmp_path)
    before = times_ns(tmp_path)
    Path(plan.cases[0].image).rename(tmp_path / "away.nii.gz")
    for overwrite in (False, True):
        with pytest.raises(
            DataError, match=r"hip_01\.nii\.gz: expected a scan or mask of the plan\. Received: nothing there"
        ):
            write_records.write(tmp_path, overwrite=overwrite)
    assert times_ns(tmp_path) == before


def test_a_folder_without_a_plan_says_what_to_run_first(tmp_path):
    with pytest.raises(DataError, match=r"Run first: python -m data_prep\.plan"):
        write_records.write(tmp_path)


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    tiny.write_study(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"GB of free disk for 270 examples\. Received: 1e-06 GB.*--index-only"):
        write_records.write(tmp_path)
    with pytest.raises(DataError, match=r"GB of free disk for 270 examples\. .*\(--per-case\)\.$"):
        write_records.write(tmp_path, mode="index")
    assert not (tmp_path / "records").exists()


def test_grids_that_do_not_fit_the_disk_are_refused_before_they_are_written(tmp_path, in_threads, monkeypatch):
    tiny.write_study(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=300))
    monkeypatch.setattr(write_records, "example_bytes", lambda patch, mode: 1)
    with pytest.raises(DataError, match=r"GB of free disk for \d+ grids of hip_01\. .*\(--copies\)\.$"):
        write_records.write(tmp_path, mode="index")
    assert not list((tmp_path / "records").rglob("*.npy"))


def test_no_further_case_is_begun_after_the_disk_is_full(tmp_path, in_threads, monkeypatch):
    begun = []

    def full(work, plan, case, mode):
        begun.append(case.name)
        time.sleep(0.2)
        raise OSError(errno.ENOSPC, "No space left on device")

    plan = tiny.write_study(tmp_path)
    cases = tuple(dataclasses.replace(plan.cases[0], name=f"hip_{n:02d}") for n in range(1, 10))
    files.write_json(study.plan_path(tmp_path), config.to_dict(dataclasses.replace(plan, cases=cases)))
    monkeypatch.setattr(write_records, "write_case", full)
    with pytest.raises(OSError, match="No space left"):
        write_records.write(tmp_path)
    assert len(begun) <= 2  # one may have begun before the first was known to have failed


def test_a_mask_without_bone_gives_background_alone(tmp_path):
    plan = tiny.write_study(tmp_path)
    empty = np.zeros(tiny.SHAPE, np.uint8)
    nibabel.save(nibabel.Nifti1Image(empty, np.diag([*tiny.SPACING_MM, 1.0])), plan.cases[0].mask)
    case = write_records.write_case(tmp_path, plan, plan.cases[0], "patches")
    assert [shard.examples for shard in case.shards] == [{"bone": 0, "near": 0, "far": 27}]


def test_records_of_a_version_without_some_settings_can_be_gone_on_with(tmp_path):
    """Not to have a setting is to have it off."""
    plan = tiny.write_study(tmp_path)
    off = dataclasses.replace(plan.data, variation=config.VariationConfig(copies=2))
    values = config.to_dict(off)
    for part, names in made_from.ADDED.items():
        for name in names:
            del values[part][name]
    earlier = config.from_dict(config.DataConfig, values)
    on = dataclasses.replace(off, variation=dataclasses.replace(off.variation, cut_mm=20.0))
    digests = [
        made_from.fingerprint(dataclasses.replace(plan, data=data), plan.cases[0], "patches")
        for data in (off, earlier, on)
    ]
    assert digests[0] == digests[1] != digests[2]
