"""Boots that go wrong: each way fails its start with the worker's own words, and leaves nothing behind."""

from __future__ import annotations

import os
import pathlib
import time

import pytest
import trio

from trailboss.workers.pool import PoolPhase, PoolStartFailed

from .stage import HOSTILE, PROGRAMS, Stage, children_of, is_alive, marked_processes, open_stage

#: boot behaviour, boot_timeout, cause of the death record, words of the error
BAD_BOOTS = [
    ("never", 0.4, "boot_timeout", ["no handshake within boot_timeout (0.4 s)"]),
    ("stopped", 0.4, "boot_timeout", ["no handshake"]),
    ("half-silent", 0.4, "boot_timeout", ["only the beginning"]),
    ("half-exit", 5, "exit", ["exit code 4", "in the middle of my hello"]),
    ("exit", 5, "exit", ["exit code 3", "because of a missing extension"]),
    ("close", 5, "closed its pipes", ["closed its standard output before the handshake"]),
    ("garbage-short", 5, "stdout garbage", ["Hi\\n", "text printed on stdout"]),
    ("garbage-long", 5, "stdout garbage", ["Undefined variable $x", "PHP warning"]),
    ("garbage-exit", 5, "stdout garbage", ["Class not found", "PHP fatal error"]),
    ("pid-zero", 5, "handshake", ["impossible pid 0"]),
    ("no-json", 5, "handshake", ["first frame"]),
    ("no-control", 5, "handshake", ["no CONTROL flag"]),
    ("glued", 5, "stdout garbage", ["and good morning"]),
]


@pytest.mark.parametrize(("boot", "timeout", "cause", "words"), BAD_BOOTS, ids=[row[0] for row in BAD_BOOTS])
async def test_bad_boot_fails_the_first_start(
    stage: Stage, boot: str, timeout: float, cause: str, words: list[str]
) -> None:
    """A pool whose workers cannot start says why, in their own words, within 5 s, and leaves no process."""
    pool = stage.make_pool(boot, num_workers=2, boot_timeout=timeout)
    begun = time.monotonic()
    with trio.fail_after(10), pytest.raises(PoolStartFailed) as caught:
        await pool.run()
    assert time.monotonic() - begun < 5
    assert pool.phase is PoolPhase.STOPPED
    for word in words:
        assert word in str(caught.value)
    assert stage.deaths
    assert {record.cause for record in stage.deaths} == {cause}
    assert all(not is_alive(record.pid) for record in stage.deaths)
    assert "was handshaking" in stage.deaths[0].explain()


@pytest.mark.parametrize("boot", ["late", ""])
async def test_late_hello_within_the_limit_is_good(stage: Stage, boot: str) -> None:
    """A worker that needs its time to boot is as good as any other."""
    pool = await stage.pool(boot, num_workers=2)
    assert await stage.ask(pool, "echo", b"hello") == b"hello"
    assert stage.deaths == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/nonexistent/worker",), ["'/nonexistent/worker'", "command not found"]),
        (("no-such-command-anywhere", "x"), ["no-such-command-anywhere", "command not found"]),
        ((str(PROGRAMS / "hostile.py"),), ["permission denied"]),
        ((str(PROGRAMS),), ["permission denied"]),
        ((*HOSTILE[:-1], "/nonexistent.py"), ["exit code 2", "can't open file"]),
    ],
    ids=["absolute", "on-path", "not-executable", "folder", "no-script"],
)
async def test_command_that_cannot_run(stage: Stage, command: tuple[str, ...], words: list[str]) -> None:
    """A wrong command ends the first start at once and is named."""
    pool = stage.make_pool(command=command, num_workers=3)
    with trio.fail_after(5), pytest.raises(PoolStartFailed) as caught:
        await pool.run()
    for word in words:
        assert word in str(caught.value)
    assert len(stage.deaths) <= 8


async def test_missing_interpreter_of_a_script_is_said(stage: Stage, tmp_path: pathlib.Path) -> None:
    """A script whose first line names no existing interpreter is not called a missing command."""
    script = tmp_path / "worker"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    with trio.fail_after(5), pytest.raises(PoolStartFailed, match="interpreter named in its first line"):
        await stage.make_pool(command=(str(script),)).run()


@pytest.mark.php
async def test_php_script_that_does_not_exist(stage: Stage, php: str) -> None:
    """PHP's "Could not open input file" is recognised and ends the first start for good."""
    pool = stage.make_pool(command=(php, "/nonexistent/worker.php"), num_workers=2)
    with trio.fail_after(5), pytest.raises(PoolStartFailed, match="could not open the script") as caught:
        await pool.run()
    assert "Could not open input file" in str(caught.value)
    assert {record.cause for record in stage.deaths} == {"script not found"}


async def test_unknown_user(stage: Stage) -> None:
    """A user that does not exist ends the first start and is named."""
    object.__setattr__(stage.workshop.settings, "user", "no-such-user-here")
    with trio.fail_after(5), pytest.raises(PoolStartFailed, match="no user 'no-such-user-here'"):
        await stage.make_pool().run()


async def test_quorum_lets_a_pool_start_with_some_failing(stage: Stage, tmp_path: pathlib.Path) -> None:
    """With a quorum below num_workers a pool is up although one slot cannot start yet; that one is tried again."""
    flag = tmp_path / "flag"
    script = 'mkdir "$LOCK" 2>/dev/null && exec "$0" -I -S "$1"; exec "$0" -I -S "$1" flag'
    command = ("sh", "-c", script, HOSTILE[0], HOSTILE[3])
    env = {"LOCK": str(tmp_path / "lock"), "FLAG": str(flag)}
    pool = await stage.pool(command=command, num_workers=2, quorum=1, env=env)
    assert pool.at_quorum
    assert pool.statistics().ready == 1
    assert await stage.ask(pool, "echo", b"one") == b"one"
    flag.touch()
    await stage.whole(pool, 30)


async def test_cancelled_boot_leaves_nothing(stage: Stage) -> None:
    """Cancelling a pool in the middle of its boots kills and reaps every child."""
    pool = stage.make_pool("never", num_workers=4, boot_timeout=30)
    with trio.move_on_after(0.3):
        await pool.run()
    assert pool.phase is PoolPhase.STOPPED
    assert marked_processes(stage.guard.instance) == []


async def test_everything_cancelled_at_once() -> None:
    """Reactor and pool cancelled in the same moment: children are reaped without the reactor, and soon."""
    pids: list[int] = []
    begun = time.monotonic()
    with trio.fail_after(10), trio.CancelScope() as scope:
        async with open_stage() as stage:
            pool = await stage.pool(num_workers=2)
            pids = [worker.pid for worker in pool.workers()]
            begun = time.monotonic()
            scope.cancel(reason="test")
            await trio.sleep_forever()
    assert time.monotonic() - begun < 2
    assert len(pids) == 2
    assert set(pids).isdisjoint(children_of(os.getpid()))
