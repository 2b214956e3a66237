"""TLS without a network, and connections over it on a bench: whole content however it is cut, ends that can be told apart."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from front_bench import Bench, MakeBench
from tls_files import TlsFiles, make_pair

from trailboss.certificates import Certificates, load_context
from trailboss.config.schema import HttpSslConfig
from trailboss.plugins.http.connection import Connection
from trailboss.plugins.http.front import Member
from trailboss.plugins.http.handshake import Handshake, TlsEntrance
from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.listen import Listener, bind
from trailboss.plugins.http.message import Request, Responder
from trailboss.plugins.http.tls import TlsChannel, TlsSocket

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ASK_AND_LEAVE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


class Far:
    """A client's TLS, bytes in and bytes out."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.content = b""
        #: Whether the server has said that nothing more follows.
        self.told_the_end = False
        self.complete = False

    def take(self, data: bytes) -> None:
        """Take what the server has sent."""
        self.incoming.write(data)
        if not self.complete:
            try:
                self.tls.do_handshake()
                self.complete = True
            except ssl.SSLWantReadError:
                return
        try:
            while not self.told_the_end:
                part = self.tls.read(65536)
                self.content += part
                self.told_the_end = not part
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.told_the_end = True

    def say(self) -> bytes:
        """Return what is to be sent to the server."""
        return self.outgoing.read()


def client_context(files: TlsFiles, **versions: ssl.TLSVersion) -> ssl.SSLContext:
    """Return a client's context that trusts the test authority."""
    context = ssl.create_default_context(cafile=files.ca)
    for name, version in versions.items():
        setattr(context, name, version)
    return context


def server_context(files: TlsFiles, **keys: str) -> ssl.SSLContext:
    """Return a server's context."""
    config = HttpSslConfig(cert=files.cert, key=files.key, **keys)  # type: ignore[arg-type]
    return load_context(config, ("http/1.1",))


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


# --- the channel ------------------------------------------------------------------------------------------------------


def meet(far: Far, channel: TlsChannel, step: int) -> None:
    """Carry the handshake out, `step` bytes at a time in both directions."""
    done = False
    far.take(b"")
    for _ in range(20):
        said = far.say()
        for at in range(0, len(said), step):
            assert not done
            done = channel.handshake(said[at : at + step])
        answer = channel.take()
        for at in range(0, len(answer), step):
            far.take(answer[at : at + step])
        if done and far.complete:
            return
    raise AssertionError("the handshake never ends")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_channel_split_at_every_byte(tls_files: TlsFiles, version: ssl.TLSVersion, step: int) -> None:
    """Handshake, content and the end are the same whether they come byte by byte or whole; nothing is decrypted late."""
    far = Far(client_context(tls_files, maximum_version=version))
    channel = TlsChannel(server_context(tls_files))
    meet(far, channel, step)
    assert far.tls.version() == version.name.replace("_", ".")
    content = os.urandom(40_000)
    far.tls.write(content)
    said = far.say()
    received = b"".join(channel.decrypt(said[at : at + step]) for at in range(0, len(said), step))
    assert received == content
    assert not channel.has_input
    channel.encrypt(content)
    answer = channel.take()
    for at in range(0, len(answer), step):
        far.take(answer[at : at + step])
    assert far.content == content
    assert not channel.ended
    with pytest.raises(ssl.SSLWantReadError):
        far.tls.unwrap()
    for byte in far.say():
        assert channel.decrypt(bytes([byte])) == b""
    assert channel.ended
    channel.end()
    far.take(channel.take())
    assert far.told_the_end


def test_what_is_agreed_upon(tls_files: TlsFiles) -> None:
    """TLS 1.2 at least, forward secrecy with AEAD, no compression, ALPN, and a session that can be resumed."""
    context = client_context(tls_files)
    context.set_alpn_protocols(["http/1.1"])
    session = None
    for _ in range(2):
        far = Far(context)
        far.tls = context.wrap_bio(far.incoming, far.outgoing, server_hostname="localhost", session=session)
        channel = TlsChannel(shared := SHARED.setdefault("context", server_context(tls_files)))
        meet(far, channel, 100_000)
        session = far.tls.session
        assert channel.alpn == "http/1.1"
        assert far.tls.compression() is None
    assert far.tls.session_reused
    names = [str(cipher["name"]) for cipher in shared.get_ciphers()]
    assert all("GCM" in name or "CHACHA20" in name for name in names), names
    assert all(name.startswith(("TLS_", "ECDHE-")) for name in names), names
    assert shared.options & ssl.OP_NO_RENEGOTIATION
    assert not shared.options & ssl.OP_NO_TICKET


SHARED: dict[str, ssl.SSLContext] = {}


def test_old_versions_are_refused(tls_files: TlsFiles) -> None:
    """TLS 1.1 gets an alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tls_files.ca)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.options &= ~ssl.OP_NO_TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    far, channel = Far(context), TlsChannel(server_context(tls_files))
    far.take(b"")
    with pytest.raises(ssl.SSLError):
        channel.handshake(far.say())
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        far.take(channel.take())


# --- the socket -------------------------------------------------------------------------------------------------------


class Line:
    """A TlsSocket and a client of it, over a socket pair whose kernel buffers are small."""

    def __init__(self, files: TlsFiles) -> None:
        self.bench = Bench()
        ours, self.sock = socket.socketpair()
        ours.setblocking(False)
        self.sock.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.far = Far(client_context(files))
        channel = TlsChannel(server_context(files))
        meet(self.far, channel, 100_000)
        self.near = TlsSocket(ours, channel, self.bench.reactor)

    def receive(self, size: int = 1 << 20) -> None:
        """Let the client take so many bytes."""
        try:
            self.far.take(self.sock.recv(size))
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Close both ends."""
        self.near.close()
        self.sock.close()
        self.bench.close()


@pytest.fixture
def line(tls_files: TlsFiles) -> Iterator[Line]:
    """Return a line that is closed at the end."""
    made = Line(tls_files)
    yield made
    made.close()


@pytest.mark.parametrize("take", [1, 1000, 100_000])
def test_sending_into_a_full_kernel(line: Line, take: int) -> None:
    """Whatever the kernel takes, offering the rest again sends each byte once; all is taken only when all has left."""
    size = 20_000 if take == 1 else 3_000_000
    content = os.urandom(size)
    rest = memoryview(content)
    full = 0
    for _ in range(1_000_000):
        try:
            sent = line.near.send(rest)
            assert sent > 0
            rest = rest[sent:]
        except BlockingIOError:
            full += 1
            assert rest  # the caller always keeps something to wait for
            line.receive(take)
        if not rest:
            break
    while len(line.far.content) < size:
        line.receive()
    assert line.far.content == content
    assert full > 3


def test_pieces_files_and_small_parts_keep_their_order(line: Line, tmp_path: Path) -> None:
    """sendmsg, send_file and sends of one byte may follow each other at any stop."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(700_000))
    body = os.urandom(500_000)
    queue: list[bytes | tuple[int, int]] = [
        b"head",
        body,
        b"x",
        (100, 600_000),
        b"y",
        b"z" * 70_000,
        (0, 1),
        b"end",
    ]
    expected = b"".join(
        part if isinstance(part, bytes) else path.read_bytes()[part[0] : part[0] + part[1]] for part in queue
    )
    file = os.open(path, os.O_RDONLY)
    first = line.near.sendmsg((b"head", body))
    assert 4 < first < 500_004
    queue[:2] = [body[first - 4 :]]
    while queue:
        part = queue[0]
        try:
            if isinstance(part, bytes):
                queue[0] = part[line.near.send(part) :]
                done = not queue[0]
            else:
                sent = line.near.send_file(file, *part)
                queue[0] = (part[0] + sent, part[1] - sent)
                done = sent == part[1]
            if done:
                queue.pop(0)
        except BlockingIOError:
            line.receive(30_000)
    while len(line.far.content) < len(expected):
        line.receive()
    assert line.far.content == expected
    assert line.near.send_file(file, 700_000, 10) == 0  # the file has ended
    os.close(file)


def test_what_is_received(line: Line) -> None:
    """An incomplete record is nothing yet; a complete one is whole; the end and a cut are the end."""
    line.far.tls.write(b"a" * 30_000)
    said = line.far.say()
    line.sock.send(said[:100])
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            line.near.recv(65536)
    line.sock.send(said[100:])
    assert line.near.recv(65536) == b"a" * 30_000
    with pytest.raises(BlockingIOError):
        line.near.recv(65536)
    line.far.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        line.far.tls.unwrap()
    line.sock.send(line.far.say())
    assert line.near.recv(65536) == b"last"
    assert line.near.recv(65536) == b""


def test_a_part_of_a_record_while_an_answer_waits(line: Line) -> None:
    """A client that is slow to take its answer may send its next request in pieces; nothing is cut for that."""
    content = os.urandom(1_000_000)
    rest = memoryview(content)
    with pytest.raises(BlockingIOError):
        while True:
            rest = rest[line.near.send(rest) :]
    line.far.tls.write(b"next")
    said = line.far.say()
    line.sock.send(said[:10])
    with pytest.raises(BlockingIOError):
        line.near.recv(65536)
    line.sock.send(said[10:])
    assert line.near.recv(65536) == b"next"
    while rest:
        line.receive()
        try:
            rest = rest[line.near.send(rest) :]
        except BlockingIOError:
            pass
    while len(line.far.content) < len(content):
        line.receive()
    assert line.far.content == content


class Talkative:
    """A channel of which every record makes TLS say something, as requests to change the key do."""

    ended = False
    has_input = False
    has_output = True
    output_size = 1000

    def decrypt(self, _data: bytes) -> bytes:
        """Return a little content."""
        return b"x"

    def take(self) -> bytes:
        """Return what TLS says."""
        return b"-" * self.output_size


def test_a_client_that_makes_tls_talk_and_does_not_listen(line: Line) -> None:
    """What TLS says on its own account is bounded, also where content comes in between; taking it makes room again."""
    ours, client = socket.socketpair()
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near = TlsSocket(ours, cast(TlsChannel, Talkative()), line.bench.reactor)
    taken = 0
    for _ in range(500):
        client.send(b"?")
        assert near.recv(65536) == b"x"
        taken += len(client.recv(1 << 20))
    assert taken > 400_000
    with pytest.raises(ConnectionAbortedError):
        for _ in range(500):
            client.send(b"?")
            assert near.recv(65536) == b"x"
    ours.close()
    client.close()


def test_a_damaged_record_is_an_error_with_an_alert(line: Line) -> None:
    """The caller gets an OSError, the client an alert."""
    line.far.tls.write(b"secret")
    said = bytearray(line.far.say())
    said[-1] ^= 1
    line.sock.send(said)
    with pytest.raises(OSError, match=r"BAD_RECORD|DECRYPTION"):
        line.near.recv(65536)
    with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
        line.far.take(line.sock.recv(65536))


def test_the_end_is_told_even_through_a_full_kernel(line: Line) -> None:
    """shutdown without room sends close_notify later; then the stream ends; close alone tells nothing."""
    line.bench.reactor.register(line.near.fileno(), lambda: None, lambda: None)
    filler = socket.socket(fileno=os.dup(line.near.fileno()))
    filler.setblocking(False)
    # Somebody else's bytes fill the kernel, which a record of a few bytes cannot.
    filled = 0
    try:
        while True:
            filled += filler.send(b"-" * 1000)
    except BlockingIOError:
        pass
    line.near.shutdown(socket.SHUT_WR)
    while filled:
        filled -= len(line.sock.recv(filled))
    with pytest.raises(BlockingIOError):
        line.sock.recv(1)
    line.near.shutdown(socket.SHUT_WR)
    line.receive()
    assert line.far.told_the_end
    assert line.sock.recv(10) == b""
    line.bench.reactor.unregister(line.near.fileno())
    filler.close()


# --- connections ------------------------------------------------------------------------------------------------------


class Visitor:
    """A client on the bench that comes in through the handshake."""

    def __init__(self, bench: Bench, entrance: TlsEntrance, context: ssl.SSLContext) -> None:
        self.bench = bench
        ours, self.sock = socket.socketpair()
        ours.setblocking(False)
        self.sock.setblocking(False)
        before = set(bench.front.connections)
        entrance.admit(ours, "local:443", "192.0.2.1", 4711)
        (self.member,) = set(bench.front.connections) - before
        self.far = Far(context)
        self.ended = False
        self.reset = False

    def raw(self, data: bytes, step: int = 1 << 20) -> None:
        """Send bytes as they are, so many at a time."""
        view = memoryview(data)
        while view and not self.ended:
            try:
                view = view[self.sock.send(view[:step]) :]
            except BlockingIOError:
                pass
            except OSError:
                return
            self.pump()

    def pump(self) -> None:
        """Let the front work; take what it sends, and answer what TLS wants to answer."""
        for _ in range(100_000):
            self.bench.settle()
            try:
                data = self.sock.recv(1 << 20)
            except BlockingIOError:
                return
            except ConnectionResetError:
                self.ended = self.reset = True
                return
            if not data:
                self.ended = True
                return
            self.far.take(data)

    def shake(self, step: int = 1 << 20) -> None:
        """Carry the handshake out."""
        self.far.take(b"")
        for _ in range(10):
            said = self.far.say()
            if said:
                self.raw(said, step)
            if self.far.complete and not said:
                return
        raise AssertionError("the handshake never ends")

    def send(self, data: bytes, step: int = 1 << 20) -> None:
        """Send content."""
        for at in range(0, len(data), 1 << 20):
            self.far.tls.write(data[at : at + (1 << 20)])
            self.raw(self.far.say(), step)
        self.pump()

    @property
    def connection(self) -> Connection:
        """What the handshake has become."""
        found = [one for one in self.bench.front.connections if isinstance(one, Connection)]
        assert len(found) == 1
        return found[0]


Open = Callable[..., Visitor]


@pytest.fixture
def visit(make_bench: MakeBench, tls_files: TlsFiles) -> Iterator[Open]:
    """Return a maker of visitors, by default of one new bench, with the handshake done."""
    visitors: list[Visitor] = []
    certificates = Certificates(HttpSslConfig(cert=tls_files.cert, key=tls_files.key), ("http/1.1",))
    entrances: dict[int, TlsEntrance] = {}

    def visit(bench: Bench | None = None, *, shaken: bool = True, step: int = 1 << 20) -> Visitor:
        bench = bench or make_bench()
        entrance = entrances.setdefault(id(bench), TlsEntrance(bench.front, certificates))
        visitor = Visitor(bench, entrance, client_context(tls_files))
        visitors.append(visitor)
        if shaken:
            visitor.shake(step)
        return visitor

    yield visit
    for visitor in visitors:
        visitor.sock.close()


@pytest.mark.parametrize("step", [1, 1000, 1 << 20])
def test_requests_over_tls(visit: Open, step: int) -> None:
    """Kept connections, pipelines and bodies work however the bytes are cut; the scheme is https."""
    visitor = visit(step=step)
    visitor.send(GET + b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + GET, step)
    assert visitor.far.content.count(b"HTTP/1.1 200 OK") == 3
    visitor.send(GET, step)
    assert visitor.far.content.count(b"HTTP/1.1 200 OK") == 4
    requests = visitor.bench.echo.seen
    assert [request.scheme for request in requests] == ["https"] * 4
    assert (requests[1].remote_addr, requests[1].remote_port) == ("192.0.2.1", 4711)
    assert not visitor.ended


def test_a_request_that_comes_along_with_the_handshake(visit: Open) -> None:
    """Bytes behind the client's last flight are looked at without another event."""
    visitor = visit(shaken=False)
    far = visitor.far
    far.take(b"")
    visitor.sock.send(far.say())
    visitor.pump()
    assert far.complete
    far.tls.write(GET)
    visitor.raw(far.say())  # the last flight and the request in one piece
    assert far.content.startswith(b"HTTP/1.1 200 OK\r\n")


def test_large_bodies_both_ways(visit: Open, make_bench: MakeBench) -> None:
    """Megabytes come back as they went, in bounded pieces."""
    visitor = visit()
    body = os.urandom(5_000_000)
    visitor.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n" + body)
    assert visitor.far.content.partition(b"\r\n\r\n")[2] == body


def test_a_file_over_tls(visit: Open, make_bench: MakeBench, tmp_path: Path) -> None:
    """A file is read, encrypted and sent in its turn, behind the head and before the end."""
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)

    def handler(request: Request, responder: Responder) -> None:
        responder.head(200, [], length=2_999_990)
        responder.file(os.open(tmp_path / "file", os.O_RDONLY), 10, 2_999_990)
        responder.end()

    visitor = visit(make_bench(handler))
    visitor.send(GET + GET)
    head, _, rest = visitor.far.content.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert rest.startswith(content[10:])
    assert rest.endswith(content[10:])
    assert len(rest) == 2 * 2_999_990 + len(head) + 4


def test_a_slow_client_over_tls(visit: Open, make_bench: MakeBench) -> None:
    """What the client does not take waits, and the one that takes nothing is cut after write_timeout."""
    bench = make_bench(lambda _request, responder: responder.respond(200, [], b"x" * 3_000_000))
    visitor = visit(bench)
    visitor.far.tls.write(GET)
    visitor.sock.send(visitor.far.say())
    bench.settle()
    for _ in range(5):
        bench.advance(20)
        visitor.far.take(visitor.sock.recv(50_000))
        bench.settle()
    assert bench.front.answers.file_bytes > 0
    bench.advance(45)
    assert bench.front.connections == set()
    assert bench.front.counters.timeouts == 1
    visitor.pump()
    assert not visitor.far.told_the_end  # a cut is a cut


@pytest.mark.parametrize("request_", [ASK_AND_LEAVE, b"GET / HTTP/1.0\r\n\r\n", b"nonsense\r\n\r\n"])
def test_the_end_of_a_connection_is_told(visit: Open, request_: bytes) -> None:
    """After the last answer comes close_notify, then the end of the stream."""
    visitor = visit()
    visitor.send(request_)
    assert visitor.far.content.startswith(b"HTTP/1.1 ")
    assert visitor.far.told_the_end
    assert visitor.ended
    visitor.sock.close()
    visitor.bench.settle()
    assert visitor.bench.front.connections == set()


def test_an_idle_connection_is_told(visit: Open) -> None:
    """The idle limit ends a connection with close_notify."""
    visitor = visit()
    visitor.send(GET)
    visitor.bench.advance(76)
    visitor.pump()
    assert visitor.far.told_the_end
    assert not visitor.reset


def test_a_broken_answer_is_not_told_its_end(visit: Open, make_bench: MakeBench) -> None:
    """An answer that is cut short looks cut short."""

    def handler(request: Request, responder: Responder) -> None:
        responder.head(200, [], length=100)
        responder.data(b"half")
        responder.abort()

    visitor = visit(make_bench(handler))
    visitor.send(GET)
    assert visitor.ended
    assert not visitor.far.told_the_end


def test_a_client_that_ends_tls_only(visit: Open) -> None:
    """close_notify without the end of TCP ends a kept connection at the next look, and both ends are told."""
    visitor = visit()
    visitor.send(GET)
    with pytest.raises(ssl.SSLWantReadError):
        visitor.far.tls.unwrap()
    visitor.raw(visitor.far.say())
    assert visitor.ended
    assert visitor.bench.front.connections == set()


# --- clients that are no good -----------------------------------------------------------------------------------------


def test_plain_http_gets_an_answer_in_http(visit: Open) -> None:
    """400 names the mistake; the connection ends in good order."""
    visitor = visit(shaken=False)
    visitor.sock.send(GET)
    visitor.bench.settle()
    answer = visitor.sock.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    for line in (
        b"\r\nDate: ",
        b"\r\nConnection: close",
        b"\r\ntrailboss-reason: a plain HTTP request was sent",
    ):
        assert line in head
    assert b"https" in body
    assert visitor.sock.recv(10) == b""
    assert visitor.bench.front.counters.refusals == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 100,
        b"\x16\x03\x01\xff\xff" + b"\xff" * 300,
        b"\x16\x03\x01\x00\x05hello",
        b"\x80\x2e\x01\x00\x02",
    ],
)
def test_garbage_costs_its_own_connection(visit: Open, make_bench: MakeBench, garbage: bytes) -> None:
    """It ends with an alert or without; the next client is served."""
    bench = make_bench()
    visitor = visit(bench, shaken=False)
    visitor.sock.send(garbage)
    bench.settle()
    visitor.sock.shutdown(socket.SHUT_WR)
    bench.settle()
    bench.advance(11)
    assert bench.front.connections == set()
    other = visit(bench)
    other.send(GET)
    assert other.far.content.startswith(b"HTTP/1.1 200 OK")


def test_a_failed_handshake_leaves_time_to_read_the_alert(visit: Open, tls_files: TlsFiles) -> None:
    """The client that does not trust us, or is not trusted, learns why; after a moment the connection is closed."""
    visitor = visit(shaken=False)
    visitor.sock.send(b"\x16\x03\x01\x00\x05hello" + b"more that nobody reads")
    visitor.bench.settle()
    assert visitor.sock.recv(100)[:1] == b"\x15"
    assert visitor.sock.recv(100) == b""
    assert visitor.bench.front.counters.handshakes_failed == 1
    assert cast(Handshake, visitor.member).is_leaving
    visitor.bench.advance(2.1)
    assert visitor.bench.front.connections == set()


@pytest.mark.parametrize("sent", [0, 5, 200])
def test_a_slow_handshake_has_the_time_of_a_head(visit: Open, make_bench: MakeBench, sent: int) -> None:
    """Nothing, a part or all of a ClientHello, and then silence."""
    bench = make_bench(limits=Limits(head_timeout_seconds=3))
    visitor = visit(bench, shaken=False)
    visitor.far.take(b"")
    visitor.sock.send(visitor.far.say()[:sent])
    bench.advance(2.9)
    assert len(bench.front.connections) == 1
    bench.advance(0.3)
    assert bench.front.connections == set()
    assert bench.front.counters.timeouts == 1


def test_a_reset_in_the_handshake(visit: Open) -> None:
    """A client that goes is gone, at every stage."""
    for stage in (0, 100, 1000):
        visitor = visit(shaken=False)
        visitor.far.take(b"")
        visitor.sock.send(visitor.far.say()[:stage])
        visitor.bench.settle()
        visitor.sock.close()
        visitor.bench.settle()
        assert visitor.bench.front.connections == set()


def test_handshakes_take_turns_with_requests(visit: Open, make_bench: MakeBench) -> None:
    """Fifty handshakes at once are not one turn of the reactor, and all of them come through."""
    bench = make_bench()
    bench.reactor._turn_ends = 0.0  # every turn is over at once
    visitors = [visit(bench, shaken=False) for _ in range(50)]
    for visitor in visitors:
        visitor.far.take(b"")
        visitor.sock.send(visitor.far.say())
    bench.reactor.turn()
    answered = 0
    for visitor in visitors:
        try:
            answered += bool(visitor.sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            pass
    assert answered <= 2
    for visitor in visitors:
        visitor.pump()
        visitor.shake()
        visitor.send(GET)
        assert visitor.far.content.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("when", ["made", "begun"])
def test_a_connection_that_cannot_begin_costs_itself_only(
    visit: Open, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """An error of ours right behind a handshake is logged, its socket closed, and the next client served."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("for the test")

    bench = make_bench()
    visitor = visit(bench, shaken=False)
    far = visitor.far
    far.take(b"")
    visitor.sock.send(far.say())
    visitor.pump()
    far.tls.write(GET)
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "__init__" if when == "made" else "begin", fail)
        visitor.raw(far.say())
    assert visitor.ended
    assert bench.front.connections == set()
    other = visit(bench)
    other.send(GET)
    assert other.far.content.startswith(b"HTTP/1.1 200 OK")


def test_half_open_handshakes_are_closed_by_the_drain(visit: Open) -> None:
    """A drain does not wait for who has said nothing; the end closes everybody."""
    bench = visit(shaken=False).bench
    front = bench.front
    assert front.open_count == 1
    front.close_idle(bench.reactor.now - 1)
    assert front.open_count == 1
    front.close_idle(bench.reactor.now)
    assert front.connections == set()


def test_handshakes_count_as_connections(make_bench: MakeBench, tls_files: TlsFiles) -> None:
    """Beyond max_connections nobody is let in, however little those before have said."""
    bench = make_bench(limits=Limits(connections=2))
    certificates = Certificates(HttpSslConfig(cert=tls_files.cert, key=tls_files.key), ())
    bound = bind("127.0.0.1:0")
    listener = Listener(bound, bench.front, TlsEntrance(bench.front, certificates))
    place = bound.sock.getsockname()
    clients = [socket.create_connection(place) for _ in range(3)]
    bench.settle()
    assert len(bench.front.connections) == 2
    assert bench.front.counters.turned_away == 1
    assert clients[2].recv(10) == b""
    for client in clients:
        client.close()
    bench.settle()
    assert bench.front.connections == set()
    listener.close()


def test_a_hello_that_never_ends(visit: Open) -> None:
    """A message that announces sixteen megabytes is refused at its first record, not collected."""
    visitor = visit(shaken=False)
    visitor.sock.send(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"\x00" * (16384 - 4))
    visitor.bench.settle()
    assert visitor.sock.recv(100)[:1] == b"\x15"
    assert visitor.bench.front.counters.handshakes_failed == 1
    visitor.bench.advance(2.1)
    members: set[Member] = visitor.bench.front.connections
    assert members == set()


# --- client certificates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "without", "good", "foreign"),
    [
        ("no_client_cert", True, True, True),
        ("no_client_certs", True, True, True),
        ("request_client_cert", True, True, False),
        ("verify_client_cert_if_given", True, True, False),
        ("require_any_client_cert", False, True, False),
        ("require_and_verify_client_cert", False, True, False),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_client_certificates(
    tls_files: TlsFiles,
    tmp_path: Path,
    kind: str,
    without: bool,
    good: bool,
    foreign: bool,
    version: ssl.TLSVersion,
) -> None:
    """Who gets in by each value of client_auth_type."""
    server = server_context(tls_files, root_ca=tls_files.ca, client_auth_type=kind)
    pairs = {
        "without": (None, without),
        "good": (make_pair("client", tls_files.authority), good),
        "foreign": (make_pair("client", make_pair("Other", authority=True)), foreign),
    }
    for name, (pair, expected) in pairs.items():
        context = client_context(tls_files, maximum_version=version)
        if pair is not None:
            context.load_cert_chain(*pair.write(tmp_path, name))
        try:
            meet(Far(context), TlsChannel(server), 100_000)
            entered = True
        except ssl.SSLError:
            entered = False
        assert (name, entered) == (name, expected)


def test_an_authority_need_not_be_a_root(tls_files: TlsFiles, tmp_path: Path) -> None:
    """What root_ca lists is trusted as it is, as in Go."""
    between = make_pair("Between", tls_files.authority, authority=True)
    ca, _ = between.write(tmp_path, "between")
    server = server_context(tls_files, root_ca=ca, client_auth_type="require_and_verify_client_cert")
    context = client_context(tls_files)
    context.load_cert_chain(*make_pair("client", between).write(tmp_path, "client"))
    far = Far(context)
    meet(far, TlsChannel(server), 100_000)
    assert far.complete
