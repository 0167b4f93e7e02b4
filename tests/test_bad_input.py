"""Bad input gets one clear message and exit status 2, and nothing is lost.

Each row is what a user may hand in, through the edge of the real commands
(`command.run`); one row starts a process of its own, as a user does.
"""

from __future__ import annotations

import collections
import errno
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import bright
import nibabel
import numpy as np
import pytest
import tiny

from data_prep import plan, write_records
from femur_tf import command, evaluate, export, records, segment, study, train

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "plan": (plan.main, plan.PlanArguments),
    "write_records": (write_records.main, write_records.WriteArguments),
    "check": (records.main, records.CheckArguments),
    "train": (train.main, train.TrainArguments),
    "evaluate": (evaluate.main, evaluate.EvaluateArguments),
    "export": (export.main, export.ExportArguments),
    "segment": (segment.main, segment.SegmentArguments),
}
NOT_A_NUMBER = np.where(np.arange(np.prod(tiny.SHAPE)).reshape(tiny.SHAPE) < 3, np.nan, 1.0).astype(np.float32)


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a command with the given words and gives (exit status, out, err)."""

    def call(name, *words):
        monkeypatch.setattr("sys.argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            command.run(*COMMANDS[name])
        return caught.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bright.save_run(tmp_path_factory.mktemp("model"))


@pytest.fixture
def cohort(tmp_path):
    """Four good cases in images/ and masks/."""
    for name in tiny.PARTS:
        bright.save(tmp_path / "images" / f"{name}.nii.gz", tiny.scan(name))
        mask = tiny.ball().astype(np.uint8)
        mask[12, 10, 6 : 6 + int(name[-1])] = 0  # no two the same
        bright.save(tmp_path / "masks" / f"{name}.nii.gz", mask)
    return tmp_path


def plan_words(cohort, *more):
    return "plan", cohort / "work", "--images", cohort / "images", "--masks", cohort / "masks", "--test", "4", *more


def cut_short(path: Path) -> None:
    """Keep the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_image(path: Path) -> None:
    path.write_bytes(b"no image")


def no_gzip_inside(path: Path) -> None:
    path.write_bytes(gzip.compress(b"no image"))


def four_dimensional(path: Path) -> None:
    bright.save(path, np.zeros((*tiny.SHAPE, 2), np.int16))


def not_a_number(path: Path) -> None:
    bright.save(path, NOT_A_NUMBER)


def constant(path: Path) -> None:
    bright.save(path, np.full(tiny.SHAPE, 5, np.int16))


def other_shape(path: Path) -> None:
    bright.save(path, tiny.ball((20, 20, 12)).astype(np.uint8))


def other_affine(path: Path) -> None:
    bright.save(path, tiny.ball().astype(np.uint8), np.diag([1.0, 1.0, 2.5, 1.0]))


def several_labels(path: Path) -> None:
    mask = tiny.ball().astype(np.uint8)
    mask[0, 0, :2] = 3
    bright.save(path, mask)


def fractions(path: Path) -> None:
    bright.save(path, tiny.ball() * np.float32(0.5))


def empty(path: Path) -> None:
    bright.save(path, np.zeros(tiny.SHAPE, np.uint8))


BAD_SCANS = {
    "cut short": (cut_short, "expected a whole image"),
    "no image": (no_image, "expected a whole image"),
    "no image inside": (no_gzip_inside, "expected a whole image"),
    "4-D": (four_dimensional, "(24, 20, 12, 2)"),
    "NaN": (not_a_number, "expected finite voxels. Received: 3 of 5760 NaN or infinite"),
}
BAD_CASES = [
    *(("images", harm, words) for harm, words in BAD_SCANS.values()),
    ("images", constant, "Received: a constant, every voxel is 5"),
    ("masks", cut_short, "expected a whole image"),
    ("masks", other_shape, "not on the grid of"),
    ("masks", other_affine, "not on the grid of"),
    ("masks", several_labels, "Received: 1, 3. Pass --label N"),
    ("masks", fractions, "expected whole numbers as labels"),
    ("masks", empty, "Received: an empty mask"),
]


@pytest.mark.parametrize(("kind", "harm", "words"), BAD_CASES, ids=[f"{k}-{h.__name__}" for k, h, _ in BAD_CASES])
def test_a_cohort_with_a_bad_case_gets_no_plan(run, cohort, kind, harm, words):
    harm(cohort / kind / "hip_02.nii.gz")
    status, _, err = run(*plan_words(cohort))
    assert status == 2
    assert "hip_02" in err and words in err
    assert not (cohort / "work").exists()


@pytest.mark.parametrize(("harm", "words"), BAD_SCANS.values(), ids=BAD_SCANS)
def test_a_bad_scan_gets_no_mask(run, tmp_path, model, harm, words):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    harm(scan)
    status, _, err = run("segment", scan, tmp_path / "mask.nii.gz", "--model", model)
    assert status == 2
    assert str(scan) in err and words in err
    assert not (tmp_path / "mask.nii.gz").exists()


@pytest.mark.usefixtures("in_threads")
def test_a_mask_that_came_to_harm_after_the_plan_stops_the_records(run, cohort):
    assert run(*plan_words(cohort))[0] == 0
    for name in ("hip_01", "hip_02", "hip_03"):
        cut_short(cohort / "masks" / f"{name}.nii.gz")
    status, _, err = run("write_records", cohort / "work", "--processes", "1")
    assert status == 2
    assert "hip_0" in err
    assert not (cohort / "work" / "records" / "manifest.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("segment", "none.nii.gz", "mask.nii.gz", "--model", "MODEL"),
        ("segment", "scan.nii.gz", "mask.nii.gz", "--model", "none"),
        ("plan", "work", "--images", "none", "--masks", "no_masks"),
    ],
)
def test_what_is_not_there_is_named(run, tmp_path, model, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    status, _, err = run(*(str(model) if word == "MODEL" else word for word in words))
    assert status == 2
    assert err.startswith("error: none")


@pytest.mark.slow
def test_a_process_of_its_own_ends_with_status_2_and_one_message(tmp_path):
    words = [sys.executable, "-m", "femur_tf.segment", "none.nii.gz", str(tmp_path / "mask.nii.gz"), "--model", "none"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: none.nii.gz: expected") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("write_records",), "data_prep.plan"),
        (("check",), "data_prep.write_records"),
        (("train",), "data_prep.write_records"),
        (("evaluate",), "data_prep.plan"),
        (("export", "--to", "femur"), "a run folder"),
    ],
)
def test_a_folder_without_what_a_command_needs_says_what_to_run_first(run, tmp_path, words, first):
    status, _, err = run(words[0], tmp_path, *words[1:])
    assert status == 2
    assert first in err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_without_a_run_says_what_to_run_first(run, cohort):
    run(*plan_words(cohort))
    status, _, err = run("evaluate", cohort / "work")
    assert status == 2
    assert "Run first: python -m femur_tf.train" in err


def test_an_existing_output_is_kept_without_overwrite(run, cohort, model):
    run(*plan_words(cohort))
    before = study.plan_path(cohort / "work").read_bytes()
    status, _, err = run(*plan_words(cohort, "--per-case", "7"))
    assert (status, "--overwrite" in err) == (2, True)
    assert study.plan_path(cohort / "work").read_bytes() == before
    mask = cohort / "masks" / "hip_01.nii.gz"
    before = mask.read_bytes()
    status, _, err = run("segment", cohort / "images" / "hip_01.nii.gz", mask, "--model", model)
    assert (status, "--overwrite" in err) == (2, True)
    assert mask.read_bytes() == before


def test_a_full_disk_stops_the_records_before_they_start(run, cohort, monkeypatch):
    run(*plan_words(cohort))
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    status, _, err = run("write_records", cohort / "work")
    assert status == 2
    assert "of free disk for" in err and "--index-only" in err
    assert not (cohort / "work" / "records").exists()


def test_a_disk_that_fills_up_leaves_the_earlier_mask_and_nothing_temporary(run, tmp_path, model, monkeypatch):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    mask = tmp_path / "masks" / "mask.nii.gz"
    mask.parent.mkdir()
    mask.write_bytes(b"the earlier one")

    def full(image, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(nibabel, "save", full)
    status, _, err = run("segment", scan, mask, "--model", model, "--overwrite")
    assert status == 2
    assert "No space left on device" in err
    assert [path.read_bytes() for path in mask.parent.iterdir()] == [b"the earlier one"]


def test_a_disk_that_fills_up_stops_a_folder_of_scans(run, tmp_path, model, monkeypatch):
    for name in ("a", "b"):
        bright.save(tmp_path / "scans" / f"{name}.nii.gz", tiny.scan(name))
    monkeypatch.setattr(nibabel, "save", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    status, _, err = run("segment", tmp_path / "scans", tmp_path / "masks", "--model", model)
    assert status == 2
    assert err.count("No space left") == 1  # the second scan would fare no better


@pytest.mark.parametrize("words", [("segment", "scan.nii.gz", "mask.nii.gz", "--model", "RUN"), ("evaluate", "WORK")])
def test_a_model_of_another_format_version_is_refused(run, tmp_path, model, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    tiny.write_study(tmp_path, rule=bright.RULE)
    bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    folder = shutil.copytree(model, study.run_path(tmp_path, "default"))
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"format_version": 99}
    (folder / "config.json").write_text(json.dumps(settings))
    names = {"RUN": str(folder), "WORK": str(tmp_path)}
    status, _, err = run(*(names.get(word, word) for word in words))
    assert status == 2
    assert "expected format_version 1. Received: 99" in err
    assert not (tmp_path / "mask.nii.gz").exists()


@pytest.mark.parametrize("harm", ["a byte turned", "cut short", "gone"])
def test_a_corrupted_shard_is_named_with_its_byte(run, tmp_path, harm):
    manifest = tiny.write_all(tmp_path)
    shard = manifest.cases[1].shards[2]
    path = tmp_path / "records" / shard.file.name
    record = shard.file.bytes // shard.count
    if harm == "gone":
        path.unlink()
    elif harm == "cut short":
        cut_short(path)
    else:
        data = bytearray(path.read_bytes())
        data[record * 4 + 30] ^= 1  # inside the fifth record
        path.write_bytes(data)
    status, out, err = run("check", tmp_path)
    assert status == 2
    assert str(path) in err
    assert "1 bad file(s)." in out
    if harm == "a byte turned":
        assert f"the record that starts at byte {record * 4} is damaged" in err


def test_a_choice_on_test_cases_is_refused(run, tmp_path):
    status, _, err = run("evaluate", tmp_path, "--part", "test", "--cutoff", "youden")
    assert status == 2
    assert "Expected no choice on test cases" in err


def test_a_volume_smaller_than_a_patch_works(run, tmp_path, model):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a")[6:18, 6:14, 3:5])
    assert run("segment", scan, tmp_path / "mask.nii.gz", "--model", model)[0] == 0
    assert (tmp_path / "mask.nii.gz").exists()


def test_a_far_spacing_works_and_says_what_is_resampled(run, tmp_path, model):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"), np.diag([1.0, 1.0, 5.2, 1.0]))
    status, _, err = run("segment", scan, tmp_path / "mask.nii.gz", "--model", model)
    assert status == 0
    assert "1 x 1 x 5.2 mm is resampled to 1 x 1 x 2 mm" in err


@pytest.mark.parametrize("name", ["plan", "segment"])
def test_a_scan_without_orientation_works_and_is_warned_of(run, cohort, model, name):
    for kind in ("images", "masks"):
        path = cohort / kind / "hip_02.nii.gz"
        image = nibabel.load(path)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj), None)
        image.header.set_zooms(tiny.SPACING_MM)
        nibabel.save(image, path)
    scan = cohort / "images" / "hip_02.nii.gz"
    words = plan_words(cohort) if name == "plan" else ("segment", scan, cohort / "mask.nii.gz", "--model", model)
    status, _, err = run(*words)
    assert status == 0
    assert err.count(f"warning: {scan}: ") == 1
    assert f"warning: {scan}: expected the orientation of its axes. Received: none." in err


def test_a_spacing_a_thousandfold_is_refused(run, tmp_path, model):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"), np.diag([1000.0, 1000.0, 2000.0, 1.0]))
    status, _, err = run("segment", scan, tmp_path / "mask.nii.gz", "--model", model)
    assert status == 2
    assert "expected a working grid of at most" in err and "24 x 20 x 12 voxels, 1000 x 1000 x 2000 mm apart" in err


def test_a_case_in_two_parts_is_refused(run, cohort):
    run(*plan_words(cohort))
    path = study.plan_path(cohort / "work")
    values = json.loads(path.read_text(encoding="utf-8"))
    values["cases"].append(values["cases"][0] | {"part": "test"})
    path.write_text(json.dumps(values))
    status, _, err = run("write_records", cohort / "work")
    assert status == 2
    assert f"expected each case in one part. Received: more than once {values['cases'][0]['name']}" in err


def test_brackets_in_a_path_reach_the_user(run, tmp_path, model):
    scan = bright.save(tmp_path / "[red]" / "scan[1].nii.gz", tiny.scan("a"))
    cut_short(scan)
    assert str(scan) in run("segment", scan, tmp_path / "mask.nii.gz", "--model", model)[2]
