"""The trials of a search while it runs: a live table on a terminal, a line a finished trial elsewhere.

It reads what lies on disk, so that it is the same for one process and for many.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from femur_tf import command
from femur_tf.errors import DataError
from tuning import trials
from tuning.trials import COMPLETED, RUNNING, Search, TrialRow

EVERY_S = 2.0
SHOWN = 15
"""Rows of the live table: the best, and what runs. The final one has all."""
WIDE = 120
"""Characters of a line that has room for all columns."""
LEFT_OUT = ("outside, wall s", "cost", "training")
"""Columns of a wide table alone."""
REASON = 12
"""Characters of a reason in the table; the whole of it is told at the end."""
COLUMNS = ("trial", "status", "score", "epochs", "wall s", "outside, wall s", "cost", "network", "training", "reason")


def _network(row: TrialRow) -> str:
    """Return a trial's network in a few letters: filters, Dense units, scales."""
    values = row.values
    filters = "-".join(str(values[name]) for name in sorted(values) if name.startswith("filters_"))
    dense = "-".join([str(values.get("dense", ""))] * int(values.get("dense_layers", 1)))
    planes = ", ".join(
        f"{name.removeprefix('planes_')} {value}"
        for name, value in values.items()
        if name.startswith("planes_") and value != "none"
    )
    return f"{filters} | {dense} | {planes}" if values else ""


def _training(row: TrialRow) -> str:
    """Return how a trial trains, in a few letters."""
    values = row.values
    if "optimizer" not in values:
        return ""
    return f"{values['optimizer']} {values['learning_rate']:.1e}, batch {values['batch']}, {values['loss']}"


def cells(row: TrialRow) -> tuple[str, ...]:
    """Return the table's cells of a trial."""
    return (
        row.trial_id,
        row.status + (" early" if row.stopped_early else ""),
        "" if row.score is None else f"{row.score:.4f}",
        str(row.epochs),
        f"{row.training_seconds:.0f}",
        f"{row.outside_seconds:.0f}",
        "" if row.cost is None else f"{row.cost / 1000:.0f} k",
        _network(row),
        _training(row),
        row.reason or "",
    )


def summary(search: Search, rows: Sequence[TrialRow]) -> str:
    """Return how far a search is, in one line."""
    done = sum(row.status == COMPLETED for row in rows)
    found = trials.best(rows, search.direction)
    best = "" if found is None else f"; best {search.objective} {found.score:.4f} (trial {found.trial_id})"
    return f"{done} of {search.trials} trials{best}; {outside(rows)}"


def outside(rows: Sequence[TrialRow]) -> str:
    """Return the share of the time that was spent outside training."""
    training, other = (sum(getattr(row, name) for row in rows) for name in ("training_seconds", "outside_seconds"))
    return f"{100 * other / max(training + other, 1e-9):.1f} % of {training + other:.0f} s outside training"


def table(rows: Sequence[TrialRow], title: str, width: int) -> Table:
    """Return the table of trials, for a line of so many characters."""
    found = Table(title=Text(title), title_justify="left")
    shown = [name for name in COLUMNS if width >= WIDE or name not in LEFT_OUT]
    for name in shown:
        if name == "reason":
            found.add_column(name, no_wrap=True, overflow="ellipsis", max_width=REASON)
        else:
            found.add_column(name, justify="right" if name in COLUMNS[2:7] else "left", overflow="fold")
    for row in rows:
        named = dict(zip(COLUMNS, cells(row), strict=True))
        found.add_row(*(Text(named[name]) for name in shown))
    return found


class Board:
    """Shows the search in a folder until it is closed."""

    def __init__(self, folder: Path) -> None:
        """Show nothing yet."""
        self.folder = folder
        self.console = Console(width=None if command.console.is_terminal else 160)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.told: set[str] = set()
        self.closed = threading.Event()

    def refresh(self) -> None:
        """Show the trials as they are now."""
        try:
            search, rows = trials.read(self.folder)
        except (DataError, OSError):
            return
        if self.live is not None:
            title = f"{self.folder}: {summary(search, rows)}"
            self.live.update(table(self._chosen(search, rows), title, self.console.width), refresh=True)
            return
        for row in rows:
            if row.status != RUNNING and row.trial_id not in self.told:
                self.console.print(Text("  ".join(filter(None, cells(row)))), soft_wrap=True)
                self.told.add(row.trial_id)

    def _chosen(self, search: Search, rows: Sequence[TrialRow]) -> list[TrialRow]:
        """Return the rows that fit: all, or those that run and the best."""
        if len(rows) <= SHOWN:
            return list(rows)
        running = [row for row in rows if row.status == RUNNING]
        sign = 1 if search.direction == "min" else -1
        done = sorted((row for row in rows if row.score is not None), key=lambda row: sign * (row.score or 0.0))
        return sorted([*done[: SHOWN - len(running)], *running], key=lambda row: row.number)

    def _keep(self) -> None:
        """Refresh until it is closed."""
        while not self.closed.wait(EVERY_S):
            self.refresh()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show the trials while the block runs; what a training would print is not shown."""
        if self.live is None:  # what ended before this start is no news
            with contextlib.suppress(DataError, OSError):
                self.told = {row.trial_id for row in trials.read(self.folder)[1] if row.status != RUNNING}
        thread = threading.Thread(target=self._keep, daemon=True)
        with self.live or contextlib.nullcontext():
            command.console.quiet = True
            thread.start()
            try:
                yield
            finally:
                self.closed.set()
                thread.join()
                command.console.quiet = False
                self.refresh()
