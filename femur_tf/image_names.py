"""Which files are images, by their names: suffixes, names of cases, the cases in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from femur_tf import command, dicom_series
from femur_tf.image_errors import bad_file, listed

NIFTI = (".nii", ".nii.gz")
META = (".mha", ".mhd")
READABLE = (*NIFTI, ".nrrd", ".nhdr", *META)
WRITABLE = (*NIFTI, ".nrrd", ".mha")
"""Formats of one file; `.nhdr` and `.mhd` keep their voxels in a second one, which cannot be renamed with it."""


def image_suffix(path: Path) -> str | None:
    """Return the suffix in lower case by which an image file is known, `.nii.gz` whole; None for another file."""
    return next((suffix for suffix in READABLE if path.name.lower().endswith(suffix)), None)


def case_name(path: Path) -> str:
    """Return a case's name: its file's name without the image suffix, or its folder's name."""
    path = path if path.name not in ("", "..") else path.resolve()
    return path.name[: len(path.name) - len(image_suffix(path) or "")]


def list_images(folder: Path) -> dict[str, Path]:
    """List the cases in a folder: image files and subfolders of DICOM files; say what else is in it.

    Returns:
      Case name -> path, sorted by name; empty where the folder has no image.

    Raises:
      DataError: not a folder, or two images of one case name.
    """
    if not folder.is_dir():
        raise bad_file(
            folder, "a folder of images", "a file" if folder.exists() else "nothing there", "Check the path."
        )
    cases: dict[str, Path] = {}
    passed = []
    for path in sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
        if not _is_case(path):
            passed.append(path)
            continue
        other = cases.setdefault(case_name(path), path)
        if other != path:
            raise bad_file(path, "one image a case", f"{other.name} has the same case name", "Remove or rename one.")
    beside = {name.partition(".")[0] for name in cases}  # a case's second file, notes on it
    _tell_passed(folder, [path for path in passed if path.name.partition(".")[0] not in {*beside, "DICOMDIR"}])
    return dict(sorted(cases.items()))


def _is_case(path: Path) -> bool:
    """Tell whether an entry of a folder is an image file or a folder of DICOM files; warn of a folder that hides it."""
    try:
        return (path.is_file() and image_suffix(path) is not None) or dicom_series.is_series(path)
    except OSError as error:
        command.warn(f"{path}: expected a folder that can be read. Received: {error.strerror}. It is passed over.")
        return False


def _tell_passed(folder: Path, passed: Sequence[Path]) -> None:
    """Say which entries of a folder are no cases; warn where DICOM files lie deeper in one."""
    if passed:
        names = listed([path.name for path in passed], 3)
        command.say(f"{folder}: {len(passed)} passed over, neither an image nor a folder of DICOM slices: {names}")
    deeper = next(filter(None, map(dicom_series.below, passed)), None)
    if deeper:
        command.warn(f"{folder}: DICOM files in {deeper} are passed over. Hand in the folder that holds the slices.")


def check_suffix(path: Path) -> str:
    """Return the suffix of a file to write; raise a `DataError` where no writable format is known by it."""
    suffix = image_suffix(path)
    if suffix not in WRITABLE:
        raise bad_file(path, f"a name that ends in {', '.join(WRITABLE)}", path.name, "Choose another name.")
    return suffix
