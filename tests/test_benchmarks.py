"""The benchmarks run and print what they promise; how fast is for a quiet machine to tell."""

import json
import subprocess
import sys
from pathlib import Path

import bright
import pytest
import tiny

from benchmarks import pipeline, serving
from femur_tf.errors import DataError

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


@pytest.mark.parametrize("name", ["shards", "examples", "steps", "processes"])
def test_a_pipeline_of_nothing_is_refused(name):
    with pytest.raises(DataError, match=f"--{name}: expected at least 1. Received: 0"):
        pipeline.main(pipeline.PipelineArguments(**{name: 0}))


def test_a_run_is_not_served(tmp_path):
    pytest.importorskip("tensorflow_serving")
    (tmp_path / "run").mkdir()
    with pytest.raises(DataError, match=r"run: expected a saved model.* python -m femur_tf\.export"):
        serving.measure(serving.ServingArguments(tmp_path / "run"))


@pytest.mark.slow
def test_the_serving_benchmark_loses_nothing(tmp_path):
    pytest.importorskip("tensorflow_serving")
    from femur_tf import bundle, export

    export.export(bundle.load(bright.save_run(tmp_path / "run")), tmp_path / "femur")
    bright.save(tmp_path / "images" / "hip_01.nii.gz", tiny.scan("hip_01"))
    flags = ["--model", tmp_path / "femur", "--data", tmp_path, "--phantoms", "0", "--repeats", "1"]
    flags += ["--clients", "3", "--requests", "12"]
    words = [sys.executable, "-m", "benchmarks.serving", *map(str, flags)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert (found["lost"], found["wrong"], found["masks_equal"], found["cases"]) == (0, 0, True, 1)
    assert 1.0 <= found["bytes_per_voxel"] <= 1.1
