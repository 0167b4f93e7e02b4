"""The JSON file of `segment --report`: what is known of each mask, by where the mask lies from the report.

{"masks/hip_01.nii.gz": {"scan": "hip_01", "parts": 2, "flagged": false, "reasons": [], "measures": {...}}}

Scans of several patients may have one name; their masks do not lie in one place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from femur_tf import files
from femur_tf.errors import DataError, WriteError
from femur_tf.image_errors import library
from femur_tf.quality import Quality


def read(path: Path | None) -> dict[str, Any]:
    """Return what a report says; nothing where there is none.

    Raises:
      DataError: there is something that is not such a report.
    """
    if path is None or not path.exists():
        return {}
    found = files.read_json(path) if path.is_file() else None
    if not isinstance(found, dict) or not all(isinstance(row, dict) for row in found.values()):
        received = "a folder" if path.is_dir() else type(found).__name__
        raise DataError(f"{path}: expected a report of femur_tf.segment. Received: {received}. Choose another name.")
    if not all("scan" in row for row in found.values()):
        raise DataError(
            f"{path}: expected the scan in each row. Received: an earlier version's report. Choose another name, and "
            "segment the scans again with --overwrite to have them judged."
        )
    return found


def _key(path: Path, mask: Path) -> str:
    """Return the name of a mask's row: they may be moved together."""
    place = mask.parent.resolve() / mask.name  # a mask that is a link is replaced, not what it points to
    return Path(os.path.relpath(place, path.parent.resolve())).as_posix()


def add(path: Path, scan: str, *, mask: Path, parts: int, quality: Quality) -> None:
    """Write what is known of one mask; what the file says of others stays, those of another run at the time too.

    Raises:
      DataError: as `read` does.
      WriteError: no room for it.
    """
    with files.locked(path, "Wait for it.", wait=True):
        rows = read(path) | {_key(path, mask): {"scan": scan, "parts": parts, **quality.to_dict()}}
        with library(path, "room for a report", "Free space, or write elsewhere.", WriteError):
            files.write_json(path, rows)


def flagged(path: Path | None, masks: Mapping[str, Path]) -> tuple[list[str], list[str]]:
    """Return the scans whose masks a report flags, and those whose masks it does not name.

    Args:
      path: of the report.
      masks: of some scans, by the scan's name.

    Raises:
      DataError: as `read` does.
    """
    found = read(path)
    rows = {scan: found.get(_key(path, mask)) if path else None for scan, mask in masks.items()}
    return [s for s, row in rows.items() if row and row.get("flagged")], [s for s, row in rows.items() if not row]
