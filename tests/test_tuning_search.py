"""Searches as a user starts them, and as the night ends them: killed, truncated, and gone on with."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import searches
import tiny

from tuning import trials
from tuning.supervise import free_port
from tuning.trials import COMPLETED, RUNNING

ROOT = Path(__file__).parents[1]
PATIENCE_S = 240
"""For processes that each load TensorFlow, on a machine with other work."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A study with records; searches of several names are made in it."""
    folder = tmp_path_factory.mktemp("work")
    tiny.write_all(folder)
    return folder


class Started:
    """A search in a process of its own."""

    def __init__(self, work, *flags):
        line = [sys.executable, "-m", "tuning.search", str(work), *map(str, flags)]
        self.process = subprocess.Popen(
            line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
        )

    def until(self, reached):
        """Wait for a condition while the process runs."""
        end = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end
            time.sleep(0.05)

    def kill(self):
        """End the process as the system does when memory is short; return those that it had started."""
        members = psutil.Process(self.process.pid).children()
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        return members

    def member(self, name):
        """Return the process of one member of a team; None while it is not there."""
        for child in psutil.Process(self.process.pid).children():
            try:
                if child.environ().get("KERASTUNER_TUNER_ID") == name:
                    return child
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return None

    def end(self):
        """Return exit status, output and errors."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


def rows(folder):
    """Return the trials on disk, none while there is no search."""
    return trials.read(folder)[1] if trials.search_path(folder).exists() else ()


def checkpoints(folder):
    """Return the epochs that trials under way have completed, as (trial, name of the checkpoint)."""
    running = {row.number for row in rows(folder) if row.status == RUNNING}
    found = folder.glob("trial_*/run/checkpoint/epoch-*")
    return {(n, p.name) for p in found if (n := int(p.parents[2].name[len("trial_") :])) in running}


def epochs_of(folder, trial):
    """Return the epochs in a trial's history."""
    lines = (folder / f"trial_{trial}" / "run" / "history.csv").read_text(encoding="utf-8").splitlines()[1:]
    return [int(line.split(",")[0]) for line in lines]


@pytest.mark.slow
def test_a_search_killed_in_a_trial_goes_on_though_its_state_is_truncated(work):
    folder = work / "tuning" / "one"
    flags = ("--name", "one", "--trials", 3, "--epochs", 6, "--epoch-examples", 256)
    first = Started(work, *flags)
    first.until(lambda: any(number == 1 for number, _ in checkpoints(folder)))
    first.kill()
    before = rows(folder)
    assert [row.status for row in before] == [COMPLETED, RUNNING]
    done = epochs_of(folder, 1)
    for name in ("oracle.json", "trial_0/trial.json", "trial_1/about.json", "search.json"):
        searches.truncate(folder / name)
    status, out, err = Started(work, *flags).end()
    assert status == 0, err
    after = rows(folder)
    assert [row.status for row in after] == [COMPLETED] * 3
    assert after[0].score == before[0].score
    assert len(done) >= 1
    assert epochs_of(folder, 1)[: len(done)] == done
    assert "3 of 3 trials" in out
    assert len(re.findall("It is (made again|written anew)", err)) == 3
    assert (work / "tuning" / "best_config.json").exists()


@pytest.mark.slow
def test_a_team_survives_its_supervisor_a_worker_and_the_chief(work):
    folder = work / "tuning" / "two"
    flags = ("--name", "two", "--trials", 4, "--epochs", 8, "--epoch-examples", 256, "--workers", 2)
    first = Started(work, *flags)
    first.until(lambda: checkpoints(folder))
    members = first.kill()
    assert len(members) == 3
    assert psutil.wait_procs(members, timeout=30)[1] == []

    before = checkpoints(folder)

    team = Started(work, *flags)
    team.until(lambda: team.member("worker-0") and checkpoints(folder) - before)
    team.member("worker-0").kill()
    team.until(lambda: sum(row.status == COMPLETED for row in rows(folder)) >= 1)
    team.member("chief").kill()
    status, out, err = team.end()
    assert status == 0, err
    assert [row.status for row in rows(folder)] == [COMPLETED] * 4
    assert "worker-0 ended with status -9; it is started again." in err
    assert "chief ended with status -9; it is started again." in err
    assert "4 of 4 trials" in out
    assert [epochs_of(folder, number)[0] for number in range(4)] == [1] * 4

    late = Started(work, "--name", "two", "--role", "worker", "--chief", f"127.0.0.1:{free_port()}")
    status, out, err = late.end()
    assert (status, err) == (0, "")
    assert "this search is finished. There is nothing left to do for worker-" in out


@pytest.mark.slow
def test_a_worker_without_a_chief_ends_with_a_message(work):
    address = f"127.0.0.1:{free_port()}"
    worker = Started(work, "--name", "three", "--role", "worker", "--chief", address, "--wait-minutes", 0)
    status, _, err = worker.end()
    assert status == 2
    assert f"--chief {address}: expected a chief, none answered in 0 minutes. Start it first: --role chief" in err


@pytest.mark.slow
def test_a_chief_and_a_worker_of_two_machines_search_together(work):
    address = f"127.0.0.1:{free_port()}"
    flags = ("--name", "four", "--trials", 1, "--epochs", 1, "--algorithm", "random", "--chief", address)
    chief, worker = Started(work, *flags, "--role", "chief"), Started(work, *flags, "--role", "worker")
    status, out, err = worker.end()
    assert status == 0, err
    assert "the chief has no further trial" in out
    status, out, err = chief.end()
    assert status == 0, err
    assert "1 of 1 trials" in out


@pytest.mark.slow
def test_a_search_without_records_is_refused_at_once(tmp_path):
    status, _, err = Started(tmp_path).end()
    assert status == 2
    assert "Run first: python -m data_prep.write_records" in err
    assert os.listdir(tmp_path) == []
