"""Socket relays: workers of both SDKs, wrappers, and clients that have no business there."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import trio

from trailboss.reactor import Reactor
from trailboss.workers.outcome import WorkerDied
from trailboss.workers.pool import PoolStartFailed
from trailboss.workers.relay import RelayError, RelayHub, parse_relay
from trailboss_worker.protocol.control import encode_pid_answer

from .stage import PHP_PROGRAMS, PROGRAMS, ROOT, Stage, is_alive, open_stage, until

SDK = (sys.executable, str(PROGRAMS / "sdk_echo.py"))
SDK_ENVIRONMENT = {"PYTHONPATH": str(ROOT / "worker_protocol")}


@pytest.fixture(params=["pipes", "unix", "tcp"])
def relay(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """Each kind of relay."""
    return {"pipes": "pipes", "unix": f"unix://{tmp_path}/relay.sock", "tcp": "tcp://127.0.0.1:0"}[
        request.param
    ]


@pytest.fixture(params=["unix", "tcp"])
def socket_relay(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """Each kind of socket relay."""
    return {"unix": f"unix://{tmp_path}/relay.sock", "tcp": "tcp://127.0.0.1:0"}[request.param]


async def _exercise(stage: Stage, command: tuple[str, ...], env: dict[str, str]) -> None:
    """Answers of all sizes, a death, a reset, a stop."""
    pool = await stage.pool(command=command, env=env, num_workers=2)
    for size in (1, 60_000, 3_000_000):
        body = os.urandom(size)
        assert await stage.ask(pool, "context", body) == body
    victim = pool.workers()[0].pid
    os.kill(victim, signal.SIGKILL)
    await until(lambda: stage.deaths)
    await stage.whole(pool)
    with trio.fail_after(10):
        await pool.reset()
    for _ in range(10):
        assert await stage.ask(pool, "context", b"again") == b"again"
    with trio.fail_after(10):
        await pool.stop(trio.current_time() + 5)
    assert len(stage.deaths) == 1
    assert stage.deaths[0].cause == "signal"


async def test_python_sdk(relay: str) -> None:
    """The Python SDK works over each relay, through death, reset and stop."""
    async with open_stage(relay) as stage:
        await _exercise(stage, SDK, SDK_ENVIRONMENT)


async def test_trailboss_worker_command(relay: str, tmp_path: pathlib.Path) -> None:
    """`trailboss-worker` in server.command runs the SDK's bootstrap, with Trailboss's interpreter, for a real job."""
    (tmp_path / "app.py").write_text("def handle(task):\n    print('handled', task.name, task.payload)\n")
    context = (
        b'{"id":"1","job":"greet","driver":"memory","queue":"q","pipeline":"q","headers":{},"priority":1,'
        b'"delay":0,"auto_ack":false,"options":{}}'
    )
    async with open_stage(relay) as stage:
        env = {"PYTHONPATH": str(tmp_path)}
        pool = await stage.pool(command=("trailboss-worker", "jobs", "app:handle"), env=env, num_workers=2)
        with trio.fail_after(10):
            answer = await pool.exec(context, b"hello", 4)
        assert answer.body == b'{"type":2,"data":[]}'  # acknowledged
        os.kill(pool.workers()[0].pid, signal.SIGKILL)
        await until(lambda: stage.deaths)
        await stage.whole(pool)
        with trio.fail_after(10):
            await pool.stop(trio.current_time() + 5)
        assert len(stage.deaths) == 1


@pytest.mark.php
async def test_php(relay: str, php: str) -> None:
    """A PHP worker works over each relay, through death, reset and stop."""
    async with open_stage(relay) as stage:
        await _exercise(stage, (php, str(PHP_PROGRAMS / "echo_worker.php")), {})


@pytest.mark.parametrize("tail", ["", "; true"])
async def test_wrapper(relay: str, tail: str) -> None:
    """A shell around the worker makes no difference on any relay: it is found by its session."""
    line = " ".join(SDK) + tail
    async with open_stage(relay) as stage:
        pool = await stage.pool(command=("sh", "-c", line if tail else f"exec {line}"), env=SDK_ENVIRONMENT)
        inner = int(await stage.ask(pool, "c", b"pid"))
        os.kill(inner, signal.SIGKILL)
        await until(lambda: stage.deaths)
        await stage.whole(pool)
        outer = pool.workers()[0].pid
        inner = int(await stage.ask(pool, "c", b"pid"))
        os.kill(outer, signal.SIGKILL)
        await until(lambda: len(stage.deaths) == 2)
        await until(lambda: not is_alive(inner), 2)
        await stage.whole(pool)


def _connect(stage: Stage) -> socket.socket:
    hub = stage.workshop.hub
    assert hub is not None
    address = hub.address
    if address.kind == "unix":
        client = socket.socket(socket.AF_UNIX)
        client.connect(address.path)
    else:
        client = socket.create_connection(("127.0.0.1", address.port))
    client.setblocking(False)
    return client


def _is_closed(client: socket.socket) -> bool:
    try:
        while client.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        pass
    return True


async def test_bad_clients_do_not_disturb_boots(socket_relay: str) -> None:
    """Silent, garbage-talking, hanging-up and foreign clients cost their own connection; workers boot meanwhile."""
    async with open_stage(socket_relay) as stage:
        silent = [_connect(stage) for _ in range(20)]
        garbage = _connect(stage)
        garbage.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        foreign = _connect(stage)
        foreign.send(encode_pid_answer(os.getpid()))
        half = _connect(stage)
        half.send(encode_pid_answer(1)[:7])
        _connect(stage).close()
        begun = time.monotonic()
        pool = await stage.pool(command=SDK, env=SDK_ENVIRONMENT, num_workers=4)
        assert time.monotonic() - begun < 5
        assert await stage.ask(pool, "c", b"fine") == b"fine"
        await until(lambda: _is_closed(garbage), 2)
        await until(lambda: _is_closed(foreign), 3)
        assert not any(map(_is_closed, silent))
        for client in (*silent, garbage, foreign, half):
            client.close()
        await until(lambda: not stage.workshop.hub._pending, 2)  # type: ignore[union-attr]
        assert stage.deaths == []


async def test_trouble_with_one_connection_leaves_the_listener(
    socket_relay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected error over one connection closes that one; the next worker finds the listener in its place."""
    async with open_stage(socket_relay) as stage:
        register = stage.reactor.register

        def fails_once(fd: int, *callbacks: object) -> None:
            monkeypatch.setattr(stage.reactor, "register", register)
            raise OSError(28, "no space left in epoll")

        monkeypatch.setattr(stage.reactor, "register", fails_once)
        client = _connect(stage)
        await until(lambda: _is_closed(client), 2)
        client.close()
        pool = await stage.pool(command=SDK, env=SDK_ENVIRONMENT)
        assert await stage.ask(pool, "c", b"fine") == b"fine"


async def test_liar_gets_no_workers_place(socket_relay: str) -> None:
    """A client that claims the pid of a booting worker is turned away; the worker itself is let in."""
    async with open_stage(socket_relay) as stage:
        pool = stage.make_pool(command=("sh", "-c", f"sleep 0.5; exec {' '.join(SDK)}"), env=SDK_ENVIRONMENT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.nursery.start, pool.run)
            await until(lambda: pool.workers())
            liar = _connect(stage)
            liar.send(encode_pid_answer(pool.workers()[0].pid))
            await until(lambda: _is_closed(liar), 3)
            liar.close()
        assert await stage.ask(pool, "c", b"mine") == b"mine"
        assert stage.deaths == []


#: Connects, says hello with its own pid, and holds the connection until its stdin ends. A process of its own because
#: a session is what the hub goes by, and in a container the tests' own session may be one that has no number there.
_EARLY_BIRD = """
import os, socket, sys
kind, host, port = sys.argv[1:]
client = socket.create_connection((host, int(port))) if kind == "tcp" else socket.socket(socket.AF_UNIX)
if kind == "unix":
    client.connect(host)
from trailboss_worker.protocol.control import encode_pid_answer
client.send(encode_pid_answer(os.getpid()))
sys.stdin.read()
"""


@contextlib.contextmanager
def _early_bird(stage: Stage) -> Iterator[int]:
    hub = stage.workshop.hub
    assert hub is not None
    address = hub.address
    bird = subprocess.Popen(
        [sys.executable, "-c", _EARLY_BIRD, address.kind, address.path or "127.0.0.1", str(address.port)],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **SDK_ENVIRONMENT},
    )
    assert bird.stdin is not None
    try:
        yield bird.pid
    finally:
        bird.stdin.close()
        bird.wait(5)


async def test_hello_before_the_spawn_is_reported(socket_relay: str) -> None:
    """A handshake that is complete before anybody expects it is kept for a moment."""
    async with open_stage(socket_relay) as stage:
        hub = stage.workshop.hub
        assert hub is not None
        with _early_bird(stage) as session:
            await until(lambda: hub._early, 10)
            attached: list[int] = []
            hub.expect(session, lambda fd, _rest, _speaker: attached.append(fd))
            assert len(attached) == 1
            os.close(attached[0])
        with _early_bird(stage):
            await until(lambda: hub._early, 10)
        await until(lambda: not hub._early, 1)


async def test_never_connects(socket_relay: str) -> None:
    """A worker that never connects is ended by boot_timeout; what it printed on stdout is log, not protocol."""
    async with open_stage(socket_relay) as stage:
        pool = stage.make_pool(command=("sh", "-c", "echo no frames here; exec sleep 60"), boot_timeout=0.4)
        with trio.fail_after(5), pytest.raises(PoolStartFailed, match="no handshake within boot_timeout"):
            await pool.run()


async def test_worker_hangs_up(socket_relay: str) -> None:
    """A worker that closes its connection over an exec has failed it, and is replaced."""
    program = (
        "import os\nfrom trailboss_worker.sdk import Worker\nw = Worker()\nw.wait_payload()\nos.closerange(3, 50)\n"
        "import time\ntime.sleep(60)\n"
    )
    async with open_stage(socket_relay) as stage:
        pool = await stage.pool(command=(sys.executable, "-c", program), env=SDK_ENVIRONMENT)
        outcome = await stage.outcome(pool, "c", b"x")
        assert isinstance(outcome, WorkerDied)
        assert outcome.cause == "closed its pipes"
        assert "closed its connection" in str(outcome)
        await stage.whole(pool)


def test_addresses(tmp_path: pathlib.Path) -> None:
    """Relays are parsed and exported in a form that PHP understands; others are refused by name."""
    assert parse_relay("").exported == "pipes"
    assert parse_relay("tcp://:6001").exported == "tcp://127.0.0.1:6001"
    assert parse_relay("tcp://LOCALHOST:6001").exported == "tcp://localhost:6001"
    assert parse_relay("unix:///run/x.sock").exported == "unix:///run/x.sock"
    for value in ("PIPES", "udp://x:1", "tcp://host", "tcp://host:70000", "tcp://host:x", "unix://"):
        with pytest.raises(RelayError, match="use pipes, unix://path or tcp://host:port"):
            parse_relay(value)


async def test_listener_over_leftovers(tmp_path: pathlib.Path) -> None:
    """A stale socket is taken over, a living one and a plain file are not; errors name the address and the remedy."""
    path = tmp_path / "relay.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    reactor = Reactor()
    first = RelayHub(reactor, parse_relay(f"unix://{path}"))
    first.open()
    with pytest.raises(RelayError, match=f"server.relay: unix://{path}: another server is listening"):
        RelayHub(reactor, parse_relay(f"unix://{path}")).open()
    first.close()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(RelayError, match="exists and is no socket; remove it or change the path"):
        RelayHub(reactor, parse_relay(f"unix://{path}")).open()
    assert path.read_text() == "precious"
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(RelayError, match="in use"):
        RelayHub(reactor, parse_relay(f"tcp://127.0.0.1:{taken.getsockname()[1]}")).open()
    reactor.close()
