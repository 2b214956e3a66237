"""A whole server, from outside: RPC, jobs, replacement, reset, start, idle; one run, real processes.

Starts ``trailboss serve`` with C or PHP workers in a temporary directory and drives it over its unix socket. The server's
CPU comes from /proc. RoadRunner's figures, measured once on a 2-core machine (docs/performance.md), stand beside each
row for orientation; only ratios within one run are claims.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trailboss.messages import jobs_pb2
from trailboss_worker.protocol.frames import JSON, PROTO, FrameDecoder
from trailboss_worker.protocol.rpc import RpcReply, decode_reply, encode_request

TOOLS = Path(__file__).parent
PROJECT = TOOLS.parent
CONFIG = """
version: "3"
rpc: {{listen: "unix://{socket}"}}
server: {{command: [{command}]}}
logs: {{mode: production, level: error}}
jobs:
  pool: {{num_workers: {workers}}}
  consume: [{consume}]
  pipelines: {{q: {{driver: memory}}, paused: {{driver: memory}}}}
"""


class Server:
    """One running server; `cpu` in seconds, `rss` in MiB."""

    def __init__(
        self, directory: str, command: list[str], workers: int, consume: str = "q", program: str = ""
    ) -> None:
        self.socket_path = os.path.join(directory, "rpc.sock")
        config = os.path.join(directory, ".rr.yaml")
        listed = ", ".join(json.dumps(part) for part in command)
        text = CONFIG.format(socket=self.socket_path, command=listed, workers=workers, consume=consume)
        Path(config).write_text(text, encoding="utf-8")
        self.begun = time.perf_counter()
        run = [program] if program else [sys.executable, "-m", "trailboss"]
        self.is_trailboss = not program
        self.process = subprocess.Popen([*run, "serve", "-c", config], stdout=subprocess.DEVNULL)

    def connect(self) -> socket.socket:
        """Connect as soon as the port is bound."""
        for _ in range(20_000):
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(self.socket_path)
                return sock
            except OSError:
                sock.close()
                if self.process.poll() is not None:
                    raise SystemExit("the server ended; see its output above") from None
                time.sleep(0.001)
        raise SystemExit("the server does not listen")

    def wait_ready(self) -> None:
        """Wait until trailboss.State says ready; RoadRunner is as soon as all its workers are."""
        with self.connect() as sock:
            if not self.is_trailboss:
                while not workers_of(sock):
                    time.sleep(0.005)
                return
            while call_json(sock, "trailboss.State", True)["phase"] != "ready":  # type: ignore[index]
                time.sleep(0.005)

    def cpu(self) -> float:
        """User and system time so far, in seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> float:
        """Resident memory in MiB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1048576

    def wakeups(self) -> dict[str, int]:
        """Voluntary context switches of each thread so far: how often it went to sleep and was woken."""
        counts = {}
        for status in Path(f"/proc/{self.process.pid}/task").glob("*/status"):
            for line in status.read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    counts[status.parent.name] = int(line.split()[1])
        return counts

    def stop(self) -> None:
        """SIGTERM, then wait."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


@contextlib.contextmanager
def serving(command: list[str], workers: int, consume: str = "q", program: str = "") -> Iterator[Server]:
    """A server for the length of the block: Trailboss, or another `program` with the same configuration."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(directory, command, workers, consume, program)
        try:
            yield server
        finally:
            server.stop()


def call(sock: socket.socket, method: str, argument: bytes, flags: int) -> RpcReply:
    """One call; raises SystemExit with the text of an error answer."""
    sock.sendall(encode_request(1, method, argument, flags))
    decoder = FrameDecoder()
    while (frame := decoder.next_frame()) is None:
        data = sock.recv(1 << 16)
        if not data:
            raise SystemExit(f"{method}: connection closed")
        decoder.feed(data)
    reply = decode_reply(frame)
    if reply.is_error:
        raise SystemExit(f"{method}: {bytes(reply.body).decode()}")
    return reply


def call_json(sock: socket.socket, method: str, argument: object) -> object:
    """One JSON call."""
    return json.loads(call(sock, method, json.dumps(argument).encode(), JSON).body)


def push_frame(count: int = 0, pipeline: str = "q") -> bytes:
    """A Push, or a PushBatch of `count` jobs."""

    def job() -> jobs_pb2.Job:
        options = jobs_pb2.Options(pipeline=pipeline, priority=10)
        return jobs_pb2.Job(job="App\\Task", id="0123456789abcdef", payload=b"x" * 20, options=options)

    if not count:
        return encode_request(1, "jobs.Push", jobs_pb2.PushRequest(job=job()).SerializeToString(), PROTO)
    batch = jobs_pb2.PushBatchRequest(jobs=[job() for _ in range(count)])
    return encode_request(1, "jobs.PushBatch", batch.SerializeToString(), PROTO)


def drive(server: Server, frame: bytes, clients: int, seconds: float) -> tuple[float, float]:
    """Keep one call under way on each of `clients` connections; returns calls per second and CPU µs a call."""
    poll = select.epoll()
    socks = {}
    for _ in range(clients):
        sock = server.connect()
        socks[sock.fileno()] = sock
        poll.register(sock.fileno(), select.EPOLLIN)
    cpu = server.cpu()
    begun = time.perf_counter()
    for sock in socks.values():
        sock.send(frame)
    count = 0
    if clients == 1:
        (sock,) = socks.values()
        while time.perf_counter() < begun + seconds:
            sock.recv(4096)
            count += 1
            sock.send(frame)
    else:
        while time.perf_counter() < begun + seconds:
            for fd, _ in poll.poll():
                sock = socks[fd]
                sock.recv(4096)
                count += 1
                sock.send(frame)
    took = time.perf_counter() - begun
    used = server.cpu() - cpu
    for sock in socks.values():
        sock.close()
    poll.close()
    return count / took, used / count * 1e6


def row(name: str, value: str, cpu: str = "", theirs: str = "") -> None:
    """Print one row."""
    print(f"{name:48} {value:>14} {cpu:>12}  {theirs}", flush=True)


def programs() -> list[tuple[str, str]]:
    """The servers that are measured side by side: ("", "") is Trailboss."""
    rival = os.environ.get("RR_BIN", "")
    return [("", ""), (rival, "RoadRunner: ")] if rival else [("", "")]


def bench_rpc(worker: str, seconds: float) -> None:
    """rpc.Version, Push and PushBatch."""
    version = encode_request(1, "rpc.Version", b"true", JSON)
    for program, label in programs():
        with serving([worker, "ack"], 1, "", program) as server:
            server.wait_ready()
            for name, frame, clients, theirs in (
                ("rpc.Version, 1 client", version, 1, "RoadRunner 11,900/s, 34 µs"),
                ("rpc.Version, 8 clients", version, 8, "RoadRunner 21,000/s, 34-59 µs"),
                ("jobs.Push, 1 client", push_frame(pipeline="paused"), 1, "RoadRunner 9,500/s"),
                ("jobs.Push, 8 clients", push_frame(pipeline="paused"), 8, "RoadRunner 23,000/s"),
            ):
                rate, cpu = drive(server, frame, clients, seconds)
                row(label + name, f"{rate:,.0f}/s", f"{cpu:.1f} µs", "" if label else theirs)
            rate, cpu = drive(server, push_frame(100, "paused"), 1, seconds)
            theirs = "" if label else "RoadRunner 91,000/s"
            row(f"{label}jobs.PushBatch of 100, jobs", f"{rate * 100:,.0f}/s", f"{cpu / 100:.1f} µs", theirs)


def bench_consume(command: list[str], name: str, jobs: int, yardstick: str) -> None:
    """A full memory pipeline consumed by 4 constant workers; beside it the C dispatcher over the same workers."""
    dispatched = subprocess.run(
        [yardstick, "4", "4", str(jobs * 2), *command], check=True, capture_output=True, text=True
    )
    limit = float(dispatched.stdout.split()[0])
    for program, label in programs():
        with serving(command, 4, "", program) as server:
            server.wait_ready()
            with server.connect() as sock:
                batch = push_frame(1000)
                for _ in range(jobs // 1000):
                    sock.sendall(batch)
                    sock.recv(4096)
                cpu = server.cpu()
                begun = time.perf_counter()
                call(sock, "jobs.Resume", jobs_pb2.Pipelines(pipelines=["q"]).SerializeToString(), PROTO)
                while unfinished(sock):
                    time.sleep(0.02)
                took = time.perf_counter() - begun
                used = server.cpu() - cpu
            row(
                f"{label}consume, 4 constant workers ({name})",
                f"{jobs / took:,.0f}/s",
                f"{used / jobs * 1e6:.1f} µs",
                f"{jobs / took / limit:.2f}x the C dispatcher"
                + ("" if label else "; RoadRunner 58,000/s, 24 µs"),
            )


def unfinished(sock: socket.socket) -> int:
    """Jobs of the pipeline q that wait or run, from jobs.Stat."""
    stats = jobs_pb2.Stats.FromString(call(sock, "jobs.Stat", b"", PROTO).body)
    return sum(stat.active + stat.delayed for stat in stats.stats if stat.pipeline == "q")


def bench_memory(command: list[str], name: str, jobs: int) -> None:
    """Memory at start and after many jobs that were consumed as they came in."""
    with serving(command, 4) as server:
        server.wait_ready()
        start_rss = server.rss()
        batch = push_frame(500)
        with server.connect() as sock:
            for pushed in range(500, jobs + 1, 500):
                sock.sendall(batch)
                sock.recv(4096)
                while done_of(sock) < pushed - 500:
                    time.sleep(0.002)
        row(
            f"memory at start, after {jobs:,} jobs ({name})",
            f"{start_rss:.0f} MiB",
            f"{server.rss():.0f} MiB",
            "RoadRunner 41, 52 MiB",
        )


def done_of(sock: socket.socket) -> int:
    """Jobs done so far."""
    return sum(int(line["done"]) for line in rows_of(call_json(sock, "jobs.Books", True)))


def rows_of(books: object) -> list[dict[str, int]]:
    """The rows of jobs.Books, whichever way they are wrapped."""
    if isinstance(books, dict):
        books = books.get("pipelines", books)
    if isinstance(books, dict):
        return [value for value in books.values() if isinstance(value, dict)]
    assert isinstance(books, list)
    return books


def bench_replacement(command: list[str], name: str, kills: int) -> None:
    """SIGKILL an idle worker; how long until another one is ready in its place?"""
    floor = own_boot(command)
    with serving(command, 4) as server:
        server.wait_ready()
        times = []
        with server.connect() as sock:
            for _ in range(kills):
                before = {worker["pid"] for worker in workers_of(sock)}
                victim = min(before)
                os.kill(victim, signal.SIGKILL)
                begun = time.perf_counter()
                while True:
                    now = {worker["pid"] for worker in workers_of(sock) if worker["status"] == 1}
                    if len(now) == 4 and victim not in now:
                        break
                    if time.perf_counter() - begun > 20:
                        raise SystemExit("no replacement within 20 s")
                times.append((time.perf_counter() - begun) * 1000)
                time.sleep(0.02)
                sock.sendall(push_frame())  # a worker that has run something is replaced without back-off
                sock.recv(4096)
        p50 = statistics.median(times)
        p99 = statistics.quantiles(times, n=100)[98]
        row(
            f"kill to replacement ready ({name})",
            f"{p50:.1f}/{p99:.1f} ms",
            f"floor {floor:.1f}",
            "p50/p99; RoadRunner 23/45 ms at a floor of 13.6",
        )


def own_boot(command: list[str]) -> float:
    """The worker's own boot in milliseconds, spawn to hello, without a supervisor."""
    from trailboss_worker.protocol.control import encode_pid

    times = []
    for _ in range(15):
        begun = time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(encode_pid(1))
            process.stdin.flush()
            process.stdout.read(12)
            times.append((time.perf_counter() - begun) * 1000)
            process.kill()
    return statistics.median(times)


def workers_of(sock: socket.socket) -> list[dict[str, int]]:
    """Rows of informer.Workers."""
    answer = call_json(sock, "informer.Workers", "jobs")
    assert isinstance(answer, dict)
    return answer["workers"] or []


def bench_reset(command: list[str], name: str) -> None:
    """Reset of 4 workers, idle."""
    floor = own_boot(command)
    with serving(command, 4) as server:
        server.wait_ready()
        times = []
        with server.connect() as sock:
            for _ in range(5):
                begun = time.perf_counter()
                call_json(sock, "resetter.Reset", "jobs")
                times.append((time.perf_counter() - begun) * 1000)
        row(
            f"reset of 4 workers ({name})",
            f"{statistics.median(times):.0f} ms",
            f"floor {floor:.1f}",
            "RoadRunner 1,047 ms",
        )


def bench_start(command: list[str], name: str) -> None:
    """From exec to the first answered job, 1 worker; and the version."""
    times = []
    for _ in range(5):
        with serving(command, 1) as server, server.connect() as sock:
            sock.sendall(push_frame())
            sock.recv(4096)
            while done_of(sock) < 1:
                time.sleep(0.001)
            times.append((time.perf_counter() - server.begun) * 1000)
    row(f"start to first answered job ({name})", f"{statistics.median(times):.0f} ms", "", "RoadRunner 45 ms")
    times = []
    program = shutil.which("trailboss", path=str(Path(sys.executable).parent)) or "trailboss"
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run([program, "--version"], check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - begun) * 1000)
    row("trailboss --version", f"{statistics.median(times):.0f} ms", "", "goal 100 ms")


def bench_idle(command: list[str], name: str, seconds: float) -> None:
    """8 idle workers."""
    with serving(command, 8) as server:
        server.wait_ready()
        time.sleep(12)  # threads that were used for the start end by themselves after 10 s
        cpu, before = server.cpu(), server.wakeups()
        time.sleep(seconds)
        rate = sum(count - before.get(thread, 0) for thread, count in server.wakeups().items()) / seconds
        share = (server.cpu() - cpu) / seconds * 100
        row(
            f"idle, 8 workers ({name})",
            f"{rate:.1f} wake-ups/s",
            f"{share:.2f} % CPU",
            "RoadRunner 8.5/s, 0.03 %",
        )
        row("  memory", f"{server.rss():.0f} MiB", "", "RoadRunner 41 MiB")


def main() -> None:
    """Run the named parts, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "parts", nargs="*", help="rpc, consume, memory, replace, reset, start, idle (default: all)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="length of the measurements")
    options = parser.parse_args()
    scale = options.scale
    with tempfile.TemporaryDirectory() as directory:
        worker = str(Path(directory) / "echo_worker")
        source = str(TOOLS / "bench_workers" / "echo_worker.c")
        yardstick = str(Path(directory) / "dispatcher")
        for target, program in ((worker, source), (yardstick, source.replace("echo_worker", "dispatcher"))):
            subprocess.run(["gcc", "-O2", "-D_GNU_SOURCE", "-o", target, program], check=True)
        ack = [worker, "ack"]
        kinds = [(ack, "C")]
        if shutil.which("php"):
            kinds.append((["php", str(PROJECT / "tests" / "php" / "constant_worker.php")], "PHP"))
        parts: dict[str, Callable[[], object]] = {
            "rpc": lambda: bench_rpc(worker, 3 * scale),
            "consume": lambda: [
                bench_consume(command, name, int(60_000 * scale), yardstick) for command, name in kinds
            ],
            "memory": lambda: bench_memory(ack, "C", int(60_000 * scale)),
            "replace": lambda: [bench_replacement(command, name, int(60 * scale)) for command, name in kinds],
            "reset": lambda: [bench_reset(command, name) for command, name in kinds],
            "start": lambda: [bench_start(command, name) for command, name in kinds],
            "idle": lambda: bench_idle(ack, "C", 20 * scale),
        }
        print(f"{'cell':48} {'Trailboss':>14} {'CPU':>12}  for orientation")
        for name in options.parts or parts:
            parts[name]()


if __name__ == "__main__":
    main()
