"""Memory and CPU of processes, and how many more of them fit; read when somebody asks, and for limits.

Straight from /proc where there is one: a look at one worker costs some 10 µs and no thread.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence

__all__ = ["available_bytes", "cpu_percent", "memory_bytes", "resident_bytes", "workers_that_fit"]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
#: This share of a machine's (or container's) memory is left alone.
RESERVE_SHARE = 0.1
#: What a worker is taken to need where none runs that could be measured.
WORKER_BYTES_GUESS = 64 * 1024 * 1024
#: No more are ever said to fit.
FIT_MAX = 10_000


def resident_bytes(pid: int) -> int:
    """Resident memory in bytes; 0 for a process that has gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as statm:
            return int(statm.read(128).split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):  # a process on its way out has an empty line, or none
        return 0


def memory_bytes(pid: int, *, proportional: bool) -> int:
    """Resident memory in bytes, or, `proportional`, its PSS: pages shared with others count by their share.

    PSS costs the kernel a walk through the process's memory, about a millisecond; resident memory is taken where it
    cannot be read. 0 for a process that has gone.
    """
    if proportional:
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    return resident_bytes(pid)


def cpu_percent(pid: int, created_ns: int) -> float:
    """CPU use since the start of the process in percent of one core (RoadRunner's CPUPercent); 0 if it has gone."""
    import psutil  # here: a server that is never asked does without

    lived = time.time() - created_ns / 1e9
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return round(100.0 * (times.user + times.system) / lived, 2) if lived > 0 else 0.0


def available_bytes(root: str = "/") -> tuple[int, int]:
    """Memory that can be had now and in all, in bytes: of the machine, or of this process's cgroup where that is less.

    (0, 0) where neither can be read. `root` is where /proc and /sys are found.
    """
    found = list(_of_machine(root)) + list(_of_cgroup(root))
    if not found:
        return 0, 0
    return min(free for free, _ in found), min(total for _, total in found)


def _of_machine(root: str) -> Iterable[tuple[int, int]]:
    values = {}
    try:
        with open(os.path.join(root, "proc/meminfo"), encoding="ascii") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    values[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return
    if len(values) == 2:
        yield values["MemAvailable"], values["MemTotal"]


def _of_cgroup(root: str) -> Iterable[tuple[int, int]]:
    """Each level of cgroup v2 that has a limit (or the one of v1)."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8") as file:
            lines = [line.strip().split(":", 2) for line in file]
    except (OSError, UnicodeDecodeError):
        return
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:
            names = ("memory.max", "memory.current", "memory.stat")
            base = os.path.join(root, "sys/fs/cgroup")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
            base = os.path.join(root, "sys/fs/cgroup/memory")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            limit = _read_limit(os.path.join(base, *parts[:depth]), names)
            if limit is not None:
                yield limit


def _read_limit(folder: str, names: tuple[str, str, str]) -> tuple[int, int] | None:
    try:
        with open(os.path.join(folder, names[0]), "rb") as file:
            text = file.read().strip()
        with open(os.path.join(folder, names[1]), "rb") as file:
            used = int(file.read())
    except (OSError, ValueError):
        return None
    if not text.isdigit() or int(text) >= 1 << 60:
        return None
    reclaimable = 0
    with contextlib.suppress(OSError, ValueError), open(os.path.join(folder, names[2]), "rb") as file:
        for line in file:
            if line.startswith(b"inactive_file "):
                reclaimable = int(line.split()[1])  # page cache that goes when memory is wanted
    return max(0, int(text) - used + reclaimable), int(text)


def workers_that_fit(pids: Sequence[int], root: str = "/") -> int:
    """For how many more workers like these there is memory, a reserve left alone; many where that cannot be known."""
    free, total = available_bytes(root)
    if not total:
        return FIT_MAX
    sizes = sorted(size for size in map(resident_bytes, pids[:16]) if size)
    each = sizes[len(sizes) // 2] if sizes else WORKER_BYTES_GUESS
    return max(0, min(FIT_MAX, int((free - total * RESERVE_SHARE) // each)))
