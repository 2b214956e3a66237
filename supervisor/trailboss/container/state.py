"""THE ONE OBJECT THAT KNOWS THE PHASES: of every plugin, of the whole server, of the gate.

The container writes it, everybody else reads: the gate for each call, `trailboss.State`, the status port, sd_notify, the
live display of `trailboss serve`. Writing is plain method calls from the container's tasks; each change wakes who waits
in :meth:`ServerState.wait_change` and calls the listeners. Reading never blocks, and asks plugins for nothing but
`health` and `state_detail`, which are guarded: what a plugin says of itself can be wrong, never fatal.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import trio

import trailboss
from trailboss.config.redact import redacted_text
from trailboss.container.contract import Health, Phase, Plugin, PluginState, RpcRefused, WholePhase
from trailboss.container.gate import Decision, GateView, Pass, PluginView, Refuse, Wait, decide, waited_for
from trailboss.container.lifecycle import Event, step
from trailboss.container.methods import Caller, RpcMethod
from trailboss.log import logger

__all__ = ["PoolState", "ServerState"]

log = logger("container")


class PoolState(Protocol):
    """What the state asks of a worker pool."""

    @property
    def name(self) -> str: ...

    @property
    def at_quorum(self) -> bool: ...

    def describe(self) -> Mapping[str, object]:
        """Return a row of `trailboss.State`: name, phase, ready, quorum, workers, …; JSON values only."""
        ...


@dataclass(slots=True)
class _Row:
    plugin: Plugin
    requirements: frozenset[str]
    optional: bool
    phase: Phase
    since: float
    reason: str = ""


@dataclass(slots=True)
class ServerState:
    """Phases of the whole and of each plugin; `services.get(ServerState)`.

    `on_change` holds sync listeners, called at each change in the task that made it; they must be quick, and one that
    raises is logged and kept.
    """

    whole: WholePhase = WholePhase.STARTING
    gate_open: bool = False
    on_init_running: bool = False
    on_change: list[Callable[[], None]] = field(default_factory=list)
    clock: Callable[[], float] = trio.current_time
    _rows: dict[str, _Row] = field(default_factory=dict)
    _pools: list[PoolState] = field(default_factory=list)
    _booting_pools: frozenset[str] = frozenset()
    _began: float = 0.0
    _whole_since: float = 0.0
    _changed: trio.Event = field(default_factory=trio.Event)
    _settled_view: GateView | None = None
    _reloads: int = 0

    # --- reading ----------------------------------------------------------------------------------------------------

    def view(self) -> GateView:
        """Return what the gate decides from; cheap where nobody is waited for, since then it is made once a change."""
        if self._settled_view is not None:
            return self._settled_view
        now = self.clock()
        view = GateView(
            whole=self.whole,
            open=self.gate_open,
            on_init_running=self.on_init_running,
            plugins=tuple(
                PluginView(name, row.phase, now - row.since, row.reason, row.optional)
                for name, row in self._rows.items()
            ),
            booting_pools=self._booting_pools,
            since_seconds=now - self._whole_since,
        )
        if (
            self.gate_open
            and not view.booting_pools
            and not self.on_init_running
            and not self._anybody_coming()
        ):
            self._settled_view = view  # nobody is waited for, so no duration in it will be told
        return view

    def _anybody_coming(self) -> bool:
        return any(row.phase in (Phase.DECLARED, Phase.STARTING) for row in self._rows.values())

    def admit_nowait(
        self,
        method: RpcMethod,
        needs_pool: str,
        caller: Caller,
        waited_seconds: float,
        ready_timeout_seconds: float,
    ) -> Decision:
        """Decide about a call as things stand now; see :func:`trailboss.container.gate.decide`."""
        return decide(method, needs_pool, self.view(), caller, waited_seconds, ready_timeout_seconds)

    async def admit(
        self, method: RpcMethod, needs_pool: str, caller: Caller, ready_timeout_seconds: float
    ) -> None:
        """Return when the call may run. Raises RpcRefused with the error text, after `ready_timeout_seconds` at most.

        Checkpoint: only where it has to wait. On cancellation: the call has had no effect.
        """
        began = self.clock()
        deadline = began + ready_timeout_seconds
        while True:
            changed = self._changed  # taken before deciding, so that no change in between is missed
            now = self.clock()
            # Compared as the deadline below is: (began + timeout) - began may be a hair less than timeout.
            waited = now - began if now < deadline else ready_timeout_seconds
            decision = self.admit_nowait(method, needs_pool, caller, waited, ready_timeout_seconds)
            match decision:
                case Pass():
                    return
                case Refuse(text):
                    raise RpcRefused(text)
                case Wait():
                    with trio.move_on_at(deadline):
                        await changed.wait()

    async def wait_change(self) -> None:
        """Return at the next change of anything the gate depends on.

        A change between a reading and this call is not seen: read, then wait, without a checkpoint in between.
        """
        await self._changed.wait()

    @property
    def fully_ready(self) -> bool:
        """Gate open, start finished, and every pool at its quorum at this moment."""
        return (
            self.gate_open
            and self.whole is WholePhase.READY
            and not self._booting_pools
            and all(pool.at_quorum for pool in self._pools)
        )

    @property
    def reloading(self) -> bool:
        """Whether the workers of all pools are being replaced."""
        return self._reloads > 0

    def begin_reload(self) -> None:
        """Note that a reload has begun; each is ended by `end_reload`."""
        self._reloads += 1
        self.changed()

    def end_reload(self) -> None:
        """Note that a reload has ended, whichever way."""
        self._reloads -= 1
        self.changed()

    @property
    def short_pools(self) -> tuple[str, ...]:
        """Names of the pools that are not at their quorum at this moment."""
        return tuple(pool.name for pool in self._pools if not pool.at_quorum)

    @property
    def gate(self) -> str:
        """The gate in one word: open, restricted (on_init runs) or closed."""
        if not self.gate_open:
            return "closed"
        return "restricted" if self.on_init_running else "open"

    @property
    def uptime_seconds(self) -> float:
        """Seconds since the container began to start."""
        return self.clock() - self._began

    def phase_of(self, name: str) -> Phase:
        """Return the phase of one plugin. Raises KeyError for an unknown name."""
        return self._rows[name].phase

    def reason_of(self, name: str) -> str:
        """Return why a plugin failed, or ""."""
        return self._rows[name].reason

    def plugins(self) -> tuple[PluginState, ...]:
        """Return one row a plugin, in start order, with what each says of its health."""
        return tuple(self._plugin_state(name, row) for name, row in self._rows.items())

    def waiting_for(self) -> tuple[str, ...]:
        """Return what the start waits for, as text for people ("jobs (starting, 1.2s)"); empty when it is over."""
        return waited_for(self.view())

    def as_dict(self) -> dict[str, object]:
        """Return `trailboss.State`: JSON values only."""
        return {
            "version": trailboss.__version__,
            "phase": self.whole.value,
            "gate": self.gate,
            "uptime_seconds": round(self.uptime_seconds, 3),
            "ready": self.fully_ready,
            "waiting_for": list(self.waiting_for()),
            "plugins": [self._plugin_dict(state) for state in self.plugins()],
            "pools": [_guarded_pool(pool) for pool in self._pools],
        }

    def _plugin_state(self, name: str, row: _Row) -> PluginState:
        waits = row.phase in (Phase.DECLARED, Phase.STARTING)
        failed = sorted(other for other in row.requirements if self._rows[other].phase is Phase.FAILED)
        reason = row.reason
        if not reason and failed and row.phase is not Phase.STOPPED:
            reason = f"requires {', '.join(failed)}, which failed"
        return PluginState(
            name=name,
            phase=row.phase,
            since_seconds=self.clock() - row.since,
            waiting_for=tuple(
                sorted(other for other in row.requirements if self._rows[other].phase is not Phase.HEALTHY)
            )
            if waits
            else (),
            reason=reason,
            optional=row.optional,
            health=_guarded_health(name, row.plugin) if row.phase is Phase.HEALTHY else None,
        )

    def _plugin_dict(self, state: PluginState) -> dict[str, object]:
        health = state.health
        return {
            "name": state.name,
            "phase": state.phase.value,
            "since_seconds": round(state.since_seconds, 3),
            "waiting_for": list(state.waiting_for),
            "reason": redacted_text(
                state.reason or (health.reason if health is not None and not health.ok else "")
            ),
            "optional": state.optional,
            "healthy": health is not None and health.ok,
            "detail": _guarded_detail(state.name, self._rows[state.name].plugin),
        }

    # --- writing: the container only --------------------------------------------------------------------------------

    def declare(
        self, plugins: Sequence[Plugin], requirements: Mapping[str, frozenset[str]], optional: Collection[str]
    ) -> None:
        """Enter all plugins, in start order, as declared from now on."""
        now = self.clock()
        self._began = self._whole_since = now
        for plugin in plugins:
            self._rows[plugin.name] = _Row(
                plugin, requirements[plugin.name], plugin.name in optional, Phase.DECLARED, now
            )
        self.changed()

    def record(self, name: str, event: Event, reason: str = "") -> Phase:
        """Move one plugin along the lifecycle table and return its new phase; the first reason stays."""
        row = self._rows[name]
        phase = step(row.phase, event)
        row.reason = row.reason or reason
        if phase is not row.phase:
            row.phase, row.since = phase, self.clock()
            self.changed()
        return phase

    def set_whole(self, whole: WholePhase, *, on_init_running: bool = False) -> None:
        """Enter a phase of the whole server."""
        if (self.whole, self.on_init_running) == (whole, on_init_running):
            return
        self.whole, self.on_init_running, self._whole_since = whole, on_init_running, self.clock()
        self.changed()

    def open_gate(self) -> None:
        """Let calls pass; done once, when every plugin has been settled."""
        self.gate_open = True
        self.changed()

    def close_gate(self) -> None:
        """Refuse everything but always-on methods from now on."""
        if self.gate_open:
            self.gate_open = False
            self.changed()

    def expect_pools(self, names: Collection[str]) -> None:
        """Announce the pools that will boot: calls that need one of them wait or are refused until it is up."""
        self._booting_pools = frozenset(names)
        self.changed()

    def add_pool(self, pool: PoolState) -> None:
        """Show a pool in `trailboss.State`."""
        self._pools.append(pool)
        self.changed()

    def pool_settled(self, name: str) -> None:
        """Note that a pool has booted, or that it never will and its owner has failed."""
        if name in self._booting_pools:
            self._booting_pools -= {name}
            self.changed()

    def changed(self) -> None:
        """Wake everybody who waits for a change; also for a change of what pools say of themselves."""
        self._settled_view = None
        self._changed.set()
        self._changed = trio.Event()
        for listener in tuple(self.on_change):
            try:
                listener()
            except Exception:
                log.exception("listener of the server state failed")


def _guarded_health(name: str, plugin: Plugin) -> Health:
    try:
        return plugin.health()
    except Exception as error:
        log.exception("health of a plugin cannot be asked", plugin=name)
        return Health(ok=False, reason=f"health() raised {type(error).__name__}: {error}")


def _guarded_detail(name: str, plugin: Plugin) -> dict[str, object]:
    try:
        return dict(plugin.state_detail())
    except Exception as error:
        log.exception("details of a plugin cannot be asked", plugin=name)
        return {"error": f"state_detail() raised {type(error).__name__}: {error}"}


def _guarded_pool(pool: PoolState) -> dict[str, object]:
    try:
        row = dict(pool.describe())
        for name in ("last_failure", "last_reset_failure"):
            failure = row.get(name)
            if isinstance(failure, str):  # holds a command line, or the last words of a worker
                row[name] = redacted_text(failure)
        return row
    except Exception as error:
        log.exception("a pool cannot be described", pool=pool.name)
        return cast("dict[str, object]", {"name": pool.name, "error": f"{type(error).__name__}: {error}"})
