"""What the machine lends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
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


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/", {"memory.max": "1073741824"}, [2**30]),  # a container's own group
        ("0::/", {"memory.max": "max"}, []),
        ("0::/", {}, []),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "4096", "memory.max": "8192"}, [4096, 8192]),
        ("5:memory:/job\n4:cpu:/job\n0::/", {"memory/job/memory.limit_in_bytes": "5000"}, [5000]),
        ("1:name=systemd:/x", {}, []),
        (None, {}, []),
    ],
)
def test_the_limits_of_a_container(tmp_path, own, limits, expected):
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
    if own is not None:
        (tmp_path / "own").write_text(f"{own}\n", encoding="utf-8")
    assert list(machine._group_limits(tmp_path / "own", tmp_path)) == expected


def test_what_may_be_taken_is_what_is_lent(monkeypatch):
    assert 0 < machine.memory_bytes() <= psutil.virtual_memory().total
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1000 * 10**6)
    assert machine.within(900 * 10**6) == 900 * 10**6
    assert machine.within(2000 * 10**6) == 950 * 10**6
    assert str(machine.too_little(700, 600, "a scan of 9 x 9 x 9")).endswith("voxels. Received: 600 MB.")
    error = str(machine.too_little(1300, 1200, "a scan of 9 x 9 x 9"))
    assert error.endswith("Received: 1200 MB, of which this machine or container lends 950 MB: give it more memory.")


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
