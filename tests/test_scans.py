"""What a scan takes of memory beside the network, in a process of its own: no more than is counted."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from femur_tf import config, scans, volume

SLACK = 1.0
"""Bytes a voxel, for what the allocator keeps and the libraries load."""
STAGES = """
import re, sys
from pathlib import Path
import numpy as np
from femur_tf import config, image_io, intensity, origin, scans, study, volume

def taken(call):
    call(*small)  # loads what is loaded at the first call
    before = resident("VmRSS")
    call(*large)
    return resident("VmHWM") - before

def resident(which):
    return 1024 * int(re.search(which + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def scan(side, spacing_mm):
    data = np.random.default_rng(0).integers(0, 900, (side, side, side)).astype(np.int16)
    return volume.Volume(data, np.eye(4)), config.DataConfig(patch=config.PatchConfig(spacing_mm=(spacing_mm,) * 3))

def finish(image, data):
    working = prepared[image.shape[0]]
    found = np.zeros(working.shape, np.float16)
    found[4:-4, 4:9, 4:9] = 0.9
    path = Path(sys.argv[2]) / f"{image.shape[0]}.nii.gz"
    steps = config.Step("opening", 1.0), config.Step("largest", 2), config.Step("fill_holes", 1e5)
    scan = scans.Prepared(image_io.Image(image, path), working)
    job, recipe = scans.Job("a", path, path, None), config.RecipeConfig(0.5, steps)
    scans.finish(job, scan, found, scans.Finishing(recipe, origin.Origin("a", "", "0")), start=0.0)

stage, spacing_mm = sys.argv[1], float(sys.argv[3])
side = int(sys.argv[4])
small, large = scan(20, spacing_mm), scan(side, spacing_mm)
prepared = {s[0].shape[0]: study.prepare(*s) for s in (small, large)} if stage == "finish" else {}
call = {"prepare": study.prepare, "correct": lambda image, data: intensity.correct_bias(image), "finish": finish}[stage]
print(taken(call) / side**3)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells a process's own peak")
@pytest.mark.parametrize(
    ("stage", "spacing_mm", "limit"),
    [
        ("prepare", 1.3, scans.PREPARING_BYTES),
        ("prepare", 0.8, scans.PREPARING_BYTES * 0.8**-3),
        ("prepare", 1.0, scans.FINISHING_BYTES),
        ("correct", 1.0, scans.CORRECTING_BYTES),
        ("finish", 1.0, scans.FINISHING_BYTES),
        ("finish", 1.3, scans.FINISHING_BYTES),
        ("finish", 0.6, scans.FINISHING_BYTES + scans.RETURNING_BYTES * 0.6**-3),
    ],
)
def test_a_stage_takes_no_more_than_is_counted(tmp_path, stage, spacing_mm, limit):
    words = [sys.executable, "-c", STAGES, stage, str(tmp_path), str(spacing_mm), "220" if spacing_mm > 0.7 else "120"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) <= limit + SLACK


def test_a_scan_takes_more_where_it_is_corrected_or_resampled():
    image = volume.Volume(np.zeros((10, 10, 10), np.int16), np.eye(4))
    settings = [(1.0, False), (1.0, True), (0.5, False)]
    patches = [config.PatchConfig(spacing_mm=(mm,) * 3) for mm, _ in settings]
    greys = [config.NormalisationConfig(n4=n4) for _, n4 in settings]
    plain, n4, finer = (scans.room(image, config.DataConfig(*both)) for both in zip(patches, greys, strict=True))
    assert (plain.held, plain.before, plain.after) == (2 * 1000 + 1000, 0, 21 * 1000 + 2 * 1000)
    assert (n4.held, n4.before, n4.after) == (plain.held, 20 * 1000, plain.after)
    assert (finer.held, finer.before, finer.after) == (2 * 1000 + 8000, 12 * 8000, 21 * 1000 + 17 * 8000)
