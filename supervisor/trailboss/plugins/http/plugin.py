"""The plugin `http`: listeners in front, the pool behind, middleware between.

Life: `run` builds the chain and loads the certificate, so what is wrong with either fails the start before anything
listens, and looks after changed certificates; `open` binds the listeners once the workers are ready, so READY means that a request is answered; `close_intake` takes no further connection, and
every answer ends its connection from then on; `drain` waits for the requests under way and a moment more for those that
kept connections send just then; afterwards a request is answered 503, and the end of `run` closes what is left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from trailboss.activation import PassedSockets
from trailboss.certificates import LOOK_SECONDS, CertificateError, Certificates, utc_day
from trailboss.config.changes import is_under
from trailboss.config.schema import Config, HttpConfig
from trailboss.container.contract import Change, Layer, Phase, Plugin, PluginFailed, Services
from trailboss.container.inspect import HttpFigures, HttpInspector
from trailboss.handover import Handover
from trailboss.log import logger
from trailboss.metrics import MetricSources
from trailboss.plugins.http.contract import LineSink, MiddlewareError, MiddlewareServices
from trailboss.plugins.http.exchange import Exchange
from trailboss.plugins.http.front import Front
from trailboss.plugins.http.front_figures import http_families
from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.listen import HANDSHAKE_SECONDS, AddressError, Listener, bind_all, expect_passed
from trailboss.plugins.http.middleware.chain import build_chain
from trailboss.plugins.http.python_apps import without_websockets
from trailboss.plugins.http.redirect import redirect_plain
from trailboss.plugins.http.refusals import Refusals
from trailboss.plugins.http.spool import Spool
from trailboss.plugins.http.unsent import AnswerAccount
from trailboss.plugins.http.upload_folder import sweep
from trailboss.plugins.http.uploads import Owner
from trailboss.plugins.http.warmup import failure_of, query_of, warmup_payload
from trailboss.reactor import Reactor
from trailboss.telemetry import Telemetry
from trailboss.workers.lane import OnOutcome, OnPart
from trailboss.workers.outcome import PoolClosed

if TYPE_CHECKING:
    from trailboss.workers.pool import Pool, PoolSpec

__all__ = ["HttpPlugin"]

log = logger("http")

MEGABYTE: Final = 1 << 20
#: A kept connection on which nothing has happened for this long during the drain is closed.
QUIET_SECONDS: Final = 0.25


#: What changes while the server runs, beside `http.limits`; new connections follow it.
_LIVE_KEYS: Final = frozenset(
    {"http.max_request_size", "http.internal_error_code", "http.retry", "http.on_disconnect"}
)
#: Of `http.limits`, what belongs to accounts that are open.
_MEMORY_KEYS: Final = (
    "body_memory",
    "body_memory_total",
    "answer_memory",
    "answer_memory_total",
    "answer_file",
    "answer_file_total",
)


class _PoolToCome:
    """Stands for the pool until the container has made it; no listener is open then."""

    debug = False

    def submit(
        self,
        context: bytes,
        body: bytes,
        flags: int,
        on_outcome: OnOutcome,
        label: str = "",
        on_part: OnPart | None = None,
    ) -> None:
        """Refuse."""
        on_outcome(PoolClosed("the workers have not been started"))


class _Later:
    """Runs functions a little later, and those that still wait when the server stops then."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._waiting: set[Callable[[], None]] = set()
        self._stopped = False

    def __call__(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call `callback` in about `seconds`, once, however often it was asked for meanwhile."""
        if self._stopped:
            self._reactor.call_soon(callback)
        elif callback not in self._waiting:
            self._waiting.add(callback)
            self._reactor.wheel.add(self._reactor.now + seconds, lambda _now: self._run(callback))

    def _run(self, callback: Callable[[], None]) -> None:
        if callback in self._waiting:
            self._waiting.discard(callback)
            callback()

    def stop(self) -> None:
        """Call what waits now."""
        self._stopped = True
        for callback in list(self._waiting):
            self._run(callback)


class HttpPlugin(Plugin):
    """The web server.

    `gateway`: wsgi or asgi where the workers run a Python application. `owner`: whom uploaded files are given to. `section`: looks up a
    section of the configuration that a third party has declared. `logs_info`: whether info records go anywhere.
    """

    name = "http"
    layer = Layer.DRIVER

    def __init__(
        self,
        config: HttpConfig,
        *,
        gateway: str = "",
        owner: Owner | None = None,
        section: Callable[[str, type], object] | None = None,
        logs_info: Callable[[], bool] = lambda: True,
        access_lines: LineSink | None = None,
        passed_sockets: PassedSockets | None = None,
    ) -> None:
        self._config = config
        #: What is in force of what a reload can change.
        self._followed = config
        self._gateway = gateway
        self._owner = owner
        self._section = section
        self._logs_info = logs_info
        self._access_lines = access_lines
        self._passed_sockets = passed_sockets if passed_sockets is not None else PassedSockets()
        self._certificates: Certificates | None = None
        self._exchange: Exchange | None = None
        self._front: Front | None = None
        self._listeners: list[Listener] = []
        self._handover = Handover()
        self._progress = trio.Event()

    # --- the contract -------------------------------------------------------------------------------------------------

    def pools(self) -> Sequence[PoolSpec]:
        """The pool of the workers that answer requests."""
        from trailboss.workers.workshop import PoolSpec

        variables = {"TRAILBOSS_DEV": "1"} if self._config.dev else {}
        return (
            PoolSpec(
                "http",
                "http",
                self._config.pool,
                variables,
                takes_files=self._gateway != "",
                warmup_request=self._warmup_request,
                is_failure=failure_of,
                distinction=query_of,
            ),
        )

    def _warmup_request(self, path: str) -> tuple[bytes, bytes, int]:
        assert self._exchange is not None  # made by `run`, which the container has waited for
        return warmup_payload(self._exchange, path)

    def prepare_reload(self, config: Config, changed: frozenset[str]) -> Change | None:
        """Take in the limits of connections and how failures are answered."""
        front, exchange, new = self._front, self._exchange, config.http
        if front is None or exchange is None or new is None:
            return None
        taken = {key for key in changed if key in _LIVE_KEYS or is_under(key, "http.limits")}
        taken -= {f"http.limits.{name}" for name in _MEMORY_KEYS}
        old_limits, old_config = front.limits, self._followed

        def commit() -> None:
            front.limits = Limits.of(new.limits, new.max_request_size)
            exchange.follow(new)
            self._followed = new

        def revert(_pools: frozenset[str]) -> None:
            front.limits = old_limits
            exchange.follow(old_config)
            self._followed = old_config

        return Change(frozenset(taken), commit, revert)

    def attach_pool(self, pool: Pool) -> None:
        """Receive the pool; requests are handed to it from `open` on."""
        assert self._exchange is not None  # made by `run`, which the container has waited for
        self._exchange.pool = pool
        if self._front is not None:
            self._front.refusals.pool = pool

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Build the chain, be healthy, serve until `stopping`.

        Raises: PluginFailed where a middleware cannot be made or the certificate cannot be used.
        On cancellation: connections are closed at once.
        """
        reactor = services.get(Reactor)
        self._handover = services.find(Handover) or self._handover
        config = self._config
        later = _Later(reactor)
        refusals = Refusals(lambda: reactor.now)
        # Frameworks in Python parse forms themselves.
        raw_body = True if self._gateway else None
        exchange = self._exchange = Exchange(
            _PoolToCome(), config, reactor, owner=self._owner, raw_body=raw_body, refusals=refusals
        )
        innermost = without_websockets(exchange, refusals) if self._gateway == "asgi" else exchange
        try:
            handler = build_chain(config, self._middleware_services(reactor, services, later), innermost)
        except MiddlewareError as error:
            raise PluginFailed(self.name, Phase.STARTING, str(error)) from error
        try:
            expect_passed(self._wanted(), self._passed_sockets)
        except AddressError as error:
            raise PluginFailed(self.name, Phase.STARTING, str(error)) from error
        await self._load_certificates()
        limits = config.limits
        spool = Spool(limits.body_memory * MEGABYTE, limits.body_memory_total * MEGABYTE, config.uploads.dir)
        answers = AnswerAccount(
            limits.answer_memory * MEGABYTE,
            limits.answer_memory_total * MEGABYTE,
            limits.answer_file * MEGABYTE,
            limits.answer_file_total * MEGABYTE,
            config.uploads.dir,
        )
        front = self._front = Front(
            reactor, Limits.of(limits, config.max_request_size), spool, handler, answers
        )
        front.refusals = refusals
        front.http2.h2c = config.http2.h2c
        front.http2.max_concurrent_streams = config.http2.max_concurrent_streams
        services.provide(HttpInspector, self)  # type: ignore[type-abstract] # the key of a service may be a Protocol
        sources = services.find(MetricSources)
        if sources is not None:
            sources.add(lambda: http_families(front))
        folder = exchange.upload_rules.folder.parent
        try:
            if not await trio.to_thread.run_sync(_is_usable, folder):
                log.warning(
                    "uploads and long bodies cannot be kept: there is no folder that can be written to",
                    key="http.uploads.dir",
                    folder=folder,
                    remedy="create it, or correct the path",
                )
            await trio.to_thread.run_sync(sweep, folder, self._owner)
            task_status.started()
            await self._until(stopping)
        finally:
            self._close_listeners()
            front.close_all()
            later.stop()

    def _middleware_services(self, reactor: Reactor, known: Services, later: _Later) -> MiddlewareServices:
        def clock() -> float:
            return reactor.now

        services = MiddlewareServices(
            clock,
            reactor.call_soon,
            self._logs_info,
            access_lines=self._access_lines,
            call_later=later,
            sources=known.find(MetricSources) or MetricSources(),
            telemetry=known.find(Telemetry) or Telemetry(),
        )
        if self._section is None:
            return services
        return replace(services, section=self._section)  # type: ignore[arg-type]

    async def _load_certificates(self) -> None:
        if self._config.ssl is None:
            return
        try:
            self._certificates = await trio.to_thread.run_sync(
                Certificates, self._config.ssl, self._protocols()
            )
        except CertificateError as error:
            raise PluginFailed(self.name, Phase.STARTING, str(error)) from error

    def _protocols(self) -> tuple[str, ...]:
        """What clients may agree upon over TLS, the preferred one first."""
        return ("h2", "http/1.1") if self._config.http2.enabled else ("http/1.1",)

    async def _until(self, stopping: trio.Event) -> None:
        """Wait for the stop; meanwhile look for changed certificates."""
        certificates = self._certificates
        if certificates is None:
            await stopping.wait()
            return
        while True:
            with trio.move_on_after(LOOK_SECONDS):
                await stopping.wait()
                return
            await trio.to_thread.run_sync(certificates.look, abandon_on_cancel=True)

    async def reload_certificates(self) -> bool:
        """Read the certificate's files now, without waiting for them to be noticed.

        False where they cannot be used, which is logged, and the old ones stay; or where there is no TLS.
        """
        if self._certificates is None:
            return False
        return await trio.to_thread.run_sync(self._certificates.reload)

    def _wanted(self) -> list[tuple[str, tuple[str, ...]]]:
        """Return the addresses by their keys."""
        ssl = self._config.ssl
        return [("http.address", self._config.address), ("http.ssl.address", ssl.address if ssl else ())]

    async def open(self) -> None:
        """Bind every address and begin to accept. Raises PluginFailed, with no address bound, if one cannot be."""
        front = self._front
        assert front is not None
        ssl, entrance = self._config.ssl, None
        try:
            bound = await trio.to_thread.run_sync(
                bind_all, self._wanted(), self._passed_sockets, self._handover
            )
        except AddressError as error:
            raise PluginFailed(self.name, Phase.HEALTHY, str(error)) from error
        front.reactor.touch()
        secure = [item.address for key, item in bound if key == "http.ssl.address"]
        if self._certificates is not None:
            from trailboss.plugins.http.h2 import H2Connection
            from trailboss.plugins.http.handshake import TlsEntrance

            # Offered only where it is enabled; so it is agreed on only then.
            entrance = TlsEntrance(front, self._certificates, {"h2": H2Connection})
        if ssl is not None and ssl.redirect:
            front.handler = redirect_plain(front.handler, _port(secure[0]))
        self._listeners = [
            Listener(item, front, entrance if key == "http.ssl.address" else None) for key, item in bound
        ]
        for listener in self._listeners:
            self._handover.offer(listener.offer())
        plain = [item.address for key, item in bound if key == "http.address"]
        if self._config.dev:
            log.warning(
                "DEVELOPMENT MODE: whoever reaches this server is shown errors with source code; "
                "never run it like this in production",
                key="http.dev",
            )
        log.info("http server was started", address=plain, **({"ssl_address": secure} if secure else {}))

    async def close_intake(self) -> None:
        """Accept who has connected already, then release the addresses. Every answer ends its connection from now on."""
        if self._front is not None:
            self._front.draining = True
            self._front.on_progress = self._on_progress
        for listener in self._listeners:
            listener.turn_away()
            listener.accept_waiting()
        try:
            if self._listeners:
                await trio.sleep(HANDSHAKE_SECONDS)
        finally:
            for listener in self._listeners:
                listener.accept_waiting()
            self._close_listeners()

    async def drain(self) -> None:
        """Return when no request is under way and every kept connection has been quiet for a moment.

        On cancellation: requests that are still under way are left to the stop of the pool.
        """
        front = self._front
        if front is None:
            return
        try:
            while True:
                front.close_idle(front.reactor.touch() - QUIET_SECONDS)
                if not front.in_flight and not front.open_count:
                    return
                self._progress = trio.Event()
                with trio.move_on_after(QUIET_SECONDS):
                    await self._progress.wait()
        finally:
            front.refuse_requests("the server is stopping")

    def state_detail(self) -> Mapping[str, object]:
        """Where it listens, and figures of what is going on."""
        front = self._front
        if front is None:
            return {"addresses": []}
        counters = front.counters
        return {
            "addresses": [listener.address for listener in self._listeners],
            "connections": len(front.connections),
            "in_flight": front.in_flight,
            "accepted": counters.connections,
            "turned_away": counters.turned_away,
            "requests": counters.requests,
            "refused": counters.refusals,
            "timeouts": counters.timeouts,
            "floods": front.http2.floods,
            **self._tls_detail(counters.handshakes_failed),
            "body_memory_bytes": front.spool.memory_bytes,
            "body_files": front.spool.files,
            "answer_memory_bytes": front.answers.memory_bytes,
            "answer_files": front.answers.files,
            "answers_lost": front.answers.lost,
        }

    def http_figures(self) -> HttpFigures | None:
        """What has been served and what is going on; for the status page."""
        front = self._front
        if front is None:
            return None
        counters, latency = front.counters, front.latency
        return HttpFigures(
            addresses=self.addresses,
            requests=counters.requests,
            refused=front.refusals.total,
            timeouts=counters.timeouts,
            in_flight=front.in_flight,
            connections=len(front.connections),
            latency_bounds=latency.bounds,
            latency_counts=tuple(latency.counts),
        )

    def http_refusals(self, last: int) -> dict[str, object]:
        """The last requests that the server answered itself; for `trailboss.Refusals`."""
        return {} if self._front is None else self._front.refusals.report(last)

    def _tls_detail(self, handshakes_failed: int) -> Mapping[str, object]:
        if self._certificates is None:
            return {}
        return {
            "tls_addresses": [listener.address for listener in self._listeners if listener.speaks_tls],
            "handshakes_failed": handshakes_failed,
            "certificate_expires": utc_day(self._certificates.expires),
            "certificate_reloads": self._certificates.reloads,
        }

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens now."""
        return tuple(listener.address for listener in self._listeners)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _on_progress(self) -> None:
        self._progress.set()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners = []


def _port(address: str) -> int:
    """Return the port of a bound address; that of https for a unix socket, which has something in front."""
    return 443 if address.startswith("unix:") else int(address.rpartition(":")[2])


def _is_usable(folder: str) -> bool:
    """Whether files can be kept there; it may be created later."""
    return os.path.isdir(folder) and os.access(folder, os.R_OK | os.W_OK | os.X_OK)
