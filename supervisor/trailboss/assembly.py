"""From a configuration to a server that has not started yet: the one place that knows every plugin.

Adding a plugin is one line in `_plugins`. Nothing here does I/O: constructors take their section of the configuration and
services that are shared by all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from trailboss.activation import PassedSockets
from trailboss.config.rules import pools
from trailboss.config.schema import Config
from trailboss.container.contract import Plugin, Services
from trailboss.container.entry_points import load_plugins
from trailboss.container.startup import Container
from trailboss.container.state import ServerState
from trailboss.handover import Handover
from trailboss.metrics import MetricSources
from trailboss.plugins.app.plugin import AppPlugin
from trailboss.plugins.core.plugin import CorePlugin
from trailboss.plugins.informer.plugin import InformerPlugin
from trailboss.plugins.jobs.plugin import JobsPlugin
from trailboss.plugins.logs import LogsPlugin, LogSystem
from trailboss.plugins.logs.render import LEVELS
from trailboss.plugins.metrics import MetricsPlugin
from trailboss.plugins.otel import OtelPlugin
from trailboss.plugins.resetter.plugin import ResetterPlugin
from trailboss.plugins.server.plugin import ServerPlugin
from trailboss.plugins.status.plugin import StatusPlugin
from trailboss.plugins.systemd import SystemdPlugin
from trailboss.reactor import Reactor
from trailboss.reloading import Reloader
from trailboss.rpc.plugin import RpcPlugin
from trailboss.rpc.registry import Registry
from trailboss.telemetry import Telemetry
from trailboss.upgrading import Origin, Upgrader, upgrade_timeout_seconds
from trailboss.workers.callers import Callers
from trailboss.workers.deaths import Deaths
from trailboss.workers.pool import Pool, PoolSet
from trailboss.workers.process import resolve_identity
from trailboss.workers.watchdog import Watchdog
from trailboss.workers.workshop import PoolSpec

__all__ = ["Assembly", "assemble"]


@dataclass(frozen=True, slots=True)
class Assembly:
    """A server ready to be started: run the reactor, then the container."""

    container: Container
    reactor: Reactor
    reloader: Reloader | None = None
    upgrader: Upgrader | None = None
    handover: Handover | None = None


@dataclass(frozen=True, slots=True)
class _Shared:
    """What several plugins are given; every member is also a service."""

    reactor: Reactor
    callers: Callers
    deaths: Deaths
    pools: PoolSet
    telemetry: Telemetry
    metrics: MetricSources

    def services(self) -> Services:
        services = Services()
        services.provide(Reactor, self.reactor)
        services.provide(Callers, self.callers)
        services.provide(Deaths, self.deaths)
        services.provide(PoolSet, self.pools)
        services.provide(Watchdog, Watchdog(self.reactor, self.pools))
        services.provide(Telemetry, self.telemetry)
        services.provide(MetricSources, self.metrics)
        return services


def assemble(
    config: Config,
    logs: LogSystem,
    environ: Mapping[str, str],
    passed_sockets: PassedSockets | None = None,
    reread: Callable[[], Config] | None = None,
    handover: Handover | None = None,
    origin: Origin | None = None,
) -> Assembly:
    """Build every plugin that `config` asks for and the container around them.

    `passed_sockets`: listening sockets that systemd has opened for us. `reread` loads the configuration again, for a
    reload; None: reloads replace workers only. `handover`: what a predecessor has passed. `origin`: how this program was
    started, for an upgrade; None: it cannot be upgraded.

    Raises PluginFailed for a third-party plugin that cannot be loaded, ValueError or GraphError for plugins that cannot
    live together.
    """
    handover = handover or Handover()
    shared = _Shared(Reactor(), Callers(), Deaths(), PoolSet(), Telemetry(), MetricSources())
    rpc: RpcPlugin | None = None

    def rpc_address() -> str:
        return rpc.exported_address() if rpc is not None else ""

    server = _server(config, shared, rpc_address)
    plugins = _plugins(config, logs, environ, server, passed_sockets)
    if config.rpc.enabled:
        rpc = RpcPlugin(config.rpc, Registry.of_plugins(plugins), _worker_uids(config), environ=environ)

    def make_pool(spec: PoolSpec) -> Pool:
        assert server is not None  # the container asks only where make_pool is given
        pool = server.make_pool(spec)
        shared.pools.add(pool)
        pool.change_listeners.append(_tell_changes(pool, container.state))
        return pool

    async def run_on_init() -> None:
        assert server is not None
        with shared.telemetry.start("server.on_init"):
            await server.run_on_init()

    services = shared.services()
    services.provide(Handover, handover)
    container = Container(
        plugins,
        rpc=rpc,
        optional={name for name in config.plugins if config.is_optional(name)},
        on_init=run_on_init if server is not None and server.has_on_init else None,
        before_ready=handover.take_charge,
        make_pool=make_pool if server is not None else None,
        services=services,
        grace_period_seconds=config.endure.grace_period,
        # A successor that is in charge answers readiness probes, so nobody need turn away from this server.
        drain_delay_seconds=lambda: 0.0 if handover.given_up else config.endure.drain_delay,
    )
    reloader = Reloader(config, plugins, container, reread)
    services.provide(Reloader, reloader)
    upgrader = Upgrader(handover, container.state, origin, upgrade_timeout_seconds(config))
    services.provide(Upgrader, upgrader)
    return Assembly(container, shared.reactor, reloader, upgrader, handover)


def _plugins(
    config: Config,
    logs: LogSystem,
    environ: Mapping[str, str],
    server: ServerPlugin | None,
    passed_sockets: PassedSockets | None,
) -> list[Plugin]:
    """Return every plugin but rpc; the order decides nothing, the container works it out."""
    wanted: list[Plugin | None] = [
        LogsPlugin(logs),
        OtelPlugin(config.otel) if config.otel is not None else None,
        SystemdPlugin(environ) if SystemdPlugin.wanted(environ) else None,
        InformerPlugin(),
        ResetterPlugin(),
        StatusPlugin(config.status),
        MetricsPlugin(config.metrics) if config.metrics is not None or config.status is not None else None,
        AppPlugin(),
        CorePlugin(config.source.merged),
        server,
        JobsPlugin(config.jobs) if config.jobs is not None else None,
        _reload(config),
        _http(config, logs, passed_sockets),
        *load_plugins(config),
    ]
    return [plugin for plugin in wanted if plugin is not None]


def _reload(config: Config) -> Plugin | None:
    if config.reload is None:
        return None
    from trailboss.plugins.reload.plugin import ReloadPlugin

    return ReloadPlugin(config.reload)


def _http(config: Config, logs: LogSystem, passed_sockets: PassedSockets | None) -> Plugin | None:
    """Return the web server, or None; it is imported only where it is wanted, since it is the largest of the plugins."""
    http = config.http
    if http is None:
        return None
    from trailboss.plugins.http.plugin import HttpPlugin
    from trailboss.plugins.http.python_apps import gateway_of
    from trailboss.plugins.http.uploads import Owner

    server = config.server
    command = http.pool.command or (server.command if server is not None else ())
    try:
        process = http.pool.process
        identity = (
            resolve_identity(process.user or server.user, process.group or server.group)
            if server is not None
            else None
        )
    except LookupError:  # the server plugin says so when it starts
        identity = None
    channel = logs.channel("http")
    logs_info = channel.level <= LEVELS["info"] and bool(channel.outputs)
    return HttpPlugin(
        http,
        gateway=gateway_of(command),
        owner=Owner(identity.uid, identity.gid) if identity is not None else None,
        section=config.extension,
        logs_info=lambda: logs_info,
        access_lines=partial(logs.log_encoded, "info", "http"),
        passed_sockets=passed_sockets,
    )


def _server(config: Config, shared: _Shared, rpc_address: Callable[[], str]) -> ServerPlugin | None:
    if config.server is None:
        return None
    server = ServerPlugin(
        config.server,
        reactor=shared.reactor,
        callers=shared.callers,
        deaths=shared.deaths,
        rpc_address=rpc_address,
        other_users=bool(_worker_uids(config) - {os.geteuid()}),
    )
    server.workshop.telemetry = shared.telemetry
    server.workshop.directory = config.source.working_directory
    return server


def _worker_uids(config: Config) -> set[int]:
    """Return the users that workers and on_init run as: their RPC calls are let in.

    A user that does not exist is left out here; the server plugin says so when it starts.
    """
    if config.server is None:
        return set()
    on_init = config.server.on_init
    uids = set()
    own = (pool.process.user for _, pool in pools(config))
    for user in (config.server.user, on_init.user if on_init is not None else "", *own):
        try:
            identity = resolve_identity(user)
        except LookupError:
            continue
        if identity is not None:
            uids.add(identity.uid)
    return uids


def _tell_changes(pool: Pool, state: ServerState) -> Callable[[], None]:
    """Return a listener that wakes whoever follows the state when the pool loses or regains its quorum."""
    told = (pool.phase, pool.at_quorum)

    def listener() -> None:
        nonlocal told
        now = (pool.phase, pool.at_quorum)
        if now != told:
            told = now
            state.changed()

    return listener
