"""A folder with one DICOM series, or an enhanced DICOM file, read as one volume."""

from __future__ import annotations

import contextlib
import heapq
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

import SimpleITK as sitk

from femur_tf import command, dicom_frames, header_geometry
from femur_tf.image_errors import bad_file, library, listed, named
from femur_tf.lps import lps_affine

STRAY = "Export a damaged or cut slice again; move a file that is no slice away."
SUFFIXES = (".dcm", ".ima")
"""Suffixes that DICOM files usually have, where they have any."""
KNOWN_BY = ("0020|0011", "0008|103e")  # Series Number, Series Description


def is_series(path: Path) -> bool:
    """Tell whether `path` is a folder that directly holds a DICOM file."""
    return path.is_dir() and any(is_file(entry) for entry in sorted(path.iterdir()))


def below(folder: Path) -> Iterator[Path]:
    """Yield the folders below a folder that directly hold DICOM files, at any depth, but none within another.

    Hidden folders are left out. A folder is looked into once, by its shortest path, and by a link last, so that links
    in a circle end. What is passed over is warned of.
    """
    waiting, seen = [(0, False, folder)], set()  # depth, link, path: least first
    while waiting:
        depth, _, path = heapq.heappop(waiting)
        try:
            if (place := path.resolve()) in seen:
                continue
            seen.add(place)
            if depth and is_series(path):
                yield path
                _warn_of_hidden(path)
                continue
            for entry in _folders(path):
                heapq.heappush(waiting, (depth + 1, entry.is_symlink(), entry))
        except OSError as error:
            command.warn(f"{path}: expected a folder that can be read. Received: {error.strerror}. It is passed over.")


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, without hidden ones."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir()]


def _warn_of_hidden(folder: Path) -> None:
    """Warn where a folder that holds slices, and is one scan, has others below it."""
    deeper = next(below(folder), None)
    if deeper:
        command.warn(
            f"{folder}: DICOM files in {deeper} are passed over, as a folder that holds DICOM files itself is one "
            "scan. Move those that it holds itself away, or into a folder of their own."
        )


def is_file(path: Path) -> bool:
    """Tell whether a file has DICOM's mark, `DICM` after a preamble of 128 bytes, and is no table of contents.

    One that may not be read shows no mark: the slices beside it tell of the series, and its name that it is one.
    """
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"
    return False


def read(path: Path) -> tuple[sitk.Image, str | None]:
    """Read a DICOM series, its slices in order of position.

    Args:
      path: a folder with one series, or one enhanced file.

    Returns:
      The volume, and what the files leave open of its geometry and what is assumed; None where they leave nothing open.

    Raises:
      DataError: several series, one that is not whole, or slices that do not make up one volume.
    """
    files = _files_of(path)
    if dicom_frames.is_enhanced(files[0]):
        image, slices = dicom_frames.read(path, files)
    else:
        image, slices = _read_slices(path, files)
    between_mm = header_geometry.lone_slice_mm(slices)
    if between_mm:
        image.SetSpacing((*image.GetSpacing()[:2], between_mm))
    return image, header_geometry.series_doubt(slices, lps_affine(image))


def _files_of(path: Path) -> list[Path]:
    """Return the files of the one series in a folder, or the one enhanced file."""
    if not path.is_dir():
        if not dicom_frames.is_enhanced(path):
            raise bad_file(path, "the folder of a DICOM series", "a file of one slice", "Hand in its folder.")
        return [path]
    found = [Path(name) for name in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), _find_series(path))]
    if left_out := _left_out(path, [file.name for file in found]):  # an end may be missing, with no gap to tell
        raise bad_file(path, "a whole series", f"{listed(left_out)}, which cannot be read as a slice of it", STRAY)
    return found


def _read_slices(folder: Path, files: Sequence[Path]) -> tuple[sitk.Image, Sequence[Mapping[str, str]]]:
    """Read files of one slice each as one volume, and the texts of the tags of each slice."""
    names = [path.name for path in files]
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in files])
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
    return image, slices


def _left_out(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the files of a folder that the reader passed over and that seem to be slices, by mark, suffix or name.

    Files of another class, such as reports and presentation states, are none.
    """
    others = [path for path in sorted(folder.iterdir()) if path.name not in names and not path.name.startswith(".")]
    usual = {_numbered(name) for name in names}
    alike = [path for path in others if path.is_file() and (_named_as_slice(path, usual) or is_file(path))]
    return [
        path.name for path in alike if dicom_frames.sop_class(path) in (None, dicom_frames.sop_class(folder / names[0]))
    ]


def _named_as_slice(path: Path, usual: Set[str]) -> bool:
    """Tell whether a file has a suffix of DICOM, or the name of a slice with another number."""
    return path.suffix.lower() in SUFFIXES or _numbered(path.name) in usual


def _numbered(name: str) -> str:
    """Return a name with a sign in place of each number: the same for all slices, as a rule."""
    return re.sub(r"\d+", "#", name)


def _find_series(folder: Path) -> str:
    """Return the identifier of the one DICOM series in a folder."""
    known = is_series(folder)  # without one, the reader prints a warning of its own
    series: Sequence[str] = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) if known else ()
    if len(series) != 1:
        known_as = listed([_described(folder, one) for one in sorted(series)])
        received = f"{len(series)} series: {known_as}" if series else "no DICOM file in it"
        raise bad_file(folder, "one DICOM series", received, "Hand in a folder with the slices of just one series.")
    return series[0]


def _described(folder: Path, series: str) -> str:
    """Return the identifier of a series with what a scanner's user knows it by: number, description, slices."""
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
    first = sitk.ImageFileReader()
    first.SetFileName(names[0])
    with contextlib.suppress(RuntimeError):  # its identifier and its slices are known all the same
        first.ReadImageInformation()
    number, description = (first.GetMetaData(tag).strip() if first.HasMetaDataKey(tag) else "" for tag in KNOWN_BY)
    return f"{series} (number {number or 'unknown'}, {description or 'no description'}, {len(names)} slices)"
