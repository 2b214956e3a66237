"""Memory and CPU of a process; read when somebody asks, and for the memory limit."""

from __future__ import annotations

import os
import time

__all__ = ["cpu_percent", "resident_bytes"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """Resident memory in bytes; 0 for a process that has gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
            return int(statm.read(128).split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):  # a process on its way out has an empty line, or none
        return 0


def cpu_percent(pid: int, created_ns: int) -> float:
    """CPU use since the start of the process in percent of one core (RoadRunner's CPUPercent); 0 if it has gone."""
    import psutil  # here: a server that is never asked does without

    lived = time.time() - created_ns / 1e9
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return round(100.0 * (times.user + times.system) / lived, 2) if lived > 0 else 0.0
