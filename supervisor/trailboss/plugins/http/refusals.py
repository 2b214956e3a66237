"""WHY WAS THIS 503? The last requests that the server answered itself, and what held the workers at that moment.

A refusal costs a count. The first few of a second also get a record: what was asked, how many waited, and each busy
worker with what it did and since when. Under a flood the others of the same kind are counted on the last such record,
so the cost is bounded and nothing is hidden. Refusals that are the client's own doing (4xx) are kept apart: no stranger
can push out what an operator looks for.

Paths come without their query, which is where secrets are.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from trailboss.config.redact import redacted_text

__all__ = ["Holder", "Refusals", "RefusedPool"]

#: Records kept of refusals by the server (5xx), and of requests that were wrong (4xx).
RECORDS_MAX: Final = 200
CLIENT_RECORDS_MAX: Final = 50
#: Records made a second; the rest is counted.
RECORDS_PER_SECOND: Final = 5
#: Busy workers kept with a record, those that were longest at it.
HOLDERS_MAX: Final = 32
#: Kinds that are counted by name; a client can make up texts, not memory.
KINDS_MAX: Final = 200
PATH_MAX: Final = 200
TEXT_MAX: Final = 300

Holder = tuple[int, str, float]
"""A busy worker: process id, what it does, for how many seconds."""


class RefusedPool(Protocol):
    """What is asked of the pool when a request is refused."""

    @property
    def queued(self) -> int: ...

    def holders(self) -> Sequence[Holder]:
        """Busy workers; plain reads, no system call."""
        ...


class _Record:
    __slots__ = (
        "at",
        "detail",
        "holders",
        "holders_left_out",
        "method",
        "more",
        "path",
        "queued",
        "reason",
        "status",
    )

    def __init__(self, at: float, status: int, reason: str, method: str, path: str, detail: str) -> None:
        self.at = at
        self.status = status
        self.reason = reason
        self.method = method
        self.path = path
        self.detail = detail
        self.queued = 0
        self.holders: tuple[Holder, ...] = ()
        self.holders_left_out = 0
        #: Others of this kind soon after, without a record of their own.
        self.more = 0

    def as_dict(self) -> dict[str, object]:
        return {
            "at": datetime.fromtimestamp(self.at, tz=UTC).isoformat(timespec="milliseconds"),
            "status": self.status,
            "reason": self.reason,
            "detail": redacted_text(self.detail),
            "method": self.method,
            "path": redacted_text(self.path),
            "queued": self.queued,
            "held_by": [
                {"pid": pid, "doing": doing, "since_seconds": round(seconds, 3)}
                for pid, doing, seconds in self.holders
            ],
            "held_by_left_out": self.holders_left_out,
            "more": self.more,
        }


class Refusals:
    """See the module's text. `clock` is the reactor's; `pool` is set once there is one."""

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float] = time.time) -> None:
        self.pool: RefusedPool | None = None
        self._clock = clock
        self._wall_clock = wall_clock
        self._server: deque[_Record] = deque(maxlen=RECORDS_MAX)
        self._client: deque[_Record] = deque(maxlen=CLIENT_RECORDS_MAX)
        #: Refusals ever, by status and reason.
        self.counts: dict[tuple[int, str], int] = {}
        self._second = -1.0
        self._made = [0, 0]

    def add(self, status: int, reason: str, method: str = "", path: str = "", detail: str = "") -> None:
        """Count a refusal and, within the budget of this second, keep a record of it."""
        counts = self.counts
        kind = (status, reason)
        if kind not in counts and len(counts) >= KINDS_MAX:
            kind = (status, "other")
        counts[kind] = counts.get(kind, 0) + 1
        second = self._clock() // 1.0
        if second != self._second:
            self._second = second
            self._made = [0, 0]
        by_client = 400 <= status < 500
        kept = self._client if by_client else self._server
        if self._made[by_client] >= RECORDS_PER_SECOND:
            self._count_on(kept, status, reason)
            return
        self._made[by_client] += 1
        record = _Record(
            self._wall_clock(), status, reason, method, path[:PATH_MAX], " ".join(detail[:TEXT_MAX].split())
        )
        if self.pool is not None and not by_client:
            record.queued = self.pool.queued
            holders = sorted(self.pool.holders(), key=_longest)
            record.holders = tuple(holders[:HOLDERS_MAX])
            record.holders_left_out = max(0, len(holders) - HOLDERS_MAX)
        kept.append(record)

    @staticmethod
    def _count_on(kept: deque[_Record], status: int, reason: str) -> None:
        """One more of a kind that has its records for this second; they are at the end."""
        for number in range(1, min(len(kept), RECORDS_PER_SECOND) + 1):
            record = kept[-number]
            if record.status == status and record.reason == reason:
                record.more += 1
                return
        if kept:
            kept[-1].more += 1

    @property
    def total(self) -> int:
        """Refusals ever."""
        return sum(self.counts.values())

    def report(self, last: int = RECORDS_MAX + CLIENT_RECORDS_MAX) -> dict[str, object]:
        """JSON values for `trailboss.Refusals`: counts, and the last records, the newest last."""
        records = sorted((*self._server, *self._client), key=lambda record: record.at)
        return {
            "total": self.total,
            "counts": [
                {"status": status, "reason": reason, "count": count}
                for (status, reason), count in sorted(self.counts.items(), key=lambda item: -item[1])
            ],
            "refusals": [record.as_dict() for record in records[max(0, len(records) - last) :]],
        }


def _longest(holder: Holder) -> float:
    return -holder[2]
