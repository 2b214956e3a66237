"""Handlers of a Python application in a virtual environment of its own, which knows nothing of Trailboss."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import json
import os
import sys

from trailboss_worker.sdk import RPC, Jobs, Task


def record(task: Task) -> None:
    """One JSON line about a job and about where it runs."""
    seen = {name: getattr(task, name) for name in ("id", "name", "pipeline", "driver", "attempts", "headers")}
    seen["payload"] = task.payload.decode()
    seen["env"] = {name: value for name, value in os.environ.items() if name.startswith("RR_")}
    seen["prefix"] = sys.prefix
    seen["paths"] = [path for path in sys.path if "worker_protocol" in path]
    seen["yaml"] = importlib.util.find_spec("yaml") is not None
    seen["pid"] = os.getpid()
    with open(os.environ["JOBS_LOG"], "a", encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.write(json.dumps(seen) + "\n")


def handle(task: Task) -> None:
    """Do what the job's name says; returning acknowledges."""
    record(task)
    if task.name == "follow-up":
        with RPC.from_environment() as rpc:
            Jobs(rpc).push(task.pipeline, "plain", task.payload)
    elif task.name == "print":
        print("printed by a handler")
        os.write(1, b"written to descriptor 1\n")
    elif task.name == "requeue" and "turn" not in task.headers:
        task.requeue("again", headers={"turn": ["2"]})
    elif task.name == "nack":
        task.nack("not now")
    elif task.name == "raise":
        raise ValueError("no such customer")


async def handle_async(task: Task) -> None:
    """The same, with something to wait for."""
    await asyncio.sleep(0.001)
    handle(task)
