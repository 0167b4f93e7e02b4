"""What the machine lends to this process."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from femur_tf.errors import DataError

LENT = 0.95
"""Share of the memory that a process may reach; the rest is the system's, and pages of files."""


@functools.cache
def base_bytes() -> int:
    """Return the resident memory of this process at the first call, which comes before its first volume.

    What the allocator keeps after a volume is used again for the next one, so it is not counted twice.
    """
    return int(psutil.Process().memory_info().rss)


def cores() -> int:
    """Return the CPU cores that this process may use: fewer than the machine has, where its affinity is limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory that this process may use: less than the machine has, where its control group is limited.

    In a container the group is the container's; a process beyond its limit is killed without a word.
    """
    return min([psutil.virtual_memory().total, *_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def within(wanted_bytes: int) -> int:
    """Return what a process may take of the memory that it is meant to reach at most."""
    return min(wanted_bytes, int(LENT * memory_bytes()))


def too_little(least_mb: int, wanted_mb: int, of: str) -> DataError:
    """Return the error of a limit that is too low.

    Args:
      least_mb: that would do, MB.
      wanted_mb: `--max-memory`.
      of: what it is to hold, with its voxels along the axes.
    """
    text = f"--max-memory: expected at least {least_mb} MB for {of} voxels. Received: {wanted_mb} MB"
    lent_mb = within(wanted_mb * 10**6) // 10**6
    if lent_mb < wanted_mb:
        text += f", of which this machine or container lends {lent_mb} MB: give it more memory"
    return DataError(f"{text}.")


def _group_limits(own: Path, root: Path) -> Iterator[int]:
    """Yield the limits of a process's control group and of those above it, bytes.

    Args:
      own: names the group, one line a hierarchy: `0::/group` of version 2, `5:memory:/group` of version 1.
      root: where the groups are.
    """
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for line in lines:
        _, kinds, group = line.split(":", 2)
        names = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}.get(kinds)
        if names is None:
            continue
        top = root / names[0]
        place = top / group.strip("/")
        for folder in (place, *place.parents):  # a container may see its own group as the root
            text = (folder / names[1]).read_text(encoding="utf-8").strip() if (folder / names[1]).is_file() else ""
            if text.isdecimal():  # "max" where there is none
                yield int(text)
            if folder == top:
                break


def end_with_parent() -> None:
    """End this worker process as soon as the command that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
