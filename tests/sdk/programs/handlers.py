"""Handlers for `trailboss-worker jobs`, told by the job's name what to do."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import sys
import time

from trailboss_worker.sdk import Task

print("printed on import")


def handle(task: Task) -> None:
    arguments = json.loads(task.payload or b"null") or {}
    if task.name == "ack":
        task.ack()
    elif task.name == "nack":
        task.nack("no", **arguments)
    elif task.name == "requeue":
        task.requeue("later", **arguments)
    elif task.name == "fail":
        task.fail(ValueError("bad"), **arguments)
    elif task.name == "raise":
        raise RuntimeError("went wrong \udcff")
    elif task.name == "raise-after-ack":
        task.ack()
        raise RuntimeError("too late")
    elif task.name == "twice":
        task.ack()
        task.nack("no")
    elif task.name == "exit":
        sys.exit(7)
    elif task.name == "sleep":
        print("sleeping", file=sys.stderr)
        time.sleep(0.3)
    elif task.name == "describe":
        described = [
            getattr(task, name)
            for name in ("id", "name", "headers", "pipeline", "driver", "queue", "attempts")
        ]
        task.nack(json.dumps([*described, task.payload.decode()]))
    elif task.name == "where":
        task.nack(json.dumps([os.getcwd(), sys.path[0]]))
    elif task.name == "fork":
        task.nack(death_of_a_terminated_child())
    elif task.name == "coroutine":
        return pause()  # type: ignore[return-value]
    return None


def death_of_a_terminated_child() -> str:
    """The signal that a forked child, once it is up, dies of when it is sent SIGTERM."""
    ready, up = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(up, b"1")
        time.sleep(5)
        os._exit(0)
    os.read(ready, 1)
    os.kill(child, signal.SIGTERM)
    status = os.waitpid(child, 0)[1]
    os.close(ready)
    os.close(up)
    return str(os.WTERMSIG(status))


async def pause() -> None:
    if "trio" in sys.modules:
        import trio

        await trio.sleep(0.001)
    else:
        await asyncio.sleep(0.001)


background: list[object] = []


async def tick(counts: list[int]) -> None:
    while True:
        await pause()
        counts[0] += 1


async def handle_async(task: Task) -> None:
    if task.name == "start-background":
        counts = [0]
        background.extend([counts, asyncio.ensure_future(tick(counts))])
        return
    if task.name == "background-count":
        task.nack(str(background[0][0]))  # type: ignore[index]
        return
    if task.name == "library":
        task.nack("trio" if "trio" in sys.modules else "asyncio")
        return
    await pause()
    if task.name == "sleep":
        print("sleeping", file=sys.stderr)
        for _ in range(100):
            await pause()
        return
    handle(task)


class Callable:
    async def __call__(self, task: Task) -> None:
        await handle_async(task)


as_partial = functools.partial(handle_async)
as_object = Callable()
not_callable = 5


def decorated(task: Task) -> object:
    """Gives something to await without looking like it."""
    return handle_async(task)
