"""What the machine lends to this process."""

from __future__ import annotations

import os


def cores() -> int:
    """Return the CPU cores that this process may use: fewer than the machine has, where its affinity is limited."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
