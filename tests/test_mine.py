"""data_prep.mine: a run's errors become examples, beside those that it was trained on."""

import dataclasses
import shutil

import bright
import numpy as np
import pytest
import tensorflow as tf
import tiny

from data_prep import mine
from data_prep.hard_examples import MiningConfig
from femur_tf import bundle, config, dataset, files, mined_records, records, study
from femur_tf.errors import DataError

MINING = MiningConfig(per_case=40, margin_mm=0.0)
TRAIN = ("hip_01", "hip_02")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A study with records in patch mode and a run."""
    work = tmp_path_factory.mktemp("mine")
    tiny.write_all(work, rule=bright.RULE, copies=2)
    bright.save_run(study.run_path(work, "default"))
    return work


@pytest.fixture(scope="module")
def mined(written):
    return mine.mine(arguments(written))


def arguments(work, **options) -> mine.MineArguments:
    return mine.MineArguments(work, **({"mining": MINING} | options))


def sets(work, name="default"):
    return mined_records.folder(study.records_path(work), name)


def examples_of(folder, manifest):
    lines = tiny.serialized(folder, manifest.shards("train"))
    return records.parse(tf.constant(lines), manifest.data.patch, manifest.mode)


@pytest.mark.slow
def test_examples_are_errors_of_training_cases(written, mined):
    found = bundle.load(study.run_path(written, "default"))
    plan, manifest = study.read_plan(written), records.read_manifest(sets(written))
    assert [case.case for case in manifest.cases] == list(TRAIN)
    example = examples_of(sets(written), manifest)
    for case in plan.part("train"):
        loaded = study.load_case(plan, case)
        map_ = bundle.working_map(found, loaded.working).data
        here = example["case"].numpy() == case.name.encode()
        centres = tuple(example["centre"].numpy()[here].T)
        wrong = (map_[centres] >= found.recipe.cutoff) != loaded.working_mask[centres]
        assert len(wrong) == sum(mined.drawn[case.name].values())
        assert wrong.sum() == mined.drawn[case.name]["false_positive"] + mined.drawn[case.name]["false_negative"]
        np.testing.assert_array_equal(example["label"].numpy()[here], loaded.working_mask[centres])


def test_what_was_asked_is_drawn_where_there_is_enough(mined):
    for case in TRAIN:
        for error, count in MINING.wanted.items():
            assert mined.drawn[case][error] == min(count, mined.found[case][error])
        assert mined.drawn[case]["false_positive"] + mined.drawn[case]["false_negative"] > 0


def test_a_mined_set_is_a_sound_records_folder(written, mined):
    assert records.check(sets(written)) == []
    kept = config.load(mine.Mined, sets(written) / "mined.json")
    assert kept == mined
    assert kept.cutoff == bright.RECIPE.cutoff


def test_a_damaged_shard_of_a_mined_set_is_found(written, mined, capsys):
    shard = next((sets(written) / "shards").iterdir())
    content = shard.read_bytes()
    shard.write_bytes(content[:-5])
    try:
        assert records.main(records.CheckArguments(written)) == 2
    finally:
        shard.write_bytes(content)
    assert f"{shard}: expected {len(content)} bytes" in capsys.readouterr().err


def test_both_are_read_as_one(written, mined):
    folder = study.records_path(written)
    ordinary, both = mined_records.read_manifest(folder), mined_records.read_manifest(folder, ["default"])
    extra = sum(sum(counts.values()) for counts in mined.drawn.values())
    assert ordinary == records.read_manifest(folder)
    assert both.count("train") == ordinary.count("train") + extra
    assert both.count("validation") == ordinary.count("validation")
    batches = dataset.batches(folder, both, "train", batch=64, seed=1, training=config.AugmentConfig())
    labels = np.concatenate([label for _, label in batches.as_numpy_iterator()])
    assert len(labels) == both.count("train")


@pytest.mark.slow
def test_index_mode_reads_the_same_patches(tmp_path, written, mined):
    tiny.write_all(tmp_path, rule=bright.RULE, copies=2, mode="index")
    bright.save_run(study.run_path(tmp_path, "default"))
    mine.mine(arguments(tmp_path))
    first, second = (
        dataclasses.replace(manifest, cases=tuple(c for c in manifest.cases if c not in ordinary.cases))
        for manifest, ordinary in (
            (mined_records.read_manifest(f, ["default"]), records.read_manifest(f))
            for f in (study.records_path(written), study.records_path(tmp_path))
        )
    )
    grids = tuple(g for case in records.read_manifest(study.records_path(tmp_path)).cases for g in case.grids)
    second = dataclasses.replace(second, cases=(dataclasses.replace(second.cases[0], grids=grids), *second.cases[1:]))
    one, other = (
        list(dataset.batches(study.records_path(work), manifest, "train", batch=64).as_numpy_iterator())
        for work, manifest in ((written, first), (tmp_path, second))
    )
    for (patch, label), (again, same) in zip(one, other, strict=True):
        np.testing.assert_array_equal(patch, again)
        np.testing.assert_array_equal(label, same)


@pytest.mark.slow
def test_copies_are_mined_too(written):
    found = mine.mine(arguments(written, name="copies", mining=dataclasses.replace(MINING, copies=5)))
    example = examples_of(sets(written, "copies"), records.read_manifest(sets(written, "copies")))
    names = set(example["case"].numpy().tolist())
    assert names == {b"hip_01", b"hip_01~1", b"hip_02", b"hip_02~1"}  # the plan has two
    assert len(example["label"]) == sum(sum(counts.values()) for counts in found.drawn.values())


def test_copies_of_masks_that_have_changed_since_are_refused(tmp_path):
    """In index mode their grids lie on disk, as they were."""
    tiny.write_all(tmp_path, rule=bright.RULE, copies=2, mode="index")
    bright.save_run(study.run_path(tmp_path, "default"))
    path = tmp_path / "masks" / "hip_02.nii.gz"
    mask = tiny.ball().astype(np.uint8)
    mask[:12] = 0
    bright.save(path, mask)
    with pytest.raises(DataError, match=r"expected records of the scans and masks as they are.*: hip_02\. Write them"):
        mine.mine(arguments(tmp_path, mining=dataclasses.replace(MINING, copies=2)))


def test_a_killed_command_goes_on(written, monkeypatch):
    work, real = arguments(written, name="killed"), mine.mine_case

    def killed(miner, case):
        if case.name == "hip_02":
            raise KeyboardInterrupt
        return real(miner, case)

    monkeypatch.setattr(mine, "mine_case", killed)
    with pytest.raises(KeyboardInterrupt):
        mine.mine(work)
    with pytest.raises(DataError, match=r"expected a mined set, found none.*data_prep\.mine .* --name killed"):
        mined_records.read_manifest(study.records_path(written), ["killed"])
    calls = []
    monkeypatch.setattr(mine, "mine_case", lambda miner, case: calls.append(case.name) or real(miner, case))
    mine.mine(work)
    assert calls == ["hip_02"]
    assert mined_records.read_manifest(study.records_path(written), ["killed"])


@pytest.mark.slow
def test_another_memory_limit_makes_no_other_set(written, monkeypatch):
    mine.mine(arguments(written, name="memory"))
    monkeypatch.setattr(mine, "mine_case", lambda miner, case: pytest.fail(f"{case.name} is mined again"))
    mine.mine(arguments(written, name="memory", prediction=config.PredictConfig(max_memory=3000)))


@pytest.mark.slow
def test_a_set_made_from_something_else_is_kept_until_overwritten(written):
    first, other = (arguments(written, name="kept", mining=dataclasses.replace(MINING, per_case=n)) for n in (5, 6))
    mine.mine(first)
    with pytest.raises(DataError, match=r"hip_01\.json: expected what this command makes.*--overwrite"):
        mine.mine(other)
    found = mine.mine(dataclasses.replace(other, overwrite=True))
    assert sum(found.drawn["hip_01"].values()) <= 6


def test_the_command_prints_what_was_drawn(written, mined, capsys):
    mine.main(arguments(written))
    shown = capsys.readouterr().out
    assert f"{mined.drawn['hip_01']['false_positive']} of {mined.found['hip_01']['false_positive']}" in shown
    assert "--mined default" in shown
    assert "--config" in shown  # the run's network is not that of the default preset
    assert "hip_03" not in shown


def test_a_set_too_small_to_matter_is_warned_of(written, mined, capsys):
    manifest = records.read_manifest(study.records_path(written))
    mine._warn_of_few(mined, manifest)
    assert "change next to nothing" not in capsys.readouterr().err
    none = {case: dict.fromkeys(counts, 0) for case, counts in mined.drawn.items()}
    mine._warn_of_few(dataclasses.replace(mined, drawn=none), manifest)
    assert "0 examples beside" in capsys.readouterr().err


def test_a_set_of_another_plan_is_refused(tmp_path, written, mined):
    tiny.write_all(tmp_path)
    place = sets(tmp_path)
    place.mkdir(parents=True)
    manifest = sets(written) / "manifest.json"
    files.write_json(place / "manifest.json", files.read_json(manifest))
    with pytest.raises(DataError, match="one made for another plan or mode"):
        mined_records.read_manifest(study.records_path(tmp_path), ["default"])


def test_a_set_is_kept_where_it_cannot_be_made_again(written, mined, monkeypatch):
    bright.save_run(study.run_path(written, "bare"), chosen=None)
    place, manifest = sets(written), records.manifest_path(sets(written))
    before = manifest.read_bytes()
    try:
        with pytest.raises(DataError, match="expected a recipe"):
            mine.mine(arguments(written, run="bare", name="default", overwrite=True))
    finally:
        files.remove(study.run_path(written, "bare"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("", (), {"free": 0}))
    with pytest.raises(DataError, match="free disk"):
        mine.mine(arguments(written, overwrite=True))
    assert manifest.read_bytes() == before and (place / "shards").exists()


def test_more_copies_than_examples_are_refused():
    with pytest.raises(ValueError, match="copies: expected at least 1, and an example of each"):
        MiningConfig(per_case=2, copies=3)


@pytest.mark.parametrize(
    ("chosen", "patch", "words"),
    [
        (None, bright.RULE, "expected a recipe, found none"),
        (bright.CHOSEN, dataclasses.replace(bright.RULE, spacing_mm=(1.0, 1.0, 1.5)), "run on the plan's working grid"),
    ],
    ids=["no recipe", "another grid"],
)
def test_a_run_that_cannot_be_mined_is_refused(written, chosen, patch, words):
    settings = dataclasses.replace(bright.SETTINGS, data=dataclasses.replace(bright.SETTINGS.data, patch=patch))
    bright.save_run(study.run_path(written, "other"), chosen=chosen, settings=settings)
    try:
        with pytest.raises(DataError, match=words):
            mine.mine(arguments(written, run="other"))
    finally:
        files.remove(study.run_path(written, "other"))
