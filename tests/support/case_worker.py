"""A web worker that does by order what RoadRunner cannot bear: the path says what, the query how much.

Any path answers with the pid. Built on the SDK's Worker, with bytes of its own on the relay where the SDK would refuse.
`/leave` answers and ends at once; `/garbage` writes bytes that are no frame; `/children` leaves children that hold every
pipe; `/keep` and `/burst` use memory; `/slow` waits; `/call` calls the server about the worker's own pool.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.parse

from trailboss_worker.protocol.payload import encode_payload
from trailboss_worker.sdk import RPC, RpcError, Worker

GOOD = b'{"status":200,"headers":{"Content-Type":["text/plain"]}}'
#: No first byte of a frame, nor anything else of one.
GARBAGE = b"PHP Warning:  Undefined variable $x in /app/worker.php on line 3\n"
#: Children that end when their parent has ended long before.
ORPHANS = "for number in 1 2 3 4 5; do sleep 0.05 >/dev/null 2>&1 </dev/null & done"
kept: list[bytes] = []


def end(how: str) -> None:
    """End at once."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(int(how))


def write(worker: Worker, data: bytes) -> None:
    """Bytes as they are, past the SDK."""
    view = memoryview(data)
    while view:
        view = view[os.write(worker._relay.write_fd, view) :]


def garbage(worker: Worker, flags: int, where: str, count: int) -> None:
    """So many bytes that are no frame, before, inside or after the answer, or alone."""
    text = (GARBAGE * (count // len(GARBAGE) + 1))[:count]
    answer = encode_payload(GOOD, b"good" * 100, flags)
    if where == "after":
        worker.respond(b"good" * 100, GOOD, flags)
        write(worker, text)
        return
    parts = {"before": text + answer, "inside": answer[:7] + text + answer[7:], "alone": text}
    write(worker, parts[where])
    time.sleep(3600)


def leave_children(worker: Worker) -> None:
    """Two children that sleep and hold every pipe of ours, one in a session of its own."""
    for fd in (worker._relay.read_fd, worker._relay.write_fd):
        os.set_inheritable(fd, True)
    for own_session in (False, True):
        subprocess.Popen(["sleep", "600"], close_fds=False, start_new_session=own_session)


def call(method: str) -> str:
    """Call about the own pool; the error, or nothing."""
    try:
        with RPC.from_environment(timeout_seconds=20) as rpc:
            rpc.call(method, "http")
    except RpcError as error:
        return str(error)
    return ""


def answer(worker: Worker, path: str, query: dict[str, str], flags: int) -> None:
    """Do what the path says."""
    body = b"%d" % os.getpid()
    if path == "/leave":
        worker.respond(b"x" * int(query["n"]), GOOD, flags)
        end(query["how"])
    elif path == "/garbage":
        garbage(worker, flags, query["where"], int(query["n"]))
        return
    elif path == "/children":
        leave_children(worker)
        if "how" in query:
            end(query["how"])
    elif path == "/orphans":
        subprocess.run(["sh", "-c", ORPHANS], check=True)
    elif path == "/keep":
        kept.append(b"m" * (int(query["mb"]) << 20))
    elif path == "/burst":
        try:
            size = len(b"m" * (int(query["mb"]) << 20))
        except MemoryError:
            size = 0
        body = b"%d" % size
    elif path == "/slow":
        time.sleep(int(query["ms"]) / 1000)
    elif path == "/call":
        body = call(query["method"]).encode()
    worker.respond(body, GOOD, flags)


def main() -> None:
    """Answer until told to stop."""
    with Worker() as worker:
        while (payload := worker.wait_payload()) is not None:
            target = urllib.parse.urlsplit(json.loads(payload.context)["uri"])
            query = dict(urllib.parse.parse_qsl(target.query))
            answer(worker, target.path, query, payload.flags)


if __name__ == "__main__":
    main()
