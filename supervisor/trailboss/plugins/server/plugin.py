"""The server plugin: guard, relay listener and launch rules for all workers; `server.on_init`.

It becomes healthy without any worker: its guard runs and, with a socket relay, its listener is bound. Pools are
booted by the container afterwards (start-up step 6), on_init commands before them (step 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import trio

from trailboss.config.changes import is_under
from trailboss.config.rules import pools
from trailboss.config.schema import Config, OnInitConfig, PoolConfig, ServerConfig
from trailboss.container.contract import CallerRole, Change, Health, Plugin, Services
from trailboss.log import logger
from trailboss.reactor import Reactor
from trailboss.workers.callers import Callers
from trailboss.workers.command import LINES_PER_SECOND, run_to_end
from trailboss.workers.deaths import Deaths
from trailboss.workers.guard import INSTANCE_VARIABLE, Guard
from trailboss.workers.pool import Pool, PoolSpec
from trailboss.workers.process import resolve_identity
from trailboss.workers.relay import RelayHub, parse_relay
from trailboss.workers.workshop import Workshop, resolve_command

__all__ = ["OnInitFailed", "ServerPlugin"]

log = logger("server")


#: What of `server` the next worker follows; users and the relay are bound to what was set up at the start.
_LIVE_KEYS = frozenset(
    {"server.command", "server.env", "server.python", "server.stderr_line_max", "server.stderr_rate"}
)


class OnInitFailed(Exception):
    """The on_init command failed and `exit_on_error` is set."""


class ServerPlugin(Plugin):
    """See the module's text. `rpc_address` is asked at each launch: it is known once the RPC port is bound."""

    name = "server"

    def __init__(
        self,
        config: ServerConfig,
        *,
        reactor: Reactor,
        callers: Callers,
        deaths: Deaths,
        rpc_address: Callable[[], str],
        other_users: bool = False,
    ) -> None:
        self.config = config
        #: Whether some workers run as somebody else.
        self._other_users = other_users or bool(config.user)
        self._rpc_address = rpc_address
        self._pools: list[Pool] = []
        self.guard = Guard()
        self.workshop = Workshop(reactor, config, self.guard, callers, deaths)
        self._reactor = reactor
        #: How the on_init command ended, for `trailboss.State`.
        self.on_init_result = ""

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the guard and the relay listener. Raises RelayError or OSError if one of them cannot start."""
        address = parse_relay(self.config.relay)
        resolve_identity(self.config.user, self.config.group)
        self.workshop.rpc_address = self._rpc_address()
        async with trio.open_nursery() as nursery:
            await nursery.start(self.guard.run)
            if address.kind != "pipes":
                hub = RelayHub(self._reactor, address)
                # Workers of another user must be able to connect; the handshake lets in nobody but our children.
                hub.open(mode=0o666 if self._other_users else 0o600)
                self.workshop.hub = hub
            services.provide(Workshop, self.workshop)
            task_status.started()
            try:
                await stopping.wait()
            finally:
                await self.workshop.close_cgroups()
                await self.workshop.close_tmp()
                if self.workshop.hub is not None:
                    self.workshop.hub.close()
            nursery.cancel_scope.cancel(reason="the server plugin stops")

    def health(self) -> Health:
        """Healthy while the guard is there."""
        return Health(
            ok=self.guard.pid > 0, reason="" if self.guard.pid else "the guard process is not running"
        )

    def state_detail(self) -> dict[str, object]:
        """Guard and on_init for `trailboss.State`."""
        detail: dict[str, object] = {"guard_pid": self.guard.pid, "guards_replaced": self.guard.replaced}
        if self.config.on_init is not None:
            detail["on_init"] = self.on_init_result or "has not run yet"
        return detail

    def make_pool(self, spec: PoolSpec) -> Pool:
        """Build a pool for a plugin; it boots later."""
        pool = Pool(spec, self.workshop)
        self._pools.append(pool)
        return pool

    def prepare_reload(self, config: Config, changed: frozenset[str]) -> Change | None:
        """Take in how workers are started, and everything about pools but `debug`."""
        sections = dict(pools(config))
        taken = {key for key in changed if key.split(".env.")[0] in _LIVE_KEYS}
        changes: list[tuple[Pool, PoolConfig, PoolConfig]] = []
        sizes = {
            pool.name: pool.num_workers for pool in self._pools
        }  # not the configured ones where they follow the load
        for pool in self._pools:
            name = f"{pool.name}.pool"
            new = sections.get(name)
            if new is not None and new.debug == pool.debug:
                taken |= {key for key in changed if is_under(key, name)}
                changes.append((pool, pool.config, new))
        old_settings, new_settings = self.workshop.settings, self.config
        if config.server is not None:
            live = {
                key.partition(".")[2]: getattr(config.server, key.partition(".")[2]) for key in _LIVE_KEYS
            }
            new_settings = replace(self.config, **live)

        def commit() -> None:
            self.workshop.settings = new_settings
            for pool, _, new in changes:
                pool.apply(new)

        def revert(failed: frozenset[str]) -> None:
            self.workshop.settings = old_settings
            for pool, old, new in changes:
                if pool.name in failed:
                    pool.apply(old)
                    if new.resolved_num_workers != old.resolved_num_workers:
                        pool.resize(sizes[pool.name])
                        pool.fit()

        return Change(frozenset(taken), commit, revert)

    @property
    def has_on_init(self) -> bool:
        """Whether there is a command to run in step 5."""
        return self.config.on_init is not None

    async def run_on_init(self) -> None:
        """Run the on_init command to its end, at most `exec_timeout`.

        Raises OnInitFailed if it fails and `exit_on_error` is set; otherwise a failure is logged.
        On cancellation: the command's group is ended and reaped.
        """
        config = self.config.on_init
        if config is None:
            return
        failure = await self._run_command(config)
        self.on_init_result = failure or "succeeded"
        if not failure:
            log.info("on_init done")
        elif config.exit_on_error:
            raise OnInitFailed(f"server.on_init: {failure}")
        else:
            log.error("on_init failed; the start goes on (exit_on_error is false)", text=failure)

    async def _run_command(self, config: OnInitConfig) -> str:
        """Run the command; returns "" or what went wrong."""
        shop = self.workshop
        argv = resolve_command(config.command, self.config.python)
        # What workers get, so that a migration sees the same database; on_init.env decides where both name a variable.
        shared = {name: value for name, value in self.config.env.items() if name not in config.env}
        environment = {
            **config.env,
            **shop.base_environment(),
            **shared,
            INSTANCE_VARIABLE: self.guard.instance,
        }
        try:
            section = "server.on_init" if config.user else "server"
            identity = resolve_identity(config.user or self.config.user, self.config.group, section=section)
        except LookupError as error:
            return str(error)
        rate = self.config.stderr_rate or LINES_PER_SECOND
        return await run_to_end(
            shop,
            argv,
            environment,
            identity=identity,
            role=CallerRole.ON_INIT,
            source="on_init",
            limit=("exec_timeout", config.exec_timeout),
            shown=" ".join(config.command),
            rate=rate,
        )
