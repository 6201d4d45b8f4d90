"""The machine that a run is on: what it is, and how much of its memory the run takes."""

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def hardware() -> dict[str, Any]:
    """Describe the hardware: the GPU's name where there is one, the number of CPU threads."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "threads": torch.get_num_threads()}


def host_memory() -> int:
    """The memory that this process may have, in bytes: the machine's, or less where its control group has less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not Linux, or "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)


def reset_peaks() -> None:
    """Forget earlier peaks, where the system lets one: the cells of a sweep share a process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak then covers the process's whole life
        Path("/proc/self/clear_refs").write_text("5")


def host_peak() -> int:
    """Return the highest resident memory since :func:`reset_peaks`, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def device_peak() -> int | None:
    """The most memory that tensors held on the current GPU since :func:`reset_peaks`, in bytes; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
