"""What a run has learned from: told before it trains, and asked before it is scored."""

import dataclasses

import pytest
import tiny

from data_prep import mine
from femur_tf import config, files, lineage, mined_records, records, study, train
from femur_tf.errors import DataError
from femur_tf.lineage import Lineage, Seen
from tuning import launch, search


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A study with records; not to be changed."""
    work = tmp_path_factory.mktemp("lineage")
    tiny.write_all(work)
    return work


@pytest.fixture
def work(written, tmp_path):
    """The same study, to be changed: its plan, its manifest."""
    for path in (study.plan_path(written), records.manifest_path(study.records_path(written))):
        files.write_json(tmp_path / path.relative_to(written), files.read_json(path))
    return tmp_path


def split_anew(work, **parts):
    """Change the part of some cases in a study's plan."""
    plan = study.read_plan(work)
    cases = tuple(dataclasses.replace(case, part=parts.get(case.name, case.part)) for case in plan.cases)
    files.write_json(study.plan_path(work), config.to_dict(dataclasses.replace(plan, cases=cases)))


def manifest_of(*cases):
    """Return a manifest of cases, each a name and a part."""
    return records.Manifest(
        config.DataConfig(), "patches", tuple(records.CaseRecords(n, p, (), f"{n}!") for n, p in cases)
    )


def saved(folder, found):
    """Write what a run has learned from."""
    files.write_json(folder / lineage.NAME, config.to_dict(found))
    return folder


def test_a_lineage_is_read_as_it_was_written(tmp_path):
    found = Lineage((Seen("a", "train", "1"), Seen("b", "validation", "2")), (Seen("c", "train", "3"),))
    assert lineage.read(saved(tmp_path / "run", found)) == found
    assert lineage.read(tmp_path / "none") is None
    assert (found.names("train"), found.names("validation")) == ({"a", "c"}, {"b"})


def test_a_run_has_learned_what_the_one_before_it_had(tmp_path):
    before = Lineage((Seen("c", "train", "3"),), (Seen("d", "validation", "4"),))
    found = lineage.of(manifest_of(("a", "train"), ("b", "validation")), saved(tmp_path / "before", before))
    assert found.cases == (Seen("a", "train", "a!"), Seen("b", "validation", "b!"))
    assert found.names("train", "validation") == {"a", "b", "c", "d"}
    assert lineage.of(manifest_of(("a", "train")), None).earlier == ()


def test_a_start_that_was_trained_on_a_validation_case_is_refused(tmp_path):
    start = saved(tmp_path / "before", Lineage((Seen("b", "train", "1"),)))
    with pytest.raises(
        DataError, match=r"before: expected a run that was not trained on the validation cases.* on b\. "
    ):
        lineage.of(manifest_of(("a", "train"), ("b", "validation")), start)


def test_records_of_the_plans_split_are_read(written, tmp_path):
    folder = study.records_path(written)
    lineage.require_split(folder, records.read_manifest(folder))
    split_anew_elsewhere = manifest_of(("hip_01", "validation"))
    lineage.require_split(tmp_path / "alone" / "records", split_anew_elsewhere)  # records that were copied alone


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"hip_02": "validation"}, r"hip_02 \(validation\)\. Received: hip_02 \(train\)\. "),
        ({"hip_01": "test"}, r"hip_01 \(not in them\)\. Received: hip_01 \(train\)\. "),
        ({"hip_04": "train"}, r"hip_04 \(train\)\. Received: hip_04 \(not in them\)\. "),
    ],
)
def test_records_of_another_split_are_refused(work, parts, words):
    split_anew(work, **parts)
    folder = study.records_path(work)
    with pytest.raises(DataError, match=rf"manifest\.json: expected the split of the plan: {words}Write the records"):
        lineage.require_split(folder, records.read_manifest(folder))


@pytest.mark.parametrize(
    "command",
    [
        lambda work: train.main(train.TrainArguments(work, preset="paper", epochs=1)),
        lambda work: mine.mine(mine.MineArguments(work)),
        lambda work: launch.settings(search.SearchArguments(work)),
    ],
    ids=["train", "mine", "search"],
)
def test_every_command_that_reads_records_asks(work, command):
    split_anew(work, hip_02="validation")
    with pytest.raises(DataError, match="expected the split of the plan"):
        command(work)


def test_mined_examples_of_a_case_that_is_not_trained_on_now_are_refused(work):
    folder = study.records_path(work)
    manifest = records.read_manifest(folder)
    mined = dataclasses.replace(manifest, cases=tuple(c for c in manifest.cases if c.part == "train"))
    files.write_json(records.manifest_path(mined_records.folder(folder, "hard")), config.to_dict(mined))
    assert len(mined_records.read_manifest(folder, ["hard"]).cases) == 5
    cases = tuple(dataclasses.replace(c, part="validation") if c.case == "hip_02" else c for c in manifest.cases)
    files.write_json(records.manifest_path(folder), config.to_dict(dataclasses.replace(manifest, cases=cases)))
    with pytest.raises(DataError, match=r"expected examples of training cases\. Received: of hip_02, which"):
        mined_records.read_manifest(folder, ["hard"])
