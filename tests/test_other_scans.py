"""Scans of other voxel sizes and fields of view: the changes by hand, and one line from a tiny study."""

import json

import bright
import numpy as np
import pytest
import tiny

from benchmarks import other_scans, perturbations
from benchmarks.perturbations import Scan
from femur_tf import study
from femur_tf.volume import Volume

AFFINE = np.diag([2.0, 10.0, 1.0, 1.0])


def two_femurs():
    """Return a scan of 100 x 20 x 200 voxels with a voxel of bone on either side; a voxel's grey value is its index."""
    mask = np.zeros((100, 20, 200), bool)
    mask[20, 4, 90] = mask[80, 10, 100] = True
    return Scan(Volume(np.arange(mask.size, dtype=np.float32).reshape(mask.shape), AFFINE), mask)


def test_a_case_on_another_grid_keeps_its_reference(tmp_path):
    plan = tiny.write_study(tmp_path, rule=bright.RULE)
    scan = perturbations.read(plan, plan.part("validation")[0])
    finer = other_scans.resampled(scan, tuple(s / 2 for s in scan.image.spacing_mm))
    assert finer.image.shape == finer.mask.shape == tuple(2 * n for n in scan.image.shape)
    assert finer.mask.sum() / 8 == pytest.approx(scan.mask.sum(), rel=0.1)


@pytest.mark.parametrize(
    ("sides", "start", "stop"),
    [(1, (65, 7, 70), (96, 14, 131)), (2, (5, 1, 60), (96, 14, 131))],
)
def test_a_narrow_field_of_view_has_30_mm_around_the_bone(sides, start, stop):
    scan = two_femurs()
    found = other_scans.around_femur(scan, sides=sides)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    np.testing.assert_array_equal(found.image.data, scan.image.data[box])
    np.testing.assert_array_equal(found.mask, scan.mask[box])
    np.testing.assert_array_equal(found.image.affine @ (0, 0, 0, 1), AFFINE @ (*start, 1))


def test_a_field_of_view_ends_where_the_scan_does():
    scan = two_femurs()
    scan.mask[99, 19, 199] = scan.mask[99, 0, 0] = True
    assert other_scans.around_femur(scan, sides=1).image.shape == (35, 20, 200)


@pytest.mark.parametrize(("beyond", "start", "stop"), [(0, 4, 11), (2, 2, 13), (5, 0, 16)])
def test_few_slices_are_those_of_the_bone_and_some_on_either_side(beyond, start, stop):
    scan = two_femurs()
    found = other_scans.few_slices(scan, beyond)
    np.testing.assert_array_equal(found.image.data, scan.image.data[:, start:stop])
    np.testing.assert_array_equal(found.mask, scan.mask[:, start:stop])
    np.testing.assert_array_equal(found.image.affine @ (0, 0, 0, 1), AFFINE @ (0, start, 0, 1))


@pytest.mark.parametrize("name", list(other_scans.SCANS))
def test_scan_and_reference_are_changed_alike(name):
    found = other_scans.SCANS[name](two_femurs())
    assert found.image.shape == found.mask.shape


@pytest.mark.slow
def test_the_line_has_each_scan(tmp_path, capsys, monkeypatch):
    chosen = {"as scanned": lambda scan: scan, "other": other_scans.grid(3.0, 2.5, 2.0)}
    monkeypatch.setattr(other_scans, "SCANS", chosen)
    tiny.write_study(tmp_path, rule=bright.RULE)
    bright.save_run(study.run_path(tmp_path, "one"))
    other_scans.main(other_scans.ScansArguments(tmp_path, "one"))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(line) == list(chosen)
    for cases in line.values():
        assert 0 <= cases["hip_03"]["dice"] <= 1
        assert np.isfinite(cases["hip_03"]["volume"])
