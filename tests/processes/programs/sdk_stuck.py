"""An echo worker of the Python SDK that gets stuck on demand: asleep, or computing, in functions with telling names."""

from __future__ import annotations

import sys
import time

from trailboss_worker.sdk import Worker


def wait_for_the_database() -> None:
    time.sleep(3600)


def compute_for_ever() -> None:
    while True:
        pass


worker = Worker()
while (payload := worker.wait_payload()) is not None:
    if payload.body == b"asleep":
        print("asking the database", file=sys.stderr, flush=True)
        wait_for_the_database()
    elif payload.body == b"computing":
        compute_for_ever()
    elif payload.body == b"slow":
        time.sleep(0.4)
    worker.respond(payload.body, payload.context)
