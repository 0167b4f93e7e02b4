"""benchmarks.quality: perturbed scans keep their truth, and the figures count what they say."""

import dataclasses
import json

import bright
import numpy as np
import pytest
import tiny

from benchmarks import perturbations, quality
from benchmarks.perturbations import PERTURBATIONS, Scan
from femur_tf import files, study
from femur_tf.errors import DataError
from femur_tf.measures import Profile
from femur_tf.quality import DISTANCES, MEASURES
from femur_tf.volume import Volume

AFFINE = np.diag([1.0, 2.0, 1.0, 1.0])
NOTHING = {
    "noise": 0.0,
    "gamma, darker": 1.0,
    "gamma, brighter": 1.0,
    "bias": 1.0,
    "blur mm": 0.0,
    "ghost": 0.0,
    "turned degrees": 0.0,
    "voxels read smaller": 1.0,
    "voxels read larger": 1.0,
} | {name: 0.0 for name in PERTURBATIONS if name.startswith("cut")}
"""The strength at which a perturbation leaves a scan as it was."""


def scan() -> Scan:
    """Return a scan that is bright where its mask is."""
    mask = np.zeros((9, 7, 8), bool)
    mask[1:4, 2:5, 1:6] = True
    return Scan(Volume(np.where(mask, 200, 50).astype(np.float32), AFFINE), mask)


@pytest.mark.parametrize(("name", "strength"), NOTHING.items())
def test_no_strength_is_no_change(name, strength):
    change, _ = PERTURBATIONS[name]
    found = change(scan(), strength)
    np.testing.assert_array_equal(found.mask, scan().mask)
    grey = found.image.data / found.image.data.max() * 200
    expected = scan().image.data
    np.testing.assert_allclose(grey, expected, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in PERTURBATIONS if n.startswith(("flipped", "cut", "turned", "voxels"))])
def test_the_mask_moves_with_the_scan(name):
    change, strengths = PERTURBATIONS[name]
    for strength in strengths:
        found = change(scan(), strength)
        assert found.mask.shape == found.image.shape
        if strength in (1.0, 90.0) or not name.startswith("turned"):
            np.testing.assert_array_equal(found.image.data > 100, found.mask)


@pytest.mark.parametrize(
    ("name", "strength", "shape"),
    [
        ("cut above", 0.5, (9, 7, 4)),
        ("cut below", 0.25, (9, 7, 6)),
        ("cut in front", 0.3, (9, 5, 8)),
        ("cut on the right", 0.5, (5, 7, 8)),
    ],
)
def test_a_share_is_cut_away(name, strength, shape):
    found = PERTURBATIONS[name][0](scan(), strength)
    assert found.mask.shape == shape


def test_an_inverted_scan_is_dark_where_it_was_bright():
    found = perturbations.inverted(scan(), 1.0)
    assert found.image.data[scan().mask].max() < found.image.data[~scan().mask].min()


def test_a_wrong_header_changes_the_spacing_alone():
    found = perturbations.misread(scan(), 1.5)
    assert found.image.spacing_mm == pytest.approx((1.5, 3.0, 1.5))
    np.testing.assert_array_equal(found.image.data, scan().image.data)


def judged(case, perturbation, drop, *reasons):
    return quality.Judged(quality.Outcome(case, perturbation, 1.0, 0.9 - drop, Profile({}, {})), drop, reasons)


def test_the_summary_counts_by_hand():
    found = quality.summary(
        [
            judged("a", quality.NONE, 0.0),
            judged("b", quality.NONE, 0.0, "volume: 1"),
            judged("a", "noise", 0.05, "volume: 1"),  # a drop of just that much is none
            judged("a", "blur", 0.01),
            judged("a", "noise", 0.3, "volume: 1", "number of parts: 3"),
            judged("a", "ghost", 0.06),
        ]
    )
    assert found == {
        "cases": 2,
        "false_alarms": {"b": "volume"},
        "perturbed": 4,
        "dice_fell": 2,
        "dice_fell_and_flagged": 1,
        "missed": [["a", "ghost", 1.0, pytest.approx(0.84)]],
        "dice_held": 2,
        "dice_held_and_flagged": 1,
        "reasons": {"volume": 1, "number of parts": 1},
    }


def test_fewer_than_no_cases_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"--cases: expected 0 or more\. Received: -1"):
        quality.main(quality.QualityArguments(tmp_path, tmp_path, cases=-1))


@pytest.mark.slow
def test_the_command_prints_one_json_line_and_keeps_its_maps(tmp_path, monkeypatch, capsys):
    plan = tiny.write_study(tmp_path, rule=bright.RULE)
    model = bright.save_run(study.run_path(tmp_path, "default"))
    monkeypatch.setattr(quality, "PERTURBATIONS", {name: PERTURBATIONS[name] for name in ("inverted", "cut above")})
    arguments = quality.QualityArguments(model, tmp_path, cases=1, exact=True)
    quality.main(arguments)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["cases"], found["perturbed"]) == (3, 4)
    assert found["dice_fell"] + found["dice_held"] == 4
    kept = sorted((tmp_path / "quality").rglob("*.npz"))
    assert len(kept) == 7
    # Maps are kept: without the network the figures come again. The test case is never read.
    monkeypatch.setattr("femur_tf.bundle.working_map", None)
    files.remove(tmp_path / "images" / "hip_04.nii.gz")
    quality.main(arguments)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert plan.part("test")[0].name == "hip_04"


def test_a_case_is_judged_without_itself():
    usual = dict.fromkeys(MEASURES, 1.0)
    names = ("a", "b", "c")
    odd = Profile(usual | {"volume_mm3": 500.0}, dict.fromkeys(DISTANCES, ()))
    rest = [dataclasses.replace(odd, measures=usual)] * 2
    outcomes = [
        quality.Outcome(name, quality.NONE, 0.0, 0.9, one) for name, one in zip(names, [odd, *rest], strict=True)
    ]
    assert [bool(one.reasons) for one in quality.judged(outcomes)] == [True, False, False]
