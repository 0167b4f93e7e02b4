"""Tests of TensorFlow's quiet start."""

import subprocess
import sys

import pytest

START = "from femur_tf import quiet; quiet.start_tensorflow(); import sys; "


def _run(code):
    return subprocess.run(
        [sys.executable, "-c", START + code], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.slow
def test_the_start_says_nothing_and_errors_are_still_seen():
    result = _run("assert 'tensorflow' in sys.modules; raise SystemExit('after all')")
    assert result.stderr == "after all\n"
    assert result.returncode == 1


@pytest.mark.slow
def test_a_second_call_does_nothing():
    assert _run("quiet.start_tensorflow(); quiet.start_tensorflow()").returncode == 0


def test_a_closed_standard_error_ends_nothing():
    line = "import sys; from femur_tf import quiet; quiet.start_tensorflow(); print('tensorflow' in sys.modules)"
    found = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "{line}" 2>&-', sys.executable], capture_output=True, text=True, check=True
    )
    assert found.stdout == "True\n"
