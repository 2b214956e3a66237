"""THE STARTUP NURSERY AND THE REVERSE WALK: carries out what the pure files decide.

Start, in seven steps: telemetry; the RPC port, bound behind a closed gate; everything else, each plugin when what it
requires is healthy; the gate opens; on_init; pools, in parallel; `open` of every plugin, and the server is ready.
Stop is the written reverse walk: intake, drain, pools, drivers, gate, RPC port, back-ends, telemetry, each step with a
deadline, the whole within the grace period plus one second.

A failure is a value in one mailbox, whichever plugin it hits and whenever. Until the server is ready, the first failure
of a plugin that is not optional ends the start; afterwards the plugin is `failed` and the others go on. Both ways end
in the same walk. Readiness is the shape of ``await nursery.start(plugin.run)``, with one difference: start() of trio
returns only when the child has ended or is ready, so a child that shields itself would hold the whole start; here the
wait has a deadline, and the child stays a task with an owner.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, cast

import trio

from trailboss.container.contract import Phase, Plugin, PluginFailed, Services, WholePhase
from trailboss.container.deadlines import StopBudget
from trailboss.container.lifecycle import Event, event_of_exit
from trailboss.container.order import Node, Stage, resolve, stop_sequence
from trailboss.container.state import ServerState
from trailboss.container.tasks import OwnedTask, OwnedTasks, describe_error, is_own_error, open_tasks
from trailboss.log import logger

if TYPE_CHECKING:
    from trailboss.workers.pool import Pool, PoolSpec

__all__ = ["Container", "PoolLike", "StartFailed"]

log = logger("container")


class StartFailed(Exception):
    """The start failed outside any plugin: `step` names where (on_init), `reason` says why, for people."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(f"{step} failed: {reason}")
        self.step = step
        self.reason = reason


class PoolLike(Protocol):
    """What the container asks of a worker pool."""

    @property
    def name(self) -> str: ...

    @property
    def at_quorum(self) -> bool: ...

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Boot, call ``started()`` at the quorum, and return after `stop`. Raises when the first boot failed."""

    async def stop(self, deadline: float) -> None:
        """Stop the workers gracefully until `deadline`, then hard; works in every phase, also while booting."""

    async def reset(self, reason: str) -> None:
        """Replace every worker, new ones first. Raises with the reason where the new ones do not come up."""

    def describe(self) -> Mapping[str, object]:
        """Return a row of `trailboss.State`."""
        ...

    #: Called with a text when no worker is left and the pool is to end the server then; None: it is not.
    on_exhausted: Callable[[str], None] | None


@dataclass(eq=False, slots=True)
class _Handle:
    """One plugin on its way: what it waits for, its task, and the events others wait for."""

    plugin: Plugin
    optional: bool
    specs: tuple[PoolSpec, ...] = ()
    stopping: trio.Event = field(default_factory=trio.Event)
    ready: trio.Event = field(default_factory=trio.Event)
    #: Healthy or failed: the start need not wait for it any more.
    settled: trio.Event = field(default_factory=trio.Event)
    task: OwnedTask | None = None
    since: float = 0.0  #: when it was started, then when it was asked to stop

    @property
    def name(self) -> str:
        return self.plugin.name

    @property
    def is_up(self) -> bool:
        """It has been ready, and its task still runs: there may be something to drain."""
        return self.ready.is_set() and self.task is not None and not self.task.done.is_set()


@dataclass(eq=False, slots=True)
class _PoolHandle:
    pool: PoolLike
    owner: _Handle
    ready: trio.Event = field(default_factory=trio.Event)
    settled: trio.Event = field(default_factory=trio.Event)
    task: OwnedTask | None = None


@dataclass(frozen=True, slots=True)
class _Exit:
    """A letter to the supervisor: this plugin has failed."""

    handle: _Handle
    error: PluginFailed


class _Readiness:
    """The task_status of a plugin or pool: `started` may be called once, and calls back."""

    def __init__(self, on_started: Callable[[], None]) -> None:
        self._on_started = on_started
        self._called = False

    def started(self, value: object = None) -> None:
        """Say "I can serve". Raises RuntimeError when it has been said before."""
        if self._called:
            raise RuntimeError("task_status.started() was called twice")
        self._called = True
        self._on_started()


class Container:
    """The plugins of one server, from declared to stopped; one container lives once.

    `optional` names plugins that may fail without failing the start. `rpc` is the plugin that binds the RPC port: it
    starts right after telemetry and stops between drivers and back-ends. `on_init` returns when the on_init commands
    have ended and raises if that is to fail the start; it is cancelled when the server stops meanwhile. `before_ready`
    is waited for when everything is open, before the server is ready, and cancelled in the same case. `make_pool`
    makes a pool of a PoolSpec without booting it. `drain_delay_seconds` is asked at a stop: a server that was ready says so
    long that it is stopping, and still serves. Raises GraphError when the plugins cannot be put in order.
    """

    def __init__(
        self,
        plugins: Sequence[Plugin],
        *,
        rpc: Plugin | None = None,
        optional: Collection[str] = (),
        on_init: Callable[[], Awaitable[None]] | None = None,
        before_ready: Callable[[], Awaitable[None]] | None = None,
        make_pool: Callable[[PoolSpec], PoolLike] | None = None,
        services: Services | None = None,
        grace_period_seconds: float = 30.0,
        drain_timeout_seconds: float | None = None,
        drain_delay_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        every = [*plugins, *([rpc] if rpc is not None else [])]
        self._plan = resolve(
            [
                Node(plugin.name, plugin.layer, plugin.requires, plugin.after, is_rpc=plugin is rpc)
                for plugin in every
            ]
        )
        by_name = {plugin.name: plugin for plugin in every}
        self._handles = {name: _Handle(by_name[name], name in optional) for name in self._plan.order}
        self._on_init = on_init
        self._before_ready = before_ready
        self._make_pool = make_pool
        self._grace_period_seconds = grace_period_seconds
        self._drain_timeout_seconds = drain_timeout_seconds
        self._drain_delay_seconds = drain_delay_seconds
        self.services = services if services is not None else Services()
        self.state = ServerState()
        self.services.provide(ServerState, self.state)
        #: Set when the walk is over. `run` may still not return: see `abandoned`.
        self.finished = trio.Event()
        self._pools: list[_PoolHandle] = []
        self._started: list[_Handle] = []  # in the order in which they were started
        self._steps: list[OwnedTask] = []  # what the start itself does: on_init, open
        self._tasks: OwnedTasks
        self._error: Exception | None = None
        self._ending = trio.Event()
        self._start_scope = trio.CancelScope()
        # Each plugin fails once, so a letter always has room.
        self._exits_in, self._exits_out = trio.open_memory_channel[_Exit](max(1, len(self._handles)))

    @property
    def abandoned(self) -> tuple[str, ...]:
        """Tasks that ignore their cancellation and still run after the walk.

        Trio cannot take a task away from code that shields itself for ever, so `run` cannot return while one lives.
        Whoever runs the container waits for `finished`, and if this is not empty, ends the process with os._exit.
        """
        return self._tasks.abandoned if hasattr(self, "_tasks") else ()

    @property
    def failure(self) -> Exception | None:
        """What ended the start: a PluginFailed or StartFailed, None where nothing did. `run` raises it at its end."""
        return self._error

    async def run(
        self,
        stop: trio.Event,
        hurry: trio.Event | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Live the whole life: start, wait for `stop`, and walk back; `hurry` makes every deadline of the walk now.

        ``task_status.started()`` is called when the server is ready; a stop that comes earlier returns without it.
        Raises: PluginFailed or StartFailed for a failed start, bare, after everything has been stopped.
        On cancellation: the axe; every plugin is cancelled at once and in no order. Ask by `stop` instead.
        """
        try:
            async with open_tasks() as self._tasks:
                await self._live(stop, hurry, task_status)
                self.finished.set()
        finally:
            self.finished.set()
            self._exits_in.close()
            self._exits_out.close()
        if self._error is not None:
            raise self._error

    async def _live(
        self, stop: trio.Event, hurry: trio.Event | None, task_status: trio.TaskStatus[None]
    ) -> None:
        async with trio.open_nursery() as watchers:
            watchers.start_soon(self._watch_stop, stop)
            watchers.start_soon(self._judge_exits)
            if hurry is not None:
                watchers.start_soon(self._watch_hurry, hurry)
            with self._start_scope:
                await self._start_up()
                task_status.started()
            await self._ending.wait()
            with trio.CancelScope(shield=True):  # every wait in there has a deadline
                await self._let_balancers_turn_away()
                await self._walk_back()
            watchers.cancel_scope.cancel(reason="the walk is over")

    # --- watching ---------------------------------------------------------------------------------------------------

    async def _watch_stop(self, stop: trio.Event) -> None:
        await stop.wait()
        self._end("asked to stop")

    async def _watch_hurry(self, hurry: trio.Event) -> None:
        await hurry.wait()
        log.warning("stopping without any grace")
        self._tasks.hurry()
        self._end("asked to stop at once")

    async def _judge_exits(self) -> None:
        """Read the mailbox: the first failure that matters ends the start, later ones end nothing."""
        async for letter in self._exits_out:
            error, handle = letter.error, letter.handle
            fatal = not handle.optional and self.state.whole is not WholePhase.READY
            if self._ending.is_set():
                consequence = "the server is stopping anyway"
            else:
                consequence = "the start fails" if fatal else "the others go on"
            log.error(
                "plugin failed",
                plugin=error.name,
                phase=error.phase.value,
                reason=error.reason,
                consequence=consequence,
            )
            if fatal:
                self._fail_start(error)

    def ready_pools(self) -> list[str]:
        """Names of the pools that have been ready."""
        return [handle.pool.name for handle in self._pools if handle.ready.is_set()]

    async def reload(self, reason: str) -> dict[str, str]:
        """Replace the workers of every pool, all at the same time; returns the pools where the old ones go on, and why.

        Does nothing before the server is ready and once it stops. Never raises.
        On cancellation: what has begun goes on.
        """
        pools = [handle.pool for handle in self._pools if handle.ready.is_set()]
        failed: dict[str, str] = {}
        if self.state.whole is not WholePhase.READY:
            return {pool.name: f"the server is {self.state.whole.value}" for pool in pools}

        async def reset(pool: PoolLike) -> None:
            try:
                await pool.reset(reason)
            except Exception as error:
                failed[pool.name] = describe_error(error)

        self.state.begin_reload()
        try:
            async with trio.open_nursery() as nursery:
                for pool in pools:
                    nursery.start_soon(reset, pool)
        finally:
            self.state.end_reload()
        return failed

    def _pool_exhausted(self, handle: _Handle, pool: PoolLike, text: str) -> None:
        """A pool with `on_exhausted: exit` has no worker left."""
        if not self._ending.is_set():
            log.error("the server stops: a pool has no worker left and is told to exit then", pool=pool.name)
            reason = f"{text} (on_exhausted: exit)"
            self._error = PluginFailed(handle.name, self.state.phase_of(handle.name), reason)
            self._end(f"the pool {pool.name} is exhausted")

    def _fail_start(self, error: Exception) -> None:
        if not self._ending.is_set():
            self._error = error
            self._end("the start failed")

    def _end(self, reason: str) -> None:
        if not self._ending.is_set():
            log.info("server stopping", reason=reason)
            self._ending.set()
            self._start_scope.cancel(reason=reason)

    def _plugin_failed(self, handle: _Handle, reason: str, cause: BaseException | None = None) -> None:
        """Make a plugin failed, at once for the gate; what follows from it is for the supervisor to say."""
        phase = self.state.phase_of(handle.name)
        self.state.record(handle.name, Event.FAIL, reason)
        handle.settled.set()
        for spec in handle.specs:
            self.state.pool_settled(spec.name)
        if phase is Phase.DRAINING:
            log.error("plugin failed while it stopped, the walk goes on", plugin=handle.name, reason=reason)
        elif phase is not Phase.FAILED:
            details = getattr(cause, "details", "")
            error = PluginFailed(handle.name, phase, reason, details if isinstance(details, str) else "")
            error.__cause__ = cause
            self._exits_in.send_nowait(_Exit(handle, error))

    # --- start ------------------------------------------------------------------------------------------------------

    async def _start_up(self) -> None:
        plugins = [handle.plugin for handle in self._handles.values()]
        optional = {name for name, handle in self._handles.items() if handle.optional}
        self.state.declare(plugins, self._plan.requirements, optional)
        log.info("server starting", plugins=len(plugins))
        self._ask_for_pools()
        for stage in Stage:
            await self._all_well()
            await self._start_stage(stage)
        await self._all_well()
        self.state.open_gate()
        log.info("gate open")
        await self._run_on_init()
        await self._boot_pools()
        await self._open_all()
        if self._before_ready is not None:
            await self._before_ready()
        self.state.set_whole(WholePhase.READY)
        log.info("server ready", took_seconds=round(self.state.uptime_seconds, 3))

    async def _all_well(self) -> None:
        """Go on only while nobody has failed whose failure ends the start."""
        await trio.lowlevel.checkpoint()
        for handle in self._handles.values():
            if not handle.optional and self.state.phase_of(handle.name) is Phase.FAILED:
                await trio.sleep_forever()  # the letter is in the mailbox; reading it cancels this very start

    def _ask_for_pools(self) -> None:
        names: set[str] = set()
        for handle in self._handles.values():
            try:
                handle.specs = tuple(handle.plugin.pools())
            except Exception as error:
                self._plugin_failed(handle, f"pools() raised {describe_error(error)}", error)
                continue
            for spec in handle.specs:
                if self._make_pool is None:
                    self._plugin_failed(
                        handle, f"asks for the worker pool {spec.name}, but no server is configured"
                    )
                elif spec.name in names:
                    self._plugin_failed(handle, f"asks for the worker pool {spec.name}, which exists already")
                names.add(spec.name)
        self.state.expect_pools(
            {
                spec.name
                for handle in self._handles.values()
                for spec in handle.specs
                if self.state.phase_of(handle.name) is not Phase.FAILED
            }
        )

    async def _start_stage(self, stage: Stage) -> None:
        handles = [self._handles[name] for name in self._plan.stage(stage)]
        for handle in handles:  # who need not wait begins in the planned order, so that starts look alike
            if all(self._handles[name].settled.is_set() for name in self._plan.requirements[handle.name]):
                self._begin_plugin(handle)
        async with trio.open_nursery() as starters:
            for handle in handles:
                starters.start_soon(self._start_plugin, handle)

    async def _start_plugin(self, handle: _Handle) -> None:
        """Start one plugin when what it requires is settled; returns when it is settled itself."""
        for name in sorted(self._plan.requirements[handle.name]):
            await self._handles[name].settled.wait()
        self._begin_plugin(handle)
        with trio.move_on_at(handle.since + handle.plugin.start_timeout_seconds):
            await handle.settled.wait()
        if not handle.settled.is_set() and handle.task is not None:
            self._plugin_failed(
                handle, f"not ready within its start timeout of {handle.plugin.start_timeout_seconds:g} s"
            )
            handle.task.scope.cancel(reason="its start timeout has passed")

    def _begin_plugin(self, handle: _Handle) -> None:
        if handle.task is not None or handle.settled.is_set():
            return  # it has begun, or could not even say which pools it needs
        if self._ending.is_set():
            return  # the cancel of the start is on its way; nothing new begins
        failed = self._failed_requirements(handle)
        if failed:
            self._plugin_failed(handle, f"requires {', '.join(failed)}, which failed")
        else:
            self._spawn_plugin(handle)

    def _failed_requirements(self, handle: _Handle) -> list[str]:
        names = sorted(self._plan.requirements[handle.name])
        return [name for name in names if self.state.phase_of(name) is Phase.FAILED]

    def _spawn_plugin(self, handle: _Handle) -> None:
        readiness = _Readiness(lambda: self._plugin_ready(handle))
        status = cast("trio.TaskStatus[None]", readiness)
        handle.since = trio.current_time()
        self.state.record(handle.name, Event.START)
        self._started.append(handle)
        log.info("plugin starting", plugin=handle.name)
        handle.task = self._tasks.spawn(
            handle.name,
            "run",
            lambda: handle.plugin.run(self.services, handle.stopping, task_status=status),
            on_end=lambda task: self._plugin_ended(handle, task),
        )

    def _plugin_ready(self, handle: _Handle) -> None:
        handle.ready.set()
        handle.settled.set()
        if self.state.record(handle.name, Event.READY) is Phase.HEALTHY:
            took = trio.current_time() - handle.since
            log.info("plugin healthy", plugin=handle.name, took_seconds=round(took, 3))

    def _plugin_ended(self, handle: _Handle, task: OwnedTask) -> None:
        phase = self.state.phase_of(handle.name)
        error = task.error
        if event_of_exit(phase, raised=error is not None) is Event.FAIL:
            when = "before it was ready" if phase is Phase.STARTING else "without being asked to"
            reason = describe_error(error) if error is not None else f"ended {when}"
            self._plugin_failed(handle, reason, error)
        else:
            self.state.record(handle.name, Event.EXIT)
        if handle.stopping.is_set():
            took = trio.current_time() - handle.since
            log.info("plugin stopped", plugin=handle.name, took_seconds=round(took, 3))

    async def _run_on_init(self) -> None:
        if self._on_init is None:
            return
        self.state.set_whole(WholePhase.INITIALISING, on_init_running=True)
        log.info("on_init running, the gate is restricted")
        error = await self._step("on_init", "commands", self._on_init, math.inf)
        if error is not None:
            if isinstance(error, PluginFailed | StartFailed):
                self._fail_start(error)
            else:
                failure = StartFailed("on_init", describe_error(error))
                failure.__cause__ = error
                self._fail_start(failure)
        await self._all_well()
        self.state.set_whole(WholePhase.BOOTING)

    async def _step(
        self, owner: str, what: str, function: Callable[[], Awaitable[object]], timeout_seconds: float
    ) -> BaseException | None:
        """Do one step of the start in a task, so that code which shields itself cannot hold the walk."""
        task = self._tasks.spawn(owner, what, function)
        self._steps.append(task)
        with trio.move_on_after(timeout_seconds) as scope:
            await task.done.wait()
        if scope.cancelled_caught:
            task.scope.cancel(reason="its time is over")
            return TimeoutError(f"not done within {timeout_seconds:g} s")
        return task.error

    async def _boot_pools(self) -> None:
        self.state.set_whole(WholePhase.BOOTING)
        for handle in self._handles.values():
            if self.state.phase_of(handle.name) is Phase.HEALTHY:
                self._attach_pools(handle)
        async with trio.open_nursery() as booting:
            for pool in self._pools:
                booting.start_soon(self._boot_pool, pool)
        await self._all_well()

    def _attach_pools(self, handle: _Handle) -> None:
        try:
            for spec in handle.specs:
                assert self._make_pool is not None  # otherwise asking for a pool has failed the plugin
                pool = self._make_pool(spec)
                pool.on_exhausted = functools.partial(self._pool_exhausted, handle, pool)
                handle.plugin.attach_pool(cast("Pool", pool))
                self._pools.append(_PoolHandle(pool, handle))
                self.state.add_pool(pool)
        except Exception as error:
            self._plugin_failed(handle, f"its worker pool cannot be made: {describe_error(error)}", error)

    async def _boot_pool(self, handle: _PoolHandle) -> None:
        readiness = _Readiness(lambda: self._pool_ready(handle))
        status = cast("trio.TaskStatus[None]", readiness)
        log.info("pool booting", pool=handle.pool.name, plugin=handle.owner.name)
        handle.task = self._tasks.spawn(
            handle.owner.name,
            f"pool {handle.pool.name}",
            lambda: handle.pool.run(task_status=status),
            on_end=lambda task: self._pool_ended(handle, task),
        )
        await handle.settled.wait()

    def _pool_ready(self, handle: _PoolHandle) -> None:
        handle.ready.set()
        handle.settled.set()
        if not self._ending.is_set():
            log.info("pool ready", pool=handle.pool.name)
            self.state.pool_settled(handle.pool.name)

    def _pool_ended(self, handle: _PoolHandle, task: OwnedTask) -> None:
        handle.settled.set()
        name = handle.pool.name
        if not self._ending.is_set():
            what = "ended" if handle.ready.is_set() else "did not start"
            reason = describe_error(task.error) if task.error is not None else "it returned unasked"
            if task.error is None or not is_own_error(
                task.error
            ):  # our own texts say what happened to which pool
                reason = f"worker pool {name} {what}: {reason}"
            self._plugin_failed(handle.owner, reason, task.error)
        elif task.error is not None:
            log.error(
                "pool failed while it stopped, the walk goes on",
                pool=name,
                reason=describe_error(task.error),
            )

    async def _open_all(self) -> None:
        for handle in self._handles.values():
            if self.state.phase_of(handle.name) is not Phase.HEALTHY:
                continue
            error = await self._step(
                handle.name, "open", handle.plugin.open, handle.plugin.start_timeout_seconds
            )
            if error is not None:
                self._plugin_failed(handle, f"cannot open: {describe_error(error)}", error)
            await self._all_well()

    # --- the reverse walk -------------------------------------------------------------------------------------------

    async def _let_balancers_turn_away(self) -> None:
        """Be not ready, and serve on for the drain delay: whoever asks for readiness sends no more by its end."""
        delay = self._drain_delay_seconds()
        if delay > 0 and self._error is None and self.state.whole is WholePhase.READY:
            self.state.set_whole(WholePhase.DRAINING)
            log.info("not ready any more, serving on for the drain delay", seconds=delay)
            await self._tasks.wait(trio.Event(), trio.current_time() + delay)

    async def _walk_back(self) -> None:
        began = trio.current_time()
        budget = self._tasks.keep_to(
            StopBudget.begin(began, self._grace_period_seconds, self._drain_timeout_seconds)
        )
        self._record_stop()
        await self._tasks.cut(self._steps, budget.interrupt_until(began))
        await self._close_intake(budget)
        await self._drain(budget)
        await self._stop_pools(budget)
        sequence = stop_sequence(self._plan, [handle.name for handle in self._started])
        await self._stop_plugins(sequence.before_gate_closes, budget)
        if self.state.gate_open:
            self.state.close_gate()
            log.info("gate closed")
        await self._stop_plugins(sequence.after_gate_closed, budget)
        self.state.set_whole(WholePhase.STOPPED)
        log.info(
            "server stopped",
            took_seconds=round(trio.current_time() - began, 3),
            abandoned=list(self._tasks.abandoned),
        )

    def _record_stop(self) -> None:
        self.state.set_whole(WholePhase.DRAINING)
        for name in self._handles:
            self.state.record(name, Event.STOP)

    def _up_last_first(self) -> list[_Handle]:
        return [handle for handle in reversed(self._started) if handle.is_up]

    async def _close_intake(self, budget: StopBudget) -> None:
        for handle in self._up_last_first():
            task = self._tasks.spawn(handle.name, "close_intake", handle.plugin.close_intake, _log_step_error)
            await self._tasks.finish([task], budget.intake_until(trio.current_time()))

    async def _drain(self, budget: StopBudget) -> None:
        drains = [
            self._tasks.spawn(handle.name, "drain", handle.plugin.drain, _log_step_error)
            for handle in self._up_last_first()
        ]
        await self._tasks.finish(drains, budget.drain_until)
        log.info("drained")

    async def _stop_pools(self, budget: StopBudget) -> None:
        running = [pool for pool in self._pools if pool.task is not None and not pool.task.done.is_set()]
        stops = [self._spawn_pool_stop(handle, budget.pools_until) for handle in running]
        await self._tasks.finish(stops, budget.pools_until)
        await self._tasks.finish([pool.task for pool in running if pool.task], budget.pools_until)
        for handle in running:
            log.info("pool stopped", pool=handle.pool.name)

    def _spawn_pool_stop(self, handle: _PoolHandle, deadline: float) -> OwnedTask:
        return self._tasks.spawn(
            handle.owner.name,
            f"pool {handle.pool.name} stop",
            lambda: handle.pool.stop(deadline),
            _log_step_error,
        )

    async def _stop_plugins(self, names: Sequence[str], budget: StopBudget) -> None:
        """One after the other, since each may use to its very end what was started before it."""
        for name in names:
            handle = self._handles[name]
            if handle.task is None or handle.task.done.is_set():
                continue
            log.info("plugin stopping", plugin=name)
            handle.since = trio.current_time()
            handle.stopping.set()
            until = budget.plugin_until(trio.current_time(), handle.plugin.stop_timeout_seconds)
            if handle.ready.is_set():
                await self._tasks.finish([handle.task], until)
            else:  # it has nothing to bring to an end; what it waits for may never come
                await self._tasks.cut([handle.task], until)


def _log_step_error(task: OwnedTask) -> None:
    if task.error is not None:
        log.error(
            "step of the stop failed, the walk goes on",
            plugin=task.owner,
            step=task.what,
            reason=describe_error(task.error),
        )
