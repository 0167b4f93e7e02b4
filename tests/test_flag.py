"""From evaluation to a flagged mask: calibration and cohort are chosen once, and every later command uses them."""

import errno
import functools
import json
import threading

import bright
import nibabel
import numpy as np
import pytest
import tiny

from femur_tf import (
    bundle,
    calibration,
    case_maps,
    config,
    evaluate,
    export,
    files,
    mask_report,
    quality,
    segment,
    study,
)
from femur_tf.errors import DataError, WriteError
from femur_tf.jobs import Job
from femur_tf.origin import Origin

HALF = 2e-3
"""Kept maps are float16, and are calibrated after that; the folded network is calibrated before."""
ORIGIN = Origin("femur", "1", "0123456789abcdef")
KNOWN = {"sides_mm3": (1.0, 2.0), "parts": 2, "origin": ORIGIN}


def job(name, mask):
    """Return a scan with the mask to write."""
    return Job(name, mask.with_name("scan.nii.gz"), mask, None)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flag")
    tiny.write_study(folder, rule=bright.RULE)
    bright.save_run(study.run_path(folder, "default"), chosen=None)
    evaluate.main(evaluate.EvaluateArguments(folder))
    return folder


@pytest.fixture(scope="module")
def run(work):
    return study.run_path(work, "default")


def segmented(tmp_path, data, model, **options):
    scan = bright.save(tmp_path / "scan.nii.gz", data)
    arguments = segment.SegmentArguments(scan, tmp_path / "mask.nii.gz", model, overwrite=True, **options)
    return segment.main(arguments)


@pytest.mark.slow
def test_evaluation_writes_the_calibration_and_the_cohort(work, run):
    chosen = config.load(bundle.ChosenRecipe, run / bundle.RECIPE)
    assert chosen.calibration != calibration.NONE
    assert config.load(quality.Cohort, run / bundle.COHORT).cases == 3  # the test case is left out
    found = json.loads((work / "reports/default/validation.json").read_text(encoding="utf-8"))["reliability"]
    assert found["after"]["expected_error"] <= found["before"]["expected_error"]


def test_a_loaded_model_is_calibrated(run):
    raw, calibrated = bundle.load(run, calibrated=False), bundle.load(run)
    grid = study.prepare(study.volume.Volume(tiny.scan("a"), np.diag([*tiny.SPACING_MM, 1.0])), raw.settings.data)
    one, other = (bundle.working_map(each, grid).data for each in (raw, calibrated))
    np.testing.assert_allclose(calibration.apply(one, raw.chosen.calibration), other, atol=HALF)
    assert np.abs(one.astype(float) - other).max() > 10 * HALF


def test_evaluating_again_chooses_the_same(work, run):
    before = (run / bundle.RECIPE).read_text(encoding="utf-8")
    evaluate.main(evaluate.EvaluateArguments(work, cohort=False))
    assert (run / bundle.RECIPE).read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_an_exported_model_keeps_the_cohort_and_is_calibrated_once(tmp_path, run):
    version = export.export(bundle.load(run), tmp_path / "femur")
    exported, original = bundle.load(tmp_path / "femur"), bundle.load(run)
    assert exported.cohort == original.cohort
    for one, other in zip(exported.model.get_weights(), original.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert version.name == "1"


@pytest.mark.parametrize(
    ("change", "status"), [(lambda data: data, 0), (lambda data: 400 - data, 3), (lambda data: data * 0, 3)]
)
def test_strict_tells_an_unusual_scan_by_its_exit_status(tmp_path, run, capsys, change, status):
    data = change(nibabel.load(run.parents[1] / "images/hip_01.nii.gz").get_fdata()).astype(np.int16)
    assert segmented(tmp_path, data, run, strict=True, report=tmp_path / "report.json") == status
    assert segmented(tmp_path, data, run) == 0
    entry = files.read_json(tmp_path / "report.json")["mask.nii.gz"]
    assert entry["scan"] == "scan"
    assert entry["flagged"] == bool(status)
    shown = capsys.readouterr()
    assert ("look at this mask" in shown.err) == bool(status)
    for reason in entry["reasons"]:
        assert reason in shown.err


def test_a_report_keeps_other_scans(tmp_path, run):
    report = tmp_path / "report.json"
    files.write_json(report, {"other": {"scan": "other", "flagged": False}})
    segmented(tmp_path, tiny.scan("a"), run, report=report)
    assert set(files.read_json(report)) == {"other", "mask.nii.gz"}


def test_scans_of_one_name_have_a_row_each(tmp_path, capsys):
    report, judged = tmp_path / "reports/report.json", quality.Quality({}, ())
    for patient in ("p1", "p2"):
        mask_report.add(report, job("scan", tmp_path / patient / "mask.nii.gz"), quality=judged, **KNOWN)
    assert set(files.read_json(report)) == {"../p1/mask.nii.gz", "../p2/mask.nii.gz"}
    passed = [job("scan", tmp_path / "p2/mask.nii.gz"), job("new", tmp_path / "p3/mask.nii.gz")]
    assert mask_report.flagged(report, passed, strict=True) == []
    assert "no report names them: new. Pass" in capsys.readouterr().err


def test_a_report_names_a_scan_that_failed_until_it_has_a_mask(tmp_path, capsys):
    report, one = tmp_path / "report.json", job("scan", tmp_path / "mask.nii.gz")
    mask_report.add_failure(None, one, DataError("broken"))  # no report is asked for
    mask_report.add_failure(report, one, DataError("broken"))
    row = {"scan": "scan", "image": str(tmp_path.resolve() / "scan.nii.gz"), "error": "broken"}
    assert files.read_json(report) == {"mask.nii.gz": row}
    assert mask_report.flagged(report, [one], strict=True) == []
    assert "no report names them: scan" in capsys.readouterr().err
    mask_report.add(report, one, quality=quality.Quality({}, ("odd",)), **KNOWN)
    assert mask_report.flagged(report, [one], strict=False) == ["scan"]
    assert files.read_json(report)["mask.nii.gz"]["made_by"]["digest"] == ORIGIN.digest


def test_what_is_known_of_a_mask_outlives_a_second_command_that_could_not_write_it(tmp_path):
    report, one = tmp_path / "report.json", job("scan", tmp_path / "mask.nii.gz")
    mask_report.add(report, one, quality=quality.Quality({}, ("odd",)), **KNOWN)
    one.mask.touch()
    mask_report.add_failure(report, one, DataError("written meanwhile"))
    assert files.read_json(report)["mask.nii.gz"]["flagged"]
    one.mask.unlink()
    mask_report.add_failure(report, one, DataError("broken"))
    assert files.read_json(report)["mask.nii.gz"]["error"] == "broken"


def test_two_runs_keep_each_others_rows(tmp_path, monkeypatch):
    """A row that is added while another run is between reading and writing waits for it."""
    report, judged, write = tmp_path / "report.json", quality.Quality({}, ()), files.write_json
    others = []

    def meanwhile(path, rows):
        if not others:
            add = functools.partial(mask_report.add, report, job("b", tmp_path / "b.nii"), quality=judged, **KNOWN)
            others.append(threading.Thread(target=add))
            others[0].start()
            others[0].join(0.2)
        write(path, rows)

    monkeypatch.setattr(files, "write_json", meanwhile)
    mask_report.add(report, job("a", tmp_path / "a.nii"), quality=judged, **KNOWN)
    others[0].join()
    assert set(mask_report.read(report)) == {"a.nii", "b.nii"}


def test_a_disk_without_room_for_a_report_is_said(tmp_path, monkeypatch):
    def full(path, values):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(
        WriteError, match=r"report\.json: expected room for a report\. Received: .*No space.* Free space"
    ):
        mask_report.add(
            tmp_path / "report.json", job("a", tmp_path / "a.nii"), quality=quality.Quality({}, ()), **KNOWN
        )


def test_a_mask_that_is_a_link_has_the_row_of_the_file_that_takes_its_place(tmp_path):
    (tmp_path / "mask.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    one = job("scan", tmp_path / "mask.nii.gz")
    mask_report.add(tmp_path / "report.json", one, quality=quality.Quality({}, ("odd",)), **KNOWN)
    (tmp_path / "mask.nii.gz").unlink()
    assert mask_report.flagged(tmp_path / "report.json", [one], strict=False) == ["scan"]


def test_a_report_of_an_earlier_version_is_refused(tmp_path):
    files.write_json(tmp_path / "old.json", {"hip": {"mask": "masks/hip.nii.gz", "flagged": True}})
    with pytest.raises(DataError, match=r"old\.json: .*an earlier version's report"):
        mask_report.read(tmp_path / "old.json")


def test_a_file_that_is_no_report_is_refused(tmp_path):
    files.write_json(tmp_path / "list.json", [1])
    with pytest.raises(DataError, match="expected a report"):
        mask_report.read(tmp_path / "list.json")


@pytest.mark.slow
def test_a_case_that_failed_tells_nothing_of_what_is_usual(work, run, monkeypatch, capsys):
    dice, profile = iter([0.49, 0.5, 0.9]), case_maps.CaseMap.profile
    monkeypatch.setattr(case_maps.CaseMap, "profile", lambda *given: (profile(*given)[0], next(dice)))
    plan, chosen = study.read_plan(work), config.load(bundle.ChosenRecipe, run / bundle.RECIPE)
    found = case_maps.cohort(bundle.load(run, calibrated=False), plan, chosen.recipe, chosen.calibration)
    assert found.cases == 2
    assert "a Dice of 0.49 has failed" in capsys.readouterr().err
