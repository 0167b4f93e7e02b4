"""Before and after the trials: settings, the folder, limits, the outcome."""

import dataclasses
import time

import pytest
import searches
import tiny

from femur_tf import config, files
from femur_tf.errors import DataError
from tuning import launch, trials
from tuning.launch import Limits, Wanted
from tuning.search import SearchArguments, check, flags, make_oracle
from tuning.search_space import Space
from tuning.trials import COMPLETED, FAILED, RUNNING


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with records; not to be changed but for its searches."""
    work = tmp_path_factory.mktemp("work")
    tiny.write_all(work)
    return work


def wanted(work, **changes):
    """Return what a search is asked to do."""
    base = Wanted(work, "x", "bayesian", "val_auc", 4, None, None, None, 1, 250_000, True)
    return dataclasses.replace(base, **changes)


def test_a_trial_has_two_minutes_unless_told_otherwise(study):
    assert launch.settings(wanted(study)).minutes == 2.0
    assert launch.settings(wanted(study, epochs=3)).minutes is None
    assert launch.settings(wanted(study, minutes=0.5)).minutes == 0.5


@pytest.mark.parametrize(("objective", "direction"), [("val_loss", "min"), ("val_auc", "max"), ("dice", "max")])
def test_each_objective_has_its_direction(study, objective, direction):
    assert launch.settings(wanted(study, objective=objective)).direction == direction


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 1.0, "epochs": 1}, r"--minutes or --epochs\. Received: both"),
        ({"trials": 0}, r"--trials: expected a number above 0\. Received: 0"),
        ({"minutes": 0.0}, "--minutes: expected"),
        ({"epochs": 0}, "--epochs: expected"),
        ({"epoch_examples": 0}, "--epoch-examples: expected"),
        ({"seed": -1}, r"--seed: expected a number of at least 0\. Received: -1"),
        ({"max_cost": 5.0}, "--max-cost: expected at least"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(study, changes, message):
    with pytest.raises(DataError, match=message):
        launch.settings(wanted(study, **changes))


def test_a_study_without_records_says_what_to_run_first(tmp_path):
    with pytest.raises(DataError, match=r"Run first: python -m data_prep\.write_records"):
        launch.settings(wanted(tmp_path))


def test_records_without_all_their_shards_are_refused(tmp_path):
    manifest = tiny.write_all(tmp_path)
    records_folder = tmp_path / "records"
    (records_folder / manifest.shards("train")[0].file.name).unlink()
    with pytest.raises(DataError, match=r"Received: no file\. Find all that is damaged"):
        launch.settings(wanted(tmp_path))


def test_a_search_is_taken_up_with_its_first_time(study):
    first = launch.prepare(wanted(study, name="a"), overwrite=False)
    folder = study / "tuning" / "a"
    files.write_json(trials.search_path(folder), {**config.to_dict(first), "started": "before"})
    again = launch.prepare(wanted(study, name="a", trials=9), overwrite=False)
    assert again == dataclasses.replace(first, trials=9, started="before")
    assert trials.read_search(folder) == again


def test_other_settings_are_refused_and_named_unless_it_begins_anew(study):
    launch.prepare(wanted(study, name="b"), overwrite=False)
    other = wanted(study, name="b", seed=2, objective="val_loss")
    with pytest.raises(DataError, match=r"search\.json: .*another direction, objective, seed\. .*--overwrite"):
        launch.prepare(other, overwrite=False)
    (study / "tuning" / "b" / "trial_0").mkdir()
    assert launch.prepare(other, overwrite=True).seed == 2
    assert not (study / "tuning" / "b" / "trial_0").exists()


def test_truncated_settings_are_written_anew(study, capsys):
    first = launch.prepare(wanted(study, name="c"), overwrite=False)
    searches.truncate(study / "tuning" / "c" / "search.json")
    again = launch.prepare(wanted(study, name="c"), overwrite=False)
    assert dataclasses.replace(again, started=first.started) == first
    assert "search.json: expected JSON" in capsys.readouterr().err


def test_limits_say_what_is_used_up(tmp_path):
    files.write_text(tmp_path / "a", "x" * 2000)
    assert Limits(tmp_path, None, None).reason() is None
    assert Limits(tmp_path, 1.0, 1.0).reason() is None
    advice = "allow more, or keep fewer models (--keep-best)"
    assert Limits(tmp_path, None, 1e-6).reason() == f"{tmp_path} holds 2e-06 GB; --max-disk is 1e-06: {advice}"
    late = Limits(tmp_path, 1.0, 1.0, begun=time.monotonic() - 3600)
    assert late.hours() == late.reason() == "--max-hours 1 are used"
    assert Limits(tmp_path, None, 1e-6).hours() is None


def test_a_search_of_another_space_is_not_gone_on_with(study):
    first = launch.prepare(wanted(study, name="d"), overwrite=False)
    assert first.space == searches.space().digest
    for other in ("", "0" * 16):  # "": of an early version, whose space nobody knows
        path = trials.search_path(study / "tuning" / "d")
        files.write_json(path, {**config.to_dict(first), "space": other})
        with pytest.raises(DataError, match=r"Received: another space\. Choose another name"):
            launch.prepare(wanted(study, name="d"), overwrite=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"records": "other"}, "expected the records that the search was begun with. Received: others. Pass the chief"),
        ({"space": "other"}, "expected the space that the search was begun with. Received: another. Run the chief"),
    ],
)
def test_a_worker_of_other_records_or_another_space_is_refused(study, changes, message):
    search = launch.settings(wanted(study))
    launch.require_same(search, study)
    with pytest.raises(DataError, match=message):
        launch.require_same(dataclasses.replace(search, **changes), study)


@pytest.mark.parametrize(
    ("statuses", "stopped", "expected", "message"),
    [
        ((COMPLETED, COMPLETED), None, 0, ""),
        ((COMPLETED, COMPLETED), "--max-disk is 1", 0, ""),  # what was asked for is there
        ((COMPLETED, FAILED), None, 1, "Expected 2 COMPLETED trials. Received: 1; 1 set aside."),
        ((COMPLETED,), None, 1, "Received: 1; the space holds no more points."),
        (
            (COMPLETED, RUNNING),
            "the disk is full",
            3,
            "1 of 2 trials: the disk is full. Run the command again to go on.",
        ),
    ],
)
def test_the_outcome_is_said_and_is_the_exit_status(tmp_path, capsys, statuses, stopped, expected, message):
    folder = tmp_path / "tuning" / "x"
    searches.write_search(folder, trials=2)
    for number, status in enumerate(statuses):
        reason = "Diverged: the loss is nan" if status == FAILED else None
        searches.write_trial(folder, number, status, 0.5 if status == COMPLETED else None, reason=reason)
    assert launch.finish(folder, tmp_path, stopped) == expected
    shown = capsys.readouterr()
    assert message in shown.err
    assert ("trial 1 was set aside: Diverged: the loss is nan" in shown.err) == (FAILED in statuses)
    assert "--config" in shown.out
    assert launch.is_finished(folder) == (len(statuses) == 2 and RUNNING not in statuses)


def test_a_folder_without_a_search_is_not_finished(tmp_path):
    assert not launch.is_finished(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "--workers: expected at least 1. Received: 0"),
        ({"max_disk": -1.0}, "--max-disk: expected more than 0"),
        ({"role": "worker"}, "--chief HOST:PORT with --role"),
        ({"chief": "here:1"}, "--chief HOST:PORT with --role"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        check(SearchArguments(tmp_path, **changes))


def test_arguments_are_handed_on_without_their_place(tmp_path):
    import tyro

    arguments = SearchArguments(
        tmp_path, trials=3, epochs=1, from_default=False, workers=4, overwrite=True, max_hours=2.0, name="n"
    )
    handed_on = tyro.cli(SearchArguments, args=[*flags(arguments)])
    assert handed_on == dataclasses.replace(arguments, workers=1, overwrite=False)


def test_where_no_cost_is_asked_for_the_default_can_be_tried(study):
    assert launch.settings(wanted(study, max_cost=None)).max_cost == launch.BUDGET  # it costs less
    isotropic = config.PatchConfig(spacing_mm=(1.0, 1.0, 1.0), scales_mm=(0.0, 3.6))
    data = config.DataConfig(patch=isotropic)
    found = launch.usual_cost(data)
    assert found > launch.BUDGET
    space = Space(data, found)
    assert space.fault(space.default()) is None


def test_a_default_that_costs_too_much_to_be_the_first_trial_is_told(study, capsys):
    space = searches.space()
    wanted = dataclasses.replace(searches.SEARCH, max_cost=space.cost(space.default()) - 1)
    for asked, told in ((wanted, True), (dataclasses.replace(wanted, from_default=False), False)):
        make_oracle(SearchArguments(study), asked)
        assert ("The preset default is not the first trial: it costs" in capsys.readouterr().err) == told
