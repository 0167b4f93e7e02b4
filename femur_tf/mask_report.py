"""The JSON file of `segment --report`: what is known of each mask, by the name of its scan.

{"hip_01": {"mask": "masks/hip_01.nii.gz", "parts": 2, "flagged": false, "reasons": [], "measures": {...}}}
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from femur_tf import files
from femur_tf.errors import DataError
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
    return found


def add(path: Path, name: str, *, mask: Path, parts: int, quality: Quality) -> None:
    """Write what is known of one mask; what the file says of other scans stays.

    Raises:
      DataError: as `read` does.
    """
    files.write_json(path, read(path) | {name: {"mask": str(mask), "parts": parts, **quality.to_dict()}})


def flagged(path: Path | None, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the scans that a report flags, and those that it does not name, of some.

    Raises:
      DataError: as `read` does.
    """
    found = read(path)
    names = list(names)
    return [n for n in names if found.get(n, {}).get("flagged")], [n for n in names if n not in found]
