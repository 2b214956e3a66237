"""The web server beside what people use instead: one run, every server in turn, medians of the rounds' ratios.

    tools/bench http [--cells WORD ...] [--peers NAME,...] [--rounds N] [--scale N] [--workers N]
                     [--patience SECONDS] [--json FILE] [--markdown FILE] [--list]

Each cell asks every server in turn, as many rounds as asked for, and prints requests/s, latencies, processor time a
request of supervisor and workers, memory, failed requests, and what became of the goals. Peers that are not here are
left out. Processor time a request holds on a machine that does other things, rates and latencies do not; where others
took much of it meanwhile, the cell says so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_http_figures import (
    MARKDOWN_HEADING,
    NGINX,
    NOISE_CORES_MAX,
    OURS,
    ROADRUNNER,
    Cell,
    Goal,
    Load,
    Quantity,
    Sample,
    Verdict,
    as_json,
    as_markdown,
    goal_as_json,
    judge,
    parse_h2load,
    parse_wrk,
    render,
    summary,
)
from bench_http_servers import (
    FILES,
    GRANIAN,
    GUNICORN,
    LARGE_BYTES,
    TICK,
    Server,
    ServerFailed,
    servers_of,
    starting,
)

IDLE_CONNECTIONS = 5000
POST_BYTES = 10_240
MIB = 1 << 20

BROWSER_HEADERS = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "https://www.example.com/articles/2026/11/24/a-page?from=list&page=2",
    "Cookie": "sessionid=n5rcyw2b1q3tjd0vxh6k8u9a7m4z2s5e; csrftoken=Qm1VbG9yZW1pcHN1bWRvbG9y; theme=dark",
    "DNT": "1",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Sec-Fetch-User": "?1",
    "Sec-GPC": "1",
    "Priority": "u=0, i",
    "Pragma": "no-cache",
    "Cache-Control": "no-cache",
    "If-None-Match": '"33a64df551425fcc55e4d42a148795d9f25f89d4"',
    "If-Modified-Since": "Tue, 24 Nov 2026 10:00:00 GMT",
    "X-Requested-With": "XMLHttpRequest",
}


def _php_goals(rate: float, *, constant: bool = False) -> tuple[Goal, ...]:
    processor = Goal(Quantity.SUPERVISOR, 17) if constant else Goal(Quantity.SUPERVISOR, 0.6, ROADRUNNER)
    return (
        Goal(Quantity.RATE, rate, ROADRUNNER),
        Goal(Quantity.RATE, 1.3, NGINX),
        Goal(Quantity.P99, 0.5, ROADRUNNER),
        processor,
        Goal(Quantity.MEMORY, 1.0, ROADRUNNER),
    )


_WSGI_GOALS = (
    Goal(Quantity.RATE, 3.0, GUNICORN),
    Goal(Quantity.RATE, 1.1, GRANIAN),
    Goal(Quantity.ALL, 45),
)
_DJANGO_GOALS = (Goal(Quantity.RATE, 1.4, GUNICORN),)


def _many(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections} connections"


def _cells() -> list[Cell]:
    cells = []
    for connections in (1, 16, 64, 256):
        busy = connections in (16, 64)
        cells.append(
            Cell(
                f"constant PHP worker, {_many(connections)}",
                "php",
                connections,
                "plain",
                f"constant {connections}",
                _php_goals(2.0 if busy else 1.5, constant=busy),
            )
        )
    cells += [
        Cell(
            f"PSR-7 worker, {_many(connections)}",
            "php psr",
            connections,
            "plain",
            f"psr {connections}",
            _php_goals(2.5),
        )
        for connections in (1, 16, 64, 256)
    ]
    for name, kind, request, measured_as in (
        ("10 kB POST", "php", "post", "post"),
        ("100 kB answer", "php answer", "plain", "answer"),
        ("20 browser headers", "php", "headers", "headers"),
    ):
        cells += [
            Cell(
                f"{name}, constant PHP worker, {connections} connections",
                kind,
                connections,
                request,
                f"{measured_as} {connections}",
                _php_goals(1.5),
            )
            for connections in (16, 64)
        ]
    cells += [
        Cell(
            "20 browser headers, PSR-7 worker, 64 connections",
            "php psr",
            64,
            "headers",
            "psr headers 64",
            _php_goals(1.5),
        ),
        Cell(
            "access log on, constant PHP worker, 64 connections",
            "php, log on",
            64,
            "plain",
            "log 64",
            _php_goals(1.5),
        ),
        Cell("TLS, constant PHP worker, 64 connections", "php tls", 64),
        Cell("HTTP/2 over TLS, constant PHP worker, 16 connections of 8 streams", "php h2", 16, "h2"),
    ]
    for connections in (1, 64):
        goals = (
            _WSGI_GOALS if connections > 1 else ()
        )  # alone, a request through two processes is not the shorter way
        cells.append(Cell(f"WSGI hello, {_many(connections)}", "wsgi", connections, goals=goals))
        cells.append(Cell(f"ASGI hello, {_many(connections)}", "asgi", connections))
        cells.append(Cell(f"Django view, {_many(connections)}", "django", connections, goals=_DJANGO_GOALS))
    return cells


CELLS = _cells()


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says."""

    rounds: int
    seconds: int
    workers: int
    peers: tuple[str, ...] | None
    words: tuple[str, ...]
    patience: float = 0.0

    def wants(self, name: str) -> bool:
        """Whether a cell of that name is asked for."""
        return not self.words or any(word.lower() in name.lower() for word in self.words)


# --- one measurement --------------------------------------------------------------------------------------------------


def client_command(cell: Cell, server: Server, seconds: int, folder: Path) -> list[str]:
    """The client for one measurement of a cell."""
    if cell.request == "h2":
        log = str(folder / "h2load.log")
        return [
            "h2load",
            f"-c{cell.connections}",
            "-m8",
            f"-D{seconds}",
            f"--log-file={log}",
            server.url,
        ]
    command = ["wrk", "-t1", f"-c{cell.connections}", f"-d{seconds}s", "--latency"]
    if cell.request == "post":
        script = folder / "post.lua"
        script.write_text(
            f'wrk.method = "POST"; wrk.body = string.rep("x", {POST_BYTES}); '
            'wrk.headers["Content-Type"] = "application/octet-stream"'
        )
        command += ["-s", str(script)]
    elif cell.request == "headers":
        for name, value in BROWSER_HEADERS.items():
            command += ["-H", f"{name}: {value}"]
    return [*command, server.url]


def run_client(command: Sequence[str]) -> Load:
    """Run wrk or h2load and read its figures. Raises ServerFailed."""
    log = Path(next((part.partition("=")[2] for part in command if part.startswith("--log-file=")), ""))
    if log.name:
        log.unlink(missing_ok=True)
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        if command[0] == "h2load":
            if "Application protocol: h2" not in ran.stdout and "Application protocol:" in ran.stdout:
                raise ServerFailed("HTTP/2 is not available yet: the server has chosen HTTP/1.1")
            return parse_h2load(ran.stdout, log.read_text())
        return parse_wrk(ran.stdout)
    except (ValueError, OSError) as error:
        raise ServerFailed(f"{command[0]} says: {(ran.stdout + ran.stderr).strip()[-500:]}") from error


class Noise:
    """How many cores programs took that are neither a server measured nor its client."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._begun = time.monotonic()
        self._all, self._ours = self._take()

    def _take(self) -> tuple[float, float]:
        fields = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        busy = (sum(fields[:3]) + sum(fields[5:8])) / TICK
        ours = sum(os.times()[:4])  # this program and the clients it has waited for
        for server in self._servers:
            usage = server.usage()
            ours += usage.supervisor + usage.workers
        return busy, ours

    def cores(self) -> float:
        """The figure since this was made."""
        every, ours = self._take()
        took = time.monotonic() - self._begun
        return max(0.0, (every - self._all - (ours - self._ours)) / took)


def measure(cell: Cell, server: Server, command: Sequence[str]) -> Sample:
    """One round of one server."""
    server.look_around()
    noise = Noise([server])
    before = server.usage()
    load = run_client(command)
    after = server.usage()
    count = max(load.requests, 1)
    return Sample(
        load,
        (after.supervisor - before.supervisor) / count * 1e6,
        (after.workers - before.workers) / count * 1e6,
        server.rss_mib(),
        server.pss_mib(),
        noise.cores(),
    )


def wait_until_quiet(give_up: float) -> None:
    """Wait until others leave the machine alone, `give_up` at the latest."""
    while time.monotonic() < give_up:
        noise = Noise([])
        time.sleep(0.1)
        if noise.cores() <= NOISE_CORES_MAX:
            return


def measure_quietly(cell: Cell, server: Server, command: Sequence[str], patience: float) -> Sample:
    """The least disturbed of what is measured within `patience` seconds: others of the machine may be waited for."""
    give_up = time.monotonic() + patience
    best: Sample | None = None
    while best is None or (best.foreign_cores > NOISE_CORES_MAX and time.monotonic() < give_up):
        wait_until_quiet(give_up)
        sample = measure(cell, server, command)
        if best is None or sample.foreign_cores < best.foreign_cores:
            best = sample
    return best


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each begins as often as the others, and follows each of the others."""
    shift = number % len(names)
    turned = [*names[shift:], *names[:shift]]
    return turned if number // len(names) % 2 == 0 else turned[::-1]


def run_cell(cell: Cell, servers: dict[str, Server], settings: Settings) -> dict[str, list[Sample]]:
    """All rounds of a cell."""
    samples: dict[str, list[Sample]] = {name: [] for name in servers}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.rounds):
            for name in in_turn(list(servers), number):
                server = servers[name]
                command = client_command(cell, server, settings.seconds, Path(folder))
                samples[name].append(measure_quietly(cell, server, command, settings.patience))
    return samples


@contextlib.contextmanager
def group(kind: str, settings: Settings, *, warm: bool = True) -> Iterator[dict[str, Server]]:
    """All servers of a kind, warmed up. Raises ServerFailed when ours does not start; peers that do not are left out."""
    names, remarks = servers_of(kind, settings.peers)
    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for name in names:
            try:
                servers[name] = stack.enter_context(starting(name, kind, settings.workers))
            except ServerFailed as error:
                if name == OURS:
                    raise
                remarks.append(str(error))
        for remark in remarks:
            say_once(f"({remark})")
        if warm:
            with tempfile.TemporaryDirectory() as folder:
                for server in servers.values():
                    cell = Cell("warm-up", kind, 16, "h2" if kind == "php h2" else "plain")
                    run_client(client_command(cell, server, 1, Path(folder)))
        yield servers


_said: set[str] = set()


def say_once(text: str) -> None:
    """Print a remark that would come with every cell."""
    if text not in _said:
        _said.add(text)
        print(text, flush=True)


# --- cells that are no load of small requests -------------------------------------------------------------------------


@dataclass
class Special:
    """A cell of its own kind: the lines it prints, what became of its goals, and its figures for files."""

    lines: list[str]
    verdicts: list[Verdict]
    figures: dict[str, object]
    errors: int = 0


def read_answer(sock: socket.socket, buffer: bytearray) -> tuple[int, int]:
    """Read one answer; returns its status and how long its body is. Bodies are counted, not kept."""
    view = memoryview(buffer)
    head = b""
    while b"\r\n\r\n" not in head:
        got = sock.recv_into(buffer)
        if not got:
            raise ServerFailed("the connection ended inside an answer's head")
        head += bytes(view[:got])
    head, _, rest = head.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    fields = {
        name.lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if b"content-length" in fields:
        length = int(fields[b"content-length"])
        left = length - len(rest)
        while left > 0:
            got = sock.recv_into(buffer, min(left, len(buffer)))
            if not got:
                raise ServerFailed("the connection ended inside an answer's body")
            left -= got
        return status, length
    total = len(rest)
    tail = rest[-5:]
    chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
    while not (chunked and tail.endswith(b"0\r\n\r\n")):
        got = sock.recv_into(buffer)
        if not got:
            if chunked:
                raise ServerFailed("the connection ended inside a chunked answer")
            break
        total += got
        tail = (tail + bytes(view[max(0, got - 5) : got]))[-5:]
    return status, total


def ask(server: Server, method: str = "GET", body: bytes = b"") -> tuple[float, int, int]:
    """One request over a connection of its own: seconds, status, and bytes of the answer."""
    buffer = bytearray(MIB)
    with socket.create_connection(("127.0.0.1", server.port), 60) as sock:
        head = f"{method} {server.path} HTTP/1.1\r\nHost: localhost\r\n"
        if method == "POST":
            head += f"Content-Type: application/octet-stream\r\nContent-Length: {len(body)}\r\n"
        begun = time.perf_counter()
        sock.sendall(head.encode() + b"\r\n")
        if body:
            sock.sendall(body)
        status, size = read_answer(sock, buffer)
        return time.perf_counter() - begun, status, size


def large(name: str, kind: str, method: str, settings: Settings) -> Special:
    """100 MiB one way or the other: MB/s, how much the processes grow meanwhile, processor time."""
    body = bytes(LARGE_BYTES) if method == "POST" else b""
    lines = [
        name,
        f"  {'':18} {'MB/s':>11} {'CPU ms':>8} {'supervisor grows by':>20} {'a worker grows to':>18}",
    ]
    figures: dict[str, object] = {}
    verdicts: list[Verdict] = []
    errors = 0
    with group(kind, settings, warm=False) as servers:
        rates: dict[str, list[float]] = {server: [] for server in servers}
        growth: dict[str, list[tuple[float, float, float]]] = {server: [] for server in servers}
        for server in servers.values():
            ask(server, method, body[: len(body) // 100])
        for number in range(settings.rounds):
            for key in in_turn(list(servers), number):
                server = servers[key]
                wait_until_quiet(time.monotonic() + settings.patience)
                server.look_around()
                server.reset_peak()
                rss, before = server.rss_mib(), server.usage()
                seconds, status, size = ask(server, method, body)
                if status != 200 or (not body and size < LARGE_BYTES):
                    errors += 1
                peak, worker = server.peak_mib()
                after = server.usage()
                used = after.supervisor + after.workers - before.supervisor - before.workers
                rates[key].append(LARGE_BYTES / seconds / 1e6)
                growth[key].append((peak - rss, worker, used * 1000))
        for key in servers:
            rate = statistics.median(rates[key])
            grows, worker, used = (statistics.median(column) for column in zip(*growth[key], strict=True))
            lines.append(f"  {key:18} {rate:11,.0f} {used:8.0f} {grows:16.1f} MiB {worker:14.0f} MiB")
            figures[key] = {
                "megabytes_per_second": rate,
                "supervisor_grows_mib": grows,
                "worker_peak_mib": worker,
            }
            if key == OURS:
                verdicts = [
                    Verdict(Goal(Quantity.THROUGHPUT, 400), rate),
                    Verdict(Goal(Quantity.GROWTH, 16), grows),
                ]
    lines += [f"    {verdict}" for verdict in verdicts]
    if errors:
        lines.append(f"    ERRORS: {errors}")
    return Special(lines, verdicts, figures, errors)


def idle(settings: Settings) -> Special:
    """5,000 kept connections: bytes each, and what they do to 64 that are active."""
    lines = [f"{IDLE_CONNECTIONS:,} idle kept connections, constant PHP worker"]
    cell = Cell("active", "php", 64)
    figures: dict[str, object] = {}
    verdicts: list[Verdict] = []
    errors = 0
    with group("php", settings) as servers, tempfile.TemporaryDirectory() as folder:
        for name, server in servers.items():
            command = client_command(cell, server, settings.seconds, Path(folder))
            alone = [
                measure_quietly(cell, server, command, settings.patience) for _ in range(settings.rounds)
            ]
            before = server.rss_mib()
            with contextlib.ExitStack() as stack:
                buffer = bytearray(65536)
                for _ in range(IDLE_CONNECTIONS):
                    sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
                    sock.sendall(f"GET {server.path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                    errors += read_answer(sock, buffer)[0] != 200
                each = (server.rss_mib() - before) * 1024 / IDLE_CONNECTIONS
                beside = [
                    measure_quietly(cell, server, command, settings.patience) for _ in range(settings.rounds)
                ]
            # Processor time a request holds on a busy machine; the rate need not.
            share = statistics.median(s.load.rate for s in beside) / statistics.median(
                s.load.rate for s in alone
            )
            cost = statistics.median(s.supervisor_us for s in beside) / statistics.median(
                s.supervisor_us for s in alone
            )
            errors += sum(sample.load.errors for sample in [*alone, *beside]) if name == OURS else 0
            lines.append(
                f"  {name:18} {each:6.1f} KiB each; 64 active ones: {share:.2f}x of the requests/s without them, "
                f"{cost:.2f}x of the supervisor's CPU a request"
            )
            figures[name] = {"kib_each": each, "rate_share": share, "cpu_share": cost}
            if name == OURS:
                verdicts = [
                    Verdict(Goal(Quantity.IDLE, 20), each),
                    Verdict(Goal(Quantity.SHARE, 0.9), share),
                ]
    lines += [f"    {verdict}" for verdict in verdicts]
    return Special(lines, verdicts, figures, errors)


SPECIALS: dict[str, Callable[[str, Settings], Special]] = {
    f"{IDLE_CONNECTIONS:,} idle connections": lambda _, settings: idle(settings),
    "100 MiB upload, constant PHP worker": lambda name, settings: large(name, "php", "POST", settings),
    "100 MiB upload, WSGI": lambda name, settings: large(name, "wsgi", "POST", settings),
    "100 MiB answer in parts, PHP": lambda name, settings: large(name, "php stream", "GET", settings),
    "100 MiB answer in parts, WSGI": lambda name, settings: large(name, "wsgi stream", "GET", settings),
    "100 MiB file": lambda name, settings: large(name, "file", "GET", settings),
}


# --- the run ----------------------------------------------------------------------------------------------------------


def machine() -> str:
    """One line on where this runs."""
    return (
        f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}, "
        f"CPython {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )


def raise_file_limit() -> None:
    """Thousands of connections need descriptors, here and in the servers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY and hard < FILES else FILES, hard)
    )


def run(settings: Settings) -> tuple[dict[str, object], str]:
    """Print every cell that is asked for, then the summary; returns all figures, and the table in Markdown."""
    verdicts: dict[str, Sequence[Verdict]] = {}
    errors: dict[str, int] = {}
    taken: list[object] = []
    rows = [MARKDOWN_HEADING]
    special_rows: list[str] = []
    cells = [cell for cell in CELLS if settings.wants(cell.name)]
    for kind in dict.fromkeys(cell.kind for cell in cells):
        if kind == "php h2" and shutil.which("h2load") is None:
            print("(no h2load here: HTTP/2 is left out)\n", flush=True)
            continue
        try:
            with group(kind, settings) as servers:
                for cell in (cell for cell in cells if cell.kind == kind):
                    samples = run_cell(cell, servers, settings)
                    print(render(cell, samples), end="\n\n", flush=True)
                    verdicts[cell.name] = judge(cell, samples)
                    errors[cell.name] = sum(sample.load.errors for sample in samples[OURS])
                    taken.append(as_json(cell, samples))
                    rows.append(as_markdown(cell, samples))
        except ServerFailed as error:
            if "not available yet" in str(error):
                print(f"({kind}: not available yet in this version)\n", flush=True)
                continue
            print(f"{kind}: not measured: {error}\n", flush=True)
            errors[f"{kind}: the server"] = 1
    for name, special in SPECIALS.items():
        if settings.wants(name):
            try:
                result = special(name, settings)
            except (ServerFailed, OSError) as error:
                print(f"{name}: not measured: {error}\n", flush=True)
                errors[name] = 1
                continue
            print("\n".join(result.lines), end="\n\n", flush=True)
            verdicts[name] = result.verdicts
            errors[name] = result.errors
            goals = [goal_as_json(verdict) for verdict in result.verdicts]
            special_rows += ["", *(f"    {line}" for line in result.lines)]
            taken.append({"name": name, "servers": result.figures, "goals": goals})
    print(summary(verdicts, errors))
    figures: dict[str, object] = {"machine": machine(), "cells": taken, "errors": sum(errors.values())}
    return figures, "\n".join([*rows, *special_rows]) + "\n"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        prog="tools/bench http", description=__doc__.split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument(
        "--cells",
        metavar="WORD",
        nargs="+",
        default=[],
        help="only cells whose name has one of these words in it",
    )
    parser.add_argument(
        "--peers",
        metavar="NAME,...",
        help='only these, or "" for none: nginx + php-fpm, RoadRunner, gunicorn, uvicorn, granian (beginnings do)',
    )
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each cell (default: 4)")
    parser.add_argument("--scale", type=float, default=1.0, help="seconds of each measurement (default: 1)")
    parser.add_argument("--workers", type=int, default=4, help="workers of every server (default: 4)")
    parser.add_argument(
        "--patience",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="where others use the machine: spend so long on each measurement to get an undisturbed one",
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--markdown", metavar="FILE", help="write a table for documentation there")
    parser.add_argument("--list", action="store_true", help="show the names of the cells")
    options = parser.parse_args()
    if options.list:
        print("\n".join([*(cell.name for cell in CELLS), *SPECIALS]))
        return
    if shutil.which("wrk") is None:
        raise SystemExit("tools/bench http: wrk is missing, it is the client (apt-get install wrk)")
    peers = None
    if options.peers is not None:
        asked = [part.strip().lower() for part in options.peers.split(",") if part.strip()]
        every = (NGINX, ROADRUNNER, GUNICORN, "uvicorn", GRANIAN)
        peers = tuple(name for name in every if any(name.lower().startswith(part) for part in asked))
        if len(peers) < len(asked):
            raise SystemExit(f"tools/bench http: --peers knows {', '.join(every)}")
    settings = Settings(
        max(1, options.rounds),
        max(1, round(options.scale)),
        max(1, options.workers),
        peers,
        tuple(options.cells),
    )
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended then, too
    print(f"{machine()}; {settings.workers} workers, {settings.rounds} rounds of {settings.seconds} s\n")
    figures, table = run(settings)
    if options.markdown:
        Path(options.markdown).write_text(table, encoding="utf-8")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if figures["errors"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
