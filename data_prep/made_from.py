"""What a case's records were made from, and whether those that are there are what would be made now."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from femur_tf import command, config, records, study
from femur_tf.errors import DataError

ADDED = {
    "normalisation": ("upper_medians",),
    "sampling": ("near_volume",),
    "variation": ("shift", "warp", "tone", "blur_mm", "cut_mm"),
}
"""Settings that came later: they count where they are in use, so that records of earlier versions can be gone on with.
"""


def fingerprint(plan: study.Plan, case: study.Case, mode: records.Mode) -> str:
    """Return a digest of all that a case's records are made from: settings, files, mode; not of where the files lie."""
    inputs = [study.digests(Path(path)) for path in (case.image, case.mask)]
    data = config.to_dict(plan.data)
    del data["sided"]  # of the training: records hold no mirrored patches
    for part, names in ADDED.items():
        data[part] = {name: value for name, value in data[part].items() if value or name not in names}
    values = [data, plan.label, case.name, case.part, inputs, mode]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def is_finished(path: Path, folder: Path, found: records.CaseRecords, made_of: str) -> bool:
    """Tell whether a case's records are complete. Raise where they were made from something else.

    Files are looked for by name and size; `femur_tf.records check` reads them.

    Args:
      path: where the finished part of the case is noted, for the error.
      folder: of the records.
      found: what is noted.
      made_of: the fingerprint of the input.

    Raises:
      DataError: they were made from another plan, input or mode.
    """
    if found.fingerprint != made_of:
        raise DataError(
            f"{path}: expected what this command makes of these files. Received: what was made from other settings or "
            "files, or by a version that made it otherwise. Pass --overwrite to replace it and all that goes with it."
        )
    missing = [entry.name for entry in found.files if records.check_size(folder, entry)]
    if missing:
        command.warn(f"{found.case}: missing or of another size, the case is written again: {', '.join(missing)}")
    return not missing
