"""Workers that grow, with real interpreters, and the choice between the kernel and an imitation of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from trailboss.chaos.growing import (
    GROWING_WORKER,
    STEP_BYTES,
    ServerGroups,
    can_grow,
    grow,
    kill_for_memory,
    limit_to_pass,
    limited_group,
    write_preload,
)
from trailboss.chaos.processes import Seen, memory_bytes, seen

from ...support.cgroup_tree import CgroupTree

#: Says its line, then reads for ever.
PYTHON = "import sys; print('up', flush=True); sys.stdin.buffer.read()"
PHP = "echo 'up', PHP_EOL; while (fgets(STDIN) !== false) { }"

needs_php = [
    pytest.mark.php,
    pytest.mark.skipif(shutil.which("php") is None, reason="there is no php command on this machine"),
]


@contextmanager
def running(words: Sequence[str], line: str = "up", **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has said `line`."""
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **environment}
    )
    with process:
        try:
            assert process.stdout is not None
            assert f"{line}\n" == process.stdout.readline().decode()
            yield process
        finally:
            process.kill()


def known(process: subprocess.Popen[bytes]) -> Seen:
    """A process that is there."""
    found = seen(process.pid)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("program", "text"), [pytest.param("php", f"<?php {PHP}", marks=needs_php), (sys.executable, PYTHON)]
)
async def test_a_worker_grows_by_what_it_is_told(program: str, text: str, tmp_path: Path) -> None:
    """It takes memory, signal by signal, up to what was wanted; a sleeping PHP worker when it has something to do."""
    write_preload(tmp_path)
    script = tmp_path / "script"
    script.write_text(text)
    with trio.fail_after(60), running([str(tmp_path / GROWING_WORKER), program, str(script)]) as process:
        assert can_grow(process.pid)

        before = memory_bytes(process.pid)
        target = before + 3 * STEP_BYTES
        stdin = process.stdin
        assert stdin is not None

        def wake() -> None:
            stdin.write(b"go on\n")
            stdin.flush()

        assert await grow(known(process), lambda: memory_bytes(process.pid), target, wake)

        assert target <= memory_bytes(process.pid) < target + 2 * STEP_BYTES


async def test_a_worker_without_our_lines_is_left_alone() -> None:
    """The signal would end it, so it is not sent."""
    with trio.fail_after(20), running([sys.executable, "-I", "-c", PYTHON]) as process:
        assert not can_grow(process.pid)
        assert not await grow(known(process), lambda: 0, 1, lambda: None)

        assert process.poll() is None


def test_the_sitecustomize_of_an_application_still_runs(tmp_path: Path) -> None:
    """Ours is in front of it and gives way; also the user's own PYTHONPATH stays."""
    write_preload(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text("import sys; sys.theirs = 'theirs'\n")
    code = f"import sys; print(sys.theirs); {PYTHON}"
    words = [str(tmp_path / GROWING_WORKER), sys.executable, "-c", code]

    with running(words, "theirs", PYTHONPATH=str(own)) as process:
        assert can_grow(process.pid)


@pytest.mark.php
@pytest.mark.skipif(shutil.which("php") is None, reason="there is no php command on this machine")
def test_the_prepended_file_of_an_application_still_runs(tmp_path: Path) -> None:
    """An auto_prepend_file of the user's .ini files runs after ours, in the global scope."""
    write_preload(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    (own / "first.php").write_text("<?php $theirs = 'theirs';")
    (own / "own.ini").write_text(f'auto_prepend_file = "{own}/first.php"\n')
    script = tmp_path / "script.php"
    script.write_text(f"<?php echo $theirs, PHP_EOL; {PHP}")
    words = [str(tmp_path / GROWING_WORKER), "php", str(script)]

    with running(words, "theirs", PHP_INI_SCAN_DIR=f":{own}") as process:
        assert can_grow(process.pid)


async def test_without_a_group_the_oom_killer_is_imitated() -> None:
    """First in line by its score, then SIGKILL; and it is not said to have been the kernel."""
    with trio.fail_after(20), running([sys.executable, "-c", PYTHON]) as process:
        assert limited_group(process.pid) is None
        assert not await kill_for_memory(known(process))

        assert process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("largest", "own", "kernel", "limit"),
    [
        (20, 0, 0, 45),  # none: a little above what they use
        (20, 128, 0, 128),  # the user's own
        (20, 512, 0, 45),  # too far away to be reached soon
        (20, 10, 0, 45),  # they are above it already
        (20, 128, 160, 128),
        (20, 128, 140, None),  # the kernel would be first
        (20, 0, 64, 45),
        (20, 0, 60, None),
    ],
)
def test_the_limit_that_workers_are_to_pass(largest: int, own: int, kernel: int, limit: int | None) -> None:
    """It is the user's own where that can be reached, and never so high that the kernel ends the worker before."""
    assert limit == limit_to_pass(largest << 20, own, kernel)


def machine(folder: Path, pid: int, group: str) -> Path:
    """/proc and /sys of a machine on which the process is in a group; returns the group's folder."""
    for name in ("self", str(pid)):
        (folder / "proc" / name).mkdir(parents=True)
        (folder / "proc" / name / "cgroup").write_text(f"0::{group}\n")
    (folder / "proc/self/mountinfo").write_text(
        "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    inside = folder / "sys/fs/cgroup" / group.lstrip("/")
    inside.mkdir(parents=True)
    (inside / "memory.max").write_text("max")
    return inside


async def test_with_a_group_of_its_own_the_kernel_is_asked(tmp_path: Path) -> None:
    """The limit of the worker's group is put below what any process uses; whose death follows is the kernel's work."""
    with trio.fail_after(20), running([sys.executable, "-c", PYTHON]) as process:
        group = machine(tmp_path, process.pid, "/app.scope/trailboss-1f/http-3")
        async with trio.open_nursery() as nursery:

            async def be_the_kernel() -> None:
                while (group / "memory.max").read_text() == "max":  # noqa: ASYNC110  that is all there is to see
                    await trio.sleep(0.01)
                process.kill()

            nursery.start_soon(be_the_kernel)

            assert await kill_for_memory(known(process), str(tmp_path))

        assert (group / "memory.max").read_text() == "4096"


async def test_each_server_has_a_group_in_which_it_can_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is delegated there is a new group for each server, which passes it on; at the end there is none."""
    tree = CgroupTree(tmp_path, monkeypatch)
    groups = ServerGroups("x", str(tree.root))
    with trio.fail_after(20):
        assert await groups.open()

        files = [Path(groups.new_group()) for _ in range(2)]

        assert [file.parent.name for file in files] == ["server-1", "server-2"]
        assert "+memory" in (files[0].parent.parent / "cgroup.subtree_control").read_text()
        assert all(file.name == "cgroup.procs" and file.exists() for file in files)

        await groups.close()

    assert not files[0].parent.parent.exists()


async def test_without_memory_there_are_no_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups that cannot limit memory are of no use, and none is left behind."""
    tree = CgroupTree(tmp_path, monkeypatch)
    (tree.base / "cgroup.controllers").write_text("cpu pids\n")
    groups = ServerGroups("x", str(tree.root))
    with trio.fail_after(20):
        assert not await groups.open()

    assert groups.new_group() == ""
    assert not list(tree.base.glob("trailboss-chaos*"))


@pytest.mark.parametrize("group", ["/", "/app.scope", "/app.scope/workers/http-3"])
def test_no_other_group_is_touched(group: str, tmp_path: Path) -> None:
    """A group that is not one of a server's own has others in it, and its limit stays."""
    machine(tmp_path, 4711, group)

    assert limited_group(4711, str(tmp_path)) is None
