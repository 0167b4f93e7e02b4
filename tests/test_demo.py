"""femur_tf.demo: what it runs, what it refuses. test_pipeline.py goes the whole way."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from femur_tf import case_scores, demo, image_io
from femur_tf.errors import DataError


@pytest.fixture
def ran(monkeypatch):
    """Run no command; give the list of those asked for. The word `fail` among a command's words makes it fail."""
    asked = []

    def run(words, *, check, env):
        asked.append(words[1:])
        return subprocess.CompletedProcess(words, 3 if "fail" in words else 0)

    monkeypatch.setattr(demo.subprocess, "run", run)
    return asked


def test_the_commands_go_from_the_plan_to_the_mask(tmp_path):
    cases = demo.names(6)
    todo = demo.commands(tmp_path, cases, 0.5)
    assert [words[0] for words in todo] == [
        "data_prep.plan",
        "data_prep.write_records",
        "femur_tf.records",
        "femur_tf.train",
        "femur_tf.evaluate",
        "femur_tf.evaluate",
        "femur_tf.export",
        "femur_tf.segment",
    ]
    assert todo[0][todo[0].index("--test") + 1] == "phantom_05,phantom_06"
    assert todo[3][2:4] == ["--minutes", "0.5"]


def test_a_command_is_shown_before_it_runs(ran, capsys):
    demo.run_command(["femur_tf.train", "my work"])
    assert ran == [["-m", "femur_tf.train", "my work"]]
    assert capsys.readouterr().out == "\n$ python -m femur_tf.train 'my work'\n"


@pytest.mark.parametrize("shape", [(9, 9, 6)])
def test_a_phantom_is_a_scan_and_its_mask_on_one_grid(tmp_path, shape):
    image, mask = tmp_path / "images" / "a.nii.gz", tmp_path / "masks" / "a.nii.gz"
    demo.write_phantom((1, 2), image, mask, shape=shape)
    scan = image_io.read_image(image)
    assert scan.volume.shape == shape
    np.testing.assert_allclose(scan.volume.spacing_mm, demo.SPACING_MM, rtol=1e-5)  # float32 in the file
    assert image_io.read_mask(mask, like=scan, label=None).shape == shape


def test_the_same_seed_gives_the_same_cohort(tmp_path):
    paths = [(tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_mask.nii.gz") for name in "abc"]
    for pair, seed in zip(paths, (1, 1, 2), strict=True):
        demo.write_phantom((demo.SEED, seed), *pair, shape=(12, 12, 6))
    first, again, other = (image_io.read_image(image).volume.data for image, _ in paths)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_scores_shown_are_those_of_evaluate():
    names = [field.name for field in dataclasses.fields(case_scores.CaseScore)]
    assert set(demo.COLUMNS) < set(names)
    assert len(demo.HEADER) == 1 + len(demo.COLUMNS)


def test_a_failing_command_is_named(ran):
    with pytest.raises(DataError, match=r"python -m fail now: expected exit status 0\. Received: 3\."):
        demo.run_command(["fail", "now"])


def test_a_demo_ends_at_the_first_failing_command(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_write_cohort", lambda folder, cases: None)
    monkeypatch.setattr(demo, "commands", lambda *_: [["one"], ["fail"], ["three"]])
    with pytest.raises(DataError, match="python -m fail: expected exit status 0"):
        demo.main(demo.DemoArguments(tmp_path / "demo"))
    assert ran == [["-m", "one"], ["-m", "fail"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cases": 4}, r"--cases: expected at least 5\. Received: 4\."),
        ({"minutes": 0.0}, r"--minutes: expected a time above 0\. Received: 0\.0\."),
        ({"minutes": float("nan")}, r"--minutes: expected a time above 0\. Received: nan\."),
    ],
)
def test_impossible_arguments_are_refused(ran, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        demo.main(demo.DemoArguments(tmp_path / "demo", **changes))
    assert not ran
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused(ran, tmp_path):
    with pytest.raises(DataError, match=r"already exists\. Pass --overwrite"):
        demo.main(demo.DemoArguments(tmp_path))
    assert not ran


def test_overwrite_keeps_a_folder_that_no_demo_made(ran, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(DataError, match="expected the folder of an earlier demo"):
        demo.main(demo.DemoArguments(tmp_path, overwrite=True))
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "three years"


def test_overwrite_empties_the_folder_of_an_earlier_demo(tmp_path):
    arguments = demo.DemoArguments(tmp_path / "demo", overwrite=True)
    demo._prepare(arguments)
    (arguments.folder / "old.txt").write_text("old")
    demo._prepare(arguments)
    assert [path.name for path in arguments.folder.iterdir()] == [demo.MARK]


def test_the_commands_for_ones_own_data_are_known():
    modules = {line.split()[2] for line in demo.own_data_commands()}
    assert modules < {words[0] for words in demo.commands(demo.Path("demo"), demo.names(5), 1)}


@pytest.mark.slow
def test_an_unknown_flag_exits_with_2(tmp_path):
    done = subprocess.run([sys.executable, "-m", "femur_tf.demo", "--speed"], capture_output=True, check=False)
    assert done.returncode == 2
