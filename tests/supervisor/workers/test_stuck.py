"""What the kernel tells of a process, in words, and which lines are a stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from trailboss.workers.stuck import Look, Speaker, StackLines, handles_signal, look_at, speaker_of
from trailboss_worker.protocol.control import encode_pid_answer, stack_signal_of
from trailboss_worker.protocol.frames import Frame, FrameDecoder


def hello(pid: int, **more: int) -> Frame:
    """A worker's handshake."""
    decoder = FrameDecoder(1000)
    decoder.feed(encode_pid_answer(pid, **more))  # type: ignore[arg-type]
    frame = decoder.next_frame()
    assert frame is not None
    return frame


@pytest.mark.parametrize(
    ("look", "text"),
    [
        (Look(), ""),
        (Look(state="R"), "it is computing"),
        (
            Look(state="S", syscall="read of 0 (pipe:[1])", wchan="pipe_read"),
            "it sleeps in read of 0 (pipe:[1]); kernel: pipe_read",
        ),
        (
            Look(state="D", wchan="a", kernel_stack=("a", "b")),
            "it waits in the kernel and cannot be interrupted; kernel: a < b",
        ),
        (Look(state="T", threads=3), "it is stopped (SIGSTOP); 3 threads"),
    ],
)
def test_in_words(look: Look, text: str) -> None:
    """One line, with what is known."""
    assert look.describe() == text


def test_a_process_that_reads() -> None:
    """The system call and what its descriptor is are named, where the machine lets us see them."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        look = Look()
        for _ in range(200):
            look = look_at(child.pid)
            if look.state == "S":
                break
            threading.Event().wait(0.01)
        assert look.can_be_asked
        if look.syscall:
            assert look.syscall.startswith(("read of 0 (pipe:[", "system call"))
    finally:
        child.kill()
        child.communicate()


def test_only_signals_for_programs_own_use_count() -> None:
    """A worker cannot have itself, or anybody else, killed or stopped by what it announces."""
    assert speaker_of(5, hello(5, stack_signal=signal.SIGUSR2)) == Speaker(5, signal.SIGUSR2)
    for number in (0, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, 99):
        assert speaker_of(5, hello(5, stack_signal=number)) == Speaker(5, 0)
    assert stack_signal_of(hello(5)) == 0


def test_nobody_outside_the_session_is_asked() -> None:
    """A worker that claims to be another process has no stack; the session's leader is looked at instead."""
    session = os.getsid(0)
    assert not Speaker(os.getpid(), signal.SIGUSR2).ask_for_stack(session + 1)
    assert Speaker(os.getpid(), signal.SIGUSR2).in_session(session) == Speaker(os.getpid(), signal.SIGUSR2)
    assert Speaker(os.getpid(), signal.SIGUSR2).in_session(session + 1) == Speaker(session + 1)
    assert not Speaker(2**22 + 1, signal.SIGUSR2).ask_for_stack(session)


def test_handlers_are_seen() -> None:
    """A signal counts as handled only where something in the process takes it."""
    assert not handles_signal(os.getpid(), signal.SIGUSR1)
    before = signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
    try:
        assert handles_signal(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not handles_signal(2**22 + 1, signal.SIGUSR1)


def test_lines_of_a_stack() -> None:
    """Everything that faulthandler writes is taken, nothing else."""
    program = (
        "import faulthandler, threading, time\n"
        "threading.Thread(target=time.sleep, args=(2,), daemon=True).start()\n"
        "faulthandler.dump_traceback(all_threads=True)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    stack = StackLines()
    written = [line for line in run.stderr.splitlines() if line]
    assert [line for line in written if not stack.take(line)] == []
    assert stack.lines == written
    for line in (
        "",
        "Thread pool exhausted",
        '  File "x.py" was not found',
        "Traceback (most recent call last):",
    ):
        assert not stack.take(line)
