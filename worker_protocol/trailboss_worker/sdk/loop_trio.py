"""Runs asynchronous handlers under one `trio.run` that lives as long as the process.

Between jobs it waits for the relay like for any other descriptor, and the run's system nursery goes on. One
job at a time: the next is read when its predecessor is answered. There is no nursery here, so what a handler
raises comes out as it is; a stop signal cuts the wait short by trio's own way in from signal handlers.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import trio

from trailboss_worker.sdk.consumer import Consumer, Task
from trailboss_worker.sdk.signals import default_in_children


def run(consumer: Consumer, handle: Callable[[Task], Awaitable[None]]) -> None:
    """Handle every task until the consumer has ended."""
    default_in_children()
    trio.run(_serve, consumer, handle)


async def _serve(consumer: Consumer, handle: Callable[[Task], Awaitable[None]]) -> None:
    idle = _Idle()
    token = trio.lowlevel.current_trio_token()

    def stop(number: int, frame: object) -> None:
        consumer.worker.request_stop()
        token.run_sync_soon(idle.cut_short, idempotent=True)

    previous = [(number, signal.signal(number, stop)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        while not consumer.worker.ended:
            task = consumer.receive_nowait()
            if task is not None:
                await handle(task)
            elif not consumer.worker.ended:
                await idle.wait_readable(consumer.worker.fileno())
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


class _Idle:
    """The wait between two jobs, which a signal cuts short."""

    def __init__(self) -> None:
        self._scope = trio.CancelScope()

    async def wait_readable(self, descriptor: int) -> None:
        """Returns when there is something to read, or after `cut_short`."""
        with self._scope:
            await trio.lowlevel.wait_readable(descriptor)
        self._scope = trio.CancelScope()

    def cut_short(self) -> None:
        """End the wait now, or the next one at once."""
        self._scope.cancel()
