"""Calls jobs.List, informer.Workers and status.Status for every plugin of CALL_PLUGINS, from the first line on.

As server.on_init it ends then; with the argument `worker` it becomes a jobs worker. Each call is a line in the file CALLS.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable

from trailboss_worker.sdk import RPC, Consumer, Informer, Jobs, RpcError, Status

rpc = RPC.from_environment(timeout_seconds=20)


def call(what: str, ask: Callable[[], object]) -> None:
    """Call, and write down what came of it and how long it took."""
    began = time.monotonic()
    try:
        ask()
        error = ""
    except RpcError as failure:
        error = getattr(failure, "text", "") or str(failure)
    line = {"who": sys.argv[1], "what": what, "error": error, "seconds": time.monotonic() - began}
    with open(os.environ["CALLS"], "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


def call_all() -> None:
    """Everything, once."""
    call("jobs.List", lambda: Jobs(rpc).list())
    for name in os.environ["CALL_PLUGINS"].split():
        call(f"informer.Workers {name}", lambda name=name: Informer(rpc).workers(name))  # type: ignore[misc]
        call(f"status.Status {name}", lambda name=name: Status(rpc).status(name))  # type: ignore[misc]


call_all()
if sys.argv[1] == "worker":
    for task in Consumer():
        task.ack()
