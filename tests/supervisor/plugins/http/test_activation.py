"""Sockets that were passed: found by name, taken once, nobody else's to inherit; each mistake says what it is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from front_bench import MakeBench

from trailboss import activation
from trailboss.activation import PassedSockets, take_passed_sockets
from trailboss.plugins.http.listen import AddressError, Listener, bind_all


@pytest.fixture
def listening() -> Iterator[list[socket.socket]]:
    """Return three listening sockets."""
    made = []
    for _ in range(3):
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        made.append(sock)
    yield made
    for sock in made:
        sock.close()


def passed(sockets: list[socket.socket], *names: str) -> PassedSockets:
    """Return copies of the sockets as if they had been passed under these names."""
    return PassedSockets([(name, os.dup(sock.fileno())) for sock, name in zip(sockets, names, strict=False)])


def test_by_name(listening: list[socket.socket], make_bench: MakeBench) -> None:
    """A name may stand for several sockets; `systemd` alone is the rest; whoever connects is served."""
    found = passed(listening, "web", "other", "web")
    bound = bind_all([("http.address", ("systemd:web",)), ("http.ssl.address", ("systemd",))], found)
    assert [key for key, _ in bound] == ["http.address", "http.address", "http.ssl.address"]
    ports = [sock.getsockname()[1] for sock in listening]
    assert [item.address for _, item in bound] == [f"127.0.0.1:{ports[at]}" for at in (0, 2, 1)]
    bench = make_bench()
    listener = Listener(bound[0][1], bench.front)
    with socket.create_connection(("127.0.0.1", ports[0])) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        bench.settle()
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
    bench.settle()
    listener.close()
    for _, item in bound[1:]:
        item.close()


def test_a_unix_socket_of_systemd_keeps_its_file(tmp_path: Path) -> None:
    """Its path is no business of ours."""
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        ((_, bound),) = bind_all([("http.address", ("systemd:web",))], passed([sock], "web"))
        assert bound.address == f"unix:{path}"
        bound.close()
    assert path.exists()


def test_names_that_were_not_passed(listening: list[socket.socket]) -> None:
    """The error names the key and what there is."""
    found = passed(listening[:2], "web", "admin")
    with pytest.raises(AddressError) as raised:
        bind_all([("http.address", ("systemd:wbe",))], found)
    assert str(raised.value) == (
        "http.address: systemd:wbe: no socket of that name was passed, only: admin, web; correct it, "
        "or set FileDescriptorName=wbe"
    )
    with pytest.raises(AddressError, match="every passed socket has an address of its own"):
        bind_all([("http.address", ("systemd:web", "systemd:admin", "systemd"))], found)
    assert found.close_rest() == []
    with pytest.raises(AddressError, match=r"http.address: systemd: no socket was passed to this process"):
        bind_all([("http.address", ("systemd",))], PassedSockets())


def test_what_is_no_listening_socket(tmp_path: Path) -> None:
    """A file, a connected socket, a datagram socket: each is refused by name, and closed."""
    (tmp_path / "file").write_text("")
    left, right = socket.socketpair()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    file = os.open(tmp_path / "file", os.O_RDONLY)
    for fd, reason in (
        (file, r"is no socket"),
        (os.dup(left.fileno()), r"does not accept connections"),
        (os.dup(datagrams.fileno()), r"does not accept connections"),
    ):
        with pytest.raises(
            AddressError, match=rf"http.address: systemd:web: descriptor {fd} \(web\) {reason}; .*Accept=no"
        ):
            bind_all([("http.address", ("systemd:web",))], PassedSockets([("web", fd)]))
    os.close(file)
    for sock in (left, right, datagrams):
        sock.close()


@pytest.mark.parametrize(
    ("environ", "excuse"),
    [
        ({}, ""),
        ({"LISTEN_PID": "1"}, ""),
        ({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, "the sockets were passed to process 1, this one is"),
        ({"LISTEN_FDS": "1"}, "the sockets were passed to process (none), this one is"),
        ({"LISTEN_FDS": "one", "LISTEN_PID": str(os.getpid())}, "LISTEN_FDS is 'one'"),
        ({"LISTEN_FDS": "99999", "LISTEN_PID": str(os.getpid())}, "LISTEN_FDS is '99999'"),
        ({"LISTEN_FDS": "-1", "LISTEN_PID": str(os.getpid())}, "LISTEN_FDS is '-1'"),
    ],
)
def test_variables_that_are_not_for_us(environ: dict[str, str], excuse: str) -> None:
    """Nothing is taken, the variables are gone, and whoever wants a socket hears why there is none."""
    environ = {**environ, "LISTEN_FDNAMES": "web", "PATH": "/bin"}
    found = take_passed_sockets(environ)
    assert environ == {"PATH": "/bin"}
    assert found.found == []
    assert found.excuse.startswith(excuse)
    if excuse:
        with pytest.raises(AddressError, match=r"http.address: systemd:web: "):
            found.claim("web", "http.address: systemd:web")


LOOK = """
import json, os, sys
from trailboss.activation import take_passed_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
found = take_passed_sockets(os.environ)
print(json.dumps([found.found, [os.get_inheritable(fd) for _, fd in found.found], sorted(k for k in os.environ if k[:6] == "LISTEN")]))
"""


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:admin"}, ["web", "admin"]),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web"}, ["web", "unknown"]),
        ({"LISTEN_FDS": "2"}, ["unknown", "unknown"]),
        ({"LISTEN_FDS": "5", "LISTEN_FDNAMES": "web:admin"}, ["web", "admin"]),
    ],
)
def test_taking_them_over(
    listening: list[socket.socket], variables: dict[str, str], names: list[str]
) -> None:
    """Descriptors from 3 on under their names, not inheritable any more, variables removed; missing ones are no error."""
    first, second = (sock.fileno() for sock in listening[:2])
    script = f"exec 3<&{first} 4<&{second} {first}<&- {second}<&-; exec {sys.executable} -c '{LOOK}'"
    if first <= 4 or second <= 4:
        pytest.fail("descriptors 3 and 4 are pytest's own")
    done = subprocess.run(
        ["bash", "-c", script],
        pass_fds=(first, second),
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    found = [[name, activation.FIRST_DESCRIPTOR + at] for at, name in enumerate(names)]
    assert done.stdout.strip() == str([found, [False, False], []]).replace("'", '"').replace("False", "false")
