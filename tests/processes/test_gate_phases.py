"""Every RPC method in every phase of a real server, plugins that fail in every phase, and workers that call their own pool.

A phase is held by a file that somebody waits for: a third-party back-end (gate closed), on_init, the workers of the pool
(booting), a running job (draining). While it is held a worker is killed in the middle of its hello, where there is one.
"""

# ruff: noqa: ASYNC240  the other side is a process: it is asked by files, /proc and commands
from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from live_server import (
    ENDING,
    PATIENCE,
    TESTS,
    CallFailed,
    ConnectionGone,
    Server,
    children_of,
    configuration,
    harmless_arguments,
    install_plugins,
    serving,
    until,
    until_async,
)

pytestmark = pytest.mark.timeout(120)

PLUGINS = (TESTS / "support" / "chaos_plugins.py").read_text()
READY_TIMEOUT_SECONDS = 0.3
PHASE_WORKER = f"{sys.executable} -S -E {TESTS}/support/phase_worker.py"


@asynccontextmanager
async def held(phase: str, folder: Path) -> AsyncIterator[tuple[Server, list[dict[str, Any]]]]:
    """A server that stays in `phase` inside the block, with the rows of trailboss.Methods."""
    files = {name: folder / name for name in ("gate", "on_init", "pool", "record", "plan", "job")}
    for name in ("gate", "on_init", "pool"):
        if name != phase:
            files[name].touch()
    files["plan"].touch()
    env = install_plugins(folder, PLUGINS, slow="slow", recorder="recorder", faulty="faulty")
    env |= {
        "CHAOS_SLOW_UNTIL": str(files["gate"]),
        "CHAOS_RECORD": str(files["record"]),
        "CHAOS_FAULT": "none",
    }
    (folder / "on_init.sh").write_text(f"while [ ! -e {files['on_init']} ]; do sleep 0.02; done\n")
    config = configuration(folder, PHASE_WORKER, 2)
    config["rpc"]["ready_timeout"] = "300ms"
    config["server"]["on_init"] = {"command": f"sh {folder}/on_init.sh", "exit_on_error": True}
    config["server"]["env"] |= {
        "KILL_PLAN": str(files["plan"]),
        "WAIT_FOR": str(files["pool"]),
        "HOLD_JOB": str(files["job"]),
    }
    async with serving(folder, config, env, wait=False) as server:
        wanted = {"gate": "starting", "on_init": "initialising", "pool": "booting pools"}.get(phase, "ready")

        async def there() -> bool:
            try:
                state = await server.state()
            except (ConnectionGone, OSError):
                return False
            slow = next(row["phase"] for row in state["plugins"] if row["name"] == "slow")
            return bool(state["phase"] == wanted and (phase != "gate" or slow == "starting"))

        await until_async(there, 10 * PATIENCE, f"phase {wanted}", 0.005)
        methods = await server.call("trailboss.Methods")
        if phase == "drain":
            await server.push("hold", "held")
            await until(lambda: server.ledger(), 5 * PATIENCE, "the job begun")
            server.note_children()
            server.signal(signal.SIGTERM)

            async def draining() -> bool:
                return bool((await server.state())["phase"] == "draining")

            await until_async(draining, 5 * PATIENCE, "phase draining")
        yield server, methods
        for name in ("gate", "on_init", "pool", "job"):
            files[name].touch()
        if phase == "drain":
            assert await server.wait_exit() == 0
        else:
            await server.wait_ready()
            await server.wait_whole()
            await server.push("ack", "afterwards")
            await until_async(lambda: is_done(server), 10 * PATIENCE, "a job done afterwards")
        rows = [json.loads(line) for line in files["record"].read_text().splitlines()]
        assert [row for row in rows if row["access"] != "always" and not row["gate_open"]] == []
        assert [row for row in rows if row["access"] == "sensitive" and row["on_init"]] == []


async def is_done(server: Server) -> bool:
    """Whether the ledger has the job `afterwards`, and nothing runs."""
    books = (await server.call("jobs.Books"))["pipelines"]["work"]
    return bool(any(row["id"] == "afterwards" for row in server.ledger()) and not books["running"])


def expected(phase: str, row: Mapping[str, Any]) -> str:
    """How the answer has to begin; "" means a result."""
    name, access = row["name"], row["access"]
    needs_pool = name in ("resetter.Reset", "informer.AddWorker", "informer.RemoveWorker", "recorder.Pool")
    if name == "trailboss.Authenticate":
        return "authentication failed: "
    if access == "always":
        return ""
    if phase == "gate":
        return "service not ready: phase=starting; waiting for slow (starting, "
    if phase == "on_init" and access == "sensitive":
        return "refused during on_init: "
    if phase == "on_init" and needs_pool:
        return "service not ready: phase=initialising; waiting for pool jobs (declared, "
    if phase == "pool" and needs_pool:
        return "service not ready: phase=booting pools; waiting for pool jobs (booting, "
    if name == "faulty.Broken":
        return "cannot answer"
    if name == "faulty.Hang":
        return "deadline exceeded: faulty.Hang has not ended within 0.3s"
    if name in ENDING:
        return "the server is "
    if name == "trailboss.LiftQuarantine":
        return "nothing in quarantine has the fingerprint"
    if name == "jobs.Destroy":
        return "no such pipeline"
    return ""


async def kill_in_hello(server: Server, plan: Path, chance: random.Random) -> None:
    """Let a worker die in the middle of its hello frame, if the phase has one that can."""
    before = set(children_of(server.pid))
    plan.write_text(f"part-{chance.randrange(1, 12)} 9\n")
    workers = [pid for pid in before if b"phase_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    if workers:
        os.kill(chance.choice(workers), signal.SIGKILL)


@pytest.mark.parametrize("phase", ["gate", "on_init", "pool", "ready", "drain"])
async def test_every_method_in_every_phase(phase: str, tmp_path: Path, chaos: random.Random) -> None:
    """A result or the text that fits the phase, within rpc.ready_timeout plus the method's own time; a worker dies meanwhile."""
    with trio.fail_after(60 * PATIENCE):
        async with held(phase, tmp_path) as (server, methods):
            await kill_in_hello(server, tmp_path / "plan", chaos)
            if phase == "ready":  # there it ends the server
                methods = [row for row in methods if row["name"] not in ENDING]
            chaos.shuffle(methods)
            answers: dict[str, tuple[str, float]] = {}

            async def one(row: dict[str, Any]) -> None:
                async with server.client() as client:
                    began = trio.current_time()
                    try:
                        await client.call(row["name"], harmless_arguments(row["name"], row["codec"]))
                        text = ""
                    except CallFailed as error:
                        text = str(error)
                    answers[row["name"]] = (text, trio.current_time() - began)

            async with trio.open_nursery() as nursery:
                for row in methods:
                    nursery.start_soon(one, row)
            for row in methods:
                text, seconds = answers[row["name"]]
                begins = expected(phase, row)
                reset = phase in ("ready", "drain") and row["name"] in (
                    "resetter.Reset",
                    "informer.AddWorker",
                )
                if (
                    reset
                ):  # the new worker may be the one that dies, or the pool may be told to stop meanwhile
                    allowed = (
                        ("the new worker",)
                        if phase == "ready"
                        else (
                            "the new worker",
                            "the pool jobs is stopping",
                            "the pool jobs takes no further worker now",
                        )
                    )
                    assert text == "" or text.startswith(allowed), (row["name"], text)
                elif begins:
                    assert text.startswith(begins), (row["name"], text)
                else:
                    assert text == "", (row["name"], text)
                limit = 3.0 if reset else READY_TIMEOUT_SECONDS + 0.2
                assert seconds <= limit * PATIENCE, (row["name"], seconds)


async def test_calls_of_a_pool_to_itself(tmp_path: Path) -> None:
    """A booting worker that asks for its own pool is answered or refused at once; a busy one that resets it gets its answer."""
    await run_own_calls(tmp_path, f"{sys.executable} {TESTS}/support/calling_worker.py")


@pytest.mark.php
@pytest.mark.skipif(shutil.which("php") is None, reason="there is no php command on this machine")
async def test_calls_of_a_php_pool_to_itself(tmp_path: Path) -> None:
    """The same from PHP."""
    await run_own_calls(tmp_path, f"php {TESTS}/support/calling_worker.php")


async def run_own_calls(folder: Path, command: str) -> None:
    calls = folder / "calls"
    config = configuration(folder, command, 2)
    config["jobs"]["pool"]["boot_timeout"] = "5s"
    boot = [
        "informer.Workers",
        "resetter.Reset",
        "informer.AddWorker",
        "jobs.Stat",
        "jobs.Books",
        "informer.List",
    ]
    config["server"]["env"] |= {"BOOT_CALLS": " ".join(boot), "CALLS": str(calls)}
    needs_pool = ("resetter.Reset", "informer.AddWorker")
    with trio.fail_after(40 * PATIENCE):
        async with serving(folder, config, check=False) as server:
            for number, name in enumerate(
                ("resetter.Reset", "informer.AddWorker", "jobs.Stat", "informer.RemoveWorker")
            ):
                await server.push(name, f"own-{number}")
                await server.wait_quiet()
            await server.wait_whole()
            books = await server.assert_books_balance()
            assert (books["done"], books["dead"], books["running"]) == (4, 0, 0)
    rows = [json.loads(line) for line in calls.read_text().splitlines()]
    booting = [row for row in rows if row["when"] == "boot"]
    assert 2 * len(boot) <= len(booting)
    for row in booting:
        if row["method"] in needs_pool:
            assert "which waits for this very caller" in row["error"], row
        else:
            assert row["error"] == "", row
        assert row["seconds"] <= 0.5 * PATIENCE, row
    for row in rows:
        if row["when"] == "job":
            assert row["error"] == "", row
            assert row["seconds"] <= 5 * PATIENCE, row


# --- plugins that fail ---------------------------------------------------------------------------------------------

START_FAULTS = {
    "construct": ("declared", "cannot construct"),
    "methods": ("declared", "cannot methods"),
    "start": ("starting", "cannot start"),
    "hang in start": ("starting", "not ready within its start timeout of 0.5 s"),
    "shielded hang in start": ("starting", "not ready within its start timeout of 0.5 s"),
    "return": ("starting", "ended before it was ready"),
    "started twice": ("healthy", "task_status.started() was called twice"),
    "live": ("healthy", "cannot live"),
    "open": ("healthy", "cannot open: RuntimeError: cannot open"),
    "hang in open": ("healthy", "cannot open: TimeoutError: not done within 0.5 s"),
}


def faulty(folder: Path, fault: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Configuration and environment of a server with the plugin that fails at `fault`."""
    env = install_plugins(folder, PLUGINS, faulty="faulty", slow="slow")
    env |= {"CHAOS_FAULT": fault, "CHAOS_SLOW": "0.1", "CHAOS_DIE": str(folder / "die")}
    return configuration(folder, workers=1), env


@pytest.mark.parametrize("fault", START_FAULTS)
async def test_a_plugin_that_fails_ends_the_start(fault: str, tmp_path: Path) -> None:
    """Exit code 1, one line with the plugin's name, its phase and the reason; nothing is left."""
    phase, reason = START_FAULTS[fault]
    config, env = faulty(tmp_path, fault)
    with trio.fail_after(20 * PATIENCE):
        async with serving(tmp_path, config, env, wait=False, check=False) as server:
            assert await server.wait_exit(8 * PATIENCE) == 1
            lines = server.stderr().strip().splitlines()
            assert len(lines) == 1, lines
            assert f"plugin faulty failed while {phase}" in lines[0]
            assert reason in lines[0]
            assert not Path(server.path).exists()


@pytest.mark.parametrize("fault", START_FAULTS)
async def test_an_optional_plugin_that_fails_is_missed(fault: str, tmp_path: Path) -> None:
    """With `optional: true` the rest runs: state and calls say why it is not there, jobs are done, the stop is orderly."""
    reason = START_FAULTS[fault][1]
    config, env = faulty(tmp_path, fault)
    config["plugins"] = {"faulty": {"optional": True}}
    with trio.fail_after(30 * PATIENCE):
        code = 1 if "shielded" in fault else 0  # a task that ignores its cancellation is left behind by force
        async with serving(tmp_path, config, env, check=False, exit_code=code) as server:
            plugins = {row["name"]: row for row in (await server.state())["plugins"]}
            assert plugins["faulty"]["phase"] == "failed"
            assert reason in plugins["faulty"]["reason"]
            await server.push("ack", "one")
            assert (await server.wait_quiet())["done"] == 1
            if fault in ("construct", "methods"):
                return
            with pytest.raises(CallFailed, match=r"^service not available: plugin faulty failed: "):
                await server.call("faulty.Broken", "value")


@pytest.mark.parametrize("optional", [True, False])
async def test_a_plugin_that_dies_later_is_missed(optional: bool, tmp_path: Path) -> None:
    """After the start a plugin that dies is `failed`, optional or not; the others go on and the stop is orderly."""
    config, env = faulty(tmp_path, "die later")
    config["plugins"] = {"faulty": {"optional": optional}}
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, config, env, check=False) as server:
            (tmp_path / "die").touch()

            async def failed() -> bool:
                plugins = {row["name"]: row for row in (await server.state())["plugins"]}
                return bool(plugins["faulty"]["phase"] == "failed")

            await until_async(failed, 5 * PATIENCE, "the plugin failed")
            await server.push("ack", "one")
            assert (await server.wait_quiet())["done"] == 1


@pytest.mark.parametrize(
    "fault",
    [
        f"{how}{step}"
        for step in ("close_intake", "drain", "stop")
        for how in ("", "hang in ", "shielded hang in ")
    ],
)
async def test_a_plugin_that_fails_in_the_stop_does_not_hold_it(fault: str, tmp_path: Path) -> None:
    """A plugin that raises or hangs in a step of the stop costs its own time only; the others stop in order, exit code 0."""
    config, env = faulty(tmp_path, fault)
    config["endure"]["grace_period"] = "3s"
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, config, env, check=False) as server:
            await server.push("sleep", "one", {"ms": 200})
            await until(lambda: server.ledger(), 5 * PATIENCE, "the job begun")
            server.note_children()
            began = trio.current_time()
            assert (1 if "shielded" in fault else 0) == await server.stop()
            assert trio.current_time() - began <= 4.5 * PATIENCE
            assert "pool stopped" in server.log_texts()
            assert "job did not finish in time and goes back to its queue" not in server.log_texts()


async def test_handlers_that_fail_cost_their_caller_an_error(tmp_path: Path) -> None:
    """SystemExit, endless recursion, MemoryError, a value that cannot be sent: an error answer each, and the server goes on."""
    config, env = faulty(tmp_path, "none")
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, config, env, check=False) as server:
            for argument in ("exit", "recursion", "memory", "value", "raise"):
                with pytest.raises(CallFailed):
                    await server.call("faulty.Broken", argument)
            with pytest.raises(CallFailed, match="deadline exceeded"):
                await server.call("faulty.Hang")
            await server.push("ack", "one")
            assert (await server.wait_quiet())["done"] == 1
            assert "Traceback" not in server.stderr()
