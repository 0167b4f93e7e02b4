"""Which files are images, by their names: suffixes, names of cases, the cases in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from femur_tf import command, dicom_series
from femur_tf.image_errors import bad_file, listed

NIFTI = (".nii", ".nii.gz")
META = (".mha", ".mhd")
READABLE = (*NIFTI, ".seg.nrrd", ".nrrd", ".nhdr", *META)
"""Suffixes, each before those that it ends in; `.seg.nrrd` is a segmentation of 3D Slicer, of the same format."""
WRITABLE = (*NIFTI, ".nrrd", ".mha")
"""Formats of one file; `.nhdr` and `.mhd` keep their voxels in a second one, which cannot be renamed with it."""


def image_suffix(path: Path, among: Sequence[str] = READABLE) -> str | None:
    """Return the suffix in lower case by which an image file is known, `.nii.gz` whole; None for another file."""
    return next((suffix for suffix in among if path.name.lower().endswith(suffix)), None)


def case_name(path: Path) -> str:
    """Return a case's name: its file's name without the image suffix, or its folder's name."""
    path = path if path.name not in ("", "..") else path.resolve()
    return path.name[: len(path.name) - len(image_suffix(path) or "")]


def list_images(folder: Path) -> dict[str, Path]:
    """List the cases in a folder: its image files, and folders of DICOM files at any depth; say what else is in it.

    A folder that lies deeper is named by its path from the folder on: patient, study and series as `P1_ST0_SE0`.

    Returns:
      Case name -> path, sorted by name; empty where the folder has no image.

    Raises:
      DataError: not a folder, or two images of one case name.
    """
    if not folder.is_dir():
        raise bad_file(
            folder, "a folder of images", "a file" if folder.exists() else "nothing there", "Check the path."
        )
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    cases: dict[str, Path] = {}
    for path in sorted([*filter(_is_image, entries), *dicom_series.below(folder)]):
        other = cases.setdefault(case_name(Path("_".join(path.relative_to(folder).parts))), path)
        if other != path:
            received = f"{other.relative_to(folder)} has the same case name"
            raise bad_file(path, "one image a case", received, "Remove or rename one.")
    _tell_passed(folder, entries, cases)
    return dict(sorted(cases.items()))


def _is_image(path: Path) -> bool:
    """Tell whether an entry of a folder is an image file."""
    with contextlib.suppress(OSError):
        return image_suffix(path) is not None and path.is_file()
    return False


def _tell_passed(folder: Path, entries: Sequence[Path], cases: Mapping[str, Path]) -> None:
    """Say which entries of a folder neither are nor hold a case; a case's second file and notes on it go without."""
    taken = {folder / path.relative_to(folder).parts[0] for path in cases.values()}
    beside = {*(name.partition(".")[0] for name in cases), "DICOMDIR"}
    passed = [path.name for path in entries if path not in taken and path.name.partition(".")[0] not in beside]
    if passed:
        names = listed(passed, 3)
        command.say(f"{folder}: {len(passed)} passed over, neither an image nor a folder of DICOM slices: {names}")


def check_suffix(path: Path) -> str:
    """Return the suffix of a file to write; raise a `DataError` where no writable format is known by it."""
    suffix = image_suffix(path, WRITABLE)
    if suffix is None:
        raise bad_file(path, f"a name that ends in {', '.join(WRITABLE)}", path.name, "Choose another name.")
    return suffix
