"""An echo worker of the Python SDK; the body "pid" is answered with its pid."""

from __future__ import annotations

import os

from trailboss_worker.sdk import Worker

worker = Worker()
while (payload := worker.wait_payload()) is not None:
    worker.respond(str(os.getpid()) if payload.body == b"pid" else payload.body, payload.context)
