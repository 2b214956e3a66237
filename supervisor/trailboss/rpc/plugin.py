"""The plugin `rpc`: the port that workers and the command line talk to.

It starts right after telemetry: from then on the address is bound and connections are accepted, while the gate decides
which calls may run. It stops between drivers and back-ends: no new connections, no new calls, what has begun is
finished, then everything is closed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

import trio

from trailboss.config.schema import RpcConfig
from trailboss.container.contract import Health, Layer, Plugin, Services
from trailboss.container.state import ServerState
from trailboss.handover import Handover, Offer
from trailboss.log import logger
from trailboss.metrics import Family, MetricSources, counter, gauge
from trailboss.reactor import Reactor
from trailboss.rpc.address import default_socket_path, exported_address
from trailboss.rpc.listen import BoundSocket, Listener, bind, inherit, set_mode
from trailboss.rpc.policy import Policy
from trailboss.rpc.registry import Registry
from trailboss.rpc.server import RpcLimits, RpcServer
from trailboss.telemetry import Telemetry
from trailboss.workers.callers import Callers

__all__ = ["RpcPlugin", "limits_of"]

log = logger("rpc")

MEGABYTE = 1024 * 1024


def limits_of(config: RpcConfig) -> RpcLimits:
    """Return the limits that a configuration section asks for."""
    return RpcLimits(
        ready_timeout_seconds=config.ready_timeout,
        call_timeout_seconds=config.call_timeout,
        read_timeout_seconds=config.read_timeout,
        idle_timeout_seconds=config.idle_timeout,
        frame_bytes=config.max_frame_size * MEGABYTE,
        bytes_in_flight=config.max_bytes_in_flight * MEGABYTE,
        connections=config.max_connections,
    )


class RpcPlugin(Plugin):
    """Binds the RPC port and serves the methods of `registry` on it.

    `allowed_uids`: users that may connect besides the server's own, that is every user the configuration gives to a
    worker or to on_init. Provides the service :class:`Registry`; needs Reactor and ServerState, and takes Callers
    where there are any.
    """

    name = "rpc"
    layer = Layer.TELEMETRY
    after = frozenset({"logs"})
    stop_timeout_seconds = 10.0

    def __init__(
        self,
        config: RpcConfig,
        registry: Registry,
        allowed_uids: Collection[int] = (),
        *,
        environ: Mapping[str, str] | None = None,
        uid: int | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._uid = os.geteuid() if uid is None else uid
        self._allowed_uids = frozenset({self._uid, *allowed_uids})
        self._environ = os.environ if environ is None else environ
        self._bound: BoundSocket | None = None
        #: While an older server is in charge of the port: where the workers of this one call.
        self._aside: BoundSocket | None = None
        self._handover = Handover()
        self._server: RpcServer | None = None

    def exported_address(self) -> str:
        """Return what workers get as RR_RPC. Raises RuntimeError before the port is bound."""
        if self._bound is None:
            raise RuntimeError("the RPC port is not bound yet")
        bound = self._bound
        if self._aside is not None and self._handover.is_successor:
            bound = self._aside
        return exported_address(bound.family, bound.host, bound.port)

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Bind, serve until `stopping`, then finish what has begun. Raises AddressError where binding fails.

        On cancellation: connections are closed at once, calls that have begun are cancelled.
        """
        self._handover = services.find(Handover) or self._handover
        self._bind()
        try:
            async with trio.open_nursery() as nursery:
                await self._serve(services, nursery, stopping, task_status)
                nursery.cancel_scope.cancel(reason="the RPC port has closed")
        finally:
            for bound in (self._bound, self._aside):
                if bound is not None:
                    bound.close()

    def _bind(self) -> None:
        """Bind the port, or take over that of a predecessor and bind another one for the time until it lets go."""
        path = default_socket_path(self._environ, self._uid)
        inherited = self._handover.claim("rpc", self._key)
        if inherited is None:
            self._bound = self._bind_to(self._config.listen, path)
        elif not self._handover.is_successor:  # it has come out of systemd's store
            self._bound = self._reuse(inherit(inherited)) or self._bind_to(self._config.listen, path)
        else:
            self._bound = inherit(inherited)
            self._aside = self._bind_to("", f"{path}.{os.getpid()}")

    def _reuse(self, bound: BoundSocket) -> BoundSocket | None:
        """Take a socket as the server before has left it; None where the configuration does not allow it any more."""
        bound.given_away = False
        if bound.family == "unix":
            with suppress(OSError):  # its file has another owner
                set_mode(bound.host, shared=self._shared)
                return bound
        elif bound.checks_peers or self._config.allow_remote:
            return bound
        bound.close()
        return None

    @property
    def _shared(self) -> bool:
        return self._allowed_uids != {self._uid}

    @property
    def _key(self) -> str:
        return self._config.listen or default_socket_path(self._environ, self._uid)

    def _bind_to(self, listen: str, path: str) -> BoundSocket:
        return bind(listen, path, uid=self._uid, shared=self._shared, allow_remote=self._config.allow_remote)

    async def _serve(
        self,
        services: Services,
        nursery: trio.Nursery,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None],
    ) -> None:
        server = RpcServer(
            self._registry,
            limits_of(self._config),
            services.get(Reactor),
            services.get(ServerState),
            nursery,
            services.find(Callers),
            services.find(Telemetry),
            Policy(self._config.policy, {self._uid, 0}),
        )
        self._server = server
        sources = services.find(MetricSources)
        if sources is not None:
            sources.add(lambda: rpc_families(server))
        server.reactor.touch()
        assert self._bound is not None  # by `run`
        listeners: list[Listener] = []
        if self._aside is None:
            self._listen(self._bound, server, listeners)
        else:
            listeners.append(Listener(self._aside, server, self._allowed_uids))
            nursery.start_soon(self._listen_in_charge, self._bound, server, listeners)
        try:
            services.provide(Registry, self._registry)
            log.info("RPC port bound", address=self.exported_address())
            task_status.started()
            await stopping.wait()
            # Who calls now is refused: in a socket that stays open workers would wait for an answer until they are killed.
            self._handover.withdraw("rpc", self._key)
            for listener in listeners:
                listener.close()
            await server.finish(self.stop_timeout_seconds / 2)
        finally:
            for listener in listeners:
                listener.close()
            server.close()

    def _listen(self, bound: BoundSocket, server: RpcServer, listeners: list[Listener]) -> None:
        """Accept on the port, which a successor can have."""
        listener = Listener(bound, server, self._allowed_uids)
        listeners.append(listener)
        path = bound.host if bound.family == "unix" else ""
        self._handover.offer(Offer("rpc", self._key, bound.sock, listener.give_up, path, bound.inode))

    async def _listen_in_charge(
        self, bound: BoundSocket, server: RpcServer, listeners: list[Listener]
    ) -> None:
        """Accept on the predecessor's port when it has let go."""
        await self._handover.in_charge.wait()
        bound.given_away = False
        self._listen(bound, server, listeners)

    def health(self) -> Health:
        """Healthy while the port is bound."""
        return (
            Health(ok=True) if self._server is not None else Health(ok=False, reason="the port is not bound")
        )

    def state_detail(self) -> Mapping[str, object]:
        """Address and counts."""
        if self._server is None or self._bound is None:
            return {}
        return {
            "address": self.exported_address(),
            "open_connections": len(self._server.connections),
            "calls_under_way": self._server.tasks,
            **self._server.counters.as_dict(),
        }


def rpc_families(server: RpcServer) -> Iterator[Family]:
    """Yield what the RPC port tells at a scrape."""
    counters = server.counters
    yield gauge("trailboss_rpc_connections", "RPC clients that are connected now.", len(server.connections))
    yield gauge("trailboss_rpc_calls_under_way", "RPC calls that have a task now.", server.tasks)
    yield counter(
        "trailboss_rpc_connections_total", "RPC connections that were accepted.", counters.connections
    )
    yield counter(
        "trailboss_rpc_connections_refused_total",
        "RPC connections closed at once: too many, or not allowed to call.",
        counters.turned_away,
    )
    yield counter("trailboss_rpc_calls_total", "RPC calls.", counters.calls)
    yield counter("trailboss_rpc_errors_total", "RPC calls answered with an error.", counters.errors)
    yield counter("trailboss_rpc_refused_total", "Of these: refused by the gate.", counters.refused)
    yield counter(
        "trailboss_rpc_failures_total",
        "Of these: exceptions in the server; each is a bug, and in the log.",
        counters.failures,
    )
