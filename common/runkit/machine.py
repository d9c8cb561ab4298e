"""What the operating system gives this process: cores, and how memory is allocated."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# By default glibc returns each large activation to the kernel and faults its pages in again: 1.7× slower. One arena,
# because the arenas of all threads but the first map blocks above 64 MB whatever the threshold is.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_ARENA_MAX": "1"}
"""Environment variables that make glibc keep freed memory."""


def usable_cores() -> int:
    """Number of cores that this process may use: its affinity (Slurm, cpusets), limited by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # without cgroup v2 the file is missing; "max" is not a number
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores
