"""Files that are written whole or not at all.

A file or folder is made under a temporary name beside its final one and renamed
when it is complete and on the disk, so that a reader, or a run that goes on after a
kill or a power cut, never meets half of one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from femur_tf.errors import DataError

LEFT_OVER_S = 86_400.0
"""Age, in seconds, from which a temporary file is taken for one that a killed command has left: none works so long."""
CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP}
"""Of what no disk holds, such as a pipe, and of file systems that know no such thing."""
CANNOT_LOCK = {errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
"""Of network file systems that are mounted without locks, or lock only what may be written to."""


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, renamed to `path` when the block ends well, removed when it raises.

    The temporary name keeps all suffixes of `path`, because image writers choose the
    format by them; the last one in lower case, as not all know it in capitals. The
    parent folder is made. An existing file is replaced; an existing folder too. The name
    is drawn: in containers every command has the same process number. What killed commands
    have left in the folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_left(path.parent)
    temporary = path.with_name(f".partial-{secrets.token_hex(4)}-{path.stem}{path.suffix.lower()}")
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            _to_disk(written)
        if path.is_dir():
            remove(path)
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        remove(temporary)


@functools.cache
def _clear_left(folder: Path) -> None:
    """Remove what killed commands have left in a folder: once a process, as a folder may hold 50,000 files."""
    for left in folder.glob(f".partial-{'?' * 8}-*"):
        with contextlib.suppress(OSError):  # another command may remove it, or another user may have made it
            if time.time() - left.stat().st_mtime > LEFT_OVER_S:
                remove(left)


def _to_disk(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk: a power cut would leave empty files of their final names."""
    if path.is_symlink():
        return
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(place)


def remove(path: Path) -> None:
    """Remove a file or a folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except PermissionError as error:  # it names the innermost file, without its folder
            raise PermissionError(error.errno, error.strerror, str(path)) from error
    else:
        path.unlink(missing_ok=True)


def clear(folder: Path) -> None:
    """Remove what a folder holds, if there is one; a link to it, as to a larger disk, stays."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():  # checkpoints before the settings they are of
        remove(path)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole, as UTF-8 in any locale."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write `values`, made of plain JSON types, to `path`, whole."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return what the JSON file at `path` holds.

    Raises:
      FileNotFoundError: no such file.
      DataError: not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except ValueError as error:
        raise DataError(f"{path}: expected JSON. Received: {error}") from error


def read_versioned(path: Path, version: int, advice: str) -> Any:
    """Return what the JSON file at `path` holds, an object whose `format_version` is `version`.

    Args:
      path: the file.
      version: what this package reads.
      advice: what to do about another one, for the error.

    Raises:
      FileNotFoundError: no such file.
      DataError: not JSON, or another format version.
    """
    values = read_json(path)
    found = values.get("format_version") if isinstance(values, dict) else None
    if found != version:
        raise DataError(f"{path}: expected format_version {version}. Received: {found!r}. {advice}")
    return values


@contextlib.contextmanager
def locked(folder: Path, advice: str, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes that ask for it out of a folder while the block runs; the system lets go when one ends.

    Where the file system cannot lock, that is said, and the block runs all the same.

    Args:
      folder: or a file; need not exist.
      advice: what to do where another process is in it.
      wait: for the other process, in place of an error; for what takes moments.

    Raises:
      DataError: another process is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    try:
        place = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)  # NFS locks only what may be written to
    except PermissionError:
        if not lock.exists():
            raise
        place = os.open(lock, os.O_RDONLY)  # the file stays, and belongs to the first of several users
    with open(place) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DataError(f"{folder}: another process is working here. {advice}") from error
        except OSError as error:
            if error.errno not in CANNOT_LOCK:
                raise
            logging.getLogger(__name__).warning(
                "warning: %s: expected a file system that can lock files. Received: %s. Let no other command work "
                "here meanwhile, or mount it with locks.",
                folder,
                error.strerror,
            )
        yield


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of the file at `path`, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_name(text: str) -> bool:
    """Tell whether a text names something within a folder, and does not lead elsewhere."""
    return text not in ("", ".", "..") and text == Path(text).name


def child(folder: Path, name: str) -> Path:
    """Return the path of something in a folder that a user has named.

    Raises:
      DataError: the name would lead elsewhere.
    """
    if not is_name(name):
        raise DataError(f"{folder}: expected the name of a folder in it. Received: {name!r}. Leave out slashes.")
    return folder / name


def names_beside(folder: Path, holding: str) -> str:
    """Return the names of the folders beside one that hold a file of some name, as a person reads them."""
    return ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{holding}"))) or "none"


def nearest_folder(path: Path) -> Path:
    """Return what is there already of the folders above `path`, the lowest of them."""
    above = path.absolute().parents or (path,)  # the root has none
    return next(folder for folder in above if folder.exists() or folder.is_symlink())


def require_place(path: Path) -> None:
    """Raise unless a file can be made at `path`, its folders before it.

    Raises:
      DataError: what is there of its folders is a file, or may not be written to.
    """
    there = nearest_folder(path)
    if path.is_dir():
        received = f"{path}, a folder"
    elif not there.is_dir():
        received = f"{there}, a file"
    elif not os.access(there, os.W_OK):
        received = f"{there}, which may not be written to"
    else:
        return
    raise DataError(f"{path}: expected a place for a file. Received: {received}. Choose another one.")


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise unless `path` is free or may be replaced.

    Raises:
      DataError: `path` exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise DataError(f"{path}: already exists. Pass --overwrite to replace it, or choose another name.")
