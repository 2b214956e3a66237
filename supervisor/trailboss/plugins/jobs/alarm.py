"""One sleeper for all delayed jobs: it wakes whoever has something due, at the earliest moment asked for.

An earlier wish moves the deadline of the one cancel scope it sleeps in, so a delayed job costs an addition to a heap
and no task or timer. After a pause of the process every due job is found at once, because only the clock is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import trio

__all__ = ["Alarm"]


class Alarm:
    """Calls `ring(now)` when the earliest time asked for has come; `ring` returns the next time it wants."""

    def __init__(self, ring: Callable[[float], float]) -> None:
        self._ring = ring
        self._next = inf
        self._scope: trio.CancelScope | None = None

    @property
    def next_due(self) -> float:
        """When it rings next, in seconds of trio's clock; infinity for never."""
        return self._next

    def wake_at(self, due: float) -> None:
        """Ring at `due` or earlier. May be called before `run`, and from `ring`."""
        if due < self._next:
            self._next = due
            if self._scope is not None:
                self._scope.deadline = due

    async def run(self) -> None:
        """Ring until cancelled."""
        while True:
            with trio.CancelScope(deadline=self._next) as self._scope:
                await trio.sleep_forever()
            self._scope = None
            self._next = inf
            self.wake_at(self._ring(trio.current_time()))
