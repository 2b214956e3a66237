"""Which guard serves: the program in C, and the Python one where that does not run."""

from __future__ import annotations

import os
import pathlib
import resource

import pytest
import trio

from trailboss.workers import guard as guard_module
from trailboss.workers.guard import NATIVE_PROGRAM, PYTHON_PROGRAM, Guard

from .stage import GUARDS, command_of, until


@pytest.mark.parametrize("fault", ["missing", "not executable", "no program", "silent", "wrong word"])
async def test_fallback(
    fault: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    log_records: list[dict[str, object]],
) -> None:
    """Where the guard in C cannot run the Python one serves, and the log says so once, also when it is replaced."""
    monkeypatch.delenv("TRAILBOSS_PURE_PYTHON", raising=False)
    broken = tmp_path / "trailboss-guard"
    if fault != "missing":
        texts = {"silent": "#!/bin/true\n", "wrong word": "#!/bin/echo\n"}
        broken.write_text(texts.get(fault, "no program\n"))
        broken.chmod(0o644 if fault == "not executable" else 0o755)
    monkeypatch.setattr(guard_module, "NATIVE_PROGRAM", broken)
    guard = Guard()
    assert guard.is_native
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(guard.run)
            old = guard.pid
            assert str(PYTHON_PROGRAM) in command_of(old)
            guard.kill_now()
            await until(lambda: guard.pid not in (0, old), 10)
            assert str(PYTHON_PROGRAM) in command_of(guard.pid)
            nursery.cancel_scope.cancel()
    said = [record for record in log_records if "the Python one is used" in str(record["event"])]
    assert [record["log_level"] for record in said] == ["info" if fault == "missing" else "warning"]


async def test_no_fallback_for_want_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes says nothing about the program: the error is raised, and the next attempt starts the same guard."""
    if not NATIVE_PROGRAM.exists():
        pytest.skip("needs the guard in C, built at installation where there is a C compiler")
    monkeypatch.delenv("TRAILBOSS_PURE_PYTHON", raising=False)
    guard = Guard()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with trio.fail_after(30):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
        spare: list[int] = []
        try:
            while True:  # until nothing is free
                try:
                    spare.append(os.dup(0))
                except OSError:
                    break
            with pytest.raises(OSError, match="Too many open files"):
                await guard.run()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for number in spare:
                os.close(number)
        assert guard.is_native
        async with trio.open_nursery() as nursery:
            await nursery.start(guard.run)
            assert command_of(guard.pid) == [*GUARDS["c"], guard.instance]
            nursery.cancel_scope.cancel()
