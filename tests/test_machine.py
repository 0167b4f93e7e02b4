"""What the machine lends."""

import os

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
