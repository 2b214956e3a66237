"""Where bodies wait until they are complete: a little memory, then an unlinked temporary file.

A slow client never holds a worker, so its body is kept here first. One body may have so much memory, all together may
have so much; whatever is beyond goes to a file that has no name, so nothing is left behind however the process ends.
Writing goes to the page cache; the reactor does not wait for a disk unless the machine is out of memory for pages.

Numbers are exact: `memory_bytes` and `files` say what is held now, and both are 0 when every body is closed.
"""

from __future__ import annotations

import os
import tempfile

from trailboss.plugins.http.message import EMPTY_BODY, Body

__all__ = ["Incoming", "Spool"]


class Spool:
    """The account of all bodies that are held."""

    def __init__(self, memory_bytes_per_body: int, memory_bytes_total: int, folder: str = "") -> None:
        self.memory_bytes_per_body = memory_bytes_per_body
        self.memory_bytes_total = memory_bytes_total
        self.folder = folder or tempfile.gettempdir()
        #: Bytes of bodies in memory now.
        self.memory_bytes = 0
        #: Bodies in files now.
        self.files = 0

    def begin(self) -> Incoming:
        """Return a body that is about to arrive."""
        return Incoming(self)

    def take(self, content: bytes) -> Body:
        """Return a body that has arrived in one piece. Raises OSError where a file is needed and cannot be had."""
        if not content:
            return EMPTY_BODY
        if (
            len(content) <= self.memory_bytes_per_body
            and self.memory_bytes + len(content) <= self.memory_bytes_total
        ):
            self.memory_bytes += len(content)
            return _HeldBody(self, content)
        incoming = self.begin()
        incoming.add(content)
        return incoming.complete()

    def open_file(self) -> int:
        """Return a new file without a name. Raises OSError."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            descriptor = os.open(self.folder, flags | os.O_TMPFILE, 0o600)
        except OSError:  # a file system that cannot do that
            descriptor, path = tempfile.mkstemp(prefix="trailboss-body-", dir=self.folder)
            os.unlink(path)
        self.files += 1
        return descriptor

    def close_file(self, descriptor: int) -> None:
        """Close a file of `open_file`."""
        os.close(descriptor)
        self.files -= 1


class _HeldBody(Body):
    """A body in memory that is counted until it is closed."""

    __slots__ = ("_held", "_spool")

    def __init__(self, spool: Spool, content: bytes) -> None:
        super().__init__(content)
        self._spool = spool
        self._held = len(content)

    def close(self) -> None:
        self._spool.memory_bytes -= self._held
        self._held = 0
        super().close()


class _FiledBody(Body):
    """A body in a file that is counted until it is closed."""

    __slots__ = ("_spool",)

    def __init__(self, spool: Spool, descriptor: int, size: int) -> None:
        super().__init__(file=descriptor, size=size)
        self._spool = spool

    def close(self) -> None:
        if self.file is not None:
            self._spool.close_file(self.file)
            self.file = None


class Incoming:
    """A body on its way in. Ends with `complete` or `drop`."""

    __slots__ = ("_descriptor", "_held", "_memory", "_spool", "size")

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._memory = bytearray()
        self._held = 0
        self._descriptor: int | None = None
        #: Bytes so far.
        self.size = 0

    def add(self, part: bytes) -> None:
        """Keep a part. Raises OSError where a file cannot be had or written; then call `drop`."""
        self.size += len(part)
        if self._descriptor is None:
            spool = self._spool
            if (
                self.size <= spool.memory_bytes_per_body
                and spool.memory_bytes + len(part) <= spool.memory_bytes_total
            ):
                self._memory += part
                self._held += len(part)
                spool.memory_bytes += len(part)
                return
            self._descriptor = spool.open_file()
            _write(self._descriptor, self._memory)
            self._release()
        _write(self._descriptor, part)

    def complete(self) -> Body:
        """Return the body; this object is done."""
        spool = self._spool
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            return _FiledBody(spool, descriptor, self.size)
        content = bytes(self._memory)
        self._release()
        if not content:
            return EMPTY_BODY
        spool.memory_bytes += len(content)
        return _HeldBody(spool, content)

    def drop(self) -> None:
        """Throw away what has arrived; may be called again."""
        self._release()
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._spool.close_file(descriptor)

    def _release(self) -> None:
        self._spool.memory_bytes -= self._held
        self._held = 0
        self._memory = bytearray()


def _write(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
