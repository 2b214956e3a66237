"""Workers that do not answer: what is said of them while they live and when they are killed, and how they are asked to end."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import time

import pytest

from trailboss.workers.outcome import ExecTimeout, WorkerDied
from trailboss.workers.stuck import look_at

from .stage import PROGRAMS, Stage, body_of, is_alive, open_stage, until

STUCK = (sys.executable, str(PROGRAMS / "sdk_stuck.py"))


def slow_lines(log_records: list[dict[str, object]]) -> list[dict[str, object]]:
    """What was logged of slow executions."""
    return [record for record in log_records if record["event"] == "an execution is slow"]


async def test_slow_log(stage: Stage, log_records: list[dict[str, object]]) -> None:
    """An execution above slow_log is logged once, with what runs and what the worker does, and goes on."""
    pool = await stage.pool(limits={"slow_log": 0.15})
    await stage.ask(pool, "error-lines", b"before the slow one\n")
    assert slow_lines(log_records) == []
    outcomes = stage.submit(pool, "sleep", b"0.6", label="GET /report")
    assert body_of(await stage.exactly_one(outcomes)) == b"slept"
    (line,) = slow_lines(log_records)
    assert line["doing"] == "GET /report"
    assert line["pid"] == pool.workers()[0].pid
    seconds = line["seconds"]
    assert isinstance(seconds, float)
    assert 0.15 <= seconds < 0.5
    assert "it sleeps" in str(line["seen"])
    assert line["last_output"] == ["before the slow one"]
    await stage.ask(pool, "sleep", b"0.3")
    await stage.ask(pool, "echo", b"quick")
    assert len(slow_lines(log_records)) == 2
    assert stage.deaths == []


async def test_slow_log_before_exec_ttl(stage: Stage, log_records: list[dict[str, object]]) -> None:
    """With both limits an execution is logged at the first and ended at the second, also on a lane that was slow before."""
    pool = await stage.pool(limits={"slow_log": 0.1, "exec_ttl": 0.4})
    assert await stage.ask(pool, "sleep", b"0.25") == b"slept"
    begun = time.monotonic()
    assert isinstance(await stage.outcome(pool, "spin"), ExecTimeout)
    assert 0.4 <= time.monotonic() - begun < 0.9
    assert len(slow_lines(log_records)) == 2
    assert "it is computing" in str(slow_lines(log_records)[1]["seen"])
    await stage.whole(pool)


@pytest.mark.parametrize(
    ("command", "state"), [("hang", "it sleeps"), ("spin", "it is computing"), ("stop-self", "it is stopped")]
)
async def test_record_says_what_it_did(stage: Stage, command: str, state: str) -> None:
    """The record of a worker killed by exec_ttl says what the kernel saw it doing."""
    pool = await stage.pool(limits={"exec_ttl": 0.2})
    assert isinstance(await stage.outcome(pool, command), ExecTimeout)
    await until(lambda: stage.deaths)
    assert state in stage.deaths[0].seen
    assert f"when it was killed: {state}" in stage.deaths[0].explain()
    assert stage.deaths[0].stack == ()


@pytest.mark.parametrize("relay", ["pipes", "unix"])
@pytest.mark.parametrize(
    ("how", "function"), [(b"asleep", "wait_for_the_database"), (b"computing", "compute_for_ever")]
)
async def test_stack_of_a_python_worker(
    relay: str, how: bytes, function: str, tmp_path: pathlib.Path, log_records: list[dict[str, object]]
) -> None:
    """A worker of the Python SDK tells its stack before exec_ttl kills it; its other output stays what it is."""
    async with open_stage("pipes" if relay == "pipes" else f"unix://{tmp_path}/relay") as stage:
        pool = await stage.pool(command=STUCK, limits={"exec_ttl": 0.3})
        begun = time.monotonic()
        assert isinstance(await stage.outcome(pool, "", how), ExecTimeout)
        await until(lambda: stage.deaths)
        assert time.monotonic() - begun < 1.3
        record = stage.deaths[0]
        assert record.stack[0].startswith("Current thread 0x")
        assert function in record.stack[1]
        assert f"in {function}" in record.explain()
        assert record.as_dict()["stack"] == list(record.stack)
        assert record.last_output == (("asking the database",) if how == b"asleep" else ())
        assert (record.cause, record.signal) == ("exec_ttl", signal.SIGKILL)
        died = [line for line in log_records if line["event"] == "worker died"]
        assert died[0]["stack"] == list(record.stack)
        assert not [
            line for line in log_records if str(line["event"]).startswith(("Current thread", "  File"))
        ]
        await stage.whole(pool)


async def test_stack_behind_a_wrapper(stage: Stage) -> None:
    """The worker that shook hands is asked, not the shell that started it."""
    command = ("sh", "-c", f"{STUCK[0]} {STUCK[1]}; exit")
    pool = await stage.pool(command=command, limits={"exec_ttl": 0.3})
    assert isinstance(await stage.outcome(pool, "", b"asleep"), ExecTimeout)
    await until(lambda: stage.deaths)
    assert "wait_for_the_database" in "".join(stage.deaths[0].stack)


async def test_stack_in_the_slow_log(stage: Stage, log_records: list[dict[str, object]]) -> None:
    """A slow execution of a Python worker is logged with its stack and goes on undisturbed."""
    pool = await stage.pool(command=STUCK, limits={"slow_log": 0.1})
    assert await stage.ask(pool, "", b"slow") == b"slow"
    (line,) = slow_lines(log_records)
    assert "sdk_stuck.py" in str(line["stack"])
    assert stage.deaths == []


async def test_nobody_is_ended_by_the_stack_signal(
    stage: Stage, log_records: list[dict[str, object]]
) -> None:
    """A worker that announces the signal but does not handle it is not sent it."""
    pool = await stage.pool("claims-stack", limits={"slow_log": 0.1})
    assert await stage.ask(pool, "sleep", b"0.3") == b"slept"
    assert len(slow_lines(log_records)) == 1
    assert "stack" not in slow_lines(log_records)[0]
    assert stage.deaths == []


async def test_term_grace_lets_a_worker_tidy_up(stage: Stage) -> None:
    """With term_grace a worker that is to be killed is sent term_signal first, and may end by itself."""
    pool = await stage.pool("", "tidy-term", limits={"exec_ttl": 0.2, "term_grace": 5.0})
    begun = time.monotonic()
    assert isinstance(await stage.outcome(pool, "hang"), ExecTimeout)
    await until(lambda: stage.deaths)
    assert time.monotonic() - begun < 2
    record = stage.deaths[0]
    assert (record.cause, record.exit_code, record.signal) == ("exec_ttl", 5, None)
    assert record.last_output == ("tidying up", "tidy")
    assert "it ended at SIGTERM (exit code 5)" in record.text
    await stage.whole(pool)


@pytest.mark.parametrize("command", ["hang", "stop-self"])
async def test_term_grace_is_bounded(stage: Stage, command: str) -> None:
    """One that does not end within term_grace is killed then; one that is stopped at once, it could do nothing."""
    pool = await stage.pool("", "ignore-term", limits={"exec_ttl": 0.2, "term_grace": 0.4})
    begun = time.monotonic()
    assert isinstance(await stage.outcome(pool, command), ExecTimeout)
    await until(lambda: stage.deaths)
    assert (0.6 if command == "hang" else 0.2) <= time.monotonic() - begun < 1.3
    record = stage.deaths[0]
    assert (record.cause, record.signal) == ("exec_ttl", signal.SIGKILL)
    assert record.text.endswith(", killed")


async def test_without_term_grace_nothing_is_asked(stage: Stage) -> None:
    """The default is SIGKILL alone."""
    pool = await stage.pool("", "tidy-term", limits={"exec_ttl": 0.2})
    assert isinstance(await stage.outcome(pool, "hang"), ExecTimeout)
    await until(lambda: stage.deaths)
    assert (stage.deaths[0].signal, stage.deaths[0].last_output) == (signal.SIGKILL, ())


async def test_kill_at_the_end_of_a_drain(stage: Stage) -> None:
    """A worker still busy when the time of a stop is over is looked at before it is killed, too."""
    pool = await stage.pool(command=STUCK, destroy_timeout=0.3)
    outcomes = stage.submit(pool, "", b"asleep", "job stuck")
    await pool.stop(float("inf"))
    assert isinstance(await stage.exactly_one(outcomes), WorkerDied)
    record = stage.deaths[0]
    assert (record.cause, record.doing) == ("killed", "job stuck")
    assert "wait_for_the_database" in "".join(record.stack)


async def test_boot_that_hangs_is_looked_at(stage: Stage) -> None:
    """A worker that says nothing while it boots: its record has what the kernel saw."""
    pool = stage.make_pool("stopped", boot_timeout=0.3, allocate_timeout=0.3)
    stage.nursery.start_soon(_boots_in_vain, pool)
    await until(lambda: stage.deaths)
    assert stage.deaths[0].cause == "boot_timeout"
    assert "it is stopped" in stage.deaths[0].seen
    await pool.stop(float("inf"))


async def _boots_in_vain(pool: object) -> None:
    from trailboss.workers.pool import Pool, PoolStartFailed

    assert isinstance(pool, Pool)
    try:
        await pool.run()
    except PoolStartFailed:
        pass


def test_the_kernels_view() -> None:
    """A look at this very process, and at one that does not exist."""
    look = look_at(os.getpid())
    assert look.state == "R"
    assert look.can_be_asked
    assert look.describe().startswith("it is computing")
    assert look_at(2**22 + 1).describe() == ""
    assert not is_alive(2**22 + 1)


OWN_USE = """
import signal
from trailboss_worker.sdk import Worker
signal.signal(signal.SIGUSR2, lambda number, frame: print("the application's own use", flush=True))
worker = Worker()
while (payload := worker.wait_payload()) is not None:
    while payload.body == b"stuck":
        pass
    worker.respond(payload.body)
"""


async def test_an_application_keeps_its_signal(stage: Stage) -> None:
    """A Python worker whose application uses SIGUSR2 itself announces nothing and is never sent it by us."""
    pool = await stage.pool(command=(sys.executable, "-c", OWN_USE), limits={"exec_ttl": 0.3})
    assert isinstance(await stage.outcome(pool, "", b"stuck"), ExecTimeout)
    await until(lambda: stage.deaths)
    assert (stage.deaths[0].stack, stage.deaths[0].last_output) == ((), ())
    assert "it is computing" in stage.deaths[0].seen
