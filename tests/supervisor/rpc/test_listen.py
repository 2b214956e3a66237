"""Where the port is and who may come: default folder, stale and foreign sockets, clear errors, peers."""

from __future__ import annotations

import os
import socket
import stat
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
import trio.testing

from trailboss.config.schema import RpcConfig
from trailboss.container.contract import Access, Caller, CallerRole, RpcMethod, Services, WholePhase
from trailboss.container.state import ServerState
from trailboss.reactor import Reactor
from trailboss.rpc import listen, peer
from trailboss.rpc.address import AddressError, default_socket_path, exported_address, prepare_directory
from trailboss.rpc.listen import bind
from trailboss.rpc.peer import (
    Peer,
    SocketDiagnosis,
    SocketOwners,
    peer_from_proc,
    socket_owners,
    tcp_peer,
    unix_peer,
)
from trailboss.rpc.plugin import RpcPlugin, limits_of
from trailboss.rpc.registry import Registry
from trailboss.testing.check_plugin import check_plugin
from trailboss.workers.callers import Callers
from trailboss_worker.protocol.frames import JSON
from trailboss_worker.protocol.rpc import encode_request

UID = os.geteuid()


def bind_default(path: Path, *, shared: bool = False) -> Any:
    return bind("", str(path), uid=UID, shared=shared, allow_remote=False)


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"RUNTIME_DIRECTORY": "/run/trailboss"}, "/run/trailboss/trailboss.sock"),
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/run/user/7"}, "/run/a/trailboss.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/trailboss/trailboss.sock"),
        ({"XDG_RUNTIME_DIR": "relative"}, "/tmp/trailboss-7/trailboss.sock"),
        ({"TMPDIR": "/var/tmp"}, "/var/tmp/trailboss-7/trailboss.sock"),
        ({}, "/tmp/trailboss-7/trailboss.sock"),
    ],
)
def test_the_default_path_follows_the_environment(environ: dict[str, str], path: str) -> None:
    """systemd's folder, else the user's runtime folder, else a folder of the uid in the temp directory."""
    assert path == default_socket_path(environ, 7)


def test_the_default_socket_is_private(tmp_path: Path) -> None:
    """Folder 0700, socket 0600; the file goes with the server."""
    path = tmp_path / "trailboss" / "trailboss.sock"
    bound = bind_default(path)
    assert (stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)
    bound.close()
    assert not path.exists()


def test_with_other_users_the_modes_let_them_through(tmp_path: Path) -> None:
    """Folder 0711, socket 0666: then the peer check decides."""
    path = tmp_path / "trailboss-7" / "trailboss.sock"
    bound = bind_default(path, shared=True)
    assert (stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o711, 0o666)
    bound.close()


def test_an_own_folder_that_is_too_open_is_tightened(tmp_path: Path) -> None:
    """A folder of our name with mode 0755 gets 0700."""
    folder = tmp_path / "trailboss"
    folder.mkdir(mode=0o755)
    bind_default(folder / "trailboss.sock").close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_symlink_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Somebody else's link must not choose where the socket is."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "trailboss").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AddressError, match="symlink"):
        bind_default(tmp_path / "trailboss" / "trailboss.sock")


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    """The folder has to belong to the server's user."""
    with pytest.raises(AddressError, match="belongs to user"):
        prepare_directory(str(tmp_path), UID + 1, shared=False, own_mode=True)


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Where others may write, a socket could be exchanged."""
    tmp_path.chmod(0o777)
    with pytest.raises(AddressError, match="others may write"):
        prepare_directory(str(tmp_path), UID, shared=False, own_mode=False)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A file of that name is named in the error."""
    (tmp_path / "trailboss").write_text("")
    with pytest.raises(AddressError, match="not a folder"):
        bind_default(tmp_path / "trailboss" / "trailboss.sock")


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    """A socket file that nobody listens on is removed."""
    path = tmp_path / "rpc.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    bound = bind(f"unix://{path}", "", uid=UID, shared=False, allow_remote=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    bound.close()


def test_a_living_server_is_not_replaced(tmp_path: Path) -> None:
    """Two servers on one path: the second one says so and leaves the first alone."""
    first = bind(f"unix://{tmp_path}/rpc.sock", "", uid=UID, shared=False, allow_remote=False)
    with pytest.raises(AddressError, match="another server is listening"):
        bind(f"unix://{tmp_path}/rpc.sock", "", uid=UID, shared=False, allow_remote=False)
    assert (tmp_path / "rpc.sock").exists()
    first.close()


def test_an_exchanged_socket_file_is_left_alone_at_the_end(tmp_path: Path) -> None:
    """A server removes its own file only."""
    path = tmp_path / "rpc.sock"
    first = bind(f"unix://{path}", "", uid=UID, shared=False, allow_remote=False)
    path.unlink()
    second = bind(f"unix://{path}", "", uid=UID, shared=False, allow_remote=False)
    first.close()
    assert path.exists()
    second.close()


@pytest.mark.parametrize(
    ("listen", "text"),
    [
        ("unix:///nonexistent/folder/rpc.sock", "the folder /nonexistent/folder does not exist"),
        ("tcp://0.0.0.0:0", "set rpc.allow_remote: true"),
        ("tcp://:0", "set rpc.allow_remote: true"),
        ("http://x", "write tcp://host:port or unix://path"),
        ("tcp://localhost", "write tcp://host:port or unix://path"),
    ],
)
def test_unusable_addresses_name_key_value_and_remedy(listen: str, text: str) -> None:
    """Each error begins with rpc.listen and the value, and says what to do."""
    with pytest.raises(AddressError) as caught:
        bind(listen, "", uid=UID, shared=False, allow_remote=False)
    assert str(caught.value).startswith(f"rpc.listen: {listen}: ")
    assert text in str(caught.value)


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    """An ordinary file at the path is an error, and stays."""
    (tmp_path / "rpc.sock").write_text("precious")
    with pytest.raises(AddressError, match="no socket"):
        bind(f"unix://{tmp_path}/rpc.sock", "", uid=UID, shared=False, allow_remote=False)
    assert (tmp_path / "rpc.sock").read_text() == "precious"


def test_a_port_in_use_is_said_so() -> None:
    """EADDRINUSE names the address and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AddressError, match=f"rpc.listen: tcp://127.0.0.1:{port}: the port is in use"):
            bind(f"tcp://127.0.0.1:{port}", "", uid=UID, shared=False, allow_remote=False)


@pytest.mark.parametrize(
    ("family", "address", "port", "exported"),
    [
        ("unix", "/run/x.sock", 0, "unix:///run/x.sock"),
        ("tcp", "127.0.0.1", 6001, "tcp://127.0.0.1:6001"),
        ("tcp", "0.0.0.0", 6001, "tcp://127.0.0.1:6001"),
        ("tcp", "::", 6001, "tcp://127.0.0.1:6001"),
        ("tcp", "", 6001, "tcp://127.0.0.1:6001"),
        ("tcp", "::1", 6001, "tcp://[::1]:6001"),
    ],
)
def test_workers_get_an_address_they_can_connect_to(
    family: str, address: str, port: int, exported: str
) -> None:
    """RR_RPC never says "every interface"."""
    assert exported == exported_address(family, address, port)


def test_a_relative_unix_path_is_exported_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers may have another working directory."""
    monkeypatch.chdir(tmp_path)
    assert f"unix://{tmp_path}/rpc.sock" == exported_address("unix", "rpc.sock", 0)


def test_limits_come_from_the_configuration() -> None:
    """Megabytes become bytes."""
    limits = limits_of(RpcConfig(max_frame_size=2, max_bytes_in_flight=3))
    assert (limits.frame_bytes, limits.bytes_in_flight) == (2 * 1024 * 1024, 3 * 1024 * 1024)


# --- peers ----------------------------------------------------------------------------------------------------------


def test_the_peer_of_a_unix_socket(socket_pair: tuple[socket.socket, socket.socket]) -> None:
    """The kernel names uid and pid."""
    assert Peer(uid=UID, pid=os.getpid()) == unix_peer(socket_pair[0])


@pytest.mark.parametrize(
    ("server", "client", "host"),
    [
        (socket.AF_INET, socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET6, socket.AF_INET6, "::1"),
        (socket.AF_INET, socket.AF_INET6, "::ffff:127.0.0.1"),
    ],
)
def test_the_peer_of_a_loopback_connection(server: Any, client: Any, host: str) -> None:
    """sock_diag and /proc name the same uid and socket; once closed, nobody is named (not uid 0)."""
    with socket.socket(server) as listener:
        listener.bind((host.removeprefix("::ffff:"), 0))
        listener.listen()
        connecting = socket.socket(client)
        connecting.connect((host, listener.getsockname()[1]))
        accepted, _ = listener.accept()
        diagnosis = SocketDiagnosis()
        with accepted:
            inode = os.fstat(connecting.fileno()).st_ino
            assert Peer(uid=UID, inode=inode) == diagnosis.find(accepted)
            assert Peer(uid=UID, inode=inode) == peer_from_proc(accepted)
            assert os.getpid() == socket_owners()[inode]
            connecting.close()
            assert diagnosis.find(accepted) is None
            assert peer_from_proc(accepted) is None
        diagnosis.close()


def test_without_sock_diag_the_tables_in_proc_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without sock_diag costs time, not the check."""

    def refuse(_self: object, _sock: socket.socket) -> Peer | None:
        raise OSError("protocol not supported")

    monkeypatch.setattr(SocketDiagnosis, "find", refuse)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as connecting:
            accepted, _ = listener.accept()
            with accepted:
                wanted = Peer(uid=UID, inode=os.fstat(connecting.fileno()).st_ino)
                assert wanted == tcp_peer(accepted, SocketDiagnosis())


def who(seen: list[Caller]) -> list[RpcMethod]:
    def note(_argument: object, caller: Caller) -> bool:
        seen.append(caller)
        return True

    return [
        RpcMethod("test.Who", note, Access.ALWAYS),
        RpcMethod("test.Needs", note, argument=str, needs_pool=str),
    ]


async def test_callers_are_matched_to_workers(helpers: Any, rpc_config: RpcConfig) -> None:
    """A worker that has become ready since it connected is seen as ready by calls that depend on it."""
    seen: list[Caller] = []
    callers = Callers()
    session = os.getsid(0)
    callers.add(session, CallerRole.WORKER, "jobs")
    services = Services()
    services.provide(Callers, callers)
    with trio.fail_after(5):
        async with (
            helpers.running(who(seen), rpc_config, services=services) as bench,
            bench.client() as client,
        ):
            await client.call("test.Who")
            callers.ready(session)
            await client.call("test.Needs", b'"jobs"')
    assert [(caller.pool, caller.booting) for caller in seen] == [("jobs", True), ("jobs", False)]
    assert {os.getpid()} == {caller.pid for caller in seen}


@pytest.mark.parametrize("listen", ["tcp://127.0.0.1:0", "tcp://[::1]:0", "tcp://localhost:0"])
async def test_loopback_tcp_serves_the_same_user(helpers: Any, listen: str) -> None:
    """The user's own clients are served over TCP, and found by process where a call depends on it."""
    seen: list[Caller] = []
    with trio.fail_after(5):
        async with helpers.running(who(seen), RpcConfig(listen=listen)) as bench, bench.client() as client:
            await client.call("test.Who")
            await client.call("test.Needs", b'"jobs"')
            await client.call("test.Needs", b'"jobs"')
    assert {UID} == {caller.uid for caller in seen}
    assert os.getpid() == seen[-1].pid


def test_one_look_at_proc_serves_all_that_came_before_it() -> None:
    """Sockets of connections older than the last look are answered from it, found or not; a newer one is looked for."""
    looks: list[None] = []

    def scan() -> dict[int, int]:
        looks.append(None)
        return {7: 1007}

    owners = SocketOwners(scan)
    early = time.monotonic()
    assert [owners.find(inode, early) for inode in (7, 8, 8, 9)] == [1007, 0, 0, 0]
    assert len(looks) == 1
    assert owners.find(7, time.monotonic()) == 1007
    assert len(looks) == 2


async def test_only_calls_that_need_a_pool_are_looked_up(
    helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that wait at the gate for a plugin cost no look at /proc; one that needs a pool costs one."""
    looks: list[None] = []

    def scan() -> dict[int, int]:
        looks.append(None)
        return {}

    monkeypatch.setattr("trailboss.rpc.peer.socket_owners", scan)
    methods = [*who([]), RpcMethod("test.Plain", lambda _a, _c: True)]
    state = ServerState()
    state.set_whole(WholePhase.STARTING)
    config = RpcConfig(listen="tcp://127.0.0.1:0")
    with trio.fail_after(10):
        async with helpers.running(methods, config, state) as bench, bench.client() as client:
            for number in range(5):
                await client.send(encode_request(number, "test.Plain", b"true", JSON))
            while bench.server.tasks < 5:  # noqa: ASYNC110 - looks into the server, which has no event for it
                await trio.sleep(0.002)
            state.changed()
            await trio.testing.wait_all_tasks_blocked(0.01)
            state.set_whole(WholePhase.READY)
            state.open_gate()
            assert [(await client.reply()).is_error for _ in range(5)] == [False] * 5
            assert len(looks) == 0
            for _ in range(3):
                await client.call("test.Needs", b'"jobs"')
            assert len(looks) == 1


async def test_a_connection_that_cannot_be_taken_costs_no_other(
    helpers: Any, rpc_config: RpcConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with one new connection is logged once and closes it; the next one is served."""
    real = listen.unix_peer
    failures: list[Exception] = [
        struct.error("short"),
        ValueError("odd"),
        OSError(28, "No space"),
        struct.error("short"),
    ]

    def failing(sock: socket.socket) -> Peer:
        if failures:
            raise failures.pop(0)
        return real(sock)

    monkeypatch.setattr(listen, "unix_peer", failing)
    with trio.fail_after(5), structlog.testing.capture_logs() as records:
        async with helpers.running(who([]), rpc_config) as bench:
            for _ in range(4):
                async with bench.client() as client:
                    assert await client.closed()
            async with bench.client() as client:
                assert (await client.call("test.Who")).body == b"true"
            assert bench.reactor.failures == 0
    lines = [record["reason"] for record in records if "could not be taken" in record["event"]]
    assert lines == ["short", "odd", "[Errno 28] No space"]


@pytest.mark.parametrize("answer", [b"", b"\x00" * 12, b"\x00" * 40], ids=["empty", "short", "zeros"])
def test_an_answer_of_another_form_is_no_answer(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are no answer of sock_diag, or no line of /proc/net/tcp, name nobody and raise nothing."""

    def read(_self: object, _sock: socket.socket) -> Peer | None:
        return SocketDiagnosis._read(SocketDiagnosis(), 20, answer, b"port")

    def torn(_sock: socket.socket) -> Peer | None:
        return peer._read_proc_line(" 0100007F:1770 0100007F:9C40 01")

    monkeypatch.setattr(SocketDiagnosis, "find", read)
    monkeypatch.setattr(peer, "peer_from_proc", torn)
    with socket.socket() as sock:
        assert tcp_peer(sock, SocketDiagnosis()) is None


async def test_a_client_that_left_at_once_is_no_warning(
    helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever connects over TCP and closes before it could be identified is counted, and mentioned at level debug."""
    monkeypatch.setattr(listen, "tcp_peer", lambda _sock, _diagnosis: None)
    with trio.fail_after(5), structlog.testing.capture_logs() as records:
        async with helpers.running(who([]), RpcConfig(listen="tcp://127.0.0.1:0")) as bench:
            async with bench.client() as client:
                assert await client.closed()
            assert bench.server.counters.turned_away == 1
    assert [record["log_level"] for record in records if "gone before" in record["event"]] == ["debug"]
    assert [record for record in records if record["log_level"] == "warning"] == []


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
async def test_users_that_are_not_allowed_are_turned_away(helpers: Any, tmp_path: Path, scheme: str) -> None:
    """A server of another user closes the connection without a word, and says so once a minute."""
    listen = f"unix://{tmp_path}/rpc.sock" if scheme == "unix" else "tcp://127.0.0.1:0"
    seen: list[Caller] = []
    with trio.fail_after(5):
        async with helpers.running(who(seen), RpcConfig(listen=listen), uid=UID + 1) as bench:
            for _ in range(3):
                async with bench.client() as client:
                    assert await client.closed()
            assert bench.server.counters.turned_away == 3
    assert seen == []


async def test_a_remote_address_needs_to_be_asked_for(helpers: Any) -> None:
    """With allow_remote the port is open on every interface and exported as loopback."""
    with trio.fail_after(5):
        config = RpcConfig(listen="tcp://0.0.0.0:0", allow_remote=True)
        async with helpers.running(who([]), config, uid=UID + 1) as bench, bench.client() as client:
            assert bench.plugin.exported_address().startswith("tcp://127.0.0.1:")
            assert (await client.call("test.Who")).body == b"true"


async def test_running_out_of_descriptors_pauses_accepting(
    helpers: Any, rpc_config: RpcConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE in accept is survived: the listener waits a moment and goes on."""
    import errno

    failures = [OSError(errno.EMFILE, "Too many open files")] * 2 + [OSError(errno.ECONNABORTED, "aborted")]
    with trio.fail_after(5):
        async with helpers.running(who([]), rpc_config) as bench:
            real = bench.plugin._bound.sock

            class Failing:
                """A listening socket whose first accepts fail."""

                def accept(self) -> Any:
                    if failures:
                        raise failures.pop(0)
                    return real.accept()

            acceptor = bench.reactor._readers[real.fileno()].__self__
            monkeypatch.setattr(acceptor, "_sock", Failing())
            async with bench.client() as client:
                assert (await client.call("test.Who")).body == b"true"
            assert failures == []
            monkeypatch.undo()


async def test_the_plugin_fails_the_start_with_one_clear_error(helpers: Any, tmp_path: Path) -> None:
    """An address that cannot be bound is an AddressError out of run, before started()."""
    with pytest.RaisesGroup(pytest.RaisesExc(AddressError), flatten_subgroups=True):
        async with helpers.running(who([]), RpcConfig(listen=f"unix://{tmp_path}/no/rpc.sock")):
            pytest.fail("the port cannot be bound")


class OnOwnReactor(RpcPlugin):
    """The plugin with a reactor of its own, as the battery knows none."""

    async def run(
        self, services: Services, stopping: trio.Event, task_status: Any = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run the reactor around the plugin."""
        reactor = Reactor()
        services.provide(Reactor, reactor)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(reactor.run)
                await super().run(services, stopping, task_status)
                nursery.cancel_scope.cancel()
        finally:
            reactor.close()


async def test_the_plugin_keeps_the_contract(tmp_path: Path, autojump_clock: Any) -> None:
    """The battery for every plugin: every life binds the port anew and leaves no socket behind."""
    config = RpcConfig(listen=f"unix://{tmp_path}/rpc.sock")
    await check_plugin(lambda: OnOwnReactor(config, Registry()))
    assert os.listdir(tmp_path) == []
