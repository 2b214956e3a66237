"""SIGTERM and SIGINT as a flag that also wakes a waiting worker.

A signal that arrives between "is the flag set?" and "wait for the server" must not be lost, and one that
arrives while bytes of a job are being read must not throw them away. So nothing is ever raised out of a
handler: the C-level wake-up descriptor of the interpreter makes a pipe readable, and the worker waits for
that pipe and its relay together. Handlers an application has installed itself stay as they are.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Callable

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
STACK_SIGNAL = signal.SIGUSR2
#: Set by Trailboss for its workers; another server would not ask.
SERVER_VARIABLE = "TRAILBOSS_INSTANCE"

_offers_stack = False


def offer_stack() -> int:
    """Let SIGUSR2 write the stacks of all threads to standard error; gives the signal's number.

    The interpreter does that by itself, also while Python code computes, waits or holds its lock for good. Gives 0 and
    changes nothing under another server than Trailboss, and where the application uses the signal already.
    """
    global _offers_stack
    if not os.environ.get(SERVER_VARIABLE):
        return 0
    if not _offers_stack:
        if signal.getsignal(STACK_SIGNAL) is not signal.SIG_DFL or _is_caught(STACK_SIGNAL):
            return 0
        try:
            faulthandler.register(STACK_SIGNAL, file=2, all_threads=True)
        except (AttributeError, OSError, RuntimeError, ValueError):
            return 0  # an interpreter or a system without it
        _offers_stack = True
    return int(STACK_SIGNAL)


def _is_caught(number: int) -> bool:
    """Whether something other than Python code handles the signal, as far as the system tells."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("SigCgt:"):
                    return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except (OSError, ValueError):
        pass
    return False


class StopSignals:
    """Calls on_stop at SIGTERM or SIGINT and makes `wake_fd` readable; outside the main thread does nothing."""

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._on_stop = on_stop
        self._installed: list[tuple[signal.Signals, object]] = []
        self._old_wakeup_fd: int | None = None
        self.wake_fd, self._wake_write_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        os.set_blocking(self._wake_write_fd, False)
        os.register_at_fork(after_in_child=self.close)
        try:
            self._install()
        except ValueError:
            pass  # not in the main thread, where alone Python handles signals

    def _install(self) -> None:
        for number in STOP_SIGNALS:
            current = signal.getsignal(number)
            if current in (signal.SIG_DFL, signal.default_int_handler):
                self._installed.append((number, current))
                signal.signal(number, self._on_signal)
        if not self._installed:
            return
        self._old_wakeup_fd = signal.set_wakeup_fd(self._wake_write_fd, warn_on_full_buffer=False)
        if self._old_wakeup_fd != -1:  # an event loop owns it; the handler below still wakes the worker
            signal.set_wakeup_fd(self._old_wakeup_fd)
            self._old_wakeup_fd = None

    def _on_signal(self, number: int, frame: object) -> None:
        self._on_stop()
        try:
            os.write(self._wake_write_fd, b"\0")
        except BlockingIOError:
            pass  # the pipe is full, so it is readable, which is all that is wanted

    def drain(self) -> None:
        """Make `wake_fd` quiet again."""
        try:
            while os.read(self.wake_fd, 512):
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Put back what was there before; a second call does nothing."""
        if self.wake_fd == -1:
            return
        if self._old_wakeup_fd is not None:
            signal.set_wakeup_fd(self._old_wakeup_fd)
        for number, previous in self._installed:
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, previous)  # type: ignore[arg-type]  # what getsignal gave for it
        os.close(self.wake_fd)
        os.close(self._wake_write_fd)
        self.wake_fd = self._wake_write_fd = -1


def default_in_children() -> None:
    """Let a forked child die of the stop signals, whatever an event loop has installed here for them.

    A child that inherits "finish the job first" would survive `Process.terminate()` for ever.
    """
    os.register_at_fork(after_in_child=_set_defaults)


def _set_defaults() -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
