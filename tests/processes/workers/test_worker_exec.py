"""Executions against every kind of worker: exactly one outcome each, and the pool whole again afterwards."""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest
import trio

from trailboss.workers.outcome import (
    Answer,
    ExecFailed,
    ExecTimeout,
    Outcome,
    PoolClosed,
    QueueFull,
    QueueTimeout,
    SoftError,
    WorkerDied,
)
from trailboss.workers.sampling import resident_bytes

from .stage import Stage, body_of, is_alive, until

MIB = 1 << 20

DEATHS = [
    ("KILL", "signal", "signal SIGKILL (9)"),
    ("SEGV", "signal", "signal SIGSEGV (11)"),
    ("ABRT", "signal", "signal SIGABRT (6)"),
    ("0", "exit", "exit code 0"),
    ("1", "exit", "exit code 1"),
    ("255", "exit", "exit code 255"),
]


async def test_answers_of_all_sizes(stage: Stage) -> None:
    """Context and body come back as they were, from none to 20 MB."""
    pool = await stage.pool()
    for size in (0, 1, 100, 65_520, 65_536, MIB, 20 * MIB):
        body = os.urandom(1024) * (size // 1024) + b"r" * (size % 1024)
        answer = await stage.outcome(pool, "echo", body)
        assert isinstance(answer, Answer)
        assert answer.context == b"echo"
        assert answer.body == body
    assert stage.deaths == []
    assert pool.executions == 7


async def test_soft_error_keeps_the_worker(stage: Stage) -> None:
    """An ERROR frame is the caller's; the worker lives and goes on."""
    pool = await stage.pool()
    pid = await stage.ask(pool, "pid")
    outcome = await stage.outcome(pool, "soft", "das war nichts: ü".encode())
    assert isinstance(outcome, SoftError)
    assert str(outcome) == "das war nichts: ü"
    assert await stage.ask(pool, "pid") == pid
    assert stage.deaths == []


async def test_every_way_to_die_while_busy(stage: Stage) -> None:
    """A worker that dies over an exec gives its caller the cause, its record says what it ran, the pool is whole."""
    pool = await stage.pool(num_workers=2)
    for how, cause, text in DEATHS:
        await stage.ask(pool, "echo")
        await stage.ask(pool, "echo")
        outcome = await stage.outcome(pool, "die", how.encode(), label=f"job {how}")
        assert isinstance(outcome, WorkerDied)
        assert outcome.cause == cause
        assert text in str(outcome)
        assert outcome.sent
        await stage.whole(pool)
        record = stage.deaths[-1]
        assert (record.cause, record.pid, record.phase, record.doing) == (
            cause,
            outcome.pid,
            "busy",
            f"job {how}",
        )
        assert f"running job {how}" in record.explain()
    assert len(stage.deaths) == len(DEATHS)


async def test_every_signal_while_idle(stage: Stage) -> None:
    """An idle worker killed from outside costs no exec: the next one goes to another, and it is replaced."""
    pool = await stage.pool(num_workers=2)
    for name in ("SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM"):
        await stage.ask(pool, "echo")
        victim = pool.workers()[0].pid
        os.kill(victim, getattr(signal, name))
        await until(lambda pid=victim: not is_alive(pid))
        # At once: if one meets the corpse, it moves on.
        for _ in range(4):
            await stage.ask(pool, "echo", b"x")
        await stage.whole(pool)
        assert stage.deaths[-1].pid == victim
        assert stage.deaths[-1].phase == "ready"
        assert name in stage.deaths[-1].text
        assert stage.deaths[-1].doing == ""


async def test_write_to_a_corpse_moves_on(stage: Stage) -> None:
    """An exec given to a worker whose death has not been noticed yet was never seen by it, and goes to another."""
    pool = await stage.pool(num_workers=2)
    for _ in range(10):
        await stage.whole(pool)
        await stage.ask(pool, "echo")
        victim = pool._idle[-1].pid  # the one that would be taken
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while is_alive(victim) and time.monotonic() < deadline:
            pass  # no checkpoint in between: the pool cannot know
        outcomes = stage.submit(pool, "echo", b"survives")
        assert body_of(await stage.exactly_one(outcomes)) == b"survives"
    await stage.whole(pool)


async def test_who_dies_together_is_left_out_together(stage: Stage) -> None:
    """After one death nothing more is given to workers that are as good as dead, though nobody was told of them yet."""
    pool = await stage.pool(num_workers=3)
    for _ in range(5):
        await stage.whole(pool)
        for _ in range(3):
            await stage.ask(pool, "echo")
        *rest, survivor = [lane.pid for lane in reversed(pool.idle_lanes)]
        for victim in rest:
            os.kill(victim, signal.SIGKILL)
        pool.leave_out_the_dying()  # no checkpoint in between: this is all that the pool knows
        assert [lane.pid for lane in pool.idle_lanes] == [survivor]
        outcomes = stage.submit(pool, "echo", b"survives")
        assert body_of(await stage.exactly_one(outcomes)) == b"survives"
        await until(lambda gone=rest: not any(map(is_alive, gone)))
    await stage.whole(pool)
    pool.leave_out_the_dying()
    assert len(pool.idle_lanes) == 3
    assert {death.phase for death in stage.deaths} == {"ready"}


@pytest.mark.parametrize("size", [100, 60_000, 200_000])
async def test_answer_written_just_before_the_exit(stage: Stage, size: int) -> None:
    """A worker that answers and exits at once loses no answer: 0 of 150."""
    pool = await stage.pool(num_workers=4)
    good = 0

    async def client(count: int) -> None:
        nonlocal good
        for _ in range(count):
            body = await stage.ask(pool, "answer-exit", b"%d" % size)
            good += body == b"x" * size

    async with trio.open_nursery() as nursery:
        for count in (38, 38, 37, 37):
            nursery.start_soon(client, count)
    assert good == 150
    await stage.whole(pool)


BROKEN = [
    # command, body, cause, words in the record's text or stray output
    ("text-first", b"x", "stdout garbage", "PHP Notice:  Undefined index"),
    ("text-only", b"x", "stdout garbage", "oops"),
    ("bad-crc", b"x", "stdout garbage", "no frame"),
    ("no-option", b"x", "protocol violation", "has 0"),
    ("bad-option", b"x", "protocol violation", "beyond the payload"),
    ("control", b"x", "protocol violation", "control frame"),
    ("stream", b"x", "protocol violation", "stream"),
    ("close-out", b"x", "closed its pipes", "closed its standard output"),
    ("huge", b"4294967295", "protocol violation", "larger than max_frame_size"),
]


@pytest.mark.parametrize(("command", "body", "cause", "words"), BROKEN, ids=[row[0] for row in BROKEN])
async def test_broken_answer(stage: Stage, command: str, body: bytes, cause: str, words: str) -> None:
    """An answer against the protocol is no answer: a typed death, the text kept, the worker replaced, not a byte used."""
    pool = await stage.pool(num_workers=2)
    before = resident_bytes(os.getpid())
    outcome = await stage.outcome(pool, command, body)
    assert isinstance(outcome, WorkerDied)
    assert outcome.cause == cause
    record = stage.deaths[-1]
    assert words in f"{record.text} {record.stray_output}"
    assert record.phase == "busy"
    await stage.whole(pool)
    assert await stage.ask(pool, "echo", b"fine") == b"fine"
    assert resident_bytes(os.getpid()) - before < 64 * MIB


@pytest.mark.parametrize("command", ["two", "glue-text"])
async def test_more_than_one_answer(stage: Stage, command: str) -> None:
    """The first answer is whole and good; what is glued to it is kept for the log, and the worker replaced."""
    pool = await stage.pool()
    assert await stage.ask(pool, command, b"good") == b"good"
    await until(lambda: stage.deaths)
    assert stage.deaths[-1].cause == "protocol violation"
    assert stage.deaths[-1].stray_output
    await stage.whole(pool)


@pytest.mark.parametrize(
    ("command", "cause"),
    [
        ("stray-after", "stdout garbage"),
        ("frame-after", "protocol violation"),
        ("head-after", "protocol violation"),
    ],
)
async def test_bytes_between_two_execs(stage: Stage, command: str, cause: str) -> None:
    """A worker that speaks while idle is replaced before the next exec could meet what it said."""
    pool = await stage.pool(num_workers=2)
    assert await stage.ask(pool, command, b"good") == b"good"
    took = await until(lambda: stage.deaths)
    assert took < 1
    assert stage.deaths[-1].cause == cause
    assert stage.deaths[-1].phase == "ready"
    await stage.whole(pool)
    assert await stage.ask(pool, "echo", b"clean") == b"clean"


async def test_answer_before_the_request_was_read(stage: Stage) -> None:
    """An answer to a request that is still being sent is given, and the worker replaced: it would read on in it."""
    pool = await stage.pool()
    assert await stage.ask(pool, "early-answer", b"b" * 10 * MIB) == b"too early"
    await until(lambda: stage.deaths)
    assert "before it had read its request" in stage.deaths[-1].text
    await stage.whole(pool)


async def test_answer_and_exit_before_the_request_was_read(stage: Stage) -> None:
    """200 kB of answer, then an exit, while we still send: not a byte is lost."""
    pool = await stage.pool()
    for _ in range(5):
        assert await stage.ask(pool, "early-exit-answer", b"b" * 2 * MIB) == b"e" * 200_000
        await stage.whole(pool)


async def test_worker_closes_its_input(stage: Stage) -> None:
    """A worker that closes its input may finish what it has, and is replaced afterwards."""
    pool = await stage.pool(limits={"exec_ttl": 5.0})
    assert await stage.ask(pool, "close-in-answer", b"still good") == b"still good"
    await until(lambda: stage.deaths)
    assert stage.deaths[-1].cause == "closed its pipes"
    await stage.whole(pool)
    outcome = await stage.outcome(pool, "close-early", b"b" * 2 * MIB)
    assert isinstance(outcome, WorkerDied)
    assert outcome.cause == "closed its pipes"
    await stage.whole(pool)


@pytest.mark.parametrize("command", ["stop-reading", "spin", "stop-self", "hang", "partial", "close-in"])
async def test_exec_ttl(stage: Stage, command: str) -> None:
    """Whatever keeps a worker from answering, exec_ttl ends it: ExecTimeout, the group killed, the slot filled again."""
    pool = await stage.pool(num_workers=2, limits={"exec_ttl": 0.3})
    begun = time.monotonic()
    outcomes = stage.submit(
        pool, command, b"b" * (10 * MIB if command == "stop-reading" else 10), "job stuck"
    )
    other = await stage.ask(pool, "echo", b"not disturbed")
    outcome = await stage.exactly_one(outcomes)
    assert isinstance(outcome, ExecTimeout)
    await until(lambda: stage.deaths)
    assert 0.3 <= time.monotonic() - begun < 1.3
    assert other == b"not disturbed"
    await stage.whole(pool)
    record = stage.deaths[-1]
    assert (record.cause, record.phase, record.doing) == ("exec_ttl", "busy", "job stuck")
    assert "exec_ttl (0.3 s)" in record.explain()
    assert len(outcomes) == 1


@pytest.mark.parametrize("own_session", ["0", "1"])
@pytest.mark.parametrize("keeps", ["1", "0,1,2"])
async def test_grandchild_holds_the_pipes(stage: Stage, own_session: str, keeps: str) -> None:
    """A worker dies while its child holds the pipes: the death is noticed all the same, by the exit itself."""
    pool = await stage.pool()
    begun = time.monotonic()
    outcome = await stage.outcome(pool, "child-die", f"{own_session}:{keeps}".encode())
    assert isinstance(outcome, WorkerDied)
    assert outcome.cause == "exit"
    assert "exit code 1" in str(outcome)
    assert time.monotonic() - begun < 1.5
    await stage.whole(pool)
    await until(
        lambda: not _sleepers(stage), 5, "the child, also in a session of its own, ends with its worker"
    )


def _sleepers(stage: Stage) -> list[int]:
    from .stage import marked_processes

    workers = {state.pid for pool in stage.pools for state in pool.workers()}
    return [pid for pid in marked_processes(stage.guard.instance) if pid not in workers]


async def test_beginning_of_an_answer_is_shown(stage: Stage) -> None:
    """exec_ttl over a worker that had printed something instead of answering: the record shows what."""
    pool = await stage.pool(limits={"exec_ttl": 0.3})
    assert isinstance(await stage.outcome(pool, "text-only"), ExecTimeout)
    await until(lambda: stage.deaths)
    record = stage.deaths[0]
    assert (record.cause, record.stray_output) == ("exec_ttl", "oops")
    assert "text printed on stdout" in record.hint


async def test_peak_memory_is_the_workers_own(stage: Stage) -> None:
    """The record's peak memory is what the worker used, not what it was forked from; 0 where that hides it."""
    pool = await stage.pool()
    await stage.outcome(pool, "die", b"1")
    # More than this process has ever used: a child's own peak shows only above that.
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 100_000_000
    await stage.ask(pool, "memory", b"%d" % size)
    await stage.outcome(pool, "die", b"1")
    await until(lambda: len(stage.deaths) == 2)
    small, large = (record.memory_peak_bytes for record in stage.deaths)
    assert small == 0
    assert size < large < size + 100_000_000


async def test_queue_limits(stage: Stage) -> None:
    """A full queue refuses at once; one that waits too long is refused in time; neither disturbs the others."""
    pool = await stage.pool(max_queue_size=2, queue_timeout=0.3)
    running = stage.submit(pool, "sleep", b"0.8")
    queued = [stage.submit(pool, "echo") for _ in range(2)]
    refused = stage.submit(pool, "echo")
    assert len(refused) == 1
    assert isinstance(refused[0], QueueFull)
    assert not refused[0].sent
    begun = time.monotonic()
    for outcomes in queued:
        outcome = await stage.exactly_one(outcomes)
        assert isinstance(outcome, QueueTimeout)
        assert not outcome.sent
    assert 0.25 < time.monotonic() - begun < 0.6
    assert body_of(await stage.exactly_one(running)) == b"slept"
    assert await stage.ask(pool, "echo", b"next") == b"next"


async def test_empty_payload_is_refused(stage: Stage) -> None:
    """PHP takes an empty payload for the order to end, so it is never sent."""
    pool = await stage.pool()
    outcomes = stage.submit(pool, "", b"")
    assert type(outcomes[0]) is ExecFailed
    assert stage.deaths == []


async def test_cancelled_callers(stage: Stage) -> None:
    """A cancelled caller withdraws what waits; what runs is finished, its outcome dropped, the worker used again."""
    pool = await stage.pool()
    pid = await stage.ask(pool, "pid")
    with trio.move_on_after(0.05):
        await pool.exec(b"sleep", b"0.3")
    assert pool.in_flight == 1
    with trio.move_on_after(0.05):
        await pool.exec(b"die", b"1")
    assert pool.queued == 0
    assert await stage.ask(pool, "pid") == pid
    assert stage.deaths == []
    assert pool.executions == 3


async def test_worker_that_always_asks_to_be_replaced(stage: Stage) -> None:
    """An exec moves on when its worker asks to go instead of answering, but not for ever, and the pace is bounded."""
    pool = await stage.pool(num_workers=2, queue_timeout=3.0)
    begun = time.monotonic()
    outcome = await stage.outcome(pool, "ask-stop")
    assert isinstance(outcome, ExecFailed)
    assert time.monotonic() - begun < 10
    assert pool.restarts <= 12
    assert stage.deaths == []


async def test_worker_that_asks_to_be_replaced_once(stage: Stage, tmp_path: object) -> None:
    """The same exec runs on another worker; nothing is lost and it is no death."""
    pool = await stage.pool(num_workers=3)
    for _ in range(5):
        await stage.ask(pool, "echo")
    busy = [stage.submit(pool, "sleep", b"0.2") for _ in range(3)]
    late = [stage.submit(pool, "echo", b"%d" % number) for number in range(20)]
    for number, outcomes in enumerate(late):
        assert body_of(await stage.exactly_one(outcomes)) == b"%d" % number
    assert all(body_of(outcomes[0]) == b"slept" for outcomes in busy)


async def test_receiver_that_raises_harms_nobody(stage: Stage) -> None:
    """An exception in the receiver of an outcome is logged; the worker goes on."""
    pool = await stage.pool()
    pid = await stage.ask(pool, "pid")

    def fails(_outcome: Outcome) -> None:
        raise ValueError("my own mistake")

    pool.submit(b"echo", b"x", 4, fails)
    assert await stage.ask(pool, "pid") == pid


async def test_payload_beyond_a_frame_is_refused(stage: Stage) -> None:
    """What no frame can hold is refused; the worker stays as idle as it was."""
    pool = await stage.pool()
    outcomes: list[Outcome] = []
    pool.submit(b"echo", b"x", 4000, outcomes.append)
    assert [type(outcome) for outcome in outcomes] == [ExecFailed]
    assert pool.idle_count == 1
    assert await stage.ask(pool, "echo", b"still there") == b"still there"


async def test_pool_of_100_gives_right_answers(stage: Stage, echo_worker: str) -> None:
    """With a hundred idle workers every exec gets its own answer, whatever the order."""
    pool = await stage.pool(command=(echo_worker,), num_workers=100)
    outcomes = [stage.submit(pool, f"c{number}", b"b%d" % number) for number in range(200)]
    for number, one in enumerate(outcomes):
        outcome = await stage.exactly_one(one)
        assert outcome == Answer(4, b"c%d" % number, b"b%d" % number)
    for number in range(300):
        assert await stage.ask(pool, "one", b"%d" % number) == b"%d" % number
    assert pool.idle_count == 100
    assert pool.executions == 500


async def test_stopped_pool_refuses(stage: Stage) -> None:
    """After stop every exec is refused at once."""
    pool = await stage.pool()
    with trio.fail_after(5):
        await pool.stop(trio.current_time() + 3)
    assert isinstance(stage.submit(pool, "echo")[0], PoolClosed)
