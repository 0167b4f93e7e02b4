"""The edge between a command and its user."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from femur_tf import command, errors
from femur_tf.errors import DataError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Count sheep."""

    number: int = 3
    """How many."""
    overwrite: bool = False
    """Count anew."""


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs a command with the given flags and gives (exit status, out, err)."""

    def call(function, *flags):
        monkeypatch.setattr("sys.argv", ["sheep", *flags])
        with pytest.raises(SystemExit) as caught:
            command.run(function, Arguments)
        return caught.value.code, *capsys.readouterr()

    return call


def raiser(error):
    def function(arguments):
        raise error

    return function


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), (2, 2)])
def test_what_a_command_returns_is_its_exit_status(run, returned, status):
    assert run(lambda arguments: returned) == (status, "", "")


def test_a_command_in_a_message_can_be_typed():
    assert errors.typed("femur_tf.train", "my work", "--epochs", 3) == "python -m femur_tf.train 'my work' --epochs 3"
    assert errors.typed("femur_tf.train", Path("-w"), "--epochs", 3) == "python -m femur_tf.train ./-w --epochs 3"


def test_flags_reach_the_function(run):
    status, out, _ = run(lambda arguments: command.say(f"{arguments.number} sheep"), "--number", "5")
    assert (status, out) == (0, "5 sheep\n")


def test_help_is_the_docstring(run):
    status, out, _ = run(lambda arguments: None, "--help")
    assert status == 0
    assert "Count sheep." in out
    assert "How many." in out


def test_a_bad_flag_exits_with_2(run):
    status, _, err = run(lambda arguments: None, "--number", "many")
    assert status == 2
    assert "many" in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("a.nii: expected 3 axes. Received: 4"), "error: a.nii: expected 3 axes. Received: 4\n"),
        (OSError(28, "No space left on device", "a.nii"), "error: [Errno 28] No space left on device: 'a.nii'\n"),
        (FileNotFoundError(2, "No such file", "[red]"), "error: [Errno 2] No such file: '[red]'\n"),  # not a colour
    ],
)
def test_an_error_is_one_message_with_status_2(run, error, message):
    assert run(raiser(error)) == (2, "", message)


def test_a_long_message_stays_on_one_line(run):
    text = "word " * 100 + "end"
    assert run(raiser(DataError(text)))[2] == f"error: {text}\n"


def test_an_interrupt_says_how_to_go_on(run):
    status, _, err = run(raiser(KeyboardInterrupt()))
    assert status == 130
    assert "Run the same command again" in err


@pytest.mark.parametrize("filename", [None, "model.keras"])
def test_a_full_disk_is_said_with_what_to_do_where_no_file_is_named(run, filename):
    status, _, err = run(raiser(OSError(errno.ENOSPC, "No space left on device", filename)))
    assert status == 2
    assert ("expected room on the disk. Received: " in err) == (filename is None)
    assert "No space left on device" in err


HEEDING = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
"""What started the tests, such as nohup, may ignore these, and so do its children then."""
ORDERLY = """
import dataclasses, time
from femur_tf import command
def work(_):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("in order", flush=True)
command.run(work, dataclasses.make_dataclass("Nothing", []))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_the_system_ends_ends_in_order(number):
    command_line = [sys.executable, "-c", HEEDING + ORDERLY]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(number)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (128 + number, b"in order\n")
    assert b"Interrupted. Run the same command again to go on." in err


def test_what_is_to_outlive_its_terminal_does():
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    with subprocess.Popen([sys.executable, "-c", ignoring + ORDERLY], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGHUP)
        child.terminate()
        child.communicate(timeout=30)
    assert child.returncode == 128 + signal.SIGTERM


def test_an_interrupt_that_python_swallows_is_repeated():
    """As one that arrives while a weak reference ends."""
    line = """
import dataclasses, time
from femur_tf import command
class Swallows:
    def __del__(self):
        raise KeyboardInterrupt
def work(_):
    Swallows()
    time.sleep(60)
command.run(work, dataclasses.make_dataclass("Nothing", []))
"""
    found = subprocess.run([sys.executable, "-c", HEEDING + line], capture_output=True, timeout=30, check=False)
    assert found.returncode == 128 + signal.SIGINT
    assert b"Interrupted." in found.stderr


def test_other_errors_that_python_swallows_are_shown():
    line = """
import dataclasses
from femur_tf import command
class Swallows:
    def __del__(self):
        raise OSError("gone")
def work(_):
    Swallows()
command.run(work, dataclasses.make_dataclass("Nothing", []))
"""
    found = subprocess.run([sys.executable, "-c", line], capture_output=True, timeout=30, check=False)
    assert found.returncode == 0
    assert b"OSError: gone" in found.stderr


@pytest.mark.parametrize(
    ("goes_on", "words"),
    [(True, "without --overwrite, to go on; with it, it starts anew."), (False, "Run the same command again.\n")],
)
def test_an_interrupt_of_what_overwrites_does_not_advise_to_start_anew(monkeypatch, capsys, goes_on, words):
    monkeypatch.setattr("sys.argv", ["sheep", "--overwrite"])
    with pytest.raises(SystemExit):
        command.run(raiser(KeyboardInterrupt()), Arguments, goes_on=goes_on)
    assert words in capsys.readouterr().err


def test_a_name_of_another_encoding_is_shown_escaped():
    line = (
        "import dataclasses, os; from femur_tf import command\n"
        "Nothing = dataclasses.make_dataclass('Nothing', [])\n"
        "command.run(lambda _: command.say(os.fsdecode(b'M\\xfcller')), Nothing)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    found = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, env=environment)
    assert (found.returncode, found.stdout) == (0, "M\\udcfcller\n"), found.stderr


@pytest.mark.parametrize("flags", [["--debug"], ["--number", "5", "--debug"]])
def test_debug_lets_the_traceback_through(monkeypatch, flags):
    monkeypatch.setattr("sys.argv", ["sheep", *flags])
    with pytest.raises(DataError, match="wolf"):
        command.run(raiser(DataError("wolf")), Arguments)


def test_a_bug_is_not_dressed_up_as_a_message(monkeypatch):
    monkeypatch.setattr("sys.argv", ["sheep"])
    with pytest.raises(ZeroDivisionError):
        command.run(lambda arguments: 1 // 0, Arguments)


def test_messages_go_to_their_streams(capsys):
    command.say("[1/2] a")
    command.warn("[b]")
    assert capsys.readouterr() == ("[1/2] a\n", "warning: [b]\n")


def test_a_table_shows_every_cell(capsys):
    command.table("Scores", ["case", "Dice", "distance [mm]"], [["[red]17", 0.8504, 3], ["mean", float("nan"), 4]])
    out = capsys.readouterr().out
    assert "Scores" in out
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in out.splitlines()]
    assert ["case", "Dice", "distance [mm]"] in cells
    assert ["[red]17", "0.850", "3"] in cells
    assert ["mean", "nan", "4"] in cells


def test_brackets_of_a_title_stay(capsys):
    command.table("work[1]/[red]", ["a column that is wider"], [["17"]])
    assert "work[1]/[red]" in capsys.readouterr().out


def test_a_table_without_rows_has_its_header(capsys):
    command.table("None", ["case"], [])
    assert "case" in capsys.readouterr().out


@pytest.mark.parametrize("items", [[1, 2, 3], []])
def test_track_yields_all_items_in_order(items):
    assert list(command.track(items, "sheep")) == items
    assert list(command.track(iter(items), "sheep", total=len(items))) == items


@pytest.mark.parametrize("percent", [False, True])
def test_progress_tells_the_time_left(percent):
    with command.progress(percent=percent) as display:
        display.add_task("sheep", total=3, completed=1)
        columns = [type(column).__name__ for column in display.columns]
    assert "TimeRemainingColumn" in columns
    assert ("TaskProgressColumn" in columns) == percent


@pytest.fixture
def clock(monkeypatch):
    """Return the seconds of a clock that only a test moves."""
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_a_minute(clock, capsys):
    with command.progress(percent=True) as display:
        bar = display.add_task("training", total=100)
        for share, seconds in ((1, 59.9), (2, 60), (3, 119), (4, 121)):
            clock[0] = seconds
            display.update(bar, completed=share, description=f"epoch 1, loss 0.{share}")
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[\d:-]+:.*", "TIMES", line) for line in lines] == [
        "epoch 1, loss 0.2 2% TIMES",
        "epoch 1, loss 0.4 4% TIMES",
    ]


def test_a_log_counts_what_is_gone_through(clock, capsys):
    with command.progress() as display:
        bar = display.add_task("cases", total=3)
        clock[0] = 61
        display.advance(bar)
        display.advance(bar)
    assert re.fullmatch(r"cases 1/3 [\d:]+ left [\d:-]+\n", capsys.readouterr().out)


def test_a_terminal_has_a_bar_alone(clock, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(command, "console", Console(file=shown, force_terminal=True))
    with command.progress() as display:
        bar = display.add_task("cases", total=3)
        clock[0] = 61
        display.advance(bar)
    assert "cases \u001b" in shown.getvalue()  # a coloured bar is next
    assert "cases 1/3" not in shown.getvalue()
