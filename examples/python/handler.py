"""A jobs worker in Python, started by the server with `trailboss-worker jobs handler:handle --chdir examples/python`.

The handler gets one task at a time. Returning acknowledges it; raising gives it back to the queue, with the
traceback on standard error, which is the server's log; or it answers by itself. `async def` works as well.
"""

from __future__ import annotations

import os

from trailboss_worker.sdk import RPC, Jobs, Push, Task


def handle(task: Task) -> None:
    """Do what the job's name says."""
    if task.name == "greet":  # payload: a name. What is printed appears in the server's log.
        name = task.payload.decode()
        print(f"Hello {name}, from Python (pid {os.getpid()}, attempt {task.attempts})")
    elif task.name == "greet-everybody":  # payload: names, one a line. A job may push further jobs.
        names = task.payload.decode().splitlines()
        with RPC.from_environment() as rpc:
            Jobs(rpc).push_many(Push(task.pipeline, "greet", name) for name in names)
    elif task.name == "later":  # not now: come back in five seconds, marked so that it happens once
        if "x-seen" not in task.headers:
            task.requeue("come back later", delay=5, headers={"x-seen": ["1"]})
    else:
        task.nack(f"no such job: {task.name}")
