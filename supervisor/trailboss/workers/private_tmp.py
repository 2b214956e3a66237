"""A folder of its own for the temporary files of each worker (`pool.process.private_tmp`), by TMPDIR, TMP and TEMP.

PHP (sys_get_temp_dir, tempnam, uploads), Python's tempfile and most programs honour TMPDIR; what names /tmp itself still gets
the machine's, since a mount of its own would need a privilege that the server does not have. The folder is the worker's user's
alone (mode 0700), and goes when the worker has ended; its children are being ended then, and what they make afterwards goes
with the server's folder at the stop. There is no quota.

The folders of one server are in one folder, which it holds locked for as long as it lives. Whoever starts next removes those
that nobody holds: they are of servers that were killed. A worker's folder has another owner, and its content may be anything,
so removal follows no links (shutil.rmtree goes by descriptors).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
from contextlib import suppress
from typing import Final

import trio

from trailboss.log import logger
from trailboss.workers.process import Identity

__all__ = ["TMP_VARIABLES", "PrivateFolders"]

log = logger("server")

TMP_VARIABLES: Final = ("TMPDIR", "TMP", "TEMP")
PREFIX: Final = "trailboss-tmp-"
#: What is made and not locked yet has another name, so that nobody takes it for that of a dead server.
NEW_PREFIX: Final = "trailboss-newtmp-"


class PrivateFolders:
    """The folders of one server's workers."""

    def __init__(self, folder: str, lock_fd: int) -> None:
        self.folder = folder
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, parent: str | None = None) -> PrivateFolders:
        """Make the server's folder in `parent`, None: where temporary files go, and lock it. Raises OSError.

        Folders of servers that are dead are removed. Blocks.
        """
        parent = parent or tempfile.gettempdir()
        remove_abandoned(parent)
        new = tempfile.mkdtemp(prefix=NEW_PREFIX, dir=parent)
        lock_fd = -1
        try:
            lock_fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.chmod(new, 0o711)  # workers of other users get through to their own and see no others
            folder = os.path.join(parent, f"{PREFIX}{secrets.token_hex(8)}")
            os.rename(new, folder)
        except OSError:
            if lock_fd >= 0:
                os.close(lock_fd)
            shutil.rmtree(new, ignore_errors=True)
            raise
        return cls(folder, lock_fd)

    def make(self, identity: Identity | None) -> str:
        """Make the folder of one worker, who runs as `identity`. Raises OSError."""
        path = os.path.join(self.folder, secrets.token_hex(8))
        os.mkdir(path, 0o700)
        if identity is not None:
            try:
                os.chown(path, identity.uid, identity.gid, follow_symlinks=False)
            except OSError:
                os.rmdir(path)
                raise
        return path

    async def discard(self, path: str) -> None:
        """Remove the folder of a worker that has ended. On cancellation: goes on in its thread."""
        await trio.to_thread.run_sync(_remove, path, abandon_on_cancel=True)

    async def close(self) -> None:
        """Remove everything; no worker is left."""
        lock_fd, self._lock_fd = self._lock_fd, -1
        if lock_fd >= 0:
            try:
                await trio.to_thread.run_sync(_remove, self.folder, abandon_on_cancel=True)
            finally:
                os.close(lock_fd)


def remove_abandoned(parent: str) -> None:
    """Remove folders of servers of this user that are dead. Blocks; never raises."""
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                with suppress(OSError):
                    _remove_if_abandoned(entry.path)


def _remove_if_abandoned(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
        log.info("temporary files of a server that was killed are removed", folder=path)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    """Remove a tree, links in it as links. What a process still makes meanwhile is left to whoever removes next."""
    shutil.rmtree(path, ignore_errors=True)
