"""A worker that ends at one exact point of its start, written by hand so that every point can be named.

The first line of the file named by KILL_PLAN (taken off it by the worker that reads it) is `POINT SIGNAL`; without a line
it is an honest jobs worker: acknowledges everything. Points: boot, request (the supervisor's hello read), part-N (N bytes
of our own hello written), hello (all of it), job (a job received), answer-N (N bytes of the answer written), answered.
"""

from __future__ import annotations

import binascii
import fcntl
import json
import os
import signal
import struct
import time


def take_order() -> tuple[str, int]:
    """The point at which to end, and by which signal."""
    path = os.environ.get("KILL_PLAN", "")
    try:
        file = open(path, "r+", encoding="ascii")  # noqa: SIM115
    except OSError:
        return "", 0
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        first, *rest = file.read().splitlines() or [""]
        file.seek(0)
        file.truncate()
        file.write("".join(f"{line}\n" for line in rest))
    point, _, number = first.partition(" ")
    return point, int(number or 0)


POINT, SIGNAL = take_order()


def reach(point: str) -> None:
    """End here where that is the order."""
    if point == POINT:
        os.kill(os.getpid(), SIGNAL)


def read_exactly(count: int) -> bytes:
    """So many bytes of standard input; ends at its end."""
    data = b""
    while len(data) < count:
        more = os.read(0, count - len(data))
        if not more:
            raise SystemExit(0)
        data += more
    return data


def read_frame() -> tuple[int, tuple[int, ...], bytes]:
    """Flags, options, payload of the next frame."""
    head = read_exactly(12)
    words = (head[0] & 0x0F) - 3
    options = struct.unpack(f"<{words}I", read_exactly(4 * words)) if words > 0 else ()
    return head[1], options, read_exactly(struct.unpack("<I", head[2:6])[0])


def frame(flags: int, options: tuple[int, ...], payload: bytes) -> bytes:
    """A frame."""
    head = struct.pack("<BBI", 0x13 + len(options), flags, len(payload))
    head += struct.pack("<IBB", binascii.crc32(head), 0, 0)
    return head + struct.pack(f"<{len(options)}I", *options) + payload


def write(data: bytes, name: str) -> None:
    """Write a frame, in two parts where the order is to end inside it."""
    if POINT.startswith(f"{name}-"):
        cut = int(POINT.rpartition("-")[2])
        os.write(1, data[:cut])
        reach(POINT)
        data = data[cut:]
    os.write(1, data)


def record(context: dict[str, object]) -> None:
    """One line of the ledger for a job that begins."""
    with open(os.environ["JOBS_LOG"], "a", encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        line = {name: context.get(name) for name in ("id", "job", "pipeline")}
        log.write(json.dumps({**line, "pid": os.getpid(), "time": time.time()}) + "\n")


def wait_for(variable: str) -> None:
    """Wait until the file named by an environment variable is there; not at all where it names none."""
    path = os.environ.get(variable)
    while path and not os.path.exists(path):
        time.sleep(0.01)


def main() -> None:
    """Shake hands and acknowledge jobs until told to stop."""
    reach("boot")
    wait_for("WAIT_FOR")
    read_frame()
    reach("request")
    write(frame(0x09, (), b'{"pid":%d}' % os.getpid()), "part")
    reach("hello")
    while True:
        flags, options, payload = read_frame()
        if flags & 0x01:
            if b"stop" in payload:
                return
            continue
        record(json.loads(payload[: options[0]]))
        reach("job")
        if b'"job":"hold"' in payload[: options[0]]:
            wait_for("HOLD_JOB")
        answer = b'{"type":0,"data":{}}'
        write(frame(0x04, (0,), answer), "answer")
        reach("answered")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
