"""Which files matter to a reload, and which folders have to be watched for them. Reads folders, decides, nothing else.

Only folders that can hold such files are watched, each by itself: a `node_modules` of 40,000 folders costs nothing, where
a recursive watch would use up the machine's inotify watches before the first line of code is changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

__all__ = ["FOLDERS_MAX", "Rules", "is_folder"]

FOLDERS_MAX: Final = 8000
"""Folders that are watched at most; a kernel allows a user so many by default."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Patterns of file names, and folders that are left out: a name, or the end of a path such as `var/cache`."""

    patterns: Sequence[str]
    ignore: Sequence[str]

    def takes_file(self, path: str) -> bool:
        """Whether a change of this file matters, wherever it is."""
        name = os.path.basename(path)
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def takes_folder(self, path: str) -> bool:
        """Whether files in this folder matter; the folders above it are not looked at."""
        name = os.path.basename(path)
        for ignored in self.ignore:
            if "/" in ignored:
                if f"{path}/".endswith(f"/{ignored.strip('/')}/"):
                    return False
            elif fnmatchcase(name, ignored):
                return False
        return True

    def folders(self, roots: Sequence[str]) -> list[str]:
        """The folders to watch, `roots` among them, at most FOLDERS_MAX. A root that is a file stands for itself.

        Raises FileNotFoundError for a root that is not there.
        """
        found: dict[str, None] = {}
        for root in roots:
            for folder in self._walk(os.path.abspath(root)):
                found[folder] = None
                if len(found) >= FOLDERS_MAX:
                    return list(found)
        return list(found)

    def _walk(self, root: str) -> Iterator[str]:
        os.stat(root)
        if not is_folder(root):
            yield root
            return
        for folder, names, _ in os.walk(root):
            names[:] = [name for name in names if self.takes_folder(os.path.join(folder, name))]
            yield folder

    def files_in(self, folders: Sequence[str]) -> list[str]:
        """The files in these folders, without those below, that matter."""
        found = []
        for folder in folders:
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            found += [os.path.join(folder, name) for name in names if self.takes_file(name)]
        return found


def is_folder(path: str) -> bool:
    """Whether there is a folder of this name."""
    return os.path.isdir(path)
