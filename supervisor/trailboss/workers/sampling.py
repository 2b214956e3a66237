"""Memory and CPU of a process; read when somebody asks, and for the memory limit."""

from __future__ import annotations

import time

__all__ = ["cpu_percent", "resident_bytes"]


def resident_bytes(pid: int) -> int:
    """Resident memory in bytes; 0 for a process that has gone."""
    import psutil  # here: a server that is never asked does without

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def cpu_percent(pid: int, created_ns: int) -> float:
    """CPU use since the start of the process in percent of one core (RoadRunner's CPUPercent); 0 if it has gone."""
    import psutil

    lived = time.time() - created_ns / 1e9
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return round(100.0 * (times.user + times.system) / lived, 2) if lived > 0 else 0.0
