"""HTTP from a client's socket to a PHP worker and back, in both dialects: nothing between them is played.

The front, the exchange and a pool with real workers share one reactor; clients are raw connections read by h11. Each
scene ends with the stage's invariants (no process, descriptor or registration left) and with an empty upload folder.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import json
import random
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import h11
import pytest
import structlog
import trio
from hostile_answers import hostile_answers

from trailboss.config.schema import HttpConfig, PoolConfig, SupervisorConfig, UploadsConfig
from trailboss.plugins.http.exchange import Exchange
from trailboss.plugins.http.front import Front
from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.listen import Listener, bind
from trailboss.plugins.http.spool import Spool
from trailboss.plugins.http.unsent import AnswerAccount
from trailboss.workers.pool import Pool, PoolSpec

from .workers.stage import PATIENCE, PHP_PROGRAMS, Stage, open_stage, until

pytestmark = pytest.mark.php

MIB = 1 << 20


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """Reactor, guard and workshop; the invariants are checked afterwards."""
    if shutil.which("php") is None:
        pytest.skip("needs php-cli")
    async with open_stage() as opened:
        yield opened


@dataclass
class Reply:
    """What a client got."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    interim: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    #: The connection ended before the answer did.
    cut: bool = False


class Client:
    """One connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.state = h11.Connection(h11.CLIENT)

    async def send(
        self, target: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        """Send a request."""
        lines = {"Host": "example.org", **(headers or {})}
        if body or method == "POST":
            lines["Content-Length"] = str(len(body))
        data = self.state.send(h11.Request(method=method, target=target, headers=list(lines.items())))
        assert data is not None
        await self.stream.send_all(data)
        if body:
            await self.stream.send_all(self.state.send(h11.Data(data=body)) or b"")
        self.state.send(h11.EndOfMessage())

    async def event(self) -> object:
        """The next event of the answer."""
        while True:
            event = self.state.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.state.receive_data(await self.stream.receive_some(65536))

    async def reply(self) -> Reply:
        """The answer, to its end or to where it is cut."""
        reply = Reply()
        body = bytearray()
        try:
            while True:
                event = await self.event()
                if isinstance(event, h11.InformationalResponse):
                    reply.interim.append((event.status_code, texts(event.headers)))
                elif isinstance(event, h11.Response):
                    reply.status = event.status_code
                    reply.headers = texts(event.headers)
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    reply.trailers = texts(event.headers)
                    break
                else:
                    reply.cut = True
                    break
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            reply.cut = True
        reply.body = bytes(body)
        if self.state.our_state is h11.DONE and self.state.their_state is h11.DONE:
            self.state.start_next_cycle()
        return reply


def texts(headers: object) -> dict[str, str]:
    """Headers as text."""
    return {name.decode(): value.decode("latin-1") for name, value in headers}  # type: ignore[attr-defined]


@dataclass
class Site:
    """A server for HTTP in front of a pool."""

    stage: Stage
    pool: Pool
    front: Front
    port: int
    uploads: Path

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A connection that is closed at the end."""
        with trio.fail_after(PATIENCE):
            stream = await trio.open_tcp_stream("127.0.0.1", self.port)
            async with stream:
                yield Client(stream)

    async def ask(
        self, target: str, method: str = "GET", headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Reply:
        """One request on a connection of its own."""
        async with self.client() as client:
            await client.send(target, method, headers, body)
            return await client.reply()

    async def pid(self) -> bytes:
        """Pid of the only worker, as it says itself."""
        return (await self.ask("/pid")).body


MakeSite = Callable[..., "contextlib.AbstractAsyncContextManager[Site]"]


@contextlib.asynccontextmanager
async def open_site(
    stage: Stage,
    folder: Path,
    worker: str = "http_worker.php",
    *arguments: str,
    workers: int = 1,
    limits: dict[str, float] | None = None,
    pool_keys: dict[str, object] | None = None,
    answers: AnswerAccount | None = None,
    **keys: object,
) -> AsyncIterator[Site]:
    """Serve with PHP workers on a free port."""
    uploads = folder / "uploads"
    uploads.mkdir()
    pool_config = PoolConfig(
        command=("php", str(PHP_PROGRAMS / worker), *arguments),
        num_workers=workers,
        allocate_timeout=10.0,
        stop_timeout=2.0,
        stream_timeout=5.0,
        supervisor=SupervisorConfig(**(limits or {})),  # type: ignore[arg-type]
        **(pool_keys or {}),  # type: ignore[arg-type]
    )
    config = HttpConfig(
        address=("127.0.0.1:0",),
        pool=pool_config,
        uploads=UploadsConfig(dir=str(uploads)),
        **keys,  # type: ignore[arg-type]
    )
    pool = Pool(PoolSpec("http", "http", pool_config, {}), stage.workshop, seed=1)
    stage.pools.append(pool)
    with trio.fail_after(PATIENCE):
        await stage.nursery.start(pool.run)
    exchange = Exchange(pool, config, stage.reactor)
    spool = Spool(MIB, 64 * MIB)
    front = Front(stage.reactor, Limits.of(config.limits, config.max_request_size), spool, exchange, answers)
    bound = bind("127.0.0.1:0")
    port = bound.sock.getsockname()[1]
    listener = Listener(bound, front)
    try:
        yield Site(stage, pool, front, port, uploads)
        await until(lambda: not list(uploads.iterdir()), 5, "an empty upload folder")
    finally:
        listener.close()
        front.close_all()
    assert spool.files == 0
    assert spool.memory_bytes == 0
    assert (front.answers.memory_bytes, front.answers.file_bytes, front.answers.files) == (0, 0, 0)


DIALECTS = pytest.mark.parametrize(
    ("worker", "codec"),
    [("http_worker.php", "json"), ("http_worker.php", "proto"), ("http_proto_worker.php", "proto")],
)


@DIALECTS
async def test_request_as_the_worker_sees_it(stage: Stage, tmp_path: Path, worker: str, codec: str) -> None:
    """Address, URI, headers, cookies, query and body arrive the same in both dialects."""
    async with open_site(stage, tmp_path, worker, codec=codec) as site:
        headers = {
            "X-a": "1",
            "Cookie": "c=%41+b",
            "X_Sneaky": "1",
            "Connection": "close, X-Gone",
            "X-Gone": "1",
        }
        reply = await site.ask("/echo?a[]=1&b=%20", "POST", headers, b"\x00\xffraw")
        assert reply.status == 200
        told = json.loads(reply.body)
        assert told["remoteAddr"] == "127.0.0.1"
        assert (told["method"], told["protocol"]) == ("POST", "HTTP/1.1")
        assert told["uri"] == "http://example.org/echo?a[]=1&b=%20"
        assert told["rawQuery"] == "a[]=1&b=%20"
        assert told["cookies"] == {"c": "A b"}
        assert base64.b64decode(told["body"]) == b"\x00\xffraw"
        assert (told["parsed"], told["uploads"]) == (False, None)
        assert {name: told["headers"].get(name) for name in ("X-A", "Content-Length")} == {
            "X-A": ["1"],
            "Content-Length": ["5"],
        }
        assert not set(told["headers"]) & {"Host", "X_sneaky", "X_Sneaky", "Connection", "X-Gone"}


@DIALECTS
async def test_forms_and_files(stage: Stage, tmp_path: Path, worker: str, codec: str) -> None:
    """A worker gets trees, opens the files, and they are gone afterwards."""
    async with open_site(stage, tmp_path, worker, codec=codec) as site:
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        told = json.loads((await site.ask("/echo", "POST", form, b"a[b][]=1&a[b][]=%C3%A4")).body)
        assert told["parsed"] is True
        assert json.loads(base64.b64decode(told["body"])) == {"a": {"b": ["1", "\u00e4"]}}
        told = json.loads((await site.ask("/echo", "POST", form, b"")).body)
        assert base64.b64decode(told["body"]) == b"{}"
        told = json.loads((await site.ask("/echo", "POST", *multipart(b"content" * 1000))).body)
        assert json.loads(base64.b64decode(told["body"])) == {"field": "1"}
        upload = told["uploads"]["file"]["x"]
        assert (upload["name"], upload["mime"], upload["size"], upload["error"]) == (
            "n.txt",
            "text/plain",
            7000,
            0,
        )
        assert base64.b64decode(upload["content"]) == b"content" * 1000
        assert Path(upload["tmpName"]).parent.parent == site.uploads


def multipart(content: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body of a form of a field and a file."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="field"\r\n\r\n1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file[x]"; filename="../../n.txt"\r\n'
        b"Content-Type: text/plain\r\n\r\n" + content + b"\r\n--b--\r\n"
    )
    return {"Content-Type": "multipart/form-data; boundary=b"}, body


async def test_large_bodies(stage: Stage, tmp_path: Path) -> None:
    """Bodies beyond the memory of a request go by way of files, and come back whole."""
    async with open_site(stage, tmp_path) as site:
        body = bytes(range(256)) * 4096 * 6
        assert (await site.ask("/body", "POST", {}, body)).body == body
        told = json.loads((await site.ask("/echo", "POST", *multipart(body))).body)
        assert base64.b64decode(told["uploads"]["file"]["x"]["content"]) == body
        assert (await site.ask(f"/size?n={8 * MIB}")).body == b"x" * (8 * MIB)


async def test_uploads_are_gone_after_a_death(stage: Stage, tmp_path: Path) -> None:
    """A worker that dies with a file leaves none behind."""
    async with open_site(stage, tmp_path) as site:
        reply = await site.ask("/die", "POST", *multipart(b"content"))
        assert reply.status == 502
        assert reply.headers["trailboss-reason"] == "worker died"


async def test_head_and_statuses(stage: Stage, tmp_path: Path) -> None:
    """HEAD, 204 and 304 have no body, and the connection goes on."""
    async with open_site(stage, tmp_path) as site, site.client() as client:
        for method, target, status, body in (
            ("HEAD", "/size?n=100", 200, b""),
            ("GET", "/status?n=204", 204, b""),
            ("GET", "/status?n=304", 304, b""),
            ("GET", "/status?n=599", 599, b"body"),
            ("GET", "/", 200, b"hello"),
        ):
            await client.send(target, method)
            reply = await client.reply()
            assert (reply.status, reply.body, reply.cut) == (status, body, False)


async def test_early_hints_and_trailers(stage: Stage, tmp_path: Path) -> None:
    """103 goes out before the answer, trailers behind it."""
    async with open_site(stage, tmp_path) as site:
        reply = await site.ask("/early-hints")
        assert reply.interim == [(103, {"link": "</style.css>; rel=preload"})]
        assert (reply.status, reply.body) == (200, b"page")
        assert "link" not in reply.headers
        reply = await site.ask("/trailers")
        assert (reply.body, reply.trailers) == (b"body", {"x-sum": "42"})


@DIALECTS
async def test_stream(stage: Stage, tmp_path: Path, worker: str, codec: str) -> None:
    """A stream arrives whole, its pings answered; the worker goes on with the next request."""
    async with open_site(stage, tmp_path, worker, codec=codec) as site:
        pid = await site.pid()
        reply = await site.ask("/stream?n=40")
        assert reply.body == b"".join(b"data: %d\n\n" % number for number in range(1, 41))
        assert reply.headers["content-type"] == "text/event-stream"
        assert await site.pid() == pid


async def test_client_leaves_a_stream(
    stage: Stage, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stream without end stops soon after its client has gone, and the worker stays."""
    async with open_site(stage, tmp_path) as site:
        pid = await site.pid()
        with structlog.testing.capture_logs() as records:
            async with site.client() as client:
                await client.send("/stream?us=2000")
                seen = b""
                while seen.count(b"data") < 20:
                    event = await client.event()
                    seen += event.data if isinstance(event, h11.Data) else b""
            await until(lambda: site.pool.in_flight == 0, 5, "the end of the stream")
        assert await site.pid() == pid
        assert stage.deaths == []
        assert any(record["event"] == "stream stopped" for record in records)


@pytest.mark.parametrize(("target", "size"), [("/", 5), ("/stream?n=50&size=100000", 5_000_000)])
async def test_client_that_closes_its_side(stage: Stage, tmp_path: Path, target: str, size: int) -> None:
    """Whoever has said all and waits gets the whole answer of the worker."""
    async with open_site(stage, tmp_path) as site, site.client() as client:
        await client.send(target)
        await client.stream.send_eof()
        with trio.fail_after(PATIENCE):
            reply = await client.reply()
            assert (reply.status, len(reply.body), reply.cut) == (200, size, False)
            assert await client.stream.receive_some(1) == b""
        assert stage.deaths == []


async def test_slow_reader_does_not_hold_its_worker(stage: Stage, tmp_path: Path) -> None:
    """20 MB for a client that does not read: the only worker serves others meanwhile, and later everything arrives."""
    async with open_site(stage, tmp_path) as site, site.client() as client:
        await client.send("/stream?n=200&size=100000")
        assert (await site.ask("/")).body == b"hello"
        assert site.pool.in_flight == 0
        assert site.front.answers.file_bytes > 5_000_000
        reply = await client.reply()
        assert len(reply.body) == 200 * 100_000
        assert not reply.cut


async def test_back_pressure(stage: Stage, tmp_path: Path) -> None:
    """A client that does not read stops a worker that has filled its file; when it reads, it gets everything."""
    account = AnswerAccount(MIB, 4 * MIB, 2 * MIB, 4 * MIB)
    async with open_site(stage, tmp_path, answers=account) as site, site.client() as client:
        await client.send("/stream?n=200&size=100000")
        await until(lambda: any(is_paused(site)), 10, "a paused worker")
        assert account.file_bytes <= 2 * MIB
        reply = await client.reply()
        assert len(reply.body) == 200 * 100_000
        assert not reply.cut


def is_paused(site: Site) -> list[bool]:
    """Of each worker, whether its stream is paused."""
    lanes = [slot.worker.lane for slot in site.pool.slots if slot.worker is not None]
    return [lane.current.paused for lane in lanes if lane is not None and lane.current is not None]


@pytest.mark.parametrize(
    ("target", "deaths"), [("/short-stream", 0), ("/broken-stream", 1), ("/broken-stream?die=1", 1)]
)
async def test_streams_that_break(stage: Stage, tmp_path: Path, target: str, deaths: int) -> None:
    """A stream that is not whole does not look whole, and the next request is served."""
    async with open_site(stage, tmp_path) as site:
        reply = await site.ask(target)
        assert (reply.status, reply.body, reply.cut) == (200, b"half", True)
        assert (await site.ask("/")).body == b"hello"
        assert len(stage.deaths) == deaths


async def test_hostile_answers(stage: Stage, tmp_path: Path) -> None:
    """Each hostile answer is a 502 with one line in the log; connection and worker go on."""
    async with open_site(stage, tmp_path) as site, site.client() as client:
        pid = await site.pid()
        rows = [row for row in hostile_answers() if len(row[2]) < 65536]
        assert len(rows) > 300
        with trio.fail_after(60), structlog.testing.capture_logs() as records:
            for name, flags, context, body in rows:
                asked = b"%d 0 %d\n" % (flags, len(context)) + context + body
                await client.send("/bad", "POST", {}, asked)
                reply = await client.reply()
                assert (reply.status, reply.headers["trailboss-reason"]) == (502, "bad answer"), name
        assert [record["event"] for record in records] == ["bad answer from a worker"] * len(rows)
        assert await site.pid() == pid
        assert stage.deaths == []


async def test_hostile_streams(stage: Stage, tmp_path: Path) -> None:
    """As the first part of a stream they are refused or cut as well, and the worker ends its stream."""
    async with open_site(stage, tmp_path) as site:
        rows = [row for row in hostile_answers() if len(row[2]) < 2000 and "interim" not in row[0]][::6]
        with structlog.testing.capture_logs():
            for name, flags, context, body in rows:
                asked = b"%d 1 %d\n" % (flags, len(context)) + context + body
                reply = await site.ask("/bad", "POST", {}, asked)
                assert reply.status == 502 or reply.cut, name
        assert (await site.ask("/")).body == b"hello"
        assert stage.deaths == []


async def test_psr_worker_survives_any_uri(stage: Stage, tmp_path: Path) -> None:
    """Whatever a client asks for, the worker gets a URI its library can read: none dies of one."""
    async with open_site(stage, tmp_path, "psr_worker.php") as site:
        assert (await site.ask("/a%20b?c=d")).body == b"GET /a%20b\n"
        for head in (
            b"GET / HTTP/1.0\r\n\r\n",
            b"GET /a HTTP/1.0\r\nHost:\r\n\r\n",
            b"GET //// HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"GET /:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"GET /%%%zz?%zz HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n",
            b"GET /a|b^{}`\\<> HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"GET http://b/c?d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a:99999\r\nConnection: close\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        ):
            async with site.client() as client:
                await client.stream.send_all(head)
                answer = b""
                while data := await client.stream.receive_some(65536):
                    answer += data
                assert answer[:13] in (b"HTTP/1.1 200 ", b"HTTP/1.1 400 "), head
        assert stage.deaths == []


async def test_retry_and_death(stage: Stage, tmp_path: Path) -> None:
    """A GET whose worker died is answered by the next one; a POST is told, and so is a GET that kills twice."""
    async with open_site(stage, tmp_path, workers=2) as site:
        mark = tmp_path / "mark"
        assert (await site.ask(f"/die-once?mark={mark}")).body == b"second"
        mark.unlink()
        reply = await site.ask(f"/die-once?mark={mark}", "POST")
        assert (reply.status, reply.headers["trailboss-reason"]) == (502, "worker died")
        reply = await site.ask("/die")
        assert reply.status == 502
        assert len(stage.deaths) == 4


async def test_errors_of_the_application(stage: Stage, tmp_path: Path) -> None:
    """An error frame is a 500 without its text and keeps the worker; garbage on stdout costs the worker."""
    async with open_site(stage, tmp_path, workers=2, retry=False) as site:
        with structlog.testing.capture_logs() as records:
            reply = await site.ask("/error")
        assert (reply.status, reply.body) == (500, b"")
        assert any(record.get("text") == "the application said no" for record in records)
        assert stage.deaths == []
        assert (await site.ask("/garbage")).status == 502
        assert [death.cause for death in stage.deaths] == ["stdout garbage"]


async def test_refusals(stage: Stage, tmp_path: Path) -> None:
    """Too slow is 504, a full queue is 503 with Retry-After; the code that the user chose replaces both."""
    keys: dict[str, object] = {"max_queue_size": 1}
    async with open_site(stage, tmp_path, limits={"exec_ttl": 0.5}, pool_keys=keys) as site:
        replies: list[Reply] = []

        async def ask() -> None:
            replies.append(await site.ask("/slow?us=30000000"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: site.pool.in_flight == 1)
            nursery.start_soon(ask)
            await until(lambda: site.pool.queued == 1)
            full = await site.ask("/")
            assert (full.status, full.headers["retry-after"]) == (503, "1")
            assert full.headers["trailboss-reason"] == "queue full"
        assert [reply.status for reply in replies] == [504, 504]


async def test_client_leaves_the_queue(stage: Stage, tmp_path: Path) -> None:
    """A request that waits for a worker is dropped with its client; the worker never sees it."""
    async with open_site(stage, tmp_path) as site, site.client() as first:
        await first.send("/slow?us=300000")
        await until(lambda: site.pool.in_flight == 1)
        async with site.client() as second:
            await second.send("/die", "POST")
            await until(lambda: site.pool.queued == 1)
        await until(lambda: site.pool.queued == 0)
        assert (await first.reply()).status == 200
        assert stage.deaths == []


async def test_under_fire(stage: Stage, tmp_path: Path, chaos: random.Random) -> None:
    """Clients that leave and workers that are killed: what looks whole is whole, and nothing is left or lost."""
    async with open_site(stage, tmp_path, workers=3, retry=False) as site:
        whole = b"".join(b"data: %d\n\n" % number for number in range(1, 31))
        outcomes: collections.Counter[str] = collections.Counter()

        async def stream() -> None:
            reply = await site.ask("/stream?n=30&us=300")
            if reply.status == 200 and not reply.cut:
                assert reply.body == whole
            outcomes["cut" if reply.cut else str(reply.status)] += 1

        async def leave() -> None:
            async with site.client() as client:
                await client.send("/stream?us=300")
                for _ in range(chaos.randrange(1, 10)):
                    if not isinstance(await client.event(), (h11.Response, h11.Data)):
                        break
            outcomes["left"] += 1

        async def upload() -> None:
            reply = await site.ask(chaos.choice(["/echo", "/die"]), "POST", *multipart(b"x" * 5000))
            # /die with the same body again and again is quarantined.
            assert reply.status in (200, 502, 503)
            outcomes[str(reply.status)] += 1

        async def kill() -> None:
            workers = site.pool.workers()
            if workers:
                site.pool.kill_one(chaos.choice(workers).pid)
            outcomes["killed"] += 1

        doings = [stream] * 5 + [leave] * 4 + [upload] * 3 + [kill]
        with trio.fail_after(60), structlog.testing.capture_logs():
            for _ in range(12):
                async with trio.open_nursery() as nursery:
                    for doing in chaos.sample(doings, 6):
                        nursery.start_soon(doing)
            await stage.whole(site.pool)
            await until(lambda: site.pool.in_flight == 0, 10, "the end of every stream")
        assert sum(outcomes.values()) == 72
        assert (await site.ask("/")).body == b"hello"


async def test_constant_worker(stage: Stage, tmp_path: Path) -> None:
    """The worker for measurements answers, request after request on one connection."""
    async with open_site(stage, tmp_path, "http_worker.php", "constant") as site, site.client() as client:
        for _ in range(50):
            await client.send("/")
            assert (await client.reply()).body == b"Hello, world!"
