"""Errors that are noted where they pass, and handled where they belong."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class Noted:
    """A block whose errors are told to a function, and raised as ever."""

    def __init__(self, tell: Callable[[BaseException], None]) -> None:
        """Keep the function."""
        self.tell = tell

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell the error that ends the block, if one does."""
        if error is not None:
            self.tell(error)
