"""The plugin over real sockets: the port, its limits, sharing of scrapes, RPC, and an address that is taken."""

from __future__ import annotations

import gzip
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import structlog.testing
import trio
import trio.testing
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from trailboss import small_http
from trailboss.config.schema import CollectorConfig, MetricsConfig
from trailboss.container.contract import Caller, Layer, RpcRefused, Services
from trailboss.container.state import ServerState
from trailboss.metrics import Exposition, Family, MetricSources, ScrapePage, gauge
from trailboss.plugins.metrics import exposition
from trailboss.plugins.metrics.plugin import RETRY_SECONDS, MetricsPlugin
from trailboss.reactor import Reactor
from trailboss.rpc.codec import Fields
from trailboss.telemetry import Telemetry
from trailboss.testing.check_plugin import check_plugin
from trailboss.workers.deaths import Deaths
from trailboss.workers.pool import PoolSet

ANYBODY = Caller()


async def until(check: Callable[[], bool]) -> None:
    """Return when `check` is true; the deadline is the bench's."""
    for _ in range(2000):
        if check():
            return
        await trio.sleep(0.01)
    raise AssertionError("it has not come true")


class Bench:
    """A plugin that runs, and what it looks at."""

    def __init__(self, plugin: MetricsPlugin, services: Services) -> None:
        self.plugin = plugin
        self.services = services
        self.sources = services.get(MetricSources)
        self.reactor = services.get(Reactor)

    async def connect(self) -> trio.SocketStream:
        """Connect to the port."""
        host, _, port = self.plugin.address.rpartition(":")
        return await trio.open_tcp_stream(host, int(port))

    async def ask(self, data: bytes) -> bytes:
        """Send bytes and return everything until the server closes."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            return b"".join([chunk async for chunk in stream])

    async def get(
        self, path: str = "/metrics", *headers: str, method: str = "GET"
    ) -> tuple[str, dict[str, str], bytes]:
        """Return status line, headers and body."""
        lines = [f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""]
        head, _, body = (await self.ask("\r\n".join(lines).encode())).partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        return first, dict(line.lower().split(": ", 1) for line in rest), body


@asynccontextmanager
async def running(config: MetricsConfig | None = None) -> AsyncIterator[Bench]:
    """A metrics plugin with the services of a server that has nothing else."""
    services = Services()
    reactor = Reactor()
    services.provide(Reactor, reactor)
    services.provide(ServerState, ServerState())
    services.provide(PoolSet, PoolSet())
    services.provide(Deaths, Deaths())
    services.provide(Telemetry, Telemetry())
    services.provide(MetricSources, MetricSources())
    plugin = MetricsPlugin(config or MetricsConfig(address="127.0.0.1:0"))
    stopping = trio.Event()
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                await nursery.start(plugin.run, services, stopping)
                yield Bench(plugin, services)
                stopping.set()
                nursery.cancel_scope.cancel()
    finally:
        reactor.close()


async def test_both_formats_and_gzip() -> None:
    """What a client gets follows its Accept and Accept-Encoding; HEAD has the same head."""
    async with running() as bench:
        status, headers, body = await bench.get()
        assert (status, headers["content-type"]) == (
            "HTTP/1.1 200 OK",
            "text/plain; version=0.0.4; charset=utf-8",
        )
        names = {family.name for family in parse_text(body.decode())}
        assert {"trailboss_build_info", "process_open_fds", "trailboss_loop_lag_seconds"} <= names

        _, headers, body = await bench.get(
            "/metrics?x=1", "Accept: application/openmetrics-text; version=1.0.0"
        )
        assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert {family.name for family in parse_openmetrics(body.decode())} >= {"process_open_fds"}

        _, headers, body = await bench.get("/metrics", "Accept-Encoding: gzip")
        assert (headers["content-encoding"], headers["vary"]) == ("gzip", "accept, accept-encoding")
        assert b"trailboss_build_info" in gzip.decompress(body)

        status, headers, body = await bench.get(method="HEAD")
        assert (status, body) == ("HTTP/1.1 200 OK", b"")
        assert int(headers["content-length"]) > 1000


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /metrics/x HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 9000, b"431"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
    ],
)
async def test_other_requests(request_bytes: bytes, status: bytes) -> None:
    """Everything else is answered in one sentence, and no second request of a connection is."""
    async with running() as bench:
        answer = await bench.ask(request_bytes)

    assert answer.split(b" ", 2)[1] == status
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_slow_and_many_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that does not come is given up; connections beyond the limit are closed, the others answered."""
    monkeypatch.setattr(small_http, "HEAD_SECONDS", 0.2)
    async with running() as bench:
        assert (await bench.ask(b"GET /metr")).startswith(b"HTTP/1.1 408 ")
        monkeypatch.setattr(small_http, "CONNECTIONS_MAX", 3)
        monkeypatch.setattr(small_http, "HEAD_SECONDS", 10.0)
        streams = [await bench.connect() for _ in range(6)]
        await trio.testing.wait_all_tasks_blocked()
        assert bench.plugin._server is not None
        server = bench.plugin._server
        await until(lambda: server.turned_away == 3)
        for stream in streams:
            await stream.aclose()
        await until(lambda: not server.connections)
        assert (await bench.get())[0] == "HTTP/1.1 200 OK"


async def test_scrapes_are_shared() -> None:
    """Those who ask at the same time cost one scrape; a later one sees new figures."""
    calls = 0

    def source() -> Iterator[Family]:
        nonlocal calls
        calls += 1
        yield gauge("calls", "", calls)

    async with running() as bench:
        bench.sources.add(source)
        bodies: list[bytes] = []

        async def client() -> None:
            bodies.append((await bench.get())[2])

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(client)
        assert len(set(bodies)) == calls <= 3
        await trio.sleep(exposition.FRESH_SECONDS)
        assert f"\ncalls {calls + 1}\n".encode() in (await bench.get())[2]


async def test_a_port_that_cannot_wait_gets_its_scrape_at_once() -> None:
    """The same text as on the port, made in one go, shared for a moment, counted as interest."""
    calls = 0

    def source() -> Iterator[Family]:
        nonlocal calls
        calls += 1
        yield gauge("calls", "", {(("i", str(i)),): calls for i in range(2000)})

    async with running() as bench:
        bench.sources.add(source)
        bench.reactor.touch()
        exposition_ = bench.services.get(Exposition)  # type: ignore[type-abstract] # the key is a Protocol
        pages = [exposition_.scrape_now() for _ in range(3)]
        _, _, body = await bench.get()

    assert calls == 1
    assert {page.body for page in pages} == {body}
    assert (pages[0].status, pages[0].encoding) == (200, "")
    assert body.count(b"\ncalls{") == 2000


async def test_a_long_scrape_lets_others_have_their_turn() -> None:
    """Between the pieces of a scrape of 50,000 lines the loop goes on."""
    async with running() as bench:
        bench.sources.add(
            lambda: [gauge(f"g{n}", "", {(("i", str(i)),): i for i in range(500)}) for n in range(100)]
        )
        before = bench.reactor.batches
        _, _, body = await bench.get()

        assert body.count(b"\n") > 50_000
        assert bench.reactor.batches - before > 10


async def test_a_source_that_fails_costs_its_own_figures() -> None:
    """The rest is served, and the scrape says that something is missing."""

    def broken() -> Iterator[Family]:
        yield gauge("before", "", 1)
        raise RuntimeError("broken")

    async with running() as bench:
        bench.sources.add(broken)
        bench.sources.add(lambda: [gauge("after", "", 1)])
        with structlog.testing.capture_logs() as logs:
            _, _, body = await bench.get()
            await trio.sleep(exposition.FRESH_SECONDS)
            await bench.get()

    assert b"\nafter 1\n" in body
    assert b"\ntrailboss_metrics_failures_total 1\n" in body
    assert [record["event"] for record in logs].count("figures are missing from a scrape") == 1


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
@pytest.mark.parametrize("family", [None, gauge("broken", "", {(("a", "b"),): "text"})])  # type: ignore[dict-item]
async def test_a_family_that_cannot_be_written_costs_itself(accept: str, family: Family) -> None:
    """What a broken plugin yields is left out; the rest is served."""
    async with running() as bench:
        bench.sources.add(lambda: [family, gauge("after", "", 1)])
        with structlog.testing.capture_logs() as logs:
            status, _, body = await bench.get("/metrics", f"Accept: {accept}")

    assert status == "HTTP/1.1 200 OK"
    assert b"\nafter 1" in body
    assert [record["event"] for record in logs].count("figures are missing from a scrape") == 1


async def test_a_scrape_that_fails_is_an_error_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of our own ends in a 500 for this scrape, not in a client that waits for ever."""
    async with running() as bench:

        def broken(_failures: int) -> Iterator[Family]:
            raise RuntimeError("broken")

        monkeypatch.setattr(bench.plugin, "_own_families", broken)
        with structlog.testing.capture_logs():
            assert (await bench.get())[0] == "HTTP/1.1 500 Internal Server Error"
            assert (await bench.get())[0] == "HTTP/1.1 500 Internal Server Error"


async def test_the_loop_is_watched_while_somebody_scrapes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One look a second after a scrape, none without one, and none long after the last."""
    services = Services()
    reactor = Reactor()
    services.provide(Reactor, reactor)
    plugin = MetricsPlugin()
    stopping = trio.Event()
    pages: list[ScrapePage] = []
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(plugin.run, services, stopping)
            await trio.sleep(1000)
            assert plugin._lag.count == 0
            reactor.touch()
            services.get(Exposition).scrape("", "", pages.append)  # type: ignore[type-abstract] # the key is a Protocol
            await trio.sleep(10.5)
            assert plugin._lag.count == 10
            await trio.sleep(1000)
            assert plugin._lag.count <= 181
            stopping.set()
    finally:
        reactor.close()


async def test_an_address_that_is_taken_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start goes on, the log says it once, and the port is there when it can be."""
    monkeypatch.setattr("trailboss.plugins.metrics.plugin.RETRY_SECONDS", (0.05, 0.05))
    assert RETRY_SECONDS[0] > 0
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = MetricsConfig(address=f"127.0.0.1:{other.getsockname()[1]}")
        with structlog.testing.capture_logs() as logs:
            async with running(config) as bench:
                assert bench.plugin.health().ok
                assert "the port is in use" in str(bench.plugin.state_detail()["problem"])
                await trio.sleep(0.2)
                other.close()
                await until(lambda: bench.plugin.address != "")
                assert (await bench.get())[0] == "HTTP/1.1 200 OK"
                assert bench.plugin.state_detail()["problem"] == ""

    complaints = [record for record in logs if "cannot be opened" in record["event"]]
    assert [record["log_level"] for record in complaints] == ["error"]


# --- RPC --------------------------------------------------------------------------------------------------------------


def call(plugin: MetricsPlugin, method: str, argument: object) -> object:
    """Call a method as the RPC server does."""
    handler = next(item.handler for item in plugin.rpc_methods() if item.name == f"metrics.{method}")
    return handler(argument, ANYBODY)


async def test_rpc_in_the_forms_that_clients_send() -> None:
    """Keys in any case, empty maps as lists, whole numbers; results are true."""
    async with running() as bench:
        plugin = bench.plugin
        declared = Fields(
            name="c",
            collector=Fields(namespace="", subsystem="", type="counter", help="h", labels=["a"], buckets=[]),
        )
        assert call(plugin, "Declare", declared) is True
        assert call(plugin, "Declare", declared) is True
        assert call(plugin, "Add", Fields(Name="c", Value=1.5, Labels=["x"])) is True
        assert call(plugin, "Add", Fields(name="c", value=1, labels=["x"])) is True
        summary = Fields(type="summary", objectives=Fields({"0.5": 0.1}), namespace="app")
        assert call(plugin, "Declare", Fields(name="s", collector=summary)) is True
        assert call(plugin, "Observe", Fields(name="s", value=3, labels=[])) is True
        for name, verb in (("g", "Set"), ("g", "Sub"), ("g", "Add")):
            call(plugin, "Declare", Fields(name=name, collector=Fields(type="gauge", objectives=[])))
            assert call(plugin, verb, Fields(name=name, value=2)) is True
        _, _, body = await bench.get()

        assert b'\nc{a="x"} 2.5\n' in body
        assert b'\napp_s{quantile="0.5"} 3\n' in body
        assert b"\ng 2\n" in body
        assert call(plugin, "Unregister", "g") is True


@pytest.mark.parametrize(
    ("method", "argument", "text"),
    [
        ("Add", {"name": "", "value": 1}, "metrics_plugin_add: undefined collector , try first Declare"),
        ("Add", {"name": 1}, "metrics_plugin_add: name is a text"),
        ("Add", {"name": "a", "value": "1"}, "metrics_plugin_add: value: a number is expected"),
        ("Add", {"name": "a", "value": True}, "metrics_plugin_add: value: a number is expected"),
        ("Sub", {"name": "a", "value": 1, "labels": "x"}, "metrics_plugin_sub: labels is a list of texts"),
        ("Set", {"name": "a", "value": 1, "labels": [1]}, "metrics_plugin_set: labels is a list of texts"),
        ("Observe", {"name": "a", "value": 1}, "metrics_plugin_observe: undefined collector a"),
        ("Declare", {"name": "a"}, "metrics_plugin_declare: collector is an object"),
        ("Declare", {"name": "a", "collector": {}}, "metrics_plugin_declare: unknown collector type ''"),
        ("Declare", {"name": "a", "collector": {"type": 1}}, "metrics_plugin_declare: type is a text"),
        ("Declare", {"name": "a", "collector": {"type": "gauge", "buckets": "x"}}, "buckets is a list"),
        (
            "Declare",
            {"name": "a", "collector": {"type": "gauge", "objectives": [1]}},
            "objectives is an object",
        ),
        (
            "Declare",
            {"name": "a", "collector": {"type": "summary", "objectives": {"x": 0.1}}},
            "an objective is a quantile as a text",
        ),
        ("Unregister", "a", "metrics_plugin_unregister: undefined collector a"),
    ],
)
async def test_rpc_errors(method: str, argument: object, text: str) -> None:
    """Each mistake is one sentence behind RoadRunner's name of the operation."""
    plugin = MetricsPlugin(MetricsConfig())
    value = Fields(argument) if isinstance(argument, dict) else argument
    with pytest.raises(RpcRefused) as caught:
        call(plugin, method, value)

    assert text in str(caught.value)


async def test_collectors_of_the_configuration() -> None:
    """They are there from the start, in lower case; one that collides with another is left out, and said."""
    collect = {
        "Orders": CollectorConfig(type="counter", namespace="shop", labels=("town",)),
        "wait": CollectorConfig(type="histogram", buckets=(1.0,)),
        "wait_sum": CollectorConfig(type="gauge"),
    }
    with structlog.testing.capture_logs() as logs:
        async with running(MetricsConfig(address="127.0.0.1:0", collect=collect)) as bench:
            call(bench.plugin, "Add", Fields(name="Orders", value=1, labels=["x"]))
            _, _, body = await bench.get()

    assert b'\nshop_orders{town="x"} 1\n' in body
    assert b'\nwait_bucket{le="1"} 0\n' in body
    assert [record["collector"] for record in logs if record["event"].endswith("is left out")] == ["wait_sum"]


def test_without_a_section_there_are_no_methods() -> None:
    """The service `metrics` is then unknown, as in RoadRunner."""
    assert MetricsPlugin().rpc_methods() == ()
    assert MetricsPlugin.layer is Layer.TELEMETRY


class OnOwnReactor(MetricsPlugin):
    """A plugin in a container that has no reactor."""

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Bring the reactor along."""
        reactor = Reactor()
        services.provide(Reactor, reactor)
        try:
            await super().run(services, stopping, task_status)
        finally:
            reactor.close()


async def test_contract_of_a_plugin() -> None:
    """The contract suite."""
    await check_plugin(lambda: OnOwnReactor(MetricsConfig(address="127.0.0.1:0")))
