"""How much of a training a trial is."""

import dataclasses

import pytest
import searches

from femur_tf import config, cost, files, records
from femur_tf.records import FileEntry, Manifest, Shard
from tuning import budget, trials
from tuning.trials import COMPLETED, FAILED

SPACE = searches.space()


def manifest(train=100_000, validation=20_000):
    """Return the manifest of records with so many examples."""
    cases = [
        records.CaseRecords(
            part, part, (Shard(FileEntry(part, 1, ""), part, {"bone": 0, "near": 0, "far": count}),), ""
        )
        for part, count in (("train", train), ("validation", validation))
    ]
    return Manifest(searches.DATA, "patches", tuple(cases))


def search(**changes):
    """Return a search of two-minute trials."""
    return dataclasses.replace(searches.SEARCH, **{"minutes": 2.0, "epochs": None, **changes})


def settings(found, values=None, number=3, known=()):
    """Return the train settings of a trial of the default point."""
    values = {**SPACE.default(), **(values or {})}
    return budget.settings(SPACE, found, values, number, (manifest(), list(known))).train


@pytest.mark.parametrize(
    ("changes", "examples"),
    [({"minutes": 2.0}, 8192), ({"minutes": 0.05}, 512), ({"minutes": 60.0}, 20_000), ({"minutes": None}, None)],
)
def test_validation_grows_with_the_minutes(changes, examples):
    assert budget.validation_examples(search(**changes), manifest()) == examples


def test_a_trial_of_minutes_has_about_five_epochs(monkeypatch):
    monkeypatch.setattr(budget, "seconds_an_example", lambda settings: 1e-2)
    train = settings(search(), known=[0.1, 10.0, 100.0])  # a thousand examples a second
    assert train.minutes == 2.0
    assert train.epoch_examples == pytest.approx(120 * 1000 / 5, abs=train.batch)
    assert train.epoch_examples % train.batch == 0


def test_an_epoch_has_a_batch_at_least_and_the_records_at_most():
    assert settings(search(), known=[1e-9]).epoch_examples == 64
    assert settings(search(), known=[1e15]).epoch_examples == 100_000


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"minutes": None, "epochs": 4}, (None, 4, None)),
        ({"minutes": None, "epochs": 4, "epoch_examples": 64}, (None, 4, 64)),
        ({"epoch_examples": 64}, (2.0, 62, 64)),
    ],
)
def test_epochs_and_their_examples_are_those_asked_for(changes, expected):
    train = settings(search(**changes))
    assert (train.minutes, train.epochs, train.epoch_examples) == expected


def test_each_trial_has_a_seed_of_its_own():
    assert [settings(search(seed=10), number=number).seed for number in (0, 5)] == [10, 15]


def test_hyperband_gives_a_part_of_the_time():
    assert settings(search(), {"tuner/epochs": 3}).minutes == pytest.approx(2 / 3)
    assert settings(search(minutes=None, epochs=9), {"tuner/epochs": 3}).epochs == 3


def test_the_speed_is_measured_on_finished_trials(tmp_path):
    searches.write_search(tmp_path)
    for number, status in enumerate((COMPLETED, COMPLETED, COMPLETED, FAILED)):
        run = searches.write_trial(tmp_path, number, status, 0.5) / trials.RUN
        found = config.load(config.RunConfig, run / "config.json")
        short = dataclasses.replace(found, train=dataclasses.replace(found.train, epoch_examples=1000))
        files.write_json(run / "config.json", config.to_dict(short if number else found))
        text = "" if number == 2 else "epoch,seconds\n1,10\n2,20\n3,22\n"
        files.write_text(run / "history.csv", text)
    run = tmp_path / "trial_1" / trials.RUN
    found = config.load(config.RunConfig, run / "config.json")
    # Two whole epochs of 1000 examples in 20 s; the third ended with the minutes.
    assert budget.speeds(tmp_path) == [pytest.approx(budget.seconds_an_example(found) * 2000 / 20)]


def test_a_larger_network_takes_longer(monkeypatch):
    small, large = (SPACE.settings({**SPACE.default(), "filters_1": width}) for width in (8, 48))
    assert budget.seconds_an_example(small) < budget.seconds_an_example(large)
    monkeypatch.setattr(budget.machine, "cores", lambda: 1)
    macs = cost.macs_per_patch(small.model, small.data.patch)
    assert budget.seconds_an_example(small) == budget.AROUND_S + macs / budget.RATE_OF_A_CORE
