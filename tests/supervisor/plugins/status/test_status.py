"""The status port over real sockets: paths, codes, limits; and the RPC methods."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog.testing
import trio

from trailboss.config.schema import PoolConfig, StatusConfig
from trailboss.container.contract import Access, Caller, Plugin, RpcRefused, Services, WholePhase
from trailboss.container.inspect import JobsInspector
from trailboss.container.lifecycle import Event
from trailboss.container.state import ServerState
from trailboss.log import logger
from trailboss.messages.status_pb2 import Request
from trailboss.plugins.status.plugin import StatusPlugin
from trailboss.reactor import Reactor
from trailboss.small_http import CONNECTIONS_MAX, SmallConnection, SmallServer
from trailboss.testing.check_plugin import check_plugin
from trailboss.workers.glance import SlotGlance
from trailboss.workers.pool import PoolPhase, PoolSet


class FakePool:
    """A pool with figures that a test sets."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.config = PoolConfig()
        self.phase = PoolPhase.READY
        self.ready_workers = 2
        self.quorum = 1
        self.looks = 0

    @property
    def at_quorum(self) -> bool:
        return self.phase is PoolPhase.READY and self.ready_workers >= self.quorum

    executions = 0

    def describe(self) -> dict[str, object]:
        return {"name": self.name, "last_failure": ""}

    def glance(self) -> list[SlotGlance]:
        self.looks += 1
        return [SlotGlance(1, "busy", 0, "GET /page", 1.5)]


class Jobs(Plugin):
    """A plugin with a pool."""

    name = "jobs"


class Bench:
    """A status plugin that runs, and everything it looks at."""

    def __init__(self, plugin: StatusPlugin, services: Services, pool: FakePool) -> None:
        self.plugin = plugin
        self.services = services
        self.state = services.get(ServerState)
        self.pool = pool

    async def connect(self) -> trio.SocketStream:
        host, _, port = self.plugin.address.rpartition(":")
        return await trio.open_tcp_stream(host.strip("[]"), int(port))

    async def ask(self, data: bytes) -> bytes:
        """Send bytes and return everything until the server closes."""
        stream = await self.connect()
        async with stream:
            await stream.send_all(data)
            return b"".join([chunk async for chunk in stream])

    async def get(self, target: str) -> tuple[int, Any]:
        """GET `target`; returns code and JSON (or text)."""
        head, _, body = (await self.ask(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).partition(
            b"\r\n\r\n"
        )
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        assert headers["content-length"] == str(len(body))
        code = int(lines[0].split()[1])
        is_json = headers["content-type"] == "application/json"
        return code, json.loads(body) if is_json else body.decode()


@asynccontextmanager
async def running(config: StatusConfig | None = None) -> AsyncIterator[Bench]:
    services = Services()
    state = ServerState()
    state.declare([Jobs()], {"jobs": frozenset()}, ())
    state.record("jobs", Event.START)
    state.record("jobs", Event.READY)
    state.set_whole(WholePhase.READY)
    state.open_gate()
    pool = FakePool("jobs")
    state.add_pool(cast(Any, pool))
    pools = PoolSet()
    pools.add(cast(Any, pool))
    reactor = Reactor()
    services.provide(ServerState, state)
    services.provide(PoolSet, pools)
    services.provide(Reactor, reactor)
    plugin = StatusPlugin(config or StatusConfig(address="127.0.0.1:0"))
    stopping = trio.Event()
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                await nursery.start(plugin.run, services, stopping)
                yield Bench(plugin, services, pool)
                stopping.set()
                nursery.cancel_scope.cancel()
    finally:
        reactor.close()


ROW_OK = {"plugin_name": "jobs", "error_message": "", "status_code": 200}


@pytest.mark.parametrize("target", ["/health", "/ready", "/health?plugin=jobs", "/ready?plugin=jobs"])
async def test_all_is_well(target: str) -> None:
    """200 and RoadRunner's row."""
    async with running() as bench:
        assert await bench.get(target) == (200, [ROW_OK])


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_a_degraded_pool_is_unavailable_with_the_configured_code(path: str) -> None:
    """unavailable_status_code is the code of the answer and of the row."""
    async with running(StatusConfig(address="127.0.0.1:0", unavailable_status_code=555)) as bench:
        bench.pool.phase, bench.pool.ready_workers = PoolPhase.DEGRADED, 0
        code, found = await bench.get(path)
        assert (code, found[0]["status_code"]) == (555, 555)
        assert found[0]["error_message"].startswith("pool degraded")


async def test_ready_is_the_gate_and_every_pool() -> None:
    """While the server starts, /ready says what is waited for even if every plugin is well."""
    async with running() as bench:
        bench.state.set_whole(WholePhase.BOOTING)
        bench.state.expect_pools(["jobs"])
        code, found = await bench.get("/ready")
        assert code == 503
        assert found[-1]["plugin_name"] == "trailboss"
        assert found[-1]["error_message"].startswith("phase=booting pools; waiting for pool jobs")
        assert (await bench.get("/health"))[0] == 200


@pytest.mark.parametrize(("path", "code"), [("/health", 200), ("/ready", 503), ("/jobs", 503)])
async def test_stopping(path: str, code: int) -> None:
    """While it stops the process is alive and takes no traffic."""
    async with running() as bench:
        bench.state.set_whole(WholePhase.DRAINING)
        assert await bench.get(path) == (code, "service is shutting down")


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_an_unknown_plugin_is_404(path: str) -> None:
    """A probe with a typing error hears of it."""
    async with running() as bench:
        row = {"plugin_name": "typo", "error_message": "no such plugin: typo", "status_code": 404}
        assert await bench.get(f"{path}?plugin=jobs&plugin=typo") == (404, [ROW_OK, row])


async def test_jobs_lists_the_queues() -> None:
    """RoadRunner's keys; without a jobs plugin its text and the unavailable code."""
    async with running() as bench:
        assert await bench.get("/jobs") == (503, "jobs plugin not found")
        row = {"Pipeline": "test", "Driver": "memory", "Ready": True, "Active": 1, "ErrorMessage": ""}
        bench.services.provide(cast(Any, JobsInspector), SimpleNamespace(job_states=lambda: [row]))
        expected = {"pipeline": "test", "driver": "memory", "ready": True, "active": 1, "error_message": ""}
        assert await bench.get("/jobs") == (200, [expected])


async def test_state_is_trailboss_state() -> None:
    """The same JSON as over RPC."""
    async with running() as bench:
        code, found = await bench.get("/state")
        assert (code, found["phase"], found["gate"]) == (200, "ready", "open")
        assert [row["name"] for row in found["plugins"]] == ["jobs"]


async def test_an_exception_is_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken source of figures is an answer, and the port lives on."""
    async with running() as bench:

        def broken() -> list[dict[str, object]]:
            raise RuntimeError("figures lost")

        bench.services.provide(cast(Any, JobsInspector), SimpleNamespace(job_states=broken))
        assert await bench.get("/jobs") == (500, "RuntimeError: figures lost\n")
        assert (await bench.get("/health"))[0] == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\n\r\n", b"200"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 3000, b"431"),
        (b"GET /%ff?plugin=%ff HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    ],
)
async def test_odd_requests_are_answered(data: bytes, status: bytes) -> None:
    """Whatever is sent: one answer with the right status, then the end of the connection."""
    async with running() as bench:
        answer = await bench.ask(data)
        assert answer.split(b" ")[1] == status
        assert b"Connection: close\r\n" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
        assert data[:4] != b"HEAD" or answer.endswith(b"\r\n\r\n")
        assert (await bench.get("/health"))[0] == 200


async def test_a_torn_request_is_one_request() -> None:
    """Bytes that arrive one at a time are a request like any other."""
    async with running() as bench:
        stream = await bench.connect()
        async with stream:
            for byte in b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n":
                await stream.send_all(bytes([byte]))
                await trio.lowlevel.checkpoint()
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 OK")


async def test_a_slow_head_is_given_up() -> None:
    """A head that does not come is answered with 408 after the limit."""
    reactor = Reactor()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                listener = SmallServer(
                    sock, reactor, lambda _request, _reply: pytest.fail("not complete"), logger("test"), 0.1
                )
                stream = await trio.open_tcp_stream(*sock.getsockname())
                async with stream:
                    await stream.send_all(b"GET /health HT")
                    assert (await stream.receive_some()).startswith(b"HTTP/1.1 408")
                listener.close()
                nursery.cancel_scope.cancel()
    finally:
        reactor.close()


async def test_a_connection_that_cannot_be_taken_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with one new connection closes it and each kind is logged once a minute; the next one is served."""
    failures = [OSError(28, "No space left on device"), ValueError("odd"), ValueError("even")]
    real = SmallConnection.__init__

    def failing(self: Any, *arguments: Any) -> None:
        if failures:
            raise failures.pop(0)
        real(self, *arguments)

    monkeypatch.setattr(SmallConnection, "__init__", failing)
    with trio.fail_after(5), structlog.testing.capture_logs() as records:
        async with running() as bench:
            for _ in range(3):
                async with await bench.connect() as stream:
                    assert await stream.receive_some(1) == b""
            assert (await bench.get("/health"))[0] == 200
    reasons = [record["reason"] for record in records if "could not be taken" in record["event"]]
    assert reasons == ["[Errno 28] No space left on device", "odd"]


async def test_connections_are_bounded() -> None:
    """Beyond the limit the oldest silent one is closed for a new one, so a crowd that says nothing stops no probe."""
    async with running() as bench:
        streams = [await bench.connect() for _ in range(CONNECTIONS_MAX)]
        for place in range(3):
            assert (await bench.get("/health"))[0] == 200
            assert await streams[place].receive_some() == b""
            streams.append(await bench.connect())  # in the place of the probe
        for stream in streams:
            await stream.aclose()
        assert (await bench.get("/health"))[0] == 200


async def test_a_port_in_use_is_one_clear_error() -> None:
    """Key, value and remedy are in the text, before started()."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"status.address: {address}: the port is in use"):
            await StatusPlugin(StatusConfig(address=address)).run(Services(), trio.Event())


async def test_rpc_methods_give_code_and_reason() -> None:
    """status.Status and Ready: the code of one plugin; an unknown name is RoadRunner's error."""
    async with running() as bench:
        methods = {method.name: method for method in bench.plugin.rpc_methods()}
        assert {method.access for method in methods.values()} == {Access.ALWAYS}
        bench.pool.quorum = 3

        def call(name: str, plugin: str) -> Any:
            return methods[name].handler(Request(plugin=plugin), Caller())

        assert call("status.Status", "jobs").code == 200
        ready = call("status.Ready", "jobs")
        assert (ready.code, ready.message) == (503, "pool ready: 2 of 3 workers ready")
        with pytest.raises(RpcRefused, match=r"^no such plugin: nope$"):
            call("status.Status", "nope")


async def test_the_plugin_keeps_the_contract(autojump_clock: Any) -> None:
    """The battery for every plugin; without a section there is no port."""
    await check_plugin(lambda: StatusPlugin(None))


class OnOwnReactor(StatusPlugin):
    """The plugin with a port, and a reactor of its own, as the battery knows none."""

    async def run(
        self, services: Services, stopping: trio.Event, task_status: Any = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the reactor around the plugin."""
        reactor = Reactor()
        services.provide(Reactor, reactor)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                await super().run(services, stopping, task_status)
                nursery.cancel_scope.cancel()
        finally:
            reactor.close()


async def test_the_plugin_with_a_port_keeps_the_contract(autojump_clock: Any) -> None:
    """The battery for every plugin; every life binds a port."""
    await check_plugin(lambda: OnOwnReactor(StatusConfig(address="127.0.0.1:0")))
