"""The edge between a command and its user: flags, errors, exit status, progress, tables.

A command is a frozen dataclass of arguments, whose docstring is its help, and a
function that takes it. `run` joins the two. A `DataError` or an operating-system
error is shown as one message with exit status 2; `--debug` shows the traceback.
"""

from __future__ import annotations

import errno
import operator
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from femur_tf.errors import DataError

A = TypeVar("A")
T = TypeVar("T")

Work = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="WORK", help="The study's work folder.")]
"""The first argument of every command that works on a study."""

# A file or a pipe has no width of its own; 120 columns hold the widest table.
console = Console(width=None if sys.stdout and sys.stdout.isatty() else 120)  # it may be closed
_errors = Console(stderr=True)
FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or a user's share of it, that is full; libraries leave out of which file."""
LOG_S = 60.0
"""From one line of progress to the next, where the output is a file or a pipe."""
SPEED_S = 600.0
"""The time left is that of the speed over so many seconds: a case may take a minute."""
AGAIN_S = 0.1
"""From a request to end that was lost to its repetition."""


def _typed_as(verb: str) -> str | None:
    """Return how this command is typed, as `python -m femur_tf.train`; None where it was not run as a module."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name} {verb}".rstrip() if spec else None


def run(function: Callable[[A], int | None], kind: type[A], verb: str = "", *, goes_on: bool = False) -> None:
    """Parse the command line into `kind`, call `function` with it and exit.

    Args:
      function: the command; what it returns is the exit status, None is 0.
      kind: a dataclass; its fields are the flags, its docstring the help.
      verb: what is typed between the module and the flags.
      goes_on: after an interruption with --overwrite, it goes on without it, where with it, it starts anew.
    """
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # a file may have a name of another encoding
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    parsed = tyro.cli(kind, args=[a for a in arguments if a != "--debug"], prog=_typed_as(verb))
    # Containers and batch systems end what they run so; the first process of a container would not end at all. A
    # terminal that closes hangs up; a command that is to go on then (nohup) ignores it.
    ends = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) != signal.SIG_IGN]
    before = {one: signal.signal(one, _end) for one in ends}
    sys.unraisablehook = _end_again
    try:
        status = function(parsed)
    except (DataError, OSError) as error:
        if debug:
            raise
        full = isinstance(error, OSError) and error.errno in FULL and not error.filename
        fail(f"expected room on the disk. Received: {error}. Free some, and run it again." if full else str(error))
        status = 2
    except KeyboardInterrupt as interrupt:
        if not getattr(parsed, "overwrite", False):
            fail("Interrupted. Run the same command again to go on.")
        elif goes_on:
            fail("Interrupted. Run the same command again, without --overwrite, to go on; with it, it starts anew.")
        else:
            fail("Interrupted. Run the same command again.")
        status = 128 + (interrupt.signal if isinstance(interrupt, _Ended) else signal.SIGINT)
    finally:
        sys.unraisablehook = sys.__unraisablehook__
        for one, handler in before.items():
            signal.signal(one, handler)
    sys.exit(status or 0)


class _Ended(KeyboardInterrupt):
    """What ends a command that the system asks to end, by a signal."""

    def __init__(self, number: int) -> None:
        """Keep the signal."""
        super().__init__()
        self.signal = number


def _end(number: int, _: object) -> None:
    """End as by Ctrl-C: what was done is told, nothing half written stays, and a run goes on later."""
    raise _Ended(number)


def _end_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Ask to end once more where the first time fell where Python lets nothing out, as of a weak reference's end."""
    error = unraisable.exc_value
    if isinstance(error, KeyboardInterrupt):
        number = error.signal if isinstance(error, _Ended) else signal.SIGINT
        threading.Timer(AGAIN_S, signal.pthread_kill, (threading.main_thread().ident, number)).start()
    else:
        sys.__unraisablehook__(unraisable)


def fail(message: str) -> None:
    """Show an error message on standard error."""
    _errors.print(f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Show a warning on standard error."""
    _errors.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Show a line on standard output."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


class _Logged(Progress):
    """A progress display that writes a line a minute where there is no terminal for a bar to move on."""

    def start(self) -> None:
        """Start the display and the first minute."""
        super().start()
        self.logged = time.monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Note that a task has come so much further."""
        super().advance(task_id, advance)
        self._log(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Note how far a task has come, or what it does."""
        super().update(task_id, **changes)
        self._log(task_id)

    def _log(self, task_id: TaskID) -> None:
        """Write a line, if one is due."""
        if self.console.is_terminal or time.monotonic() - self.logged < LOG_S:
            return
        self.logged = time.monotonic()
        columns = [column for column in self.columns if not isinstance(column, str | BarColumn)]
        (task,) = (task for task in self.tasks if task.id == task_id)
        self.console.print(" ".join(str(column(task)).strip() for column in columns), markup=False, highlight=False)


def progress(*, percent: bool = False) -> Progress:
    """Return a progress display: what, how much of it, time gone, time left. Use it as a context manager.

    In a log, where no bar can move, it is a line a minute.

    Args:
      percent: show a percentage instead of the number of items.
    """
    return _Logged(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn() if percent else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=SPEED_S,
    )


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
    """Yield `items` under a progress bar.

    Args:
      items: what to go through.
      label: shown before the bar.
      total: their number, where `items` has no length.
    """
    with progress() as display:
        bar = display.add_task(label, total=total or operator.length_hint(items) or None)
        for item in items:
            yield item
            display.advance(bar)


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print one table.

    Args:
      title: above the table.
      header: a name for each column, with its unit.
      rows: cells, shown by `str`; floats with three decimals.
    """
    # A title that is a str is read as markup, whatever `print` is told below.
    result = Table(title=Text(title), title_justify="left")
    for index, name in enumerate(header):
        result.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        result.add_row(*[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row])
    console.print(result, markup=False)
