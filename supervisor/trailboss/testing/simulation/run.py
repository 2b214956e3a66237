"""`simulate(seed)`: a whole server, for minutes to hours of its own time, in a fraction of a second.

What is real: container, gate, server and jobs plugins, pools, workers' owner tasks, lanes, reactor, wheel, restart and
recycling. What is made up: processes, the guard, the disk, the clock. Whatever has an order (tasks that may run, events
of one batch, latencies, faults) is drawn from the seed, so a seed is a life, and the hash of its trace says whether two
lives were the same.

trio draws the order of its tasks from a generator of its own; that it may be seeded is decided by a flag which trio
sets for hypothesis. Both are private, and this is the only file that touches them.
"""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog.testing
import trio
import trio.testing
from trio._core import _run as trio_run

from trailboss.testing.simulation.disk import known_disk_driver
from trailboss.testing.simulation.ledger import Ledger, Violation
from trailboss.testing.simulation.plan import FaultPlan, plan_of
from trailboss.testing.simulation.server import SimulatedServer
from trailboss.workers.lane import Lane
from trailboss.workers.outcome import WorkerDied
from trailboss.workers.pool import Pool, Slot
from trailboss.workers.worker import WorkerExit

__all__ = ["SABOTAGES", "SimulationFailed", "SimulationResult", "shrink", "simulate"]

#: Time at which simulations begin; zero would look like "never" to code that means it so.
BEGIN_SECONDS: Final = 1000.0
#: A life without end would be a mistake of the simulation.
SECONDS_MAX: Final = 10 * 3600.0
#: Runs that a shrinking may take.
SHRINK_RUNS_MAX: Final = 400


class SimulationFailed(AssertionError):
    """An invariant did not hold; the text names it, the seed, and the faults."""


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What one simulation has come to."""

    plan: FaultPlan
    trace_hash: str
    violations: tuple[Violation, ...]
    virtual_seconds: float
    events: int
    spawned: int
    #: Outcomes of calls by kind.
    results: Mapping[str, int]
    #: The end of the trace, for people.
    trace: tuple[str, ...]

    @property
    def invariant(self) -> str:
        """The first invariant that did not hold, "" if all did."""
        return self.violations[0].name if self.violations else ""

    def check(self) -> SimulationResult:
        """Return itself. Raises SimulationFailed where an invariant did not hold."""
        if self.violations:
            found = "\n".join(f"  {violation}" for violation in self.violations[:5])
            raise SimulationFailed(
                f"invariant {self.invariant!r} does not hold:\n{found}\n{self.plan}\n"
                f"replay: python -m trailboss.testing.simulation {self.plan.seed}"
            )
        return self


def simulate(seed: int, plan: FaultPlan | None = None, sabotage: str = "") -> SimulationResult:
    """Let the server of `seed` live through `plan` (what follows from the seed by default). Never raises for a bug.

    `sabotage` names one of SABOTAGES: the simulated server then breaks a promise, which has to be found.
    Not to be called from inside a trio program.
    """
    plan = plan if plan is not None else plan_of(seed)
    ledger = Ledger()
    clock = trio.testing.MockClock(autojump_threshold=0)
    clock.jump(BEGIN_SECONDS)
    ledger.began = BEGIN_SECONDS
    servers: list[SimulatedServer] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = SimulatedServer(plan, ledger, clock, nursery, SABOTAGES[sabotage] if sabotage else None)
            servers.append(server)
            with trio.move_on_after(SECONDS_MAX) as limit:
                await server.live()
            if limit.cancelled_caught:
                ledger.violate("end", f"not over after {SECONDS_MAX:g} s")
            nursery.cancel_scope.cancel(reason="the simulation is over")

    with structlog.testing.capture_logs() as logs, known_disk_driver(), _seeded(seed):
        try:
            trio.run(main, clock=clock)
        except Exception as error:
            last = traceback.format_exception(error)[-1].strip()
            ledger.violations.append(Violation("internal error", f"{last}\n{traceback.format_exc()}", 0.0))
        finally:
            for server in servers:
                _close(server)
    for entry in logs:
        # What is contained at a boundary is still a bug of ours; the disk's own failures are none.
        if entry.get("exc_info") and "could not be settled" not in entry["event"]:
            ledger.violations.append(Violation("internal error", f"{entry}", 0.0))
    now = clock.current_time() - BEGIN_SECONDS
    spawned = sum(server.machine.spawned for server in servers)
    return SimulationResult(
        plan,
        ledger.trace_hash,
        tuple(ledger.violations),
        now,
        ledger.events,
        spawned,
        dict(ledger.results),
        tuple(ledger.lines),
    )


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make the order in which trio runs its tasks follow from `seed`."""
    module: Any = trio_run
    before = module._ALLOW_DETERMINISTIC_SCHEDULING
    state = module._r.getstate()
    collects = gc.isenabled()
    module._ALLOW_DETERMINISTIC_SCHEDULING = True
    module._r.seed(seed)
    gc.disable()  # finalizers run when the memory says so, not the seed
    try:
        yield
    finally:
        module._ALLOW_DETERMINISTIC_SCHEDULING = before
        module._r.setstate(state)
        if collects:
            gc.enable()


def _close(server: SimulatedServer) -> None:
    for process in server.machine.processes.values():
        process.close_all()
    server.reactor.close()


# --- shrinking -----------------------------------------------------------------------------------------------------------


def shrink(result: SimulationResult, sabotage: str = "") -> SimulationResult:
    """Return the run with the fewest faults found that breaks the same invariant as `result` does."""
    best, runs = result, 0
    size = max(1, len(best.plan.faults) // 2)
    while runs < SHRINK_RUNS_MAX:
        start, shorter = 0, False
        while start < len(best.plan.faults) and runs < SHRINK_RUNS_MAX:
            faults = best.plan.faults
            plan = FaultPlan(best.plan.seed, faults[:start] + faults[start + size :])
            tried = simulate(plan.seed, plan, sabotage)
            runs += 1
            if tried.invariant == result.invariant:
                best, shorter = tried, True
            else:
                start += size
        if size > 1:
            size = max(1, size // 2)
        elif not shorter:
            break
    return best


# --- sabotage ------------------------------------------------------------------------------------------------------------


def _lose_slots(pool: Pool) -> None:
    """A worker that is killed is not replaced."""
    after_exit = pool._after_exit

    def sabotaged(slot: Slot, left: WorkerExit) -> None:
        after_exit(slot, left)
        if not left.planned and left.was_ready:
            slot.wanted = False

    pool._after_exit = sabotaged  # type: ignore[method-assign]  # that is what it is for


def _answer_twice(pool: Pool) -> None:
    """Whoever's worker died is told twice."""
    submit = pool.submit

    def sabotaged(
        context: bytes, body: bytes, flags: int, on_outcome: Callable[[object], None], *more: object
    ) -> object:
        def twice(outcome: object) -> None:
            on_outcome(outcome)
            if isinstance(outcome, WorkerDied) and pool.name == "http":
                on_outcome(outcome)

        return submit(context, body, flags, twice, *more)  # type: ignore[call-overload]

    pool.submit = sabotaged  # type: ignore[method-assign,assignment]


def _forget_deaths(pool: Pool) -> None:
    """Whoever's worker died is never told."""
    submit = pool.submit

    def sabotaged(
        context: bytes, body: bytes, flags: int, on_outcome: Callable[[object], None], *more: object
    ) -> object:
        def never(outcome: object) -> None:
            if not isinstance(outcome, WorkerDied):
                on_outcome(outcome)

        return submit(context, body, flags, never, *more)  # type: ignore[call-overload]

    pool.submit = sabotaged  # type: ignore[method-assign,assignment]


def _leave_waiting(pool: Pool) -> None:
    """A worker that becomes idle does not look at the queue."""

    def sabotaged(lane: Lane) -> None:
        lane.parked = True
        pool._idle.append(lane)

    pool.lane_idle = sabotaged  # type: ignore[method-assign]


SABOTAGES: Final[Mapping[str, Callable[[Pool], None]]] = {
    "lose slots": _lose_slots,
    "answer twice": _answer_twice,
    "forget deaths": _forget_deaths,
    "leave waiting": _leave_waiting,
}
