"""THE GATE: may this RPC call run now, must it wait, or is it refused, and with which words.

One pure function over values: the method (access, plugin, pool it needs), the phases of everybody, the caller, and how
long the call has waited already. Nothing is callable before it is healthy; the gate opens when every plugin is; while
on_init runs, sensitive methods are refused; a call that would wait for its own caller is refused at once. Refusals are
ordinary error answers, and clients parse their beginning: ``service not ready: phase=…; waiting for NAME (PHASE, 1.2s)``.

The gate can never wait for itself: waiting happens only for back-ends, which need no worker and no on_init, and for
pools, never longer than `rpc.ready_timeout`, and never for the pool that waits for the caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from trailboss.container.lifecycle import Phase, WholePhase
from trailboss.container.methods import Access, Caller, CallerRole, RpcMethod

__all__ = [
    "Decision",
    "GateView",
    "Pass",
    "PluginView",
    "Refuse",
    "Wait",
    "decide",
    "not_ready_text",
    "waited_for",
]

_COMING = (Phase.DECLARED, Phase.STARTING)
_ENDING = (WholePhase.DRAINING, WholePhase.STOPPED)


@dataclass(frozen=True, slots=True)
class PluginView:
    """One plugin as the gate sees it."""

    name: str
    phase: Phase
    since_seconds: float = 0.0  #: how long it has been in this phase
    reason: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True)
class GateView:
    """Everything a decision depends on besides the call itself."""

    whole: WholePhase
    open: bool
    on_init_running: bool = False
    plugins: tuple[PluginView, ...] = ()
    booting_pools: frozenset[str] = frozenset()  #: pools asked for that have not had their quorum yet
    since_seconds: float = 0.0  #: how long the whole has been in its phase
    #: Ready, and nothing failed or stopped: whoever is not a booting worker passes without another look.
    settled: bool = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "settled",
            self.open
            and self.whole is WholePhase.READY
            and not self.on_init_running
            and not self.booting_pools
            and all(plugin.phase is Phase.HEALTHY for plugin in self.plugins),
        )

    def plugin(self, name: str) -> PluginView | None:
        """Return the plugin `name`, or None: parts of the core have methods and no phase of their own."""
        return next((plugin for plugin in self.plugins if plugin.name == name), None)


@dataclass(frozen=True, slots=True)
class Pass:
    """Run the call now."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again at the next change, or when the call's own time to wait is over."""

    waiting_for: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with this error text."""

    text: str


Decision = Pass | Wait | Refuse

_PASS = Pass()


def decide(
    method: RpcMethod,
    needs_pool: str,
    view: GateView,
    caller: Caller,
    waited_seconds: float,
    ready_timeout_seconds: float,
) -> Decision:
    """Say what becomes of a call of `method` that has waited for `waited_seconds`; `needs_pool` is "" for none."""
    if method.access is Access.ALWAYS or (view.settled and not caller.booting):
        return _PASS
    own = view.plugin(method.plugin or method.name.partition(".")[0])
    refusal = _refusal(method, needs_pool, view, caller, own)
    if refusal is not None:
        return Refuse(refusal)
    waiting_for = _waiting_for(needs_pool, view, own)
    if not waiting_for:
        return _PASS
    if waited_seconds >= ready_timeout_seconds:
        return Refuse(_not_ready(view, f"waiting for {', '.join(waiting_for.values())}"))
    return Wait(tuple(waiting_for))


def not_ready_text(view: GateView, needs_pool: str = "") -> str:
    """Return ``service not ready: phase=starting; waiting for jobs (starting, 1.2s), kv (declared, 1.2s)``."""
    waiting_for = _waiting_for(needs_pool, view, None)
    if not waiting_for:
        return _not_ready(view, "")
    return _not_ready(view, f"waiting for {', '.join(waiting_for.values())}")


def waited_for(view: GateView) -> tuple[str, ...]:
    """Return what the start (not one call) still waits for, as text for people: plugins, on_init, pools."""
    if view.whole in _ENDING:
        return ()
    plugins = tuple(_waits_for_plugin(plugin) for plugin in view.plugins if plugin.phase in _COMING)
    on_init = (f"on_init (running, {view.since_seconds:.1f}s)",) if view.on_init_running else ()
    pools = tuple(_waits_for_pool(pool, view) for pool in sorted(view.booting_pools)) if view.open else ()
    return plugins + on_init + pools


def _refusal(
    method: RpcMethod, needs_pool: str, view: GateView, caller: Caller, own: PluginView | None
) -> str | None:
    """Return why waiting cannot help this call, or None."""
    if own is not None and own.phase is Phase.FAILED:
        return f"service not available: plugin {own.name} failed: {own.reason}"
    if view.whole in _ENDING and not view.open:
        return _not_ready(view, "the server is stopping")
    if own is not None and own.phase is Phase.STOPPED:
        return _not_ready(view, f"plugin {own.name} has stopped")
    if view.on_init_running and method.access is Access.SENSITIVE:
        return (
            f"refused during on_init: {method.name} is a sensitive method; "
            "call it again when on_init has ended"
        )
    if needs_pool and caller.booting and caller.pool == needs_pool:
        return _not_ready(
            view,
            f"{method.name} would wait for the pool {needs_pool}, which waits for this very caller (pid {caller.pid})",
        )
    if needs_pool in view.booting_pools and view.whole in _ENDING:
        return _not_ready(view, f"the pool {needs_pool} will not boot any more")
    if needs_pool in view.booting_pools and caller.role is CallerRole.ON_INIT:
        return _not_ready(
            view,
            f"{method.name} would wait for the pool {needs_pool}, "
            f"which boots only after on_init, this very caller (pid {caller.pid}), has ended",
        )
    return None


def _waiting_for(needs_pool: str, view: GateView, own: PluginView | None) -> dict[str, str]:
    """Return name → text of everything that has to come before the call may run; empty where it may run now."""
    if not view.open:
        coming: Iterable[PluginView] = (plugin for plugin in view.plugins if plugin.phase in _COMING)
        waits = {plugin.name: _waits_for_plugin(plugin) for plugin in coming}
        # All are settled and the gate is about to open, or to be closed for good by a failed start.
        return waits or {"gate": f"gate (closed, {view.since_seconds:.1f}s)"}
    waits = {own.name: _waits_for_plugin(own)} if own is not None and own.phase in _COMING else {}
    if needs_pool in view.booting_pools:
        waits[f"pool {needs_pool}"] = _waits_for_pool(needs_pool, view)
    return waits


def _waits_for_plugin(plugin: PluginView) -> str:
    return f"{plugin.name} ({plugin.phase.value}, {plugin.since_seconds:.1f}s)"


def _waits_for_pool(pool: str, view: GateView) -> str:
    word = "booting" if view.whole is WholePhase.BOOTING else "declared"
    return f"pool {pool} ({word}, {view.since_seconds:.1f}s)"


def _not_ready(view: GateView, what: str) -> str:
    return f"service not ready: phase={view.whole.value}{'; ' if what else ''}{what}"
