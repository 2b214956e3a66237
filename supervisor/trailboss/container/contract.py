"""THE PLUGIN CONTRACT: what a plugin is, what it gets, what it may be asked.

A plugin is one part of the server with a life of its own: the jobs queue, the status port, the log. It moves through
the phases of :mod:`trailboss.container.lifecycle` and is started by the startup nursery
(:mod:`trailboss.container.startup`) when everything it requires is healthy. `run` says "I can serve" by calling
``task_status.started()``; spawned and ready are two events everywhere. Errors before that belong to the start and end
it; errors afterwards are a value in the supervisor's mailbox and make this plugin `failed`, never more.

Plugins never import each other. They meet through typed services (:class:`Services`): the one provides a value under
its type, the other asks for that type and names the provider in `requires`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import trio

from trailboss.container.lifecycle import Phase, WholePhase
from trailboss.container.methods import Access, Caller, CallerRole, Handler, RpcMethod, RpcRefused, raw
from trailboss.container.order import Layer

if TYPE_CHECKING:
    from trailboss.config.schema import Config
    from trailboss.workers.pool import Pool, PoolSpec

__all__ = [
    "Access",
    "Caller",
    "CallerRole",
    "Change",
    "Handler",
    "Health",
    "Layer",
    "Phase",
    "Plugin",
    "PluginFailed",
    "PluginState",
    "RpcMethod",
    "RpcRefused",
    "Services",
    "WholePhase",
    "raw",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Health:
    """What a plugin says of itself; asked for status, metrics and readiness, never on the request path."""

    ok: bool
    reason: str = ""


class PluginFailed(Exception):
    """A plugin could not start, or died. Carries its `name`, the `phase` it was in, and a `reason` for people.

    `details` are further lines, such as a traceback, for whoever can show them.
    """

    def __init__(self, name: str, phase: Phase, reason: str, details: str = "") -> None:
        super().__init__(f"plugin {name} failed while {phase.value}: {reason}")
        self.details = details
        self.name = name
        self.phase = phase
        self.reason = reason


class Services:
    """Typed meeting place of the plugins: one value per type.

    `provide` is called by the owner before it calls ``started()``; `get` by whoever requires that owner. Asking for a
    type that nobody has provided is a programming error of the graph and raises LookupError naming the type.
    """

    def __init__(self) -> None:
        self._values: dict[type[object], object] = {}

    def provide(self, key: type[T], value: T) -> None:
        """Offer `value` under the type `key`. Raises ValueError if that type has a provider already."""
        if key in self._values:
            raise ValueError(f"service {key.__name__} is provided twice")
        self._values[key] = value

    def get(self, key: type[T]) -> T:
        """Return the value provided under `key`. Raises LookupError if there is none."""
        try:
            return cast(T, self._values[key])
        except KeyError:
            raise LookupError(
                f"no plugin has provided the service {key.__name__}; name its plugin in `requires`"
            ) from None

    def find(self, key: type[T]) -> T | None:
        """Return the value provided under `key`, or None."""
        return cast("T | None", self._values.get(key))


@dataclass(frozen=True, slots=True)
class Change:
    """What a plugin can take in of a changed configuration while it runs."""

    #: Changed keys (dotted names) that will be in force after `commit`.
    taken: frozenset[str]
    #: Takes them in. Must not raise: whatever can be wrong was found before.
    commit: Callable[[], None]
    #: Called with the names of the pools whose new workers did not come up: what concerns those goes back.
    revert: Callable[[frozenset[str]], None] = lambda _pools: None


class Plugin:
    """Base of every plugin, Trailboss's own and third parties' (entry point group ``trailboss.plugins``).

    The constructor of a subclass takes its configuration section (or nothing) and does no I/O. Everything else has a
    default here, so that a plugin consists of what it does. An entry point names a callable that takes the loaded
    :class:`trailboss.config.schema.Config` and returns a Plugin, or None where the configuration does not ask for it.
    """

    #: Name in the configuration, in logs (the channel), in `trailboss.State` and, in front of the dot, of RPC methods.
    name: str = ""
    layer: Layer = Layer.BACKEND
    #: Names of plugins that have to be healthy before this one starts (and that stop after it).
    requires: frozenset[str] = frozenset()
    #: Like `requires`, but ignored where no such plugin is configured.
    after: frozenset[str] = frozenset()
    start_timeout_seconds: float = 30.0
    stop_timeout_seconds: float = 10.0

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Start, call ``task_status.started()`` once the plugin can serve, and return when `stopping` is set.

        Raises: anything. Before ``started()`` it fails the start; afterwards it makes this plugin `failed`.
        On cancellation: the axe, used when a deadline has passed; release what must be released and leave.
        """
        task_status.started()
        await stopping.wait()

    def health(self) -> Health:
        """Say whether the plugin can do its work now. Must not block and must not raise."""
        return Health(ok=True)

    def prepare_reload(self, config: Config, changed: frozenset[str]) -> Change | None:
        """Say which of the `changed` keys this plugin can take in while it runs, and how; None: none of them.

        `config` is the whole new configuration. Raises ValueError with a text for people where a value cannot work; then
        nothing is changed anywhere.
        """
        return None

    def rpc_methods(self) -> Sequence[RpcMethod]:
        """RPC methods of this plugin; asked before anything starts, and always answered the same."""
        return ()

    def pools(self) -> Sequence[PoolSpec]:
        """Worker pools this plugin needs; asked before anything starts, and always answered the same; booted in step 6."""
        return ()

    def attach_pool(self, pool: Pool) -> None:
        """Receive a pool asked for by `pools`; it exists from now on and boots in step 6."""

    async def open(self) -> None:
        """Step 7: every pool has its quorum; open public listeners, begin to consume. Returns when that is done."""

    async def close_intake(self) -> None:
        """Stop, first step: take nothing new from outside from now on. Must return quickly.

        Called once for every plugin that has been healthy, also where `open` was not reached.
        """

    async def drain(self) -> None:
        """Stop, second step: return when nothing that was taken is in flight any more.

        On cancellation: the drain deadline has passed; give back to its queue what can be given back.
        """

    def state_detail(self) -> Mapping[str, object]:
        """Figures for people (`trailboss.State`): small, JSON values only, no secrets. Must not block."""
        return {}


@dataclass(frozen=True, slots=True)
class PluginState:
    """One row of `trailboss.State`."""

    name: str
    phase: Phase
    since_seconds: float  #: how long it has been in this phase
    waiting_for: tuple[str, ...]  #: plugins it waits for before it can start
    reason: str  #: why it failed, or ""
    optional: bool
    health: Health | None  #: None unless the phase is healthy
