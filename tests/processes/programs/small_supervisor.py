"""A supervisor of one pool that a test can kill: prints its mark, its guard's pid and the pids of its tree.

``python small_supervisor.py PHASE``; PHASE is idle, busy, booting, cgroup (idle, with control groups), guard-killed or
guard-stopped.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from collections.abc import Callable

import structlog
import trio

from trailboss.config.schema import PoolConfig, ProcessConfig, ServerConfig
from trailboss.reactor import Reactor
from trailboss.workers.callers import Callers
from trailboss.workers.deaths import Deaths
from trailboss.workers.guard import Guard
from trailboss.workers.pool import Pool, PoolSpec
from trailboss.workers.workshop import Workshop

HOSTILE = (sys.executable, "-I", "-S", str(pathlib.Path(__file__).with_name("hostile.py")))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition of another process."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await trio.sleep(0.01)


async def main(phase: str) -> None:
    """Boot, reach the phase, print, wait to be killed."""
    reactor = Reactor()
    guard = Guard()
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        await nursery.start(guard.run)
        workshop = Workshop(reactor, ServerConfig(), guard, Callers(), Deaths())
        command = (*HOSTILE, "never") if phase == "booting" else HOSTILE
        process = ProcessConfig(cgroup=phase == "cgroup")
        config = PoolConfig(num_workers=3, command=command, process=process)
        pool = Pool(PoolSpec("jobs", "jobs", config), workshop)
        children: list[int] = []
        if phase == "booting":
            nursery.start_soon(pool.run)
            await until(lambda: len(pool.workers()) == 3)
        else:
            await nursery.start(pool.run)
            children = [int(word) for word in (await pool.exec(b"child", b"x")).body.split()]
        if phase not in ("idle", "cgroup", "booting"):
            for _ in range(3):
                pool.submit(b"spin", b"x", 0, lambda _outcome: None)
        if phase == "guard-killed":
            old = guard.pid
            guard.kill_now()
            await until(lambda: guard.pid not in (0, old))
        elif phase == "guard-stopped":
            old = guard.pid
            os.kill(old, signal.SIGSTOP)
            for _ in range(20_000):
                guard._tell(b"-10000000\n")
            await until(lambda: guard.pid not in (0, old))
        pids = [worker.pid for worker in pool.workers()] + children
        print(guard.instance, guard.pid, *pids, flush=True)
        await trio.sleep_forever()


structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
trio.run(main, sys.argv[1])
