"""Scores of every epoch, from a tiny study."""

import json

import bright
import pytest
import tiny

from benchmarks import epochs
from femur_tf import bundle, config, files, study
from femur_tf.errors import DataError


def test_each_epoch_is_scored_by_its_own_network(tmp_path, capsys, monkeypatch):
    tiny.write_study(tmp_path, rule=bright.RULE)
    run = study.run_path(tmp_path, "epochs")
    history = [{"epoch": n, "seconds": 60.0 * n, "val_log_loss": 0.1, "val_auc": 0.9} for n in (1, 2)]
    for row in history:
        bright.save_run(epochs.folder_of(run, row["epoch"]), chosen=None)
    monkeypatch.setattr(epochs, "train", lambda arguments: history)
    epochs.main(epochs.EpochsArguments(tmp_path))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["epoch"] for row in found] == [1, 2]
    assert found[0]["volumes"] == found[1]["volumes"]
    assert found[0]["volumes"]["cases"].keys() == {"hip_03"}


@pytest.mark.slow
def test_the_network_of_each_epoch_is_kept(tmp_path, monkeypatch):
    small = config.Preset(config.ModelConfig(filters=(4,), dense=(8,)), config.TrainConfig(batch=32), (0.0,))
    monkeypatch.setitem(config.PRESETS, "default", small)
    tiny.write_study(tmp_path)
    tiny.write_its_records(tmp_path)
    arguments = epochs.EpochsArguments(tmp_path, minutes=0.05)
    history = epochs.train(arguments)
    run = study.run_path(tmp_path, "epochs")
    assert sorted(path.name for path in (run / "each").iterdir()) == [f"epoch-{row['epoch']:04.0f}" for row in history]
    kept = bundle.load(epochs.folder_of(run, len(history)), calibrated=False)
    assert kept.settings == config.load(config.RunConfig, run / "config.json")
    assert epochs.train(arguments) == history


def test_two_trainings_of_one_run_at_once_are_refused(tmp_path):
    tiny.write_all(tmp_path)
    with (
        files.locked(study.run_path(tmp_path, "epochs"), ""),
        pytest.raises(
            DataError, match=r"runs/epochs: another process is working here\. Wait for it, or choose another"
        ),
    ):
        epochs.train(epochs.EpochsArguments(tmp_path))


def test_a_study_without_validation_cases_is_refused_before_it_trains(tmp_path):
    tiny.write_study(tmp_path, rule=bright.RULE)
    values = files.read_json(study.plan_path(tmp_path))
    values["cases"] = [case for case in values["cases"] if case["part"] != "validation"]
    files.write_json(study.plan_path(tmp_path), values)
    with pytest.raises(DataError, match="expected validation cases"):
        epochs.main(epochs.EpochsArguments(tmp_path))
