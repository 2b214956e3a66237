"""The simulated server: the production container, gate, pools and jobs on a made-up machine, under load and faults."""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from inspect import isawaitable
from typing import TYPE_CHECKING

import trio
import trio.testing

from trailboss.config.schema import JobsConfig, PipelineConfig, ServerConfig
from trailboss.container.contract import Caller, Layer, Plugin, RpcRefused
from trailboss.container.startup import Container
from trailboss.messages import jobs_pb2
from trailboss.plugins.jobs.plugin import JobsPlugin
from trailboss.plugins.server.plugin import ServerPlugin
from trailboss.testing.container import Ready
from trailboss.testing.simulation.disk import DiskDriver
from trailboss.testing.simulation.ledger import Ledger
from trailboss.testing.simulation.machine import FakeGuard, Machine, SeededReactor
from trailboss.testing.simulation.plan import (
    BOOT_FAULTS,
    WORKER_FAULTS,
    Fault,
    FaultPlan,
    plan_of,
    scenario_of,
)
from trailboss.workers.callers import Callers
from trailboss.workers.deaths import Deaths
from trailboss.workers.generations import ResetFailed
from trailboss.workers.lane import Ticket
from trailboss.workers.outcome import ExecFailed, Outcome
from trailboss.workers.pool import Pool, PoolSpec

if TYPE_CHECKING:
    from trailboss.config.schema import PoolConfig

__all__ = ["PIPELINES", "SimulatedServer"]

PIPELINES = {"memory": "memory", "disk": DiskDriver.kind}
GRACE_SECONDS = 10.0
#: When faults have stopped, everything that waits is done within this time.
DRAIN_SECONDS_MAX = 60.0
#: A waiter and an idle worker are never both there for longer.
IDLE_AND_WAITING_SECONDS_MAX = 0.05
LOOK_SECONDS = 5.0
READY_SECONDS_MAX = 60.0
MAX_ATTEMPTS = 4


class FrontPlugin(Plugin):
    """Stands for a web server: it has a pool, and waits at the end for the calls it has taken."""

    name = "http"
    layer = Layer.DRIVER
    requires = frozenset({"server"})

    def __init__(self, config: PoolConfig, in_flight: Callable[[], int]) -> None:
        self._config = config
        self._in_flight = in_flight
        self.pool: Pool | None = None
        self.is_open = False

    def pools(self) -> Sequence[PoolSpec]:
        """One pool."""
        return (PoolSpec("http", "http", self._config),)

    def attach_pool(self, pool: Pool) -> None:
        """Take the pool."""
        self.pool = pool

    async def open(self) -> None:
        """Take calls."""
        self.is_open = True

    async def close_intake(self) -> None:
        """Take no more."""
        self.is_open = False

    async def drain(self) -> None:
        """Wait for those taken."""
        while self._in_flight():  # noqa: ASYNC110  the ledger's calls end in many ways
            await trio.sleep(0.05)


class SimulatedServer:
    """One life of a server: `live` returns when it is over; what was wrong is in the ledger."""

    def __init__(
        self,
        plan: FaultPlan,
        ledger: Ledger,
        clock: trio.testing.MockClock,
        nursery: trio.Nursery,
        sabotage: Callable[[Pool], None] | None,
    ) -> None:
        self._plan = plan
        self._scenario = scenario_of(plan.seed)
        self._ledger = ledger
        self._clock = clock
        self._nursery = nursery
        self._sabotage = sabotage
        self.machine = Machine(plan.seed, ledger, nursery)
        self._load = random.Random(f"load {plan.seed}")
        self.reactor = SeededReactor(random.Random(f"reactor {plan.seed}"))
        self.callers = Callers()
        self.guard = FakeGuard()
        self._stop = trio.Event()
        self._hurry = trio.Event()
        self._stopped_early = False
        self.pools: dict[str, Pool] = {}
        self.jobs = JobsPlugin(
            JobsConfig(
                pool=self._scenario.jobs_pool,
                pipelines={
                    name: PipelineConfig(driver=driver, config={"seed": plan.seed})
                    for name, driver in PIPELINES.items()
                },
                consume=tuple(PIPELINES),
                max_attempts=MAX_ATTEMPTS,
                retry_backoff=1.0,
                retry_backoff_max=10.0,
            )
        )
        self.front = FrontPlugin(self._scenario.http_pool, lambda: len(ledger.open_calls))
        self.container = self._make_container()
        self._methods = {method.name: method for method in self.jobs.rpc_methods()}
        self._job_number = 0

    def _make_container(self) -> Container:
        server = ServerPlugin(
            ServerConfig(command=("worker",)),
            reactor=self.reactor,
            callers=self.callers,
            deaths=Deaths(),
            rpc_address=lambda: "",
        )
        server.guard = server.workshop.guard = self.guard
        server.workshop.spawner = self.machine.spawn
        server.workshop.fits = lambda _pids: 100

        def make_pool(spec: PoolSpec) -> Pool:
            pool = Pool(spec, server.workshop, seed=self._plan.seed)
            self.pools[spec.name] = pool
            if self._sabotage is not None:
                self._sabotage(pool)
            return pool

        return Container(
            [server, self.jobs, self.front],
            make_pool=make_pool,
            on_init=self._on_init,
            grace_period_seconds=GRACE_SECONDS,
        )

    async def _on_init(self) -> None:
        await trio.sleep(0.2)

    # --- the life -------------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Start, suffer, heal, drain, stop, and look at what is left."""
        ledger, ready, over = self._ledger, Ready(), trio.Event()

        async def container() -> None:
            try:
                await self.container.run(self._stop, self._hurry, task_status=ready.status)
            except Exception as error:
                ledger.note("start failed", type(error).__name__)
                if not self._scenario.boot_faults:  # with them it may fail
                    ledger.violate("start", f"nothing was wrong, but the start failed: {error}")
            finally:
                over.set()
                ready.event.set()

        self.machine.boot_faults.extend(self._scenario.boot_faults)
        self._nursery.start_soon(self.reactor.run)
        for number in range(3):
            self._nursery.start_soon(self._push_early, 0.1 * number)
        self._nursery.start_soon(container)
        if self._scenario.stop_in_start_seconds:
            self._nursery.start_soon(self._stop_later, self._scenario.stop_in_start_seconds)
        with trio.move_on_after(READY_SECONDS_MAX) as limit:
            await ready.event.wait()
        if limit.cancelled_caught:
            ledger.violate("start", f"not ready after {READY_SECONDS_MAX:g} s")
        if not over.is_set():
            ledger.note("ready")
            await self._suffer()
            if not self._stop.is_set():
                await self._drain()
            await self._end(over)
        self._look_at_the_rest()

    async def _stop_later(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._ledger.note("stop in the start")
        self._stop.set()

    async def _suffer(self) -> None:
        """Load and faults, to the horizon or an early stop."""
        began = trio.current_time()
        events: list[tuple[float, int, Callable[[], None]]] = []
        for fault in self._plan.faults:
            events.append((fault.at, len(events), lambda fault=fault: self._apply(fault)))  # type: ignore[misc]
        events += [(at, 10_000 + number, what) for number, (at, what) in enumerate(self._loads())]
        events.sort(key=lambda event: event[:2])
        for at, _, act in events:
            while trio.current_time() < began + at and not self._stop.is_set():
                with trio.move_on_at(min(began + at, trio.current_time() + LOOK_SECONDS)):
                    await self._stop.wait()
                await self._look()
            if self._stop.is_set():
                self._stopped_early = True
                return
            act()
            await self._look()
        self.machine.heal()
        self._ledger.note("healed")

    def _loads(self) -> list[tuple[float, Callable[[], None]]]:
        """What is asked of the server: most of it around the faults, also around those that were left out."""
        choose, scenario = self._load, self._scenario
        around = [fault.at for fault in plan_of(self._plan.seed).faults]

        def moment() -> float:
            if around and choose.random() < 0.7:
                return max(
                    0.0, min(scenario.horizon_seconds, choose.choice(around) + choose.uniform(-1.0, 3.0))
                )
            return choose.uniform(0.0, scenario.horizon_seconds)

        loads: list[tuple[float, Callable[[], None]]] = []
        for _ in range(scenario.jobs):
            pipeline, delay = choose.choice(sorted(PIPELINES)), choose.choice((0, 0, 0, 1, 5))
            loads.append((moment(), lambda p=pipeline, d=delay: self._start(self._push, p, d, "job")))  # type: ignore[misc]
        for _ in range(scenario.calls):
            kind = choose.choice(("exec", "exec", "submit", "submit", "stream"))
            pool, patience = choose.choice(("http", "http", "jobs")), choose.choice((0.02, 1.0, 100.0))
            seed = choose.random()
            loads.append(
                (moment(), lambda k=kind, n=pool, p=patience, s=seed: self._call(k, n, p, s))  # type: ignore[misc]
            )
        return loads

    def _start(self, function: Callable[..., Awaitable[object]], *arguments: object) -> None:
        self._nursery.start_soon(function, *arguments)

    async def _drain(self) -> None:
        """Nothing goes wrong any more: within a minute all that waits is done and every pool is whole."""
        deadline = trio.current_time() + DRAIN_SECONDS_MAX
        while what := self._undone():
            if trio.current_time() >= deadline:
                # Named after what is worst: what follows from it stands beside it.
                names = {name for name, _ in what}
                name = next(name for name in ("one outcome", "change", "slots", "drain") if name in names)
                text = "; ".join(text for _, text in what)
                self._ledger.violate(name, f"{DRAIN_SECONDS_MAX:g} s after the faults stopped: {text}")
                return
            await self._look()
            await trio.sleep(0.25)
        self._ledger.note("drained")

    def _undone(self) -> list[tuple[str, str]]:
        """What is not as it should be after the faults, each with the name of its invariant."""
        ledger, books = self._ledger, self.jobs.pipelines.total()
        undone: list[tuple[str, str]] = []
        if ledger.open_calls:
            undone.append(("one outcome", f"calls without one: {list(ledger.open_calls.items())[:5]}"))
        if books.waiting or books.delayed or books.running:
            undone.append(
                ("drain", f"jobs: {books.waiting} wait, {books.delayed} delayed, {books.running} run")
            )
        undone += [("change", f"{what} has not ended") for what, count in ledger.pending.items() if count]
        for name, pool in self.pools.items():
            wanted = sum(1 for slot in pool.slots if slot.wanted)
            figures = pool.statistics()
            if figures.queued or figures.in_flight:
                undone.append(("drain", f"{name}: {figures.queued} queued, {figures.in_flight} in flight"))
            if pool.debug:
                if pool.slots:
                    undone.append(
                        ("slots", f"{name}: {len(pool.slots)} of a debug pool that has nothing to do")
                    )
            elif not wanted == figures.ready == pool.num_workers:
                text = (
                    f"{name}: {wanted} slots and {figures.ready} ready workers, {pool.num_workers} configured"
                )
                undone.append(("slots", text))
        return undone

    async def _end(self, over: trio.Event) -> None:
        began = trio.current_time()
        self._stop.set()
        self._ledger.note("stop")
        # The walk has its grace period and a second; the machine may have been asleep for none of it.
        with trio.move_on_after(GRACE_SECONDS + 1.001):
            await over.wait()
        if not over.is_set():
            self._ledger.violate("stop", f"not over after {trio.current_time() - began:.3f} s")
        self._ledger.note("over")

    async def _look(self) -> None:
        """Invariants that hold at every moment."""
        ledger = self._ledger
        books = self.jobs.pipelines.total()
        if not books.balanced:
            ledger.violate("books", f"the books of the jobs do not add up: {books}")
        for name, pool in self.pools.items():
            seen = self._idle_and_waiting(pool)
            if seen and not ledger.violations:
                await trio.sleep(IDLE_AND_WAITING_SECONDS_MAX + 0.001)
                if self._idle_and_waiting(pool) == seen:
                    ledger.violate(
                        "idle and waiting", f"{name}: {seen[0]} idle workers, {seen[1]} execs wait"
                    )

    @staticmethod
    def _idle_and_waiting(pool: Pool) -> tuple[int, int, int] | None:
        if pool.idle_count and pool.queued:
            return pool.idle_count, pool.queued, pool.executions
        return None

    def _look_at_the_rest(self) -> None:
        """Nothing is left of a server that has stopped."""
        ledger, machine = self._ledger, self.machine
        now = trio.current_time()
        stuck = {process.pid for process in machine.processes.values() if process.stuck_until > now - 1.0}
        left = [process.pid for process in machine.living() if process.pid not in stuck]
        if left:
            ledger.violate("left over", f"processes: {left}")
        unclosed = [pid for pid, one in machine.processes.items() if not one.closed and pid not in stuck]
        if unclosed:
            ledger.violate("left over", f"processes that were not reaped and closed: {unclosed}")
        if self.guard.groups - stuck:
            ledger.violate("left over", f"groups that the guard still knows: {sorted(self.guard.groups)}")
        if self.reactor.registered and not stuck:
            ledger.violate("left over", f"{self.reactor.registered} descriptors are registered")
        if self.reactor.failures:
            ledger.violate("internal error", f"{self.reactor.failures} exceptions on the data plane")
        if ledger.open_calls:
            ledger.violate("one outcome", f"calls without an outcome: {list(ledger.open_calls.items())[:5]}")
        books = self.jobs.pipelines.total()
        if not books.balanced or books.running:
            ledger.violate("books", f"after the stop: {books}")
        if self.container.abandoned:
            ledger.violate("left over", f"tasks: {self.container.abandoned}")
        for pipeline in self.jobs.pipelines.by_name.values():
            for letter in pipeline.driver.dead_letters():
                if letter.job.attempts < MAX_ATTEMPTS and not letter.reason.startswith("quarantined"):
                    ledger.violate("attempts", f"{letter.job} is a dead letter: {letter.reason}")
        pushed, ended = books.pushed, books.done + books.dead
        ledger.note("books", pushed, ended, books.waiting, books.delayed)

    # --- load -----------------------------------------------------------------------------------------------------------

    async def _push_early(self, seconds: float) -> None:
        """A client that comes before the server is there."""
        await trio.sleep(seconds)
        await self._push("memory", 0, "early")

    async def _push(self, pipeline: str, delay: int, payload: str) -> None:
        self._job_number += 1
        name = f"{payload} {self._job_number}"
        job = jobs_pb2.Job(
            id=name,
            job=payload,
            payload=name.encode(),
            options=jobs_pb2.Options(pipeline=pipeline, delay=delay, priority=self._job_number % 3),
        )
        await self._rpc("jobs.Push", jobs_pb2.PushRequest(job=job))

    async def _rpc(self, name: str, argument: object) -> None:
        """Call as the RPC port does: through the gate, then the handler."""
        method, state, ledger = self._methods[name], self.container.state, self._ledger
        caller = Caller()
        ledger.pending[name] += 1
        try:
            await state.admit(method, "", caller, 5.0)
            if not state.gate_open:
                ledger.violate("gate", f"{name} passed a gate that is {state.gate}")
            answer = method.handler(argument, caller)
            if isawaitable(answer):
                await answer
            ledger.note("rpc", name, "done")
        except RpcRefused as error:
            ledger.note("rpc", name, "refused", type(error).__name__)
        finally:
            ledger.pending[name] -= 1

    def _call(self, kind: str, name: str, patience: float, seed: float) -> None:
        """Give one exec to a pool, the way web servers or applications do."""
        pool = self.pools.get(name)
        if pool is None or not self.front.is_open:
            return
        number = self._ledger.begin_call(f"{kind} {name}")
        body = b"call %d" % number
        if kind == "exec":
            self._start(self._exec, pool, number, body, patience)
        elif kind == "submit":
            pool.submit(
                b"x", body, 0, lambda outcome: self._ledger.end_call(number, outcome, body), f"call {number}"
            )
        else:
            _Stream(self._nursery, self._ledger, pool, number, body, patience, random.Random(seed))

    async def _exec(self, pool: Pool, number: int, body: bytes, patience: float) -> None:
        outcome: Outcome | None = None
        with trio.move_on_after(patience):
            try:
                outcome = await pool.exec(b"x", body, 0, f"call {number}")
            except ExecFailed as error:
                outcome = error
        self._ledger.end_call(number, outcome, body)

    # --- faults ---------------------------------------------------------------------------------------------------------

    def _apply(self, fault: Fault) -> None:
        self._ledger.note("fault", fault.kind, fault.target, fault.seconds)
        if fault.kind in WORKER_FAULTS:
            self._hit_worker(fault)
        elif fault.kind in BOOT_FAULTS:
            self.machine.boot_faults.append((fault.kind, fault.seconds))
        else:
            self._hit_server(fault)

    def _hit_worker(self, fault: Fault) -> None:
        living = self.machine.living()
        if not living:
            return
        process = living[fault.target % len(living)]
        match fault.kind:
            case "kill":
                process.signal_leader(signal.SIGKILL)
            case "freeze":
                process.signal_leader(signal.SIGSTOP)
                self._start(self._thaw, process.pid, fault.seconds)
            case "stick":
                process.stuck_until = trio.current_time() + fault.seconds
                process.signal_leader(signal.SIGKILL)
            case "unasked":
                process.say(b"debug: here I am\n")
            case "close_in" | "close_out":
                process.close_pipe(fault.kind)
            case kind:
                process.armed.append((kind, fault.seconds))

    async def _thaw(self, pid: int, seconds: float) -> None:
        await trio.sleep(seconds)
        process = self.machine.processes.get(pid)
        if process is not None:
            process.signal_leader(signal.SIGCONT)

    def _hit_server(self, fault: Fault) -> None:
        pool = self.pools[sorted(self.pools)[fault.target % len(self.pools)]]
        match fault.kind:
            case "pause":
                self._clock.jump(fault.seconds * 5)
            case "broken":
                self.machine.broken_until = trio.current_time() + fault.seconds * 4
            case "reset":
                self._start(self._change, "reset", pool.reset)
            case "reload":
                self._start(self._change, "reload", lambda: self.container.reload("simulated"))
            case "grow" if pool.num_workers < 8:
                self._start(self._change, "grow", pool.add_worker)
            case "shrink":
                self._start(self._change, "shrink", pool.remove_worker)
            case "poison":
                self._start(self._push, sorted(PIPELINES)[fault.target % 2], 0, "poison")
            case "burst":
                for number in range(25):
                    self._call("submit", pool.name, 100.0, number / 25)
            case "halt":
                self._start(self._halt, sorted(PIPELINES)[fault.target % 2], fault.seconds)
            case "resize":
                self._start(self._change, "resize", lambda: self._resize(pool, 1 + fault.target % 5))
            case "stop":
                self._stop.set()
            case "hurry":
                self._stop.set()
                self._start(self._hurry_later, fault.seconds)

    async def _change(self, what: str, change: Callable[[], Awaitable[object]]) -> None:
        ledger = self._ledger
        ledger.pending[what] += 1
        try:
            await change()
            ledger.note(what, "done")
        except ResetFailed:
            ledger.note(what, "failed")
        finally:
            ledger.pending[what] -= 1

    async def _hurry_later(self, seconds: float) -> None:
        await trio.sleep(seconds)
        self._hurry.set()

    async def _resize(self, pool: Pool, workers: int) -> None:
        """Change the configuration, and reload until the new one is in place."""
        pool.apply(replace(pool.config, num_workers=workers))
        while True:
            try:
                await pool.reset("simulated")
                return
            except ResetFailed:
                if pool.is_stopping:
                    raise
                await trio.sleep(5.0)

    async def _halt(self, pipeline: str, seconds: float) -> None:
        await self._rpc("jobs.Pause", jobs_pb2.Pipelines(pipelines=[pipeline]))
        await trio.sleep(seconds)
        await self._rpc("jobs.Resume", jobs_pb2.Pipelines(pipelines=[pipeline]))


class _Stream:
    """A receiver of a streamed answer: slow at times, and gone at times."""

    def __init__(
        self,
        nursery: trio.Nursery,
        ledger: Ledger,
        pool: Pool,
        number: int,
        body: bytes,
        patience: float,
        choose: random.Random,
    ) -> None:
        self._nursery, self._ledger, self._pool = nursery, ledger, pool
        self._number, self._body, self._choose = number, body, choose
        self._parts = self._first = 0
        self._cancelled = False
        self._ticket: Ticket | None = None
        context = b"stream %d" % choose.choice((0, 3, 40))
        self._ticket = pool.submit(context, body, 0, self._over, f"stream {number}", self._part)
        if patience < 100.0:
            nursery.start_soon(self._cancel, patience)

    def _over(self, outcome: Outcome) -> None:
        self._ledger.end_call(self._number, outcome, self._body)

    def _part(self, _flags: int, _context: bytes, body: bytes) -> bool:
        if self._cancelled:
            self._ledger.violate("cancelled stream", f"call {self._number} got a part after it was cancelled")
        expected = b"part %d " % self._parts
        if not body.startswith(expected):
            self._ledger.violate("order of parts", f"call {self._number} got {body[:20]!r}, not {expected!r}")
        self._parts += 1
        if self._choose.random() < 0.2:
            self._nursery.start_soon(self._resume, self._choose.choice((0.0, 0.05, 1.0)))
            return False
        return True

    async def _resume(self, seconds: float) -> None:
        await trio.sleep(seconds)
        if self._ticket is not None:
            self._pool.workshop.reactor.touch()
            self._ticket.resume()

    async def _cancel(self, seconds: float) -> None:
        await trio.sleep(seconds)
        if self._ticket is not None:
            self._cancelled = True
            self._pool.workshop.reactor.touch()
            self._ticket.cancel_stream(self._pool.config.stream_timeout)
