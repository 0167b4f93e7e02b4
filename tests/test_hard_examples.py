"""data_prep.hard_examples: which voxels are errors, and how many of each kind are asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import hard_examples
from data_prep.hard_examples import ERRORS, NOTHING, MiningConfig

FP, FN, DOUBT = range(3)


def line(values) -> np.ndarray:
    return np.asarray(values).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("probability", "mask", "margin_mm", "expected"),
    [
        ([0.9, 0.9, 0.1, 0.1], [1, 0, 1, 0], 0, [NOTHING, FP, FN, NOTHING]),
        ([0.2, 0.8, 0.19, 0.81], [0, 1, 0, 1], 0, [DOUBT, DOUBT, NOTHING, NOTHING]),  # odds of 1/4 and 4
        ([0.5, 0.4], [0, 1], 0, [FP, FN]),  # at the cut-off is bone; an error is an error, doubtful or not
        ([0.9, 0.9, 0.9, 0.9], [1, 0, 0, 0], 2, [NOTHING, NOTHING, FP, FP]),  # the limit itself is left out: 1 and 2 mm
        ([0.1, 0.1, 0.1, 0.1], [1, 1, 1, 0], 2, [FN, FN, NOTHING, NOTHING]),
        ([0.9, 0.1], [1, 1], 5, [NOTHING, FN]),  # no surface at all
        ([0.9, 0.1], [0, 0], 5, [FP, NOTHING]),
    ],
)
def test_errors_by_hand(probability, mask, margin_mm, expected):
    spacing_mm = (2.0, 1.0, 1.0) if margin_mm == 2 else (1.0, 1.0, 1.0)
    found = hard_examples.groups(
        line(probability), line(np.array(mask, bool)), 0.5, spacing_mm=spacing_mm, margin_mm=margin_mm
    )
    assert found.ravel().tolist() == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (MiningConfig(per_case=10), (4, 3, 3)),
        (MiningConfig(per_case=7, share_false_positive=1.0, share_false_negative=0.0), (7, 0, 0)),
        (MiningConfig(per_case=5, share_false_positive=0.5, share_false_negative=0.5), (2, 3, 0)),
    ],
)
def test_shares_by_hand(settings, expected):
    assert settings.wanted == dict(zip(ERRORS, expected, strict=True))


def test_a_cutoff_between_two_values_of_float16_is_not_rounded():
    cutoff = (0.5 + float(np.nextafter(np.float16(0.5), np.float16(1)))) / 2  # 0.5 in float16
    group = hard_examples.groups(
        np.full((1, 1, 3), 0.5, np.float16),
        np.zeros((1, 1, 3), bool),
        cutoff,
        spacing_mm=(1.0, 1.0, 1.0),
        margin_mm=0.0,
    )
    assert hard_examples.counted(group) == {"false_positive": 0, "false_negative": 0, "doubtful": 3}


def test_counts_by_hand():
    group = line([FP, FP, DOUBT, NOTHING])
    assert hard_examples.counted(group) == {"false_positive": 2, "false_negative": 0, "doubtful": 1}


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 1000))
def test_what_is_asked_for_adds_up(positive, share, count):
    shares = {"share_false_positive": positive, "share_false_negative": share * (1 - positive)}
    wanted = MiningConfig(per_case=count, **shares).wanted
    assert sum(wanted.values()) == count
    assert min(wanted.values()) >= 0


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9), st.floats(0, 3))
def test_a_margin_only_leaves_out(seed, cutoff, margin_mm):
    rng = np.random.default_rng(seed)
    probability, mask = rng.random((5, 4, 3)).astype(np.float16), rng.random((5, 4, 3)) < 0.3
    every, some = (
        hard_examples.groups(probability, mask, cutoff, spacing_mm=(1.0, 1.0, 2.0), margin_mm=mm)
        for mm in (0.0, margin_mm)
    )
    assert ((some == every) | (some == NOTHING)).all()
    wrong = (probability >= cutoff) != mask
    assert ((every == FP) | (every == FN))[wrong].all()
    assert not np.isin(every[~wrong], (FP, FN)).any()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"per_case": 0}, "per_case: expected at least 1"),
        ({"share_false_positive": 1.1}, "share_false_positive: expected a share"),
        ({"share_false_positive": 0.8}, r"share_false_negative: expected share_false_positive \+ share_false_negative"),
        ({"margin_mm": -1.0}, "margin_mm: expected a distance"),
        ({"copies": 0}, "copies: expected at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        MiningConfig(**values)
