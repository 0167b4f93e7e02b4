"""What a run has learned from, so that no case that it has seen is taken for one that it has not.

    runs/NAME/lineage.json   what `Lineage` holds, written before the first epoch

The plan may be drawn anew while records and runs of the earlier split are still there. So records are trained on only
where their split is the plan's, a run goes on only with the records that it began with, and a case is scored only by
runs that have not seen it. Cases are known by their names.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

from femur_tf import config, files, records, study
from femur_tf.errors import DataError, typed

PSEUDONYM = "case-"
"""Begins what stands for the name of a case."""
NAME = "lineage.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Seen:
    """The records of one case that a run reads."""

    case: str
    part: study.Part
    """`train`, or `validation`: it ends the training and chooses the epoch."""
    fingerprint: str
    """Of what the records were made from."""


@dataclasses.dataclass(frozen=True)
class Lineage:
    """What `lineage.json` holds."""

    cases: tuple[Seen, ...]
    """Of the records and mined sets that the run reads."""
    earlier: tuple[Seen, ...] = ()
    """Of the run that it started from, with all that one had learned from."""
    format_version: int = FORMAT_VERSION

    def names(self, *parts: study.Part) -> set[str]:
        """Return the cases that the run has seen as one of some parts of the split."""
        return {seen.case for seen in (*self.cases, *self.earlier) if seen.part in parts}


def read(run: Path) -> Lineage | None:
    """Return what a run has learned from; None where it does not say.

    Raises:
      DataError: the file is damaged or has another format version.
    """
    path = run / NAME
    if not path.exists():
        return None
    advice = "Train the run again with this version of femur_tf."
    return config.from_dict(Lineage, files.read_versioned(path, FORMAT_VERSION, advice), str(path))


def of(manifest: records.Manifest, start: Path | None) -> Lineage:
    """Return what a run on these records will have learned from.

    Args:
      manifest: of the records, with mined sets.
      start: the run that it starts from.

    Raises:
      DataError: a validation case is one that the run to start from was trained on.
    """
    cases = tuple(Seen(case.case, case.part, case.fingerprint) for case in manifest.cases)
    before = read(start) if start else None
    if before is None:
        return Lineage(cases)
    known = before.names("train") & {seen.case for seen in cases if seen.part == "validation"}
    if known:
        raise DataError(
            f"{start}: expected a run that was not trained on the validation cases of this study. "
            f"Received: one that was, on {', '.join(sorted(known))}. Start from another run, or from none."
        )
    return Lineage(cases, (*before.cases, *before.earlier))


def require_split(folder: Path, manifest: records.Manifest) -> None:
    """Raise unless the records have the split of the plan beside them; records that were copied alone have none.

    Args:
      folder: of the records.
      manifest: theirs.

    Raises:
      DataError: a case has another part of the split, or only one of the two names it.
    """
    work = folder.parent
    if not study.plan_path(work).exists():
        return
    planned = {case.name: case.part for case in study.read_plan(work).cases if case.part != "test"}
    written = {case.case: case.part for case in manifest.cases}
    differing = sorted(n for n in planned.keys() | written.keys() if planned.get(n) != written.get(n))
    if differing:
        received = ", ".join(f"{n} ({written.get(n, 'not in them')})" for n in differing)
        expected = ", ".join(f"{n} ({planned.get(n, 'not in them')})" for n in differing)
        raise DataError(
            f"{records.manifest_path(folder)}: expected the split of the plan: {expected}. Received: {received}. "
            f"Write the records of this plan: {typed('data_prep.write_records', work, '--overwrite')}"
        )


def require_same(run: Path, wanted: Lineage) -> None:
    """Raise where a run began with other records than those it would go on with.

    Raises:
      DataError: it did; the message names the cases.
    """
    found = read(run)
    if found is None or set(found.cases) == set(wanted.cases):
        return
    differing = sorted({seen.case for seen in set(found.cases) ^ set(wanted.cases)})
    raise DataError(
        f"{run / NAME}: expected the records that this run began with. Received: others of {', '.join(differing)}. "
        "Choose another name with --run, or start it anew with --overwrite."
    )


def pseudonym(name: str) -> str:
    """Return what stands for a case in an exported model: names of cases may be patients'.

    A digest that takes a tenth of a second, so that names cannot be found by trying all numbers of patients.
    """
    found = hashlib.scrypt(name.encode(), salt=b"femur_tf", n=2**15, r=8, p=1, maxmem=2**27, dklen=6)
    return f"{PSEUDONYM}{found.hex()}"


def require_unseen(run: Path, names: Iterable[str], part: study.Part, choosers: Iterable[str] = ()) -> None:
    """Raise where a run has seen a case that it is to be scored on.

    Args:
      run: its folder.
      names: of the cases.
      part: `validation`, for which the run must not have been trained on them, or `test`, for which it must not have
        seen them at all.
      choosers: cases that chose the run's recipe, by their names or pseudonyms.

    Raises:
      DataError: it has.
    """
    lineage = read(run) or Lineage(())
    seen = lineage.names("train") if part == "validation" else lineage.names("train", "validation") | set(choosers)
    exported = any(one.startswith(PSEUDONYM) for one in seen)
    known = sorted(name for name in names if name in seen or (exported and pseudonym(name) in seen))
    if known:
        raise DataError(
            f"{run}: expected a run that has not seen the {part} cases. Received: one made with {', '.join(known)}, "
            "before the split was changed. Train another one: python -m femur_tf.train WORK --run NAME"
        )
