"""What this process may use of the machine, and how it must be set up to use it well. No torch."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_CGROUP = Path("/sys/fs/cgroup")


def keep_freed_memory() -> bool:
    """Make malloc keep what is freed instead of handing it back to the kernel. False where malloc has no such setting.

    With glibc's defaults every large temporary is mapped, faulted in page by page and unmapped again on each call,
    which costs a step of a small model as much as its arithmetic.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None, use_errno=True).mallopt
    except (OSError, AttributeError):
        return False  # musl has no mallopt
    largest = (1 << 31) - 1
    # Older glibc takes no threshold above half an arena's heap, 32 MiB.
    threshold = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 1 << 25)
    return bool(threshold and mallopt(_M_TRIM_THRESHOLD, largest) and mallopt(_M_TOP_PAD, 1 << 26))


def usable_cores() -> int:
    """Cores this process may run on: its affinity mask, less if the container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _read(_CGROUP / "cpu.max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def available_bytes() -> int:
    """Memory that can be taken without pushing anyone out: the kernel's estimate, less if the container has a limit."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _read(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        available = min(available, int(limit) - int(used))
    return max(0, available)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
