"""What becomes of one exec: exactly one of these values, never none, never two.

An exec is one payload given to a pool. Its outcome is either an :class:`Answer` or one of the exceptions below, split
by who did it. The same values travel on both planes: the reactor hands them to the `on_outcome` callable of
``pool.submit``, and ``await pool.exec`` returns the answer or raises the exception.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "Answer",
    "ExecFailed",
    "ExecTimeout",
    "Outcome",
    "PoolClosed",
    "PoolDegraded",
    "Quarantined",
    "QueueFull",
    "QueueTimeout",
    "SoftError",
    "WorkerDied",
]


class Answer(NamedTuple):
    """A worker's answer: frame flags (codec bits), context and body."""

    flags: int
    context: bytes
    body: bytes


class ExecFailed(Exception):
    """Base of all outcomes that are no answer. `sent` tells whether the worker may have seen the payload."""

    sent: bool = False


class SoftError(ExecFailed):
    """The worker answered with the ERROR flag; it lives and was kept. The text is the worker's (wire protocol 2.6)."""

    sent = True


class WorkerDied(ExecFailed):
    """The worker that had the payload is gone: death, protocol violation, or killed for a limit of somebody else."""

    def __init__(
        self, text: str, *, pid: int = 0, cause: str = "", sent: bool = True, output: tuple[str, ...] = ()
    ) -> None:
        super().__init__(text)
        #: Its last lines.
        self.output = output
        self.pid = pid
        #: Cause class of the death record, such as "signal", "exit", "stdout garbage".
        self.cause = cause
        self.sent = sent


class ExecTimeout(ExecFailed):
    """`exec_ttl` passed; the worker was killed (its group, SIGKILL) and is replaced."""

    sent = True


class QueueTimeout(ExecFailed):
    """No worker became free within `queue_timeout`; nothing was sent."""


class QueueFull(ExecFailed):
    """`max_queue_size` execs wait already; nothing was sent."""


class PoolDegraded(ExecFailed):
    """The pool has no worker and its last boots failed; it keeps probing. Nothing was sent."""


class Quarantined(ExecFailed):
    """The same has killed one worker after the other and is not given to another one for now; nothing was sent."""


class PoolClosed(ExecFailed):
    """The pool is stopping or has stopped; nothing was sent."""


Outcome = Answer | ExecFailed
