"""The listening end: addresses with clear errors, sockets of dead servers, accepting under bad conditions."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from front_bench import Bench, MakeBench

from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.listen import AddressError, Listener, bind

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def ask(bench: Bench, family: int, place: object) -> tuple[bytes, socket.socket]:
    """Connect, send a request, return what came."""
    client = socket.socket(family)
    client.connect(place)  # type: ignore[arg-type]
    client.setblocking(False)
    client.sendall(GET)
    bench.settle()
    try:
        return client.recv(65536), client
    except BlockingIOError:
        return b"", client


def test_tcp(make_bench: MakeBench) -> None:
    """A request is answered; the request knows who asked; sockets have no Nagle delay and a sign of life."""
    bench = make_bench()
    listener = Listener(bind("127.0.0.1:0"), bench.front)
    host, _, port = listener.address.rpartition(":")
    received, client = ask(bench, socket.AF_INET, (host, int(port)))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert bench.echo.seen[0].remote_addr == "127.0.0.1"
    assert bench.echo.seen[0].remote_port == client.getsockname()[1]
    (connection,) = bench.front.connections
    assert connection._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
    assert connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
    client.close()
    listener.close()
    listener.close()
    with socket.socket() as refused, pytest.raises(ConnectionRefusedError):
        refused.connect((host, int(port)))


def test_every_interface(make_bench: MakeBench) -> None:
    """An empty host takes IPv4 too, and the client's address is written as IPv4."""
    bench = make_bench()
    listener = Listener(bind(":0"), bench.front)
    port = int(listener.address.rpartition(":")[2])
    received, client = ask(bench, socket.AF_INET, ("127.0.0.1", port))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert bench.echo.seen[0].remote_addr == "127.0.0.1"
    client.close()
    listener.close()


@pytest.mark.parametrize("scheme", ["unix:", "unix://"])
def test_unix_socket(make_bench: MakeBench, tmp_path: Path, scheme: str) -> None:
    """Both ways of writing it; whoever can reach the folder may connect; the file goes with the listener."""
    bench = make_bench()
    path = tmp_path / "http.sock"
    listener = Listener(bind(f"{scheme}{path}"), bench.front)
    assert listener.address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    received, client = ask(bench, socket.AF_UNIX, str(path))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert bench.echo.seen[0].remote_addr == "127.0.0.1"
    client.close()
    listener.close()
    assert not path.exists()


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    """Nobody answers there, so it is removed; one that answers is left alone."""
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bound = bind(f"unix:{path}")
    with pytest.raises(AddressError, match="another server is listening"):
        bind(f"unix:{path}")
    bound.close()


def test_the_file_of_another_server_stays(tmp_path: Path) -> None:
    """A listener removes only its own socket."""
    path = tmp_path / "http.sock"
    bound = bind(f"unix:{path}")
    path.unlink()
    other = bind(f"unix:{path}")
    bound.close()
    assert path.exists()
    other.close()


def test_addresses_that_cannot_be_bound(tmp_path: Path) -> None:
    """Each error names the key, the address, what is wrong and what to do."""
    taken = bind("127.0.0.1:0")
    (tmp_path / "file").write_text("x")
    for address, text in (
        (taken.address, "the port is in use; stop the program that has it or choose another port"),
        ("192.0.2.1:8080", "this machine does not have that address; change the host"),
        ("no-such-host.invalid:80", "is not known"),
        ("nonsense", "there is no port; write host:port or unix:/path"),
        (f"unix:{tmp_path}/none/http.sock", "does not exist; make it or change the path"),
        (f"unix:{tmp_path}/file", "exists and is no socket; remove it or change the path"),
    ):
        with pytest.raises(AddressError) as caught:
            bind(address)
        assert str(caught.value).startswith(f"http.address: {address}: ")
        assert text in str(caught.value)
    taken.close()


def test_too_many_connections_are_turned_away(make_bench: MakeBench) -> None:
    """Beyond the limit a connection is closed at once; when one ends, the next is taken."""
    bench = make_bench(limits=Limits(connections=2))
    listener = Listener(bind("127.0.0.1:0"), bench.front)
    place = ("127.0.0.1", int(listener.address.rpartition(":")[2]))
    clients = [ask(bench, socket.AF_INET, place) for _ in range(2)]
    assert all(received for received, _ in clients)
    with socket.create_connection(place) as third:
        bench.settle()
        assert third.recv(10) == b""
    assert bench.front.counters.turned_away == 1
    clients[0][1].close()
    bench.settle()
    received, fourth = ask(bench, socket.AF_INET, place)
    assert received.startswith(b"HTTP/1.1 200 ")
    fourth.close()
    clients[1][1].close()
    listener.close()


class _Failing:
    """A listening socket whose accept fails a number of times."""

    def __init__(self, sock: socket.socket, error: int, times: int) -> None:
        self._sock = sock
        self._error = error
        self._times = times

    def accept(self) -> tuple[socket.socket, object]:
        """Fail, or accept."""
        if self._times:
            self._times -= 1
            raise OSError(self._error, os.strerror(self._error))
        return self._sock.accept()

    def fileno(self) -> int:
        """The real one's."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the real one."""
        self._sock.close()


@pytest.mark.parametrize(
    ("error", "pauses"), [(errno.EMFILE, True), (errno.ENOBUFS, True), (errno.ECONNABORTED, False)]
)
def test_accept_fails(make_bench: MakeBench, error: int, pauses: bool) -> None:
    """No descriptors: it pauses and goes on by itself. A peer that has gone again: the next one is taken at once."""
    bench = make_bench()
    bound = bind("127.0.0.1:0")
    bound.sock = _Failing(bound.sock, error, 1)  # type: ignore[assignment]
    listener = Listener(bound, bench.front)
    received, client = ask(bench, socket.AF_INET, ("127.0.0.1", int(listener.address.rpartition(":")[2])))
    if pauses:
        assert received == b""
        bench.advance(0.2)
        received = client.recv(65536)
    assert received.startswith(b"HTTP/1.1 200 ")
    client.close()
    listener.close()


def test_a_crowd_in_the_backlog_is_taken(make_bench: MakeBench) -> None:
    """All of it, however many have connected since the last accept."""
    bench = make_bench()
    listener = Listener(bind("127.0.0.1:0"), bench.front)
    address = ("127.0.0.1", int(listener.address.rpartition(":")[2]))
    clients = [socket.create_connection(address) for _ in range(200)]
    for client in clients:
        client.sendall(GET)
    listener.turn_away()
    listener.accept_waiting()
    listener.close()
    bench.settle()
    for client in clients:
        client.settimeout(5)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        client.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_nobody_comes_between_the_last_look_and_the_end(make_bench: MakeBench, host: str) -> None:
    """Newcomers are not reset but wait, and are refused once the listener is gone; who is there is answered as ever."""
    bench = make_bench()
    try:
        bound = bind(f"{host}:0")
    except AddressError:
        pytest.skip("needs this kind of address")
    listener = Listener(bound, bench.front)
    address = (host.strip("[]"), int(listener.address.rpartition(":")[2]))
    early = socket.create_connection(address)
    listener.turn_away()
    late = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    late.settimeout(0.2)
    with pytest.raises(TimeoutError):
        late.connect(address)
    listener.accept_waiting()
    listener.close()
    early.sendall(GET)
    bench.settle()
    assert early.recv(65536).startswith(b"HTTP/1.1 200 ")
    late.setblocking(True)
    late.settimeout(10)
    with pytest.raises(OSError, match=r"refused|progress|already"):
        late.connect(address)
    early.close()
    late.close()


def test_the_file_of_a_unix_socket_goes_first(make_bench: MakeBench, tmp_path: Path) -> None:
    """Nobody can connect any more, and who has connected is taken."""
    bench = make_bench()
    listener = Listener(bind(f"unix:{tmp_path}/a.sock"), bench.front)
    early = socket.socket(socket.AF_UNIX)
    early.connect(f"{tmp_path}/a.sock")
    listener.turn_away()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.sock").write_text("somebody else's by now")
    listener.accept_waiting()
    listener.close()
    early.sendall(GET)
    bench.settle()
    assert early.recv(65536).startswith(b"HTTP/1.1 200 ")
    early.close()
    assert (tmp_path / "a.sock").exists()


def test_who_has_connected_before_the_end_is_taken(make_bench: MakeBench) -> None:
    """Connections in the backlog get an answer although the listener closes."""
    bench = make_bench()
    listener = Listener(bind("127.0.0.1:0"), bench.front)
    client = socket.create_connection(("127.0.0.1", int(listener.address.rpartition(":")[2])))
    client.sendall(GET)
    listener.accept_waiting()
    listener.close()
    listener.accept_waiting()
    bench.settle()
    assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    client.close()
