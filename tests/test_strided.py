"""Scores at every so many voxels: which voxels, and that they are those of the whole map."""

import json

import bright
import numpy as np
import pytest
import tiny

from benchmarks import strided
from femur_tf import bundle, study
from femur_tf.errors import DataError


def test_slices_that_lie_far_apart_are_all_read():
    found = strided.centres((9, 3, 17), (0.9, 5.2, 0.9), 8)
    assert sorted({tuple(c) for c in found[:, [0, 2]].tolist()}) == [(x, z) for x in (0, 8) for z in (0, 8, 16)]
    assert sorted(set(found[:, 1].tolist())) == [0, 1, 2]


def test_no_distance_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"--every: expected at least 1\. Received: 0"):
        strided.main(strided.StridedArguments(tmp_path, every=0))


@pytest.mark.slow
def test_a_score_is_that_of_the_whole_map_where_every_voxel_is_read(tmp_path, capsys):
    plan = tiny.write_study(tmp_path, rule=bright.RULE)
    run = bright.save_run(study.run_path(tmp_path, "one"), chosen=None)
    strided.main(strided.StridedArguments(tmp_path, ("one",), every=1))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])["one"]
    loaded = study.load_case(plan, plan.part("validation")[0])
    whole = bundle.working_map(bundle.load(run, calibrated=False), loaded.working).data >= line["cutoff"]
    both = 2 * (whole & loaded.working_mask).sum() / (whole.sum() + loaded.working_mask.sum())
    assert line["cases"] == {"hip_03": pytest.approx(both, abs=0.01)}  # a voxel at the cut-off may fall either way
    assert np.isclose(line["dice"], line["cases"]["hip_03"]) and line["auc"] > 0.9
