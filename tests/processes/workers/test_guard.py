"""The lifeline: whatever ends the supervisor, nothing of it lives 2 s later.

Both guards go through all of it: the program in C, and the one in Python that is its reference and fallback.
"""

from __future__ import annotations

import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import pytest
import trio

from trailboss.workers.guard_process import end_strays

from .stage import GUARDS, PROGRAMS, Stage, body_of, command_of, is_alive, marked_processes, until

SUPERVISOR = PROGRAMS / "small_supervisor.py"
pytestmark = pytest.mark.usefixtures("program")


def _start(phase: str) -> tuple[subprocess.Popen[str], list[int], int, str]:
    """Start a small supervisor; returns it, the pids of its tree, its guard's pid and its mark."""
    process = subprocess.Popen(
        [sys.executable, str(SUPERVISOR), phase], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    assert words, "the small supervisor did not start"
    return process, [int(word) for word in words[2:]], int(words[1]), words[0]


@pytest.mark.parametrize("phase", ["idle", "busy", "booting", "guard-killed", "guard-stopped"])
def test_supervisor_killed(phase: str) -> None:
    """SIGKILL to the supervisor: workers, their children, and a child in a session of its own are gone within 2 s."""
    process, pids, guard_pid, instance = _start(phase)
    with process:
        assert len(pids) >= 2
        assert all(map(is_alive, pids)), pids
        begun = time.monotonic()
        process.kill()
        while time.monotonic() - begun < 4 and (any(map(is_alive, pids)) or marked_processes(instance)):
            time.sleep(0.01)
        took = time.monotonic() - begun
        left = [pid for pid in pids if is_alive(pid)] + marked_processes(instance)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert left == []
    assert took < 2
    print(f"{phase}: all {len(pids)} processes gone after {took:.2f} s")
    deadline = time.monotonic() + 5
    while is_alive(guard_pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(guard_pid)


async def test_guard_is_replaced(stage: Stage, program: str) -> None:
    """A guard that is killed is replaced by one of its kind and told everything anew; workers do not notice."""
    pool = await stage.pool(num_workers=2)
    workers = {worker.pid for worker in pool.workers()}
    for number in range(3):
        old = stage.guard.pid
        stage.guard.kill_now()
        await until(lambda old=old: stage.guard.pid not in (0, old), 5)
        assert stage.guard.replaced == number + 1
        assert not is_alive(old)
        assert command_of(stage.guard.pid) == [*GUARDS[program], stage.guard.instance]
    assert {worker.pid for worker in pool.workers()} == workers
    assert await stage.ask(pool, "echo", b"unharmed") == b"unharmed"
    assert stage.deaths == []


async def test_stopped_guard_never_ends_living_workers(stage: Stage) -> None:
    """A guard stopped for so long that its pipe is full is replaced; waking up it harms nobody."""
    pool = await stage.pool(num_workers=1)
    pid = await stage.ask(pool, "pid")
    old = stage.guard.pid
    os.kill(old, signal.SIGSTOP)
    for number in range(20_000):  # more than a pipe holds
        stage.guard._tell(b"-%d\n" % (10_000_000 + number))
    with pytest.raises(ProcessLookupError):
        await until(lambda: stage.guard.pid not in (0, old), 5)
        os.kill(old, signal.SIGCONT)
    with trio.fail_after(5):
        assert await stage.ask(pool, "pid") == pid
    assert stage.deaths == []


def test_guard_has_no_environment_and_few_descriptors(program: str) -> None:
    """The guard is small: no environment of the supervisor but PATH, descriptors 0-2; in C, hardly any memory."""
    process, pids, guard_pid, _ = _start("idle")
    with process:
        environment = pathlib.Path(f"/proc/{guard_pid}/environ").read_bytes().split(b"\0")
        descriptors = set(os.listdir(f"/proc/{guard_pid}/fd"))
        status = pathlib.Path(f"/proc/{guard_pid}/status").read_text()
        process.kill()
        deadline = time.monotonic() + 5
        while any(map(is_alive, [*pids, guard_pid])) and time.monotonic() < deadline:
            time.sleep(0.01)
    names = {entry.partition(b"=")[0] for entry in environment if entry}
    assert names <= {b"PATH", b"LC_CTYPE"}
    assert descriptors == {"0", "1", "2"}
    resident_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    print(f"{program}: {resident_kib} KiB resident")
    assert resident_kib < (2048 if program == "c" else 32768)


async def test_children_end_with_their_worker(stage: Stage) -> None:
    """Also in a session of their own, whether the worker dies or is replaced; those of another worker go on."""
    pool = await stage.pool(num_workers=2)
    first, second = pool.workers()
    # Both are idle, so each gets one.
    answers = [stage.submit(pool, "child"), stage.submit(pool, "child")]
    families: dict[int, list[int]] = {}
    for answer in answers:
        children = [int(word) for word in body_of(await stage.exactly_one(answer)).split()]
        families[_parent(children[0])] = children
    assert set(families) == {first.pid, second.pid}
    os.kill(first.pid, signal.SIGKILL)
    await until(lambda: not any(map(is_alive, families[first.pid])), 5)
    assert all(map(is_alive, families[second.pid]))
    with trio.fail_after(10):
        await pool.reset()
    await until(lambda: not any(map(is_alive, families[second.pid])), 5)


async def test_strays_are_told_by_the_token_alone(stage: Stage) -> None:
    """A process with another token, a longer one, or none at all is nobody's stray."""
    environments = [
        {"TRAILBOSS_TOKEN": "lost"},
        {"TRAILBOSS_TOKEN": "lost-too"},
        {"X": "TRAILBOSS_TOKEN=lost"},
        {},
    ]
    processes = [
        await trio.lowlevel.open_process(["/bin/sleep", "600"], env=environment, start_new_session=True)
        for environment in environments
    ]
    try:
        stage.guard.end_strays("lost")
        with trio.fail_after(5):
            assert await processes[0].wait() == -signal.SIGKILL
        # What is told later is looked at later: by then the others have been looked at twice.
        late = await trio.lowlevel.open_process(
            ["/bin/sleep", "600"], env={"TRAILBOSS_TOKEN": "late"}, start_new_session=True
        )
        stage.guard.end_strays("late")
        with trio.fail_after(5):
            assert await late.wait() == -signal.SIGKILL
        assert all(is_alive(process.pid) for process in processes[1:])
    finally:
        for process in processes[1:]:
            process.kill()
            await process.wait()


def test_a_look_is_cheap(program: str) -> None:
    """One look at all processes costs little: it is made at most four times a second, beside the server."""
    if program == "python":
        begun = time.process_time()
        for _ in range(3):
            end_strays({b"TRAILBOSS_TOKEN=nobody"})
        each = (time.process_time() - begun) / 3
    else:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with _Lone(program, "nobody"):
            pass  # an end of file at once: it looks three times for survivors, in two files of each process
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        each = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 3
    count = sum(name.isdigit() for name in os.listdir("/proc"))
    print(f"{program}: {each * 1000:.1f} ms for {count} processes")
    assert each < 0.001 * max(count, 50)


def test_lines_in_pieces_and_lines_that_are_none(program: str) -> None:
    """What is told counts in whatever pieces it comes; what nobody can mean changes nothing."""
    told, taken_back, untold, stray = (_sleeper(f"{number}") for number in range(4))
    lines = (
        b"+%d\n+%d\n\n\0\xff\n+\n+x\n+99999999999\n+4194304\n" % (told.pid, taken_back.pid)
        + b"@/proc/no/such\xff folder\n@" + b"/" * 20_000 + b"\n"
        + b"x" + b"y" * 20_000 + b"\n"
        + b"+%s%d\n" % (b"0" * 9_000, untold.pid)
        + b"+ %d\n%d\n++%d\nq%d\n" % ((untold.pid,) * 4)
        + b"-%d\nq\nx3\n" % taken_back.pid
    )  # fmt: skip
    with _Lone(program, "nobody") as lone:
        for at in range(0, len(lines), 37):
            lone.tell(lines[at : at + 37])
        assert stray.wait(10) == -signal.SIGKILL
        assert told.poll() is None
        lone.tell(b"+%d" % untold.pid)  # without its end
    assert told.wait(10) == -signal.SIGKILL
    for process in (taken_back, untold):
        assert process.poll() is None
        process.kill()
        process.wait(10)


def test_marks_in_large_environments(program: str) -> None:
    """A mark is found behind, and between, as much environment as a process may have."""
    filler = {f"X{number}": "x" * 100_000 for number in range(12)}
    marked = [
        _sleeper("", {**filler, "TRAILBOSS_INSTANCE": "ours"}),
        _sleeper("", {"TRAILBOSS_INSTANCE": "ours"}),
    ]
    others = [
        _sleeper("", {**filler, "TRAILBOSS_INSTANCE": "ours2"}),
        _sleeper("", {"X": "TRAILBOSS_INSTANCE=ours"}),
    ]
    with _Lone(program, "ours"):
        pass
    for process in marked:
        assert process.wait(10) == -signal.SIGKILL
    for process in others:
        assert process.poll() is None
        process.kill()
        process.wait(10)


def test_strays_without_number(program: str) -> None:
    """Thousands of tokens at once are all looked for, whatever room there is for them."""
    first, last = _sleeper("0000"), _sleeper("2999")
    with _Lone(program, "nobody") as lone:
        lone.tell(b"".join(b"x%04d\n" % number for number in range(3000)))
        assert first.wait(10) == -signal.SIGKILL
        assert last.wait(10) == -signal.SIGKILL


class _Lone:
    """A guard without a supervisor: the test holds its lifeline, which ends with the block."""

    def __init__(self, program: str, mark: str) -> None:
        self.process = subprocess.Popen(
            [*GUARDS[program], mark], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    def __enter__(self) -> _Lone:
        assert self.process.stdout is not None
        assert self.process.stdout.read() == b"ready\n"  # and then it lets go of it
        return self

    def tell(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def __exit__(self, *_error: object) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            assert self.process.wait(20) == 0


def _sleeper(token: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    environment = environment or {"TRAILBOSS_TOKEN": token}
    return subprocess.Popen(["/bin/sleep", "600"], env=environment, start_new_session=True)


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
