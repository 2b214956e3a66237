"""A jobs worker that says hello only when the file GO is there, and acknowledges everything."""

from __future__ import annotations

import os
import time

from trailboss_worker.sdk import Consumer

while not os.path.exists(os.environ["GO"]):
    time.sleep(0.01)
for task in Consumer():
    task.ack()
