"""Jobs that wait for a moment: one heap per pipeline, ordered by due time, then by order of arrival.

Pure: `now` is passed in. Who sleeps until the next due time is :class:`trailboss.plugins.jobs.alarm.Alarm`, one task
for all pipelines.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Generic, TypeVar

__all__ = ["DelayHeap"]

T = TypeVar("T")


class DelayHeap(Generic[T]):
    """Items and the moment at which each is due, in seconds of whatever clock the user reads."""

    __slots__ = ("_entries", "_next_number")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, T]] = []
        self._next_number = count().__next__

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """Iterate in no order; for people and tests."""
        return (item for _, _, item in self._entries)

    @property
    def next_due(self) -> float:
        """When the next item is due; infinity where there is none."""
        return self._entries[0][0] if self._entries else inf

    def add(self, due: float, item: T) -> None:
        """Keep `item` until `due`."""
        heappush(self._entries, (due, self._next_number(), item))

    def take_due(self, now: float, limit: int) -> list[T]:
        """Take at most `limit` items that are due at `now`, the longest due first."""
        entries = self._entries
        due: list[T] = []
        while entries and entries[0][0] <= now and len(due) < limit:
            due.append(heappop(entries)[2])
        return due

    def take_first(self) -> tuple[float, T] | None:
        """Take the item that is due first, with its moment; None where there is none."""
        if not self._entries:
            return None
        due, _, item = heappop(self._entries)
        return due, item

    def clear(self) -> int:
        """Drop everything; return how many items that were."""
        dropped = len(self._entries)
        self._entries.clear()
        return dropped
