"""New workers that leave by plan before their generation is complete, callers that give up, spans of boots."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio

from trailboss.telemetry import Attributes, Span
from trailboss.workers.outcome import ExecFailed
from trailboss.workers.pool import Pool

from .stage import HOSTILE, Stage, until


async def keep_busy(pool: Pool, failures: list[ExecFailed], done: trio.Event) -> None:
    """Exec without a pause until `done`."""
    while not done.is_set():
        try:
            await pool.exec(b"echo", b"x", 4, "load")
        except ExecFailed as error:
            failures.append(error)


@pytest.mark.parametrize("max_jobs", [1, 3])
async def test_reset_while_new_workers_retire_by_plan(stage: Stage, max_jobs: int) -> None:
    """A canary that has run its max_jobs before the others are up has booted: the reset succeeds, no exec fails."""
    pool = await stage.pool(num_workers=3, max_jobs=max_jobs)
    failures: list[ExecFailed] = []
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(keep_busy, pool, failures, done)
        with trio.fail_after(60):
            for _ in range(6):
                await pool.reset()
        done.set()
    assert failures == []
    assert pool.generation == 7


async def test_add_worker_that_nobody_waits_for_any_more(stage: Stage) -> None:
    """Cancelling add_worker before the worker is up leaves the pool at its old size, with all its slots."""
    pool = await stage.pool(num_workers=1)
    # From here on new workers stay silent; the one there is goes on.
    object.__setattr__(pool.spec.config, "command", (*HOSTILE, "never"))
    with trio.move_on_after(0.3):
        await pool.add_worker()
    await until(
        lambda: pool.statistics().booting + pool.statistics().leaving == 0, what="the new worker has gone"
    )
    assert (pool.num_workers, pool.statistics().ready) == (1, 1)


class Spans:
    """A backend that remembers names and failures."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def start(self, name: str, attributes: Attributes | None, parent: Mapping[str, str] | None) -> Span:
        """Make a span that notes how it ended."""
        backend = self

        class Noted(Span):
            failure = ""

            def fail(self, text: str) -> None:
                self.failure = text

            def end(self) -> None:
                backend.seen.append((name, self.failure))

        return Noted()


async def test_boots_are_spans(stage: Stage) -> None:
    """Each boot is a span from spawn to the handshake, a failed one with its reason."""
    backend = Spans()
    stage.workshop.telemetry.attach(backend)
    pool = await stage.pool(num_workers=1)
    assert backend.seen == [("worker.boot", "")]
    object.__setattr__(pool.spec.config, "command", ("/nowhere/at/all",))
    with pytest.raises(Exception, match="nowhere"):
        await pool.reset()
    assert backend.seen[1][0] == "worker.boot"
    assert "nowhere" in backend.seen[1][1]
