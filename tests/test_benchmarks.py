"""The benchmarks run and print what they promise; how fast is for a quiet machine to tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_pipeline_benchmark_prints_one_json_line():
    flags = ["--shards", "2", "--examples", "300", "--steps", "2"]
    words = [sys.executable, "-m", "benchmarks.pipeline", *flags]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert {"cut_per_s", "write_per_s", "read_per_s", "input_wait_fraction"} <= found.keys()
    assert all(found[name] > 0 for name in found)
    assert found["input_wait_fraction"] < 1
