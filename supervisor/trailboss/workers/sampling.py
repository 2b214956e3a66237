"""Memory and CPU of a process, from /proc; read when somebody asks, and for the memory limit."""

from __future__ import annotations

import os
import time

__all__ = ["cpu_percent", "resident_bytes"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Resident memory in bytes; 0 for a process that has gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def cpu_percent(pid: int, created_ns: int) -> float:
    """CPU use since the start of the process in percent of one core (RoadRunner's CPUPercent); 0 if it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, IndexError, ValueError):
        return 0.0
    lived = time.time() - created_ns / 1e9
    return round(100.0 * used / lived, 2) if lived > 0 else 0.0
