"""Who may call: real processes of another user against the RPC port, on both kinds of socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio

from trailboss.config.schema import RpcConfig
from trailboss.container.contract import Access, Caller, Plugin, RpcMethod, Services, WholePhase
from trailboss.container.state import ServerState
from trailboss.plugins.app.plugin import AppPlugin
from trailboss.plugins.core.plugin import CorePlugin
from trailboss.plugins.informer.plugin import InformerPlugin
from trailboss.plugins.resetter.plugin import ResetterPlugin
from trailboss.plugins.status.plugin import StatusPlugin
from trailboss.reactor import Reactor
from trailboss.rpc.plugin import RpcPlugin
from trailboss.rpc.registry import Registry
from trailboss_worker.protocol.frames import JSON
from trailboss_worker.protocol.rpc import encode_request

NOBODY = 65534
OTHER = 65533

#: Becomes NOBODY, then tries each call on a connection of its own; prints [outcome, seconds] a call as JSON.
CLIENT = """
import json, os, socket, sys, time
uid, scheme, host, port, *calls = sys.argv[1:]
os.setgroups([]); os.setgid(int(uid)); os.setuid(int(uid))
outcomes = []
for call in calls:
    began = time.monotonic()
    try:
        sock = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
        sock.settimeout(5)
        sock.connect(host if scheme == "unix" else (host, int(port)))
        sock.sendall(bytes.fromhex(call))
        outcome = sock.recv(65536).hex()
    except OSError as error:
        outcome = type(error).__name__
    outcomes.append([outcome, time.monotonic() - began])
    sock.close()
print(json.dumps(outcomes))
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def counted(plugins: list[Plugin], reached: list[str]) -> list[RpcMethod]:
    """Return every method of `plugins`, its handler replaced by one that notes that it was reached."""

    def note(name: str) -> Any:
        def handle(_argument: object, _caller: Caller) -> bool:
            reached.append(name)
            return True

        return handle

    return [
        RpcMethod(method.name, note(method.name), Access.ALWAYS)
        for plugin in plugins
        for method in plugin.rpc_methods()
    ]


@asynccontextmanager
async def serving(
    listen: str, allowed: set[int], directory: Path
) -> AsyncIterator[tuple[RpcPlugin, list[str], Any]]:
    """Run the RPC port as this user; gives the plugin, the methods reached, and the log records."""
    reached: list[str] = []
    plugins = [CorePlugin({}), InformerPlugin(), ResetterPlugin(), StatusPlugin(None), AppPlugin()]
    reactor, state, services = Reactor(), ServerState(), Services()
    state.set_whole(WholePhase.READY)
    state.open_gate()
    services.provide(Reactor, reactor)
    services.provide(ServerState, state)
    environ = {"XDG_RUNTIME_DIR": str(directory)}
    registry = Registry(counted(plugins, reached))
    rpc = RpcPlugin(RpcConfig(listen=listen), registry, allowed, environ=environ)
    try:
        with trio.fail_after(30), structlog.testing.capture_logs() as records:
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                await nursery.start(rpc.run, services, trio.Event())
                yield rpc, reached, records
                nursery.cancel_scope.cancel()
    finally:
        reactor.close()


async def call_as(uid: int, address: str, methods: list[str]) -> list[tuple[str, float]]:
    """Call each method once as `uid`; return outcomes and seconds."""
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":") if scheme == "tcp" else (rest, "", "0")
    calls = [encode_request(7, method, b"true", JSON).hex() for method in methods]
    finished = await trio.run_process(
        [sys.executable, "-I", "-c", CLIENT, str(uid), scheme, host, port, *calls],
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout.decode()
    return [(outcome, seconds) for outcome, seconds in json.loads(finished.stdout)]


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """Return a folder that other users can pass through."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o711)
        yield Path(name)


METHODS = [
    "rpc.Version",
    "rpc.Config",
    "trailboss.State",
    "informer.AddWorker",
    "resetter.Reset",
    "app.Log",
    "no.Such",
]


@needs_root
async def test_the_default_socket_is_out_of_reach_of_other_users(open_directory: Path) -> None:
    """Folder 0700 and socket 0600: another user cannot even connect."""
    async with serving("", set(), open_directory) as (rpc, reached, _records):
        outcomes = await call_as(NOBODY, rpc.exported_address(), METHODS)
        assert {outcome for outcome, _ in outcomes} == {"PermissionError"}
        assert reached == []


@needs_root
@pytest.mark.parametrize("listen", ["", "tcp://127.0.0.1:0"])
async def test_another_user_reaches_no_method(open_directory: Path, listen: str) -> None:
    """With a socket that lets others connect: closed within 50 ms, no handler runs, one log line for the uid."""
    async with serving(listen, {OTHER}, open_directory) as (rpc, reached, records):
        outcomes = await call_as(NOBODY, rpc.exported_address(), METHODS)
        assert {outcome for outcome, _ in outcomes} <= {"", "ConnectionResetError", "BrokenPipeError"}
        assert sorted(seconds for _, seconds in outcomes)[len(outcomes) // 2] < 0.05
        assert max(seconds for _, seconds in outcomes) < 1.0
        assert reached == []
        refused = [record for record in records if record.get("uid") == NOBODY]
        assert len(refused) == 1


@needs_root
@pytest.mark.parametrize("listen", ["", "tcp://127.0.0.1:0"])
async def test_a_user_of_the_configuration_is_served(open_directory: Path, listen: str) -> None:
    """The uid that workers run as may call, on both kinds of socket; unknown methods get their error."""
    async with serving(listen, {NOBODY}, open_directory) as (rpc, reached, _records):
        outcomes = await call_as(NOBODY, rpc.exported_address(), METHODS)
        assert all(len(outcome) > 24 for outcome, _ in outcomes)
        assert reached == METHODS[:-1]


@pytest.mark.parametrize("listen", ["", "tcp://127.0.0.1:0"])
async def test_the_servers_own_user_is_served(open_directory: Path, listen: str) -> None:
    """Without any user in the configuration the server's own processes may call."""
    async with serving(listen, set(), open_directory) as (rpc, reached, _records):
        address = rpc.exported_address()
        scheme, _, rest = address.partition("://")
        if scheme == "unix":
            stream: trio.SocketStream = await trio.open_unix_socket(rest)
        else:
            stream = await trio.open_tcp_stream("127.0.0.1", int(rest.rpartition(":")[2]))
        async with stream:
            await stream.send_all(encode_request(1, "rpc.Version", b"true", JSON))
            assert await stream.receive_some()
        assert reached == ["rpc.Version"]
