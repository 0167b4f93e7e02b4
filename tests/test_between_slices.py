"""Slices made of their neighbours: by hand, and one line from a tiny study."""

import json

import bright
import numpy as np
import pytest
import tiny

from benchmarks import between_slices
from benchmarks.between_slices import ITSELF, WAYS
from femur_tf import study


def test_a_slice_between_two_alike_is_like_them():
    map_ = np.array([0.1, 0.9, 0.1, 0.2, 0.1], np.float32)
    for middle in WAYS.values():
        np.testing.assert_allclose(between_slices.made_again(map_, middle)[[0, 2]], 0.1, atol=1e-6)


def test_between_bone_and_background_each_way_is_undecided_and_log_odds_between_doubts_too():
    first, second = np.array([0.0, 0.01], np.float32), np.array([1.0, 0.99], np.float32)
    for middle in WAYS.values():
        np.testing.assert_allclose(middle(first, second), 0.5, atol=1e-5)
    sure, doubtful = np.array([0.0], np.float32), np.array([0.8], np.float32)
    assert WAYS["probability"](sure, doubtful) == pytest.approx(0.4)  # bone, by a cut-off of 0.3
    assert WAYS["log-odds"](sure, doubtful) < 0.05


@pytest.mark.slow
def test_the_line_has_dice_and_volume_of_each_way(tmp_path, capsys):
    tiny.write_study(tmp_path, rule=bright.RULE)
    bright.save_run(study.run_path(tmp_path, "one"))
    between_slices.main(between_slices.BetweenArguments(tmp_path, "one"))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(line) == [ITSELF, *WAYS]
    for scores in line.values():
        assert 0 < scores["dice"]["hip_03"] <= 1
        assert scores["volume"]["hip_03"] > 0
    assert line[ITSELF]["dice"]["hip_03"] == max(scores["dice"]["hip_03"] for scores in line.values())
