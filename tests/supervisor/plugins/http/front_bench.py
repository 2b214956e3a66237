"""A front without a server: real sockets and the real reactor, turned by hand, so that time is what the test says."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from trailboss.plugins.http.connection import Connection
from trailboss.plugins.http.front import Front
from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.message import Handler, Request, Responder
from trailboss.plugins.http.spool import Spool
from trailboss.plugins.http.unsent import AnswerAccount
from trailboss.reactor import Reactor

START = 1000.0


class HandReactor(Reactor):
    """The reactor with the loop taken out: `turn` does one batch, the time stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START

    def touch(self) -> float:
        """Return the time that the test has set."""
        return self.now

    def turn(self) -> bool:
        """Do one batch; say whether there was anything to do."""
        events = self._epoll.poll(0, 128)
        soon = bool(self._soon)
        self.dispatch(events)
        self._run_soon()
        return bool(events) or soon


@dataclass
class Echo:
    """Answers every request at once with what it got."""

    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    seen: list[Request] = field(default_factory=list)

    def __call__(self, request: Request, responder: Responder) -> None:
        """Handler."""
        body = request.body.bytes()
        self.requests.append((request.method, request.target, body))
        self.seen.append(request)
        responder.respond(200, [(b"Content-Type", b"text/plain")], body)


class Client:
    """The other end of a connection."""

    def __init__(self, bench: Bench, sock: socket.socket, connection: Connection) -> None:
        self.bench = bench
        self.sock = sock
        self.connection = connection
        self.received = b""
        self.ended = False

    def send(self, data: bytes) -> None:
        """Send everything, the front taking its turns meanwhile, and let it work until it is quiet."""
        self.sock.setblocking(False)
        view = memoryview(data)
        while view and not self.ended:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                pass
            except OSError:
                break
            self.bench.settle()
            self.take()
        self.bench.settle()
        self.take()

    def take(self) -> bytes:
        """Return everything received so far; `ended` says whether the front has ended its side."""
        while not self.ended:
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                break
            except ConnectionResetError:
                self.ended = True
                break
            if not data:
                self.ended = True
                break
            self.received += data
            self.bench.settle()
        return self.received


class Bench:
    """A front with its clients."""

    def __init__(
        self,
        handler: Handler | None = None,
        limits: Limits | None = None,
        answers: AnswerAccount | None = None,
        **spool: int,
    ) -> None:
        self.reactor = HandReactor()
        self.echo = Echo()
        self.spool = Spool(spool.get("per_body", 1 << 20), spool.get("total", 64 << 20))
        self.front = Front(self.reactor, limits or Limits(), self.spool, handler or self.echo, answers)
        self._clients: list[socket.socket] = []
        self.closed = False

    def connect(self) -> Client:
        """Return a new client."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._clients.append(theirs)
        return Client(self, theirs, Connection(self.front, ours, "local:80", "192.0.2.1", 4711))

    def keep(self, sock: socket.socket) -> None:
        """Close this client's socket in the end."""
        self._clients.append(sock)

    def settle(self) -> None:
        """Let the front work until it has nothing to do."""
        for _ in range(100_000):
            if not self.reactor.turn():
                return
        raise AssertionError("the front never gets quiet")

    def advance(self, seconds: float) -> None:
        """Let time pass in steps of a tenth of a second, deadlines included."""
        steps = round(seconds * 10)
        for _ in range(steps):
            self.reactor.now += seconds / steps
            self.reactor.wheel.expire(self.reactor.now)
        self.settle()

    def close(self) -> None:
        """Close everything; may be called again."""
        if self.closed:
            return
        self.closed = True
        self.front.close_all()
        self.settle()
        for sock in self._clients:
            sock.close()
        self.reactor.close()


MakeBench = Callable[..., Bench]
