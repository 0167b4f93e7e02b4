"""The benchmark of the random field: an honest figure by hand, and one line from a tiny study."""

from __future__ import annotations

import json

import bright
import numpy as np
import pytest
import tiny

from benchmarks import crf as benchmark
from femur_tf import study
from femur_tf.crf import CrfConfig


def trial(*dice: float) -> benchmark.Trial:
    return benchmark.Trial(CrfConfig(), dice)


def test_each_case_is_left_out_of_its_own_choice():
    trials = [trial(0.8, 0.8), trial(0.9, 0.7), trial(0.6, 0.85)]
    # The first case gets what the second prefers, the third trial; the second what the first does.
    assert benchmark.left_out(trials) == pytest.approx([0.6, 0.7])


def test_one_setting_for_all_is_found_by_all():
    assert benchmark.left_out([trial(0.8, 0.7, 0.9), trial(0.9, 0.8, 0.95)]) == pytest.approx([0.9, 0.8, 0.95])


@pytest.mark.slow
def test_the_line_says_before_and_after(tmp_path, monkeypatch, capsys):
    plan = tiny.write_study(tmp_path, rule=bright.RULE)
    assert [case.part for case in plan.cases].count("validation") == 1
    bright.save_run(study.run_path(tmp_path, "bright"), chosen=None)
    monkeypatch.setattr(benchmark, "unit_s", lambda: 1.0)
    monkeypatch.setattr(benchmark, "CANDIDATES", {"appearance_weight": (0.0, 4.0)})
    benchmark.main(benchmark.CrfArguments(tmp_path, "bright"))
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{"))
    assert len(line["trials"]) == 3
    assert line["settings"].keys() == set(CrfConfig.__dataclass_fields__)
    assert all(0 <= line[name]["dice"] <= 1 for name in ("before", "after"))
    (kept,) = (tmp_path / "crf/bright").rglob("*.npz")
    assert np.load(kept)["map"].shape == tiny.SHAPE
