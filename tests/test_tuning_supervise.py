"""The processes of a search on one machine: each is replaced when it dies, but not for ever."""

import json
import subprocess
import sys
import time

import pytest
import searches

from femur_tf import files
from tuning import supervise, trials
from tuning.launch import Limits
from tuning.supervise import Team

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def team(tmp_path, monkeypatch):
    """Return a function from what chief and worker do, as Python, to a team of two workers."""
    searches.write_search(tmp_path)
    monkeypatch.setattr(supervise, "TURN_S", 0.02)
    monkeypatch.setattr(supervise, "LEAVE_S", 5.0)
    start = subprocess.Popen

    def make(chief, worker, limits=None):
        def popen(line, **options):
            role = line[line.index("--role") + 1]
            return start([sys.executable, "-S", "-c", {"chief": chief, "worker": worker}[role]], **options)

        monkeypatch.setattr(supervise.subprocess, "Popen", popen)
        return Team(limits or Limits(tmp_path, None, None), ("work", "--name", "x"), 2)

    return make


def leaves(folder, status, stopped):
    """Return a chief that says why its search ended and leaves."""
    text = json.dumps({"stopped": stopped})
    return f"open({str(supervise.ended_path(folder))!r}, 'w').write({text!r}); raise SystemExit({status})"


@pytest.mark.parametrize(("status", "stopped"), [(0, None), (3, "the disk is full")])
def test_a_team_ends_when_its_chief_leaves_in_order(team, tmp_path, status, stopped):
    here = team(leaves(tmp_path, status, stopped), "pass")
    with here.started():
        assert here.run() == stopped
    assert [member.status() for member in (here.chief, *here.workers)] == [status, 0, 0]


def test_workers_that_stay_are_ended(team, tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "LEAVE_S", 0.2)
    here = team(leaves(tmp_path, 0, None), SLEEP)
    with here.started():
        assert here.run() is None
    assert [worker.status() for worker in here.workers] == [-15, -15]


def test_a_worker_that_dies_again_and_again_ends_the_search(team, capsys):
    here = team(SLEEP, "print('no network'); raise SystemExit(1)")
    with here.started():
        assert here.run() in [f"worker-{n} ended 5 times without a trial in between: no network" for n in (0, 1)]
    assert here.chief.status() == -15
    assert "worker-0 ended with status 1; it is started again." in capsys.readouterr().err


def test_a_trial_that_ends_forgives_deaths(team, tmp_path):
    here = team(SLEEP, SLEEP)
    here.chief.deaths = 5
    assert "chief ended 5 times" in here._replace(here.chief)
    searches.write_trial(tmp_path, 0, trials.COMPLETED, 0.5)
    assert here._replace(here.chief) is None
    assert here.chief.deaths == 1
    here.chief.stop()


def test_a_team_that_overruns_its_hours_is_ended(team, tmp_path, monkeypatch):
    monkeypatch.setattr(supervise, "LATE_S", 0.05)
    here = team(SLEEP, SLEEP, Limits(tmp_path, 1.0, None, begun=time.monotonic() - 3601))
    with here.started():
        assert here.run() == "--max-hours 1 are used"


def test_what_an_earlier_chief_said_is_forgotten(team, tmp_path):
    files.write_json(supervise.ended_path(tmp_path), {"stopped": "long ago"})
    here = team(SLEEP, SLEEP)
    with here.started():
        assert not supervise.ended_path(tmp_path).exists()


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (2, 4), (3, 2), (20, 1)])
def test_threads_are_divided_among_workers(monkeypatch, workers, threads):
    monkeypatch.setattr(supervise.os, "sched_getaffinity", lambda pid: set(range(8)))
    assert supervise.shares(workers) == threads


def test_members_know_who_and_where_they_are(team):
    here = team(SLEEP, SLEEP)
    assert [member.name for member in (here.chief, *here.workers)] == ["chief", "worker-0", "worker-1"]
    address = here.chief.flags[here.chief.flags.index("--chief") + 1]
    assert all(address in worker.flags and worker.flags[-1] == "worker" for worker in here.workers)
    assert address.startswith("127.0.0.1:")


def test_a_member_without_a_log_has_no_last_words(team):
    here = team(SLEEP, SLEEP)
    assert here.chief.last_words() == "nothing in its log"
    assert here.chief.status() is None
    here.chief.stop()


ORPHAN = """
import time
from tuning import supervise
supervise.end_with_supervisor()
time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_ends_with_its_supervisor():
    child = subprocess.Popen([sys.executable, "-c", ORPHAN], stdin=subprocess.PIPE)
    child.stdin.close()
    assert child.wait(30) == supervise.ORPHANED
