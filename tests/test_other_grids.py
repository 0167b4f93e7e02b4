"""Scans of other voxel sizes: the resampling by hand, and one line from a tiny study."""

import json

import bright
import numpy as np
import pytest
import tiny

from benchmarks import other_grids
from femur_tf import study


def test_a_case_keeps_its_place_and_its_reference(tmp_path):
    plan = tiny.write_study(tmp_path, rule=bright.RULE)
    loaded = study.load_case(plan, plan.part("validation")[0])
    image, reference = other_grids.resampled(loaded, None)
    assert image.shape == reference.shape
    assert reference.sum() == loaded.reference.sum()
    finer, mask = other_grids.resampled(loaded, tuple(s / 2 for s in image.spacing_mm))
    assert finer.shape == mask.shape == tuple(2 * n for n in image.shape)
    assert mask.sum() / 8 == pytest.approx(reference.sum(), rel=0.1)


@pytest.mark.slow
def test_the_line_has_each_grid(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(other_grids, "GRIDS", {"as scanned": None, "other": (3.0, 2.5, 2.0)})
    tiny.write_study(tmp_path, rule=bright.RULE)
    bright.save_run(study.run_path(tmp_path, "one"))
    other_grids.main(other_grids.GridsArguments(tmp_path, "one"))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(line) == ["as scanned", "other"]
    for cases in line.values():
        assert 0 <= cases["hip_03"]["dice"] <= 1
        assert np.isfinite(cases["hip_03"]["volume"])
