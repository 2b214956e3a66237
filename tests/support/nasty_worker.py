"""A worker for the tests of known bugs, written by hand so that it starts in a few milliseconds and can do what no SDK would.

It answers requests by their path and jobs by their name. The file MODE says how it starts: empty or missing means well.
Every start is a line in the file BOOTS, every job one in JOBS_LOG. Frames as in wire protocol 1.
"""

from __future__ import annotations

import binascii
import fcntl
import json
import os
import signal
import struct
import time

held: list[bytes] = []
served = 0


def append(variable: str, line: dict[str, object]) -> None:
    """One JSON line more in the file that a variable names."""
    path = os.environ.get(variable)
    if path is None:
        return
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps({**line, "pid": os.getpid(), "time": time.time()}) + "\n")


def mode() -> str:
    """What MODE says now."""
    try:
        with open(os.environ["MODE"], encoding="ascii") as file:
            return file.read().strip()
    except (KeyError, OSError):
        return ""


def read_exactly(count: int) -> bytes:
    """So many bytes; ends at the end of the input."""
    parts = []
    while count:
        data = os.read(0, min(count, 1 << 16))
        if not data:
            raise SystemExit(0)
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def read_frame() -> tuple[int, bytes, bytes]:
    """Flags, context, body of the next frame."""
    head = read_exactly(12)
    words = (head[0] & 0x0F) - 3
    options = struct.unpack(f"<{words}I", read_exactly(4 * words)) if words > 0 else (0,)
    payload = read_exactly(struct.unpack("<I", head[2:6])[0])
    return head[1], payload[: options[0]], payload[options[0] :]


def frame(flags: int, options: tuple[int, ...], payload: bytes, length: int | None = None) -> bytes:
    """A frame; `length` is a lie about the payload."""
    head = struct.pack("<BBI", 0x13 + len(options), flags, len(payload) if length is None else length)
    head += struct.pack("<IBB", binascii.crc32(head), 0, 0)
    return head + struct.pack(f"<{len(options)}I", *options) + payload


def say(data: bytes, to: int = 1) -> None:
    """Write all of it."""
    view = memoryview(data)
    while view:
        view = view[os.write(to, view[: 1 << 16]) :]


def answer(flags: int, body: bytes) -> bytes:
    """The frame of a good answer."""
    context = b'{"status":200,"headers":{"Content-Type":["text/plain"]}}'
    return frame(flags, (len(context),), context + body)


def boot(how: str) -> None:
    """Start as MODE says."""
    if how == "exit0":
        raise SystemExit(0)
    if how == "exit1":
        raise SystemExit(1)
    if how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        time.sleep(3600)
    if how == "text":
        say(b"PHP Warning:  Undefined variable in /app/worker.php on line 3\n")
    if how == "byte":
        say(b"\n")
    if how == "huge":
        say(frame(0x01, (), b"", 2**32 - 1))
    if how == "cut":
        say(frame(0x01, (), b'{"pid":1}')[:-3])
        raise SystemExit(0)
    read_frame()
    say(frame(0x01, (), b'{"pid":%d}' % os.getpid()))


def family(own_session: bool) -> int:
    """A grandchild that lives on, as careless programs leave it: it inherits what there is."""
    pid = os.fork()
    if not pid:
        if own_session:
            os.setsid()
        time.sleep(3600)
    return pid


def magic(code: int) -> None:
    """A grandchild whose parent has gone, and that ends with a code which means something elsewhere."""
    pid = os.fork()
    if not pid:
        if not os.fork():
            time.sleep(0.05)
            os._exit(code)
        os._exit(0)
    os.waitpid(pid, 0)


def serve(flags: int, uri: str, body: bytes) -> None:
    """One request."""
    path, _, query = uri.partition("//")[2].partition("/")[2].partition("?")
    words = dict(pair.split("=") for pair in query.split("&") if pair)
    whole = answer(flags, b"%d" % os.getpid())
    if path == "slow":
        time.sleep(float(words["s"]))
    elif path == "kill":
        at = words["at"]
        if at.startswith("answer-"):
            say(whole[: int(at[7:])])
        elif at == "answered":
            say(whole)
        os.kill(os.getpid(), signal.SIGKILL)
    elif path == "raw":
        before = words.get("where", "instead")
        say(body if before != "behind" else whole + body)
        if words.get("then") == "exit":
            raise SystemExit(0)
        if before != "before":
            return
    elif path == "stderr":
        say(b"e" * int(words["n"]), 2)
    elif path == "grow":
        held.append(b"m" * (int(words["mb"]) << 20))
        time.sleep(float(words["s"]))
    elif path == "family":
        pids = [family(False), family(True)]
        whole = answer(flags, json.dumps([os.getpid(), *pids]).encode())
    elif path == "magic":
        for code in (0, 1, 3, 4, 77, 100, 255):
            magic(code)
    elif path == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        say(whole)
        time.sleep(3600)
    elif path == "size":
        whole = answer(flags, b"x" * int(words["n"]))
    say(whole)


def work(context: dict[str, object], body: bytes) -> None:
    """One job."""
    append("JOBS_LOG", {"id": context.get("id"), "job": context.get("job")})
    arguments = json.loads(body or b"{}")
    name = context.get("job")
    if name == "sleep":
        time.sleep(arguments["ms"] / 1000)
    elif name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "hang":
        time.sleep(3600)
    reply = b'{"type":' if name == "broken" else b'{"type":0,"data":{}}'
    say(frame(0x04, (0,), reply))


def main() -> None:
    """Live until told to stop."""
    global served
    append("BOOTS", {})
    how = mode()
    boot(how)
    while True:
        flags, context, body = read_frame()
        if flags & 0x01:
            if b"stop" in context + body:
                return
            continue
        served += 1
        if how == "dies-first":
            os._exit(9)
        request = json.loads(context)
        if "uri" in request:
            serve(flags, request["uri"], body)
        else:
            work(request, body)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
