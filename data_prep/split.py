"""The split: which part of the study each case belongs to.

Test cases are named. Of the others, each has a fixed place in [0, 1), a hash of its
name and the seed. A first plan takes the N lowest places for validation. Each later
plan keeps the part of every case it knows, and takes a new case for validation where
its place is at most the highest place among the validation cases. So the first plan
fixes the share, the number grows with the cohort, and adding a case moves no other
one, in whichever order cases are added.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from femur_tf import image_names
from femur_tf.errors import DataError
from femur_tf.image_errors import listed
from femur_tf.study import Part


def place(name: str, seed: int) -> float:
    """Return the place of a case in [0, 1): a hash of its name and the seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def named(wanted: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    """Return the cases that a user means.

    Args:
      wanted: each the whole name of a case or of its file, or the number that it ends with (17 or 017 for hip_17).
      names: all cases.

    Raises:
      DataError: one of `wanted` means no case, or more than one.
    """
    return frozenset(_named(text, names) for text in wanted)


def _named(text: str, names: Sequence[str]) -> str:
    """Return the case that `text` means."""
    if text in names:
        return text
    if (name := image_names.case_name(Path(text))) in names:  # the name of its file
        return name
    ends = {name: re.search(r"\d+$", name) for name in names}
    found = [name for name, end in ends.items() if end and text.isdecimal() and int(end[0]) == int(text)]
    if len(found) != 1:
        received = f"{text!r} is the end of {listed(found)}" if found else f"{text!r} is none of {listed(list(names))}"
        raise DataError(f"expected the name of a case or the number that it ends with. Received: {received}.")
    return found[0]


def usual_validation(cases: int) -> int:
    """Return how many validation cases a first plan takes of those that are not for the test.

    A sixth: two of 11, ten of 61. At least two, because a recipe chosen on one case takes over its annotator's hand,
    but one of fewer than six, which have none to spare; at most twelve, after which more of them make choosing slow and
    add little (our choice).
    """
    return min(12, max(2 if cases >= 6 else 1, round(cases / 6)))


def first_split(names: Sequence[str], *, test: frozenset[str], validation: int | None, seed: int) -> dict[str, Part]:
    """Split a cohort for the first time.

    Args:
      names: all cases.
      test: those kept for the test.
      validation: number of validation cases, 0 for none; at least one case must remain for training. None: as many
        as `usual_validation` says.
      seed: of the places.

    Raises:
      DataError: `validation` is below 0 or leaves no case for training.
    """
    others = sorted((name for name in names if name not in test), key=lambda name: place(name, seed))
    validation = usual_validation(len(others)) if validation is None else validation
    if not 0 <= validation < len(others):
        raise DataError(
            "expected 0 validation cases or more, and at least one train case. "
            f"Received: {len(names)} cases, {len(test)} of them for the test, {validation} for validation. "
            "Add cases, name fewer with --test, or pass --validation 0."
        )
    chosen = set(others[:validation])
    return {name: _part(name, test=test, validation=chosen) for name in names}


def later_split(
    names: Sequence[str], earlier: Mapping[str, Part], *, test: frozenset[str] | None, seed: int
) -> dict[str, Part]:
    """Split a cohort that has been split before, possibly with other cases.

    Args:
      names: all cases there are now.
      earlier: the earlier split; its cases keep their part.
      test: the test cases, where they are named again; None keeps the earlier ones.
      seed: of the places.

    Raises:
      DataError: no case is left for training, or for validation where the earlier split had one.
    """
    kept = frozenset(name for name, part in earlier.items() if part == "test")
    tested = kept if test is None else test
    known = {name for name, part in earlier.items() if part == "validation"}
    highest = max((place(name, seed) for name in known), default=-1.0)
    fresh = {name for name in names if earlier.get(name) in (None, "test") and place(name, seed) <= highest}
    parts = {name: _part(name, test=tested, validation=known | fresh) for name in names}
    needed: set[Part] = {"train", "validation"} if known else {"train"}
    if not needed <= set(parts.values()):
        raise DataError(
            f"expected a {' case and a '.join(sorted(needed))} case at least. "
            f"Received: none left among {', '.join(names)}. Pass --new-split to draw the split anew."
        )
    return parts


def _part(name: str, *, test: frozenset[str], validation: set[str]) -> Part:
    """Return the part of a case; test goes before validation."""
    if name in test:
        return "test"
    return "validation" if name in validation else "train"
