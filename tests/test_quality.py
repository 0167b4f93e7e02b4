"""femur_tf.quality: a cohort's limits, and what lies beyond them."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from femur_tf import config_json, measures, quality
from femur_tf.measures import Profile
from femur_tf.quality import Cohort, Limits
from femur_tf.volume import Volume

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def profile(**changes) -> Profile:
    """Return a usual case, of a volume of 100 cm3."""
    values = dict.fromkeys(name for name in quality.MEASURES if not name.endswith("_distance"))
    values |= {name: 0.0 if name.startswith("cut_") else 0.5 for name in values}
    values |= {"volume_mm3": 100_000.0, "parts": 2.0}
    greys = {name: tuple(float(v) for v in np.linspace(50, 200, measures.QUANTILES)) for name in quality.DISTANCES}
    return Profile(values | changes, greys)


def shifted(one: Profile, sample: str, by: float) -> Profile:
    """Return a case with other grey values."""
    greys = tuple(v + by for v in one.quantiles[sample])
    return dataclasses.replace(one, quantiles=one.quantiles | {sample: greys})


def cohort(**changes) -> Cohort:
    """Return a cohort of twelve cases whose volumes are 90, 100 and 110 cm3."""
    return quality.build([profile(volume_mm3=v, **changes) for v in (90_000.0, 100_000.0, 110_000.0) * 4])


def test_limits_lie_a_spread_beyond_the_cases():
    assert cohort().limits["volume_mm3"] == Limits(70_000, 130_000)


@pytest.mark.parametrize("side", [0.0, 1.0])
def test_a_femur_on_the_side_that_none_of_the_cohort_has_is_a_reason(side):
    usual = cohort(left_half=side)
    assert not quality.judge(profile(left_half=abs(side - 0.1)), usual).flagged  # a leak across the middle
    (reason,) = quality.judge(profile(left_half=1 - side), usual).reasons
    assert reason.startswith("share that lies in the left half of the scan: ")


def test_a_spread_has_a_least_value_for_each_measure():
    limits = cohort().limits
    assert limits["certainty"] == Limits(0.475, 0.525)  # 5 % of 0.5
    assert limits["boundary_bits"] == Limits(0.4, 0.6)  # 20 %
    assert limits["parts"] == Limits(2, 2)
    assert limits["cut_left_mm2"] == Limits(0, 0)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, ()),
        ({"volume_mm3": 130_000.0}, ()),  # the limit itself is usual
        ({"volume_mm3": 131_000.0}, ("volume: 131 cm3, usual is at most 130",)),
        ({"volume_mm3": 42_000.0}, ("volume: 42 cm3, usual is at least 70",)),
        ({"parts": 3.0}, ("number of parts: 3, usual is at most 2",)),
        ({"smaller_side": 0.1}, ("smaller femur as a share of the larger: 0.1, usual is at least 0.475",)),
        ({"smaller_side": 0.9}, ()),  # one side of a measure counts
        ({"boundary_bits": 0.1}, ()),
        ({"boundary_bits": 0.9}, ("mean entropy at the boundary: 0.9 bits, usual is at most 0.6",)),
        ({"cut_left_mm2": 50.0}, ("area cut by the left border: 0.5 cm2, usual is at most 0",)),
        ({"cut_inferior_mm2": 5000.0}, ()),  # the shaft leaves the field of view below
        ({"certainty": math.nan}, ()),  # not defined is no reason
    ],
)
def test_reasons_by_hand(changes, reasons):
    found = quality.judge(profile(**changes), cohort())
    assert found.reasons == reasons
    assert found.flagged == bool(reasons)


@pytest.mark.parametrize(("beyond_mm", "flagged"), [(50.0, False), (23.5, False), (22.9, True), (0.0, True)])
def test_half_of_the_fewest_slices_beyond_the_femur_are_enough(beyond_mm, flagged):
    usual = quality.build([profile(beyond_mm=mm) for mm in (46.8, 90.0, 120.0)])
    found = quality.judge(profile(beyond_mm=beyond_mm), usual)
    text = (
        f"distance from the mask to the end of the scan, across the slices: {beyond_mm:.3g} mm, usual is at least 23.4"
    )
    assert found.reasons == ((text,) if flagged else ())


def test_reasons_come_in_the_order_of_the_measures():
    found = quality.judge(profile(parts=1.0, volume_mm3=1.0), cohort())
    assert [reason.partition(":")[0] for reason in found.reasons] == ["volume", "number of parts"]


def test_the_distance_is_that_to_the_nearest_case():
    cases = [profile(), shifted(profile(), "grey", 4.0), shifted(profile(), "grey", 10.0)]
    found = quality.build(cases)
    assert found.limits["grey_distance"] == Limits(0, pytest.approx(6 + 2 * 10 / 3))  # nearest others at 4, 4 and 6
    assert quality.judge(shifted(profile(), "grey", 12.0), found).measures["grey_distance"] == pytest.approx(2)
    far = quality.judge(shifted(profile(), "grey", 30.0), found)
    assert far.reasons == ("distance of the grey values of the body: 20 grey values, usual is at most 12.7",)


def test_the_margin_of_a_small_cohort_is_wider():
    small = quality.build([profile(volume_mm3=v) for v in (90_000.0, 110_000.0)])
    assert small.limits["volume_mm3"] == Limits(0, 210_000)  # two cases: five spreads, and no volume below 0


@given(st.lists(st.floats(1, 1e6), min_size=2, max_size=12))
def test_no_case_of_a_cohort_is_flagged(volumes):
    cases = [profile(volume_mm3=v) for v in volumes]
    found = quality.build(cases)
    assert not any(quality.judge(case, found).flagged for case in cases)


def test_a_cohort_goes_through_json():
    found = cohort()
    text = json.dumps(config_json.to_dict(found), allow_nan=False)
    assert config_json.from_dict(Cohort, json.loads(text)) == found


def test_a_quality_is_plain_json():
    found = quality.judge(profile(certainty=math.nan, parts=3.0), cohort()).to_dict()
    text = json.loads(json.dumps(found, allow_nan=False))
    assert text["flagged"] is True
    assert text["measures"]["certainty"] is None
    assert text["reasons"] == ["number of parts: 3, usual is at most 2"]


def test_every_measure_is_measured_and_described():
    mask = np.zeros((6, 6, 6), bool)
    mask[2:4, 2:4, 2:4] = True
    map_, grey = Volume(mask.astype(np.float32), AFFINE), Volume(mask * np.uint8(200), AFFINE)
    found = quality.assess(map_, mask, grey, 0.5, cohort())
    assert list(found.measures) == list(quality.MEASURES)


def test_without_a_cohort_only_an_empty_mask_is_a_reason():
    assert quality.judge(profile(volume_mm3=1.0), None).reasons == ()
    assert quality.judge(profile(parts=0.0), None).reasons == ("no femur was found",)
    assert math.isnan(quality.judge(profile(), None).measures["grey_distance"])


def test_an_empty_mask_has_one_reason():
    assert quality.judge(profile(parts=0.0, volume_mm3=0.0), cohort()).reasons == ("no femur was found",)


@pytest.mark.parametrize("count", [0, 1])
def test_a_cohort_needs_two_cases(count):
    with pytest.raises(ValueError, match=f"expected two cases or more. Received: {count}"):
        quality.build([profile()] * count)


def test_a_measure_that_no_case_has_gives_no_limit():
    found = cohort(smaller_side=math.nan)
    assert "smaller_side" not in found.limits
    assert not quality.judge(profile(smaller_side=0.0), found).flagged


def test_a_scan_without_body_has_no_distance():
    black = dataclasses.replace(profile(), quantiles=dict.fromkeys(quality.DISTANCES, ()))
    found = quality.judge(black, cohort())
    assert math.isnan(found.measures["grey_distance"])


@pytest.mark.parametrize(("count", "deviations"), [(11, 5.07), (25, 6.16), (100, 5.50), (450, 5.36), (2000, 5.33)])
def test_limits_do_not_grow_with_the_cohort(count, deviations):
    """Its extremes do: of 450 normally distributed cases limits beyond them would lie nine deviations away."""
    spread = 5_000.0
    volumes = 100_000 + spread * stats.norm.ppf((np.arange(count) + 0.5) / count)
    limits = quality.build([profile(volume_mm3=float(v)) for v in volumes]).limits["volume_mm3"]
    assert (limits.high - 100_000) / spread == pytest.approx(deviations, abs=0.01)
    assert limits.high - 100_000 == pytest.approx(100_000 - limits.low)
