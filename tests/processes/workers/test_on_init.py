"""server.on_init with real commands: bounded, logged, its group ended, the start decided by exit_on_error."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from trailboss.config.schema import OnInitConfig, ServerConfig
from trailboss.container.contract import Services
from trailboss.plugins.server.plugin import OnInitFailed, ServerPlugin
from trailboss.reactor import Reactor
from trailboss.workers.callers import Callers
from trailboss.workers.deaths import Deaths
from trailboss.workers.workshop import Workshop

from .stage import children_of, is_alive, marked_processes, open_descriptors, until


@asynccontextmanager
async def server_plugin(
    *command: str, env: dict[str, str] | None = None, **keys: object
) -> AsyncIterator[ServerPlugin]:
    """A running server plugin whose on_init is `command`; nothing of it is left afterwards."""
    await trio.to_thread.run_sync(int)
    descriptors, children = open_descriptors(), set(children_of(os.getpid()))
    on_init = OnInitConfig(command=command, env=env or {}, **keys)  # type: ignore[arg-type]
    config = ServerConfig(command=("true",), on_init=on_init, env={"FROM_SERVER": "1"})
    reactor = Reactor()
    stopping = trio.Event()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(reactor.run)
            plugin = ServerPlugin(
                config,
                reactor=reactor,
                callers=Callers(),
                deaths=Deaths(),
                rpc_address=lambda: "unix:///run/rpc.sock",
            )
            services = Services()
            await nursery.start(plugin.run, services, stopping)
            assert services.get(Workshop) is plugin.workshop
            assert plugin.health().ok
            yield plugin
            stopping.set()
            nursery.cancel_scope.cancel(reason="the test is over")
    reactor.close()
    assert set(children_of(os.getpid())) == children
    assert open_descriptors() == descriptors
    assert marked_processes(plugin.guard.instance) == []


def _said(log_records: list[dict[str, object]]) -> list[str]:
    return [str(record["event"]) for record in log_records if record.get("source") == "on_init"]


async def test_success_and_environment(
    log_records: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that works: its output is logged, RR_RPC is set, the process's own wins over on_init.env."""
    monkeypatch.setenv("BOTH", "process")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    script = 'echo "$RR_RPC|$ONLY_HERE|$BOTH|$RR_MODE|$NOTIFY_SOCKET|$FROM_SERVER"; echo warning >&2'
    async with server_plugin("sh", "-c", script, env={"ONLY_HERE": "1", "BOTH": "on_init"}) as plugin:
        await plugin.run_on_init()
        assert plugin.on_init_result == "succeeded"
    assert "unix:///run/rpc.sock|1|process|||1" in _said(log_records)
    assert "warning" in _said(log_records)


@pytest.mark.parametrize("exit_on_error", [False, True])
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("sh", "-c", "echo the database is away >&2; exit 3"), ["exit code 3", "the database is away"]),
        (("sh", "-c", "kill -9 $$"), ["signal SIGKILL (9)"]),
        (("/nonexistent/migrate",), ["command not found", "/nonexistent/migrate"]),
        (("sh", "-c", "sleep 600 & sleep 600"), ["no end within exec_timeout (0.5 s)"]),
    ],
    ids=["exit", "killed", "not-found", "hang"],
)
async def test_failure(
    log_records: list[dict[str, object]], command: tuple[str, ...], words: list[str], exit_on_error: bool
) -> None:
    """A failure ends the start with exit_on_error, otherwise it is logged; either way nothing is left running."""
    begun = time.monotonic()
    async with server_plugin(*command, exit_on_error=exit_on_error, exec_timeout=0.5) as plugin:
        if exit_on_error:
            with pytest.raises(OnInitFailed) as caught:
                await plugin.run_on_init()
            text = str(caught.value)
        else:
            await plugin.run_on_init()
            text = next(str(r["text"]) for r in log_records if str(r["event"]).startswith("on_init failed"))
        for word in words:
            assert word in text
            assert word in str(plugin.state_detail()["on_init"])
    assert time.monotonic() - begun < 4


async def test_hanging_command_deaf_to_sigterm() -> None:
    """A command that ignores SIGTERM, with a child that does the same, is killed after the grace."""
    script = "trap '' TERM; sh -c 'trap \"\" TERM; sleep 600; sleep 600' & sleep 600; sleep 600"
    begun = time.monotonic()
    async with server_plugin("sh", "-c", script, exec_timeout=0.3) as plugin:
        await plugin.run_on_init()
    assert time.monotonic() - begun < 5


async def test_flood_is_bounded(log_records: list[dict[str, object]]) -> None:
    """A command that prints without end is logged at a bounded rate and ended by its limit."""
    async with server_plugin("yes", "chatter", exec_timeout=1.0) as plugin:
        await plugin.run_on_init()
    assert 500 <= sum(line == "chatter" for line in _said(log_records)) <= 5000
    assert any("were not logged" in line for line in _said(log_records))


async def test_large_output_is_read_to_its_end(log_records: list[dict[str, object]]) -> None:
    """64 MB of output do not hold up the command, and the last line is in the log of a failure."""
    script = "head -c 64000000 /dev/zero | tr '\\0' 'x' | fold -w 1000; echo; echo finally; exit 1"
    async with server_plugin("sh", "-c", script, exec_timeout=15.0) as plugin:
        await plugin.run_on_init()
        assert "finally" in plugin.on_init_result


async def test_cancelled(log_records: list[dict[str, object]]) -> None:
    """A start that is called off ends the command with its children."""
    async with server_plugin("sh", "-c", "sleep 600 & sleep 600", exec_timeout=30.0) as plugin:
        begun = time.monotonic()
        with trio.move_on_after(0.3):
            await plugin.run_on_init()
        assert time.monotonic() - begun < 1
        await until(lambda: not marked_processes(plugin.guard.instance), 2)


async def test_killed_from_outside(log_records: list[dict[str, object]]) -> None:
    """on_init killed by somebody: the failure names the signal."""
    async with server_plugin(sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)") as plugin:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.run_on_init)
            await until(lambda: any(r["event"] == "on_init started" for r in log_records))
            pid = next(r["pid"] for r in log_records if r["event"] == "on_init started")
            assert isinstance(pid, int)
            os.kill(pid, signal.SIGKILL)
        assert "SIGKILL" in plugin.on_init_result
        assert not is_alive(pid)


async def test_relay_listener_of_the_plugin(tmp_path: pathlib.Path) -> None:
    """With a socket relay the listener is bound before the plugin is healthy, and gone afterwards."""
    path = tmp_path / "relay.sock"
    reactor = Reactor()
    stopping = trio.Event()
    plugin = ServerPlugin(
        ServerConfig(command=("true",), relay=f"unix://{path}"),
        reactor=reactor,
        callers=Callers(),
        deaths=Deaths(),
        rpc_address=lambda: "",
    )
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(reactor.run)
            async with trio.open_nursery() as inner:
                await inner.start(plugin.run, Services(), stopping)
                assert path.is_socket()
                assert path.stat().st_mode & 0o777 == 0o600
                stopping.set()
            assert not path.exists()
            nursery.cancel_scope.cancel(reason="the test is over")
    reactor.close()
