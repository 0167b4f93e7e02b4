"""Errors of image files: what libraries raise, as one message that names the file, what it holds and what to do."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from nibabel import filebasedimages, spatialimages

from femur_tf.errors import DataError

DAMAGED = "It is damaged, cut short or not an image: export it again."
LIBRARY_ERRORS = (filebasedimages.ImageFileError, spatialimages.HeaderDataError, zlib.error)  # beside built-in ones


def bad_file(path: Path, expected: str, received: object, advice: str) -> DataError:
    """Return the error that names the file, what was expected, what it holds and what to do."""
    return DataError(f"{path}: expected {expected}. Received: {received}. {advice}")


@contextlib.contextmanager
def library(
    path: Path, expected: str = "a whole image", advice: str = DAMAGED, kind: type[DataError] = DataError
) -> Iterator[None]:
    """Turn what nibabel and SimpleITK raise into an error of a kind for `path`; reading is the default."""
    try:
        yield
    except (*LIBRARY_ERRORS, EOFError, MemoryError, OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).rpartition("ERROR: ")[2].split()).rstrip(".") or type(error).__name__
        raise kind(f"{path}: expected {expected}. Received: {reason}. {advice}") from error


@contextlib.contextmanager
def named(file: object, advice: str = "") -> Iterator[None]:
    """Turn a `ValueError` of what a file holds into an error that names the file."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{file}: {error}{advice}") from error


def listed(values: Sequence[object] | np.ndarray, most: int = 10) -> str:
    """Return the first values as text, with a mark where some are left out."""
    return ", ".join([str(value) for value in values[:most]] + ["and more"] * (len(values) > most))
