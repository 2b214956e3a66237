"""The plugin `metrics`: a port for Prometheus, the metrics that applications keep, and the service behind both.

Observability is lazy and never fatal. The plugin is there without its section too, because the status port shows
/metrics as well; then it has no port and no RPC methods. An address that cannot be bound does not end the start: it is
logged and tried again, while the status port and the RPC methods work. Nothing is measured for a scrape but at a scrape;
the lateness of the loop is sampled while somebody scrapes, and no longer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Final, TypeVar

import trio

from trailboss.config.schema import CollectorConfig, MetricsConfig
from trailboss.config.values import parse_address
from trailboss.container.contract import Caller, Layer, Plugin, RpcMethod, RpcRefused, Services
from trailboss.figures import Histogram
from trailboss.handover import Handover, Offer, Passed
from trailboss.log import logger
from trailboss.metrics import CollectorSpec, Exposition, Family, MetricSources, ScrapePage, counter, gauge
from trailboss.parcels import Parcel
from trailboss.plugins.metrics.collectors import CollectorError, Collectors, CollectorShare
from trailboss.plugins.metrics.estate import ESTATE_VERSION, SERIES_MAX, pack_shares, read_shares
from trailboss.plugins.metrics.exposition import Scrapes
from trailboss.reactor import Reactor
from trailboss.small_http import SmallAnswer, SmallRequest, SmallServer, bind_port

__all__ = ["LAG_BOUNDS", "MetricsPlugin", "spec_of"]

log = logger("metrics")

#: Upper bounds for the lateness of the loop, in seconds.
LAG_BOUNDS: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
LAG_PERIOD_SECONDS: Final = 1.0
#: The lateness is sampled for so long after a scrape.
INTEREST_SECONDS: Final = 180.0
#: Between two attempts to bind the port: at first, and at most.
RETRY_SECONDS: Final = (1.0, 30.0)

T = TypeVar("T")


class MetricsPlugin(Plugin):
    """Serves scrapes and the service `metrics`. Without a section there is only the service for other ports."""

    name = "metrics"
    layer = Layer.TELEMETRY
    after = frozenset({"logs"})

    def __init__(self, config: MetricsConfig | None = None) -> None:
        self._config = config
        settings = config if config is not None else MetricsConfig()
        self.collectors = Collectors(settings.max_series, settings.max_samples)
        self._lag = Histogram(LAG_BOUNDS)
        self._services = Services()
        self._handover = Handover()
        #: The server's own figures; those of other plugins come by the service.
        self._own_sources = MetricSources()
        self._scrapes: Scrapes | None = None
        self._server: SmallServer | None = None
        self._problem = ""
        self._asked = trio.Event()
        #: Scrapes that came before the library was there: two threads that import it at once get half of it.
        self._early: list[Callable[[], None]] | None = [] if config is not None else None
        self._source: Callable[[], Iterator[Family]] | None = None

    # --- the contract -------------------------------------------------------------------------------------------------

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Make the service and the collectors of the configuration, bind the port, serve until `stopping`.

        On cancellation: connections are closed at once.
        """
        reactor = services.get(Reactor)
        self._services = services
        self._handover = services.find(Handover) or self._handover
        self._scrapes = Scrapes(
            reactor, self._families, (services.find(MetricSources) or self._own_sources).note_failure
        )
        services.provide(Exposition, self)  # type: ignore[type-abstract] # the key of a service may be a Protocol
        if self._config is not None:
            self._declare_configured(self._config.collect)
            self._handover.add_estate(self.name, ESTATE_VERSION, self)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sample_lag, reactor)
                if self._config is not None:
                    inherited = self._handover.claim("metrics", self._config.address)
                    if inherited is not None:
                        nursery.start_soon(self._serve_in_charge, reactor, self._config, inherited)
                    elif not self._try_bind(reactor, self._config):
                        nursery.start_soon(self._bind_later, reactor, self._config)
                    nursery.start_soon(self._import_library, reactor)
                task_status.started()
                await stopping.wait()
                # What has been counted here since the change; the workers have ended by now.
                await self._handover.deliver(self.name)
                nursery.cancel_scope.cancel("the metrics plugin stops")
        finally:
            server, self._server = self._server, None
            if server is not None:
                server.close()

    async def drain(self) -> None:
        """Wait for what the server before this one still has, where there is another one after it."""
        if self._handover.given_up:
            await self._handover.received.wait()

    def rpc_methods(self) -> Sequence[RpcMethod]:
        """Return the methods of the service `metrics`, where the configuration has the section."""
        if self._config is None:
            return ()
        return (
            RpcMethod("metrics.Add", self._rpc_add, argument=dict, doc="add to a counter or a gauge"),
            RpcMethod("metrics.Sub", self._rpc_sub, argument=dict, doc="subtract from a gauge"),
            RpcMethod("metrics.Set", self._rpc_set, argument=dict, doc="set a gauge"),
            RpcMethod(
                "metrics.Observe",
                self._rpc_observe,
                argument=dict,
                doc="give a value to a histogram or a summary",
            ),
            RpcMethod("metrics.Declare", self._rpc_declare, argument=dict, doc="make a collector"),
            RpcMethod("metrics.Unregister", self._rpc_unregister, argument=str, doc="forget a collector"),
        )

    def state_detail(self) -> Mapping[str, object]:
        """Say where the port is, or why there is none, and what applications keep."""
        if self._config is None:
            return {}
        return {
            "address": self.address,
            "problem": self._problem,
            "collectors": len(self.collectors),
            "samples": self.collectors.samples,
            "refused": self.collectors.refused,
            "scrapes": self._scrapes.served if self._scrapes is not None else 0,
        }

    @property
    def address(self) -> str:
        """host:port where the port is bound, "" where it is not."""
        return self._server.address if self._server is not None else ""

    # --- the estate: see trailboss.parcels ----------------------------------------------------------------------------

    def declarations(self) -> Parcel | None:
        """The collectors, without their values."""
        return _parcel(self.collectors.specs(), lambda: None)

    def next_parcel(self) -> Parcel | None:
        """Some values, which are gone from here."""
        shares = self.collectors.take_out(SERIES_MAX, trio.current_time())

        def put_back() -> None:
            self.collectors.take_in(shares, trio.current_time())

        return _parcel(shares, put_back)

    async def receive(self, content: object) -> int:
        """Add the values of the predecessor; what does not fit is logged and left out. Raises ParcelRefused."""
        shares = read_shares(content)
        problems = self.collectors.take_in(shares, trio.current_time())
        if problems:
            log.warning("metrics of the old server are left out", number=len(problems), reason=problems[0])
        return sum(len(share.series) for share in shares)

    # --- scrapes ------------------------------------------------------------------------------------------------------

    def scrape(self, accept: str, accept_encoding: str, on_done: Callable[[ScrapePage], None]) -> None:
        """Exposition: make a scrape."""
        if self._early is not None:
            self._early.append(partial(self.scrape, accept, accept_encoding, on_done))
            return
        assert self._scrapes is not None  # the service is provided after it is made
        self._asked.set()
        self._scrapes.scrape(accept, accept_encoding, on_done)

    def scrape_now(self) -> ScrapePage:
        """Exposition: make a scrape at once."""
        assert self._scrapes is not None  # the service is provided after it is made
        self._asked.set()
        return self._scrapes.scrape_now()

    def _families(self) -> Iterator[Family]:
        """Yield the server's own figures, those of other plugins, those of applications. Never raises."""
        sources = self._services.find(MetricSources)
        own = self._own_sources
        if self._source is None:
            own.add(self._server_source())
        yield from own.families()
        if sources is not None:
            yield from sources.families()
        yield from self._own_families(own.failures + (sources.failures if sources is not None else 0))
        yield from self.collectors.families(trio.current_time())

    def _server_source(self) -> Callable[[], Iterator[Family]]:
        if self._source is None:
            from trailboss.plugins.metrics.sources import ServerSource

            self._source = ServerSource(self._services, self._lag)
        return self._source

    def _own_families(self, failures: int) -> Iterator[Family]:
        yield gauge("trailboss_metrics_collectors", "Collectors of applications.", len(self.collectors))
        yield gauge(
            "trailboss_metrics_samples", "Lines of a scrape that are theirs.", self.collectors.samples
        )
        yield counter(
            "trailboss_metrics_refused_total",
            "Calls of applications that met a limit: max_series, max_samples, or the length of a label's value.",
            self.collectors.refused,
        )
        yield counter(
            "trailboss_metrics_failures_total",
            "Figures that were missing from scrapes; the log says why.",
            failures,
        )

    def _answer(self, request: SmallRequest, reply: Callable[[SmallAnswer], None]) -> None:
        """The port: /metrics, and nothing else."""
        if request.path != "/metrics":
            reply(SmallAnswer(404, b"not found; the metrics are at /metrics\n"))
            return

        def on_done(page: ScrapePage) -> None:
            encoding = (("Content-Encoding", page.encoding),) if page.encoding else ()
            headers = (("Vary", "Accept, Accept-Encoding"), *encoding)
            reply(SmallAnswer(page.status, page.body, page.content_type, headers))

        self.scrape(request.headers.get("accept", ""), request.headers.get("accept-encoding", ""), on_done)

    async def _sample_lag(self, reactor: Reactor) -> None:
        """Measure how late this task wakes up, for as long as somebody scrapes."""
        assert self._scrapes is not None
        while True:
            self._asked = trio.Event()
            await self._asked.wait()
            while trio.current_time() < self._scrapes.asked_at + INTEREST_SECONDS:
                due = trio.current_time() + LAG_PERIOD_SECONDS
                await trio.sleep_until(due)
                self._lag.observe(max(0.0, trio.current_time() - due))

    # --- the port -----------------------------------------------------------------------------------------------------

    def _try_bind(self, reactor: Reactor, config: MetricsConfig) -> bool:
        """Bind the port; False, with a log line at the first time, where that is not possible now."""
        _, host, port = parse_address(config.address)
        try:
            sock = bind_port(host, port)
        except OSError as error:
            problem = f"metrics.address: {config.address}: {error.strerror or error}"
            if problem != self._problem:
                log.error(
                    "the metrics port cannot be opened for now, the server goes on without", reason=problem
                )
            self._problem = problem
            return False
        reactor.touch()
        self._serve(reactor, config, sock)
        return True

    def _serve(self, reactor: Reactor, config: MetricsConfig, sock: socket.socket) -> None:
        self._server = SmallServer(sock, reactor, self._answer, log)
        self._handover.offer(Offer("metrics", config.address, sock, self._server.give_up))
        self._problem = ""
        log.info("metrics port bound", address=self._server.address)

    async def _serve_in_charge(self, reactor: Reactor, config: MetricsConfig, passed: Passed) -> None:
        """Take over a predecessor's port when it has let go."""
        sock = passed.socket()
        try:
            await self._handover.in_charge.wait()
        except BaseException:
            sock.close()
            raise
        reactor.touch()
        self._serve(reactor, config, sock)

    async def _import_library(self, reactor: Reactor) -> None:
        """Import in a thread what the first scrape needs; there it would hold up everybody for some 50 ms."""
        try:
            await trio.to_thread.run_sync(import_module, f"{__package__}.sources", abandon_on_cancel=True)
            await trio.to_thread.run_sync(import_module, f"{__package__}.render", abandon_on_cancel=True)
        except ImportError as error:
            log.error("the metrics library cannot be imported", reason=str(error))
        early, self._early = self._early or [], None
        reactor.touch()
        for scrape in early:
            scrape()

    async def _bind_later(self, reactor: Reactor, config: MetricsConfig) -> None:
        wait, longest = RETRY_SECONDS
        while True:
            await trio.sleep(wait)
            if self._try_bind(reactor, config):
                return
            wait = min(2 * wait, longest)

    # --- RPC ----------------------------------------------------------------------------------------------------------

    def _declare_configured(self, collect: Mapping[str, CollectorConfig]) -> None:
        for name, collector in collect.items():
            try:
                self.collectors.declare(spec_of(name, collector), by_application=False)
            except (
                CollectorError
            ) as error:  # the loader has checked each; what is left are names that collide
                log.error("a collector of the configuration is left out", collector=name, reason=str(error))

    def _rpc_add(self, argument: Mapping[str, object], _caller: Caller) -> bool:
        name, value, labels = _metric("metrics_plugin_add", argument)
        return _guarded("metrics_plugin_add", self.collectors.add, name, value, labels)

    def _rpc_sub(self, argument: Mapping[str, object], _caller: Caller) -> bool:
        name, value, labels = _metric("metrics_plugin_sub", argument)
        return _guarded("metrics_plugin_sub", self.collectors.sub, name, value, labels)

    def _rpc_set(self, argument: Mapping[str, object], _caller: Caller) -> bool:
        name, value, labels = _metric("metrics_plugin_set", argument)
        return _guarded("metrics_plugin_set", self.collectors.set, name, value, labels)

    def _rpc_observe(self, argument: Mapping[str, object], _caller: Caller) -> bool:
        name, value, labels = _metric("metrics_plugin_observe", argument)
        return _guarded(
            "metrics_plugin_observe", self.collectors.observe, name, value, labels, trio.current_time()
        )

    def _rpc_declare(self, argument: Mapping[str, object], _caller: Caller) -> bool:
        operation = "metrics_plugin_declare"
        return _guarded(operation, self.collectors.declare, _declared(operation, argument))

    def _rpc_unregister(self, name: str, _caller: Caller) -> bool:
        return _guarded("metrics_plugin_unregister", self.collectors.unregister, name)


def _parcel(shares: Sequence[CollectorShare], put_back: Callable[[], None]) -> Parcel | None:
    items = sum(len(share.series) for share in shares)
    return Parcel(pack_shares(shares), items, put_back) if shares else None


def spec_of(name: str, config: CollectorConfig) -> CollectorSpec:
    """Return what a section of `metrics.collect` declares; its name is in lower case, as RoadRunner reads it."""
    return CollectorSpec(
        name.lower(),
        config.type,
        config.help,
        config.labels,
        config.buckets,
        {float(share): error for share, error in config.objectives.items()},
        config.namespace,
        config.subsystem,
    )


def _guarded(operation: str, call: Callable[..., None], *arguments: object) -> bool:
    """Carry out `call`; what it refuses gets RoadRunner's form of an error."""
    try:
        call(*arguments)
    except CollectorError as error:
        raise RpcRefused(f"{operation}: {error}") from None
    return True


def _metric(operation: str, argument: Mapping[str, object]) -> tuple[str, float, list[str]]:
    """Return name, value and label values of a call. Raises RpcRefused."""
    name = argument.get("name", "")
    value = argument.get("value", 0)
    labels = argument.get("labels")
    if not isinstance(name, str):
        raise RpcRefused(f"{operation}: name is a text")
    return name, _number(operation, "value", value), _texts(operation, "labels", labels)


def _declared(operation: str, argument: Mapping[str, object]) -> CollectorSpec:
    """Return what a call of Declare describes. Raises RpcRefused."""
    collector = argument.get("collector")
    if not isinstance(collector, Mapping):
        raise RpcRefused(f"{operation}: collector is an object with type, help, labels and so on")
    objectives = collector.get("objectives")
    if not objectives:  # PHP writes an empty map as a list
        objectives = {}
    if not isinstance(objectives, Mapping):
        raise RpcRefused(f"{operation}: objectives is an object: quantile to error")
    buckets = collector.get("buckets") or []
    if not isinstance(buckets, list):
        raise RpcRefused(f"{operation}: buckets is a list of numbers")
    try:
        shares = {
            float(share): _number(operation, "objectives", error) for share, error in objectives.items()
        }
    except ValueError:
        raise RpcRefused(f'{operation}: an objective is a quantile as a text, for example "0.99"') from None
    return CollectorSpec(
        _text(operation, "name", argument),
        _text(operation, "type", collector),
        _text(operation, "help", collector),
        tuple(_texts(operation, "labels", collector.get("labels"))),
        tuple(_number(operation, "buckets", bound) for bound in buckets),
        shares,
        _text(operation, "namespace", collector),
        _text(operation, "subsystem", collector),
    )


def _text(operation: str, key: str, values: Mapping[str, object]) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RpcRefused(f"{operation}: {key} is a text")
    return value


def _number(operation: str, key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RpcRefused(f"{operation}: {key}: a number is expected")
    return float(value)


def _texts(operation: str, key: str, value: object) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RpcRefused(f"{operation}: {key} is a list of texts")
    return value
