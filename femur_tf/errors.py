"""The one error a user is meant to read.

A `DataError` says what is wrong with what was handed in: which file, what was
expected, what was received and what to do. Commands show its message alone and
exit with status 2 (`femur_tf.command`).
"""

from __future__ import annotations

import shlex
from pathlib import Path


class DataError(ValueError):
    """Input, or a file made earlier, that cannot be used as it is."""


class WriteError(DataError):
    """A `DataError` of a file that could not be written, as on a full disk: another file would fare no better."""


def require(fine: bool, owner: object, name: str, expected: str) -> None:
    """Raise a `ValueError` naming the field `name` of the settings `owner` unless `fine`."""
    if not fine:
        received = f"{name}={getattr(owner, name)!r}"
        raise ValueError(f"{type(owner).__name__}.{name}: expected {expected}. Received: {received}")


def typed(module: str, *words: object) -> str:
    """Return a command of ours as one types it in a shell, for a message that says what to run.

    Args:
      module: what follows `python -m`.
      words: its arguments; a path with blanks is quoted, one that begins with a dash begins with ./ then.

    Example:
      >>> typed("femur_tf.train", "my work")
      "python -m femur_tf.train 'my work'"
    """
    shown = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in words]
    return shlex.join(["python", "-m", module, *shown])
