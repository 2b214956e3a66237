"""The plugin's life: nothing listens before the workers are ready, the stop loses no request, the assembly knows it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
import trio

from trailboss.assembly import assemble
from trailboss.config.load import LoadRequest, load
from trailboss.config.schema import HttpConfig, HttpLimitsConfig, LogsConfig, PoolConfig, UploadsConfig
from trailboss.container.contract import Layer, PluginFailed, Services
from trailboss.plugins.http.contract import LineSink
from trailboss.plugins.http.plugin import HttpPlugin
from trailboss.plugins.logs import LogSystem
from trailboss.reactor import Reactor
from trailboss.workers.outcome import Answer, Outcome
from trailboss.workers.pool import Pool
from trailboss_worker.protocol.frames import JSON

GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
HELLO = Answer(JSON, b'{"status":200,"headers":{}}', b"hello")


@dataclass
class TrivialPool:
    """Answers at once, or keeps what it is given where `holds` is set."""

    debug: bool = False
    holds: bool = False
    queued: int = 0
    held: list[Callable[[Outcome], None]] = field(default_factory=list)

    def holders(self) -> list[tuple[int, str, float]]:
        """As Pool.holders."""
        return []

    def submit(
        self,
        context: bytes,
        body: bytes,
        flags: int,
        on_outcome: Callable[[Outcome], None],
        label: str = "",
        on_part: object = None,
    ) -> None:
        """As Pool.submit."""
        if self.holds:
            self.held.append(on_outcome)
        else:
            on_outcome(HELLO)


@dataclass
class Stage:
    """A plugin that runs."""

    plugin: HttpPlugin
    pool: TrivialPool
    reactor: Reactor
    stopping: trio.Event

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.plugin.addresses[0].rpartition(":")[2])

    async def connect(self) -> trio.SocketStream:
        """Return a connection."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    def figure(self, name: str) -> int:
        """Return a number of the plugin's state."""
        return cast(int, self.plugin.state_detail()[name])

    async def until(self, check: Callable[[], bool]) -> None:
        """Wait until `check` says so; the caller has the deadline."""
        while not check():  # noqa: ASYNC110  what is waited for happens in the reactor, which has no event for it
            await trio.sleep(0.005)


@asynccontextmanager
async def staged(
    config: HttpConfig, *, opened: bool = True, access_lines: LineSink | None = None
) -> AsyncIterator[Stage]:
    """Run a plugin with a reactor and a pool."""
    reactor = Reactor()
    services = Services()
    services.provide(Reactor, reactor)
    plugin = HttpPlugin(config, access_lines=access_lines)
    stopping = trio.Event()
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                async with trio.open_nursery() as inner:
                    await inner.start(plugin.run, services, stopping)
                    pool = TrivialPool()
                    plugin.attach_pool(cast(Pool, pool))
                    if opened:
                        await plugin.open()
                    yield Stage(plugin, pool, reactor, stopping)
                    stopping.set()
                nursery.cancel_scope.cancel()
    finally:
        reactor.close()


def make_config(**keys: Any) -> HttpConfig:
    """Return a configuration on a free port."""
    return HttpConfig(**{"address": ("127.0.0.1:0",), "pool": PoolConfig(num_workers=1), **keys})


async def test_it_listens_once_it_is_opened() -> None:
    """No address is bound while workers boot; after `open` a request is answered, on every address."""
    config = make_config(address=("127.0.0.1:0", "127.0.0.1:0"))
    async with staged(config, opened=False) as stage:
        assert stage.plugin.addresses == ()
        await stage.plugin.open()
        assert len(set(stage.plugin.addresses)) == 2
        for address in stage.plugin.addresses:
            async with await trio.open_tcp_stream("127.0.0.1", int(address.rpartition(":")[2])) as client:
                await client.send_all(GET)
                received = await client.receive_some()
                assert received.startswith(b"HTTP/1.1 200 OK\r\n")
                assert received.endswith(b"hello")
        assert stage.figure("requests") == 2
        assert stage.figure("accepted") == 2


async def test_an_address_that_is_taken_fails_the_start_and_frees_the_others() -> None:
    """The error names it; an address that was bound before is free again."""
    async with staged(make_config()) as stage:
        taken = stage.plugin.addresses[0]
        async with staged(make_config(address=("127.0.0.1:0", taken)), opened=False) as second:
            with pytest.raises(PluginFailed, match="the port is in use"):
                await second.plugin.open()
            assert second.plugin.addresses == ()


async def test_a_wrong_middleware_fails_the_start() -> None:
    """Before any worker boots."""
    services = Services()
    reactor = Reactor()
    services.provide(Reactor, reactor)
    plugin = HttpPlugin(make_config(middleware=("nonsense",)))
    with pytest.raises(PluginFailed, match="there is no middleware nonsense"):
        await plugin.run(services, trio.Event())
    reactor.close()


async def test_a_folder_for_uploads_that_is_not_there(tmp_path: Path) -> None:
    """The start goes on, since nobody may upload anything, and one warning names the key."""
    folder = str(tmp_path / "none")
    with structlog.testing.capture_logs() as records:
        async with staged(make_config(uploads=UploadsConfig(dir=folder))):
            pass
    warnings = [record for record in records if record.get("key") == "http.uploads.dir"]
    assert [(record["log_level"], record["folder"]) for record in warnings] == [("warning", folder)]


async def test_a_request_under_way_is_finished_by_the_drain() -> None:
    """The port closes at once, the request is answered and its connection closed, then the drain is over."""
    async with staged(make_config()) as stage:
        stage.pool.holds = True
        port = stage.port
        client = await stage.connect()
        idle = await stage.connect()
        await client.send_all(GET)
        await stage.until(lambda: stage.figure("in_flight") == 1 and stage.figure("connections") == 2)
        await stage.plugin.close_intake()
        with pytest.raises(OSError, match="attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
        async with trio.open_nursery() as nursery:
            drained = trio.Event()

            async def drain() -> None:
                await stage.plugin.drain()
                drained.set()

            nursery.start_soon(drain)
            assert await idle.receive_some() == b""
            assert not drained.is_set()
            stage.pool.held[0](HELLO)
            received = await client.receive_some()
            assert received.endswith(b"hello")
            assert b"\r\nConnection: close\r\n" in received
            assert await client.receive_some() == b""
            await drained.wait()
        await client.aclose()
        await idle.aclose()


async def test_the_end_writes_the_access_log_that_waits() -> None:
    """A record comes a moment after its answer, and at the latest when the server stops."""
    lines: list[tuple[str, str]] = []
    async with staged(make_config(), access_lines=lines.extend) as stage:
        client = await stage.connect()
        await client.send_all(GET)
        await client.receive_some()
        await stage.until(lambda: len(lines) == 1)
        await client.send_all(GET)
        await client.receive_some()
        stage.stopping.set()
        await stage.until(lambda: len(lines) == 2)
        await client.aclose()


async def test_a_kept_connection_gets_its_last_answer_during_the_drain() -> None:
    """A request that is sent while the server drains is answered, and the connection ends with it."""
    async with staged(make_config()) as stage:
        client = await stage.connect()
        busy = await stage.connect()
        await client.send_all(GET)
        assert (await client.receive_some()).endswith(b"hello")
        stage.pool.holds = True
        await busy.send_all(GET)
        await stage.until(lambda: stage.figure("in_flight") == 1)
        stage.pool.holds = False
        await stage.plugin.close_intake()
        async with trio.open_nursery() as nursery:
            await client.send_all(GET)
            await stage.until(lambda: stage.figure("requests") == 3)
            nursery.start_soon(stage.plugin.drain)
            received = await client.receive_some()
            assert received.startswith(b"HTTP/1.1 200 ")
            assert b"\r\nConnection: close\r\n" in received
            stage.pool.held[0](HELLO)
        await client.aclose()
        await busy.aclose()


async def test_after_a_drain_that_was_cut_short_requests_are_refused() -> None:
    """The deadline of the drain has passed: who still comes over a kept connection gets 503, and the connection ends."""
    async with staged(make_config()) as stage:
        stage.pool.holds = True
        busy = await stage.connect()
        late = await stage.connect()
        await busy.send_all(GET)
        await late.send_all(GET[:5])
        await stage.until(lambda: stage.figure("in_flight") == 1 and stage.figure("connections") == 2)
        await stage.plugin.close_intake()
        with trio.move_on_after(0.05):
            await stage.plugin.drain()
        await late.send_all(GET[5:])
        received = await late.receive_some()
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"trailboss-reason: the server is stopping" in received
        stage.pool.held[0](HELLO)
        assert (await busy.receive_some()).endswith(b"hello")
        await busy.aclose()
        await late.aclose()


async def test_the_end_closes_what_is_left() -> None:
    """Connections and listeners are gone when `run` has returned."""
    async with staged(make_config()) as stage:
        client = await stage.connect()
        await client.send_all(GET[:3])
        await stage.until(lambda: stage.figure("connections") == 1)
    assert stage.plugin.addresses == ()
    assert stage.figure("connections") == 0
    with trio.fail_after(5):
        assert await client.receive_some() == b""
    await client.aclose()


async def test_limits_of_the_configuration_arrive() -> None:
    """A limit that is written is the one that holds."""
    async with staged(make_config(limits=HttpLimitsConfig(header_count=2, head_timeout=0.1))) as stage:
        async with await stage.connect() as client:
            await client.send_all(b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\nC: d\r\n\r\n")
            assert (await client.receive_some()).startswith(b"HTTP/1.1 431 ")
        async with await stage.connect() as client:
            await client.send_all(b"GET")
            assert (await client.receive_some()).startswith(b"HTTP/1.1 408 ")


def test_what_the_container_is_told() -> None:
    """One pool in mode http, and the layer that is closed before the RPC port."""
    plugin = HttpPlugin(make_config())
    (spec,) = plugin.pools()
    assert (spec.name, spec.mode, plugin.layer) == ("http", "http", Layer.DRIVER)
    assert plugin.state_detail() == {"addresses": []}


def test_the_assembly_brings_it_where_it_is_configured(tmp_path: Path) -> None:
    """A section `http` is a plugin `http`; without one there is none."""
    for section, expected in (("http: {address: '127.0.0.1:0'}", True), ("", False)):
        (tmp_path / ".rr.yaml").write_text(
            f"version: '3'\nserver: {{command: [php, w.php]}}\njobs: {{}}\n{section}\n"
        )
        config = load(LoadRequest(path=str(tmp_path / ".rr.yaml")))
        logs = LogSystem(LogsConfig(mode="none"))
        assembly = assemble(config, logs, {})
        assert ("http" in assembly.container._handles) is expected
        assembly.reactor.close()
        logs.close(0.1)
