"""A jobs worker that takes a moment for each job, then notes it and the server that has given it."""

from __future__ import annotations

import os
import time

from trailboss_worker.sdk import Consumer

for task in Consumer():
    time.sleep(0.3)
    with open("jobs-done", "a") as file:
        file.write(f"{task.name} {os.getppid()}\n")
    task.ack()
