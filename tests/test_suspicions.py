"""Suspicions: one odd case among ordinary ones, for each rule and on each side of its limit."""

import dataclasses
import re

import pytest

from data_prep.cohort import Facts
from data_prep.suspicions import suspicions
from femur_tf.config import DataConfig, PatchConfig, SamplingConfig

DATA = DataConfig(PatchConfig(size=8, spacing_mm=(1.0, 1.0, 1.0)), sampling=SamplingConfig(per_case=1000))
ORDINARY = Facts(
    name="odd",
    shape=(40, 30, 20),
    spacing_mm=(1.0, 1.0, 1.0),
    axis_codes="LIP",
    image_digest="odd",
    mask_digest="odd",
    parts=(1000, 950),
    femurs_mm3=(1000.0, 950.0),
    borders=(),
    half="both",
    medians=2.0,
    label_names={2: "femur"},
)


def _found(**changes: object) -> list[tuple[str, str]]:
    odd = dataclasses.replace(ORDINARY, **changes)  # type: ignore[arg-type]
    others = [dataclasses.replace(ORDINARY, name=str(n), mask_digest=str(n)) for n in range(4)]
    found = suspicions([*others, odd], DATA, dict.fromkeys([*"0123", "odd"], 1))
    return [(doubt.kind, doubt.message) for doubt in found["odd"]]


def test_an_ordinary_case_is_not_suspicious() -> None:
    assert _found() == []


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"spacing_mm": (1.26, 1.0, 1.0)}, "spacing", "1.26 x 1 x 1 mm is far along x from the median 1 x 1 x 1 mm"),
        ({"spacing_mm": (1.0, 0.79, 1.26)}, "spacing", "along y, z .* will be resampled to 1 x 1 x 1 mm"),
        ({"axis_codes": "RAS"}, "axes", "axes run RAS, in most cases LIP"),
        ({"shape": (40, 30, 7)}, "small", r"smaller than a patch \(z 7 of 8 voxels\)"),
        ({"borders": ("left", "upper")}, "cut off", "touches the left, upper border"),
        ({"parts": (1000, 950, 3, 1)}, "islands", "of 3, 1 voxels"),
        ({"parts": (1950,), "femurs_mm3": (1950.0,)}, "parts", "1 large parts in the mask, in most cases 2"),
        ({"parts": (1000, 799), "femurs_mm3": (799.0, 1000.0)}, "uneven", "left femur 0.8 cm3, right femur 1.0 cm3"),
        ({"parts": (2000, 1901), "femurs_mm3": (2000.0, 1901.0)}, "volume", "femur of 3.9 cm3, the median is 1.9 cm3"),
        ({"parts": (487, 487), "femurs_mm3": (487.0, 487.0)}, "volume", "femur of 1.0 cm3"),
        ({"mask_digest": "2"}, "same mask", "the same mask as 2"),
        ({"label_names": {2: "Pelvis"}}, "name", "mask value 2 is named Pelvis, in most cases femur: are values exch"),
    ],
)
def test_an_odd_case_is_named_with_the_reason(changes: dict[str, object], kind: str, words: str) -> None:
    found = _found(**changes)
    assert [name for name, _ in found] == [kind]
    assert re.search(words, found[0][1])


@pytest.mark.parametrize(
    "changes",
    [
        {"spacing_mm": (1.25, 0.8, 1.0)},
        {"shape": (8, 8, 8)},
        {"parts": (1000, 800), "femurs_mm3": (800.0, 1000.0)},
        {"parts": (1950, 1950), "femurs_mm3": (1950.0, 1950.0)},
        {"parts": (488, 487), "femurs_mm3": (488.0, 487.0)},
    ],
)
def test_the_limit_itself_is_not_suspicious(changes: dict[str, object]) -> None:
    assert _found(**changes) == []


def test_a_cohort_of_single_femurs_is_ordinary() -> None:
    single = dataclasses.replace(ORDINARY, parts=(1000,), femurs_mm3=(1000.0,))
    assert suspicions([single], DATA, {"odd": 1}) == {"odd": ()}


@pytest.mark.parametrize("names", [{}, {2: "Femur"}])
def test_a_mask_without_names_or_in_other_letters_is_not_suspicious(names: dict[int, str]) -> None:
    assert _found(label_names=names) == []


def test_fewer_femur_voxels_than_bone_examples_are_told() -> None:
    data = dataclasses.replace(DATA, sampling=SamplingConfig(per_case=10_000))
    (doubt,) = suspicions([ORDINARY], data, {"odd": 1})["odd"]
    assert (doubt.kind, doubt.message[:38]) == ("few", "about 1,950 femur voxels for 3,500 bon")


def test_copies_have_femur_voxels_of_their_own_and_a_test_case_is_not_drawn_from() -> None:
    data = dataclasses.replace(DATA, sampling=SamplingConfig(per_case=10_000))
    assert suspicions([ORDINARY], data, {"odd": 2})["odd"] == ()  # 3,900 voxels
    assert suspicions([ORDINARY], data, {"odd": 0})["odd"] == ()


def test_many_islands_are_listed_in_short() -> None:
    ((_, message),) = _found(parts=(1000, 950, *[1] * 30))
    assert message.endswith("1, ... voxels")


def test_as_many_parts_as_in_most_cases_are_no_suspicion() -> None:
    """Where as many cases have one as have two, two are whole; a number that no case has is none of most."""
    one, two, three = ({"parts": (900,) * n, "femurs_mm3": (900.0,) * n} for n in (1, 2, 3))
    for cohort, odd in (((one, one, two, two), 2), ((one, one, three, three), 2)):
        facts = [
            dataclasses.replace(ORDINARY, name=f"c{i}", mask_digest=str(i), **changes)
            for i, changes in enumerate(cohort)
        ]
        found = suspicions(facts, DATA, dict.fromkeys((case.name for case in facts), 1))
        assert sum("parts" in [doubt.kind for doubt in doubts] for doubts in found.values()) == odd
