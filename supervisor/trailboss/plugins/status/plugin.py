"""The plugin `status`: RoadRunner's paths, JSON and codes over HTTP, and status.Status and Ready over RPC, but honest.

/: a page for people, kept alive by /events.
/health: does everything live, /ready: may traffic come, /jobs: the queues, /state: `trailboss.State`. The port opens
first and closes last, so a probe always meets somebody: while the server starts it is told what is waited for, while it
stops /health stays 200 (the process must not be killed for stopping) and /ready says no.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import parse_qs

import trio

from trailboss.config.schema import StatusConfig
from trailboss.config.values import parse_address
from trailboss.container.contract import (
    Access,
    Caller,
    Layer,
    Plugin,
    PluginState,
    RpcMethod,
    RpcRefused,
    Services,
    WholePhase,
)
from trailboss.container.inspect import JobsInspector
from trailboss.container.state import ServerState
from trailboss.handover import Handover, Offer
from trailboss.log import logger
from trailboss.messages.status_pb2 import Request, Response
from trailboss.metrics import Exposition
from trailboss.plugins.status.checks import Check, PoolFigures, StatusRow, overall_code, row_of, rows
from trailboss.plugins.status.hosts import Hosts
from trailboss.plugins.status.live import CLIENTS_MAX, LivePage, event_of
from trailboss.plugins.status.snapshot import Snapshots
from trailboss.reactor import Reactor
from trailboss.small_http import SmallAnswer, SmallRequest, SmallServer, bind_port
from trailboss.workers.pool import PoolSet

__all__ = ["StatusPlugin"]

log = logger("status")

DEFAULT_UNAVAILABLE_CODE = 503
HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
#: How soon a browser comes back after a lost connection, in milliseconds.
STREAM_BEGINNING = b"retry: 2000\n\n"


class StatusPlugin(Plugin):
    """Health and readiness. Without a configuration section there is no HTTP port, the RPC methods answer all the same."""

    name = "status"
    layer = Layer.TELEMETRY
    after = frozenset({"logs"})

    def __init__(self, config: StatusConfig | None = None) -> None:
        self._config = config
        self._services: Services | None = None
        self._address = ""
        self._page: _Page | None = None
        self._handover = Handover()

    @property
    def address(self) -> str:
        """host:port where the HTTP port is bound; "" where there is none."""
        return self._address

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Bind the HTTP port, answer until `stopping`. Raises OSError with key, value and remedy if it cannot bind.

        On cancellation: connections are closed at once.
        """
        self._services = services
        if self._config is None:
            task_status.started()
            await stopping.wait()
            return
        _, host, port = parse_address(self._config.address)
        handover = self._handover = services.find(Handover) or self._handover
        inherited = handover.claim("status", self._config.address)
        sock = (
            _bind(host, port, f"status.address: {self._config.address}")
            if inherited is None
            else inherited.socket()
        )
        bound_host, bound_port = sock.getsockname()[:2]
        self._address = f"[{bound_host}]:{bound_port}" if ":" in bound_host else f"{bound_host}:{bound_port}"
        reactor = services.get(Reactor)
        if self._config.page:
            self._page = _Page(services, reactor, Hosts(host, self._config.hosts))
        try:
            log.info("status port bound", address=self._address)
            task_status.started()
            if inherited is not None and not await _in_charge_before(handover, stopping):
                return
            server = SmallServer(
                sock,
                reactor,
                lambda request, reply: reply(self._handle(request)),
                log,
                self._config.check_timeout,
            )
            try:
                handover.offer(Offer("status", self._config.address, sock, server.give_up))
                await stopping.wait()
            finally:
                server.close()
        finally:
            sock.close()

    def state_detail(self) -> Mapping[str, object]:
        """Say where the port is."""
        return {"address": self._address} if self._address else {}

    # --- RPC ------------------------------------------------------------------------------------------------------

    def rpc_methods(self) -> Sequence[RpcMethod]:
        """Return the methods of the service `status`."""
        always = Access.ALWAYS
        return (
            RpcMethod(
                "status.Status", self._rpc_status, always, Request, Response, doc="health of one plugin"
            ),
            RpcMethod(
                "status.Ready", self._rpc_ready, always, Request, Response, doc="readiness of one plugin"
            ),
        )

    def _rpc_status(self, request: Request, _caller: Caller) -> Response:
        return self._rpc_answer(request, Check.HEALTH)

    def _rpc_ready(self, request: Request, _caller: Caller) -> Response:
        return self._rpc_answer(request, Check.READY)

    def _rpc_answer(self, request: Request, check: Check) -> Response:
        row = row_of(request.plugin, check, self._plugins(), self._pools(), self._unavailable_code)
        if row is None:
            raise RpcRefused(f"no such plugin: {request.plugin}")
        return Response(code=row.status_code, message=row.error_message)

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def _handle(self, request: SmallRequest) -> SmallAnswer:
        try:
            query = parse_qs(request.query, max_num_fields=100)
        except ValueError:
            return SmallAnswer(400, b"not a valid target\n", TEXT)
        names = query.get("plugin", [])
        if request.path == "/health":
            return self._health(names)
        if request.path == "/ready":
            return self._ready(names)
        if request.path == "/jobs":
            return self._jobs()
        if request.path == "/state":
            return _json(200, self._state().as_dict())
        if request.path == "/metrics":
            return self._metrics()
        page = self._page
        if page is not None and request.path in ("/", "/events"):
            return page.answer(request, query.get("as", []))
        paths = [
            "/health",
            "/ready",
            "/jobs",
            "/state",
            "/metrics",
            *(("/", "/events") if page is not None else ()),
        ]
        return _json(404, {"error": f"no such path: {request.path}", "paths": paths})

    def _metrics(self) -> SmallAnswer:
        """The scrape that the metrics plugin makes, in the format that every client reads."""
        exposition = self._known_services().find(Exposition)  # type: ignore[type-abstract]
        if exposition is None:
            return SmallAnswer(
                self._unavailable_code, b"metrics plugin not found", "text/plain; charset=utf-8"
            )
        page = exposition.scrape_now()
        return SmallAnswer(page.status, page.body, page.content_type)

    def _health(self, names: Sequence[str]) -> SmallAnswer:
        if self._is_stopping():
            return SmallAnswer(200, b"service is shutting down", TEXT)
        found = rows(names, Check.HEALTH, self._plugins(), self._pools(), self._unavailable_code)
        return self._rows_answer(found)

    def _ready(self, names: Sequence[str]) -> SmallAnswer:
        if self._handover.given_up:
            return _json(200, [])  # asked just before the successor took over, which is as ready as we were
        if self._is_stopping():
            return SmallAnswer(self._unavailable_code, b"service is shutting down", TEXT)
        found = rows(names, Check.READY, self._plugins(), self._pools(), self._unavailable_code)
        state = self._state()
        if not names and not state.fully_ready:
            waits = ", ".join(state.waiting_for())
            text = f"phase={state.whole.value}" + (f"; waiting for {waits}" if waits else "")
            found.append(StatusRow("trailboss", text, self._unavailable_code))
        return self._rows_answer(found)

    def _rows_answer(self, found: Sequence[StatusRow]) -> SmallAnswer:
        return _json(overall_code(found, self._unavailable_code), [row.as_dict() for row in found])

    def _jobs(self) -> SmallAnswer:
        if self._is_stopping():
            return SmallAnswer(self._unavailable_code, b"service is shutting down", TEXT)
        inspector = self._known_services().find(JobsInspector)  # type: ignore[type-abstract]
        if inspector is None:
            return SmallAnswer(self._unavailable_code, b"jobs plugin not found", TEXT)
        return _json(200, [_jobs_row(row) for row in inspector.job_states()])

    # --- what is known --------------------------------------------------------------------------------------------

    @property
    def _unavailable_code(self) -> int:
        return DEFAULT_UNAVAILABLE_CODE if self._config is None else self._config.unavailable_status_code

    def _is_stopping(self) -> bool:
        return self._state().whole in (WholePhase.DRAINING, WholePhase.STOPPED)

    def _plugins(self) -> dict[str, PluginState]:
        return {plugin.name: plugin for plugin in self._state().plugins()}

    def _pools(self) -> dict[str, PoolFigures]:
        pools = self._known_services().find(PoolSet)
        return {
            pool.name: PoolFigures(
                pool.name,
                pool.phase.value,
                pool.ready_workers,
                pool.quorum,
                pool.at_quorum,
                pool.config.debug,
            )
            for pool in pools or ()
        }

    def _state(self) -> ServerState:
        return self._known_services().get(ServerState)

    def _known_services(self) -> Services:
        if self._services is None:
            raise RpcRefused("service not ready: phase=starting")
        return self._services


def _bind(host: str, port: int, what: str) -> socket.socket:
    """Return a listening socket. Raises OSError with a text that names the key (`what`), the value and a remedy."""
    try:
        return bind_port(host, port)
    except OSError as error:
        raise OSError(error.errno, f"{what}: {error.strerror}") from error


async def _in_charge_before(handover: Handover, stopping: trio.Event) -> bool:
    """Wait until this server is in charge; False where it stops before that."""
    async with trio.open_nursery() as nursery:

        async def wait_for_stop() -> None:
            await stopping.wait()
            nursery.cancel_scope.cancel("the server stops")

        nursery.start_soon(wait_for_stop)
        await handover.in_charge.wait()
        nursery.cancel_scope.cancel("in charge")
    return not stopping.is_set()


class _Page:
    """The page and its two streams: of its parts for the browser, of plain figures for everybody else.

    A picture is made at most once a second however many ask, and so is what is shown of it.
    """

    def __init__(self, services: Services, reactor: Reactor, hosts: Hosts) -> None:
        self._reactor = reactor
        self._hosts = hosts
        self._snapshots = Snapshots(services)
        self._parts = LivePage(reactor, lambda now: self._shown(now, "parts", _parts_event))
        self._figures = LivePage(reactor, lambda now: self._shown(now, "figures", _figures_event))
        self._made: dict[str, tuple[Mapping[str, object], bytes]] = {}

    def answer(self, request: SmallRequest, forms: Sequence[str]) -> SmallAnswer:
        """Answer a request for the page or a stream in one of `forms`, or say why not."""
        # A page of somebody else's may neither look in here (a name of its own that leads to this address, in Host) nor
        # take the places of those who may.
        host = request.headers.get("host")
        if host is not None and "," in host:
            host = ""  # there were several
        if not self._hosts.allows(host):
            return SmallAnswer(421, self._hosts.refusal(host).encode("utf-8", "replace"), TEXT)
        if request.headers.get("sec-fetch-site") == "cross-site" and request.path == "/events":
            return SmallAnswer(403, b"events are for pages of this server\n", TEXT)
        from trailboss.plugins.status.page import (
            PAGE_HEADERS,
            render_page,
        )  # a server nobody looks at does without

        if request.path == "/":
            body = self._shown(self._reactor.now, "page", render_page)
            return SmallAnswer(200, body, HTML, PAGE_HEADERS)
        if len(self._parts) + len(self._figures) >= CLIENTS_MAX:
            text = f"{CLIENTS_MAX} look already; try again later\n".encode()
            return SmallAnswer(503, text, TEXT, (("Retry-After", "10"),))
        audience = self._parts if forms == ["page"] else self._figures
        return SmallAnswer(200, STREAM_BEGINNING, "text/event-stream", PAGE_HEADERS, audience)

    def _shown(self, now: float, name: str, make: Callable[[Mapping[str, object]], bytes]) -> bytes:
        snapshot = self._snapshots.current(now)
        made = self._made.get(name)
        if made is None or made[0] is not snapshot:
            made = self._made[name] = (snapshot, make(snapshot))
        return made[1]


def _parts_event(snapshot: Mapping[str, object]) -> bytes:
    from trailboss.plugins.status.page import render_parts, title_of

    parts = render_parts(snapshot)
    return event_of("page", {"at": snapshot.get("at"), "title": title_of(snapshot), "parts": parts})


def _figures_event(snapshot: Mapping[str, object]) -> bytes:
    return event_of("snapshot", snapshot)


def _json(status: int, value: object) -> SmallAnswer:
    return SmallAnswer(
        status,
        json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace"),
        "application/json",
    )


_JOBS_KEYS = {"ErrorMessage": "error_message"}


def _jobs_row(row: Mapping[str, object]) -> dict[str, object]:
    return {_JOBS_KEYS.get(key, key.lower()): value for key, value in row.items()}
