"""The small HTTP server: late answers, large ones, handlers that fail, addresses that cannot be bound."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import structlog.testing
import trio
import trio.testing

from trailboss import accepting, small_http
from trailboss.log import logger
from trailboss.reactor import Reactor
from trailboss.small_http import SmallAnswer, SmallHandler, SmallRequest, SmallServer, bind_port

Reply = Callable[[SmallAnswer], None]
GET = b"GET /path?a=1 HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nX-A: 2\r\n\r\n"


@asynccontextmanager
async def serving(handle: SmallHandler) -> AsyncIterator[SmallServer]:
    """A server on a port of loopback."""
    reactor = Reactor()
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                reactor.touch()
                server = SmallServer(bind_port("127.0.0.1", 0), reactor, handle, logger("test"))
                yield server
                server.close()
                server.close()
                nursery.cancel_scope.cancel()
    finally:
        reactor.close()


async def connect(server: SmallServer) -> trio.SocketStream:
    """A connection to it."""
    host, _, port = server.address.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


async def ask(server: SmallServer, data: bytes = GET) -> bytes:
    """Send bytes and return everything until the server closes."""
    async with await connect(server) as stream:
        await stream.send_all(data)
        return b"".join([chunk async for chunk in stream])


async def test_what_a_handler_gets_and_a_client_sees() -> None:
    """Path, query and headers; status, type, length and further headers."""
    seen: list[SmallRequest] = []

    def handle(request: SmallRequest, reply: Reply) -> None:
        seen.append(request)
        reply(SmallAnswer(201, b"made", "text/x", (("X-B", "3"),)))
        reply(SmallAnswer(200, b"twice"))

    async with serving(handle) as server:
        answer = await ask(server)

    assert (seen[0].path, seen[0].query, seen[0].headers["x-a"]) == ("/path", "a=1", "1, 2")
    assert answer.startswith(b"HTTP/1.1 201 Created\r\nContent-Type: text/x\r\nContent-Length: 4\r\n")
    assert b"\r\nX-B: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\nmade")


async def test_an_answer_may_come_later_and_be_large() -> None:
    """More than the kernel takes at once goes out as the client reads; one for a client that has gone is dropped."""
    replies: list[Reply] = []
    body = b"x" * 8_000_000

    async with serving(lambda _, reply: replies.append(reply)) as server:
        async with await connect(server) as stream:
            await stream.send_all(GET)
            while not replies:
                await trio.testing.wait_all_tasks_blocked(0.001)
            replies[0](SmallAnswer(200, body))
            await trio.sleep(0.05)
            answer = b"".join([chunk async for chunk in stream])
        assert answer.endswith(body)

        async with await connect(server) as stream:
            await stream.send_all(GET)
            while len(replies) < 2:
                await trio.testing.wait_all_tasks_blocked(0.001)
        while server.connections:
            await trio.testing.wait_all_tasks_blocked(0.001)
        replies[1](SmallAnswer(200, body))
        assert server.connections == {}


async def test_a_handler_that_raises_or_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one is a 500 and a log line, the other a connection that ends after its time."""
    monkeypatch.setattr(small_http, "ANSWER_SECONDS", 0.1)

    def handle(request: SmallRequest, reply: Reply) -> None:
        if request.query:
            raise RuntimeError("broken")

    with structlog.testing.capture_logs() as logs:
        async with serving(handle) as server:
            assert (await ask(server)).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
            assert await ask(server, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""

    assert [record["event"] for record in logs] == ["a request could not be answered"]


async def test_no_descriptor_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and tried again a little later, without a loop that turns for nothing."""
    monkeypatch.setattr(accepting, "BACK_OFF_SECONDS", 0.05)

    class Poor:
        """A listening socket that cannot accept the first time."""

        def __init__(self, sock: socket.socket) -> None:
            self.sock = sock
            self.calls = 0

        def accept(self) -> tuple[socket.socket, object]:
            self.calls += 1
            if self.calls == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return self.sock.accept()

        def close(self) -> None:
            self.sock.close()

    with structlog.testing.capture_logs() as logs:
        async with serving(lambda _, reply: reply(SmallAnswer(200, b"late"))) as server:
            stream = await connect(server)
            server._acceptor._sock = poor = Poor(server._acceptor._sock)  # type: ignore[assignment] # stands in for a socket
            async with stream:
                await stream.send_all(GET)
                answer = b"".join([chunk async for chunk in stream])

    assert answer.endswith(b"late")
    assert poor.calls <= 3
    assert [record["event"] for record in logs] in ([], ["no connection can be accepted for now"])


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("127.0.0.1", "the port is in use"),
        ("192.0.2.1", "this machine does not have that address"),
        ("no such host", "the host is not known"),
    ],
)
def test_addresses_that_cannot_be_bound(host: str, text: str) -> None:
    """The error is what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match=text):
            bind_port(host, taken.getsockname()[1])


def test_an_empty_host_is_every_interface() -> None:
    """Both families, where the machine has both."""
    sock = bind_port("", 0)
    with sock, socket.create_connection(("127.0.0.1", sock.getsockname()[1]), 5):
        assert sock.getsockname()[0] in ("::", "0.0.0.0")
