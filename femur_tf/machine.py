"""What the machine lends to this process."""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading

import psutil


@functools.cache
def base_bytes() -> int:
    """Return the resident memory of this process at the first call, which comes before its first volume.

    What the allocator keeps after a volume is used again for the next one, so it is not counted twice.
    """
    return int(psutil.Process().memory_info().rss)


def cores() -> int:
    """Return the CPU cores that this process may use: fewer than the machine has, where its affinity is limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """End this worker process as soon as the command that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
