"""What the machine lends to this process."""

from __future__ import annotations

import multiprocessing
import os
import threading


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
