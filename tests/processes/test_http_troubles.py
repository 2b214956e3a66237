"""What a client is told when it gets no answer of a worker: a table of troubles over a real server, with the reasons.

Each row is status, `trailboss-reason`, Retry-After and whether the connection goes on; the same rows again with a code of
the user's own. Then what a client gets that leaves, what a hostile worker can do to it, and what `pool.debug` says.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hostile_answers import hostile_answers
from http_server import HttpServer, Reply, http_server, read_all, request, take_answer, until
from live_server import PATIENCE

PROGRAM = Path(__file__).resolve().parent / "programs" / "http_trouble.py"


def configuration(workers: int = 1, grace: str = "8s", **http: Any) -> dict[str, Any]:
    """A server with the worker of trouble. `http` adds keys of that section, `pool` among them."""
    pool = {"num_workers": workers, "stop_timeout": "1s", "stream_timeout": "500ms", **http.pop("pool", {})}
    return {
        "server": {"command": [sys.executable, str(PROGRAM)]},
        "http": {"pool": pool, **http},
        "endure": {"grace_period": grace},
        "logs": {"mode": "production", "level": "debug", "output": ["stderr"]},
    }


class Kept:
    """A connection that is kept."""

    def __init__(self, server: HttpServer) -> None:
        self.sock = server.connect()
        self.received = b""

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *exception: object) -> None:
        self.sock.close()

    def ask(self, target: str = "/", method: str = "GET", body: bytes = b"") -> Reply:
        """Send a request, return its answer."""
        self.sock.sendall(request(target, method, body))
        return self.reply(method)

    def reply(self, method: str = "GET") -> Reply:
        """The next answer. Raises AssertionError where the connection ends before."""
        while True:
            reply, self.received = take_answer(self.received, to_head=method == "HEAD")
            if reply is not None:
                return reply
            data = self.sock.recv(65536)
            assert data, self.received
            self.received += data


@dataclass
class Trouble:
    """A row of the table."""

    name: str
    status: int
    reason: str
    retry_after: str | None
    #: Makes the trouble and returns the answer that tells of it.
    make: Callable[[HttpServer, Kept], Reply]
    keys: dict[str, Any]
    goes_on: bool = True
    #: Whether `internal_error_code` replaces the status.
    replaced: bool = True
    env: tuple[str, ...] = ()


@contextmanager
def busy(server: HttpServer, *targets: str) -> Iterator[None]:
    """Clients that ask for slow pages and wait, one after the other."""
    socks = []
    for number, target in enumerate(targets):
        sock = server.connect()
        socks.append(sock)
        sock.sendall(request(target))
        until(lambda number=number: server.state()["in_flight"] == number + 1, 5, f"{target} under way")  # type: ignore[misc]
    try:
        yield
    finally:
        for sock in socks:
            sock.close()


def full_queue(server: HttpServer, client: Kept) -> Reply:
    """One request runs, one waits, the third has no place."""
    with busy(server, "/slow?s=1", "/slow?s=0"):
        return client.ask()


def long_queue(server: HttpServer, client: Kept) -> Reply:
    """One runs, the second has waited long enough."""
    with busy(server, "/slow?s=1"):
        return client.ask()


def asking(target: str, method: str = "GET") -> Callable[[HttpServer, Kept], Reply]:
    """Just ask."""
    return lambda _server, client: client.ask(target, method)


def no_workers(server: HttpServer, client: Kept) -> Reply:
    """The program has become impossible to start, and the only worker dies."""
    os.unlink(server.folder / "flag")
    assert client.ask("/die", "POST").status in (502, 599)
    until(lambda: client.ask().headers["trailboss-reason"] == "no workers", 20, "a pool without workers")
    began = time.monotonic()
    reply = client.ask()
    assert time.monotonic() - began < 0.5 * PATIENCE  # said at once
    return reply


def bad_answer(_server: HttpServer, client: Kept) -> Reply:
    """A header with a line break."""
    context = b'{"status":200,"headers":{"X":["a\\r\\nb"]}}'
    return client.ask("/bad", "POST", b"8 %d whole\n%b" % (len(context), context))


def too_large(_server: HttpServer, client: Kept) -> Reply:
    """More than max_request_size."""
    client.sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
    return client.reply()


def raw(data: bytes) -> Callable[[HttpServer, Kept], Reply]:
    """Send bytes."""

    def make(_server: HttpServer, client: Kept) -> Reply:
        client.sock.sendall(data)
        return client.reply()

    return make


def bad_form(_server: HttpServer, client: Kept) -> Reply:
    """A form that cannot be read."""
    body = b"a=%zz"
    headers = "Content-Type: application/x-www-form-urlencoded"
    client.sock.sendall(request("/", "POST", body, headers))
    return client.reply()


TROUBLES = [
    Trouble("queue full", 503, "queue full", "1", full_queue, {"pool": {"max_queue_size": 1}}),
    Trouble("queue timeout", 503, "queue timeout", "1", long_queue, {"pool": {"allocate_timeout": "200ms"}}),
    Trouble(
        "exec timeout",
        504,
        "exec timeout",
        None,
        asking("/slow?s=9"),
        {"pool": {"supervisor": {"exec_ttl": "300ms"}}},
    ),
    Trouble("a POST whose worker dies", 502, "worker died", None, asking("/die", "POST"), {}),
    Trouble("a GET that kills twice", 502, "worker died", None, asking("/die"), {}),
    Trouble("a GET without retry", 502, "worker died", None, asking("/die"), {"retry": False}),
    Trouble("no workers", 503, "no workers", "1", no_workers, {}, env=("FLAG",)),
    Trouble("an error of the application", 500, "worker error", None, asking("/error"), {}),
    Trouble("a bad answer", 502, "bad answer", None, bad_answer, {}),
    Trouble("a form", 400, "", None, bad_form, {}, replaced=False),
    Trouble("a large body", 413, "", None, too_large, {"max_request_size": 1}, goes_on=False, replaced=False),
    Trouble(
        "no HTTP",
        400,
        "",
        None,
        raw(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n"),
        {},
        goes_on=False,
        replaced=False,
    ),
    Trouble(
        "an old version",
        505,
        "",
        None,
        raw(b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        {},
        goes_on=False,
        replaced=False,
    ),
    Trouble(
        "a large head",
        431,
        "",
        None,
        raw(request("/", "GET", b"", "X: " + "a" * 70_000)),
        {},
        goes_on=False,
        replaced=False,
    ),
    Trouble(
        "a slow head",
        408,
        "",
        None,
        raw(b"GET / HT"),
        {"limits": {"head_timeout": "300ms"}},
        goes_on=False,
        replaced=False,
    ),
]


def groups() -> Iterator[Any]:
    """Rows that the same server will do for, once with a code of the user's own."""
    together: dict[str, list[Trouble]] = {}
    for trouble in TROUBLES:
        together.setdefault(json.dumps([trouble.keys, trouble.env]), []).append(trouble)
    for rows in together.values():
        yield pytest.param(rows, 500, id=rows[0].name)
        if replaced := [trouble for trouble in rows if trouble.replaced]:
            yield pytest.param(replaced, 599, id=f"{rows[0].name}-599")


@pytest.mark.parametrize(("rows", "code"), list(groups()))
def test_what_a_client_is_told(tmp_path: Path, rows: list[Trouble], code: int) -> None:
    """Status, reason, Retry-After, and whether the next request is answered on the same connection."""
    env = {name: str(tmp_path / name.lower()) for name in rows[0].env}
    for path in env.values():
        Path(path).touch()
    keys = dict(rows[0].keys)
    if code != 500:
        keys["internal_error_code"] = code
    with http_server(tmp_path, configuration(**keys), env) as server:
        for trouble in rows:
            with Kept(server) as client:
                check_trouble(trouble, code, server, client)


def check_trouble(trouble: Trouble, code: int, server: HttpServer, client: Kept) -> None:
    """One row."""
    reply = trouble.make(server, client)
    assert reply.status == (trouble.status if code == 500 else code), trouble.name
    if trouble.reason:
        assert reply.headers["trailboss-reason"] == trouble.reason, trouble.name
    assert reply.headers["trailboss-reason"]
    assert "date" in reply.headers
    assert reply.headers.get("retry-after") == trouble.retry_after, trouble.name
    assert (reply.headers.get("connection") == "close") is not trouble.goes_on, trouble.name
    if not trouble.goes_on:
        client.sock.settimeout(5 * PATIENCE)
        assert client.sock.recv(10) == b"", trouble.name
    elif not trouble.env:
        until(lambda: client.ask().status == 200, 10, "an answer on the same connection")


def test_a_request_that_is_complete_too_late_for_the_stop(tmp_path: Path) -> None:
    """Told to come again elsewhere: 503, Retry-After, and the end of the connection."""
    server = HttpServer(tmp_path, configuration(workers=2, grace="4s"))
    try:
        server.wait_ready()
        with Kept(server) as client, busy(server, "/slow?s=30"):
            client.sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na")
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.records("stop deadline passed, cancelling"), 10, "the end of the drain")
            client.sock.sendall(b"b")
            reply = client.reply()
        assert (reply.status, reply.headers["retry-after"], reply.headers["connection"]) == (
            503,
            "1",
            "close",
        )
        assert reply.headers["trailboss-reason"] == "the server is stopping"
        server.process.wait(20 * PATIENCE)
    finally:
        server.kill()


def test_a_retried_get(tmp_path: Path) -> None:
    """A GET or HEAD whose worker died is answered by the next one; a POST is not sent twice."""
    with http_server(tmp_path, configuration()) as server, Kept(server) as client:
        for method, body in (("GET", b"second"), ("HEAD", b"")):
            mark = tmp_path / method
            reply = client.ask(f"/die-once?mark={mark}", method)
            assert (reply.status, reply.body) == (200, body)
        reply = client.ask(f"/die-once?mark={tmp_path}/POST", "POST")
        assert (reply.status, reply.headers["trailboss-reason"]) == (502, "worker died")


@pytest.mark.parametrize("target", ["/broken-stream", "/short"])
def test_a_broken_stream_looks_broken(tmp_path: Path, target: str) -> None:
    """Whatever ends it, and however it is framed."""
    with http_server(tmp_path, configuration(workers=2)) as server:
        with server.connect() as sock:
            sock.sendall(request(target))
            received = read_all(sock)
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"half" in received
        assert take_answer(received)[0] is None
        with Kept(server) as client:
            assert client.ask().status == 200


@pytest.mark.parametrize("mode", ["finish", "stop"])
@pytest.mark.parametrize("target", ["/slow?s=1.5", "/stream"])
def test_a_client_that_leaves(tmp_path: Path, mode: str, target: str) -> None:
    """A stream is told to stop; a worker that is still thinking finishes, or with `stop` is replaced after stream_timeout."""
    with http_server(tmp_path, configuration(on_disconnect=mode)) as server:
        (pid,) = server.workers()
        with server.connect() as sock:
            sock.sendall(request(target))
            until(lambda: server.state()["in_flight"] == 1, 5, "the request under way")
            if target == "/stream":
                assert sock.recv(1000)
        until(lambda: server.state()["connections"] == 0, 5, "the connection gone")
        with Kept(server) as client:
            reply = client.ask()  # waits for the worker, or for the next one
        assert reply.status == 200
        replaced = mode == "stop" and target != "/stream"
        assert (int(reply.body) != pid) is replaced
        assert ("nobody wanted its answer any more" in server.log) is replaced


def test_a_client_that_leaves_the_queue(tmp_path: Path) -> None:
    """Its request never reaches a worker."""
    with http_server(tmp_path, configuration()) as server, Kept(server) as client:
        with busy(server, "/slow?s=1", "/die"):
            pass
        until(lambda: server.state()["in_flight"] == 0, 5, "the worker free")
        assert client.ask().status == 200
        assert "dying" not in server.log


@pytest.mark.parametrize(
    ("target", "status", "text"),
    [
        ("/error", 500, "the application said no"),
        ("/die", 502, "exit"),
        ("/slow?s=9", 504, "exec_ttl"),
        ("/", 200, ""),
    ],
)
def test_a_pool_for_debugging(tmp_path: Path, target: str, status: int, text: str) -> None:
    """A fresh worker for each request, and everything that is known about an error in the body."""
    keys: dict[str, Any] = {"pool": {"debug": True, "supervisor": {"exec_ttl": "1s"}}}
    with http_server(tmp_path, configuration(**keys)) as server, Kept(server) as client:
        reply = client.ask(target)
        assert reply.status == status
        assert text in reply.body.decode()
        assert (reply.headers.get("trailboss-reason") is None) is (status == 200)
        assert len({client.ask().body for _ in range(3)}) == 3  # pids


def test_the_error_text_stays_inside_otherwise(tmp_path: Path) -> None:
    """It is in the log, not in the body."""
    with http_server(tmp_path, configuration()) as server, Kept(server) as client:
        reply = client.ask("/error")
        assert (reply.status, reply.body) == (500, b"")
        (record,) = server.records("the worker reported an error")
        assert record["text"] == "the application said no"


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_hostile_answers_break_no_connection(tmp_path: Path, how: str) -> None:
    """S7: more than 300 on one kept connection where they are whole; as streams they are refused, or cut and never look whole."""
    rows = [row for row in hostile_answers() if how == "whole" or "interim" not in row[0]]
    assert len(rows) > 300
    with http_server(tmp_path, configuration(workers=2)) as server:
        pids = set(server.workers())
        memory = server.rss()
        client = Kept(server)
        for name, flags, context, body in rows:
            asked = b"%d %d %b\n%b%b" % (flags, len(context), how.encode(), context, body)
            try:
                client.sock.sendall(request("/bad", "POST", asked))
                reply = client.reply()
            except (AssertionError, ConnectionResetError):
                assert how == "stream", name
                client.sock.close()
                client = Kept(server)
            else:
                assert (reply.status, reply.headers["trailboss-reason"]) == (502, "bad answer"), name
            probe = client.ask()
            assert (probe.status, int(probe.body) in pids) == (200, True), name
        client.sock.close()
        assert set(server.workers()) == pids
        assert server.rss() - memory < 32 << 20
        events = [
            record["msg"]
            for record in map(json.loads, filter(lambda line: line.startswith("{"), server.log.splitlines()))
        ]
        assert events.count("bad answer from a worker") + events.count("answer cut short") == len(rows)


def test_connections_beyond_the_limit(tmp_path: Path) -> None:
    """They are closed at once, with one line in the log, and there is room again when others leave."""
    with http_server(tmp_path, configuration(limits={"max_connections": 5})) as server:
        until(lambda: server.state()["connections"] == 0, 5, "the first look gone")
        kept = [Kept(server) for _ in range(5)]
        assert [client.ask().status for client in kept] == [200] * 5
        for _ in range(20):
            with server.connect() as sock:
                try:
                    assert sock.recv(100) == b""
                except ConnectionResetError:
                    continue
        kept.pop().sock.close()
        until(lambda: server.state()["connections"] == 4, 5, "room")
        with Kept(server) as client:
            assert client.ask().status == 200
        for client in kept:
            client.sock.close()
        assert len(server.records("connections are turned away, http.limits.max_connections is reached")) == 1
