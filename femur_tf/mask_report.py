"""The JSON file of `--report`: what is known of each mask, by where the mask lies from the report.

{"masks/hip_01.nii.gz": {"scan": "hip_01", "image": "/scans/hip_01.nii.gz", "left_mm3": 118240.1, "right_mm3": 120013.9,
"parts": 2, "made_by": {"model": "femur_t1_coronal", ...}, "flagged": false, "reasons": [], "measures": {...}},
"masks/hip_02.nii.gz": {"scan": "hip_02", "image": "/scans/hip_02.nii.gz", "error": "..."}}

Scans of several patients may have one name; their masks do not lie in one place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from femur_tf import command, files
from femur_tf.errors import DataError, WriteError
from femur_tf.image_errors import library, listed
from femur_tf.jobs import Job
from femur_tf.origin import Origin
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


def add(path: Path, job: Job, *, sides_mm3: tuple[float, float], parts: int, quality: Quality, origin: Origin) -> None:
    """Write what is known of one mask.

    Args:
      path: of the report.
      job: the scan.
      sides_mm3: volumes of the patient's left and right femur, as `postprocess.sides` tells them.
      parts: of the mask.
      quality: its measures, and why to look at it.
      origin: the model.

    Raises:
      DataError: as `read` does.
      WriteError: no room for it.
    """
    left_mm3, right_mm3 = sides_mm3
    known = {"left_mm3": left_mm3, "right_mm3": right_mm3, "parts": parts, "made_by": origin.to_dict()}
    _put(path, job, known | quality.to_dict())


def add_failure(path: Path | None, job: Job, error: Exception) -> None:
    """Write why a scan has no mask; nothing where there is no report, or where the mask is there and was judged.

    Another command may have made it meanwhile: what is known of it must not be lost.

    Raises:
      DataError, WriteError: as `add` does.
    """
    if path:
        _put(path, job, {"error": str(error)})


def _put(path: Path, job: Job, row: Mapping[str, Any]) -> None:
    """Write the row of one scan; what the file says of others stays, those of another run at the time too."""
    with files.locked(path, "Wait for it.", wait=True):
        rows, key = read(path), _key(path, job.mask)
        if "error" in row and "flagged" in rows.get(key, {}) and job.mask.exists():
            return
        rows |= {key: {"scan": job.name, "image": str(job.image.resolve()), **row}}
        with library(path, "room for a report", "Free space, or write elsewhere.", WriteError):
            files.write_json(path, rows)


def flagged(path: Path | None, passed: Sequence[Job], *, strict: bool) -> list[str]:
    """Return the scans of an earlier run whose masks a report flags.

    Args:
      path: of the report.
      passed: the scans that have a mask.
      strict: say which ones these are, and which ones the report does not know.

    Raises:
      DataError: as `read` does.
    """
    found = read(path)
    rows = {job.name: found.get(_key(path, job.mask), {}) if path else {} for job in passed}
    doubtful = [name for name, row in rows.items() if row.get("flagged")]
    unknown = [name for name, row in rows.items() if "flagged" not in row]
    if strict and doubtful:
        command.warn(f"{path}: look at the masks of an earlier run too: {', '.join(doubtful)}")
    if strict and unknown:
        command.warn(
            f"Not judged, as they have masks and no report names them: {listed(unknown)}. "
            "Pass the --report of the run that made them."
        )
    return doubtful
