"""WHAT A CLIENT HAS NOT TAKEN YET: a little memory, then an unlinked temporary file, then the source has to wait.

A worker shall be free as soon as it has said everything, however slowly its client reads. So an answer waits here, in
order: up to `memory_per_answer` in memory, behind that up to `file_per_answer` in a file without a name; all answers
together have limits as well. A stream that has filled its share is told to pause (FULL); that is what keeps an endless one
from growing for ever. A file that was sent to its end is given back, and the next part begins in memory again.

A whole answer has nobody who could pause: only the limits of all together hold for it. Beyond both of them it is LOST, and
its connection is cut. Without files (`file_per_answer` 0) it waits in memory, however long it is.

Nothing here touches a socket: whoever sends asks for `first` and says what has left. One Unsent belongs to one connection,
or to one stream of one; the AnswerAccount to all of them. Its numbers are exact, and 0 when nothing waits.
"""

from __future__ import annotations

import os
from collections import deque
from enum import Enum
from typing import Final

from trailboss.log import logger
from trailboss.plugins.http.spool import Spool

__all__ = ["AnswerAccount", "FilePart", "Kept", "Unsent"]

log = logger("http")

MIB: Final = 1 << 20
#: Pieces up to this size are joined with the one before while that is shorter than JOINED_BYTES.
SMALL_BYTES: Final = 16 * 1024
JOINED_BYTES: Final = 64 * 1024
#: The end of an answer that is at most so long is kept in memory whatever the account says.
ALWAYS_KEPT_BYTES: Final = 16 * 1024
#: The same complaint is logged once in this time.
COMPLAINT_SECONDS: Final = 60.0


class Kept(Enum):
    """What became of a part of an answer."""

    KEPT = "it waits, and there is room for more"
    FULL = "it waits, and the source shall do the same"
    LOST = "there is no room for it"


class FilePart:
    """A part of a file that waits to be sent."""

    __slots__ = ("count", "fd", "offset")

    def __init__(self, fd: int, offset: int, count: int) -> None:
        self.fd = fd
        self.offset = offset
        self.count = count


class _SpooledPart(FilePart):
    """The part of an answer that lies in a file of ours; `count` is what has not been sent of it."""

    __slots__ = ("written",)

    def __init__(self, fd: int) -> None:
        super().__init__(fd, 0, 0)
        self.written = 0


class AnswerAccount(Spool):
    """The account of all answers that wait for their clients."""

    def __init__(
        self,
        memory_per_answer: int = MIB,
        memory_total: int = 32 * MIB,
        file_per_answer: int = 256 * MIB,
        file_total: int = 2048 * MIB,
        folder: str = "",
    ) -> None:
        super().__init__(memory_per_answer, memory_total, folder)
        self.file_bytes_per_answer = file_per_answer
        self.file_bytes_total = file_total
        #: Bytes written to files that are still open.
        self.file_bytes = 0
        #: Answers that could not be kept.
        self.lost = 0
        self._complained_at = -COMPLAINT_SECONDS

    def complain(self, now: float, reason: str) -> None:
        """Log, once a minute, that answers cannot be kept as they should be."""
        if now - self._complained_at >= COMPLAINT_SECONDS:
            self._complained_at = now
            log.warning("answers for slow clients cannot be kept", reason=reason, folder=self.folder)


class Unsent:
    """The parts of one client's answers, oldest first."""

    __slots__ = ("_account", "_filed", "_items", "_memory", "reason", "size")

    def __init__(self, account: AnswerAccount) -> None:
        self._account = account
        self._items: deque[bytearray | memoryview | FilePart] = deque()
        #: Memory and file space that is held for it.
        self._memory = 0
        self._filed = 0
        #: Bytes not sent yet; 0 means that nothing waits.
        self.size = 0
        #: Why the last part was not KEPT.
        self.reason = ""

    @property
    def first(self) -> bytearray | memoryview | FilePart:
        """What is to be sent next. Raises IndexError where there is nothing."""
        return self._items[0]

    def keep(self, data: bytes | memoryview, *, whole: bool = False) -> Kept:
        """Put `data` behind what waits. `whole`: no source is there that could pause."""
        size = len(data)
        if not size:
            return Kept.KEPT
        account = self._account
        items = self._items
        last = items[-1] if items else None
        if type(last) is _SpooledPart and self._may_file(size, whole) and self._write(last, data):
            return Kept.KEPT
        charge = _charge(data)
        total_fits = account.memory_bytes + charge <= account.memory_bytes_total
        fits = total_fits and self._memory + charge <= account.memory_bytes_per_body
        if not fits:
            if type(last) is not _SpooledPart and self._may_file(size, whole) and self._begin_file(data):
                return Kept.KEPT
            if whole and not total_fits and size > ALWAYS_KEPT_BYTES and account.file_bytes_per_answer:
                account.lost += 1
                return Kept.LOST
        if size <= SMALL_BYTES:
            charge = size
            if isinstance(last, bytearray) and len(last) < JOINED_BYTES:
                last += data
            else:
                items.append(bytearray(data))
        else:
            items.append(memoryview(data))
        self._memory += charge
        account.memory_bytes += charge
        self.size += size
        return Kept.KEPT if fits else Kept.FULL

    def add_file(self, fd: int, offset: int, count: int) -> None:
        """Put a part of a file behind what waits; closes `fd` in the end."""
        self._items.append(FilePart(fd, offset, count))
        self.size += count

    def sent(self, count: int) -> None:
        """Take note that so many bytes of `first` have left."""
        self.size -= count
        first = self._items[0]
        if isinstance(first, FilePart):
            first.offset += count
            first.count -= count
            if not first.count:
                self._items.popleft()
                self._close(first)
        elif count == len(first):
            self._items.popleft()
            self._release(count if isinstance(first, bytearray) else _charge(first))
        elif isinstance(first, bytearray):
            del first[:count]
            self._release(count)
        else:
            self._items[0] = first[count:]

    def drop(self) -> None:
        """Give up everything that waits."""
        for item in self._items:
            if isinstance(item, FilePart):
                self._close(item)
        self._items.clear()
        self._release(self._memory)
        self.size = 0

    # --- inside -------------------------------------------------------------------------------------------------------

    def _may_file(self, size: int, whole: bool) -> bool:
        """Whether so much may go to a file. The limit of one answer is for sources that can pause."""
        account = self._account
        if not account.file_bytes_per_answer or (
            not whole and self._filed + size > account.file_bytes_per_answer
        ):
            self.reason = "http.limits.answer_file is reached"
        elif account.file_bytes + size > account.file_bytes_total:
            self.reason = "http.limits.answer_file_total is reached"
        else:
            return True
        return False

    def _begin_file(self, data: bytes | memoryview) -> bool:
        try:
            part = _SpooledPart(self._account.open_file())
        except OSError as error:
            self.reason = error.strerror or str(error)
            return False
        if not self._write(part, data):
            self._close(part)
            return False
        self._items.append(part)
        return True

    def _write(self, part: _SpooledPart, data: bytes | memoryview) -> bool:
        """Add to the file; what was written of a part that does not fit counts for nothing."""
        view = memoryview(data)
        position = part.written
        try:
            while view:
                count = os.pwrite(part.fd, view, position)
                position += count
                view = view[count:]
        except OSError as error:
            self.reason = error.strerror or str(error)
            return False
        size = len(data)
        part.written = position
        part.count += size
        self._filed += size
        self._account.file_bytes += size
        self.size += size
        return True

    def _close(self, part: FilePart) -> None:
        if type(part) is _SpooledPart:
            self._filed -= part.written
            self._account.file_bytes -= part.written
            self._account.close_file(part.fd)
        else:
            os.close(part.fd)

    def _release(self, count: int) -> None:
        self._memory -= count
        self._account.memory_bytes -= count


def _charge(data: bytes | memoryview) -> int:
    """The memory that a part holds on to: a view holds all of what it looks at."""
    if isinstance(data, memoryview):
        return len(data.obj) if isinstance(data.obj, (bytes, bytearray)) else data.nbytes
    return len(data)
