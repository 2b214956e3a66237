"""Runs asynchronous handlers on one asyncio loop that lives as long as the process.

Between jobs the loop waits for the relay like for any other descriptor, so what a handler left running (a
connection pool's keep-alive, a cache refresh) goes on. One job at a time: the next is read when its
predecessor is answered. Stop signals are the loop's own.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable

from trailboss_worker.sdk.consumer import Consumer, Task
from trailboss_worker.sdk.signals import default_in_children


def run(consumer: Consumer, handle: Callable[[Task], Awaitable[None]]) -> None:
    """Handle every task until the consumer has ended."""
    default_in_children()
    asyncio.run(_serve(consumer, handle))


async def _serve(consumer: Consumer, handle: Callable[[Task], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    wake = asyncio.Event()
    descriptor = consumer.worker.fileno()

    def stop() -> None:
        consumer.worker.request_stop()
        wake.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    while not consumer.worker.ended:
        task = consumer.receive_nowait()
        if task is not None:
            await handle(task)
        elif not consumer.worker.ended:
            loop.add_reader(descriptor, wake.set)
            await wake.wait()
            loop.remove_reader(descriptor)
            wake.clear()
