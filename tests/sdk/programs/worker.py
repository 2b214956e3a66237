"""A worker whose behaviour the request's body chooses: what the scenario tests replay the server's lines to."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from trailboss_worker.sdk import Payload, Worker


def chunks(count: int) -> Iterator[bytes]:
    """So many chunks, and a last one as the generator's value; says when it was closed early."""
    try:
        for number in range(count):
            yield b"chunk%d" % number
    finally:
        print("generator closed", file=sys.stderr)
    return b"last"  # type: ignore[return-value]


def failing_chunks() -> Iterator[bytes]:
    yield b"first"
    raise RuntimeError("no second chunk")


def print_everywhere() -> None:
    """Every way of writing to standard output that there is."""
    print("by print")
    os.write(1, b"by os.write\n")
    subprocess.run(["echo", "by a child"], check=True)
    libc = ctypes.CDLL(None)
    libc.puts(b"by libc")
    libc.fflush(None)


def answer(worker: Worker, payload: Payload) -> None:
    verb, _, argument = payload.body.decode("latin-1").partition(" ")
    if verb == "fail":
        worker.error(argument)
    elif verb == "stop":
        worker.stop()
    elif verb == "stream":
        worker.stream(chunks(int(argument)), payload.context, payload.flags & 0x88)
    elif verb == "endless":
        completed = worker.stream(chunks(1 << 60), payload.context)
        print("stream completed" if completed else "stream stopped", file=sys.stderr)
    elif verb == "failing-stream":
        try:
            worker.stream(failing_chunks(), payload.context)
        except RuntimeError as error:
            worker.error(str(error))
    elif verb == "print":
        print_everywhere()
        worker.respond("printed")
    elif verb == "read":
        worker.respond(repr(sys.stdin.read()))
    elif verb == "sleep":
        print("sleeping", file=sys.stderr)
        time.sleep(float(argument))
        worker.respond("slept")
    elif verb == "big":
        worker.respond(b"b" * int(argument), payload.context)
    elif verb == "twice":
        worker.respond("one")
        worker.respond("two")
    elif verb == "forget":
        pass
    else:
        worker.respond(payload.body, payload.context, payload.flags & 0x80)


def main() -> None:
    print("printed before the worker was made")
    print("booting", file=sys.stderr)
    with Worker() as worker:
        print("made", file=sys.stderr)
        while (payload := worker.wait_payload()) is not None:
            answer(worker, payload)
    print("left the loop", file=sys.stderr)


if __name__ == "__main__":
    main()
