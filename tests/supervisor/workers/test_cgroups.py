"""Control groups of workers, in a tree of ordinary files."""

from __future__ import annotations

import fcntl
import os
import pathlib

import pytest
import trio

from trailboss.config.schema import ProcessConfig
from trailboss.workers.cgroups import (
    SUPERVISOR,
    Cgroups,
    CgroupsUnavailable,
    controllers_for,
    limits_for,
    own_folder,
)
from trailboss.workers.confine import prefix_for
from trailboss.workers.process import Identity

from ...support.cgroup_tree import CgroupTree

ALL = frozenset({"cpu", "memory", "pids"})


@pytest.fixture
def tree(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> CgroupTree:
    """A tree in which /service is this process's group."""
    return CgroupTree(tmp_path, monkeypatch)


def _open(tree: CgroupTree, controllers: frozenset[str] = ALL, instance: str = "mine") -> Cgroups:
    return Cgroups.open(instance, controllers, str(tree.root))


def _exists(path: str) -> bool:
    return os.path.exists(path)


async def _close(cgroups: Cgroups) -> None:
    with trio.fail_after(5):
        await cgroups.close()


def test_limits_become_files() -> None:
    """Megabytes become bytes; with memory_max a worker goes as a whole; nothing set is nothing written."""
    assert limits_for(ProcessConfig()) == {}
    process = ProcessConfig(memory_high=64, memory_max=128, cpu_weight=50, pids_max=20)
    assert limits_for(process) == {
        "memory.high": "67108864",
        "memory.max": "134217728",
        "memory.oom.group": "1",
        "cpu.weight": "50",
        "pids.max": "20",
    }
    assert controllers_for(process) == ALL
    assert controllers_for(ProcessConfig(pids_max=3)) == {"pids"}


def test_a_worker_joins_its_group_before_anything_else() -> None:
    """The step that joins comes first, while it is still root's; with a user setpriv follows whatever is turned off."""
    words = prefix_for(ProcessConfig(nice=1), None, "/g/cgroup.procs")
    assert words == ("/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', "/g/cgroup.procs", "nice", "-n", "1")
    plain = ProcessConfig(no_new_privs=False, drop_capabilities=False)
    words = prefix_for(plain, Identity("app", 7, 8, (8,)), "/g/cgroup.procs")
    assert words[4:] == ("setpriv", "--reuid", "7", "--regid", "8", "--groups", "8", "--")


def test_own_folder_of_a_part_of_the_tree(tmp_path: pathlib.Path) -> None:
    """A mount that shows only a part of the tree, with a blank in its path; and machines without any."""
    (tmp_path / "proc/self").mkdir(parents=True)
    with pytest.raises(CgroupsUnavailable, match="no cgroup v2"):
        own_folder(str(tmp_path))
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/app\n")
    mounts = tmp_path / "proc/self/mountinfo"
    mounts.write_text(r"31 1 0:38 /pod /my\040groups rw - cgroup2 cgroup2 rw" + "\n")
    with pytest.raises(CgroupsUnavailable, match="not mounted"):
        own_folder(str(tmp_path))
    (tmp_path / "my groups/app").mkdir(parents=True)
    assert own_folder(str(tmp_path)) == str(tmp_path / "my groups/app")
    (tmp_path / "proc/self/cgroup").write_text("0::/elsewhere\n")
    with pytest.raises(CgroupsUnavailable, match="not mounted"):
        own_folder(str(tmp_path))


async def test_a_leaf_for_each_worker(tree: CgroupTree) -> None:
    """Each has a folder with its limits; with the last one gone the server's goes too."""
    cgroups = _open(tree)
    assert cgroups.missing == frozenset()
    assert (tree.base / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    first, second = cgroups.new_leaf("http"), cgroups.new_leaf("a/b")
    assert first is not None
    assert second is not None
    assert pathlib.Path(first.procs) == tree.base / "trailboss-mine/http-1/cgroup.procs"
    assert pathlib.Path(second.procs).parent.name == "a_b-2"
    assert first.limit({"pids.max": "9"}.items()) == []
    assert pathlib.Path(first.procs).with_name("pids.max").read_text().startswith("9")
    assert first.limit({"no.such": "1"}.items()) == ["no.such"]
    cgroups.discard(first)
    assert not _exists(os.path.dirname(first.procs))
    await _close(cgroups)
    assert not (tree.base / "trailboss-mine").exists()


async def test_a_leaf_that_is_still_held_goes_later(tree: CgroupTree) -> None:
    """The kernel needs a moment to let a group go; it is removed at the next occasion."""
    cgroups = _open(tree)
    leaf = cgroups.new_leaf("http")
    assert leaf is not None
    folder = os.path.dirname(leaf.procs)
    tree.held.add(folder)
    cgroups.discard(leaf)
    assert _exists(folder)
    tree.held.clear()
    cgroups.new_leaf("http")
    assert not _exists(folder)
    await _close(cgroups)


async def test_the_server_moves_out_of_a_group_that_passes_limits_on(tree: CgroupTree) -> None:
    """A group with limits for others holds no processes: this one moves into a group of its own, and is found there."""
    procs = tree.base / "cgroup.procs"
    procs.write_text(f"{os.getpid()}\n")
    home = tree.base / SUPERVISOR / "cgroup.procs"
    cgroups = _open(tree)  # the file does not change by itself, so the rounds end
    assert home.read_text() == str(os.getpid())
    assert cgroups.missing == frozenset()
    await _close(cgroups)
    (tree.root / "proc/self/cgroup").write_text(f"0::/service/{SUPERVISOR}\n")
    again = _open(tree, instance="next")
    assert again.folder == str(tree.base / "trailboss-next")
    await _close(again)


async def test_a_strange_process_stays_where_it_is(tree: CgroupTree) -> None:
    """Then there are groups without limits, and a reason."""
    (tree.base / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    cgroups = _open(tree)
    assert cgroups.missing == ALL
    assert cgroups.reason == "process 1, which is not this server's, is in the same group"
    assert cgroups.new_leaf("http") is not None
    await _close(cgroups)


async def test_missing_controllers(tree: CgroupTree) -> None:
    """What the group above does not pass on is named; the rest works."""
    (tree.base / "cgroup.controllers").write_text("pids\n")
    cgroups = _open(tree)
    assert cgroups.missing == {"cpu", "memory"}
    assert "not available" in cgroups.reason
    assert (tree.base / "cgroup.subtree_control").read_text() == "+pids"
    await _close(cgroups)


def test_not_delegated(tree: CgroupTree, monkeypatch: pytest.MonkeyPatch) -> None:
    """No right to make groups: a reason that says where and why."""

    def refuse(path: str, *_more: object) -> None:
        raise PermissionError(13, os.strerror(13), path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(
        CgroupsUnavailable, match="service is not delegated to this process: Permission denied"
    ):
        _open(tree)


async def test_what_a_dead_server_left_is_removed(tree: CgroupTree) -> None:
    """A folder that nobody holds is killed and removed; that of a living server stays."""
    living = _open(tree, instance="living")
    dead = tree.base / "trailboss-dead"
    os.mkdir(str(dead))
    os.mkdir(str(dead / "http-1"))
    os.mkdir(str(tree.base / "somebody-else"))
    stubborn = tree.base / "trailboss-stubborn"
    os.mkdir(str(stubborn))
    tree.held.add(str(stubborn))
    mine = _open(tree)
    assert not dead.exists()
    assert (stubborn / "cgroup.kill").read_text() == "1"
    assert (tree.base / "trailboss-living").exists()
    assert (tree.base / "somebody-else").exists()
    fd = os.open(mine.folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    await _close(mine)
    await _close(living)


async def test_oom_kills_are_counted(tree: CgroupTree) -> None:
    """memory.events says how many; a group without that controller has had none."""
    cgroups = _open(tree)
    leaf = cgroups.new_leaf("http")
    assert leaf is not None
    events = pathlib.Path(leaf.procs).with_name("memory.events")
    assert leaf.oom_kills() == 0
    events.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 1\n")
    assert leaf.oom_kills() == 2
    events.unlink()
    assert leaf.oom_kills() == 0
    await _close(cgroups)
