"""What on_init does and says, seen from outside: a real server, a real on_init command, a real worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from live_server import PATIENCE, configuration, pipelines_argument, serving

PAUSE_AND_PUSH = """\
from trailboss_worker.sdk import RPC, Jobs

jobs = Jobs(RPC.from_environment())
jobs.pause("work")
jobs.push("work", "Held", b"{}")
"""


@pytest.mark.timeout(60)
async def test_what_on_init_pauses_stays_paused(tmp_path: Path) -> None:
    """The pipeline of `jobs.consume` that on_init paused is not consumed at the end of the start, but after Resume."""
    program = tmp_path / "on_init.py"
    program.write_text(PAUSE_AND_PUSH)
    on_init = {"command": f"{sys.executable} {program}", "exec_timeout": "20s", "exit_on_error": True}
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, configuration(tmp_path, workers=1, server__on_init=on_init)) as server:
            detail = (await server.call("jobs.Books"))["pipelines"]["work"]
            assert (detail["waiting"], detail["done"]) == (1, 0)
            rows = {row["Pipeline"]: row["Ready"] for row in await server.call("informer.Jobs", "jobs")}
            assert rows["work"] is False
            await server.call("jobs.Resume", pipelines_argument("work"))
            assert (await server.wait_quiet())["done"] == 1


@pytest.mark.timeout(60)
async def test_secrets_of_the_command_stay_out_of_log_and_state(tmp_path: Path) -> None:
    """The command line is logged, and its failure told, without what looks like a secret in it."""
    program = tmp_path / "on_init.py"
    program.write_text("import sys\nsys.exit('cannot reach pgsql://app:hunter2@db')\n")
    command = f"{sys.executable} {program} --token=hunter2"
    on_init = {"command": command, "exec_timeout": "20s", "exit_on_error": False}
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, configuration(tmp_path, workers=1, server__on_init=on_init)) as server:
            lines = [
                str(row) for row in server.log() if "on_init" in str(row) and row.get("source") != "on_init"
            ]
            state = str(await server.call("trailboss.State"))
    assert any("--token=***" in line for line in lines)
    assert [line for line in lines if "hunter2" in line] == []
    assert "pgsql://***@db" in state
    assert "hunter2" not in state
