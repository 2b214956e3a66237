"""A hand-written loop over tasks; its one argument says how it treats them."""

from __future__ import annotations

import sys

from trailboss_worker.sdk import Consumer, TaskError

mode = sys.argv[1]
try:
    for task in Consumer():
        if mode == "forget":
            continue
        task.ack()
        if mode == "twice":
            task.nack("no")
except TaskError as error:
    print(f"TaskError: {error}", file=sys.stderr)
    sys.exit(4)
