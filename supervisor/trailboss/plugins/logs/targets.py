"""Where lines go: a bounded buffer, and a thread per target that writes it out.

`offer` never blocks and never raises: a pipe nobody reads, a full disk or a closed terminal costs log lines, never a
request. What does not fit is dropped and counted, and as soon as there is room again the log itself says how many lines
are missing. A thread sleeps while there is nothing to write, so an idle server is not woken by its log.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

__all__ = ["BUFFER_BYTES_MAX", "FileOutput", "Output", "StreamOutput", "Target"]

#: Bytes that wait for one target before lines are dropped.
BUFFER_BYTES_MAX = 4 * 1024 * 1024
#: Least time between two writes, unless much waits or somebody waits for them.
_PAUSE_SECONDS = 0.02
_BATCH_BYTES_MAX = 65_536
_REOPEN_CHECK_SECONDS = 1.0


class Output(Protocol):
    """The blocking end of a target, used by its thread alone. `write` raises OSError."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class StreamOutput:
    """An open descriptor that belongs to somebody else: standard output or standard error."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        """Write all of `data`, also where the descriptor has been made non-blocking. Raises OSError."""
        write_all(self._fd, data)

    def close(self) -> None:
        """Leave the descriptor open."""


class FileOutput:
    """A file that is appended to, and opened again when its path leads elsewhere (logrotate moved it away)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = open_log(path)
        self._checked = time.monotonic()

    def write(self, data: bytes) -> None:
        """Append all of `data`. Raises OSError."""
        now = time.monotonic()
        if now - self._checked >= _REOPEN_CHECK_SECONDS:
            self._checked = now
            if not same_file(self.path, self._fd):
                fd = open_log(self.path)
                os.close(self._fd)
                self._fd = fd
        write_all(self._fd, data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Target:
    """A bounded buffer in front of an Output. `offer` may be called from any thread."""

    def __init__(
        self,
        name: str,
        output: Output,
        *,
        buffer_bytes_max: int = BUFFER_BYTES_MAX,
        dropped_line: Callable[[int], bytes] = lambda count: b"",
        on_error: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Start the thread. `dropped_line` makes the line that says how many lines are missing."""
        self.name = name
        self.dropped = 0  #: lines dropped so far, for people
        self.is_journal = False  #: lines begin with their priority
        self.error = ""  #: why the last write failed, "" after one that went well
        self._output = output
        self._buffer_bytes_max = buffer_bytes_max
        self._dropped_line = dropped_line
        self._on_error = on_error
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._unreported = 0
        self._writing = False
        self._closing = False
        self._hurry = False
        self._footer: Sequence[str] = ()
        self._footer_shown = 0
        self._footer_changed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._write_out, name=f"log-{name}", daemon=True)
        self._thread.start()

    def offer(self, line: bytes) -> bool:
        """Take a whole line, line ending included; False when it was dropped. Never blocks, never raises."""
        with self._condition:
            if self._closing or self._waiting_bytes + len(line) > self._buffer_bytes_max:
                self.dropped += 1
                self._unreported += 1
                return False
            self._take(line)
            # What happens to the server is read by people and programs that wait for it.
            self._hurry = True
            self._condition.notify_all()
            return True

    def offer_many(self, lines: Sequence[bytes]) -> None:
        """As `offer` for each line, for records of single requests: they may wait a moment to be written together."""
        together = b"".join(lines)
        with self._condition:
            if not self._closing and self._waiting_bytes + len(together) <= self._buffer_bytes_max:
                self._take(together)
                return
            for line in lines:
                if self._closing or self._waiting_bytes + len(line) > self._buffer_bytes_max:
                    self.dropped += 1
                    self._unreported += 1
                else:
                    self._take(line)

    def _take(self, line: bytes) -> None:
        """Keep a line, or several; the thread is woken for the first one, and when there is enough for a whole write."""
        before = self._waiting_bytes
        self._waiting_bytes = after = before + len(line)
        if not self._lines or before < _BATCH_BYTES_MAX <= after:
            self._condition.notify_all()
        self._lines.append(line)

    def set_footer(self, lines: Sequence[str]) -> None:
        """Keep `lines` below everything that is written; for a terminal only, () takes them away again.

        Each line must fit the width of the terminal.
        """
        with self._condition:
            self._footer = lines
            self._footer_changed = True
            self._condition.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything taken so far is written; False when that took longer than `timeout_seconds`."""
        with self._condition:
            self._hurry = True
            self._condition.notify_all()
            return self._condition.wait_for(
                lambda: not self._lines and not self._writing and not self._footer_changed, timeout_seconds
            )

    def close(self, timeout_seconds: float) -> bool:
        """Write out what is there for at most `timeout_seconds` and end the thread; False when lines are lost.

        A thread that hangs in a write is left behind: it is a daemon and dies with the process.
        """
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _write_out(self) -> None:
        written = -_PAUSE_SECONDS
        while True:
            with self._condition:
                self._writing = False
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._lines or self._closing or self._footer_changed)
                if not self._lines and not self._footer_changed:
                    break
                # Who writes once for many lines takes the interpreter from the data plane once, not for each.
                pause_seconds = written + _PAUSE_SECONDS - time.monotonic()
                if pause_seconds > 0:
                    self._condition.wait_for(self._cannot_wait, pause_seconds)
                self._hurry = False
                data = self._take_batch()
                self._writing = True
            written = time.monotonic()
            try:
                self._output.write(data)
                self.error = ""
            except OSError as error:
                self._failed(error)
        try:
            self._output.close()
        except OSError as error:
            self._failed(error)

    def _cannot_wait(self) -> bool:
        return self._closing or self._hurry or self._footer_changed or self._waiting_bytes >= _BATCH_BYTES_MAX

    def _take_batch(self) -> bytes:
        """Return what to write next; called with the lock held."""
        batch: list[bytes] = []
        size = 0
        while self._lines and size < _BATCH_BYTES_MAX:
            line = self._lines.popleft()
            batch.append(line)
            size += len(line)
        self._waiting_bytes -= size
        if self._unreported and not self._lines:
            # The buffer is empty again: this is the place in the log where lines are missing.
            batch.append(self._dropped_line(self._unreported))
            self._unreported = 0
        if self._footer_shown or self._footer:
            if self._footer_shown:
                batch.insert(0, f"\x1b[{self._footer_shown}F\x1b[J".encode())
            batch.extend(f"{line}\n".encode(errors="replace") for line in self._footer)
            self._footer_shown = len(self._footer)
        self._footer_changed = False
        return b"".join(batch)

    def _failed(self, error: OSError) -> None:
        text = f"cannot write the log to {self.name}: {error.strerror or error}"
        first = not self.error
        self.error = text
        with self._condition:
            self.dropped += 1
        if first:
            self._on_error(text)


def open_log(path: str) -> int:
    """Open a log file for appending, and make it where there is none. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def same_file(path: str, fd: int) -> bool:
    """Say whether `path` still leads to the open file `fd`."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`; waits where a non-blocking descriptor is full. Raises OSError."""
    view = memoryview(data)
    while view:
        try:
            written = os.write(fd, view)
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
            continue
        if written == 0:
            raise OSError(errno.EIO, "nothing could be written")
        view = view[written:]
