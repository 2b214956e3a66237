"""What a worker sees of the world, and what becomes of what it says on standard error."""

from __future__ import annotations

import grp
import os
import pathlib
import pwd
import re
import resource
import time

import pytest
import trio

from trailboss.config.schema import ProcessConfig, QuarantineConfig
from trailboss.container.contract import Caller, CallerRole
from trailboss.workers.outcome import WorkerDied
from trailboss.workers.pool import PoolStartFailed

from .stage import Stage, body_of, open_stage, until


async def _described(stage: Stage, **keys: object) -> tuple[dict[str, str], dict[str, str]]:
    pool = await stage.pool(**keys)
    lines = (await stage.ask(pool, "describe")).decode().split("\n")
    figures = dict(line.split("=", 1) for line in lines if not line.startswith("env:"))
    environment = dict(line[4:].split("=", 1) for line in lines if line.startswith("env:"))
    return figures, environment


async def test_environment_and_descriptors(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has descriptors 0-2, its own session and group, the RR_* variables, and nothing of systemd's."""
    for name in (
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
    ):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("RR_MODE", "of the supervisor")
    monkeypatch.setenv("FROM_OUTSIDE", "kept")
    stage.workshop.rpc_address = "unix:///run/rpc.sock"
    object.__setattr__(stage.workshop.settings, "env", {"FROM_SERVER": "1", "BOTH": "server"})
    # A descriptor that is inheritable by mistake must not get through either.
    leak = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        figures, environment = await _described(
            stage, env={"FROM_PLUGIN": "1", "BOTH": "plugin"}, num_workers=2
        )
    finally:
        os.close(leak)
    # 3 is the listing of the folder itself.
    assert figures["fds"] in ("0,1,2", "0,1,2,3")
    assert figures["pid"] == figures["sid"] == figures["pgid"]
    assert not [name for name in environment if name.startswith(("WATCHDOG_", "LISTEN_", "NOTIFY_"))]
    assert environment["RR_MODE"] == "jobs"
    assert environment["RR_RELAY"] == "pipes"
    assert environment["RR_RPC"] == "unix:///run/rpc.sock"
    assert environment["RR_VERSION"].startswith("2025.1.")
    assert environment["FROM_OUTSIDE"] == "kept"
    assert environment["FROM_SERVER"] == environment["FROM_PLUGIN"] == "1"
    assert environment["BOTH"] == "plugin"


async def test_descriptors_of_many_workers(stage: Stage) -> None:
    """Workers spawned at the same time, from several threads, inherit nothing of each other."""
    pool = await stage.pool(num_workers=12)
    outcomes = [stage.submit(pool, "describe") for _ in range(12)]
    for one in outcomes:
        assert body_of(await stage.exactly_one(one)).split(b"\n")[0] in (b"fds=0,1,2", b"fds=0,1,2,3")


async def test_without_rpc_there_is_no_rr_rpc(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """RPC off: the variable is absent, even if the supervisor has one of its own."""
    monkeypatch.setenv("RR_RPC", "tcp://127.0.0.1:1")
    _, environment = await _described(stage)
    assert "RR_RPC" not in environment


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
async def test_server_user(stage: Stage) -> None:
    """server.user: uid, gid and supplementary groups are that user's."""
    object.__setattr__(stage.workshop.settings, "user", "nobody")
    # nobody cannot read the project, so the program comes from a folder it may enter.
    entry = pwd.getpwnam("nobody")
    pool = await stage.pool(command=("/bin/sh", "-c", _SHELL_WORKER))
    text = (await stage.ask(pool, "x")).decode()
    uid, gid, groups = text.split("|")
    assert int(uid) == entry.pw_uid
    assert int(gid) == entry.pw_gid
    assert {int(word) for word in groups.split()} == set(os.getgrouplist("nobody", entry.pw_gid))
    caller = stage.workshop.callers.lookup(pool.workers()[0].pid, entry.pw_uid)
    assert caller.role is CallerRole.WORKER
    assert caller.pool == "jobs"


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
async def test_server_group(stage: Stage) -> None:
    """server.group replaces the user's own group."""
    group = grp.getgrgid(1)
    object.__setattr__(stage.workshop.settings, "user", "nobody")
    object.__setattr__(stage.workshop.settings, "group", group.gr_name)
    pool = await stage.pool(command=("/bin/sh", "-c", _SHELL_WORKER))
    assert int((await stage.ask(pool, "x")).decode().split("|")[1]) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
async def test_command_not_permitted_to_the_user(stage: Stage, tmp_path: pathlib.Path) -> None:
    """A command that the user may not execute is a permanent failure that names both."""
    script = tmp_path / "worker"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o700)
    object.__setattr__(stage.workshop.settings, "user", "nobody")
    with trio.fail_after(5), pytest.raises(PoolStartFailed, match="as user nobody: permission denied"):
        await stage.make_pool(command=(str(script),)).run()


#: One exchange in shell and od: enough of the protocol to say who one is. Reads the pid request (12 + payload),
#: answers with a constant hello, then answers the first request with uid, gid and groups.
_SHELL_WORKER = r"""
exec python3 -I -S -c '
import os, struct, zlib
def exact(n):
    data = b""
    while len(data) < n:
        more = os.read(0, n - len(data))
        if not more: os._exit(0)
        data += more
    return data
def take():
    head = exact(12)
    exact(4 * (head[0] & 15) - 12)
    return head[1], exact(struct.unpack("<I", head[2:6])[0])
def frame(payload, flags, options):
    head = struct.pack("<BBI", 0x13 + len(options), flags, len(payload))
    os.write(1, head + struct.pack("<IH", zlib.crc32(head), 0) + b"".join(struct.pack("<I", o) for o in options) + payload)
take()
frame(b"{\"pid\":%d}" % os.getpid(), 1, [])
while True:
    flags, _ = take()
    if flags & 1: os._exit(0)
    frame(("%d|%d|%s" % (os.getuid(), os.getgid(), " ".join(map(str, os.getgroups())))).encode(), 0, [0])
'
"""


# --- standard error ---------------------------------------------------------------------------------------------------


def _lines(log_records: list[dict[str, object]], pid: int) -> list[str]:
    return [str(record["event"]) for record in log_records if record.get("pid") == pid]


async def test_flood_on_standard_error_does_not_block(log_records: list[dict[str, object]]) -> None:
    """A worker that writes 1 MB to standard error in the middle of an exec finishes it; each line has its pid."""
    async with open_stage() as stage:
        pool = await stage.pool()
        pid = int(await stage.ask(pool, "pid"))
        assert await stage.ask(pool, "error-flood", b"1000000") == b"flooded"
        await until(lambda: len([x for x in _lines(log_records, pid) if x.startswith("flood ")]) >= 993)
        assert {len(line) for line in _lines(log_records, pid) if line.startswith("flood ")} == {1006}
        flooded = [record for record in log_records if str(record["event"]).startswith("flood ")]
        assert {record["pool"] for record in flooded} == {"jobs"}


async def test_long_and_broken_lines(log_records: list[dict[str, object]]) -> None:
    """A line beyond stderr_line_max is cut and says so; bytes that are no UTF-8 are escaped; empty lines are left out."""
    async with open_stage(stderr_line_max=1000) as stage:
        pool = await stage.pool()
        pid = int(await stage.ask(pool, "pid"))
        body = b"a" * 5000 + b"\n\n\r\nnext\r\n" + b"bad \xff byte\n" + b"b" * 200_000 + b"\nno end"
        assert await stage.ask(pool, "error-lines", body) == b"said"
        await until(lambda: any("bytes cut" in line and line[0] == "b" for line in _lines(log_records, pid)))
        with trio.fail_after(5):
            await pool.stop(trio.current_time() + 3)
        lines = [line for line in _lines(log_records, pid) if not line.startswith("worker ")]
        assert lines == [
            "a" * 1000 + " [4000 bytes cut]",
            "next",
            "bad \\xff byte",
            "b" * 1000 + " [199000 bytes cut]",
            "no end",
        ]


async def test_rate_limit(log_records: list[dict[str, object]]) -> None:
    """Above stderr_rate lines are counted instead of logged; the death record still has the last ones."""
    async with open_stage(stderr_rate=50) as stage:
        pool = await stage.pool()
        outcome = await stage.outcome(pool, "words-exit", b"300000")
        assert isinstance(outcome, WorkerDied)
        logged = [line for line in _lines(log_records, outcome.pid) if line[:6].isdigit()]
        assert 50 <= len(logged) <= 150
        assert any("were not logged" in line for line in _lines(log_records, outcome.pid))
        await until(lambda: stage.deaths)
        assert stage.deaths[0].last_output[-1] == "the end"


@pytest.mark.parametrize("size", [1_000, 60_000, 200_000])
async def test_last_words_are_complete(log_records: list[dict[str, object]], size: int) -> None:
    """Everything a dying worker wrote to standard error is in the log before its death is reported: 40 of 40."""
    async with open_stage() as stage:
        pool = await stage.pool(num_workers=4, quarantine=QuarantineConfig(deaths=0))
        count = size // 100
        for _ in range(40):
            await stage.ask(pool, "echo")  # proves it: it is replaced at once
            outcome = await stage.outcome(pool, "words-exit", b"%d" % size, "last words")
            assert isinstance(outcome, WorkerDied)
            lines = [line for line in _lines(log_records, outcome.pid) if not line.startswith("worker ready")]
            assert [line[:6] for line in lines[:count]] == [f"{number:06d}" for number in range(count)]
            assert lines[count] == "the end"
            await stage.whole(pool, 30)
        assert len(stage.deaths) == 40
        assert all(record.last_output[-1] == "the end" for record in stage.deaths)
        assert all("    the end" in record.explain() for record in stage.deaths)


async def test_flood_by_a_pool_leaves_another_alone(stage: Stage) -> None:
    """While one worker floods standard error, another pool goes on answering quickly."""
    noisy = await stage.pool(name="noisy")
    quiet = await stage.pool(name="quiet")
    flood = stage.submit(noisy, "error-flood", b"3000000")
    slowest = 0.0
    while not flood:
        begun = time.monotonic()
        await stage.ask(quiet, "echo", b"x")
        slowest = max(slowest, time.monotonic() - begun)
    assert body_of(flood[0]) == b"flooded"
    assert slowest < 0.5


def _of_process(pid: int, name: str) -> str:
    return pathlib.Path(f"/proc/{pid}/{name}").read_text()


async def test_process_limits_hold_from_the_first_instruction(stage: Stage) -> None:
    """pool.process: nice value, processors, limits, OOM score and privileges, in the worker itself and with its own pid."""
    cpu = min(os.sched_getaffinity(0))
    process = ProcessConfig(
        nice=3,
        io_class="idle",
        cpu_affinity=str(cpu),
        rlimits={"nofile": "321:321", "core": "0"},
        oom_score_adj=77,
        no_new_privs=True,
        umask="027",
    )
    pool = await stage.pool(process=process)
    pid = int(await stage.ask(pool, "pid"))
    assert [worker.pid for worker in pool.workers()] == [pid]
    status = _of_process(pid, "status")
    assert "NoNewPrivs:\t1" in status
    assert "Umask:\t0027" in status
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3
    assert os.sched_getaffinity(pid) == {cpu}
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (321, 321)
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
    assert _of_process(pid, "oom_score_adj").strip() == "77"
    with trio.fail_after(10):
        await pool.reset()
    assert stage.deaths == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of another user")
async def test_workers_of_another_user_never_gain_privileges(stage: Stage) -> None:
    """pool.process.user: uid, gid, no capability, none to be had."""
    pool = await stage.pool(process=ProcessConfig(user="daemon"), command=("/bin/sh", "-c", _SHELL_WORKER))
    pid = pool.workers()[0].pid
    status = _of_process(pid, "status")
    assert re.search(r"Uid:\t1\t1\t1\t1", status)
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert "CapBnd:\t0000000000000000" in status


async def test_a_command_that_is_missing_is_told_behind_a_prefix_too(stage: Stage) -> None:
    """As clearly as without one, and at once."""
    pool = stage.make_pool(command=("/nowhere/worker",), process=ProcessConfig(nice=1))
    with trio.fail_after(10), pytest.raises(PoolStartFailed, match="'/nowhere/worker': command not found"):
        await pool.run()


async def test_a_token_in_the_environment_and_nowhere_else(log_records: list[dict[str, object]]) -> None:
    """Each worker has one of its own, which says who it is and dies with it; what shows the environment does not show it."""
    async with open_stage(env={"TRAILBOSS_TOKEN": "forged"}) as stage:
        pool = await stage.pool(num_workers=2)
        tokens = {}
        for worker in pool.workers():
            environment = _of_process(worker.pid, "environ").split("\0")
            (tokens[worker.pid],) = (item[16:] for item in environment if item.startswith("TRAILBOSS_TOKEN="))
        callers = stage.workshop.callers
        stranger = Caller(CallerRole.OPERATOR, "", 0, 77)
        for pid, token in tokens.items():
            found = callers.authenticate(token, stranger)
            assert found is not None
            assert (found.role, found.pool, found.session, found.booting) == (
                CallerRole.WORKER,
                "jobs",
                pid,
                False,
            )
        assert len(set(tokens.values()) - {"forged"}) == 2
        pid = int(await stage.ask(pool, "pid"))
        shown = f"TRAILBOSS_TOKEN={tokens[pid]} and more\n".encode()
        await stage.ask(pool, "error-lines", shown)
        await until(lambda: "TRAILBOSS_TOKEN=*** and more" in _lines(log_records, pid))
        with trio.fail_after(10):
            await pool.reset()
        assert all(callers.authenticate(token, stranger) is None for token in tokens.values())
        assert not any(token in repr(log_records) for token in tokens.values())
