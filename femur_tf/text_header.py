"""The text that NRRD and MetaImage files start with: its fields, what they leave open, whether the voxels are whole.

Where voxels are compressed, the readers (Teem and MetaIO) do not always come to the checksum behind them: what came to
harm is then read as other grey values, and not a word.
"""

from __future__ import annotations

import functools
import gzip
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from femur_tf import header_geometry

NRRD_SPACES = ("ras", "las", "lps", "right-anterior-superior", "left-anterior-superior", "left-posterior-superior")
"""The spaces of NRRD files that lie in the patient, as far as the reader knows them."""
META_DIRECTIONS = {"transformmatrix", "orientation", "rotation"}
LENGTHS = ("spacedirections", "spacings", "elementspacing", "elementsize")
"""Where NRRD and MetaImage files tell how far apart voxels are; the first that is there counts."""
LENGTH = re.compile(r"\([^)]*\)|[-+]?[.\d]\S*")
"""A number or a vector: not `nan`, `none` or `???`, which are no length."""
SKIPS = ("lineskip", "byteskip", "headersize")
"""What may stand between the header and the voxels."""
PIECE_BYTES = 2**14
"""Packed, at a time; a thousand times as much unpacked, at most."""


def fields(lines: Iterable[bytes]) -> dict[str, str]:
    """Return the fields in the text that a file starts with, their names in lower case and without spaces.

    Args:
      lines: of the file, from its first; no more are taken than the text has.
    """
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode("latin-1").replace("=", ":", 1).partition(":")
        name = name.replace(" ", "").strip().lower()
        found[name] = value.strip()
        if name in ("", "elementdatafile"):  # voxels follow
            break
    return found


def check_packed(header: Mapping[str, str], stream: BinaryIO, folder: Path) -> None:
    """Unpack compressed voxels to the end, where their checksum is, without keeping them.

    Voxels that are not compressed, or lie where only the reader finds them, are left to it.

    Args:
      header: the fields of a file.
      stream: the file, just behind its header.
      folder: of the file; voxels in a file of their own lie there.

    Raises:
      OSError, EOFError, zlib.error: they are damaged or cut short.
    """
    is_meta = header.get("compresseddata", "").lower().startswith(("t", "1"))
    is_gzip = header.get("encoding", "").lower() in ("gz", "gzip")
    if not (is_meta or is_gzip) or any(header.get(skip, "0") != "0" for skip in SKIPS):
        return
    size = header.get("compresseddatasize")
    unpack = functools.partial(_unpack_zlib, size) if is_meta else _unpack_gzip
    name = header.get("elementdatafile" if is_meta else "datafile", "LOCAL")
    if name.upper() == "LOCAL":
        if is_meta and size is None:
            raise EOFError("no CompressedDataSize, by which voxels behind a header are found")
        unpack(stream)
    elif (folder / name).is_file():  # not a list or a pattern of names
        with (folder / name).open("rb") as voxels:
            unpack(voxels)


def _unpack_gzip(stream: BinaryIO) -> None:
    """Unpack a file's rest, which may have several members."""
    with gzip.GzipFile(fileobj=stream) as packed:
        while packed.read(1024 * PIECE_BYTES):
            pass


def _unpack_zlib(size: str | None, stream: BinaryIO) -> None:
    """Unpack up to the end that the packed bytes tell themselves: it has to be where MetaIO will look for it.

    Args:
      size: of the packed bytes, as the header has it; None: they fill the file.
      stream: the packed bytes.
    """
    packed, taken = zlib.decompressobj(zlib.MAX_WBITS | 32), 0  # MetaIO reads the headers of zlib and of gzip
    while not packed.eof:
        piece = stream.read(PIECE_BYTES)
        if not piece:
            raise EOFError("compressed voxels that end too early")
        taken += len(piece)
        packed.decompress(piece)
    used = taken - len(packed.unused_data)
    fits = used == taken and not stream.read(1) if size is None else size == str(used)
    if not fits:
        raise EOFError(f"{used} bytes of compressed voxels, other than the header or the file says")


def doubt(header: Mapping[str, str], affine: np.ndarray) -> str | None:
    """Return what a header leaves open and its reader assumes; None where it leaves nothing open.

    Args:
      header: the fields of a file.
      affine: (4, 4) index -> RAS mm, as it was read.

    Raises:
      ValueError: an axis whose spacing is not a finite number, of which the reader makes 1 mm.
    """
    lengths = next((header[name] for name in LENGTHS if name in header), None)
    if lengths is not None and len(LENGTH.findall(lengths)) < 3:
        raise ValueError(
            f"expected a finite spacing of each axis. Received: {lengths}. Export the scan with its geometry."
        )
    in_patient = "spacedirections" in header and header.get("space", "").lower() in NRRD_SPACES
    oriented = in_patient or not META_DIRECTIONS.isdisjoint(header)
    left_open = ["orientation"] * (not oriented) + ["spacing"] * (lengths is None)
    return header_geometry.assumed(" and ".join(left_open), affine) if left_open else None
