"""Callers that come too early, roadrunner#2085 above all: nothing is callable before it is healthy, and nobody hangs.

In the scenario behind that number, an on_init script called `jobs.List` while the jobs plugin was not there yet, and the
whole server died. Here 200 callers of every kind storm every kind of method from before the port exists until after the
stop, under the mock clock, through the production gate, on seeded timetables.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from trailboss.container.contract import (
    Access,
    Caller,
    CallerRole,
    Layer,
    Phase,
    Plugin,
    PluginFailed,
    RpcMethod,
    RpcRefused,
    Services,
    WholePhase,
)
from trailboss.container.startup import Container
from trailboss.container.state import ServerState

READY_TIMEOUT = 5.0

CALLERS = (
    Caller(CallerRole.OPERATOR, pid=1),
    Caller(CallerRole.ON_INIT, pid=2),
    Caller(CallerRole.WORKER, pool="jobs", pid=3),
    Caller(CallerRole.WORKER, pool="jobs", pid=4, booting=True),
    Caller(CallerRole.WORKER, pool="http", pid=5, booting=True),
)


@dataclass
class Ledger:
    """What was executed, and what was answered after how long."""

    state: ServerState
    #: (method, access, needs_pool, caller, gate at that moment, booting pools at that moment)
    executed: list[tuple[str, Access, str, Caller, str, frozenset[str]]] = field(default_factory=list)
    refused: list[tuple[str, float, str]] = field(default_factory=list)

    async def call(self, method: RpcMethod, caller: Caller, ready_timeout: float = READY_TIMEOUT) -> str:
        """Call as the RPC port does: through the gate, then the handler; returns the answer or the error text."""
        began = trio.current_time()
        needs_pool = method.needs_pool if isinstance(method.needs_pool, str) else method.needs_pool(None)
        try:
            await self.state.admit(method, needs_pool, caller, ready_timeout)
        except RpcRefused as refusal:
            self.refused.append((method.name, trio.current_time() - began, str(refusal)))
            return str(refusal)
        view = self.state.view()
        self.executed.append(
            (method.name, method.access, needs_pool, caller, self.state.gate, view.booting_pools)
        )
        return "done"


async def handler(argument: object, caller: Caller) -> object:
    """Stands for any handler; the ledger notes the execution."""
    return None


METHODS = (
    RpcMethod("jobs.List", handler),
    RpcMethod("jobs.Push", handler),
    RpcMethod("jobs.Destroy", handler, Access.SENSITIVE),
    RpcMethod("kv.Get", handler),
    RpcMethod("rpc.Version", handler, Access.ALWAYS),
    RpcMethod("trailboss.State", handler, Access.ALWAYS),
    RpcMethod("resetter.Reset", handler, Access.SENSITIVE, needs_pool="jobs"),
    RpcMethod("informer.Workers", handler, needs_pool="jobs"),
)


class Timed(Plugin):
    """A plugin that takes its time to start, perhaps for nothing."""

    def __init__(
        self,
        name: str,
        seconds: float = 0.0,
        *,
        layer: Layer = Layer.BACKEND,
        requires: Sequence[str] = (),
        fails: bool = False,
        pool: bool = False,
        drain_seconds: float = 0.0,
    ) -> None:
        self.name = name
        self.seconds = seconds
        self.layer = layer
        self.requires = frozenset(requires)
        self.fails = fails
        self.pool = pool
        self.drain_seconds = drain_seconds

    def pools(self) -> Sequence[Any]:
        return [Spec(self.name)] if self.pool else []

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await trio.sleep(self.seconds)
        if self.fails:
            raise OSError("no such disk")
        task_status.started()
        await stopping.wait()

    async def drain(self) -> None:
        await trio.sleep(self.drain_seconds)


@dataclass(frozen=True)
class Spec:
    """Stands in for a pool's specification."""

    name: str


class TimedPool:
    """A pool whose one worker calls RPC while it boots."""

    def __init__(
        self, name: str, seconds: float, bootstrap: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self.name = name
        self.seconds = seconds
        self.bootstrap = bootstrap
        self.at_quorum = False
        self.stopping = trio.Event()

    def describe(self) -> dict[str, object]:
        return {"name": self.name, "quorum": 1}

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep(self.seconds)
        if self.bootstrap is not None:
            await self.bootstrap()
        self.at_quorum = True
        task_status.started()
        await self.stopping.wait()

    async def stop(self, deadline: float) -> None:
        await trio.lowlevel.checkpoint()
        self.stopping.set()


async def storm(container: Container, ledger: Ledger, stop: trio.Event, seed: int, last_call: float) -> None:
    """200 callers, each calling random methods at random moments, while the container lives its whole life."""
    dice = random.Random(seed)

    async def caller(dice: random.Random) -> None:
        for _ in range(3):
            await trio.sleep(dice.uniform(0, last_call / 3))
            await ledger.call(
                dice.choice(METHODS), dice.choice(CALLERS), dice.choice((0.0, 1.0, READY_TIMEOUT))
            )

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(caller, random.Random(dice.random()))
        try:
            await container.run(stop)
        except PluginFailed:
            pass


def assert_nothing_too_early(ledger: Ledger) -> None:
    """What the gate promises, for every call of a storm."""
    for name, access, needs_pool, caller, gate, booting in ledger.executed:
        if access is Access.ALWAYS:
            continue
        assert gate != "closed", name
        assert not (access is Access.SENSITIVE and gate == "restricted"), name
        assert needs_pool not in booting, name
        assert not (caller.booting and caller.pool == needs_pool), name
    for name, waited, text in ledger.refused:
        assert waited <= READY_TIMEOUT + 0.1, name
        assert text.startswith(
            ("service not ready: phase=", "refused during on_init: ", "service not available: ")
        )


@pytest.mark.parametrize("seed", range(20))
async def test_storm_of_early_callers(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    """200 concurrent callers in every phase: 0 hangs, 0 executions before the gate opens, typed errors in time."""
    dice = random.Random(seed)
    failing = dice.choice(("", "", "", "kv", "jobs"))
    pools = {"jobs": TimedPool("jobs", dice.uniform(0, 8)), "http": TimedPool("http", dice.uniform(0, 8))}
    container = Container(
        [
            Timed("logs", dice.uniform(0, 1), layer=Layer.TELEMETRY),
            Timed("kv", dice.uniform(0, 8), fails=failing == "kv"),
            Timed(
                "jobs",
                dice.uniform(0, 8),
                layer=Layer.DRIVER,
                requires=["kv"],
                fails=failing == "jobs",
                pool=True,
                drain_seconds=dice.uniform(0, 4),
            ),
            Timed("http", 0.5, pool=True),
        ],
        rpc=Timed("rpc", dice.uniform(0, 1)),
        optional=dice.choice(((), ("kv", "jobs"))),
        on_init=lambda: trio.sleep(6),  # noqa: ASYNC105 - the container awaits what it returns
        make_pool=lambda spec: pools[spec.name],
    )
    ledger = Ledger(container.state)
    stop = trio.Event()

    async def stop_later() -> None:
        await trio.sleep(dice.choice((3.0, 10.0, 20.0, 30.0)))
        stop.set()

    with trio.fail_after(200):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_later)
            await storm(container, ledger, stop, seed, last_call=40.0)

    assert len(ledger.executed) + len(ledger.refused) == 600
    assert_nothing_too_early(ledger)
    assert any(access is Access.ALWAYS for _, access, *_ in ledger.executed)


async def life_with_on_init(
    jobs: Timed, body: Callable[[Ledger], Awaitable[None]], pool: TimedPool | None = None
) -> tuple[Container, Ledger]:
    """A server with jobs behind it, whose on_init does `body`; stopped when it is ready."""
    ledgers: list[Ledger] = []

    async def on_init() -> None:
        await body(ledgers[0])

    container = Container(
        [Timed("kv", 1.0), jobs],
        rpc=Timed("rpc"),
        on_init=on_init,
        make_pool=(lambda spec: pool) if pool is not None else None,
    )
    ledgers.append(Ledger(container.state))
    stop = trio.Event()
    container.state.on_change.append(
        lambda: stop.set() if container.state.whole is WholePhase.READY else None
    )
    with trio.fail_after(60):
        await container.run(stop)
    return container, ledgers[0]


LIST, RESET = METHODS[0], METHODS[6]
WORKERS = METHODS[7]
ON_INIT = Caller(CallerRole.ON_INIT, pid=2)


@pytest.mark.parametrize("seconds", [0.0, 0.5, 4.0, 20.0])
async def test_roadrunner_2085(seconds: float, autojump_clock: trio.testing.MockClock) -> None:
    """roadrunner#2085: on_init calls jobs.List in its first line; however late jobs is, the list is right."""
    answers: list[str] = []

    async def body(ledger: Ledger) -> None:
        answers.append(await ledger.call(LIST, ON_INIT))
        assert ledger.state.phase_of("jobs") is Phase.HEALTHY

    _, ledger = await life_with_on_init(Timed("jobs", seconds, layer=Layer.DRIVER, requires=["kv"]), body)

    assert answers == ["done"]
    assert_nothing_too_early(ledger)


async def test_roadrunner_2085_from_outside_while_jobs_is_held_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The same call from outside, with jobs held back: a typed error within rpc.ready_timeout, at once for 0s."""
    container = Container([Timed("kv", 1.0), Timed("jobs", 20, requires=["kv"])], rpc=Timed("rpc"))
    ledger, stop = Ledger(container.state), trio.Event()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(container.run, stop)
            await trio.sleep(0.5)
            at_once = await ledger.call(LIST, CALLERS[0], 0.0)
            late = await ledger.call(LIST, CALLERS[0], 5.0)
            stop.set()

    assert (
        at_once == "service not ready: phase=starting; waiting for kv (starting, 0.5s), jobs (declared, 0.5s)"
    )
    assert late == "service not ready: phase=starting; waiting for jobs (starting, 4.5s)"
    assert [waited for _, waited, _ in ledger.refused] == [0.0, 5.0]
    assert ledger.executed == []


async def test_on_init_never_waits_for_itself(autojump_clock: trio.testing.MockClock) -> None:
    """on_init that calls every method through the gate ends at once: what needs a pool or is sensitive is refused."""
    took: list[float] = []
    answers: dict[str, str] = {}

    async def body(ledger: Ledger) -> None:
        began = trio.current_time()
        for method in METHODS:
            answers[method.name] = await ledger.call(method, ON_INIT)
        took.append(trio.current_time() - began)

    jobs = Timed("jobs", 2.0, layer=Layer.DRIVER, pool=True)
    container, _ = await life_with_on_init(jobs, body, TimedPool("jobs", 1.0))

    assert took == [0.0]
    assert answers["resetter.Reset"].startswith(
        "refused during on_init: resetter.Reset is a sensitive method"
    )
    assert "boots only after on_init" in answers["informer.Workers"]
    done = {name for name, answer in answers.items() if answer == "done"}
    assert done == {"jobs.List", "jobs.Push", "kv.Get", "rpc.Version", "trailboss.State"}
    assert container.state.whole is WholePhase.STOPPED


async def test_booting_worker_never_waits_for_itself(autojump_clock: trio.testing.MockClock) -> None:
    """A worker that resets its own pool while it boots is refused at once, and the pool boots."""
    answers: list[str] = []
    began: list[float] = []
    pool = TimedPool("jobs", 1.0)
    container = Container([Timed("jobs", pool=True)], rpc=Timed("rpc"), make_pool=lambda spec: pool)
    ledger, stop = Ledger(container.state), trio.Event()

    async def bootstrap() -> None:
        began.append(trio.current_time())
        me = Caller(CallerRole.WORKER, pool="jobs", pid=77, booting=True)
        answers.append(await ledger.call(RESET, me))
        answers.append(await ledger.call(LIST, me))
        began.append(trio.current_time())

    pool.bootstrap = bootstrap
    container.state.on_change.append(
        lambda: stop.set() if container.state.whole is WholePhase.READY else None
    )
    with trio.fail_after(60):
        await container.run(stop)

    refusal, answer = answers
    assert refusal == (
        "service not ready: phase=booting pools; resetter.Reset would wait for the pool jobs, "
        "which waits for this very caller (pid 77)"
    )
    assert answer == "done"
    assert began[0] == began[1]


async def test_calls_pass_until_the_last_pool_has_drained(autojump_clock: trio.testing.MockClock) -> None:
    """While the server drains, workers still reach RPC; behind the last driver the gate is closed, with a reason."""
    jobs = Timed("jobs", layer=Layer.DRIVER, drain_seconds=3.0)
    kv = Timed("kv")
    container = Container([kv, jobs], rpc=Timed("rpc"))
    ledger, stop = Ledger(container.state), trio.Event()
    answers: list[str] = []

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: container.run(stop, task_status=task_status))
            stop.set()
            await trio.sleep(2)
            answers.append(await ledger.call(LIST, CALLERS[2]))
            await container.finished.wait()
            answers.append(await ledger.call(METHODS[3], CALLERS[2]))

    assert answers[0] == "done"
    assert answers[1] == "service not ready: phase=stopped; the server is stopping"


async def test_failed_start_answers_who_waits_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """When it is certain that the gate will never open, waiting callers hear it then, not at their own deadline."""
    container = Container([Timed("kv", 2.0, fails=True), Timed("jobs", 30)], rpc=Timed("rpc"))
    ledger = Ledger(container.state)

    async def live() -> None:
        with pytest.raises(PluginFailed, match="no such disk"):
            await container.run(trio.Event())

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(live)
            await trio.sleep(0.5)
            nursery.start_soon(ledger.call, LIST, CALLERS[0])
            nursery.start_soon(ledger.call, METHODS[3], CALLERS[0])

    texts = {name: (waited, text) for name, waited, text in ledger.refused}
    assert texts["jobs.List"] == (1.5, "service not ready: phase=draining; the server is stopping")
    assert texts["kv.Get"] == (1.5, "service not available: plugin kv failed: OSError: no such disk")


async def test_pool_that_cannot_boot_fails_its_owner(autojump_clock: trio.testing.MockClock) -> None:
    """A pool's first boot is its owner's: it ends the start, or fails an optional owner, whose methods say why."""

    async def broken() -> None:
        raise RuntimeError("worker 12 exited with code 255: PHP Fatal error")

    def make(optional: tuple[str, ...]) -> Container:
        return Container(
            [Timed("jobs", pool=True), Timed("kv")],
            rpc=Timed("rpc"),
            optional=optional,
            make_pool=lambda spec: TimedPool("jobs", 1.0, broken),
        )

    with pytest.raises(PluginFailed, match="worker pool jobs did not start: RuntimeError: worker 12 exited"):
        await make(()).run(trio.Event())

    container, stop = make(("jobs",)), trio.Event()
    ledger = Ledger(container.state)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: container.run(stop, task_status=task_status))
        answer = await ledger.call(LIST, CALLERS[0])
        other = await ledger.call(METHODS[3], CALLERS[0])
        stop.set()

    assert answer.startswith("service not available: plugin jobs failed: worker pool jobs did not start: ")
    assert other == "done"
