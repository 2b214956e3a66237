"""Workers in control groups of their own: in the kernel's tree where this machine lets us, and in one of files."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from trailboss.config.schema import ProcessConfig
from trailboss.workers.cgroups import Cgroups, CgroupsUnavailable, own_folder
from trailboss.workers.outcome import WorkerDied
from trailboss.workers.workshop import Workshop

from ...support.cgroup_tree import CgroupTree
from .stage import PROGRAMS, Stage, is_alive, until


def _why_not() -> str:
    """Why this machine has no groups for us; "" if it has."""
    try:
        folder = os.path.join(own_folder(), "trailboss-test")
        os.mkdir(folder)
    except CgroupsUnavailable as error:
        return str(error)
    except OSError as error:
        return f"no cgroup v2 that may be used here: {error.strerror}"
    os.rmdir(folder)
    return ""


@pytest.fixture
def kernel() -> None:
    """Skips where the kernel gives us no groups."""
    reason = _why_not()
    if reason:
        pytest.skip(reason)


@contextlib.asynccontextmanager
async def _closing(workshop: Workshop) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await workshop.close_cgroups()


def _group_of(pid: int) -> str:
    lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def _put_into(folder: str, pid: int) -> None:
    pathlib.Path(folder, "cgroup.procs").write_text(str(pid))


def _exists(path: str) -> bool:
    return os.path.exists(path)


@pytest.mark.usefixtures("kernel")
async def test_a_group_of_its_own(stage: Stage) -> None:
    """A worker and what it starts are in a group of their own, with the worker's own pid; none is left of it."""
    async with _closing(stage.workshop):
        pool = await stage.pool(num_workers=2, process=ProcessConfig(cgroup=True, nice=1))
        first, second = (worker.pid for worker in pool.workers())
        assert stage.workshop.cgroups is not None
        folder = pathlib.Path(stage.workshop.cgroups.folder)
        assert {_group_of(first).rpartition("/")[2], _group_of(second).rpartition("/")[2]} == {
            "jobs-1",
            "jobs-2",
        }
        with trio.fail_after(10):
            await pool.reset()
        await until(lambda: sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["jobs-3", "jobs-4"])
        with trio.fail_after(10):
            await pool.stop(trio.current_time() + 5)
    assert not _exists(str(folder))
    assert stage.deaths == []


@pytest.mark.usefixtures("kernel")
async def test_children_do_not_escape(stage: Stage) -> None:
    """A child in a session of its own ends with its worker, however that ends."""
    async with _closing(stage.workshop):
        pool = await stage.pool(process=ProcessConfig(cgroup=True))
        children = [int(word) for word in (await stage.ask(pool, "child")).split()]
        assert all(map(is_alive, children))
        assert isinstance(await stage.outcome(pool, "die", b"KILL"), WorkerDied)
        await until(lambda: not any(map(is_alive, children)), 5)
        await stage.whole(pool)
        children = [int(word) for word in (await stage.ask(pool, "child")).split()]
        with trio.fail_after(10):
            await pool.stop(trio.current_time() + 5)
        await until(lambda: not any(map(is_alive, children)), 5)


@pytest.mark.usefixtures("kernel")
async def test_what_a_killed_server_left(stage: Stage) -> None:
    """Processes in a folder that nobody holds are killed by the next server, and the folder is removed."""
    folder = os.path.join(own_folder(), "trailboss-left")
    leaf = os.path.join(folder, "jobs-1")
    os.mkdir(folder)
    os.mkdir(leaf)
    process = await trio.lowlevel.open_process(["sleep", "600"], start_new_session=True)
    _put_into(leaf, process.pid)
    async with _closing(stage.workshop):
        await stage.pool(process=ProcessConfig(cgroup=True))
        with trio.fail_after(5):
            assert await process.wait() == -signal.SIGKILL
        for pool in stage.pools:
            await pool.stop(trio.current_time() + 5)
    again = Cgroups.open("again", frozenset())
    await again.close()
    assert not _exists(folder)


@pytest.mark.usefixtures("kernel", "program")
def test_the_guard_kills_the_group() -> None:
    """SIGKILL to the server: also a process that has left session and environment behind is gone within 2 s."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAMS / "small_supervisor.py"), "cgroup"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        instance, _guard, *words = process.stdout.readline().split()
        pids = [int(word) for word in words]
        folder = os.path.join(own_folder(), f"trailboss-{instance}")
        hidden = subprocess.Popen(["sleep", "600"], env={}, start_new_session=True)
        _put_into(next(map(str, pathlib.Path(folder).glob("jobs-*"))), hidden.pid)
        process.kill()
        assert hidden.wait(2) == -signal.SIGKILL
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and (os.path.exists(folder) or any(map(is_alive, pids))):
            time.sleep(0.01)
        assert not os.path.exists(folder)
        assert not any(map(is_alive, pids))


# --- in a tree of files -----------------------------------------------------------------------------------------------


@pytest.fixture
def tree(stage: Stage, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CgroupTree]:
    """A tree of files, which the workshop of the stage takes for the kernel's."""
    stage.workshop.cgroup_root = str(tmp_path)
    yield CgroupTree(tmp_path, monkeypatch)
    assert not list(tmp_path.glob("sys/fs/cgroup/service/trailboss-*/jobs-*"))


async def test_oom_is_named(stage: Stage, tree: CgroupTree) -> None:
    """A worker that the kernel has killed at its limit has died of `oom`, and the record says at which limit."""
    async with _closing(stage.workshop):
        pool = await stage.pool(process=ProcessConfig(memory_max=64))
        pid = int(await stage.ask(pool, "pid"))
        (leaf,) = tree.base.glob("trailboss-*/jobs-*")
        assert (leaf / "cgroup.procs").read_text() == f"{pid}\n"
        assert (leaf / "memory.max").read_text().startswith("67108864")
        (leaf / "memory.events").write_text("oom 1\noom_kill 1\n")
        outcome = await stage.outcome(pool, "die", b"KILL", "greedy")
        assert isinstance(outcome, WorkerDied)
        assert outcome.cause == "oom"
        await until(lambda: stage.deaths)
        (death,) = stage.deaths
        assert death.cause == "oom"
        assert death.text == "the kernel killed it: it used more than memory_max (64 MB)"
        assert (leaf / "cgroup.kill").read_text() == "1" if leaf.exists() else True
        await stage.whole(pool)
        (leaf,) = tree.base.glob("trailboss-*/jobs-*")
        (leaf / "memory.events").write_text("oom 1\noom_kill 1\n")
        assert isinstance(await stage.outcome(pool, "die", b"3"), WorkerDied)
        await until(lambda: len(stage.deaths) == 2)
        assert stage.deaths[1].cause == "exit"
        assert stage.deaths[1].hint == "the kernel has killed 1 of its processes for want of memory"
        for each in stage.pools:
            await each.stop(trio.current_time() + 5)


async def test_without_groups_workers_run_all_the_same(
    stage: Stage, log_records: list[dict[str, object]]
) -> None:
    """Limits that need groups which are not to be had: said once, with the reason; the workers run."""
    stage.workshop.cgroup_root = "/nowhere"
    pool = await stage.pool(num_workers=3, process=ProcessConfig(memory_max=64, pids_max=10))
    assert await stage.ask(pool, "echo", b"x") == b"x"
    with trio.fail_after(10):
        await pool.reset()
    warnings = [record for record in log_records if record["log_level"] == "warning"]
    assert [record["event"] for record in warnings] == [
        "workers get no control groups of their own",
        "these limits of workers are not in force",
    ]
    assert warnings[0]["reason"] == "this machine has no cgroup v2"
    assert warnings[1]["limits"] == ["memory.max", "memory.oom.group", "pids.max"]
