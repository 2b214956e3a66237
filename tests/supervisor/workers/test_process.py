"""What /proc says about a process that is about to end."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from trailboss.workers.process import says_dying

#: Fields 4 to 52 of a process that sleeps; [6] of all fields from the third on are the flags, [28] the pending signals.
SLEEPING = b"1234 (php worker) S 1 1234 1234 0 -1 4194304" + b" 0" * 21 + b" 0" + b" 0" * 20 + b"\n"


def changed(position: int, value: bytes) -> bytes:
    """SLEEPING with one field, counted from the state on, changed."""
    head, _, rest = SLEEPING.rpartition(b")")
    fields = rest.split()
    fields[position] = value
    return head + b") " + b" ".join(fields) + b"\n"


@pytest.mark.parametrize(
    ("stat", "dying"),
    [
        (SLEEPING, False),
        (changed(0, b"R"), False),
        (changed(0, b"T"), False),
        (changed(0, b"Z"), True),
        (changed(0, b"X"), True),
        (changed(6, b"4194308"), True),
        (changed(6, b"4195336"), True),
        (changed(6, b"4194560"), False),
        (changed(28, b"256"), True),
        (changed(28, b"16640"), True),
        (changed(28, b"16384"), False),
        (SLEEPING.replace(b"php worker", b"a) Z 1 (b"), False),
        (changed(0, b"Z").replace(b"php worker", b"\xff\n) S"), True),
        (b"", False),
        (SLEEPING[:60], False),
        (b"1234 (x) S nonsense", False),
    ],
)
def test_what_is_read(stat: bytes, dying: bool) -> None:
    """Dead, in its exit, or with SIGKILL waiting; anything else, and what cannot be read, lives."""
    assert says_dying(stat) is dying


def test_a_killed_process_is_dying_at_once() -> None:
    """From the call of kill() on the kernel says so, but for a step that no two looks meet."""
    for _ in range(20):
        with subprocess.Popen(["sleep", "60"]) as process:
            stat = Path(f"/proc/{process.pid}/stat")
            assert not says_dying(stat.read_bytes())
            os.kill(process.pid, signal.SIGKILL)
            looks = [stat.read_bytes() for _ in range(2)]
            assert any(map(says_dying, looks)), looks
