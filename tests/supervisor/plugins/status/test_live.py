"""The page and its stream over real sockets: who may look, what is sent, and that a crowd costs nobody else anything."""

from __future__ import annotations

import json
import socket
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from trailboss import small_http
from trailboss.config.schema import StatusConfig
from trailboss.plugins.status import live
from trailboss.plugins.status.hosts import Hosts
from trailboss.plugins.status.live import CLIENTS_MAX
from trailboss.reactor import Reactor
from trailboss.small_http import CONNECTIONS_MAX, SmallConnection

from .test_status import Bench, running

EVENTS = b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class Watcher:
    """Somebody who looks at the stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.received = b""

    async def part(self, end: bytes = b"\n\n") -> bytes:
        """Return what comes up to `end`."""
        while end not in self.received:
            data = await self.stream.receive_some()
            assert data, "the stream has ended"
            self.received += data
        found, _, self.received = self.received.partition(end)
        return found

    async def begin(self) -> bytes:
        """Return the head; the first part, which says when to come back, is checked."""
        head = await self.part(b"\r\n\r\n")
        assert await self.part() == b"retry: 2000"
        return head

    async def event(self) -> tuple[str, dict[str, Any]]:
        """Return name and value of the next event."""
        lines = (await self.part()).decode().split("\n")
        assert [line.partition(":")[0] for line in lines] == ["event", "data"]
        return lines[0].partition(": ")[2], json.loads(lines[1].partition(": ")[2])


async def watch(bench: Bench, request: bytes = EVENTS) -> Watcher:
    """Ask for the stream."""
    stream = await bench.connect()
    await stream.send_all(request)
    return Watcher(stream)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures come quickly, and none is too fresh to be made anew."""
    monkeypatch.setattr(live, "INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr("trailboss.plugins.status.snapshot.FRESH_SECONDS", 0.01)
    monkeypatch.setattr(live.LivePage.__init__, "__defaults__", (0.05,))


async def test_the_page_is_served() -> None:
    """HTML with its policy, the snapshot of now in it; HEAD gives the head alone."""
    async with running() as bench:
        answer = await bench.ask(b"GET / HTTP/1.1\r\nHost: localhost:2114\r\n\r\n")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n")
        assert b"\r\nContent-Security-Policy: default-src 'none'; " in head
        assert body.startswith(b"<!DOCTYPE html>")
        assert b"GET /page" in body
        head_only = await bench.ask(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert head_only.endswith(b"\r\n\r\n")


async def test_the_stream_has_pictures(quick: None) -> None:
    """JSON events for everybody, parts of the page for the page; a browser is told when to come back."""
    async with running() as bench:
        watcher = await watch(bench)
        head = await watcher.begin()
        assert b"\r\nContent-Type: text/event-stream\r\n" in head
        assert b"Content-Length" not in head
        name, snapshot = await watcher.event()
        assert (name, snapshot["phase"], snapshot["ready"]) == ("snapshot", "ready", True)
        assert snapshot["pools"][0]["workers"][0]["doing"] == "GET /page"
        assert (await watcher.event())[1]["at"] > snapshot["at"]
        page = await watch(bench, EVENTS.replace(b"/events", b"/events?as=page"))
        await page.begin()
        name, parts = await page.event()
        assert (name, sorted(parts["parts"])) == (
            "page",
            ["figures", "foot", "head", "logs", "pools", "rest"],
        )
        await watcher.stream.aclose()
        await page.stream.aclose()


async def test_nothing_is_made_while_nobody_looks(quick: None) -> None:
    """One picture for all who look at the same time; none after the last has gone, and no timer."""
    async with running() as bench:
        assert bench.pool.looks == 0
        first, second = await watch(bench), await watch(bench)
        for watcher in (first, second):
            await watcher.begin()
        # The first of each is of the moment in which it came.
        seen = [{(await watcher.event())[1]["at"] for _ in range(8)} for watcher in (first, second)]
        assert len(seen[0] & seen[1]) >= 5
        await first.stream.aclose()
        await second.stream.aclose()
        wheel = bench.services.get(Reactor).wheel
        while True:
            await trio.sleep(0.1)
            before = bench.pool.looks
            await trio.sleep(0.2)
            if bench.pool.looks == before:
                break
        assert len(wheel) <= 4  # the deadlines of the two heads, nothing of the stream


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("127.0.0.1:2114", b"200"),
        ("[::1]:2114", b"200"),
        ("localhost", b"200"),
        ("status.localhost:80", b"200"),
        ("monitor.example", b"200"),
        ("MONITOR.example.:99", b"200"),
        ("evil.example", b"421"),
        ("127.0.0.1.evil.example", b"421"),
        ("localhost.evil.example", b"421"),
        ("", b"421"),
        ("a, b", b"421"),
    ],
)
async def test_names_of_others_are_refused(host: str, code: bytes) -> None:
    """A page of somebody else's whose name leads here sees neither page nor events."""
    config = StatusConfig(address="127.0.0.1:0", hosts=("monitor.example",))
    async with running(config) as bench:
        for path in ("/", "/events"):
            stream = await bench.connect()
            async with stream:
                await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                answer = await stream.receive_some()
                assert answer.split(b" ")[1] == code
                assert code == b"200" or b"status.hosts" in answer
        two = await bench.ask(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
        assert two.split(b" ")[1] in (b"400", b"421")


def test_every_name_can_be_allowed() -> None:
    """`*` is for those who put a proxy with a check of its own in front."""
    assert Hosts("127.0.0.1", ("*",), "box").allows("anything.example")
    assert Hosts("0.0.0.0", (), "box.lan").allows("box")
    assert Hosts("0.0.0.0", (), "box.lan").allows("box.lan:2114")
    assert not Hosts("0.0.0.0", (), "box.lan").allows("lan")


async def test_a_page_of_another_site_takes_no_place() -> None:
    """Browsers say where a request comes from; the stream is for our own page."""
    async with running() as bench:
        answer = await bench.ask(EVENTS[:-2] + b"Sec-Fetch-Site: cross-site\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ")


async def test_the_page_can_be_switched_off() -> None:
    """Then the port is for machines alone."""
    async with running(StatusConfig(address="127.0.0.1:0", page=False)) as bench:
        for path in (b"/", b"/events"):
            assert (await bench.ask(b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"))[9:12] == b"404"


@pytest.mark.parametrize(
    "data", [b"POST / HTTP/1.1\r\n", b"DELETE /events HTTP/1.1\r\n", b"PUT / HTTP/1.1\r\n"]
)
async def test_nothing_can_be_changed(data: bytes) -> None:
    """There is no method but GET and HEAD."""
    async with running() as bench:
        assert (await bench.ask(data + b"Host: localhost\r\nContent-Length: 0\r\n\r\n"))[9:12] == b"405"


async def test_three_hundred_who_never_read_leave_room_for_probes(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places are few, the rest is told so; nobody's slowness holds a picture back, and probes are answered throughout."""
    monkeypatch.setattr(small_http, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(
        "trailboss.plugins.status.plugin.Snapshots.current", lambda self, now: {"fill": "x" * 400_000}
    )
    async with running() as bench, AsyncExitStack() as stack:
        crowd = []
        for _ in range(300):
            sock = trio.socket.socket()
            stack.callback(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, _, port = bench.plugin.address.rpartition(":")
            await sock.connect((host, int(port)))
            try:
                await sock.send(EVENTS)
            except OSError:  # closed at once: all connections are taken
                continue
            crowd.append(sock)
        listener = next(connection._server for connection in _connections(bench))
        assert len(listener.connections) <= CONNECTIONS_MAX
        assert sum(1 for item in listener.connections if item._audience is not None) <= CLIENTS_MAX
        assert max(len(item._unsent) for item in listener.connections) < 500_000
        assert (await bench.get("/health"))[0] == 200
        for _ in range(200):
            if not any(item._audience is not None for item in listener.connections):
                break
            await trio.sleep(0.05)
        watcher = await watch(bench)
        await watcher.begin()
        assert (await watcher.event())[0] == "snapshot"
        await watcher.stream.aclose()


def _connections(bench: Bench) -> list[Any]:
    """The connections of the status port, found where the reactor has them."""
    reactor = bench.services.get(Reactor)
    found = [getattr(callback, "__self__", None) for callback in reactor._readers.values()]
    return [item for item in found if isinstance(item, SmallConnection)]


async def test_a_slow_one_misses_pictures_and_nobody_else_does(quick: None) -> None:
    """Between two that are taken, events are left out; what does arrive is whole."""
    async with running() as bench:
        slow, fast = await watch(bench), await watch(bench)
        await slow.begin()
        await fast.begin()
        seen = [(await fast.event())[1]["at"] for _ in range(20)]
        assert seen == sorted(set(seen))
        name, snapshot = await slow.event()
        assert (name, snapshot["phase"]) == ("snapshot", "ready")
        await slow.stream.aclose()
        await fast.stream.aclose()


async def test_a_picture_that_cannot_be_made_ends_nothing(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that fails is told in its place; a failure of the whole picture is logged, and the stream lives on."""
    async with running() as bench:
        monkeypatch.setattr(bench.pool, "glance", lambda: 1 / 0)
        watcher = await watch(bench)
        await watcher.begin()
        assert "ZeroDivisionError" in (await watcher.event())[1]["pools"]["error"]
        good = bench.state.as_dict
        with monkeypatch.context() as broken:
            broken.setattr("trailboss.plugins.status.snapshot.Snapshots.current", lambda self, now: 1 / 0)
            await trio.sleep(0.2)
        assert (await watcher.event())[0] == "snapshot"
        assert good()["phase"] == "ready"
        await watcher.stream.aclose()
