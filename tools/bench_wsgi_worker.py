"""The worker's share of a request: CPU of `trailboss-worker wsgi` and `asgi` per request, against a scripted server.

The server here does nothing but write one prepared frame and read the answer, over a pair of pipes as in production, so
what is printed is the worker alone: protocol, environ or scope, application, answer. User and system time are the
worker's own (from /proc), so the figure holds on a shared machine as well; the rate does not.

    python tools/bench_wsgi_worker.py [requests]
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trailboss_worker.protocol.control import encode_pid, encode_stop
from trailboss_worker.protocol.frames import JSON, FrameDecoder
from trailboss_worker.protocol.http_message import HttpRequest, encode_request_json
from trailboss_worker.protocol.payload import encode_payload

REQUESTS = 20_000
ROUNDS = 5
APPLICATIONS = """
def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]

async def asgi(scope, receive, send):
    assert scope["type"] == "http"
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})
"""
FEW = {"User-Agent": [b"wrk"], "Accept": [b"*/*"]}
BROWSER = {
    "User-Agent": [b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"],
    "Accept": [b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"],
    "Accept-Language": [b"en-US,en;q=0.5"],
    "Accept-Encoding": [b"gzip, deflate, br, zstd"],
    "Cookie": [b"sessionid=n5rcyw2b1q3tjd0vxh6k8u9a7m4z2s5e; csrftoken=Qm1VbG9yZW1pcHN1bWRvbG9y"],
    **{f"X-Custom-{number}": [b"value %d" % number] for number in range(15)},
}


def frame(headers: dict[str, list[bytes]]) -> bytes:
    """A request as the server writes it."""
    request = HttpRequest(
        remote_addr="127.0.0.1",
        protocol="HTTP/1.1",
        method="GET",
        uri="http://127.0.0.1:8000/hello?name=x",
        header=headers,
        cookies={},
        raw_query="name=x",
        parsed=False,
        uploads=b"",
        attributes={},
    )
    return encode_payload(encode_request_json(request), b"", JSON)


class Gateway:
    """One worker and the server's ends of its pipes."""

    def __init__(self, kind: str, folder: str) -> None:
        command = [
            os.environ.get("WORKER_PYTHON") or sys.executable,
            "-m",
            "trailboss_worker",
            kind,
            f"bench_apps:{kind}",
            "--chdir",
            folder,
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._write_fd = self.process.stdin.fileno()
        self._read_fd = self.process.stdout.fileno()
        decoder = FrameDecoder()
        os.write(self._write_fd, encode_pid(os.getpid()))
        while decoder.next_frame() is None:
            decoder.feed(os.read(self._read_fd, 65536))

    def cpu_seconds(self) -> tuple[float, float]:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return int(fields[11]) / tick, int(fields[12]) / tick

    def run(self, request: bytes, count: int) -> None:
        """Send the request so many times, one after the other."""
        write, read, write_fd, read_fd = os.write, os.read, self._write_fd, self._read_fd
        for _ in range(count):
            write(write_fd, request)
            answer = read(read_fd, 65536)
        assert answer.endswith(b"hello"), answer

    def close(self) -> None:
        """Stop it in order."""
        os.write(self._write_fd, encode_stop())
        assert self.process.wait(10) == 0
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


def measure(kind: str, headers: dict[str, list[bytes]], count: int, folder: str) -> str:
    """One line of figures: medians over the rounds."""
    gateway = Gateway(kind, folder)
    request = frame(headers)
    gateway.run(request, count // 4)
    users, systems, rates = [], [], []
    for _ in range(ROUNDS):
        user, system = gateway.cpu_seconds()
        began = time.perf_counter()
        gateway.run(request, count)
        rates.append(count / (time.perf_counter() - began))
        after = gateway.cpu_seconds()
        users.append((after[0] - user) / count * 1e6)
        systems.append((after[1] - system) / count * 1e6)
    gateway.close()
    total = statistics.median(map(sum, zip(users, systems, strict=True)))
    return (
        f"{kind}  {len(headers):2} headers  {total:5.1f} µs CPU a request "
        f"(user {statistics.median(users):4.1f}, system {statistics.median(systems):4.1f})  "
        f"{statistics.median(rates):7.0f} requests/s one after the other"
    )


def main() -> None:
    """Print every cell."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bench_apps.py").write_text(APPLICATIONS)
        for kind in ("wsgi", "asgi"):
            for headers in (FEW, BROWSER):
                print(measure(kind, headers, count, folder), flush=True)


if __name__ == "__main__":
    main()
