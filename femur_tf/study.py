"""The work folder of a study: where things lie, which cases it has, how a case is read.

    work/plan.json            cases, split, data settings (data_prep.plan)
    work/records/             shards, manifest, working grids (data_prep.write_records)
    work/runs/NAME/           a training run (femur_tf.train)
    work/reports/NAME/        tables and pages (femur_tf.evaluate)
    work/tuning/NAME/         a hyper-parameter search (tuning.search)

The plan names each case, its files and its part of the split; every later command
reads it from here.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
from pathlib import Path
from typing import Literal

import numpy as np

from femur_tf import config, content, files, image_io, image_names, intensity, volume
from femur_tf.errors import DataError, typed

FORMAT_VERSION = 1
FOLDERS = ("--images", "DIR", "--masks", "DIR")
"""What a plan needs, for messages that advise to make one."""
Part = Literal["train", "validation", "test"]
DETACHED = (".nhdr", ".mhd")
"""Headers whose voxels lie in another file."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One scan of the cohort with its reference mask."""

    name: str
    image: str
    """Absolute path of the image file or DICOM folder."""
    mask: str
    """Absolute path of the mask file."""
    part: Part


@dataclasses.dataclass(frozen=True)
class Plan:
    """What `plan.json` holds."""

    cases: tuple[Case, ...]
    data: config.DataConfig
    label: tuple[int, ...] | None = None
    """The mask values that are femur, such as those of the left and of the right one; None: the one value besides 0."""
    format_version: int = FORMAT_VERSION

    def part(self, part: Part) -> tuple[Case, ...]:
        """Return the cases of one part of the split, in the plan's order."""
        return tuple(case for case in self.cases if case.part == part)

    def volumes(self, case: Case) -> int:
        """Return how many volumes a case's examples are drawn from: of a training case the scan and varied copies."""
        return {"train": self.data.variation.copies, "validation": 1, "test": 0}[case.part]


@dataclasses.dataclass(frozen=True)
class LoadedCase:
    """A case in memory, on its own grid and on the working grid."""

    case: Case
    image: image_io.Image
    reference: np.ndarray
    """bool, on the image's own grid."""
    working: volume.Volume
    """uint8, on the working grid."""
    working_mask: np.ndarray
    """bool, on the working grid."""


def plan_path(work: Path) -> Path:
    """Return where the plan of the study in `work` lies."""
    return work / "plan.json"


def records_path(work: Path) -> Path:
    """Return the folder of the records of the study in `work`."""
    return work / "records"


def run_path(work: Path, name: str) -> Path:
    """Return the folder of a run.

    Raises:
      DataError: the name would lead elsewhere.
    """
    return files.child(work / "runs", name)


def tuning_path(work: Path) -> Path:
    """Return the folder of the hyper-parameter searches of the study in `work`."""
    return work / "tuning"


def read_plan(work: Path) -> Plan:
    """Read the plan of the study in `work`.

    Raises:
      DataError: there is none, it is not a plan, it has another format version, or it names a case twice.
    """
    path = plan_path(work)
    if not path.exists():
        raise DataError(f"{path}: expected a plan, found none. Run first: {typed('data_prep.plan', work, *FOLDERS)}")
    values = files.read_versioned(path, FORMAT_VERSION, "Make the plan again with this version of femur_tf.")
    if isinstance(values.get("label"), int):  # of one label, as earlier plans have it
        values["label"] = [values["label"]]
    plan = config.from_dict(Plan, values, str(path))
    found = collections.Counter(case.name for case in plan.cases)
    if leading := [name for name in found if not files.is_name(name)]:
        raise DataError(f"{path}: expected names of cases without slashes. Received: {', '.join(map(repr, leading))}.")
    twice = sorted(name for name, count in found.items() if count > 1)
    if twice:
        raise DataError(f"{path}: expected each case in one part. Received: more than once {', '.join(twice)}.")
    return plan


def needed(work: Path, plan: Plan, part: Part) -> tuple[Case, ...]:
    """Return the cases of one part of the split.

    Raises:
      DataError: there are none.
    """
    cases = plan.part(part)
    if not cases:
        raise DataError(
            f"{plan_path(work)}: expected {part} cases. Received: none. "
            f"Plan some: {typed('data_prep.plan', work, *FOLDERS, f'--{part}', '...', '--new-split', '--overwrite')}"
        )
    return cases


def require_there(path: Path) -> None:
    """Raise a `DataError` unless a plan's image is where the plan says."""
    if not path.exists():
        raise DataError(
            f"{path}: expected a scan or mask of the plan. Received: nothing there. Put it back, or plan again with "
            "the new folders and --overwrite: records and runs of the same contents stay valid."
        )


def digests(path: Path) -> list[str]:
    """Return the digests of all files of an image, wherever they lie and whenever they were written.

    Args:
      path: a DICOM folder; or a file, beside which those of its name hold its detached voxels (NRRD, MetaImage).

    Raises:
      DataError: there is nothing.
    """
    require_there(path)
    found = path.rglob("*") if path.is_dir() else [path, *_detached(path)]
    return sorted(files.sha256(one) for one in found if one.is_file())


def _detached(path: Path) -> list[Path]:
    """Return the files that may hold the voxels of a header: those of its name, whatever they end in."""
    if image_names.image_suffix(path) not in DETACHED:
        return []
    return [one for one in path.parent.glob(f"{glob.escape(image_names.case_name(path))}.*") if one != path]


def prepare(image: volume.Volume, data: config.DataConfig, *, path: Path | None = None) -> volume.Volume:
    """Bring a volume, without its padding, to the working grid: canonical axes, working spacing, uint8.

    Args:
      image: (X, Y, Z), any real dtype, any axis order.
      data: the spacing and the normalisation to use.
      path: of the image, for the error.

    Returns:
      The working grid, uint8.

    Raises:
      DataError: a voxel is no finite number; the working grid would be too large, as where a file gives lengths in
        another unit than mm.
    """
    settings = data.normalisation
    if not np.isfinite(image.data).all():  # one NaN would make every voxel of the working grid 0
        raise DataError(f"{path or 'volume'}: expected finite voxels. Received: NaN or infinite. Replace them first.")
    source = intensity.without_fill(image)
    source = content.part(source, content.box(source.data))
    source = intensity.correct_bias(source) if settings.n4 else source
    try:
        working = volume.to_working(source, data.patch.spacing_mm)
    except ValueError as error:
        raise DataError(f"{path}: {error}" if path else str(error)) from error
    return volume.Volume(intensity.normalise(working.data, settings), working.affine)


def load_case(plan: Plan, case: Case) -> LoadedCase:
    """Read a case's image and mask and bring both to the working grid.

    Raises:
      DataError: a file is not where the plan says; as `image_io.read_image`, `image_io.read_mask` and `prepare` do.
    """
    for path in (case.image, case.mask):
        require_there(Path(path))
    image = image_io.read_image(Path(case.image))
    reference = image_io.read_mask(Path(case.mask), like=image, label=plan.label)
    working = prepare(image.volume, plan.data, path=image.path)
    working_mask = volume.mask_to_working(reference, image.volume.affine, working)
    return LoadedCase(case, image, reference, working, working_mask)
