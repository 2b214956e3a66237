"""A server.on_init command that calls every method once; ON_INIT_RESULT gets one JSON line for each.

The first call is jobs.List, in the very first line that can be.
"""

from __future__ import annotations

import json
import os
import time

from live_server import harmless_arguments

from trailboss_worker.sdk import RPC, ServiceError

rpc = RPC.from_environment(timeout_seconds=15)


def call(method: str, codec: str) -> None:
    """Call, and write down what came of it and how long it took."""
    argument = harmless_arguments(method, codec)
    began = time.monotonic()
    try:
        rpc.call(method, argument, "proto" if isinstance(argument, bytes) else "json")
        outcome = ""
    except ServiceError as error:
        outcome = error.text
    line = {"method": method, "error": outcome, "seconds": time.monotonic() - began}
    with open(os.environ["ON_INIT_RESULT"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


call("jobs.List", "proto")
methods = rpc.call("trailboss.Methods", True)
assert isinstance(methods, list)
for row in methods:
    call(row["name"], row["codec"])
