"""A jobs worker that calls the server: the methods of BOOT_CALLS before its hello, and jobs named after a method.

Each call becomes a JSON line in the file CALLS: method, error, seconds, pid, when.
"""

from __future__ import annotations

import fcntl
import json
import os
import time

from trailboss_worker.sdk import RPC, Consumer, RpcError

rpc = RPC.from_environment(timeout_seconds=20)


def call(when: str, method: str) -> None:
    """Call with the name of the own pool, and write down what came of it."""
    began = time.monotonic()
    try:
        if method.startswith("jobs.") and method != "jobs.Books":
            rpc.call(method, b"", "proto")
        else:
            rpc.call(method, "jobs" if method != "jobs.Books" else True)
        outcome = ""
    except RpcError as error:
        outcome = getattr(error, "text", str(error))
    line = {"when": when, "method": method, "error": outcome, "seconds": time.monotonic() - began}
    with open(os.environ["CALLS"], "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps({**line, "pid": os.getpid()}) + "\n")


for name in os.environ["BOOT_CALLS"].split():
    call("boot", name)
for task in Consumer():
    if "." in task.name:
        call("job", task.name)
    task.ack()
