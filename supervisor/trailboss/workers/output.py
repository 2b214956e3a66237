"""Standard error of a worker: read at all times, split into lines, logged with pid and pool, bounded.

A worker that fills its stderr pipe would block in the middle of a job, so the pipe is drained whatever happens to the
lines: each is cut at `line_max` bytes, a rate limit counts what it drops instead of logging it, and the last lines are
kept for the death record.

An application that cannot be imported says so in every worker, each time one is started. So what a booting worker says
is compared with what one before it has said, and logged only where it is something else.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from trailboss.log import logger
from trailboss.reactor import Reactor
from trailboss.workers.deaths import STDERR_LINES_MAX

__all__ = ["BootOutput", "BootVoice", "LineDrain"]

log = logger("server")

#: Bytes taken in one turn: logging a line costs more than reading it, and other objects of the reactor wait meanwhile.
READ_SIZE = 8192
#: Bytes read at most when a drain empties a pipe after its writer has gone.
DRAIN_BYTES_MAX = 16 * 1024 * 1024
#: Most lines kept for the death record are short; longer ones are cut to this there.
KEPT_LINE_MAX = 512
#: Lines of a boot that are compared; one that says more is logged as it is.
BOOT_LINES_MAX = 500


class BootOutput:
    """What the workers of one pool say while they boot."""

    def __init__(self) -> None:
        #: The lines of the boot that others are compared with.
        self.said: list[str] = []

    def voice(self, emit: Callable[[str], None]) -> BootVoice:
        """Return what the lines of one booting worker go through."""
        return BootVoice(self, emit)

    def came_up(self) -> None:
        """A worker is ready: what failed boots have said before is history."""
        self.said = []


class BootVoice:
    """The lines of one worker. Lines that were said before are held back until it is known how the boot ends."""

    def __init__(self, output: BootOutput, emit: Callable[[str], None]) -> None:
        self._output = output
        self._emit = emit
        self._said = output.said
        #: Lines of `_said` that this worker has said as well, the first `_held` of them without being logged.
        self._heard = 0
        self._held = 0
        self._compares = True

    def line(self, text: str) -> None:
        """Take one line."""
        if not self._compares:
            self._emit(text)
            return
        said = self._said
        if self._heard < len(said):
            if said[self._heard] == text:
                self._heard += 1
                self._held = self._heard
                return
            # It says something else: that is what the next ones are compared with.
            self._let_go()
            self._compares = True
            self._said = self._output.said = said = said[: self._heard]
        if len(said) >= BOOT_LINES_MAX:
            self._let_go()
        else:
            said.append(text)
            self._heard += 1
        self._emit(text)

    def ready(self) -> None:
        """Log what was held back, and everything from now on."""
        if self._compares:
            self._let_go()
            self._output.came_up()

    def died(self) -> bool:
        """Whether it said exactly what one before it had said, so that nothing of it was logged."""
        if self._compares and 0 < self._held == len(self._said):
            return True
        self._let_go()
        return False

    def _let_go(self) -> None:
        held, self._held = self._held, 0
        self._compares = False
        for text in self._said[:held]:
            self._emit(text)


class LineDrain:
    """An object of the reactor that turns a pipe into log lines. `close` flushes what is left."""

    def __init__(
        self,
        reactor: Reactor,
        fd: int,
        emit: Callable[[str], None],
        *,
        line_max: int,
        rate: int = 0,
        secret: str = "",
    ) -> None:
        self._reactor = reactor
        #: Never logged and never kept: a program that shows its environment shows this too.
        self._secret = secret.encode()
        self._fd = fd
        self._emit = emit
        self._line_max = line_max
        self._rate = rate
        self._second = 0
        self._in_second = 0
        self._rest = b""
        self._cut = 0
        self._open = True
        #: Lines that the rate limit kept out of the log.
        self.dropped = 0
        self._last: deque[bytes] = deque(maxlen=STDERR_LINES_MAX)
        #: Sees every line first; one that it takes is neither logged nor kept.
        self.taker: Callable[[str], bool] | None = None
        reactor.register(fd, self.on_readable, None, self._failed)

    @property
    def at_eof(self) -> bool:
        """Whether the other side has closed (or the drain was closed)."""
        return not self._open

    def last_lines(self) -> tuple[str, ...]:
        """The last lines, oldest first, cut for display."""
        return tuple(line.decode("utf-8", "backslashreplace") for line in self._last)

    def on_readable(self) -> None:
        """Read once; called by the reactor."""
        self._read_turn()

    def _read_turn(self) -> bool:
        """Read once; False when there was nothing to read, or the end."""
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._finish()
            return False
        self._take(data)
        return True

    def drain(self) -> None:
        """Read until the pipe is empty or at its end, at most 16 MiB."""
        for _ in range(DRAIN_BYTES_MAX // READ_SIZE):
            if not self._open or not self._read_turn():
                return

    def close(self) -> None:
        """Log the unfinished last line and stop; the descriptor is the owner's to close."""
        if self._open:
            self._finish()

    def _failed(self, _error: BaseException) -> None:
        """The reactor caught an exception in here. The pipe is read on all the same: a full one blocks the worker."""
        self._rest = b""
        if self._open:
            self._reactor.register(self._fd, self.on_readable, None, self._failed)

    def _finish(self) -> None:
        self._open = False
        self._reactor.unregister(self._fd)
        if self._rest or self._cut:
            self._line(self._rest)
            self._rest = b""
        if self.dropped:
            # Said once, at the end; while it goes on, the figure is in `dropped`.
            self._emit(f"[{self.dropped} lines were not logged: above stderr_rate]")

    def _take(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(rest) > self._line_max:
            # Keep the head for the log, count the tail, go on to the line's end.
            self._cut += len(rest) - self._line_max
            rest = rest[: self._line_max]
        self._rest = rest

    def _line(self, line: bytes) -> None:
        cut, self._cut = self._cut, 0
        line = line.rstrip(b"\r")
        if self._secret and self._secret in line:
            line = line.replace(self._secret, b"***")
        if not line and not cut:
            return
        if len(line) > self._line_max:
            cut += len(line) - self._line_max
            line = line[: self._line_max]
        if self.taker is not None and self.taker(line.decode("utf-8", "backslashreplace")):
            return
        self._last.append(line[:KEPT_LINE_MAX])
        if self._rate:
            second = int(self._reactor.now)
            if second != self._second:
                self._second, self._in_second = second, 0
            self._in_second += 1
            if self._in_second > self._rate:
                self.dropped += 1
                return
        text = line.decode("utf-8", "backslashreplace")
        self._emit(f"{text} [{cut} bytes cut]" if cut else text)
