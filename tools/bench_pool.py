"""Pool exec against a C dispatcher, in one run: what does the supervisor cost on top of the pipes themselves?

Both use the same C echo worker over the same kind of pipes. Printed: executions per second, the supervisor's CPU per
execution, and the ratio to the dispatcher. Absolute figures depend on the machine; the ratios are what counts.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import structlog
import trio

from trailboss.config.schema import PoolConfig, ServerConfig
from trailboss.reactor import Reactor
from trailboss.workers.callers import Callers
from trailboss.workers.deaths import Deaths
from trailboss.workers.guard import Guard
from trailboss.workers.outcome import Outcome
from trailboss.workers.pool import Pool, PoolSpec
from trailboss.workers.workshop import Workshop

PROGRAMS = Path(__file__).parent / "bench_workers"
ROUNDS = 3


def compile_program(name: str, directory: str) -> str:
    """Compile one of the bench programs with gcc and return its path."""
    target = str(Path(directory) / name)
    subprocess.run(["gcc", "-O2", "-D_GNU_SOURCE", "-o", target, str(PROGRAMS / f"{name}.c")], check=True)
    return target


def dispatcher(program: str, worker: str, workers: int, in_flight: int, count: int) -> tuple[float, float]:
    """Executions per second and CPU µs per execution of the C dispatcher."""
    output = subprocess.run(
        [program, str(workers), str(in_flight), str(count), worker],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return float(output[0]), float(output[1])


async def submit_rate(pool: Pool, in_flight: int, count: int) -> tuple[float, float]:
    """Executions per second and CPU µs per execution through ``pool.submit``, driven from inside the reactor."""
    finished = trio.Event()
    done = started = 0

    def on_outcome(_outcome: Outcome) -> None:
        nonlocal done, started
        done += 1
        if started < count:
            started += 1
            pool.submit(b'{"id":1}', b"x" * 20, 4, on_outcome)
        elif done == count:
            finished.set()

    cpu = time.process_time()
    begun = time.perf_counter()
    for _ in range(in_flight):
        started += 1
        pool.submit(b'{"id":1}', b"x" * 20, 4, on_outcome)
    await finished.wait()
    took = time.perf_counter() - begun
    return count / took, (time.process_time() - cpu) / count * 1e6


async def exec_rate(pool: Pool, tasks: int, count: int) -> tuple[float, float]:
    """The same through ``await pool.exec`` from `tasks` tasks."""

    async def client() -> None:
        for _ in range(count // tasks):
            await pool.exec(b'{"id":1}', b"x" * 20, 4)

    cpu = time.process_time()
    begun = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(tasks):
            nursery.start_soon(client)
    took = time.perf_counter() - begun
    return count / took, (time.process_time() - cpu) / count * 1e6


async def measure(worker: str, dispatch: str, scale: float) -> None:
    """Print the table."""
    reactor = Reactor()
    guard = Guard()
    count = int(60_000 * scale)
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        await nursery.start(guard.run)
        shop = Workshop(reactor, ServerConfig(command=(worker,)), guard, Callers(), Deaths())
        print(f"{'cell':44} {'per second':>11} {'CPU µs':>8} {'of C dispatcher':>16}")
        for workers, in_flight in ((1, 1), (4, 1), (4, 4), (100, 4), (500, 4)):
            pool = Pool(PoolSpec("jobs", "jobs", PoolConfig(num_workers=workers)), shop)
            await nursery.start(pool.run)
            rates, costs, ratios, exec_rates = [], [], [], []
            for _ in range(ROUNDS):
                rate, cost = await submit_rate(pool, in_flight, count)
                rates.append(rate)
                costs.append(cost)
                exec_rates.append((await exec_rate(pool, in_flight, count // 4))[0])
                if workers <= 4:
                    yardstick = await trio.to_thread.run_sync(
                        dispatcher, dispatch, worker, workers, in_flight, count * 2
                    )
                    ratios.append(rate / yardstick[0])
            ratio = f"{statistics.median(ratios):.2f}x" if ratios else ""
            name = f"pool.submit, {workers} workers, {in_flight} in flight"
            print(f"{name:44} {statistics.median(rates):11,.0f} {statistics.median(costs):8.2f} {ratio:>16}")
            share = statistics.median(exec_rates) / statistics.median(rates)
            name = f"await pool.exec, {workers} workers, {in_flight} tasks"
            print(f"{name:44} {statistics.median(exec_rates):11,.0f} {'':8} {share:10.2f} of submit")
            await pool.stop(trio.current_time() + 5)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Run with an optional scale (1.0 = about half a minute)."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with tempfile.TemporaryDirectory() as directory:
        worker = compile_program("echo_worker", directory)
        dispatch = compile_program("dispatcher", directory)
        trio.run(measure, worker, dispatch, scale)


if __name__ == "__main__":
    main()
