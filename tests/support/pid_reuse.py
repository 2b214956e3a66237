"""Runs in a process namespace of its own, as its first process: a server whose dead workers' numbers go to foreign processes.

`pid_reuse.py FOLDER ROUNDS`, the configuration on standard input. The last line of its output is a JSON object: how
many numbers were `reused`, which foreign processes were `hurt`, and what was `left` of killed servers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trailboss_worker.sdk import RPC

FOLDER, ROUNDS = Path(sys.argv[1]), int(sys.argv[2])
foreign: list[int] = []


def until(check: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait until it holds, and reap what has come to us."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}\n{(FOLDER / 'log').read_text()[-3000:]}")
        time.sleep(0.01)


def start() -> subprocess.Popen[bytes]:
    """A server, ready."""
    with open(FOLDER / "log", "ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "trailboss", "serve", "-c", "trailboss.json"],
            cwd=FOLDER,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    until(lambda: len(workers()) == 3, "three workers")
    return server


def call(method: str, argument: object) -> Any:
    """One call."""
    with RPC(f"unix://{FOLDER}/rpc.sock", timeout_seconds=20) as rpc:
        return rpc.call(method, argument)


def workers() -> list[int]:
    """Ready workers."""
    try:
        rows = call("informer.Workers", "http")["workers"] or []
    except Exception:
        return []
    return [row["pid"] for row in rows if row["statusStr"] in ("ready", "working")]


def take(number: int) -> bool:
    """Start a foreign process, head of a group of its own, that has this number; False where another was faster."""
    for _ in range(20):
        if os.path.exists(f"/proc/{number}"):
            return False
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
        pid = os.fork()
        if not pid:
            os.setsid()
            os.closerange(0, 3)
            for name in range(1, 32):  # whatever reaches it is seen
                if name not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
                    signal.signal(name, signal.SIG_DFL)
            time.sleep(3600)
            os._exit(0)
        if pid == number:
            foreign.append(pid)
            return True
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return False


def reuse(number: int) -> bool:
    """Kill a worker and give its number away as soon as the server has reaped it."""
    before = born(number)
    os.kill(number, signal.SIGKILL)
    until(lambda: born(number) != before, f"{number} reaped")
    return take(number)


def born(number: int) -> str:
    """When the process with this number was started, "" where there is none; its successor may have the same number."""
    try:
        return Path(f"/proc/{number}/stat").read_text("latin-1").rpartition(")")[2].split()[19]
    except OSError:
        return ""


def living() -> list[int]:
    """Processes of this namespace but this one, reaping what has come to it."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                stat = Path(f"/proc/{name}/stat").read_text("latin-1").rpartition(")")[2].split()
            except OSError:
                continue
            if stat[0] not in ("Z", "X"):
                found.append(int(name))
    return found


def main() -> None:
    """Give numbers away while the server lives, resets, stops, and after it was killed."""
    (FOLDER / "trailboss.json").write_text(sys.stdin.read())
    server = start()
    reused = 0
    for number in range(2 * ROUNDS):
        if reused >= ROUNDS:
            break
        until(lambda: len(workers()) == 3, "the pool whole", 60)
        reused += reuse(workers()[number % 3])
        if number % 3 == 1:
            call("resetter.Reset", "http")
    until(lambda: len(workers()) == 3, "the pool whole", 60)
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0
    server = start()
    reused += reuse(workers()[0])
    until(lambda: len(workers()) == 3, "the pool whole", 60)
    server.kill()
    server.wait(20)
    until(lambda: set(living()) <= set(foreign), "the guard ended what was left", 10)
    alive = set(living())
    hurt = [pid for pid in foreign if pid not in alive]
    left = sorted(alive - set(foreign))
    print(json.dumps({"reused": reused, "hurt": hurt, "left": left}))


main()
