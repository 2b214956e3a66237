"""The process ends even where a plugin does not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.timeout(60)

#: A server whose one plugin shields itself from its cancellation for ever, or keeps the whole loop busy.
PROGRAM = """
import sys, time
import trio
import trailboss.main as main
from trailboss.assembly import Assembly
from trailboss.config.schema import Config, LogsConfig
from trailboss.container.contract import Plugin
from trailboss.container.startup import Container
from trailboss.reactor import Reactor

class Stuck(Plugin):
    name = "stuck"
    stop_timeout_seconds = 0.2

    async def run(self, services, stopping, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        await stopping.wait()
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

main.assemble = lambda *_: Assembly(Container([Stuck()], grace_period_seconds=float(sys.argv[1])), Reactor())
sys.exit(main.run(Config(logs=LogsConfig(mode="raw")), banner="ready"))
"""


@pytest.mark.parametrize(
    ("grace_seconds", "signals"), [("0.3", 1), ("3600", 2)], ids=["graceful stop", "second signal"]
)
def test_a_plugin_that_ignores_its_cancellation_cannot_hold_the_process(
    grace_seconds: str, signals: int
) -> None:
    """The process leaves with exit code 1 when the walk back is over, and says which task it left behind."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, grace_seconds], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            began = time.monotonic()
            for _ in range(signals):
                server.send_signal(signal.SIGTERM)
                time.sleep(0.1)  # two signals of one kind that wait at the same time are one
            _, err = server.communicate(timeout=30)
            assert server.returncode == 1
            assert b"exit forced" in err
            assert time.monotonic() - began < 20
        finally:
            server.kill()
