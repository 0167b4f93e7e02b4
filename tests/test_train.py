"""The train command: which settings its flags make, and one run as a user would start it."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import tyro

from femur_tf import config, files, study, train
from femur_tf.errors import DataError
from femur_tf.train import TrainArguments

SMALL = ("model.filters=[2]", "model.dense=[3]", "train.batch=90")


def chosen(data=tiny.DATA, **arguments):
    """Return the settings that flags make."""
    return train.settings(TrainArguments(Path("work"), **arguments), data)


@pytest.mark.parametrize("name", config.PRESETS)
def test_a_preset_has_its_network_training_and_scales_on_the_grid_of_the_records(name):
    preset = config.PRESETS[name]
    found = chosen(preset=name)
    assert (found.model, found.train) == (preset.model, preset.train)
    assert found.data == dataclasses.replace(tiny.DATA, patch=preset.patch(tiny.RULE))


@pytest.mark.parametrize(
    ("scales_mm", "planes"),
    [((0.0, 1.8), ("finest", "all")), ((0.0,), ("finest",)), ((0.0, 1, 2), ("finest", "all", "all"))],
)
def test_records_of_other_scales_are_read_with_those_and_it_is_said(capsys, scales_mm, planes):
    rule = dataclasses.replace(tiny.RULE, scales_mm=scales_mm)
    found = chosen(dataclasses.replace(tiny.DATA, patch=rule)).data.patch
    assert (found.scales_mm, found.planes) == (scales_mm, planes)
    assert "the preset's, 0, 3.6 mm, are not all among them" in capsys.readouterr().out


def test_scales_that_a_preset_lacks_are_left_out(capsys):
    rule = dataclasses.replace(tiny.RULE, scales_mm=(0.0, 1.8, 3.6, 7.2))
    assert chosen(dataclasses.replace(tiny.DATA, patch=rule)).data.patch.scales_mm == (0.0, 3.6)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("train.learning_rate=3e-4", 3e-4),
        ("model.filters=[24,48]", (24, 48)),
        ("train.optimizer=sgd", "sgd"),  # a text may stand without quotation marks
        ('train.optimizer="sgd"', "sgd"),
        ("train.augment.flip=false", False),
        ('data.patch.planes=["all","all"]', ("all", "all")),
    ],
)
def test_one_setting_can_be_changed(assignment, value):
    found = chosen(set=(assignment,))
    for part in assignment.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value


def test_fewer_scales_need_as_many_choices_of_planes():
    found = chosen(set=("data.patch.scales_mm=[0]", "data.patch.planes=[]"))
    assert (found.data.patch.scales_mm, found.data.patch.channels) == ((0.0,), 3)
    with pytest.raises(DataError, match="for each scale, or nothing"):
        chosen(set=("data.patch.scales_mm=[0]",))


def test_epochs_and_precision_have_flags_of_their_own():
    found = chosen(epochs=5, mixed_precision=True).train
    assert (found.epochs, found.mixed_precision) == (5, True)
    assert chosen(minutes=3.0).train == dataclasses.replace(config.PRESETS["default"].train, minutes=3.0)


def test_epochs_take_the_place_of_the_minutes_of_a_config_file(tmp_path):
    path = tmp_path / "mine.json"
    files.write_json(path, {"train": {"minutes": 30.0}})
    assert chosen(config=path).train.minutes == 30
    assert chosen(config=path, minutes=3.0).train.minutes == 3
    assert chosen(config=path, epochs=5).train == config.TrainConfig(epochs=5)


def test_a_config_file_stands_for_a_preset(tmp_path):
    path = tmp_path / "mine.json"
    files.write_json(path, {"model": {"filters": [7]}})
    found = chosen(config=path, epochs=2, set=("train.batch=9",))
    assert found.model == config.ModelConfig(filters=(7,))
    assert found.train == config.TrainConfig(epochs=2, batch=9)  # the rest has its defaults
    assert found.data == tiny.DATA


def test_the_config_of_another_run_brings_its_own_patches(tmp_path):
    earlier = chosen(preset="paper", epochs=3)
    files.write_json(tmp_path / "config.json", config.to_dict(earlier))
    assert chosen(config=tmp_path / "config.json") == earlier


def test_how_records_came_about_is_known_of_the_records_alone(tmp_path):
    normalisation = dataclasses.replace(tiny.DATA.normalisation, n4=True)
    earlier = dataclasses.replace(
        tiny.DATA, normalisation=normalisation, sampling=config.SamplingConfig(per_case=7_000)
    )
    files.write_json(tmp_path / "config.json", config.to_dict(config.RunConfig(earlier)))
    assert chosen(config=tmp_path / "config.json").data == tiny.DATA


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 2, "minutes": 1.0}, r"Expected --epochs or --minutes\. Received: both"),
        ({"set": ("train.bach=3",)}, r"--set: expected NAME=VALUE .* 'train\.bach=3'\. Perhaps you meant train\.batch"),
        ({"set": ("xyz=3",)}, r"--set: expected NAME=VALUE .* Received: 'xyz=3'\. Names: see docs/train"),
        ({"set": ("model.filters=[16,x]",)}, r"--set model\.filters: expected JSON such as \[24,48,96\]\. .*16,x"),
        ({"set": ("batch=3",)}, "--set: expected NAME=VALUE"),
        ({"set": ("train.batch",)}, r"--set: expected NAME=VALUE\. Received: 'train\.batch', without =VALUE"),
        ({"set": ("train.batch.size=3",)}, "--set: expected NAME=VALUE"),
        ({"set": ("train.batch=0",)}, r"--set: .*TrainConfig\.batch: expected at least 1"),
        ({"set": ("train.batch=2.5",)}, r"--set: .*expected a whole number\. Received: 2\.5"),
        ({"set": ("train.batch=many",)}, r"--set: .*expected a whole number\. Received: 'many'"),
        ({"set": ("train.augment.flip=no",)}, r"--set: .*expected true or false\. Received: 'no'"),
        ({"set": ("train.loss=hinge",)}, r"--set: .*expected one of 'binary_crossentropy', .*Received: 'hinge'"),
        ({"epochs": 0}, r"--epochs: .*TrainConfig\.epochs: expected at least 1"),
        ({"minutes": 0.0}, r"TrainConfig\.minutes: expected a time in \(0, 1e6\) minutes"),
        ({"minutes": float("nan")}, r"TrainConfig\.minutes: expected a time .* Received: minutes=nan"),
    ],
)
def test_flags_that_make_no_settings_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        chosen(**arguments)


@pytest.mark.parametrize("values", [[], {"modle": {}}, {"train": {"epochs": "many"}}, {"train": None}])
def test_a_bad_config_file_is_named(tmp_path, values):
    files.write_json(tmp_path / "mine.json", values)
    with pytest.raises(DataError, match=r"mine\.json: expected the fields of RunConfig"):
        chosen(config=tmp_path / "mine.json", epochs=2)


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine\.json"):
        chosen(config=tmp_path / "mine.json")


@pytest.mark.slow
def test_a_run_prints_its_epochs_and_what_comes_next(tmp_path, capsys):
    tiny.write_all(tmp_path)
    train.main(TrainArguments(tmp_path, run="first", epochs=1, set=SMALL))
    shown = capsys.readouterr().out
    assert "val_auc" in shown
    assert f"Next: python -m femur_tf.evaluate {tmp_path} --run first" in shown
    assert (tmp_path / "runs/first/model.keras").exists()


@pytest.mark.slow
def test_a_folder_without_records_exits_with_status_2_and_says_what_to_run_first(tmp_path):
    command = [sys.executable, "-m", "femur_tf.train", str(tmp_path)]
    root = Path(__file__).parents[1]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert f"Run first: python -m data_prep.write_records {tmp_path}" in result.stderr
    assert "Traceback" not in result.stderr


def test_each_set_counts():
    """A flag that is given again must not replace what it was given before."""
    flags = ["work", "--set", "train.batch=8", "--set", "train.learning_rate=0.1"]
    assert tyro.cli(TrainArguments, args=flags).set == ("train.batch=8", "train.learning_rate=0.1")


def test_two_trainings_of_one_run_at_once_are_refused(tmp_path):
    tiny.write_all(tmp_path)
    with (
        files.locked(study.run_path(tmp_path, "default"), ""),
        pytest.raises(
            DataError, match=r"runs/default: another process is working here\. Wait for it, or choose another"
        ),
    ):
        train.main(TrainArguments(tmp_path, epochs=1, overwrite=True))
