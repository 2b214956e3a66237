"""A jobs worker that notes the id of each job, in one write, so that several may do so at the same time."""

from __future__ import annotations

import os

from trailboss_worker.sdk import Consumer

done = os.open("jobs-done", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
for task in Consumer():
    os.write(done, f"{task.id} {os.getppid()} {task.attempts}\n".encode())
    task.ack()
