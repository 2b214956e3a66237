"""GROWING: workers that really use more and more memory, and workers that are killed as for want of it.

An application cannot be told from outside to leak. But its interpreter can be given a few lines to run before it: PHP by a
further folder of .ini files (`auto_prepend_file`; needs pcntl), Python by a `sitecustomize`. They do nothing until a
real-time signal comes, at which the worker keeps some megabytes more, in the middle of what it does. Whether a worker has
them is seen in /proc by the signal that it catches; a worker of another language, or one that is started without its
environment, does not, and is never sent the signal, which would end it.

The OOM killer is asked where a worker has a control group with a memory limit of its own: the limit is put below what it
uses, and the kernel does the rest. For that each server is put into a group of its own, where groups with memory are
delegated to the run. Elsewhere the same is done by hand: first in line by its score, then SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from trailboss.chaos.processes import Seen
from trailboss.workers.cgroups import CONTROLLERS, PREFIX, Cgroups, CgroupsUnavailable, own_folder

__all__ = [
    "GROW",
    "GROWING_WORKER",
    "STEP_BYTES",
    "ServerGroups",
    "can_grow",
    "grow",
    "kill_for_memory",
    "limit_to_pass",
    "limited_group",
    "write_preload",
]

#: Nobody uses it: glibc takes the lowest real-time signals, and applications that use some begin there as well.
GROW: Final = signal.SIGRTMAX - 3
#: What one signal adds.
STEP_BYTES: Final = 8 << 20
#: A limit that workers are to grow above lies so far above what they use; the user's own where it lies not much further.
ROOM_MEGABYTES: Final = 24
ROOM_MEGABYTES_MAX: Final = 256
#: For a worker that takes signals only between two steps of its interpreter, thus when it has something to do.
TAKE_SECONDS: Final = 1.0
#: For the kernel to kill.
KERNEL_SECONDS: Final = 5.0

#: Name of the script, in the folder of the run, that starts a worker with the lines below.
GROWING_WORKER: Final = "growing_worker"

_SCRIPT: Final = """#!/bin/sh
preload=$(dirname "$0")/preload
PYTHONPATH=$preload${PYTHONPATH:+:$PYTHONPATH}
PHP_INI_SCAN_DIR=${PHP_INI_SCAN_DIR-}:$preload
export PYTHONPATH PHP_INI_SCAN_DIR
exec "$@"
"""

_PYTHON: Final = f'''"""Keeps {STEP_BYTES >> 20} MiB more at each signal {GROW}; then the sitecustomize that there would be without this one."""
import os
import signal
import sys

kept = []


def grow(number, frame):
    kept.append(b"x" * {STEP_BYTES})


try:
    signal.signal({GROW}, grow)
except (ValueError, OSError):
    pass

ours = sys.modules.pop("sitecustomize", None)
here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]
try:
    import sitecustomize
except ImportError:
    sys.modules["sitecustomize"] = ours
'''

_PHP: Final = f"""<?php
// Keeps {STEP_BYTES >> 20} MiB more at each signal {GROW}; then the auto_prepend_file that there would be without this one.
(static function () {{
    if (function_exists('pcntl_async_signals') && pcntl_signal({GROW}, static function () {{
        static $kept = [];
        ini_set('memory_limit', '-1');
        $kept[] = str_repeat('x', {STEP_BYTES});
    }})) {{
        pcntl_async_signals(true);
    }}
}})();
foreach (array_reverse(explode(',', php_ini_loaded_file() . ',' . php_ini_scanned_files())) as $trailboss_ini) {{
    $trailboss_ini = @parse_ini_file(trim($trailboss_ini), false, INI_SCANNER_RAW) ?: [];
    $trailboss_ini = $trailboss_ini['auto_prepend_file'] ?? '';
    if ($trailboss_ini !== '' && $trailboss_ini !== __FILE__) {{
        include $trailboss_ini;
        break;
    }}
}}
unset($trailboss_ini);
"""


def write_preload(folder: Path) -> None:
    """Write what workers run before the application, and the script that has them do so."""
    preload = folder / "preload"
    preload.mkdir(exist_ok=True)
    preload.chmod(0o755)  # workers may be of another user
    for name, text in (
        ("sitecustomize.py", _PYTHON),
        ("growing.php", _PHP),
        ("growing.ini", f'auto_prepend_file = "{preload}/growing.php"\n'),
    ):
        (preload / name).write_text(text, "utf-8")
        (preload / name).chmod(0o644)
    script = folder / GROWING_WORKER
    script.write_text(_SCRIPT, "utf-8")
    script.chmod(0o755)


def limit_to_pass(largest: int, own: int, kernel: int) -> int | None:
    """Return the limit in MB above which workers are to grow; None where the kernel's own limit leaves no room for that.

    `largest`: bytes of the largest worker. `own`: the user's max_worker_memory, `kernel`: their memory_max; 0 for none.
    """
    used = (largest >> 20) + 1
    limit = own if 0 < own - used <= ROOM_MEGABYTES_MAX else used + ROOM_MEGABYTES
    passed = limit + 2 * (STEP_BYTES >> 20)
    return limit if not kernel or passed < kernel else None


def can_grow(pid: int) -> bool:
    """Whether a process catches the signal at which it grows."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (GROW - 1) & 1)


async def grow(process: Seen, used: Callable[[], int], target: int, wake: Callable[[], object]) -> bool:
    """Make a worker use `target` bytes, signal by signal; False where it does not take them.

    `used` measures it. `wake` gives the workers something to do: a sleeping one may not look at its signals.
    """
    while process.alive and (before := used()) < target:
        if not can_grow(process.pid) or not process.send(GROW):
            return False
        if not await _taken(process, used, before):
            wake()
            if not await _taken(process, used, before):
                return False
    return process.alive


async def _taken(process: Seen, used: Callable[[], int], before: int) -> bool:
    with trio.move_on_after(TAKE_SECONDS):
        while process.alive and used() < before + STEP_BYTES // 2:  # noqa: ASYNC110  it tells nobody
            await trio.sleep(0.01)
        return True
    return False


class ServerGroups:
    """A control group for each server of a run, in which it can limit its workers; none where that cannot be had.

    The server's own could not be ours: a group that passes limits on may hold no process beside the server's.
    """

    def __init__(self, name: str, root: str = "/") -> None:
        self._groups: Cgroups | None = None
        with contextlib.suppress(CgroupsUnavailable):
            self._groups = Cgroups.open(f"chaos-{name}", CONTROLLERS, root)

    async def open(self) -> bool:
        """Say whether there are such groups. What was made in vain is removed."""
        if self._groups is not None and "memory" in self._groups.missing:
            await self.close()
        return self._groups is not None

    def new_group(self) -> str:
        """Make a group for a server; returns the file into which that writes itself, "" without groups."""
        leaf = self._groups.new_leaf("server") if self._groups is not None else None
        return leaf.procs if leaf is not None else ""

    async def close(self) -> None:
        """Kill what is left in them, and remove them."""
        if self._groups is not None:
            await self._groups.close()
            self._groups = None


def limited_group(pid: int, root: str = "/") -> Path | None:
    """Return the control group of a worker where it has one with a memory limit of its own that we may set."""
    try:
        folder = Path(own_folder(root, str(pid)))
    except CgroupsUnavailable:
        return None
    of_a_server = folder.parent.name.startswith(PREFIX)
    return folder if of_a_server and os.access(folder / "memory.max", os.W_OK) else None


async def kill_for_memory(process: Seen, root: str = "/") -> bool:
    """Have the kernel kill a worker for want of memory, or do as it would; returns whether it was the kernel.

    A worker that the kernel had reason to kill, and did not, is killed all the same.
    """
    group = limited_group(process.pid, root)
    if group is not None:
        with trio.move_on_after(KERNEL_SECONDS):
            # The kernel answers when there is room again, thus by somebody's death.
            await trio.to_thread.run_sync(_write, group / "memory.max", "4096", abandon_on_cancel=True)
            while process.alive:  # noqa: ASYNC110  the kernel tells nobody
                await trio.sleep(0.005)
            return True
    if process.alive:
        _write(Path(f"/proc/{process.pid}/oom_score_adj"), "1000")
    process.send(signal.SIGKILL)
    return False


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError:
        return  # it has gone, or may not be written: what happens to the worker is looked at
