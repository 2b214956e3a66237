"""Shared parts of the RPC tests: the stand-in services of the recorded dialogues, a server on a socket, a client."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf.message import Message

from trailboss.config.schema import RpcConfig
from trailboss.container.contract import Access, Caller, RpcMethod, RpcRefused, Services, WholePhase, raw
from trailboss.container.state import ServerState
from trailboss.messages import applogger_pb2, jobs_pb2, status_pb2
from trailboss.reactor import Reactor
from trailboss.rpc.codec import struct
from trailboss.rpc.plugin import RpcPlugin
from trailboss.rpc.registry import Registry
from trailboss_worker.protocol.frames import JSON, FrameDecoder
from trailboss_worker.protocol.rpc import RpcReply, RpcRequest, decode_reply, encode_request

VECTORS_FILE = Path(__file__).parents[2] / "protocol" / "vectors.json"


def load_vectors(*categories: str) -> dict[str, dict[str, Any]]:
    """Return the recorded vectors of some categories by name."""
    vectors = json.loads(VECTORS_FILE.read_text(encoding="utf-8"))["vectors"]
    return {vector["name"]: vector for vector in vectors if vector["category"] in categories}


# --- the services behind the recorded answers -----------------------------------------------------------------------


def _refuse(text: str) -> Any:
    raise RpcRefused(text)


def _push(request: jobs_pb2.PushRequest, _caller: Caller) -> jobs_pb2.Empty:
    return jobs_pb2.Empty() if request.job.id else _refuse("rpc_push: empty ID field not allowed")


def _pause(request: jobs_pb2.Pipelines, _caller: Caller) -> jobs_pb2.Empty:
    for name in request.pipelines:
        if name != "test":
            _refuse(f"no such pipeline, requested: {name}")
    return jobs_pb2.Empty()


def _stats(_request: jobs_pb2.Empty, _caller: Caller) -> jobs_pb2.Stats:
    stat = jobs_pb2.Stat(
        pipeline="test",
        driver="memory",
        queue="test",
        active=1,
        delayed=2,
        reserved=3,
        ready=True,
        priority=10,
    )
    return jobs_pb2.Stats(stats=[stat])


def _workers(plugin: str, _caller: Caller) -> struct:
    if plugin != "http":
        return struct(workers=None)
    worker = struct(
        pid=7,
        status=1,
        numExecs=3,
        created=1_700_000_000_000_000_000,
        memoryUsage=1024,
        CPUPercent=0.5,
        command="",
        statusStr="ready",
    )
    return struct(workers=[worker])


def _reset(plugin: str, _caller: Caller) -> bool:
    if plugin != "http":
        _refuse(f"resetter_rpc_reset:\n\tresetter_plugin_reset_by_name: no such plugin: {plugin}")
    return True


def _add_worker(plugin: str, _caller: Caller) -> bool:
    return False if plugin == "http" else _refuse(f"plugin {plugin} does not support workers management")


def _metrics_add(metric: dict[str, object], _caller: Caller) -> bool:
    if not metric.get("name"):
        _refuse("metrics_plugin_add: undefined collector , try first Declare the desired collector")
    return True


def stand_ins() -> list[RpcMethod]:
    """Return methods that give the answers of the recorded server."""

    def proto(name: str, argument: type[Message], result: type[Message], handler: Any = None) -> RpcMethod:
        return RpcMethod(name, handler or (lambda _a, _c: result()), argument=argument, result=result)

    pipelines = jobs_pb2.Pipelines(pipelines=["test", "default"])
    return [
        RpcMethod("rpc.Version", lambda _a, _c: "2025.1.15", Access.ALWAYS),
        RpcMethod("rpc.Config", lambda _a, _c: raw(b'{"version":"3"}'), result=raw),
        RpcMethod("informer.List", lambda _a, _c: ["http", "jobs"], Access.ALWAYS),
        RpcMethod("informer.Workers", _workers, argument=str),
        RpcMethod("informer.AddWorker", _add_worker, Access.SENSITIVE, argument=str),
        RpcMethod("informer.RemoveWorker", _add_worker, Access.SENSITIVE, argument=str),
        RpcMethod("resetter.Reset", _reset, Access.SENSITIVE, argument=str),
        RpcMethod("raw.Echo", lambda data, _c: raw(data), argument=raw, result=raw),
        RpcMethod("raw.Str", lambda text, _c: f"<{text}>", argument=str),
        RpcMethod("raw.Fail", lambda text, _c: _refuse(f"fail: {text}"), argument=str),
        RpcMethod("app.Info", lambda _a, _c: False, argument=str),
        RpcMethod("app.Log", lambda _a, _c: False, argument=str),
        proto("app.WarningWithContext", applogger_pb2.LogEntry, applogger_pb2.Response),
        RpcMethod("metrics.Add", _metrics_add, argument=dict),
        RpcMethod("metrics.Declare", lambda _a, _c: True, argument=dict),
        RpcMethod("metrics.Unregister", lambda _a, _c: True, argument=str),
        proto("jobs.List", jobs_pb2.Empty, jobs_pb2.Pipelines, lambda _a, _c: pipelines),
        proto("jobs.Push", jobs_pb2.PushRequest, jobs_pb2.Empty, _push),
        proto("jobs.PushBatch", jobs_pb2.PushBatchRequest, jobs_pb2.Empty),
        proto("jobs.Pause", jobs_pb2.Pipelines, jobs_pb2.Empty, _pause),
        proto("jobs.Resume", jobs_pb2.Pipelines, jobs_pb2.Empty),
        proto("jobs.Declare", jobs_pb2.DeclareRequest, jobs_pb2.Empty),
        proto("jobs.Stat", jobs_pb2.Empty, jobs_pb2.Stats, _stats),
        proto("status.Status", status_pb2.Request, status_pb2.Response),
        proto("kv.MGet", status_pb2.Request, status_pb2.Response),
    ]


def opened_state() -> ServerState:
    """Return the state of a server that is up."""
    state = ServerState()
    state.set_whole(WholePhase.READY)
    state.open_gate()
    return state


# --- a server on a socket, and clients ------------------------------------------------------------------------------


class Client:
    """An RPC client for tests: sends bytes or calls, reads answers."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()
        self._sequence = 0

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.stream.send_all(data)

    async def reply(self) -> RpcReply | None:
        """Return the next answer, None at the end of the connection."""
        while True:
            frame = self._decoder.next_frame()
            if frame is not None:
                return decode_reply(frame)
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._decoder.feed(data)

    async def call(self, method: str, argument: bytes = b"", flags: int = JSON) -> RpcReply:
        """Call and return the answer to this very call."""
        self._sequence += 1
        await self.send(encode_request(self._sequence, method, argument, flags))
        reply = await self.reply()
        assert reply is not None, "the server closed the connection"
        assert (self._sequence, method) == (reply.sequence, reply.method)
        return reply

    async def closed(self) -> bool:
        """Read to the end; True when the server has closed the connection without a word."""
        return await self.reply() is None


class Bench:
    """A running RPC plugin with what belongs to it."""

    def __init__(self, plugin: RpcPlugin, state: ServerState, reactor: Reactor, stopping: trio.Event) -> None:
        self.plugin = plugin
        self.state = state
        self.reactor = reactor
        self.stopping = stopping

    @property
    def server(self) -> Any:
        """The server behind the plugin (for figures that only tests look at)."""
        return self.plugin._server

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Connect a client."""
        address = self.plugin.exported_address()
        scheme, _, rest = address.partition("://")
        if scheme == "unix":
            stream = await trio.open_unix_socket(rest)
        else:
            host, _, port = rest.rpartition(":")
            stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
        async with stream:
            yield Client(stream)


@asynccontextmanager
async def running(
    methods: list[RpcMethod],
    config: RpcConfig,
    state: ServerState | None = None,
    services: Services | None = None,
    **options: Any,
) -> AsyncIterator[Bench]:
    """Run the RPC plugin with `methods` on a real reactor until the block ends."""
    state = opened_state() if state is None else state
    services = Services() if services is None else services
    reactor = Reactor()
    services.provide(Reactor, reactor)
    services.provide(ServerState, state)
    plugin = RpcPlugin(config, Registry(methods), **options)
    stopping = trio.Event()
    try:
        async with trio.open_nursery() as loop:
            await loop.start(reactor.run)
            async with trio.open_nursery() as nursery:
                await nursery.start(plugin.run, services, stopping)
                yield Bench(plugin, state, reactor, stopping)
                stopping.set()
            loop.cancel_scope.cancel()
    finally:
        reactor.close()


class MemoryPeer:
    """A connection without a socket: keeps the answers."""

    def __init__(self, caller: Caller | None = None) -> None:
        self.caller = caller if caller is not None else Caller()
        self.closed = False
        self.has_unsent = False
        self.answers: list[tuple[RpcRequest, bool, bytes]] = []
        self.tasks = 0
        self.changed = trio.Event()

    def fresh_caller(self) -> Caller:
        return self.caller

    def become(self, caller: Caller) -> None:
        self.caller = caller

    def answer(self, request: RpcRequest, result: bytes) -> None:
        self.answers.append((request, False, result))
        self.changed.set()

    def answer_error(self, request: RpcRequest, text: str) -> None:
        self.answers.append((request, True, text.encode()))
        self.changed.set()

    def call_started(self) -> None:
        self.tasks += 1

    def call_ended(self) -> None:
        self.tasks -= 1

    def end_intake(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def rpc_config(tmp_path: Path) -> RpcConfig:
    """Return a configuration whose socket is in the test's own folder."""
    return RpcConfig(listen=f"unix://{tmp_path}/rpc.sock")


@pytest.fixture
def helpers() -> Any:
    """Give this file's functions to the tests (test modules cannot import each other)."""
    return sys.modules[__name__]


@pytest.fixture
def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return two connected sockets."""
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()
