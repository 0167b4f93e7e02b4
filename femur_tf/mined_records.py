"""Mined sets: examples drawn from a run's errors, read together with the records of the study.

    records/mined/NAME/   a records folder of its own, of training cases alone (data_prep.mine)

`read_manifest` puts the shards of chosen sets beside those of the records, as if all had been written at once, with
every path below the records folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from femur_tf import files, records
from femur_tf.errors import DataError, typed


def folder(records_folder: Path, name: str) -> Path:
    """Return the folder of the mined set `name` of the records in `records_folder`.

    Raises:
      DataError: the name would lead elsewhere.
    """
    return files.child(records_folder / records.MINED, name)


def read_manifest(records_folder: Path, mined: Sequence[str] = ()) -> records.Manifest:
    """Read the manifest of the records, with the shards of mined sets beside its own.

    Args:
      records_folder: of the study.
      mined: names of mined sets.

    Raises:
      DataError: no records, no mined set of a name, one made for records of another plan or mode, or one of a case that
        is not trained on now.
    """
    manifest = records.read_manifest(records_folder)
    cases = list(manifest.cases)
    for name in mined:
        cases += _read_set(records_folder, name, manifest)
    return dataclasses.replace(manifest, cases=tuple(cases))


def _read_set(records_folder: Path, name: str, like: records.Manifest) -> list[records.CaseRecords]:
    """Return the cases of a mined set, their paths below the folder of the records."""
    place = folder(records_folder, name)
    path = records.manifest_path(place)
    if not path.exists():
        raise DataError(
            f"{path}: expected a mined set, found none or an unfinished one. "
            f"Run first: {typed('data_prep.mine', records_folder.parent, '--run', 'RUN', '--name', name)}"
        )
    found = records.read_manifest(place)
    if (found.data, found.mode) != (like.data, like.mode):
        raise DataError(
            f"{path}: expected a mined set for these records. Received: one made for another plan or mode. "
            "Mine again with --overwrite."
        )
    trained = {case.case for case in like.cases if case.part == "train"}
    others = sorted({case.case for case in found.cases} - trained)
    if others:
        raise DataError(
            f"{path}: expected examples of training cases. Received: of {', '.join(others)}, which the split has in "
            "another part now. Mine again with --overwrite."
        )
    return [_moved(case, f"{records.MINED}/{name}") for case in found.cases]


def _moved(case: records.CaseRecords, below: str) -> records.CaseRecords:
    """Return a case whose shards' paths start with `below`."""
    shards = [
        dataclasses.replace(shard, file=dataclasses.replace(shard.file, name=f"{below}/{shard.file.name}"))
        for shard in case.shards
    ]
    return dataclasses.replace(case, shards=tuple(shards))
