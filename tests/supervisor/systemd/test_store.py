"""The descriptor store: what is sent to systemd, and what of a store is taken back."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from trailboss.activation import PassedSockets
from trailboss.handover import Handover, Offer
from trailboss.systemd.store import SocketStore, store_name


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Stands for systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.settimeout(5)
        yield found


@pytest.fixture
def store(manager: socket.socket) -> SocketStore:
    """A store that the manager allows."""
    found = SocketStore.of_unit({"NOTIFY_SOCKET": manager.getsockname(), "TRAILBOSS_FDSTORE": "1"})
    assert found is not None
    return found


def listening(address: str | tuple[str, int] = ("127.0.0.1", 0)) -> socket.socket:
    """Return a listening socket."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.bind(address)
    sock.listen(8)
    return sock


def as_passed(*items: tuple[str, socket.socket]) -> PassedSockets:
    """Return sockets as LISTEN_FDS brings them; the descriptors are copies."""
    return PassedSockets([(name, os.dup(sock.fileno())) for name, sock in items])


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"NOTIFY_SOCKET": "/n", "TRAILBOSS_FDSTORE": "1"}, True),
        ({"NOTIFY_SOCKET": "/n", "FDSTORE": "8"}, True),
        ({"NOTIFY_SOCKET": "/n", "FDSTORE": "0", "TRAILBOSS_FDSTORE": "1"}, False),
        ({"NOTIFY_SOCKET": "/n"}, False),
        ({"TRAILBOSS_FDSTORE": "1"}, False),
    ],
)
def test_the_store_is_used_only_where_the_unit_has_one(environ: dict[str, str], expected: bool) -> None:
    """systemd complains of descriptors that it has no room for, so nothing is sent unless it was said."""
    assert (SocketStore.of_unit(environ) is not None) is expected


def test_names_are_valid_stable_and_short() -> None:
    """No colon and no control character, at most 255 characters, and different for different addresses."""
    assert store_name("http", "127.0.0.1:8080") == "trailboss-http-127.0.0.1%3A8080"
    assert store_name("http", "unix:/run/a b\n") == "trailboss-http-unix%3A/run/a%20b%0A"
    lengthy = [store_name("http", f"unix:/{'ä' * 100}{end}") for end in "ab"]
    assert lengthy[0] != lengthy[1]
    assert max(map(len, lengthy)) <= 255


def test_a_kept_socket_goes_to_systemd_with_its_name(store: SocketStore, manager: socket.socket) -> None:
    """One datagram has the descriptor, its name, and no wish to be polled; `on_kept` is called then."""
    kept = []
    with listening() as sock:
        offer = Offer("http", "127.0.0.1:0", sock, lambda: None, on_kept=lambda: kept.append(1))
        Handover(store=store).offer(offer)
        data, fds, _, _ = socket.recv_fds(manager, 4096, 4)
        with socket.socket(fileno=fds[0]) as received:
            assert received.getsockname() == sock.getsockname()
    assert data.decode().split("\n") == ["FDSTORE=1", "FDNAME=trailboss-http-127.0.0.1%3A0", "FDPOLL=0"]
    assert kept == [1]


def test_a_successor_sends_nothing_before_it_is_in_charge(store: SocketStore, manager: socket.socket) -> None:
    """Neither what it listens on nor what it gives up: the old server speaks for the unit."""
    mine, theirs = socket.socketpair()
    with mine, theirs, listening() as sock:
        handover = Handover(channel=mine, store=store)
        handover.offer(Offer("rpc", "tcp://127.0.0.1:0", sock, lambda: None))
        handover.withdraw("rpc", "tcp://127.0.0.1:0")
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)


def test_what_comes_back_is_claimed_by_its_address(store: SocketStore) -> None:
    """A stored socket serves the plugin and address it was stored for, once, and can be offered again under the same."""
    with listening() as sock:
        passed = as_passed(("web", sock), (store_name("http", "127.0.0.1:80"), sock))
        store.take(passed)
        assert [name for name, _ in passed.found] == ["web"]
        passed.close_rest()
        assert store.claim("status", "127.0.0.1:80") is None
        found = store.claim("http", "127.0.0.1:80")
        assert found is not None
        assert (found.kind, found.key) == ("http", "127.0.0.1:80")
        with found.socket() as taken:
            assert taken.getsockname() == sock.getsockname()
        assert store.claim("http", "127.0.0.1:80") is None


def test_what_nobody_claims_is_closed_and_leaves_the_store(
    store: SocketStore, manager: socket.socket, tmp_path: Path
) -> None:
    """An address that the configuration has no more is closed here and in the store, and the file of its socket goes."""
    path = str(tmp_path / "web.sock")
    with listening(path) as sock:
        passed = as_passed((store_name("http", f"unix:{path}"), sock))
        fd = passed.found[0][1]
        store.take(passed)
        store.drop_unclaimed()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert manager.recv(4096).decode() == f"FDSTOREREMOVE=1\nFDNAME={store_name('http', f'unix:{path}')}"
    assert not os.path.exists(path)


@pytest.mark.parametrize("kind", ["connected", "no socket", "file gone", "another file"])
def test_what_cannot_serve_is_closed_at_once(
    kind: str, store: SocketStore, manager: socket.socket, tmp_path: Path
) -> None:
    """The address is then bound anew, as if nothing had been stored."""
    path = str(tmp_path / "rpc.sock")
    name = store_name("rpc", f"unix://{path}")
    mine, theirs = socket.socketpair()
    with mine, theirs, closing(listening(path)) as sock, open(os.devnull) as null:
        if kind in ("file gone", "another file"):
            os.unlink(path)
        if kind == "another file":
            listening(path).close()  # of a dead server
        fds = {"connected": mine.fileno(), "no socket": null.fileno()}
        passed = PassedSockets([(name, os.dup(fds.get(kind, sock.fileno())))])
        store.take(passed)
        assert store.claim("rpc", f"unix://{path}") is None
    assert manager.recv(4096).decode() == f"FDSTOREREMOVE=1\nFDNAME={name}"


def test_a_manager_that_has_gone_is_no_error(tmp_path: Path) -> None:
    """The socket then ends with the server, as it does without a store."""
    store = SocketStore(str(tmp_path / "absent"))
    with listening() as sock:
        assert store.keep(Offer("http", "127.0.0.1:0", sock, lambda: None)) is False
