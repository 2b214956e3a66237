"""A control group tree of ordinary files, for machines where nobody delegates one.

Folders made in it get the files that the kernel would make, and can be removed with them. What is written to
`cgroup.kill` kills nobody, and whoever writes itself into a `cgroup.procs` stands there afterwards.
"""

from __future__ import annotations

import os
import pathlib

import pytest

__all__ = ["CgroupTree"]

_FILES = {
    "cgroup.controllers": "",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cgroup.kill": "",
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
    "cpu.weight": "100\n",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n",
    "memory.high": "max\n",
    "memory.max": "max\n",
    "memory.oom.group": "0\n",
    "pids.max": "max\n",
}


class CgroupTree:
    """`root` holds proc/self and the mounted tree; `base` is this process's own group in it."""

    def __init__(self, root: pathlib.Path, monkeypatch: pytest.MonkeyPatch, own: str = "/service") -> None:
        self.root = root
        self._make, self._remove = os.mkdir, os.rmdir
        self.mount = root / "sys/fs/cgroup"
        self.base = self.mount / own.lstrip("/")
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(f"4:memory:/other\n0::{own}\n")
        (root / "proc/self/mountinfo").write_text(
            "20 1 0:5 / /proc rw - proc proc rw\n31 1 0:38 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
        )
        monkeypatch.setattr(os, "mkdir", self.mkdir)
        monkeypatch.setattr(os, "rmdir", self.rmdir)
        self.base.mkdir(parents=True)
        (self.base / "cgroup.controllers").write_text("cpu memory pids\n")
        #: Folders that cannot be removed yet.
        self.held: set[str] = set()

    def mkdir(self, path: str, mode: int = 0o777, **more: int) -> None:
        """As os.mkdir; in the tree with the files that the kernel makes."""
        self._make(path, mode, **more)
        if os.fspath(path).startswith(f"{self.mount}"):
            for name, text in _FILES.items():
                pathlib.Path(path, name).write_text(text)

    def rmdir(self, path: str, **more: int) -> None:
        """As os.rmdir, also where files of the kernel are in it."""
        if not os.fspath(path).startswith(f"{self.mount}"):
            self._remove(path, **more)
        elif path in self.held or any(entry.is_dir() for entry in pathlib.Path(path).iterdir()):
            raise OSError(16, os.strerror(16), path)
        else:
            for entry in pathlib.Path(path).iterdir():
                entry.unlink()
            self._remove(path, **more)
