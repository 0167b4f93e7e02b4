"""The trials while a search runs: a table on a terminal, lines elsewhere."""

import dataclasses
import io

import pytest
import searches
from rich.console import Console
from rich.live import Live

from femur_tf import command
from tuning import board, trials
from tuning.trials import COMPLETED, FAILED, RUNNING, TrialRow

ROW = TrialRow(
    "3",
    3,
    COMPLETED,
    0.98765,
    {
        "filters_1": 16,
        "filters_2": 64,
        "dense": 48,
        "dense_layers": 2,
        "planes_0mm": "finest",
        "planes_3.6mm": "none",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "batch": 256,
        "loss": "focal",
    },
    123_456.0,
    118.4,
    2.0,
    5,
    True,
    None,
)


WIDTH = 300
"""Of a wide terminal."""


def shown(renderable):
    """Return what a wide terminal would show."""
    stream = io.StringIO()
    Console(file=stream, width=WIDTH).print(renderable)
    return stream.getvalue()


def test_a_row_says_what_a_trial_is_and_found():
    assert board.cells(ROW) == (
        *("3", "COMPLETED early", "0.9877", "5", "118", "2", "123 k"),
        *("16-64 | 48-48 | 0mm finest", "adam 1.0e-03, batch 256, focal", ""),
    )


def test_a_trial_that_cannot_be_read_has_a_row_too():
    row = TrialRow("0", 0, trials.INVALID, None, {}, None, 0.0, 0.0, 0, False, "about.json: [damaged]")
    assert board.cells(row) == ("0", "INVALID", "", "0", "0", "0", "", "", "", "about.json: [damaged]")
    short = dataclasses.replace(row, reason="[damaged]")
    assert "[damaged]" in shown(board.table([short], "x", WIDTH))  # not read as markup


def test_a_narrow_terminal_shows_fewer_columns_and_a_reason_in_one_line():
    row = dataclasses.replace(ROW, status=FAILED, reason="MemoryError: no room for a tensor of shape (1, 2, 3)")
    stream = io.StringIO()
    Console(file=stream, width=80).print(board.table([ROW, row], "x", 80))
    text = stream.getvalue()
    assert not any(name in text for name in ("outside, wall s", "cost", "adam"))
    assert text.count("MemoryError…") == 1
    assert "no room" not in text
    assert all(word in text for word in (" COMPLETED ", " FAILED ", " 0.9877 ", "16-64"))  # whole words
    assert all(name in shown(board.table([row], "x", WIDTH)) for name in ("outside, wall s", "cost", "adam"))


def test_the_share_of_time_outside_training_is_that_of_all_trials():
    assert board.outside([ROW, dataclasses.replace(ROW, training_seconds=71.6, outside_seconds=8.0)]) == (
        "5.0 % of 200 s outside training"
    )
    assert board.outside([]) == "0.0 % of 0 s outside training"


def test_the_summary_counts_and_names_the_best():
    assert board.summary(searches.SEARCH, [ROW]).startswith("1 of 6 trials; best val_auc 0.9877 (trial 3); ")
    assert board.summary(searches.SEARCH, []).startswith("0 of 6 trials; ")


@pytest.fixture
def folder(tmp_path):
    """A search with a completed and a running trial."""
    searches.write_search(tmp_path)
    searches.write_trial(tmp_path, 0, COMPLETED, 0.9)
    searches.write_trial(tmp_path, 1, RUNNING, None)
    return tmp_path


def test_each_trial_that_ends_is_a_line_once(folder, capsys, monkeypatch):
    monkeypatch.setattr(board, "EVERY_S", 0.02)
    with board.Board(folder).shown():
        assert command.console.quiet
        searches.write_trial(folder, 1, FAILED, None, reason="MemoryError: no room")
        command.say("not to be seen")
    out = capsys.readouterr().out
    assert not command.console.quiet
    assert len(out.splitlines()) == 1  # what had ended before is no news
    assert out.startswith("1  FAILED")
    assert "MemoryError: no room" in out


def test_a_terminal_shows_what_runs_and_the_best(folder, monkeypatch):
    monkeypatch.setattr(board, "SHOWN", 4)
    for number in range(2, 12):
        searches.write_trial(folder, number, COMPLETED, number / 20)
    live = board.Board(folder)
    live.console = Console(file=io.StringIO(), force_terminal=True, width=300)
    live.live = Live(console=live.console, auto_refresh=False)
    with live.shown():
        live.refresh()
    search, rows = trials.read(folder)
    assert [row.number for row in live._chosen(search, rows)] == [0, 1, 10, 11]
    assert "11 of 6 trials" in live.console.file.getvalue()


def test_a_folder_without_a_search_shows_nothing(tmp_path, capsys):
    with board.Board(tmp_path).shown():
        pass
    assert capsys.readouterr().out == ""
