"""check_plugin(make): the battery that every plugin has to pass, Trailboss's own and third parties'.

`make` returns a fresh plugin each time, with everything it needs except its requirements; those come in `beside`. Each
check lives one whole life in the real container. What is checked is what the contract says and the rest of the server
relies on: healthy before the gate opens, gone within the stop deadline, clean after a crash of any kind, honest health.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, cast

import trio

from trailboss.container.contract import (
    Health,
    Phase,
    Plugin,
    PluginFailed,
    PluginState,
    RpcMethod,
    Services,
)
from trailboss.container.startup import Container
from trailboss.testing.container import Ready, lived, run_container

if TYPE_CHECKING:
    from trailboss.workers.pool import Pool, PoolSpec

__all__ = ["InjectedCrash", "check_plugin"]


_CRASH = "crash injected by check_plugin"


class InjectedCrash(Exception):
    """The error that the battery makes a plugin die of."""


async def check_plugin(
    make: Callable[[], Plugin], beside: Callable[[], Sequence[Plugin]] = lambda: ()
) -> None:
    """Put a plugin through the battery; `beside` makes the plugins that it requires. Raises AssertionError.

    A plugin that asks for pools is checked without them here (the container's own tests and the plugin's cover that).
    """
    _check_declaration(make())
    await _check_healthy_before_gate_opens(make, beside)
    await _check_stops_in_time(make, beside)
    await _check_stop_during_start(make, beside)
    await _check_crash_before_ready(make, beside)
    await _check_crash_after_ready(make, beside)
    await _check_optional(make, beside)
    await _check_cancellation(make, beside)


def _check_declaration(plugin: Plugin) -> None:
    """Everything that is asked before the start can be asked, of a plugin that has done nothing yet."""
    assert plugin.name, f"{type(plugin).__name__} has no name"
    assert plugin.start_timeout_seconds > 0, f"{plugin.name}: start_timeout_seconds must be above 0"
    assert plugin.stop_timeout_seconds > 0, f"{plugin.name}: stop_timeout_seconds must be above 0"
    names = [method.name for method in plugin.rpc_methods()]
    assert len(names) == len(set(names)), f"{plugin.name}: RPC methods are declared twice in {names}"
    for name in names:
        service, dot, method = name.partition(".")
        assert all((service, dot, method)), f"{plugin.name}: RPC method {name!r} is not Service.Method"
    tuple(plugin.pools())
    _check_introspection(plugin)


def _check_introspection(plugin: Plugin) -> None:
    health = plugin.health()
    assert isinstance(health, Health), f"{plugin.name}: health() returned {health!r}"
    assert health.ok or health.reason, f"{plugin.name}: bad health without a reason"
    json.dumps(dict(plugin.state_detail()))


async def _check_healthy_before_gate_opens(
    make: Callable[[], Plugin], beside: Callable[[], Sequence[Plugin]]
) -> None:
    """The gate opens only when the plugin says it can serve; then it is in good health and has figures to show."""
    plugin = _Wrapped(make())
    seen: list[tuple[bool, Phase]] = []
    container = _container(plugin, beside)
    container.state.on_change.append(
        lambda: seen.append((container.state.gate_open, container.state.phase_of(plugin.name)))
    )
    async with _living(container, plugin):
        state = _row(container, plugin)
        assert state.phase is Phase.HEALTHY, (
            f"{plugin.name} is {state.phase.value} after the start: {state.reason}"
        )
        assert state.health is not None
        assert state.health.ok, f"{plugin.name}: bad health right after the start: {state.health.reason}"
        _check_introspection(plugin.inner)
        json.dumps(container.state.as_dict())
    too_early = [phase for is_open, phase in seen if is_open and phase in (Phase.DECLARED, Phase.STARTING)]
    assert too_early == [], f"{plugin.name}: the gate was open while it was {too_early}"
    _check_introspection(plugin.inner)


async def _check_stops_in_time(make: Callable[[], Plugin], beside: Callable[[], Sequence[Plugin]]) -> None:
    """Asked to stop it returns by itself, without an error, within its own deadline; and it can live again."""
    for _life in range(2):
        plugin = _Wrapped(make())
        container = _container(plugin, beside)
        async with _living(container, plugin):
            pass
        state = _row(container, plugin)
        assert not plugin.was_cancelled, (
            f"{plugin.name} did not return within stop_timeout_seconds = {plugin.stop_timeout_seconds:g}"
        )
        assert state.phase is Phase.STOPPED, (
            f"{plugin.name} is {state.phase.value} after the stop: {state.reason}"
        )


async def _check_stop_during_start(
    make: Callable[[], Plugin], beside: Callable[[], Sequence[Plugin]]
) -> None:
    """A stop that comes before it is ready is cleaned up as well as any other."""
    plugin = _Wrapped(make())
    container = _container(plugin, beside)
    stop = trio.Event()
    container.state.on_change.append(
        lambda: stop.set() if container.state.phase_of(plugin.name) is Phase.STARTING else None
    )
    with trio.fail_after(_seconds_max(plugin)):
        await container.run(stop)
    state = _row(container, plugin)
    assert state.phase is Phase.STOPPED, (
        f"{plugin.name} is {state.phase.value} after a stop in its start: {state.reason}"
    )


async def _check_crash_before_ready(
    make: Callable[[], Plugin], beside: Callable[[], Sequence[Plugin]]
) -> None:
    """An error before it is ready comes out of the start with its name, and nothing is left behind."""
    plugin = _Wrapped(make(), crash_before_ready=True)
    container = _container(plugin, beside)
    error = await _failed_start(container, plugin)
    assert error.name == plugin.name, f"{plugin.name} crashed, {error.name} was reported"
    assert _CRASH in error.reason, f"{plugin.name}: the reason was lost: {error.reason!r}"
    assert container.abandoned == (), f"{plugin.name}: still running: {container.abandoned}"


async def _check_crash_after_ready(
    make: Callable[[], Plugin], beside: Callable[[], Sequence[Plugin]]
) -> None:
    """A crash of something inside it ends it, with a reason, and ends nobody else."""
    plugin = _Wrapped(make())
    container = _container(plugin, beside)
    async with _living(container, plugin):
        plugin.crash.set()
        with trio.fail_after(plugin.stop_timeout_seconds):
            while container.state.phase_of(plugin.name) is not Phase.FAILED:
                await container.state.wait_change()
        state = _row(container, plugin)
        assert _CRASH in state.reason, f"{plugin.name}: the reason was lost: {state.reason!r}"
        others = [other for other in container.state.plugins() if other.name != plugin.name]
        ill = [other.name for other in others if other.phase is not Phase.HEALTHY]
        assert ill == [], f"{plugin.name} took others down: {ill}"


async def _check_optional(make: Callable[[], Plugin], beside: Callable[[], Sequence[Plugin]]) -> None:
    """As an optional plugin it may fail, and the others start without it."""
    plugin = _Wrapped(make(), crash_before_ready=True)
    async with run_container(
        [plugin, *beside()],
        optional={plugin.name},
        grace_period_seconds=plugin.stop_timeout_seconds,
        start_seconds_max=_seconds_max(plugin),
    ) as container:
        state = _row(container, plugin)
        assert state.phase is Phase.FAILED, f"{plugin.name} is {state.phase.value}"
        assert container.state.fully_ready, (
            f"{plugin.name} is optional, and the server is not ready without it"
        )


async def _check_cancellation(make: Callable[[], Plugin], beside: Callable[[], Sequence[Plugin]]) -> None:
    """The axe: cancelled while healthy, it leaves within its stop deadline and does not swallow the cancellation."""
    plugin = _Wrapped(make())
    container = _container(plugin, beside)
    ready = Ready()
    with trio.fail_after(_seconds_max(plugin)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: container.run(trio.Event(), task_status=ready.status))
            await ready.event.wait()
            nursery.cancel_scope.cancel(reason="the axe of check_plugin")
    assert plugin.has_left, f"{plugin.name} is still running after its cancellation"


def _living(container: Container, plugin: Plugin) -> AbstractAsyncContextManager[None]:
    return lived(container, _seconds_max(plugin), _grace_seconds(plugin) + 2)


def _container(plugin: Plugin, beside: Callable[[], Sequence[Plugin]]) -> Container:
    return Container([*beside(), plugin, _Bystander()], grace_period_seconds=_grace_seconds(plugin))


def _grace_seconds(plugin: Plugin) -> float:
    return 3 * plugin.stop_timeout_seconds


def _seconds_max(plugin: Plugin) -> float:
    return plugin.start_timeout_seconds + _grace_seconds(plugin) + 2


def _row(container: Container, plugin: Plugin) -> PluginState:
    return next(state for state in container.state.plugins() if state.name == plugin.name)


async def _failed_start(container: Container, plugin: Plugin) -> PluginFailed:
    try:
        with trio.fail_after(_seconds_max(plugin)):
            await container.run(trio.Event())
    except PluginFailed as error:
        return error
    raise AssertionError(f"{plugin.name} crashed before it was ready, and the start did not fail")


def _holds_cancelled(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_holds_cancelled, error.exceptions))
    return isinstance(error, trio.Cancelled)


class _Started:
    """A task_status that passes the word on to a function of ours instead of the container."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def started(self, value: object = None) -> None:
        self._function()


class _Bystander(Plugin):
    """Somebody who must not suffer."""

    name = "bystander"


class _Wrapped(Plugin):
    """A plugin with a fault in it: the error is raised beside the plugin's own tasks, as a bug of one of them would."""

    def __init__(self, inner: Plugin, *, crash_before_ready: bool = False) -> None:
        self.inner = inner
        self.name = inner.name
        self.layer = inner.layer
        self.requires = inner.requires
        self.after = inner.after
        self.start_timeout_seconds = inner.start_timeout_seconds
        self.stop_timeout_seconds = inner.stop_timeout_seconds
        self.crash = trio.Event()
        self.was_cancelled = False
        self.has_left = False
        self._crash_before_ready = crash_before_ready

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        if self._crash_before_ready:
            # Crash at the worst moment, with everything acquired and nobody told.
            task_status = cast("trio.TaskStatus[None]", _Started(self.crash.set))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._crash_when_told)
                await self.inner.run(services, stopping, task_status=task_status)
                nursery.cancel_scope.cancel(reason="the plugin has ended")
        except BaseException as error:
            self.was_cancelled = _holds_cancelled(error)
            raise
        finally:
            self.has_left = True

    async def _crash_when_told(self) -> None:
        await self.crash.wait()
        raise InjectedCrash(_CRASH)

    def health(self) -> Health:
        return self.inner.health()

    def rpc_methods(self) -> Sequence[RpcMethod]:
        return self.inner.rpc_methods()

    def pools(self) -> Sequence[PoolSpec]:
        return ()

    def attach_pool(self, pool: Pool) -> None:
        self.inner.attach_pool(pool)

    async def open(self) -> None:
        await self.inner.open()

    async def close_intake(self) -> None:
        await self.inner.close_intake()

    async def drain(self) -> None:
        await self.inner.drain()

    def state_detail(self) -> Mapping[str, object]:
        return self.inner.state_detail()
