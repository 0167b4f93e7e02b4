"""The 2-D U-Net beside our network: its slices and crops, that it trains, and that it goes on after a kill."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny

from benchmarks import crops
from benchmarks import unet as command
from benchmarks import unet_training as unet
from femur_tf import callbacks, config, files, study
from femur_tf.errors import DataError

WEIGHT_TOLERANCE = 1e-5
"""The order of sums in threads."""
STEPS = 3


class Killed(RuntimeError):
    """Stands for the end of the process."""


@pytest.fixture
def small(monkeypatch):
    """A U-Net and epochs small enough for tests."""
    monkeypatch.setattr(unet, "FILTERS", (2, 2, 2))
    for module in (crops, unet):
        monkeypatch.setattr(module, "STEPS", STEPS)
    # Two epochs, whatever the machine: the clock advances by one a step.
    monkeypatch.setattr(callbacks.Clock, "_now", lambda clock: next(clock.__dict__.setdefault("ticks", iter(Ticks()))))


class Ticks:
    """Seconds that pass by a tenth at each look."""

    def __iter__(self):
        return (0.1 * tick for tick in range(10**6))


MINUTES = 1.5 / 60


def train(folder: Path, plan: study.Plan) -> callbacks.State:
    return unet.train(folder, plan, minutes=MINUTES, seed=2017, overwrite=False)


def pair(mask: np.ndarray, grid: np.ndarray | None = None) -> crops.Pair:
    grid = mask * np.uint8(200) if grid is None else grid
    return crops.Pair(grid, mask, np.argwhere(mask))


def final_weights(folder: Path) -> list[np.ndarray]:
    """Return the weights of the last checkpoint's model and optimizer."""
    model = keras.saving.load_model(callbacks.checkpoints(folder)[-1] / "model.keras")
    return [variable.numpy() for variable in (*model.weights, *model.optimizer.variables)]


def test_the_slices_beyond_a_volume_are_its_last():
    grid = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None], (5, 4, 6))
    assert crops.neighbours(grid, 0)[2, 3].tolist() == [0, 0, 1]
    assert crops.neighbours(grid, 2)[2, 3].tolist() == [1, 2, 3]
    assert crops.neighbours(grid, 3).shape == (5, 6, 3)
    assert crops.neighbours(grid, 3)[2, 3].tolist() == [2, 3, 3]


def test_sides_are_padded_to_multiples_of_the_grain():
    slices = np.ones((20, 16, 3), np.uint8)
    found = crops.padded(slices, (20, 16))
    assert found.shape == (32, 16, 3)
    assert (found[:20] == 1).all() and (found[20:] == 0).all()


def test_a_crop_moves_image_and_mask_together(rng):
    drawn = [crops.draw([pair(tiny.ball())], rng) for _ in range(20)]
    for image, mask in drawn:
        assert image.shape == (32, 16, 3) and mask.shape == (32, 16, 1)
        # A bright voxel is bone, but for the half voxel of interpolation at its edge.
        assert np.mean((image[..., 1] > image.max() / 2) == (mask[..., 0] > 0)) > 0.95 or not mask.any()
    assert sum(mask.any() for _, mask in drawn) >= 13  # two of three, and some by chance


@pytest.mark.parametrize("changed", ["flip", "turn"])
def test_crops_differ(rng, changed):
    mask = np.zeros((64, 3, 64), bool)
    mask[10:20, :, 30:60] = True
    centres = [
        np.argwhere(m[..., 0] > 0).mean(axis=0)
        for _, m in (crops.draw([pair(mask)], rng) for _ in range(40))
        if m.any()
    ]
    x, z = np.transpose(centres)
    assert (x < 31).any() and (x > 33).any() if changed == "flip" else np.ptp(z) > 4


def test_grey_values_stay_in_their_range(rng):
    grid = rng.integers(0, 256, (64, 3, 64), np.uint8)
    for _ in range(10):
        image, _ = crops.draw([pair(grid > 300, grid)], rng)
        assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 255


def test_an_epoch_is_the_same_whenever_it_starts(small):
    pairs = [pair(tiny.ball())]
    first = crops.batches(pairs, 7, 0)
    for _ in range(STEPS):
        next(first)
    for one, other in zip(next(first), next(crops.batches(pairs, 7, 1)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_validation_slices_of_unequal_cases_have_one_shape():
    grids, masks = crops.validation_slices([pair(tiny.ball((20, 4, 30))), pair(tiny.ball((40, 3, 10)))])
    assert grids.shape == (7, 48, 32, 3) and masks.shape == (7, 48, 32, 1)
    assert {grids.dtype, masks.dtype} == {np.dtype(np.uint8)}


def test_a_perfect_batch_costs_next_to_nothing():
    true = np.zeros((2, 4, 4, 1), np.uint8)
    true[:, 1:3] = 1
    assert float(unet.dice_and_cross_entropy(true, true.astype(np.float32))) == pytest.approx(0, abs=1e-3)
    assert float(unet.dice_and_cross_entropy(true, 1 - true.astype(np.float32))) > 10
    assert float(unet.dice(true, true.astype(np.float32))) == 1
    assert float(unet.dice(true, 1 - true.astype(np.float32))) == pytest.approx(1 / 33)


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, small, monkeypatch):
    plan = tiny.write_study(tmp_path)
    whole = train(tmp_path / "unet/whole", plan)
    assert whole.finished and whole.epoch >= 2
    save = callbacks.Checkpoint.on_epoch_end

    def killed(self, epoch, logs=None):
        save(self, epoch, logs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Checkpoint, "on_epoch_end", killed)
        with pytest.raises(Killed):
            train(tmp_path / "unet/cut", plan)
    cut = train(tmp_path / "unet/cut", plan)
    assert cut.finished and [row["epoch"] for row in cut.history] == [row["epoch"] for row in whole.history]
    for one, other in zip(final_weights(tmp_path / "unet/cut"), final_weights(tmp_path / "unet/whole"), strict=True):
        np.testing.assert_allclose(one, other, atol=WEIGHT_TOLERANCE)


@pytest.mark.slow
def test_the_line_has_test_scores_only_when_asked(tmp_path, small, monkeypatch, capsys):
    tiny.write_study(tmp_path)
    monkeypatch.setattr(unet, "unit_s", lambda: 1.0)
    read = study.load_case
    parts = []
    monkeypatch.setattr(study, "load_case", lambda plan, case: parts.append(case.part) or read(plan, case))
    lines = []
    for test in (False, True):
        command.main(command.UnetArguments(tmp_path, minutes=MINUTES, run="tiny", test=test))
        lines.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        assert ("test" in parts) == test
    without, with_test = lines
    assert without["epochs"] >= 2 and without["parameters"] > 0
    assert not any(name.startswith("test") for name in without)
    assert with_test["test_cases"].keys() == {"hip_04"} and 0 <= with_test["test_dice"] <= 1
    assert with_test["validation_dice"] == without["validation_dice"] == without["validation_cases"]["hip_03"]
    folder = tmp_path / "unet/tiny"
    assert {path.name for path in folder.iterdir()} >= {"model.keras", "history.csv", "recipe.json", "settings.json"}
    with (folder / "history.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == without["epochs"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"minutes": 20.0}, r"minutes.*Received.*20.*--overwrite"),
        ({"train": ["hip_01", "hip_04"]}, r"hip_02.*Received.*hip_04"),
        ({"spacing_mm": [2.0, 2.0, 2.0]}, r"spacing_mm': \[1.*Received.*spacing_mm': \[2"),
        ({"normalisation": {}}, r"upper_percentile.*Received.*normalisation': {}"),
        ({"label": 7}, r"label': None.*Received.*label': 7"),
    ],
)
def test_a_run_with_other_settings_is_refused(tmp_path, other, words):
    plan = tiny.write_study(tmp_path)
    settings = unet.settings_of(plan, minutes=MINUTES, seed=2017)
    files.write_json(tmp_path / "settings.json", settings | other)
    with pytest.raises(DataError, match=words):
        train(tmp_path, plan)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_a_study_without_cases_of_a_part_is_refused_before_it_trains(tmp_path, part):
    plan = tiny.write_study(tmp_path)
    left = dataclasses.replace(plan, cases=tuple(case for case in plan.cases if case.part != part))
    files.write_json(study.plan_path(tmp_path), config.to_dict(left))
    with pytest.raises(DataError, match=f"expected {part} cases"):
        command.main(command.UnetArguments(tmp_path, test=True))
    assert not (tmp_path / "unet").exists()


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path):
    tiny.write_study(tmp_path)
    with pytest.raises(DataError, match=r"unet: expected the name of a folder in it\. Received: '\.\.'"):
        command.main(command.UnetArguments(tmp_path, run="..", overwrite=True))
    assert study.plan_path(tmp_path).exists()


@pytest.mark.parametrize("problem", ["minutes", "scan"])
def test_a_run_stays_where_another_cannot_begin(tmp_path, small, problem):
    plan, kept = tiny.write_study(tmp_path), tmp_path / "unet/default/model.keras"
    files.write_text(kept, "")
    minutes = 0.0 if problem == "minutes" else MINUTES
    if problem == "scan":
        Path(plan.cases[0].image).unlink()
    with pytest.raises((DataError, FileNotFoundError), match="--minutes" if problem == "minutes" else "hip_01"):
        unet.train(kept.parent, plan, minutes=minutes, seed=2017, overwrite=True)
    assert [path.name for path in kept.parent.iterdir()] == ["model.keras"]


def test_two_trainings_of_one_run_at_once_are_refused(tmp_path):
    tiny.write_study(tmp_path)
    with (
        files.locked(tmp_path / "unet/default", ""),
        pytest.raises(
            DataError, match=r"unet/default: another process is working here\. Wait for it, or choose another"
        ),
    ):
        command.main(command.UnetArguments(tmp_path))


def test_a_map_has_the_shape_of_its_volume(small):
    found = unet.probability_map(unet.build(), np.zeros((20, 3, 10), np.uint8))
    assert found.shape == (20, 3, 10) and found.dtype == np.float16
