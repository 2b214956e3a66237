"""A jobs worker that takes a moment for each job, then notes it and the server that has given it.

`fails` is nacked for good; `waits` runs until a file `go-on` is there, and pushes another one by a connection that it has
had from before. Each run is counted in a metric that the worker declares.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from trailboss_worker.sdk import RPC, Consumer, Jobs

rpc = RPC.from_environment()
for task in Consumer():
    if task.name == "fails":
        task.nack("on purpose")
        continue
    if task.name == "waits":
        rpc.call("trailboss.State", True)
        Path("waits-began").touch()
        while not Path("go-on").exists():
            time.sleep(0.02)
        Jobs(rpc).push("q", "child", b"null")
        if os.environ.get("COUNTS"):
            rpc.call("metrics.Add", {"name": "runs", "value": 1.0})
    time.sleep(0.3 if task.pipeline == "q" else 0.0)
    with open("jobs-done", "a") as file:
        file.write(f"{task.name} {os.getppid()} {task.attempts}\n")
    task.ack()
