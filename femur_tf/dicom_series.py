"""A folder with one DICOM series, read as one volume."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence, Set
from pathlib import Path

import SimpleITK as sitk

from femur_tf import header_geometry
from femur_tf.image_errors import bad_file, library, listed, named
from femur_tf.lps import lps_affine

STRAY = "Export a damaged or cut slice again; move a file that is no slice away."
SUFFIXES = (".dcm", ".ima")
"""Suffixes that DICOM files usually have, where they have any."""


def is_series(path: Path) -> bool:
    """Tell whether `path` is a folder that directly holds a DICOM file."""
    return path.is_dir() and any(_is_dicom_file(entry) for entry in sorted(path.iterdir()))


def below(folder: Path) -> Path | None:
    """Return a folder with a DICOM file one or two levels below a folder; None where there is none to be seen."""
    for path in (path for pattern in ("*", "*/*") for path in sorted(folder.glob(pattern))):
        with contextlib.suppress(OSError):
            if is_series(path):
                return path
    return None


def _is_dicom_file(path: Path) -> bool:
    """Tell whether a file has DICOM's mark, `DICM` after a preamble of 128 bytes, and is no table of contents.

    One that may not be read shows no mark: the slices beside it tell of the series, and its name that it is one.
    """
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
    return False


def read(folder: Path) -> tuple[sitk.Image, str | None]:
    """Read the one DICOM series in a folder, its slices in order of position.

    Returns:
      The volume, and what the files leave open of its geometry and what is assumed; None where they leave nothing open.

    Raises:
      DataError: several series, one that is not whole, or slices that do not make up one volume.
    """
    files_of = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), _find_series(folder))
    names = [Path(name).name for name in files_of]
    if left_out := _left_out(folder, names):  # an end of the stack would be missing, with no gap to tell
        raise bad_file(folder, "a whole series", f"{listed(left_out)}, which cannot be read as a slice of it", STRAY)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files_of)
    reader.MetaDataDictionaryArrayUpdateOn()
    reader.SetSpacingWarningRelThreshold(header_geometry.GAP_TOLERANCE)  # by default, rounding is warned of
    with library(folder):
        image = reader.Execute()
    known = [[tag for tag in header_geometry.TAGS if reader.HasMetaDataKey(k, tag)] for k in range(len(names))]
    slices = [{tag: reader.GetMetaData(k, tag) for tag in tags} for k, tags in enumerate(known)]
    if len({tuple(tags.get(tag) for tag in header_geometry.GREY) for tags in slices}) > 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # that of the first slice may not hold the others' grey values
        with library(folder):
            image = reader.Execute()
    with named(folder):
        header_geometry.check(names, slices)
    between_mm = header_geometry.lone_slice_mm(slices)
    if between_mm:
        image.SetSpacing((*image.GetSpacing()[:2], between_mm))
    return image, header_geometry.series_doubt(slices, lps_affine(image))


def _left_out(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the files of a folder that the reader passed over and that seem to be slices, by mark, suffix or name.

    Files of another class, such as reports and presentation states, are none.
    """
    others = [path for path in sorted(folder.iterdir()) if path.name not in names and not path.name.startswith(".")]
    usual = {_numbered(name) for name in names}
    alike = [path for path in others if path.is_file() and (_named_as_slice(path, usual) or _is_dicom_file(path))]
    return [path.name for path in alike if _sop_class(path) in (None, _sop_class(folder / names[0]))]


def _named_as_slice(path: Path, usual: Set[str]) -> bool:
    """Tell whether a file has a suffix of DICOM, or the name of a slice with another number."""
    return path.suffix.lower() in SUFFIXES or _numbered(path.name) in usual


def _numbered(name: str) -> str:
    """Return a name with a sign in place of each number: the same for all slices, as a rule."""
    return re.sub(r"\d+", "#", name)


def _sop_class(path: Path) -> bytes | None:
    """Return the class of a DICOM file (Media Storage SOP Class UID); None where it does not tell."""
    with path.open("rb") as stream:
        head = stream.read(1024)
    found = re.search(rb"\x02\x00\x02\x00UI(..)", head, re.DOTALL)
    if not found:
        return None
    stop = found.end() + int.from_bytes(found[1], "little")
    return head[found.end() : stop].rstrip(b"\0") if stop <= len(head) else None


def _find_series(folder: Path) -> str:
    """Return the identifier of the one DICOM series in a folder."""
    known = is_series(folder)  # without one, the reader prints a warning of its own
    series: Sequence[str] = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) if known else ()
    if len(series) != 1:
        received = f"{len(series)} series ({listed(sorted(series))})" if series else "no DICOM file in it"
        raise bad_file(folder, "one DICOM series", received, "Hand in a folder with the slices of just one series.")
    return series[0]
