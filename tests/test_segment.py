"""Segmenting: what is written, on whose grid, for a file, a DICOM folder and a folder of scans."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import bright
import nibabel
import numpy as np
import pytest
import tiny

import femur_tf
from femur_tf import bundle, command, config, files, image_io, jobs, machine, quality, scans, segment
from femur_tf.config import RecipeConfig
from femur_tf.errors import DataError, WriteError
from femur_tf.segment import SegmentArguments

OBLIQUE = np.array([[0.0, -0.6, 1.6, 5.0], [0.0, 0.8, 1.2, -7.0], [-1.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
"""First axis to inferior, spacing (1, 1, 2) mm, turned by 37 degrees about the patient's long axis."""
BALL_DICE = 0.8
"""The network blurs; a mask of the ball that is at least this good has found it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bright.save_run(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(model):
    return bundle.load(model)


@pytest.fixture(autouse=True)
def loads_once(monkeypatch, model, loaded):
    """Load the model of this module once for all tests."""
    real = bundle.load
    monkeypatch.setattr(bundle, "load", lambda folder: loaded if folder == model else real(folder))


def run(image: Path, mask: Path, model: Path, **options) -> int:
    return segment.main(SegmentArguments(image, mask, model, **options))


def read(path: Path) -> np.ndarray:
    return image_io.read_image(path).volume.data


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_the_bright_ball_is_found_on_the_scans_own_grid(tmp_path, model, capsys):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    assert run(scan, tmp_path / "out" / "mask.nii.gz", model) == 0
    written, header = nibabel.load(tmp_path / "out" / "mask.nii.gz"), nibabel.load(scan).header
    assert (written.shape, written.get_data_dtype()) == (tiny.SHAPE, np.uint8)
    np.testing.assert_array_equal(written.affine, nibabel.load(scan).affine)
    assert written.header["sform_code"] == header["sform_code"]
    mask = np.asarray(written.dataobj)
    assert set(np.unique(mask)) == {0, 1}
    assert dice(mask > 0, tiny.ball()) > BALL_DICE
    assert f"{mask.sum() * 2 / 1000:.1f}" in capsys.readouterr().out  # a voxel has 2 mm3


def test_mask_and_map_say_which_model_made_them_and_the_report_all_of_it(tmp_path, model, loaded, capsys):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    files_ = {"probability": tmp_path / "map.nii.gz", "report": tmp_path / "report.json"}
    run(scan, tmp_path / "mask.nii.gz", model, prediction=config.PredictConfig(fast=True), **files_)
    text = f"femur_tf {femur_tf.__version__}, {model.name}, {loaded.origin.digest[:12]}"
    assert [image_io.read_made_by(tmp_path / name) for name in ("mask.nii.gz", "map.nii.gz")] == [text] * 2
    assert f"Model: {text}" in capsys.readouterr().out
    made_by = files.read_json(files_["report"])["mask.nii.gz"]["made_by"]
    assert (made_by["model"], made_by["version"], made_by["digest"]) == (model.name, "", loaded.origin.digest)
    assert made_by["options"] == {"precision": "float32", "fast": True, "body_only": False, "fast_threshold": 0.13}


@pytest.mark.parametrize(("x_mm", "side", "sure"), [(90, "right", True), (-90, "left", True), (8, "right", False)])
def test_the_side_of_a_lone_femur_is_said_with_its_ground(tmp_path, model, capsys, x_mm, side, sure):
    affine = np.diag([*tiny.SPACING_MM, 1.0])
    affine[0, 3] = x_mm - 12  # the ball lies in the middle of 24 mm
    scan, report = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"), affine), tmp_path / "report.json"
    run(scan, tmp_path / "mask.nii.gz", model, sides=True, report=report)
    shown = capsys.readouterr()
    assert f"scan: one femur, taken for the {side} one, as it lies at x = {x_mm:+d} mm" in (shown.out + shown.err)
    assert ("Check the side." in shown.err) != sure
    row = files.read_json(report)["mask.nii.gz"]
    other = "left" if side == "right" else "right"
    assert (row[f"{side}_mm3"], row[f"{other}_mm3"]) == (row["measures"]["volume_mm3"], 0)
    assert row["image"] == str(scan.resolve())


def test_masks_of_another_model_that_are_passed_over_are_warned_of(tmp_path, model, loaded, monkeypatch, capsys):
    for name in "abc":
        bright.save(tmp_path / "scans" / f"{name}.nii.gz", tiny.scan(name))
    run(tmp_path / "scans", tmp_path / "masks", model)
    for name in "ac":
        (tmp_path / "masks" / f"{name}.nii.gz").unlink()
    bright.save(tmp_path / "masks" / "c.nii.gz", tiny.scan("c"))  # drawn by hand
    capsys.readouterr()
    other = dataclasses.replace(loaded.chosen, recipe=RecipeConfig(0.6, ()))
    monkeypatch.setattr(bundle, "load", lambda folder: dataclasses.replace(loaded, chosen=other))
    run(tmp_path / "scans", tmp_path / "masks", model)
    said, told = capsys.readouterr()
    assert "Received: masks of another model or version, which are passed over: b. Pass --overwrite" in told
    assert "1 of the masks passed over do not say which model made them" in " ".join(said.split())
    run(tmp_path / "scans", tmp_path / "masks", model, overwrite=True)
    run(tmp_path / "scans", tmp_path / "masks", model)
    assert "another model" not in capsys.readouterr().err


def test_masks_of_other_scans_of_the_same_names_are_warned_of(tmp_path, model, capsys):
    for patient in ("P1", "P2"):
        for name in "ab":
            bright.save(tmp_path / patient / f"{name}.nii.gz", tiny.scan(name))
    run(tmp_path / "P1", tmp_path / "masks", model)
    bright.save(tmp_path / "masks" / "b.nii.gz", tiny.scan("b"))  # drawn by hand
    run(tmp_path / "P1", tmp_path / "masks", model)
    assert "scans elsewhere" not in capsys.readouterr().err
    run(tmp_path / "P2", tmp_path / "masks", model)
    told = capsys.readouterr().err
    assert "Received: masks that were made from scans elsewhere, which are passed over: a. If these are other" in told


def test_series_of_several_patients_get_masks_of_their_own(tmp_path, model):
    for patient in ("P1", "P2"):
        series = tmp_path / "scans" / patient / "ST0" / "SE0"
        series.mkdir(parents=True)
        (series / "IM0").write_bytes(b"\0" * 128 + b"DICM")
    todo = jobs.todo(SegmentArguments(tmp_path / "scans", tmp_path / "masks", model))
    assert [job.mask.name for job in todo.jobs] == ["P1_ST0_SE0.nii.gz", "P2_ST0_SE0.nii.gz"]


def test_a_report_has_a_row_for_a_scan_that_fails(tmp_path, model):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.nii.gz").write_bytes(b"no image")
    bright.save(tmp_path / "scans" / "b.nii.gz", tiny.scan("b"))
    assert run(tmp_path / "scans", tmp_path / "masks", model, report=tmp_path / "report.json") == 2
    rows = files.read_json(tmp_path / "report.json")
    assert rows["masks/a.nii.gz"]["scan"] == "a" and "a.nii.gz: expected" in rows["masks/a.nii.gz"]["error"]
    assert "error" not in rows["masks/b.nii.gz"]


def test_the_probability_is_float32_on_the_scans_own_grid(tmp_path, model):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a")[::-1], np.diag([-1.0, 1.0, 2.0, 1.0]))
    run(scan, tmp_path / "mask.nii.gz", model, probability=tmp_path / "map.nii.gz")
    written = nibabel.load(tmp_path / "map.nii.gz")
    assert (written.shape, written.get_data_dtype()) == (tiny.SHAPE, np.float32)
    found = np.asarray(written.dataobj)
    assert 0 <= found.min() < 0.1 and 0.9 < found.max() <= 1
    assert not (read(tmp_path / "mask.nii.gz").astype(bool) & (found < bright.RECIPE.cutoff)).any()


def test_sides_labels_the_patients_left_1_and_right_2(tmp_path, model):
    data = np.full((170, 20, 12), 100, np.int16)
    data[10:30, 4:16, 2:10] = data[140:160, 4:16, 2:10] = 250
    affine = np.diag([-1.0, 1.0, 2.0, 1.0])  # the first axis runs to the patient's left
    chosen = dataclasses.replace(bright.CHOSEN, recipe=RecipeConfig(0.5, ()))
    two = bright.save_run(tmp_path / "two", chosen=chosen)
    scan = bright.save(tmp_path / "scan.nii", data, affine)
    run(scan, tmp_path / "mask.nii.gz", two, sides=True)
    labels = read(tmp_path / "mask.nii.gz")
    assert labels[20, 10, 6] == 2 and labels[150, 10, 6] == 1
    assert set(np.unique(labels)) == {0, 1, 2}


@pytest.mark.parametrize(
    ("axes", "flips"), [((0, 1, 2), (-1, -1, -1)), ((0, 2, 1), (-1, 1, -1)), ((2, 0, 1), (1, -1, 1))]
)
def test_a_turned_scan_gets_the_turned_mask(tmp_path, model, axes, flips):
    """Whatever order and direction a file keeps its axes in, the same patient gets the same mask."""
    data, affine = tiny.scan("a"), np.diag([*tiny.SPACING_MM, 1.0])
    turn = np.zeros((4, 4))  # new voxel index -> old
    turn[3, 3] = 1
    for new, (old, sign) in enumerate(zip(axes, flips, strict=True)):
        turn[old, new] = sign
        turn[old, 3] = 0 if sign > 0 else data.shape[old] - 1
    slices = tuple(slice(None, None, sign) for sign in flips)
    run(bright.save(tmp_path / "a.nii", data, affine), tmp_path / "a.nii.gz", model)
    run(bright.save(tmp_path / "b.nii", data.transpose(axes)[slices], affine @ turn), tmp_path / "b.nii.gz", model)
    np.testing.assert_array_equal(read(tmp_path / "b.nii.gz"), read(tmp_path / "a.nii.gz").transpose(axes)[slices])


def test_an_oblique_scan_of_another_spacing_keeps_its_grid(tmp_path, model, capsys):
    affine = OBLIQUE @ np.diag([1.2, 1.1, 0.8, 1.0])
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"), affine)
    run(scan, tmp_path / "mask.nrrd", model)
    found = image_io.read_image(tmp_path / "mask.nrrd").volume
    assert found.shape == tiny.SHAPE
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    assert dice(found.data > 0, tiny.ball()) > BALL_DICE
    assert "is resampled to 1 x 1 x 2 mm" in capsys.readouterr().err


def test_a_dicom_folder_is_one_scan(tmp_path, model):
    series = bright.save_dicom(tmp_path / "series", tiny.scan("a"))
    assert run(series, tmp_path / "mask.nii.gz", model) == 0
    mask = image_io.read_image(tmp_path / "mask.nii.gz").volume
    assert mask.shape == tiny.SHAPE
    np.testing.assert_allclose(mask.affine, image_io.read_image(series).volume.affine, atol=1e-5)
    assert dice(mask.data > 0, tiny.ball()) > BALL_DICE


def test_of_a_folder_the_broken_scan_is_named_and_the_others_are_done(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(command.console, "width", 200)
    for name in ("a", "c"):
        bright.save(tmp_path / "scans" / f"{name}.nii.gz", tiny.scan(name))
    (tmp_path / "scans" / "b.nii.gz").write_bytes(b"no image")
    bright.save_dicom(tmp_path / "scans" / "d", tiny.scan("d"))
    assert run(tmp_path / "scans", tmp_path / "masks", model) == 2
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.nii.gz", "c.nii.gz", "d.nii.gz"]
    shown = capsys.readouterr()
    assert "b.nii.gz: expected" in shown.err
    assert "a.nii.gz" in shown.out and "c.nii.gz" in shown.out


def test_of_a_folder_a_scan_with_a_spacing_a_thousandfold_is_named_and_the_others_are_done(tmp_path, model, capsys):
    for name in ("a", "c"):
        bright.save(tmp_path / "scans" / f"{name}.nii.gz", tiny.scan(name))
    bright.save(tmp_path / "scans" / "b.nii.gz", tiny.scan("b"), np.diag([1000.0, 1000.0, 2000.0, 1.0]))
    assert run(tmp_path / "scans", tmp_path / "masks", model) == 2
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.nii.gz", "c.nii.gz"]
    shown = capsys.readouterr()
    assert "error: b: " in shown.err and "1000 x 1000 x 2000 mm apart" in shown.err
    assert "Femur masks" in shown.out


def test_masks_that_exist_are_passed_over_and_replaced_only_when_asked(tmp_path, model, capsys):
    for name in ("a", "b"):
        bright.save(tmp_path / "scans" / f"{name}.nii.gz", tiny.scan(name))
    kept = tmp_path / "masks" / "a.nii.gz"
    kept.parent.mkdir()
    kept.write_bytes(b"corrected by hand")
    assert run(tmp_path / "scans", tmp_path / "masks", model, probability=tmp_path / "maps") == 0
    assert kept.read_bytes() == b"corrected by hand"
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["b.nii.gz"]
    assert "1 of 2 scans have a mask and are passed over" in capsys.readouterr().out
    run(tmp_path / "scans", tmp_path / "masks", model, overwrite=True)
    assert read(kept).shape == tiny.SHAPE


def test_a_scan_smaller_than_a_patch_is_segmented(tmp_path, model):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a")[6:18, 6:14, 3:5])
    assert run(scan, tmp_path / "mask.nii.gz", model) == 0
    assert read(tmp_path / "mask.nii.gz").shape == (12, 8, 2)


def test_a_constant_scan_gets_an_empty_mask(tmp_path, model, capsys):
    run(bright.save(tmp_path / "scan.nii.gz", np.full(tiny.SHAPE, 7, np.int16)), tmp_path / "mask.nii.gz", model)
    assert not read(tmp_path / "mask.nii.gz").any()
    assert "0.0" in capsys.readouterr().out


def test_a_far_spacing_is_warned_of_with_what_is_resampled(tmp_path, model, capsys):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"), np.diag([1.0, 1.0, 5.2, 1.0]))
    run(scan, tmp_path / "mask.nii.gz", model)
    told = capsys.readouterr().err
    assert f"warning: {scan}: spacing 1 x 1 x 5.2 mm is resampled to 1 x 1 x 2 mm, far from what" in told


def test_voxels_far_coarser_than_the_models_are_a_reason_and_finer_ones_are_not(tmp_path, model, capsys):
    for name, spacing_mm, told_of in (("coarse", (1, 1, 5.2), True), ("fine", (0.5, 1, 2), False)):
        scan = bright.save(tmp_path / f"{name}.nii.gz", tiny.scan("a"), np.diag([*spacing_mm, 1.0]))
        run(scan, tmp_path / f"{name}_mask.nii.gz", model)
        told = capsys.readouterr().err
        assert ("voxels towards superior: 5.2 mm, the model's are 2 mm" in told) == told_of
        assert "towards right" not in told


def test_a_near_spacing_is_said_and_not_warned_of(tmp_path, model, capsys):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"), np.diag([1.0, 1.2, 2.4, 1.0]))
    run(scan, tmp_path / "mask.nii.gz", model)
    shown = capsys.readouterr()
    assert "scan: spacing 1 x 1.2 x 2.4 mm is resampled to 1 x 1 x 2 mm\n" in shown.out
    assert "spacing" not in shown.err


def test_a_scan_of_the_models_own_spacing_says_nothing_of_it(tmp_path, model, capsys):
    run(bright.save(tmp_path / "scan.nii.gz", tiny.scan("a")), tmp_path / "mask.nii.gz", model)
    shown = capsys.readouterr()
    assert "resampled" not in shown.out + shown.err


def test_the_time_left_and_the_masks_to_look_at_are_said(tmp_path, model, capsys):
    for name in "ab":
        bright.save(tmp_path / "scans" / f"{name}.nii.gz", tiny.scan(name))
    run(tmp_path / "scans", tmp_path / "masks", model)
    said = capsys.readouterr().out
    assert "a (1 of 2)" in said and re.search(r"b \(2 of 2, 0:00:\d\d left\)", said)
    assert re.search(r"2 masks, \d of them to look at\.", said)


def test_an_existing_mask_is_kept_without_overwrite(tmp_path, model):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    (tmp_path / "mask.nii.gz").write_bytes(b"corrected by hand")
    with pytest.raises(DataError, match=r"mask\.nii\.gz: already exists. Pass --overwrite"):
        run(scan, tmp_path / "mask.nii.gz", model)
    (tmp_path / "map.nii.gz").write_bytes(b"kept")
    with pytest.raises(DataError, match=r"map\.nii\.gz: already exists. Pass --overwrite"):
        run(scan, tmp_path / "new.nii.gz", model, probability=tmp_path / "map.nii.gz")
    assert (tmp_path / "mask.nii.gz").read_bytes() == b"corrected by hand"
    run(scan, tmp_path / "mask.nii.gz", model, overwrite=True)
    assert read(tmp_path / "mask.nii.gz").shape == tiny.SHAPE


def test_a_map_without_its_mask_is_anothers_and_kept(tmp_path, model):
    bright.save(tmp_path / "scans" / "a.nii.gz", tiny.scan("a"))
    kept = tmp_path / "maps" / "a.nii.gz"
    kept.parent.mkdir()
    kept.write_bytes(b"made elsewhere")
    with pytest.raises(
        DataError, match=r"maps: expected maps of scans with masks alone\. Received: a\.nii\.gz, without"
    ):
        run(tmp_path / "scans", tmp_path / "masks", model, probability=tmp_path / "maps")
    assert kept.read_bytes() == b"made elsewhere" and not (tmp_path / "masks").exists()
    assert run(tmp_path / "scans", tmp_path / "masks", model, probability=tmp_path / "maps", overwrite=True) == 0
    assert read(kept).shape == tiny.SHAPE


def test_a_map_whose_mask_was_not_named_before_a_kill_is_made_again(tmp_path, model):
    bright.save(tmp_path / "scans" / "a.nii.gz", tiny.scan("a"))
    run(tmp_path / "scans", tmp_path / "masks", model, probability=tmp_path / "maps")
    before = (tmp_path / "masks" / "a.nii.gz").read_bytes()
    (tmp_path / "masks" / "a.nii.gz").unlink()
    assert run(tmp_path / "scans", tmp_path / "masks", model, probability=tmp_path / "maps") == 0
    assert (tmp_path / "masks" / "a.nii.gz").read_bytes() == before and read(tmp_path / "maps" / "a.nii.gz").any()


@pytest.mark.parametrize("folder", ["masks", "maps"])
def test_a_run_that_ends_while_it_writes_leaves_neither_map_nor_mask_and_goes_on(tmp_path, model, monkeypatch, folder):
    for name in "ab":
        bright.save(tmp_path / "scans" / f"{name}.nii.gz", tiny.scan(name))
    save = nibabel.save

    def killed(image, path):
        if path.parent.name == folder and "-b." in path.name:
            raise KeyboardInterrupt
        save(image, path)

    monkeypatch.setattr(nibabel, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "scans", tmp_path / "masks", model, probability=tmp_path / "maps")
    assert [[path.name for path in (tmp_path / kind).iterdir()] for kind in ("masks", "maps")] == [["a.nii.gz"]] * 2
    monkeypatch.setattr(nibabel, "save", save)
    assert run(tmp_path / "scans", tmp_path / "masks", model, probability=tmp_path / "maps") == 0
    assert len(list((tmp_path / "masks").iterdir())) == len(list((tmp_path / "maps").iterdir())) == 2


def appears(monkeypatch, path: Path) -> None:
    """Let another hand write a file while the network runs."""
    real = bundle.working_map

    def meanwhile(*arguments, **options):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"corrected by hand")
        return real(*arguments, **options)

    monkeypatch.setattr(bundle, "working_map", meanwhile)


@pytest.mark.parametrize("name", ["mask.nii.gz", "map.nii.gz"])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, model, monkeypatch, name):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    options = {"probability": tmp_path / "map.nii.gz", "report": tmp_path / "report.json"}
    appears(monkeypatch, tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: expected no such file, .* written meanwhile\. It is kept"):
        run(scan, tmp_path / "mask.nii.gz", model, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"scan.nii.gz", name}
    assert (tmp_path / name).read_bytes() == b"corrected by hand"
    assert run(scan, tmp_path / "mask.nii.gz", model, overwrite=True, **options) == 0
    assert read(tmp_path / name).shape == tiny.SHAPE


def test_of_a_folder_a_mask_that_appears_meanwhile_fails_its_scan_alone(tmp_path, model, monkeypatch, capsys):
    for name in "ab":
        bright.save(tmp_path / "scans" / f"{name}.nii.gz", tiny.scan(name))
    appears(monkeypatch, tmp_path / "masks" / "b.nii.gz")
    assert run(tmp_path / "scans", tmp_path / "masks", model) == 2
    assert (tmp_path / "masks" / "b.nii.gz").read_bytes() == b"corrected by hand"
    assert read(tmp_path / "masks" / "a.nii.gz").shape == tiny.SHAPE
    assert "error: b: " in capsys.readouterr().err


def test_many_finished_scans_are_passed_over_at_once(tmp_path, model, monkeypatch):
    """Each is compared with the finished ones by what it is, not with one after the other."""
    compared = []
    monkeypatch.setattr(jobs.Job, "__eq__", lambda one, other: compared.append(one) or one.name == other.name)
    for folder in ("scans", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(50):
            (tmp_path / folder / f"{number}.nii.gz").touch()
    found = jobs.todo(SegmentArguments(tmp_path / "scans", tmp_path / "masks", model))
    assert (len(found.jobs), len(found.passed)) == (0, 50)
    assert len(compared) <= 50


def test_a_scan_is_never_replaced_by_its_mask(tmp_path, model):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    before = scan.read_bytes()
    with pytest.raises(DataError, match="expected a place of its own for each output"):
        run(scan, scan, model, overwrite=True)
    with pytest.raises(DataError, match="expected a place of its own for each output"):
        run(scan, tmp_path / "m.nii.gz", model, probability=tmp_path / "m.nii.gz")
    with pytest.raises(DataError, match="expected another folder than that of the scans"):
        run(tmp_path, tmp_path, model, overwrite=True)
    assert scan.read_bytes() == before


@pytest.mark.parametrize(
    ("mask", "options"),
    [
        ("scan.nii.gz/mask.nii.gz", {}),
        ("mask.nii.gz", {"report": "scan.nii.gz/report.json"}),
        ("mask.nii.gz", {"probability": "scan.nii.gz/map.nii.gz"}),
    ],
)
def test_a_place_where_no_file_can_be_made_is_refused_before_any_work(tmp_path, mask, options):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    options = {name: tmp_path / path for name, path in options.items()}
    with pytest.raises(DataError, match=r"expected a place for a file\. Received: .*scan\.nii\.gz, a file"):
        run(scan, tmp_path / mask, tmp_path / "no_model", **options)


def test_a_report_has_a_place_of_its_own(tmp_path):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    for name in ("mask.nii.gz", "scan.nii.gz"):
        with pytest.raises(DataError, match="expected a place of its own"):
            run(scan, tmp_path / "mask.nii.gz", tmp_path / "no_model", report=tmp_path / name)


def test_a_folder_that_holds_a_series_itself_is_said_to_be_one_scan(tmp_path, capsys):
    (tmp_path / "cd").mkdir()
    (tmp_path / "cd" / "a.dcm").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(DataError, match="expected a name that ends in"):
        run(tmp_path / "cd", tmp_path / "masks", tmp_path / "no_model")
    assert "holds DICOM files itself, so that it is one scan" in capsys.readouterr().out


@pytest.mark.parametrize("spacing_mm", [tiny.SPACING_MM, (2.0, 2.0, 2.0)])
def test_a_limit_below_what_a_scan_takes_is_refused_and_the_least_one_is_named(
    tmp_path, model, spacing_mm, monkeypatch
):
    monkeypatch.setattr(machine, "base_bytes", lambda: 500_000_000)
    scan = bright.save(tmp_path / "scan.nii.gz", np.zeros((200, 200, 50), np.int16), np.diag([*spacing_mm, 1.0]))
    options = config.PredictConfig(max_memory=530)
    with pytest.raises(
        DataError, match=r"--max-memory: expected at least [56]\d\d MB for a scan of 200 x 200 x 50 voxels"
    ):
        run(scan, tmp_path / "mask.nii.gz", model, prediction=options)


@pytest.mark.parametrize(
    ("mask", "options", "words"),
    [
        ("mask.png", {}, "expected a name that ends in"),
        ("mask", {}, "expected a name that ends in"),
        ("mask.nii.gz", {"probability": Path("map.jpg")}, "expected a name that ends in"),
    ],
)
def test_an_unknown_format_is_refused_before_any_work(tmp_path, model, mask, options, words):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    with pytest.raises(DataError, match=words):
        run(scan, tmp_path / mask, model, **options)


def test_fewer_than_no_voxels_to_verify_are_refused_before_any_work(tmp_path):
    with pytest.raises(DataError, match=r"--verify: expected at least 0 voxels\. Received: -1"):
        run(tmp_path / "no_scan.nii.gz", tmp_path / "mask.nii.gz", tmp_path / "no_model", verify=-1)


def test_a_file_in_the_place_of_the_folder_of_masks_is_refused(tmp_path, model):
    bright.save(tmp_path / "scans" / "a.nii.gz", tiny.scan("a"))
    (tmp_path / "masks").touch()
    with pytest.raises(DataError, match="expected a folder to write to"):
        run(tmp_path / "scans", tmp_path / "masks", model)
    with pytest.raises(DataError, match="expected a folder for the masks alone"):
        run(tmp_path / "scans", tmp_path / "out", model, probability=tmp_path / "out")


def test_nothing_to_segment_is_refused(tmp_path, model):
    with pytest.raises(DataError, match=r"none: expected a scan or a folder of scans\. Received: no such file"):
        run(tmp_path / "none", tmp_path / "mask.nii.gz", model)
    (tmp_path / "scans").mkdir()
    with pytest.raises(DataError, match=r"expected scans in the folder\. Received: none"):
        run(tmp_path / "scans", tmp_path / "masks", model)


def test_a_model_without_a_recipe_is_refused(tmp_path):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    raw = bright.save_run(tmp_path / "raw", chosen=None)
    with pytest.raises(DataError, match="Choose one on the validation cases first"):
        run(scan, tmp_path / "mask.nii.gz", raw)


def broken(monkeypatch, name, error: BaseException | None = None):
    """Let the network fail on one scan."""
    real, begun = bundle.working_map, []
    announced = scans.announce_resampling
    monkeypatch.setattr(scans, "announce_resampling", lambda job, *rest: begun.append(job) or announced(job, *rest))

    def fails(*arguments, **options):
        if begun[-1].name == name:
            raise error or DataError("no memory")
        return real(*arguments, **options)

    monkeypatch.setattr(bundle, "working_map", fails)


def test_an_error_of_the_network_ends_one_scan_of_a_folder_alone(tmp_path, model, capsys, monkeypatch):
    for name in "ab":
        bright.save(tmp_path / "scans" / f"{name}.nii.gz", tiny.scan(name))
    broken(monkeypatch, "a")
    assert run(tmp_path / "scans", tmp_path / "masks", model) == 2
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["b.nii.gz"]
    assert "a: no memory" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), WriteError("no room for an image"), OSError("broken")])
def test_a_run_that_ends_early_tells_what_was_done_and_what_to_look_at(tmp_path, model, capsys, monkeypatch, error):
    monkeypatch.setattr(command.console, "width", 200)
    bright.save(tmp_path / "scans/a.nii.gz", np.zeros(tiny.SHAPE, np.int16))  # an empty mask is flagged
    bright.save(tmp_path / "scans/b.nii.gz", tiny.scan("b"))
    broken(monkeypatch, "b", error)
    with pytest.raises(type(error)):
        run(tmp_path / "scans", tmp_path / "masks", model)
    shown = capsys.readouterr()
    assert "Femur masks" in shown.out and "a.nii.gz" in shown.out
    assert "warning: a: look at this mask" in shown.err


def test_a_run_that_ends_before_its_first_mask_has_no_table(tmp_path, model, capsys, monkeypatch):
    scan = bright.save(tmp_path / "a.nii.gz", tiny.scan("a"))
    broken(monkeypatch, "a")
    with pytest.raises(DataError, match="no memory"):
        run(scan, tmp_path / "mask.nii.gz", model)
    assert "Femur masks" not in capsys.readouterr().out


def test_a_run_killed_before_a_mask_has_its_row_and_does_the_scan_again(tmp_path, model, monkeypatch):
    bright.save(tmp_path / "scans/a.nii.gz", tiny.scan("a"))
    report, write = tmp_path / "report.json", image_io.written

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_io, "written", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "scans", tmp_path / "masks", model, report=report)
    assert set(files.read_json(report)) == {"masks/a.nii.gz"}
    monkeypatch.setattr(image_io, "written", write)
    assert run(tmp_path / "scans", tmp_path / "masks", model, report=report) == 0
    assert (tmp_path / "masks/a.nii.gz").exists()


def test_a_model_without_a_cohort_says_so_and_cannot_be_strict(tmp_path, model, capsys):
    scan = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a"))
    with pytest.raises(DataError, match=r"--strict: .*expected a model that knows what is usual.*cohort\.json"):
        run(scan, tmp_path / "mask.nii.gz", model, strict=True)
    assert not (tmp_path / "mask.nii.gz").exists()
    assert run(scan, tmp_path / "mask.nii.gz", model) == 0
    assert "finds nothing unusual but empty masks" in capsys.readouterr().err


def test_strict_speaks_of_masks_that_are_passed_over(tmp_path, model, loaded, monkeypatch, capsys):
    cohort = quality.Cohort(2, {}, dict.fromkeys(quality.DISTANCES, ()))
    monkeypatch.setattr(bundle, "load", lambda folder: dataclasses.replace(loaded, cohort=cohort))
    bright.save(tmp_path / "scans/a.nii.gz", np.zeros(tiny.SHAPE, np.int16))
    report = tmp_path / "report.json"
    options = {"strict": True, "report": report}
    for _ in range(2):
        assert run(tmp_path / "scans", tmp_path / "masks", model, **options) == 3
    assert "look at the masks of an earlier run too: a" in capsys.readouterr().err
    assert run(tmp_path / "scans", tmp_path / "masks", model, strict=True) == 0
    assert "Not judged, as they have masks and no report names them: a" in capsys.readouterr().err
    assert run(tmp_path / "scans", tmp_path / "masks", model, report=report) == 0


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', "no JSON", None])
def test_a_report_that_is_none_is_refused_before_any_work(tmp_path, model, content):
    scan, report = bright.save(tmp_path / "scan.nii.gz", tiny.scan("a")), tmp_path / "report.json"
    if content is None:
        report.mkdir()
    else:
        report.write_text(content)
    with pytest.raises(DataError, match=r"report\.json: expected (a report|JSON|a place for a file)"):
        run(scan, tmp_path / "mask.nii.gz", model, report=report)
    assert not (tmp_path / "mask.nii.gz").exists()
