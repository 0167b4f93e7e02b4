"""What the machine lends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from femur_tf import machine


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is a matter of Linux")
def test_cores_are_those_that_the_process_may_use():
    before = os.sched_getaffinity(0)
    assert machine.cores() == len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_without_affinity_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert machine.cores() == (os.cpu_count() or 1)


def runs(process: int) -> bool:
    """Return whether a process runs; one that has ended may wait for somebody to ask for its status."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to see processes in")
def test_no_process_outlives_a_killed_command():
    code = (
        "import concurrent.futures, multiprocessing, os, time\n"
        "from femur_tf.machine import end_with_parent\n"
        "context = multiprocessing.get_context('spawn')\n"
        "pool = concurrent.futures.ProcessPoolExecutor(1, context, initializer=end_with_parent)\n"
        "print(pool.submit(os.getpid).result(), flush=True)\n"
        "pool.submit(time.sleep, 600).result()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as command:
        worker = int(command.stdout.readline())
        assert runs(worker)
        command.kill()
    deadline = time.monotonic() + 60
    while runs(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not runs(worker)
