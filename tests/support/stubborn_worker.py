"""A jobs worker that ignores what can be ignored, and whose children live in sessions of their own."""

from __future__ import annotations

import signal
import subprocess
import time

from trailboss_worker.sdk import Consumer

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
    signal.signal(number, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"], start_new_session=True)
subprocess.Popen(["sleep", "600"])
for task in Consumer():
    task.ack()
    time.sleep(0.01)
