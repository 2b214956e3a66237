"""THE FOLDER OF UPLOADED FILES: one of this server's own, so that what a killed one has left can be told from what is in use.

Files of forms lie in `trailboss-uploads-XXXXXXXX` inside `http.uploads.dir`. The folder is there while a file is, and
locked (flock) for as long: the lock ends with the process, however that ends. So at the next start every folder of that
name that nobody has locked is a dead server's; its files are removed, and nothing else ever is: not a folder that is locked,
not a file with another kind of name, nothing behind a link.

Where the file system cannot lock a folder, nothing is swept there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from trailboss.log import logger

__all__ = ["Owner", "UploadFolder", "sweep"]

log = logger("http")

PREFIX: Final = "trailboss-uploads-"
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: What mkstemp makes of `upload`.
_FILE: Final = re.compile(r"upload[a-z0-9_]{8}")
#: A sweep may take a new folder in the moment before it is locked; then another one is made.
_ATTEMPTS: Final = 10


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom the files are given to."""

    uid: int
    gid: int


class UploadFolder:
    """The folder of one server; it comes with the first file and goes with the last."""

    def __init__(self, parent: str, owner: Owner | None = None) -> None:
        self.parent = parent
        self.owner = owner
        #: Files that have been made and not been let go.
        self.files = 0
        self._path = ""
        self._lock = -1

    def create(self) -> tuple[int, str]:
        """Make a file for its owner alone; return descriptor and path. Raises OSError. Ends with `let_go`."""
        if not self._path:
            self._open()
        try:
            made = tempfile.mkstemp(prefix="upload", dir=self._path)
        except FileNotFoundError:  # somebody has cleaned up too well
            self._close()
            self._open()
            made = tempfile.mkstemp(prefix="upload", dir=self._path)
        self.files += 1
        return made

    def let_go(self) -> None:
        """Take note that a file is no longer the server's; with the last one the folder goes."""
        self.files -= 1
        if not self.files and self._path:
            path = self._path
            self._close()
            with suppress(OSError):  # the application may have put something there
                os.rmdir(path)

    def _open(self) -> None:
        for _ in range(_ATTEMPTS):
            path = tempfile.mkdtemp(prefix=PREFIX, dir=self.parent)
            try:
                self._lock = lock = os.open(path, _OPEN)
                if _try_lock(lock) is not False and _is_at(lock, path):
                    if self.owner is not None:
                        with suppress(OSError):  # then a file cannot be given away either, and that is told
                            os.fchown(lock, self.owner.uid, self.owner.gid)
                    self._path = path
                    return
            except FileNotFoundError:
                pass
            except OSError:
                self._close()
                with suppress(OSError):
                    os.rmdir(path)
                raise
            self._close()
        raise OSError(errno.EAGAIN, "no folder for uploaded files could be kept", self.parent)

    def _close(self) -> None:
        self._path = ""
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            os.close(lock)


def sweep(parent: str, owner: Owner | None = None) -> int:
    """Remove what servers that were killed have left in `parent`; return how many files that were. Never raises OSError."""
    removed = 0
    uids = {os.geteuid()} | ({owner.uid} if owner is not None else set())
    try:
        names = [name for name in os.listdir(parent) if name.startswith(PREFIX)]
    except OSError:
        return 0
    for name in names:
        try:
            removed += _sweep_folder(os.path.join(parent, name), uids)
        except OSError as error:
            log.warning("uploaded files of an earlier run cannot be removed", folder=name, text=str(error))
    if removed:
        log.info("uploaded files of an earlier run were removed", folder=parent, files=removed)
    return removed


def _sweep_folder(path: str, uids: set[int]) -> int:
    try:
        folder = os.open(path, _OPEN)
    except OSError:  # gone, a link, not a folder, somebody else's
        return 0
    try:
        if os.fstat(folder).st_uid not in uids or not _try_lock(folder):
            return 0
        removed = 0
        for name in os.listdir(folder):
            if _FILE.fullmatch(name) and stat.S_ISREG(
                os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            ):
                os.unlink(name, dir_fd=folder)
                removed += 1
        with suppress(OSError):  # there is something else in it
            os.rmdir(path)
        return removed
    finally:
        os.close(folder)


def _try_lock(folder: int) -> bool | None:
    """Lock a folder; False where somebody else has it, None where that cannot be done."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(folder: int, path: str) -> bool:
    opened, found = os.fstat(folder), os.lstat(path)
    return (opened.st_dev, opened.st_ino) == (found.st_dev, found.st_ino)
