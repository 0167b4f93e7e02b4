"""The split: named test cases, a first split, and later ones that move nobody."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.split import first_split, later_split, named, place

NAMES = tuple(f"hip_{number:02d}" for number in range(1, 16))
SEED = 2017


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (("hip_07",), {"hip_07"}),  # a whole name
        (("7", "07", "007"), {"hip_07"}),  # the number it ends with
        (("1",), {"hip_01"}),  # not hip_11
        ((), set()),
    ],
)
def test_a_case_is_named_whole_or_by_the_number_it_ends_with(wanted: tuple[str, ...], expected: set[str]) -> None:
    assert named(wanted, NAMES) == expected


def test_a_whole_name_goes_before_a_number() -> None:
    assert named(["7"], ["7", "hip_7"]) == {"7"}


def test_the_places_of_a_seed_are_fixed_for_good() -> None:
    # The first 12 hexadecimal digits of `printf 2017:hip_01 | sha256sum`, over 16**12.
    assert [round(place(name, SEED), 6) for name in ("hip_01", "hip_02")] == [0.586588, 0.922526]


@given(name=st.text(), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_place_lies_between_0_and_1(name: str, seed: int) -> None:
    assert 0 <= place(name, seed) < 1


@given(
    count=st.integers(3, 12),
    validation=st.integers(1, 2),
    seed=st.integers(0, 999),
    order=st.permutations([f"new_{number}" for number in range(6)]),
)
@settings(max_examples=30, deadline=None)
def test_adding_cases_moves_no_other_one_and_the_order_of_adding_does_not_matter(
    count: int, validation: int, seed: int, order: list[str]
) -> None:
    names = [f"case_{number}" for number in range(count)]
    first = first_split(names, test=frozenset(), validation=validation, seed=seed)
    at_once = later_split(names + order, first, test=None, seed=seed)
    one_by_one = first
    for more in range(1, len(order) + 1):
        one_by_one = later_split(names + order[:more], one_by_one, test=None, seed=seed)
    assert {name: at_once[name] for name in names} == first
    assert one_by_one == at_once


def test_a_first_split_has_the_asked_numbers() -> None:
    parts = first_split(NAMES, test=frozenset(NAMES[:4]), validation=3, seed=SEED)
    assert [list(parts.values()).count(part) for part in ("train", "validation", "test")] == [8, 3, 4]
    assert {name for name, part in parts.items() if part == "test"} == set(NAMES[:4])


def test_the_order_of_the_names_does_not_matter() -> None:
    backwards = first_split(NAMES[::-1], test=frozenset(), validation=4, seed=SEED)
    assert first_split(NAMES, test=frozenset(), validation=4, seed=SEED) == backwards


def test_many_new_cases_join_validation_by_about_the_share_of_the_first_plan() -> None:
    first = first_split([f"a{n}" for n in range(100)], test=frozenset(), validation=20, seed=SEED)
    parts = later_split([*first, *(f"b{n}" for n in range(1000))], first, test=None, seed=SEED)
    joined = sum(parts[f"b{n}"] == "validation" for n in range(1000))
    assert np.isclose(joined, 200, atol=120)  # three times the spread of the share that 100 places fix


def test_the_test_cases_are_kept_unless_they_are_named_again() -> None:
    first = first_split(NAMES, test=frozenset({"hip_01"}), validation=2, seed=SEED)
    assert later_split(NAMES, first, test=None, seed=SEED) == first
    again = later_split(NAMES, first, test=frozenset({"hip_02"}), seed=SEED)
    assert again["hip_02"] == "test" and again["hip_01"] != "test"


def test_a_case_that_leaves_moves_no_other_one() -> None:
    first = first_split(NAMES, test=frozenset(), validation=3, seed=SEED)
    gone = next(name for name in NAMES if first[name] == "validation")
    rest = [name for name in NAMES if name != gone]
    assert later_split(rest, first, test=None, seed=SEED) == {name: first[name] for name in rest}


@pytest.mark.parametrize("validation", [-1, 11, 12])
def test_a_split_without_train_cases_is_refused(validation: int) -> None:
    with pytest.raises(ValueError, match=r"at least one train case.*15 cases, 4 of them for the test"):
        first_split(NAMES, test=frozenset(NAMES[:4]), validation=validation, seed=SEED)


@pytest.mark.parametrize(
    ("cases", "expected"), [(2, 1), (5, 1), (6, 2), (11, 2), (15, 2), (16, 3), (61, 10), (300, 12)]
)
def test_a_first_split_takes_a_sixth_for_validation(cases: int, expected: int) -> None:
    names = [f"c{number}" for number in range(cases + 4)]
    parts = first_split(names, test=frozenset(names[:4]), validation=None, seed=SEED)
    assert list(parts.values()).count("validation") == expected


def test_a_split_without_validation_cases_stays_one() -> None:
    first = first_split(NAMES[:9], test=frozenset(NAMES[:4]), validation=0, seed=SEED)
    assert [list(first.values()).count(part) for part in ("train", "validation", "test")] == [5, 0, 4]
    later = later_split(NAMES, first, test=None, seed=SEED)
    assert [list(later.values()).count(part) for part in ("train", "validation", "test")] == [11, 0, 4]


def test_a_later_split_that_loses_its_validation_cases_is_refused() -> None:
    with pytest.raises(ValueError, match="a train case and a validation case at least"):
        later_split(["b"], {"a": "validation", "b": "train"}, test=frozenset(), seed=SEED)


def test_a_later_split_without_train_cases_is_refused() -> None:
    with pytest.raises(ValueError, match="--new-split"):
        later_split(["a"], {"a": "validation", "b": "train"}, test=None, seed=SEED)


@pytest.mark.parametrize(
    ("text", "names", "words"),
    [
        ("99", NAMES, "'99' is none of hip_01"),
        ("hip", NAMES, "'hip' is none of"),
        ("7", ("hip_7", "knee_07"), "'7' is the end of hip_7, knee_07"),
    ],
)
def test_a_name_that_means_no_case_or_two_is_refused(text: str, names: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        named([text], names)
