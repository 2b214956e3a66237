"""Random plugin graphs with faults of every kind in every phase, under the mock clock: the invariants of a start and stop.

One example is one life of the production container: up to eight plugins in random layers with random requirements,
some optional, some with pools, each with a random fault (raise, hang, raise in cleanup, die, shield) in a random phase
(construct, starting, healthy, stop), and a stop (perhaps a hurried one) at a random moment. Whatever happens: requirements
first, reverse order, each stopped once, the whole stop within the grace period plus one second, the first error reported.
"""

from __future__ import annotations

import enum
import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import structlog.testing
import trio
import trio.testing
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from trailboss.container.contract import Layer, Phase, Plugin, PluginFailed, Services, WholePhase
from trailboss.container.gate import GateView
from trailboss.container.startup import Container


class Fault(enum.Enum):
    """What goes wrong."""

    NONE = "none"
    RAISE = "raise"
    HANG = "hang"
    CLEANUP = "raise in cleanup"
    DIE = "die"
    SHIELD = "shield"


class At(enum.Enum):
    """When it goes wrong."""

    CONSTRUCT = "construct"
    STARTING = "starting"
    HEALTHY = "healthy"
    INTAKE = "close_intake"
    DRAIN = "drain"
    STOP = "stop"


class PoolFault(enum.Enum):
    """What goes wrong with a pool."""

    NO_POOL = "no pool"
    NONE = "none"
    BOOT_RAISES = "boot raises"
    BOOT_HANGS = "boot hangs"
    DIES = "dies"
    STOP_HANGS = "stop hangs"


@dataclass(frozen=True)
class Case:
    """One plugin of an example."""

    name: str
    layer: Layer
    requires: frozenset[str]
    optional: bool
    fault: Fault
    at: At
    start_seconds: float
    stop_seconds: float
    fault_seconds: float
    pool: PoolFault


@dataclass(frozen=True)
class Spec:
    """Stands in for a pool's specification; the container looks at its name only."""

    name: str


@dataclass(frozen=True)
class Life:
    """One example."""

    cases: tuple[Case, ...]
    rpc_fault: Fault
    stop_after: float | None  #: seconds after the begin; None: some time after the server is ready
    hurry_after: float | None  #: seconds after the stop
    on_init_seconds: float | None
    grace_seconds: float


TIMES = st.sampled_from((0.0, 0.25, 0.5, 1.0, 1.0, 2.0))
FAULTS = st.one_of(st.just(Fault.NONE), st.just(Fault.NONE), st.sampled_from(Fault))


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """Random examples; about half the plugins are sound, so that lives get far enough for late faults."""
    cases: list[Case] = []
    for number in range(draw(st.integers(1, 8))):
        layer = draw(st.sampled_from(Layer))
        below = [case.name for case in cases if case.layer <= layer]
        cases.append(
            Case(
                name=f"p{number}",
                layer=layer,
                requires=draw(st.frozensets(st.sampled_from(below), max_size=3)) if below else frozenset(),
                optional=draw(st.booleans()),
                fault=draw(FAULTS),
                at=draw(st.sampled_from(At)),
                start_seconds=draw(TIMES),
                stop_seconds=draw(TIMES),
                fault_seconds=draw(TIMES),
                pool=draw(
                    st.one_of(st.just(PoolFault.NO_POOL), st.just(PoolFault.NONE), st.sampled_from(PoolFault))
                ),
            )
        )
    return Life(
        cases=tuple(draw(st.permutations(cases))),
        rpc_fault=draw(st.sampled_from((Fault.NONE,) * 8 + (Fault.RAISE, Fault.HANG))),
        stop_after=draw(st.none() | st.none() | TIMES | st.floats(0, 12)),
        hurry_after=draw(st.none() | st.none() | TIMES),
        on_init_seconds=draw(st.none() | TIMES),
        grace_seconds=draw(st.sampled_from((2.0, 6.0, 30.0))),
    )


@dataclass
class World:
    """What an example leaves behind."""

    logs: Sequence[MutableMapping[str, Any]]
    let_go: trio.Event
    events: list[tuple[str, str]] = field(default_factory=list)
    #: How many log lines there were when a plugin's run was left.
    left_at: dict[str, int] = field(default_factory=dict)
    views: list[tuple[float, GateView]] = field(default_factory=list)
    error: Exception | None = None
    began: float = 0.0
    stop_asked: float = math.inf
    hurried: float = math.inf
    finished: float = math.inf
    abandoned: tuple[str, ...] = ()
    phases: dict[str, Phase] = field(default_factory=dict)

    def note(self, what: str, name: str) -> None:
        self.events.append((what, name))

    def count(self, what: str, name: str) -> int:
        return self.events.count((what, name))


class Subject(Plugin):
    """A plugin that does what its case says."""

    start_timeout_seconds = 5.0
    stop_timeout_seconds = 1.5

    def __init__(self, case: Case, world: World) -> None:
        self.name = case.name
        self.layer = case.layer
        self.requires = case.requires
        self.case = case
        self.world = world

    def faulty(self, at: At) -> Fault:
        return self.case.fault if self.case.at is at else Fault.NONE

    def pools(self) -> Sequence[Any]:
        if self.faulty(At.CONSTRUCT) in (Fault.RAISE, Fault.DIE):
            raise ValueError(f"{self.name} cannot be asked")
        return [Spec(f"{self.name}-pool")] if self.case.pool is not PoolFault.NO_POOL else []

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self.world.note("run", self.name)
        try:
            await trio.sleep(self.case.start_seconds)
            if await self.misbehave(At.STARTING):
                return
            self.world.note("ready", self.name)
            task_status.started()
            if self.faulty(At.HEALTHY) in (Fault.DIE, Fault.CLEANUP):
                with trio.move_on_after(self.case.fault_seconds):
                    await stopping.wait()
                if not stopping.is_set():
                    await self.misbehave(At.HEALTHY)
            else:
                await stopping.wait()
            await trio.sleep(self.case.stop_seconds)
            await self.misbehave(At.STOP)
        finally:
            self.world.left_at[self.name] = len(self.world.logs)
            self.world.note("left", self.name)

    async def misbehave(self, at: At) -> bool:
        """Commit the fault if this is its phase; True asks the caller to leave without a word."""
        match self.faulty(at):
            case Fault.NONE:
                return False
            case Fault.RAISE:
                raise ValueError(f"{self.name} raises at {at.value}")
            case Fault.DIE:
                if at is At.STARTING:
                    return True
                raise SystemExit(f"{self.name} dies at {at.value}")
            case Fault.HANG:
                await trio.sleep_forever()
            case Fault.CLEANUP:
                try:
                    await trio.sleep(0.1 if at is At.HEALTHY else math.inf)
                finally:
                    raise ValueError(f"{self.name} raises in cleanup at {at.value}")
            case Fault.SHIELD:
                with trio.CancelScope(shield=True):
                    await self.world.let_go.wait()
        return False

    async def open(self) -> None:
        self.world.note("open", self.name)
        if self.faulty(At.HEALTHY) in (Fault.RAISE, Fault.HANG, Fault.SHIELD):
            await self.misbehave(At.HEALTHY)

    async def close_intake(self) -> None:
        self.world.note("close", self.name)
        await self.misbehave(At.INTAKE)

    async def drain(self) -> None:
        self.world.note("drain", self.name)
        await self.misbehave(At.DRAIN)


class SubjectPool:
    """A pool that does what its owner's case says."""

    def __init__(self, spec: Spec, case: Case, world: World) -> None:
        self.name = spec.name
        self.case = case
        self.world = world
        self.at_quorum = False
        self.stopping = trio.Event()

    def describe(self) -> dict[str, object]:
        return {"name": self.name}

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        self.world.note("pool run", self.name)
        try:
            if self.case.pool is PoolFault.BOOT_RAISES:
                raise ValueError("no worker came up")
            if self.case.pool is PoolFault.BOOT_HANGS:
                await trio.sleep(4)
            self.at_quorum = True
            task_status.started()
            if self.case.pool is PoolFault.DIES:
                await trio.sleep(self.case.fault_seconds)
                raise ValueError("pool died")
            await self.stopping.wait()
        finally:
            self.at_quorum = False
            self.world.note("pool left", self.name)

    async def stop(self, deadline: float) -> None:
        self.world.note("pool stop", self.name)
        if self.case.pool is PoolFault.STOP_HANGS:
            await trio.sleep_forever()
        self.stopping.set()


async def live(life: Life, world: World) -> None:
    """One life, from the first start to the last task."""
    by_pool = {f"{case.name}-pool": case for case in life.cases}
    rpc = Subject(
        Case(
            "rpc", Layer.BACKEND, frozenset(), False, life.rpc_fault, At.STARTING, 0, 0, 0, PoolFault.NO_POOL
        ),
        world,
    )

    async def on_init() -> None:
        world.note("on_init", "")
        await trio.sleep(life.on_init_seconds or 0)

    container = Container(
        [Subject(case, world) for case in life.cases],
        rpc=rpc,
        optional={case.name for case in life.cases if case.optional},
        on_init=on_init if life.on_init_seconds is not None else None,
        make_pool=lambda spec: SubjectPool(cast(Spec, spec), by_pool[spec.name], world),
        grace_period_seconds=life.grace_seconds,
    )
    state = container.state
    state.on_change.append(lambda: world.views.append((trio.current_time(), state.view())))
    stop, hurry = trio.Event(), trio.Event()
    world.began = trio.current_time()

    async def run() -> None:
        try:
            await container.run(stop, hurry)
        except PluginFailed as error:
            world.error = error

    async def ask_to_stop() -> None:
        if life.stop_after is not None:
            await trio.sleep(life.stop_after)
        else:
            while state.whole is not WholePhase.READY:
                await state.wait_change()
            await trio.sleep(2.5)
        world.stop_asked = trio.current_time()
        stop.set()
        if life.hurry_after is not None:
            await trio.sleep(life.hurry_after)
            world.hurried = trio.current_time()
            hurry.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(ask_to_stop)
        with trio.fail_after(1000):
            await container.finished.wait()
        world.finished = trio.current_time()
        world.abandoned = container.abandoned
        world.let_go.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    world.phases = {plugin.name: plugin.phase for plugin in state.plugins()}


def simulate(life: Life) -> World:
    """Live one life in a world of its own."""
    with structlog.testing.capture_logs() as logs:
        world = World(logs, let_go=trio.Event())
        trio.run(live, life, world, clock=trio.testing.MockClock(autojump_threshold=0))
    return world


@settings(
    max_examples=1200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(lives())
def test_random_graphs_with_faults(life: Life) -> None:
    """Whatever fails, hangs or shields itself, and when, every invariant of start and stop holds."""
    world = simulate(life)

    event("ready" if any(view.whole is WholePhase.READY for _, view in world.views) else "never ready")
    event("start failed" if world.error is not None else "start not failed")
    event("something given up" if world.abandoned else "nothing given up")
    check_start_order(life, world)
    check_gate(life, world)
    check_first_error(life, world)
    check_each_stopped_once(life, world)
    check_reverse_order(life, world)
    check_bounds(life, world)


def check_start_order(life: Life, world: World) -> None:
    """Nobody runs before all it requires is ready, nobody but telemetry before the RPC port, and nobody twice."""
    for case in life.cases:
        assert world.count("run", case.name) <= 1
        if world.count("run", case.name):
            place = world.events.index(("run", case.name))
            before = set(world.events[:place])
            needed = case.requires | (frozenset() if case.layer is Layer.TELEMETRY else {"rpc"})
            assert all(("ready", name) in before for name in needed)
    lines = [line["event"] for line in world.logs]
    assert "plugin starting" not in lines[lines.index("server stopping") :]
    if world.count("run", "rpc"):
        before = set(world.events[: world.events.index(("run", "rpc"))])
        telemetry = [case for case in life.cases if case.layer is Layer.TELEMETRY and not case.optional]
        assert all(("ready", case.name) in before for case in telemetry)
    for case in life.cases:
        for what in ("open", "close", "drain"):
            assert world.count(what, case.name) <= 1
        if world.count("open", case.name):
            assert world.count("ready", case.name) == 1


def check_gate(life: Life, world: World) -> None:
    """The gate opens once, with everybody healthy or optional and failed, and closes when drivers and pools are gone."""
    states = [view.open for _, view in world.views]
    changes = [after for before, after in zip([False, *states], states, strict=False) if before is not after]
    assert changes in ([], [True, False])
    opened = next((view for _, view in world.views if view.open), None)
    if opened is not None:
        assert all(
            plugin.phase is Phase.HEALTHY or (plugin.optional and plugin.phase is Phase.FAILED)
            for plugin in opened.plugins
        )
    if ("on_init", "") in world.events or any(what == "pool run" for what, _ in world.events):
        assert opened is not None
    closing = next(
        (view for _, view in world.views if view.whole is WholePhase.DRAINING and not view.open), None
    )
    if opened is not None and closing is not None:
        assert all(
            case.name in world.left_at or any(title.split()[0] == case.name for title in world.abandoned)
            for case in life.cases
            if case.layer is Layer.DRIVER and world.count("run", case.name)
        )


def check_first_error(life: Life, world: World) -> None:
    """The start fails with the first failure that matters, or not at all."""
    fatal: tuple[float, set[str]] | None = None
    for time, view in world.views:
        if view.whole in (WholePhase.READY, WholePhase.DRAINING):
            break
        failed = {
            plugin.name for plugin in view.plugins if plugin.phase is Phase.FAILED and not plugin.optional
        }
        if failed:
            fatal = (time, (fatal[1] if fatal else set()) | failed)
    if world.error is None:
        assert fatal is None or fatal[0] >= min(world.stop_asked, world.hurried)
        return
    assert isinstance(world.error, PluginFailed)
    assert fatal is not None
    assert world.error.name in fatal[1]
    first = min(
        time
        for time, view in world.views
        if any(plugin.phase is Phase.FAILED and not plugin.optional for plugin in view.plugins)
    )
    assert first <= min(world.stop_asked, world.hurried)
    at_first = next(
        failed
        for _, view in world.views
        if (failed := [one.name for one in view.plugins if one.phase is Phase.FAILED and not one.optional])
    )
    assert at_first == [world.error.name]
    assert WholePhase.READY not in {view.whole for _, view in world.views}
    faulty = {case.name for case in life.cases if case.fault is not Fault.NONE}
    faulty |= {case.name for case in life.cases if case.pool not in (PoolFault.NO_POOL, PoolFault.NONE)}
    faulty |= {"rpc"} if life.rpc_fault is not Fault.NONE else set()
    requires = {case.name: case.requires for case in life.cases}
    assert world.error.name in faulty or requires[world.error.name] & {
        name for name, phase in world.phases.items() if phase is Phase.FAILED
    }


def check_each_stopped_once(life: Life, world: World) -> None:
    """Who was started has left exactly once, who was asked to stop was asked once, and all end in a final phase."""
    for name in ["rpc", *(case.name for case in life.cases)]:
        assert world.count("left", name) == world.count("run", name)
        asked = [line for line in world.logs if line["event"] == "plugin stopping" and line["plugin"] == name]
        assert len(asked) <= world.count("run", name)
        assert world.phases[name] in (Phase.STOPPED, Phase.FAILED)
    for case in life.cases:
        assert world.count("pool left", f"{case.name}-pool") == world.count("pool run", f"{case.name}-pool")
        assert world.count("pool stop", f"{case.name}-pool") <= world.count("pool run", f"{case.name}-pool")


def check_reverse_order(life: Life, world: World) -> None:
    """Nobody is asked to stop before all that require it have left, or been given up; and the layers come in order."""
    asked = {
        line["plugin"]: place for place, line in enumerate(world.logs) if line["event"] == "plugin stopping"
    }
    given_up = {title for title in world.abandoned if " " not in title}
    depth = {Layer.DRIVER: 0, Layer.BACKEND: 2, Layer.TELEMETRY: 3}
    order = [
        *((case.name, depth[case.layer], case.requires) for case in life.cases),
        ("rpc", 1, frozenset[str]()),
    ]
    for name, level, requires in order:
        for other, other_level, _ in order:
            if other in asked and name in world.left_at and (other in requires or other_level > level):
                assert name in given_up or world.left_at[name] <= asked[other]
    stages = [what for what, _ in world.events if what in ("close", "drain", "pool stop")]
    assert stages == sorted(stages, key=("close", "drain", "pool stop").index)


def check_bounds(life: Life, world: World) -> None:
    """The walk ends within the grace period and a second, a hurried one within a second; only shields are given up."""
    began = next(time for time, view in world.views if view.whole is WholePhase.DRAINING)
    assert world.finished - began <= life.grace_seconds + 1
    if world.hurried < world.finished:
        assert world.finished - world.hurried <= 1
    shielded = {case.name for case in life.cases if case.fault is Fault.SHIELD}
    assert {title.split()[0] for title in world.abandoned} <= shielded
    if world.error is None:
        ready = [time for time, view in world.views if view.whole is WholePhase.READY]
        assert ready or world.stop_asked <= began
