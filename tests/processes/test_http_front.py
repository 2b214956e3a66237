"""The web server as a real process: bad clients beside good ones, resets and the stop under load, bodies that are too large.

A small WSGI application answers. What counts is seen from outside: every good client gets every answer whole, bad ones
are gone after their time, memory and folders are as they were.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio
from live_server import PATIENCE, rss_bytes, until

from trailboss.chaos.instance import free_port

APPLICATION = """
import time

def application(environ, start_response):
    size = 0
    while part := environ["wsgi.input"].read(65536):
        size += len(part)
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.3)
    body = b"x" * 10_000_000 if environ["PATH_INFO"] == "/large" else b"hello %d" % size
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
CONFIGURATION = """
version: "3"
server: {{command: [trailboss-worker, wsgi, "app:application"]}}
rpc: {{listen: "unix://{folder}/rpc.sock"}}
http:
  address: [127.0.0.1:{port}, "unix:{folder}/http.sock"]
  max_request_size: 4
  uploads: {{dir: "{folder}/bodies"}}
  pool: {{num_workers: 2, max_queue_size: 2000}}
  limits: {{head_timeout: 1s, body_grace: 1s, write_timeout: 1s, idle_timeout: 5s}}
logs: {{level: warn, output: stderr}}
"""
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass
class Site:
    """A server that runs."""

    folder: Path
    port: int
    process: trio.Process

    async def connect(self) -> trio.SocketStream:
        """Return a connection."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(self, data: bytes = GET) -> bytes:
        """Send a request on a connection of its own, return the answer's bytes."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            return await read_answer(stream)

    def trailboss(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line."""
        return subprocess.run(
            [sys.executable, "-m", "trailboss", *words],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=30,
        )


class Ended(Exception):
    """The connection ended; the argument is what came before."""


async def read_answer(stream: trio.SocketStream) -> bytes:
    """Return one answer with a Content-Length. Raises Ended."""
    received = b""
    while b"\r\n\r\n" not in received:
        try:
            data = await stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise Ended(received)
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        data = await stream.receive_some(65536)
        if not data:
            raise Ended(received)
        body += data
    return head + b"\r\n\r\n" + body


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Site]:
    """Run a server; it has to stop with exit code 0 and leave nothing behind."""
    port = free_port()
    (folder / "bodies").mkdir()
    (folder / "app.py").write_text(APPLICATION)
    (folder / ".rr.yaml").write_text(CONFIGURATION.format(port=port, folder=folder))
    command = [sys.executable, "-m", "trailboss", "serve"]
    with (folder / "log").open("wb") as log:
        process = await trio.lowlevel.open_process(command, cwd=folder, stdout=log, stderr=log)
    try:
        with trio.fail_after(90 * PATIENCE):
            site = Site(folder, port, process)
            while True:
                try:
                    await site.ask()
                    break
                except (OSError, Ended):
                    assert process.poll() is None, (folder / "log").read_text()
                    await trio.sleep(0.02)
            yield site
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0, (folder / "log").read_text()
        assert list((folder / "bodies").iterdir()) == []
        assert not (folder / "http.sock").exists()
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                await process.wait()


@dataclass
class Load:
    """Clients that ask again and again on kept connections, each answer checked."""

    site: Site
    over: bool = False
    answered: int = 0
    closed: int = 0
    lost: list[bytes] = field(default_factory=list)
    wrong: list[bytes] = field(default_factory=list)

    def has_answered(self, count: int) -> bool:
        """Say whether so many answers have come."""
        return self.answered >= count

    async def client(self) -> None:
        """Ask until it is over, or nobody listens any more."""
        while not self.over:
            try:
                stream = await self.site.connect()
            except OSError:
                return
            async with stream:
                await self.talk(stream)

    async def talk(self, stream: trio.SocketStream) -> None:
        """Ask on one connection until it ends."""
        first = True
        while not self.over:
            try:
                await stream.send_all(GET)
                answer = await read_answer(stream)
            except trio.BrokenResourceError:
                self.note_end(first, b"")
                return
            except Ended as ended:
                self.note_end(first, ended.args[0])
                return
            first = False
            if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"\r\n\r\nhello 0"):
                self.wrong.append(answer)
            self.answered += 1
            if b"\r\nConnection: close\r\n" in answer:
                self.closed += 1
                return

    def note_end(self, first: bool, received: bytes) -> None:
        """An end without an answer is a loss, unless the connection had been idle: then a client asks again."""
        if received or first:
            self.lost.append(received)


async def under_load(site: Site, clients: int, during: Callable[[Load], object]) -> Load:
    """Run `during`, an async function, while clients ask."""
    load = Load(site)
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(load.client)
        await until(lambda: load.answered >= 50, 20, "50 answers")
        await during(load)  # type: ignore[misc]
        load.over = True
    return load


async def test_a_reset_under_load_loses_no_request(tmp_path: Path) -> None:
    """Workers are replaced three times while clients ask; every request gets its answer."""

    async def reset(load: Load) -> None:
        for _ in range(3):
            done = await trio.to_thread.run_sync(site.trailboss, "reset")
            assert done.returncode == 0, done.stderr
            target = load.answered + 50
            await until(partial(load.has_answered, target), 20, "50 answers after a reset")

    async with serving(tmp_path) as site:
        load = await under_load(site, 8, reset)
        assert (load.lost, load.wrong, load.closed) == ([], [], 0)
        assert load.answered > 200


async def test_the_stop_under_load_loses_no_request(tmp_path: Path) -> None:
    """At SIGTERM every request that has been sent is answered, kept connections end with an answer that says so."""

    async def stop(_load: Load) -> None:
        site.process.send_signal(signal.SIGTERM)
        assert await site.process.wait() == 0

    async with serving(tmp_path) as site:
        load = await under_load(site, 8, stop)
        assert (load.lost, load.wrong) == ([], [])
        assert load.closed >= 1


async def test_a_long_request_outlives_sigterm(tmp_path: Path) -> None:
    """A request that a worker has when the stop begins is answered."""
    async with serving(tmp_path) as site, await site.connect() as stream:
        await stream.send_all(GET.replace(b"/ ", b"/slow "))
        await trio.sleep(0.1)  # so that the worker has it; an early stop would only make this easier
        site.process.send_signal(signal.SIGTERM)
        answer = await read_answer(stream)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nConnection: close\r\n" in answer
        assert await site.process.wait() == 0


async def test_slow_clients_stop_nobody(tmp_path: Path) -> None:
    """Hundreds that are slow with head or body, and one that does not read a large answer, which holds its worker until it
    is cut off: probes are answered at once, and the slow are gone in time."""
    starts = {
        "head": b"GET / HTTP/1.1\r\nHo",
        "body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nx",
        "read": GET.replace(b"/ ", b"/large "),
    }
    async with serving(tmp_path) as site:
        memory_before = rss_bytes(site.process.pid)
        async with trio.open_nursery() as nursery:
            slow: dict[str, list[trio.SocketStream]] = {}
            for kind, start in starts.items():
                slow[kind] = [await site.connect() for _ in range(100 if kind != "read" else 1)]
                for stream in slow[kind]:
                    await stream.send_all(start)
            gone_at: list[float] = []
            began = trio.current_time()

            async def see_it_end(stream: trio.SocketStream, kind: str) -> None:
                if kind == "read":
                    await trio.sleep(5)
                received, size = b"", 0
                try:
                    while data := await stream.receive_some(1 << 20):
                        received = (received + data)[:100]
                        size += len(data)
                except trio.BrokenResourceError:
                    pass
                if kind == "read":
                    assert size < 10_000_000
                else:
                    assert received.startswith(b"HTTP/1.1 408 "), received
                gone_at.append(trio.current_time() - began)
                await stream.aclose()

            for kind, streams in slow.items():
                for stream in streams:
                    nursery.start_soon(see_it_end, stream, kind)
            took = []
            for _ in range(100):
                sent = trio.current_time()
                assert (await site.ask()).startswith(b"HTTP/1.1 200 ")
                took.append(trio.current_time() - sent)
                await trio.sleep(0.01)
        assert sorted(took)[-2] < 0.5 * PATIENCE
        assert max(gone_at) < 15 * PATIENCE
        assert rss_bytes(site.process.pid) - memory_before < 300 << 20
        assert (await site.ask()).startswith(b"HTTP/1.1 200 ")


async def test_bodies_that_are_too_large(tmp_path: Path) -> None:
    """413 as soon as it is known, with a length and with chunks; memory stays, the folder is empty (see `serving`)."""
    async with serving(tmp_path) as site:
        memory_before = rss_bytes(site.process.pid)
        for _ in range(5):
            answer = await site.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 413 ")
            async with await site.connect() as stream:
                await stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
                chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
                try:
                    for _ in range(8):
                        await stream.send_all(chunk)
                except trio.BrokenResourceError:
                    pass
                assert (await read_answer(stream)).startswith(b"HTTP/1.1 413 ")
        body = b"y" * (3 << 20)
        answer = await site.ask(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert answer.endswith(b"hello %d" % len(body))
        assert rss_bytes(site.process.pid) - memory_before < 32 << 20


async def test_both_addresses_answer(tmp_path: Path) -> None:
    """The unix socket serves the same."""
    async with serving(tmp_path) as site, await trio.open_unix_socket(f"{tmp_path}/http.sock") as stream:
        await stream.send_all(GET + GET)
        assert (await read_answer(stream)).endswith(b"hello 0")
        assert (await site.ask()).endswith(b"hello 0")
