"""Calls before the server is ready, and while it stops: the scenario that once killed another server, in every variant.

Real servers, real workers, real on_init commands in PHP and Python. A third-party plugin records every execution of every
RPC method together with the state of the gate, so that "no effect before the gate opens" is seen and not inferred.
"""

# ruff: noqa: ASYNC240  the other side is a process: it is asked by files, /proc and commands
from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from live_server import (
    ENDING,
    PATIENCE,
    PHP_WORKER,
    PYTHON_WORKER,
    TESTS,
    Answers,
    CallFailed,
    Client,
    Server,
    configuration,
    harmless_arguments,
    install_plugins,
    serving,
    storm,
    until,
    until_async,
    untyped,
)
from marks import needs_php

pytestmark = pytest.mark.timeout(180)

PLUGINS = (TESTS / "support" / "chaos_plugins.py").read_text()
LISTING = {
    "php": f"php {TESTS}/php/on_init_list.php",
    "python": f"{sys.executable} {TESTS}/support/on_init_list.py",
}
LANGUAGES = [pytest.param("php", marks=needs_php), "python"]
SUPPORT_PATH = {"PYTHONPATH": str(TESTS / "support")}


def on_init(command: str, **more: object) -> dict[str, object]:
    """The section server.on_init; a command that fails ends the start."""
    return {"command": command, "exec_timeout": "20s", "exit_on_error": True, **more}


def records(path: Path) -> list[dict[str, Any]]:
    """What the recorder has written."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def assert_gate_held(rows: list[dict[str, Any]]) -> None:
    """No gated method has run behind a closed gate, no sensitive one while on_init ran."""
    assert [row for row in rows if row["access"] != "always" and not row["gate_open"]] == []
    assert [row for row in rows if row["access"] == "sensitive" and row["on_init"]] == []


async def bound(server: Server) -> None:
    """Return when the RPC port takes connections."""

    async def answers() -> bool:
        if not Path(server.path).exists():
            return False
        try:
            (await Client.connect(server.path)).close()
        except Exception:
            return False
        return True

    await until_async(answers, 10 * PATIENCE, "the RPC port bound", 0.002)


# --- jobs.List as the first act of on_init -------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
async def test_on_init_lists_pipelines_at_every_start(language: str, tmp_path: Path) -> None:
    """Twenty starts whose on_init calls jobs.List first: the right list each time, and an orderly end."""
    config = configuration(tmp_path, workers=1, server__on_init=on_init(LISTING[language]))
    with trio.fail_after(60 * PATIENCE):
        for _ in range(20):
            async with serving(tmp_path, config) as server:
                lines = [row["msg"] for row in server.log() if row.get("source") == "on_init"]
                assert sorted(lines) == ["idle", "work"]
            server.log_path.unlink()


@pytest.mark.parametrize("language", LANGUAGES)
async def test_on_init_waits_for_nobody_while_jobs_are_held_back(language: str, tmp_path: Path) -> None:
    """With the jobs plugin held back, on_init does not run; when it comes, the list is right."""
    env = install_plugins(tmp_path, PLUGINS, hold_jobs="hold_jobs")
    release = tmp_path / "release"
    config = configuration(
        tmp_path, workers=1, server__on_init=on_init(LISTING[language]), rpc__ready_timeout="400ms"
    )
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, config, {**env, "CHAOS_HOLD_JOBS": str(release)}, wait=False) as server:
            await bound(server)
            began = trio.current_time()
            with pytest.raises(
                CallFailed, match=r"^service not ready: phase=starting; .*jobs \(starting"
            ) as got:
                await server.call("jobs.List", b"")
            assert 0.4 <= trio.current_time() - began <= 0.4 + 0.1 * PATIENCE, got
            assert [row for row in server.log() if row.get("source") == "on_init"] == []
            release.touch()
            await server.wait_ready()
            lines = [row["msg"] for row in server.log() if row.get("source") == "on_init"]
            assert sorted(lines) == ["idle", "work"]


@pytest.mark.parametrize("timeout", ["0s", "250ms"])
async def test_an_early_caller_is_refused_in_time(timeout: str, tmp_path: Path) -> None:
    """A gated call is refused at once with 0s, else not before and not long after rpc.ready_timeout; each names who is awaited."""
    seconds = {"0s": 0.0, "250ms": 0.25}[timeout]
    env = install_plugins(tmp_path, PLUGINS, slow="slow", recorder="recorder")
    record, release = tmp_path / "record", tmp_path / "release"
    env |= {"CHAOS_SLOW_UNTIL": str(release), "CHAOS_RECORD": str(record)}
    config = configuration(tmp_path, workers=1, rpc__ready_timeout=timeout)
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, config, env, wait=False) as server:
            await bound(server)
            methods = await server.call("trailboss.Methods")
            await until_async(
                lambda: is_starting(server, "slow"), 5 * PATIENCE, "the slow plugin is starting"
            )

            async def one(row: dict[str, Any]) -> None:
                async with server.client() as client:
                    began = trio.current_time()
                    argument = harmless_arguments(row["name"], row["codec"])
                    if row["name"] == "trailboss.Authenticate":  # answers at once that it knows no such token
                        with pytest.raises(CallFailed, match="token"):
                            await client.call(row["name"], argument)
                        return
                    if row["access"] == "always":
                        await client.call(row["name"], argument)
                        assert trio.current_time() - began <= 0.3 * PATIENCE
                        return
                    with pytest.raises(CallFailed) as got:
                        await client.call(row["name"], argument)
                    took = trio.current_time() - began
                    assert str(got.value).startswith("service not ready: phase=starting; waiting for ")
                    assert "slow (starting, " in str(got.value)
                    assert seconds <= took <= seconds + 0.1 * PATIENCE, (row["name"], took)

            for row in methods:
                if seconds:
                    break
                await one(row)
            if seconds:
                async with trio.open_nursery() as nursery:
                    for row in methods:
                        nursery.start_soon(one, row)
            release.touch()
            await server.wait_ready()
            assert await server.call("slow.Touch") == "touched"
    assert_gate_held(records(record))


async def is_starting(server: Server, name: str) -> bool:
    """Whether that plugin has begun its start."""
    plugins = (await server.state())["plugins"]
    return any(row["name"] == name and row["phase"] == "starting" for row in plugins)


# --- on_init that does everything, nothing, or dies -----------------------------------------------------------------


async def test_on_init_calls_every_method(tmp_path: Path) -> None:
    """Every method called by on_init is answered at once or refused at once: sensitive ones, and those that would wait for itself."""
    result, record = tmp_path / "result", tmp_path / "record"
    env = install_plugins(tmp_path, PLUGINS, recorder="recorder")
    env["CHAOS_RECORD"] = str(record)
    command = on_init(f"{sys.executable} {TESTS}/support/on_init_everything.py")
    config = configuration(tmp_path, workers=1, server__on_init=command)
    config["server"]["on_init"]["env"] = {"ON_INIT_RESULT": str(result)}
    with trio.fail_after(40 * PATIENCE):
        async with serving(tmp_path, config, env) as server:
            rows = [json.loads(line) for line in result.read_text().splitlines()]
            access = {row["name"]: row["access"] for row in await server.call("trailboss.Methods")}
            assert rows[0]["method"] == "jobs.List"
            assert set(access) == {row["method"] for row in rows}
            for row in rows:
                assert row["seconds"] <= 0.5 * PATIENCE, row
                if access[row["method"]] == "sensitive":
                    assert row["error"].startswith("refused during on_init: "), row
                elif row["method"] == "recorder.Pool":
                    assert "which boots only after on_init, this very caller" in row["error"], row
                elif row["method"] == "trailboss.Authenticate":
                    assert row["error"].startswith("authentication failed: "), row
                else:
                    assert row["error"] == "", row
            await server.wait_quiet()
    assert_gate_held(records(record))
    assert "on_init" in {row["role"] for row in records(record)}


@pytest.mark.parametrize("exit_on_error", [True, False])
@pytest.mark.parametrize("fault", ["killed", "endless", "fails", "kills the guard"])
async def test_on_init_that_goes_wrong(fault: str, exit_on_error: bool, tmp_path: Path) -> None:
    """An on_init that is killed, never ends or fails is bounded, and the start goes on or fails as configured."""
    script = {
        "killed": "echo begun; kill -9 $$",
        "endless": "echo begun; sleep 600 & sleep 600",
        "fails": "echo begun; echo 'the cause' >&2; exit 7",
        "kills the guard": "echo begun; kill -9 $(pgrep -P $PPID -f 'guard_process|trailboss-guard'); exit 3",
    }[fault]
    (tmp_path / "on_init.sh").write_text(script)
    said = {"killed": "SIGKILL", "endless": "exec_timeout", "fails": "the cause"}.get(fault, "exit code 3")
    section = on_init(f"sh {tmp_path}/on_init.sh", exec_timeout="700ms", exit_on_error=exit_on_error)
    config = configuration(tmp_path, workers=1, server__on_init=section)
    with trio.fail_after(30 * PATIENCE):
        if exit_on_error:
            async with serving(tmp_path, config, wait=False, exit_code=1) as server:
                assert await server.wait_exit(8 * PATIENCE) == 1
                assert said in server.stderr()
                assert "on_init" in server.stderr()
                assert len(server.stderr().strip().splitlines()) == 1
        else:
            async with serving(tmp_path, config) as server:
                assert [row for row in server.survivors() if "sleep" in row] == []
                errors = [row["text"] for row in server.log() if row["msg"].startswith("on_init failed")]
                assert len(errors) == 1
                assert said in errors[0]
                if fault == "kills the guard":
                    plugins = {row["name"]: row for row in (await server.state())["plugins"]}
                    assert plugins["server"]["detail"]["guards_replaced"] == 1
                await server.push("ack", "one")
                assert (await server.wait_quiet())["done"] == 1


# --- 200 callers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
async def test_two_hundred_callers_from_before_the_port_is_bound(
    language: str, tmp_path: Path, chaos: random.Random
) -> None:
    """200 connections call every method from before the start until after the stop: typed answers in time, gate kept."""
    env = install_plugins(tmp_path, PLUGINS, slow="slow", recorder="recorder")
    record = tmp_path / "record"
    env |= {"CHAOS_SLOW": "0.8", "CHAOS_RECORD": str(record)}
    command = PHP_WORKER if language == "php" else PYTHON_WORKER
    config = configuration(tmp_path, command, 2, server__on_init=on_init(LISTING[language]))
    config["rpc"]["ready_timeout"] = "300ms"
    answers, over = Answers(), trio.Event()
    async with serving(tmp_path / "probe", configuration(make(tmp_path / "probe")), env) as probe:
        methods = await probe.call("trailboss.Methods")
    record.unlink(missing_ok=True)
    chaos.shuffle(methods)
    with trio.fail_after(60 * PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storm, f"{tmp_path}/rpc.sock", methods, 200, over, answers, 0.2)
            async with serving(tmp_path, config, env, check=False) as server:
                early = {text.partition(";")[0] for _, text in answers.errors}
                assert "service not ready: phase=starting" in early
                await trio.sleep(1.0 * PATIENCE)
                await server.push("sleep", "last", {"ms": 300})
                await until(
                    lambda: any(row["id"] == "last" for row in server.ledger()), 10, "the last job begun"
                )
                assert await server.stop() == 0
                server.assert_no_traceback()
            over.set()
    assert answers.started == answers.total
    assert untyped(answers) == {}
    rows = records(record)
    assert_gate_held(rows)
    assert {row["name"] for row in methods} - set(ENDING) == {row["method"] for row in rows}
    assert answers.slowest[1] <= 10 * PATIENCE, answers.slowest


def make(folder: Path) -> Path:
    """The folder, made."""
    folder.mkdir(exist_ok=True)
    return folder


# --- sd_notify -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 3])
async def test_ready_is_said_once_and_at_quorum(slots: int, tmp_path: Path) -> None:
    """READY=1 comes exactly once, after gate and quorum; STATUS says what is awaited; STOPPING=1 at the end."""
    from live_server import NotifySocket

    notify = NotifySocket(str(tmp_path / "notify"))
    go = tmp_path / "go"
    config = configuration(
        tmp_path, f"{sys.executable} {TESTS}/support/waiting_worker.py", slots, server__env__GO=str(go)
    )
    with trio.fail_after(30 * PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(notify.listen)
            async with serving(tmp_path, config, {"NOTIFY_SOCKET": notify.path}, wait=False) as server:
                await until(lambda: any("pool jobs" in line for line in notify.lines("STATUS")), 10, "STATUS")
                assert notify.lines("READY") == []
                go.touch()
                await server.wait_ready()
                await until(lambda: notify.lines("READY"), 5, "READY=1")
                workers = await server.workers()
                assert slots == len(workers)
                environ = Path(f"/proc/{workers[0]['pid']}/environ").read_bytes()
                assert b"NOTIFY_SOCKET" not in environ
                assert await server.stop() == 0
            await until(lambda: notify.lines("STOPPING"), 5, "STOPPING=1")
            nursery.cancel_scope.cancel()
    assert notify.lines("READY") == ["1"]
    assert notify.lines("STOPPING") == ["1"]
