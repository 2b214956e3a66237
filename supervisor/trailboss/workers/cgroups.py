"""A control group (v2) of its own for each worker, where this process may make some: limits, a sure kill, OOM by name.

Where systemd delegates (`Delegate=yes`), or in a container with its cgroup mounted writable, the folder of this process's
own group is the base. Groups that pass limits on may not hold processes themselves, so the server moves, with what it has
started, into `trailboss-supervisor` below the base; the workers' groups lie in `trailboss-INSTANCE`, one leaf each. A
strange process in the base is left where it is, and then there are groups without limits.

The server holds a lock on its folder as long as it lives. A folder that nobody holds is what a killed server has left
behind: its processes are killed and it is removed. A leaf outlives its worker only as long as the kernel needs to let go.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable

import trio

from trailboss.config.schema import ProcessConfig

__all__ = [
    "CONTROLLERS",
    "Cgroups",
    "CgroupsUnavailable",
    "Leaf",
    "controllers_for",
    "limits_for",
    "own_folder",
    "wants_group",
]

#: Controllers that limits of workers need, whichever of them are set now: a reload may set others.
CONTROLLERS = frozenset({"cpu", "memory", "pids"})
SUPERVISOR = "trailboss-supervisor"
PREFIX = "trailboss-"
#: Rounds of moving what is in the base: processes may fork meanwhile.
MOVES_MAX = 5
#: Groups of killed processes are gone after some milliseconds; they are tried for so long.
REMOVE_SECONDS_MAX = 2.0

_MEGABYTE = 1024 * 1024


class CgroupsUnavailable(Exception):
    """This process may not make groups; the text says why, for people."""


def limits_for(process: ProcessConfig) -> dict[str, str]:
    """Return what to write into the files of a leaf: file name -> value."""
    limits: dict[str, str] = {}
    if process.memory_high:
        limits["memory.high"] = str(process.memory_high * _MEGABYTE)
    if process.memory_max:
        limits["memory.max"] = str(process.memory_max * _MEGABYTE)
        # All of a worker or nothing of it: one that has lost a child is no worker any more.
        limits["memory.oom.group"] = "1"
    if process.cpu_weight:
        limits["cpu.weight"] = str(process.cpu_weight)
    if process.pids_max:
        limits["pids.max"] = str(process.pids_max)
    return limits


def wants_group(process: ProcessConfig) -> bool:
    """Say whether each worker of a pool is to have a control group of its own."""
    return bool(limits_for(process)) if process.cgroup is None else process.cgroup


def controllers_for(process: ProcessConfig) -> frozenset[str]:
    """Return the controllers that the limits of a pool need."""
    return frozenset(name.partition(".")[0] for name in limits_for(process))


def own_folder(root: str = "/", process: str = "self") -> str:
    """Return the folder of a process's own group. Raises CgroupsUnavailable. `root` is where /proc and /sys are."""
    try:
        own = next(
            line[3:]
            for line in _read(os.path.join(root, "proc", process, "cgroup")).splitlines()
            if line[:3] == "0::"
        )
        mounts = _read(os.path.join(root, "proc/self/mountinfo")).splitlines()
    except (OSError, StopIteration):
        raise CgroupsUnavailable("this machine has no cgroup v2") from None
    for line in mounts:
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] != "cgroup2":
            continue
        shown, mounted = (_unescaped(word) for word in before.split(" ")[3:5])
        inside = os.path.relpath(own, shown)
        if inside.split(os.sep, 1)[0] == "..":
            continue
        folder = os.path.normpath(os.path.join(root, mounted.lstrip("/"), inside))
        if os.path.isdir(folder):
            return folder
    raise CgroupsUnavailable("the folder of this process's cgroup is not mounted")


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


class Leaf:
    """The group of one worker."""

    __slots__ = ("_folder",)

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @property
    def procs(self) -> str:
        """The file that a process writes its pid to in order to be in here."""
        return os.path.join(self._folder, "cgroup.procs")

    def limit(self, limits: Iterable[tuple[str, str]]) -> list[str]:
        """Set limits; returns the names of those that could not be set."""
        refused = []
        for name, value in limits:
            try:
                _write(os.path.join(self._folder, name), value)
            except OSError:
                refused.append(name)
        return refused

    def kill(self) -> None:
        """SIGKILL everything in here, whatever session or group it has moved to."""
        _kill(self._folder)

    def oom_kills(self) -> int:
        """How many processes in here the kernel has killed for want of memory."""
        try:
            lines = _read(os.path.join(self._folder, "memory.events")).splitlines()
            return next((int(line[9:]) for line in lines if line.startswith("oom_kill ")), 0)
        except (OSError, ValueError):
            return 0

    def remove(self) -> bool:
        """Remove the group; False while there is still something in it."""
        return _remove(self._folder)


class Cgroups:
    """The groups of one server. Make it by :meth:`open`; :meth:`close` when no worker is left."""

    def __init__(self, folder: str, lock: int, missing: frozenset[str], reason: str) -> None:
        #: Holds the leaves; the guard kills it as a whole.
        self.folder = folder
        #: Controllers that were asked for and cannot be had, and why.
        self.missing = missing
        self.reason = reason
        self._lock = lock
        self._number = 0
        self._leftover: list[Leaf] = []

    @classmethod
    def open(cls, instance: str, controllers: frozenset[str], root: str = "/") -> Cgroups:
        """Make the folder of this server, remove those of dead ones. Raises CgroupsUnavailable.

        `controllers`: what leaves need; what cannot be had is in `missing`. `instance` makes the name.
        """
        own = own_folder(root)
        base = os.path.dirname(own) if os.path.basename(own) == SUPERVISOR else own
        folder = os.path.join(base, PREFIX + instance)
        try:
            os.mkdir(folder)
            lock = _locked(folder)
        except OSError as error:
            raise CgroupsUnavailable(f"{base} is not delegated to this process: {error.strerror}") from None
        sweep(base, but=folder)
        missing, reason = _enable(base, folder, controllers)
        return cls(folder, lock, missing, reason)

    def new_leaf(self, name: str) -> Leaf | None:
        """Make the group of a new worker; None where the kernel refuses."""
        self._try_leftover()
        self._number += 1
        folder = os.path.join(self.folder, f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}-{self._number}")
        try:
            os.mkdir(folder)
        except OSError:
            return None
        return Leaf(folder)

    def discard(self, leaf: Leaf) -> None:
        """Remove the group of a worker that has ended, now or as soon as the kernel lets it go."""
        if not leaf.remove():
            self._leftover.append(leaf)
        self._try_leftover()

    def _try_leftover(self) -> None:
        self._leftover = [leaf for leaf in self._leftover if not leaf.remove()]

    async def close(self) -> None:
        """Kill what is left in the groups and remove them; at most 2 s. Not to be interrupted."""
        with trio.move_on_after(REMOVE_SECONDS_MAX, shield=True):
            _kill(self.folder)
            while not _remove_tree(self.folder):  # noqa: ASYNC110 - the kernel tells nobody
                await trio.sleep(0.02)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _locked(folder: str) -> int:
    """Open and lock a folder. Raises OSError where somebody holds it, BlockingIOError among others."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def sweep(base: str, but: str) -> None:
    """Kill and remove what servers that are dead have left in `base`."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(base):
            if not entry.name.startswith(PREFIX) or entry.name == SUPERVISOR or entry.path == but:
                continue
            with contextlib.suppress(OSError):
                lock = _locked(entry.path)
                try:
                    _kill(entry.path)
                    _remove_tree(entry.path)
                finally:
                    os.close(lock)


def _enable(base: str, folder: str, wanted: frozenset[str]) -> tuple[frozenset[str], str]:
    """Have `base` and `folder` pass `wanted` on; returns what they cannot, and why."""
    if not wanted:
        return frozenset(), ""
    there = frozenset(_words(base, "cgroup.controllers"))
    missing, reason = wanted - there, "the controller is not available to this group"
    possible = wanted & there
    needed = possible - frozenset(_words(base, "cgroup.subtree_control"))
    try:
        # The root of all groups alone (it has no cgroup.events) may hold processes and pass limits on.
        if needed and os.path.exists(os.path.join(base, "cgroup.events")):
            _make_room(base)
        for group, names in ((base, needed), (folder, possible)):
            if names:
                _write(
                    os.path.join(group, "cgroup.subtree_control"),
                    " ".join(f"+{name}" for name in sorted(names)),
                )
    except OSError as error:
        return wanted, error.strerror or str(error)
    return missing, reason if missing else ""


def _make_room(base: str) -> None:
    """Move this process and what it has started into a group of their own. Raises OSError for a strange process."""
    home = os.path.join(base, SUPERVISOR)
    with contextlib.suppress(FileExistsError):
        os.mkdir(home)
    for _ in range(MOVES_MAX):
        pids = [int(word) for word in _words(base, "cgroup.procs")]
        if not pids:
            return
        parents = {pid: _parent(pid) for pid in pids}
        for pid in pids:
            if not _is_ours(pid, parents):
                raise OSError(0, f"process {pid}, which is not this server's, is in the same group")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _write(os.path.join(home, "cgroup.procs"), str(pid))


def _parent(pid: int) -> int:
    try:
        return int(_read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return os.getpid()  # it has gone


def _is_ours(pid: int, parents: dict[int, int]) -> bool:
    own = os.getpid()
    for _ in range(64):
        if pid == own:
            return True
        if pid <= 1:
            return False
        pid = parents[pid] if pid in parents else _parent(pid)
    return False


def _kill(folder: str) -> None:
    with contextlib.suppress(OSError):
        _write(os.path.join(folder, "cgroup.kill"), "1")


def _remove_tree(folder: str) -> bool:
    """Remove a folder of leaves; False while something is in one of them."""
    try:
        leaves = [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    # A worker may have made groups of its own below its leaf where it runs as the server's user.
    gone = [_remove_tree(leaf) for leaf in leaves]  # each is tried
    return all(gone) and _remove(folder)


def _remove(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _words(folder: str, name: str) -> list[str]:
    return _read(os.path.join(folder, name)).split()


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
