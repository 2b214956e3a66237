"""The plugin over a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from trailboss.container.contract import Services, WholePhase
from trailboss.container.state import ServerState
from trailboss.plugins.systemd import SystemdPlugin
from trailboss.reactor import Reactor
from trailboss.workers.watchdog import Watchdog

pytestmark = pytest.mark.filterwarnings("error")


class Manager:
    """Stands for systemd: a datagram socket and what has arrived on it."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.address = address

    def received(self) -> list[str]:
        """Return every datagram that has arrived since the last call."""
        texts = []
        while True:
            try:
                texts.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return texts

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A listening socket, by path and in the abstract name space."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@trailboss-test-{os.getpid()}"
    with closing(Manager(address)) as found:
        yield found


class FakePool:
    """A pool with a number of ready workers."""

    name = "jobs"
    quorum = 2

    def __init__(self) -> None:
        self.ready = 0

    @property
    def at_quorum(self) -> bool:
        return self.ready >= self.quorum

    def describe(self) -> Mapping[str, object]:
        raise AssertionError("systemd asks for two figures, not for a whole description")


def services_with(state: ServerState, reactor: Reactor | None = None) -> Services:
    """Return services that provide the state, and the reactor if there is one."""
    services = Services()
    services.provide(ServerState, state)
    if reactor is not None:
        services.provide(Reactor, reactor)
    return services


async def test_ready_is_said_once_and_only_with_gate_and_quorum(
    manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    """READY=1 comes with the open gate and the quorum of every pool, once; STOPPING=1 at the stop."""
    state, stopping, pool = ServerState(), trio.Event(), FakePool()
    plugin = SystemdPlugin({"NOTIFY_SOCKET": manager.address})
    told: list[str] = []

    async def settle() -> None:
        await trio.testing.wait_all_tasks_blocked()
        told.extend(line for text in manager.received() for line in text.split("\n"))

    async with trio.open_nursery() as nursery:
        await nursery.start(plugin.run, services_with(state), stopping)
        state.expect_pools(["jobs"])
        state.add_pool(pool)
        state.open_gate()
        state.set_whole(WholePhase.BOOTING)
        await settle()
        assert "READY=1" not in told
        state.set_whole(WholePhase.READY)
        pool.ready = 1
        state.pool_settled("jobs")
        await settle()
        assert "READY=1" not in told
        for ready in (2, 0, 2):
            pool.ready = ready
            state.changed()
            await settle()
        state.set_whole(WholePhase.DRAINING)
        await settle()
        stopping.set()
    assert told.count("READY=1") == 1
    assert told.count("STOPPING=1") == 1
    assert told.index("READY=1") < told.index("STOPPING=1")
    assert "STATUS=degraded: pool jobs has too few workers" in told


async def test_watchdog_beats_at_a_third_while_the_data_plane_answers(
    manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    """Three beats an interval with a running reactor; none once the reactor is stuck."""
    state, stopping, reactor = ServerState(), trio.Event(), Reactor()
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000"}
    beats: list[float] = []
    pending: list[Callable[[], None]] = []

    def collect() -> None:
        beats.extend(trio.current_time() - began for text in manager.received() if text == "WATCHDOG=1")

    # The mock clock and a real epoll do not mix, so the reactor's promise is kept or broken by hand here.
    reactor.call_soon = pending.append  # type: ignore[method-assign, assignment]
    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        await nursery.start(SystemdPlugin(environ).run, services_with(state, reactor), stopping)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            collect()
            while pending:
                pending.pop()()
            await trio.sleep(10)
        await trio.testing.wait_all_tasks_blocked()
        collect()
        await trio.sleep(100)  # nothing is answered any more
        collect()
        stopping.set()
    reactor.close()
    assert beats == [0.0, 10.0, 20.0, 30.0]


async def test_no_beat_while_an_invariant_is_broken(
    manager: Manager, autojump_clock: trio.testing.MockClock
) -> None:
    """systemd is not told that the server is alive until the watchdog's finding has been repaired."""
    state, stopping, reactor = ServerState(), trio.Event(), Reactor()
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000"}
    reactor.call_soon = lambda answer: answer()  # type: ignore[method-assign, assignment]
    stuck = True
    watchdog = Watchdog(reactor, [], lambda: stuck)
    watchdog.look(0.0)
    watchdog.look(2.0)
    services = services_with(state, reactor)
    services.provide(Watchdog, watchdog)
    async with trio.open_nursery() as nursery:
        await nursery.start(SystemdPlugin(environ).run, services, stopping)
        await trio.sleep(15)
        told = "\n".join(manager.received())
        stuck = False
        watchdog.look(3.0)
        await trio.sleep(10)
        later = "\n".join(manager.received())
        stopping.set()
    reactor.close()
    assert "WATCHDOG=1" not in told
    assert "STATUS=broken, being repaired: gate_closed" in told
    assert "WATCHDOG=1" in later
    assert "broken" not in later


async def test_a_manager_that_has_gone_is_no_error(tmp_path: Path) -> None:
    """A socket that nobody listens on is said in the state, and the plugin serves on."""
    state, stopping = ServerState(), trio.Event()
    plugin = SystemdPlugin({"NOTIFY_SOCKET": str(tmp_path / "absent")})
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(plugin.run, services_with(state), stopping)
            stopping.set()
    assert "No such file" in str(plugin.state_detail()["error"])


def test_wanted_only_where_a_manager_listens() -> None:
    """Without NOTIFY_SOCKET there is no plugin."""
    assert not SystemdPlugin.wanted({})
    assert not SystemdPlugin.wanted({"NOTIFY_SOCKET": ""})
    assert SystemdPlugin.wanted({"NOTIFY_SOCKET": "/run/notify"})
