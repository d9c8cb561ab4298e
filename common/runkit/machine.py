"""What the operating system gives this process: cores and memory, and how memory is allocated."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# By default glibc returns each large activation to the kernel and faults its pages in again: 1.7× slower. One arena,
# because the arenas of all threads but the first map blocks above 64 MB whatever the threshold is.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_ARENA_MAX": "1"}
"""Environment variables that make glibc keep freed memory."""
_CGROUP = "/sys/fs/cgroup"
_CGROUP_MEMORY = (
    (f"{_CGROUP}/memory.max", f"{_CGROUP}/memory.current"),
    (f"{_CGROUP}/memory/memory.limit_in_bytes", f"{_CGROUP}/memory/memory.usage_in_bytes"),
)
"""Files with the limit and the use of memory, of cgroup v2 and v1."""


def usable_cores() -> int:
    """Number of cores that this process may use: its affinity (Slurm, cpusets), limited by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # without cgroup v2 the file is missing; "max" is not a number
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def memory_bytes() -> tuple[int, int]:
    """Total and available main memory of this process, in bytes, limited by its container."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total = available = pages
    with contextlib.suppress(OSError, IndexError, ValueError):  # not Linux
        line = Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]
        available = int(line) * 1024
    for limit, used in _CGROUP_MEMORY:
        with contextlib.suppress(OSError, ValueError):  # no such cgroup; "max" is not a number
            most = int(Path(limit).read_text())
            total, available = min(total, most), min(available, max(0, most - int(Path(used).read_text())))
    return total, available
