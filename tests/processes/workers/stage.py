"""A server's control plane without its plugins: reactor, guard, workshop and pools, with real workers.

Everything has a deadline. After each scene the invariants are looked at: no child process left, no descriptor more
than before, no thread beyond those trio keeps for reuse.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import pytest
import trio

from trailboss.config.schema import PoolConfig, ServerConfig, SupervisorConfig
from trailboss.reactor import Reactor
from trailboss.workers.callers import Callers
from trailboss.workers.deaths import DeathRecord, Deaths
from trailboss.workers.guard import NATIVE_PROGRAM, PYTHON_PROGRAM, Guard
from trailboss.workers.outcome import Answer, ExecFailed, Outcome
from trailboss.workers.pool import Pool, PoolSpec
from trailboss.workers.relay import RelayHub, parse_relay
from trailboss.workers.restart import RestartPolicy
from trailboss.workers.workshop import Workshop

HERE = pathlib.Path(__file__).resolve().parent.parent
ROOT = HERE.parent.parent
PROGRAMS = HERE / "programs"
#: Command of each guard, but for its mark.
GUARDS = {"c": [str(NATIVE_PROGRAM)], "python": [sys.executable, "-I", "-S", "-E", str(PYTHON_PROGRAM)]}
PHP_PROGRAMS = HERE.parent / "php"
HOSTILE = (sys.executable, "-I", "-S", str(PROGRAMS / "hostile.py"))
#: Longest that anything in here is waited for, in seconds.
PATIENCE = 20.0


def children_of(pid: int) -> list[int]:
    """Pids of the direct children of `pid`, zombies included."""
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as file:
            found += [int(word) for word in file.read().split()]
    return found


def command_of(pid: int) -> list[str]:
    """The command line of a process, as a list."""
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def marked_processes(instance: str) -> list[int]:
    """Living processes that carry a supervisor's mark in their environment."""
    mark = f"TRAILBOSS_INSTANCE={instance}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and is_alive(int(name)):
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.append(int(name))
    return found


def open_descriptors() -> dict[int, str]:
    """Descriptors of this process and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


async def until(condition: Callable[[], object], seconds: float = PATIENCE, what: str = "") -> float:
    """Wait until `condition` holds; returns the seconds it took. Fails after `seconds`."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            pytest.fail(f"not within {seconds} s: {what or condition}")
        await trio.sleep(0.002)
    return time.monotonic() - begun


def body_of(outcome: Outcome) -> bytes:
    """The body of an answer; fails for anything else."""
    assert isinstance(outcome, Answer), repr(outcome)
    return outcome.body


@dataclass
class Stage:
    """Reactor, guard and workshop of one test; `pool` boots pools on it."""

    reactor: Reactor
    guard: Guard
    workshop: Workshop
    nursery: trio.Nursery
    pools: list[Pool] = field(default_factory=list)

    @property
    def deaths(self) -> list[DeathRecord]:
        """Death records so far."""
        return self.workshop.deaths.records()

    def make_pool(
        self,
        *boot: str,
        command: tuple[str, ...] | None = None,
        name: str = "jobs",
        policy: RestartPolicy | None = None,
        limits: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        **keys: object,
    ) -> Pool:
        """A pool of hostile workers (arguments `boot`), or of `command`; not started."""
        settings: dict[str, object] = {
            "num_workers": 1,
            "allocate_timeout": 10.0,
            "stop_timeout": 2.0,
            **keys,
        }
        config = PoolConfig(
            command=command if command is not None else (*HOSTILE, *boot),
            supervisor=SupervisorConfig(**(limits or {})),  # type: ignore[arg-type]
            **settings,  # type: ignore[arg-type]
        )
        pool = Pool(PoolSpec(name, name, config, env or {}), self.workshop, policy=policy, seed=1)
        self.pools.append(pool)
        return pool

    async def pool(self, *boot: str, **keys: object) -> Pool:
        """A pool at its quorum."""
        pool = self.make_pool(*boot, **keys)  # type: ignore[arg-type]
        with trio.fail_after(PATIENCE):
            await self.nursery.start(pool.run)
        return pool

    async def whole(self, pool: Pool, seconds: float = PATIENCE) -> float:
        """Wait until `pool` has all its workers, ready; returns the seconds it took."""
        return await until(
            lambda: pool.statistics().ready == pool.num_workers, seconds, f"{pool!r} is not whole again"
        )

    async def outcome(self, pool: Pool, command: str, body: bytes = b"", label: str = "") -> Outcome:
        """What becomes of one exec."""
        with trio.fail_after(PATIENCE):
            try:
                return await pool.exec(command.encode(), body, 4, label)
            except ExecFailed as error:
                return error

    async def ask(self, pool: Pool, command: str, body: bytes = b"") -> bytes:
        """The body of the answer to one exec."""
        return body_of(await self.outcome(pool, command, body))

    def submit(self, pool: Pool, command: str, body: bytes = b"", label: str = "") -> list[Outcome]:
        """Submit; the list gets the outcome, and every further one, which would be a mistake."""
        outcomes: list[Outcome] = []
        pool.submit(command.encode(), body, 4, outcomes.append, label)
        return outcomes

    async def exactly_one(self, outcomes: list[Outcome]) -> Outcome:
        """Wait for the outcome of a `submit`."""
        await until(lambda: outcomes, what="an outcome")
        assert len(outcomes) == 1
        return outcomes[0]


@contextlib.asynccontextmanager
async def open_stage(relay: str = "pipes", **settings: object) -> AsyncIterator[Stage]:
    """A stage; on leaving, every pool is stopped and the invariants are checked."""
    # trio's thread cache opens what it keeps before the count begins.
    await trio.to_thread.run_sync(int)
    gc.collect()
    descriptors, children = open_descriptors(), set(children_of(os.getpid()))
    threads = threading.active_count()
    reactor = Reactor()
    guard = Guard()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        with trio.fail_after(PATIENCE):
            await nursery.start(guard.run)
        hub = None
        if relay != "pipes":
            hub = RelayHub(reactor, parse_relay(relay))
            hub.open()
        config = ServerConfig(relay=relay, **settings)  # type: ignore[arg-type]
        workshop = Workshop(reactor, config, guard, Callers(), Deaths(), hub=hub)
        stage = Stage(reactor, guard, workshop, nursery)
        try:
            yield stage
            with trio.fail_after(PATIENCE):
                for pool in stage.pools:
                    await pool.stop(trio.current_time() + 5)
        finally:
            if hub is not None:
                hub.close()
            nursery.cancel_scope.cancel(reason="the test is over")
    assert reactor.failures == 0
    registered = dict(reactor._masks)
    reactor.close()
    assert set(children_of(os.getpid())) == children, "child processes are left"
    assert open_descriptors() == descriptors, "descriptors are left"
    assert registered == {}, "descriptors are still registered"
    # trio keeps idle threads for ten seconds; one boot at a time per place is the most that may have run.
    assert threading.active_count() <= threads + workshop.settings.resolved_boot_parallelism + 2
