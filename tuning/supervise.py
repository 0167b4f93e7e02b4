"""Several workers on one machine: a chief and its workers as processes, each replaced when it dies.

    supervisor (this process, without TensorFlow)
        chief       the oracle, on a port of this machine
        worker-0    trains; its threads are its share of the cores
        worker-1

A dead worker is replaced under its own name, and is handed the trial that it had. A dead
chief is replaced at the same port; its workers wait for it. When this process dies, the
others end: each reads a pipe from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from femur_tf import command, files, machine
from tuning import launch, trials

LOCAL = "FEMUR_TF_SUPERVISED"
"""Set in the processes that this module starts."""
CHIEF = "chief"
"""keras-tuner takes a process of this name for the chief."""
ORPHANED = 4
"""Exit status of a process whose supervisor died."""
DEATHS = 5
"""In a row, without a trial that ended: then the search stops."""
TURN_S = 0.3
LEAVE_S = 20.0
"""How long workers have to leave when the chief has."""
LATE_S = 60.0
"""How long after its hours a search may still run."""
ORDERLY = (0, launch.STOPPED_STATUS)


def is_supervised() -> bool:
    """Return whether this process was started by a supervisor."""
    return LOCAL in os.environ


def end_with_supervisor() -> None:
    """End this process as soon as its supervisor is gone."""

    def watch() -> None:
        while os.read(0, 1):  # nothing is ever written
            pass
        os._exit(ORPHANED)

    threading.Thread(target=watch, daemon=True).start()


def ended_path(folder: Path) -> Path:
    """Return where a chief says why its search ended."""
    return folder / "ended.json"


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shares(workers: int) -> int:
    """Return how many threads each worker computes with."""
    cores = machine.cores()
    return max(1, cores // workers)


@dataclasses.dataclass
class Member:
    """One process of the search."""

    name: str
    flags: tuple[str, ...]
    threads: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    """In a row."""

    def start(self) -> None:
        """Start the process; what it prints is added to its log."""
        self._close()
        count = str(self.threads)
        environment = {
            **os.environ,
            LOCAL: "1",
            "KERASTUNER_TUNER_ID": self.name,
            "TF_NUM_INTRAOP_THREADS": count,
            "TF_NUM_INTEROP_THREADS": count,
            "OMP_NUM_THREADS": count,
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # workers share a GPU
        }
        if self.name == CHIEF:
            environment["CUDA_VISIBLE_DEVICES"] = "-1"  # it trains nothing
        line = [sys.executable, "-m", "tuning.search", *self.flags]
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment, start_new_session=True
            )

    def status(self) -> int | None:
        """Return the exit status, None while the process runs."""
        return None if self.process is None else self.process.poll()

    def stop(self) -> None:
        """End the process."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        """Close the pipe of a process that has ended."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    def last_words(self) -> str:
        """Return the last line of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "nothing in its log"


class Team:
    """The chief and the workers of a search."""

    def __init__(self, limits: launch.Limits, flags: tuple[str, ...], workers: int) -> None:
        """Name the members; none is started.

        Args:
          limits: of the search; the chief keeps them, a chief that was replaced counts its hours anew.
          flags: of the command that was typed, without role, workers and overwrite.
          workers: their number.
        """
        self.limits, self.folder = limits, limits.folder
        folder = self.folder
        where = ("--chief", f"127.0.0.1:{free_port()}")
        self.chief = Member(CHIEF, (*flags, *where, "--role", "chief"), 1, folder / "chief.log")
        self.workers = [
            Member(name, (*flags, *where, "--role", "worker"), shares(workers), folder / f"{name}.log")
            for name in (f"worker-{number}" for number in range(workers))
        ]
        self.ended = 0

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Start all; end those that still run when the block does."""
        files.remove(ended_path(self.folder))
        members = [self.chief, *self.workers]
        try:
            for member in members:
                member.start()
            yield
        finally:
            for member in reversed(members):
                member.stop()

    def _progress(self) -> bool:
        """Return whether a trial has ended since the last call."""
        _, rows = trials.read(self.folder)
        ended = sum(row.status != trials.RUNNING for row in rows)
        before, self.ended = self.ended, ended
        return ended > before

    def _replace(self, member: Member) -> str | None:
        """Start a member anew; return why not, where it died too often."""
        if self._progress():
            for each in (self.chief, *self.workers):
                each.deaths = 0
        member.deaths += 1
        if member.deaths > DEATHS:
            return f"{member.name} ended {DEATHS} times without a trial in between: {member.last_words()}"
        command.warn(f"{member.name} ended with status {member.status()}; it is started again.")
        member.start()
        return None

    def run(self) -> str | None:
        """Replace what dies until the chief leaves in order.

        Returns:
          Why the search ended before its last trial, or None.
        """
        late_s = 0.0
        while True:
            time.sleep(TURN_S)
            late_s += TURN_S if self.limits.hours() else 0.0
            if late_s > LATE_S:
                return self.limits.hours()
            if self.chief.status() in ORDERLY:
                break
            for member in (self.chief, *self.workers):
                status = member.status()
                if status is None or (member is not self.chief and status in ORDERLY):
                    continue
                reason = self._replace(member)
                if reason is not None:
                    return reason
        end = time.monotonic() + LEAVE_S
        while any(worker.status() is None for worker in self.workers) and time.monotonic() < end:
            time.sleep(TURN_S)
        stopped: str | None = files.read_json(ended_path(self.folder))["stopped"]
        return stopped
