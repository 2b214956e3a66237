"""The RPC client against a scripted server: codecs, wrappers, every kind of error, and the ways to lose a server."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from trailboss_worker.protocol import messages
from trailboss_worker.protocol.frames import ERROR, JSON, PROTO, RAW, FrameDecoder, encode_frame
from trailboss_worker.protocol.rpc import RpcRequest, decode_request, encode_error, encode_reply
from trailboss_worker.sdk import (
    RPC,
    App,
    CallTimeout,
    ConnectionLost,
    Informer,
    Jobs,
    Metrics,
    NotReadyError,
    OutOfStep,
    PipelineStat,
    Push,
    RefusedError,
    Resetter,
    RpcError,
    ServiceError,
    Status,
)
from trailboss_worker.sdk.rpc import retry_delay_seconds
from trailboss_worker.sdk.rpc_errors import parse_not_ready
from trailboss_worker.sdk.services import new_job_id, option_text

NOT_READY = "service not ready: phase=starting; waiting for jobs (starting, 1.2s), kv (declared, 0.5s)"
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

Answer = Callable[[RpcRequest], "bytes | None"]


class ScriptedServer:
    """An RPC server whose answers are a function; None closes the connection. Threads, all joined at the end."""

    def __init__(self, listener: socket.socket, address: str, answer: Answer) -> None:
        self.address = address
        self.requests: list[RpcRequest] = []
        self.connections = 0
        self.answer = answer
        self._listener = listener
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        decoder = FrameDecoder()
        with connection:
            while data := _receive(connection):
                decoder.feed(data)
                for frame in decoder.next_frames():
                    request = decode_request(frame)
                    self.requests.append(request)
                    reply = self.answer(request)
                    if reply is None:
                        return
                    try:
                        connection.sendall(reply)
                    except (BrokenPipeError, ConnectionResetError):
                        return  # a client that gave up

    def close_connections(self) -> None:
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed by its own thread already

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.close_connections()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


@pytest.fixture(params=["unix", "tcp"])
def address_kind(request):
    return request.param


@pytest.fixture
def start_server(tmp_path):
    """Start a scripted server: `start_server(answer, kind)`."""
    servers = []

    def start(answer: Answer, kind: str = "unix") -> ScriptedServer:
        if kind == "unix":
            path = os.path.relpath(tmp_path / f"rpc{len(servers)}.sock")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(path)
            address = f"unix://{path}"
        else:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        listener.listen(16)
        servers.append(ScriptedServer(listener, address, answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def echo(request: RpcRequest) -> bytes:
    return encode_reply(request, request.argument)


def failing(text: str) -> Answer:
    return lambda request: encode_error(request, text)


def answering(value: object) -> Answer:
    return lambda request: encode_reply(request, json.dumps(value).encode())


# Calls


def test_json_values_travel_both_ways(start_server, address_kind):
    """Argument and result are JSON values; sequence numbers count on; one connection serves all."""
    server = start_server(echo, address_kind)
    with RPC(server.address) as rpc:
        for value in (None, True, 5, "täxt", [1, {"a": None}]):
            assert rpc.call("echo.Echo", value) == value
    assert [request.sequence for request in server.requests] == [1, 2, 3, 4, 5]
    assert {(request.method, request.flags) for request in server.requests} == {("echo.Echo", JSON)}
    assert server.connections == 1


def test_a_worker_shows_its_token_first(start_server, monkeypatch):
    """Once per connection, before the first call, and whatever the server says to it."""
    server = start_server(echo)
    server.answer = lambda request: (
        encode_error(request, "rpc: can't find method") if "Auth" in request.method else echo(request)
    )
    monkeypatch.setenv("RR_RPC", server.address)
    monkeypatch.setenv("TRAILBOSS_TOKEN", "the-token")
    with RPC.from_environment() as rpc:
        assert [rpc.call("echo.Echo", number) for number in (1, 2)] == [1, 2]
        server.close_connections()
        assert _eventually(lambda: rpc.call("echo.Echo", 3)) == 3
    methods = [request.method for request in server.requests]
    assert methods[:3] == ["trailboss.Authenticate", "echo.Echo", "echo.Echo"]
    assert methods[3:] == ["trailboss.Authenticate", "echo.Echo"]
    assert {request.argument for request in server.requests if "Auth" in request.method} == {b'"the-token"'}


def test_a_token_is_for_nobody_else(start_server, monkeypatch):
    """Another server than the one that gave it does not see it."""
    server = start_server(echo)
    monkeypatch.setenv("RR_RPC", "unix:///somewhere/else.sock")
    monkeypatch.setenv("TRAILBOSS_TOKEN", "the-token")
    with RPC(server.address) as rpc:
        assert rpc.call("echo.Echo", 1) == 1
    assert [request.method for request in server.requests] == ["echo.Echo"]


def _eventually(call: Callable[[], object]) -> object:
    """The result of a call that may meet the old connection at first."""
    for _ in range(50):
        try:
            return call()
        except ConnectionLost:
            time.sleep(0.01)
    return call()


@pytest.mark.parametrize(("codec", "flags"), [("raw", RAW), ("proto", PROTO)])
def test_bytes_travel_both_ways(start_server, codec, flags):
    """raw and proto carry bytes as they are; nothing else is accepted for them."""
    server = start_server(echo)
    with RPC(server.address) as rpc:
        assert rpc.call("echo.Echo", b"\x00\xff", codec) == b"\x00\xff"
        assert rpc.call("echo.Echo", None, codec) == b""
        with pytest.raises(TypeError, match="carries bytes, not str"):
            rpc.call("echo.Echo", "text", codec)
    assert {request.flags for request in server.requests} == {flags}


def test_an_unknown_codec(start_server):
    """A codec that the client does not have is a ValueError before anything is sent."""
    with (
        RPC("unix:///nonexistent") as rpc,
        pytest.raises(ValueError, match="'gob' is none of json, raw, proto"),
    ):
        rpc.call("echo.Echo", None, "gob")


def test_big_values(start_server):
    """Megabytes in both directions arrive whole."""
    server = start_server(echo)
    with RPC(server.address) as rpc:
        assert rpc.call("echo.Echo", b"x" * 3_000_000, "raw") == b"x" * 3_000_000


def test_the_address_comes_from_the_environment(start_server, monkeypatch):
    """RR_RPC names the server; without it, RoadRunner's default does."""
    server = start_server(answering("2025.1.0"))
    monkeypatch.setenv("RR_RPC", server.address)
    with RPC.from_environment() as rpc:
        assert rpc.call("rpc.Version", True) == "2025.1.0"
    monkeypatch.delenv("RR_RPC")
    assert RPC.from_environment().address == "tcp://127.0.0.1:6001"


@pytest.mark.parametrize("address", ["", "tcp://", "tcp://host", "tcp://host:port", "unix://", "http://x:1"])
def test_an_address_that_is_none(address):
    """Anything but tcp://host:port and unix://path is refused when the client is made."""
    with pytest.raises(RpcError):
        RPC(address)


def test_threads_share_a_client(start_server):
    """Each thread gets the answer to its own call."""
    server = start_server(echo)
    failures: list[object] = []

    def call(rpc: RPC, number: int) -> None:
        for count in range(50):
            value = [number, count]
            if rpc.call("echo.Echo", value) != value:
                failures.append(value)

    with RPC(server.address) as rpc:
        threads = [threading.Thread(target=call, args=(rpc, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert len({request.sequence for request in server.requests}) == 200
    assert server.connections == 1


def test_a_forked_child_makes_its_own_connection(start_server):
    """Parent and child never share one connection."""
    server = start_server(echo)
    code = (
        "import os, sys\nfrom trailboss_worker.sdk import RPC\nrpc = RPC(sys.argv[1])\n"
        "assert rpc.call('a.B', 1) == 1\npid = os.fork()\nassert rpc.call('a.B', pid) == pid\n"
        "if pid:\n    assert os.waitpid(pid, 0)[1] == 0\nassert rpc.call('a.B', 2) == 2\nos._exit(0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "worker_protocol")}
    finished = subprocess.run(
        [sys.executable, "-c", code, server.address],
        env=environment,
        timeout=20,
        capture_output=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert server.connections == 2


# Errors that are answers


def test_a_service_error(start_server):
    """An error answer is a ServiceError with the server's text; the connection stays."""
    server = start_server(failing("rpc: can't find method a.B"))
    with RPC(server.address) as rpc:
        for _ in range(2):
            with pytest.raises(ServiceError) as caught:
                rpc.call("a.B")
            assert caught.value.text == "rpc: can't find method a.B"
            assert caught.value.method == "a.B"
            assert type(caught.value) is ServiceError
    assert server.connections == 1


def test_not_ready(start_server):
    """The not-ready text is taken apart: phase, plugins waited for and for how long."""
    server = start_server(failing(NOT_READY))
    with RPC(server.address) as rpc, pytest.raises(NotReadyError) as caught:
        rpc.call("jobs.List", None)
    assert caught.value.phase == "starting"
    assert caught.value.waiting_for == {"jobs": 1.2, "kv": 0.5}
    assert caught.value.plugin_phases == {"jobs": "starting", "kv": "declared"}
    assert isinstance(caught.value, ServiceError)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("text", "phase", "plugins"),
    [
        ("service not ready", "", []),
        ("service not ready: phase=draining", "draining", []),
        ("service not ready: phase=starting; waiting for jobs (starting, 1.2s)", "starting", ["jobs"]),
        ("service not ready: waiting for a (x, 1s), b (y, 2s), c (z, 3.5s)", "", ["a", "b", "c"]),
        ("service not ready: phase=booting pools; waiting for jobs (soon)", "booting pools", []),
        (
            "service not ready: phase=starting; waiting for jobs (starting, manys), kv (x, 1s)",
            "starting",
            ["kv"],
        ),
        ("service not ready: phase=starting; for reasons", "starting", []),
        ("service not ready: ;;=,(),", "", []),
    ],
)
def test_the_not_ready_text(text, phase, plugins):
    """What has the expected form is read, the rest is left out."""
    seen_phase, waits = parse_not_ready(text)
    assert (phase, plugins) == (seen_phase, [wait.plugin for wait in waits])


def test_refused_during_on_init(start_server):
    """The refusal of sensitive methods has a type of its own and is not repeated."""
    server = start_server(failing("refused during on_init: resetter.Reset"))
    with RPC(server.address) as rpc, pytest.raises(RefusedError):
        rpc.call("resetter.Reset", "jobs", retry_until=5)
    assert len(server.requests) == 1


def test_a_call_is_repeated_while_the_server_starts(start_server):
    """With retry_until, a not-ready answer is asked again until there is another one."""
    seen: list[RpcRequest] = []

    def answer(request: RpcRequest) -> bytes:
        seen.append(request)
        return encode_error(request, NOT_READY) if len(seen) < 4 else encode_reply(request, b'["one"]')

    server = start_server(answer)
    with RPC(server.address) as rpc:
        assert rpc.call("informer.List", True, retry_until=10) == ["one"]
    assert len(seen) == 4
    seen.clear()
    with RPC(server.address, retry_until=10) as rpc:
        assert Informer(rpc).list() == ["one"]
    assert len(seen) == 4
    assert server.connections == 2


def test_repeating_has_an_end(start_server):
    """When the time is up the last not-ready answer is raised."""
    server = start_server(failing(NOT_READY))
    started = time.monotonic()
    with RPC(server.address) as rpc, pytest.raises(NotReadyError):
        rpc.call("jobs.List", None, retry_until=0.2)
    assert len(server.requests) >= 3
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "reason",
    [
        "phase=draining; the server is stopping",
        "phase=booting pools; informer.X would wait for the pool jobs, which waits for this very caller (pid 5)",
    ],
)
def test_what_waiting_cannot_help_is_not_repeated(start_server, reason):
    """A server that is stopping, or that waits for the caller itself, is asked once."""
    server = start_server(failing(f"service not ready: {reason}"))
    with RPC(server.address) as rpc, pytest.raises(NotReadyError):
        rpc.call("jobs.List", None, retry_until=5)
    assert len(server.requests) == 1


def test_a_start_without_details_is_repeated(start_server):
    """Only a reason that stays ends the repeating."""
    server = start_server(failing("service not ready: phase=starting"))
    with RPC(server.address) as rpc, pytest.raises(NotReadyError):
        rpc.call("jobs.List", None, retry_until=0.1)
    assert len(server.requests) > 1


def test_other_errors_are_not_repeated(start_server):
    """A call that had an effect, or may have, is made once."""
    server = start_server(failing("no such pipeline"))
    with RPC(server.address) as rpc, pytest.raises(ServiceError):
        rpc.call("jobs.Push", None, retry_until=5)
    assert len(server.requests) == 1


def test_pauses_grow_and_are_capped():
    """Doubling from 20 ms to half a second, less up to half by jitter."""
    assert [retry_delay_seconds(attempt, 0.0) for attempt in range(7)] == [
        0.02,
        0.04,
        0.08,
        0.16,
        0.32,
        0.5,
        0.5,
    ]
    assert retry_delay_seconds(10_000, 1.0) == 0.25


# Servers that are lost, late or out of step


def test_nobody_listens(tmp_path):
    """A server that is not there is ConnectionLost, with the address, after about a second of tries."""
    with RPC(f"unix://{tmp_path}/none") as rpc, pytest.raises(ConnectionLost, match="11 tries"):
        rpc.call("a.B")


def test_a_connection_closed_before_the_answer(start_server):
    """The call is lost, is not repeated, and the next one connects anew."""
    server = start_server(lambda request: None)
    with RPC(server.address) as rpc:
        with pytest.raises(ConnectionLost, match="closed the connection before it answered"):
            rpc.call("a.B", retry_until=5)
        server.answer = echo
        assert rpc.call("a.B", 1) == 1
    assert len(server.requests) == 2
    assert server.connections == 2


def test_a_connection_closed_between_calls(start_server):
    """A server that closed an idle connection is connected to again, without an error."""
    server = start_server(echo)
    with RPC(server.address) as rpc:
        assert rpc.call("a.B", 1) == 1
        server.close_connections()
        assert rpc.call("a.B", 2) == 2
    assert server.connections == 2


def test_a_connection_closed_inside_the_answer(start_server):
    """Half an answer and then the end is ConnectionLost."""
    server = start_server(lambda request: echo(request)[:15])
    with RPC(server.address) as rpc:
        timer = threading.Timer(0.1, server.close_connections)
        timer.start()
        with pytest.raises(ConnectionLost):
            rpc.call("a.B", 1)
        timer.join()


def test_no_answer_in_time(start_server):
    """CallTimeout, and the late answer of that call is never taken for another's."""
    release = threading.Event()

    def answer(request: RpcRequest) -> bytes:
        release.wait(10)
        return echo(request)

    server = start_server(answer)
    with RPC(server.address, timeout_seconds=30) as rpc:
        with pytest.raises(CallTimeout, match=r"no answer .* within 0.05 s"):
            rpc.call("a.B", 1, timeout_seconds=0.05)
        release.set()
        assert rpc.call("a.B", 2) == 2
    assert server.connections == 2


@pytest.mark.parametrize(
    "twist",
    [
        lambda request: request._replace(sequence=request.sequence + 1),
        lambda request: request._replace(sequence=0),
        lambda request: request._replace(method="other.Method"),
    ],
    ids=["next sequence", "sequence 0", "other method"],
)
def test_an_answer_to_another_call(start_server, twist):
    """A wrong sequence number or method is an error, and the connection is given up."""
    server = start_server(lambda request: echo(twist(request)))
    with RPC(server.address) as rpc:
        with pytest.raises(OutOfStep):
            rpc.call("a.B", 1)
        server.answer = echo
        assert rpc.call("a.B", 2) == 2
    assert server.connections == 2


def test_an_unasked_answer_is_never_used(start_server):
    """What arrives between two calls closes the connection instead of answering the next."""
    server = start_server(lambda request: echo(request) * 2)
    with RPC(server.address) as rpc:
        assert rpc.call("a.B", 1) == 1
        assert rpc.call("a.B", 2) == 2
        assert rpc.call("a.B", 3) == 3


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        encode_frame(b"a.B1", flags=JSON),
        encode_frame(b"a.B1", flags=JSON, options=(1,)),
        encode_frame(b"a.B1", flags=JSON, options=(1, 50)),
        encode_frame(b"a.Bnonsense", flags=JSON, options=(1, 3)),
    ],
    ids=["HTTP", "no options", "one option", "method too long", "no JSON"],
)
def test_an_answer_that_is_none(start_server, reply):
    """Bytes that are no answer to this call are an OutOfStep error, never a result."""
    server = start_server(lambda request: reply)
    with RPC(server.address) as rpc, pytest.raises(OutOfStep):
        rpc.call("a.B", 1)


def test_an_error_text_that_is_no_utf8(start_server):
    """Whatever the text is, the error is raised with it."""
    reply = encode_frame(b"a.B\xff bad", flags=JSON | ERROR, options=(1, 3))
    server = start_server(lambda request: reply)
    with RPC(server.address) as rpc, pytest.raises(ServiceError, match="bad"):
        rpc.call("a.B", 1)


def test_a_client_tells_its_state(start_server):
    """The representation says where to and whether connected."""
    server = start_server(echo)
    rpc = RPC(server.address)
    assert "not connected, 0 calls" in repr(rpc)
    rpc.call("a.B", 1)
    assert "connected, 1 calls" in repr(rpc)
    rpc.close()
    assert "not connected, 1 calls" in repr(rpc)


# Wrappers


def test_jobs_push(start_server):
    """A push is the message that RoadRunner's clients send; the id comes back."""
    server = start_server(lambda request: encode_reply(request, b""))
    with RPC(server.address) as rpc:
        job_id = Jobs(rpc).push(
            "p", "App\\Ping", "{}", headers={"h": ["1", "2"]}, priority=3, delay_seconds=1.2
        )
        assert Jobs(rpc).push("p", "j", b"\xff", id="mine", auto_ack=True) == "mine"
    first, second = (
        messages.JOBS_PUSH_REQUEST.decode(request.argument)["job"] for request in server.requests
    )
    assert {(request.method, request.flags) for request in server.requests} == {("jobs.Push", PROTO)}
    assert (first["job"], first["id"], first["payload"]) == ("App\\Ping", job_id, b"{}")
    assert first["headers"] == {"h": {"value": ["1", "2"]}}
    assert [first["options"][key] for key in ("priority", "pipeline", "delay", "auto_ack")] == [
        3,
        "p",
        2,
        False,
    ]
    assert (second["id"], second["payload"], second["options"]["auto_ack"]) == ("mine", b"\xff", True)


def test_jobs_push_many(start_server):
    """Several jobs travel in one call, in order."""
    server = start_server(lambda request: encode_reply(request, b""))
    with RPC(server.address) as rpc:
        ids = Jobs(rpc).push_many(Push("p", f"job{number}", str(number)) for number in range(3))
    (request,) = server.requests
    jobs = messages.JOBS_PUSH_BATCH_REQUEST.decode(request.argument)["jobs"]
    assert request.method == "jobs.PushBatch"
    assert [(f"job{number}", ids[number], str(number).encode()) for number in range(3)] == [
        (job["job"], job["id"], job["payload"]) for job in jobs
    ]
    assert len(set(ids)) == 3


def test_jobs_pipelines(start_server):
    """Pause, resume, destroy, declare, list and stat."""
    stat = {
        "pipeline": "a",
        "driver": "memory",
        "queue": "q",
        "active": 1,
        "delayed": 2,
        "reserved": 3,
        "ready": True,
        "priority": 9,
    }
    replies = {
        "jobs.List": messages.JOBS_PIPELINES.encode({"pipelines": ["a", "b"]}),
        "jobs.Destroy": messages.JOBS_PIPELINES.encode({"pipelines": ["b"]}),
        "jobs.Stat": messages.JOBS_STATS.encode({"stats": [stat]}),
    }
    server = start_server(lambda request: encode_reply(request, replies.get(request.method, b"")))
    with RPC(server.address) as rpc:
        jobs = Jobs(rpc)
        assert jobs.list() == ["a", "b"]
        assert jobs.stat() == [PipelineStat("a", "memory", "q", 1, 2, 3, True, 9)]
        jobs.pause("a", "b")
        jobs.resume("a")
        assert jobs.destroy("b", "c") == ["b"]
        jobs.declare("new", "memory", priority=5, durable=True, options={"x": 1}, queue="q")
    arguments = {request.method: request.argument for request in server.requests}
    assert arguments["jobs.List"] == b""
    assert messages.JOBS_PIPELINES.decode(arguments["jobs.Pause"]) == {"pipelines": ["a", "b"]}
    assert messages.JOBS_PIPELINES.decode(arguments["jobs.Resume"]) == {"pipelines": ["a"]}
    assert messages.JOBS_PIPELINES.decode(arguments["jobs.Destroy"]) == {"pipelines": ["b", "c"]}
    assert messages.JOBS_DECLARE_REQUEST.decode(arguments["jobs.Declare"])["pipeline"] == {
        "name": "new",
        "driver": "memory",
        "priority": "5",
        "durable": "true",
        "options": '{"x": 1}',
        "queue": "q",
    }


def test_an_answer_that_is_no_message(start_server):
    """Bytes that are not the expected protobuf message are OutOfStep."""
    server = start_server(lambda request: encode_reply(request, b"\xff"))
    with RPC(server.address) as rpc, pytest.raises(OutOfStep, match=r"jobs\.v1\.Pipelines"):
        Jobs(rpc).list()


def test_informer_and_resetter(start_server):
    """JSON services: lists, workers, jobs, pool size, reset."""
    replies: dict[str, object] = {
        "informer.List": ["jobs"],
        "informer.Workers": {"workers": [{"pid": 5}]},
        "informer.Jobs": None,
        "resetter.List": ["jobs"],
        "resetter.Reset": True,
    }
    server = start_server(
        lambda request: encode_reply(request, json.dumps(replies.get(request.method, False)).encode())
    )
    with RPC(server.address) as rpc:
        informer = Informer(rpc)
        assert informer.list() == ["jobs"]
        assert informer.workers("jobs") == [{"pid": 5}]
        assert informer.jobs("jobs") == []
        informer.add_worker("jobs")
        informer.remove_worker("jobs")
        assert Resetter(rpc).list() == ["jobs"]
        assert Resetter(rpc).reset("jobs") is True
        replies["informer.Workers"] = {"workers": None}
        assert informer.workers("http") == []
        replies["informer.List"] = [5]
        with pytest.raises(OutOfStep):
            informer.list()
    assert [(r.method, r.argument) for r in server.requests][3:5] == [
        ("informer.AddWorker", b'"jobs"'),
        ("informer.RemoveWorker", b'"jobs"'),
    ]


def test_status(start_server):
    """Code and message of a plugin."""
    server = start_server(
        lambda request: encode_reply(request, messages.STATUS_RESPONSE.encode({"code": 503}))
    )
    with RPC(server.address) as rpc:
        assert Status(rpc).status("jobs") == (503, "")
        assert Status(rpc).ready("jobs").code == 503
    assert [request.method for request in server.requests] == ["status.Status", "status.Ready"]
    assert messages.STATUS_REQUEST.decode(server.requests[0].argument) == {"plugin": "jobs"}


def test_metrics(start_server):
    """What goes over the wire is what RoadRunner's PHP client sends."""
    server = start_server(answering(True))
    with RPC(server.address) as rpc:
        metrics = Metrics(rpc)
        metrics.declare("wait", "histogram", "Waiting.", labels=["where"], buckets=(0.1, 1), namespace="app")
        metrics.declare("size", "summary", objectives={0.5: 0.05})
        metrics.add("orders", 2, "berlin")
        metrics.add("hits")
        metrics.sub("heat", 1.5)
        metrics.set("heat", 3)
        metrics.observe("wait", 0.2, "db")
        metrics.unregister("wait")
    declared = {
        "name": "wait",
        "collector": {
            "type": "histogram",
            "help": "Waiting.",
            "labels": ["where"],
            "buckets": [0.1, 1],
            "objectives": {},
            "namespace": "app",
            "subsystem": "",
        },
    }
    assert json.loads(server.requests[0].argument) == declared
    assert json.loads(server.requests[1].argument)["collector"]["objectives"] == {"0.5": 0.05}
    assert [(request.method, json.loads(request.argument)) for request in server.requests[2:]] == [
        ("metrics.Add", {"name": "orders", "value": 2, "labels": ["berlin"]}),
        ("metrics.Add", {"name": "hits", "value": 1, "labels": []}),
        ("metrics.Sub", {"name": "heat", "value": 1.5, "labels": []}),
        ("metrics.Set", {"name": "heat", "value": 3, "labels": []}),
        ("metrics.Observe", {"name": "wait", "value": 0.2, "labels": ["db"]}),
        ("metrics.Unregister", "wait"),
    ]


def test_app_log_lines(start_server):
    """Plain lines go as JSON, lines with attributes as protobuf."""
    server = start_server(lambda request: encode_reply(request, b"" if request.flags == PROTO else b"false"))
    with RPC(server.address) as rpc:
        app = App(rpc)
        for write in (app.error, app.warning, app.info, app.debug, app.log):
            write("text")
        app.info("text", order=5, user="ann")
    assert [request.method for request in server.requests] == [
        "app.Error", "app.Warning", "app.Info", "app.Debug", "app.Log", "app.InfoWithContext",
    ]  # fmt: skip
    assert server.requests[0].argument == b'"text"'
    assert messages.APPLOGGER_LOG_ENTRY.decode(server.requests[-1].argument) == {
        "message": "text",
        "log_attrs": [{"key": "order", "value": "5"}, {"key": "user", "value": "ann"}],
    }


def test_state(start_server):
    """trailboss.State is a dictionary; anything else is OutOfStep."""
    server = start_server(answering({"phase": "ready", "plugins": []}))
    with RPC(server.address) as rpc:
        assert rpc.state() == {"phase": "ready", "plugins": []}
        server.answer = answering([])
        with pytest.raises(OutOfStep):
            rpc.state()


def test_new_ids_are_uuids():
    """Version 4, all different."""
    import uuid

    ids = {new_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert {(uuid.UUID(text).version, str(uuid.UUID(text)) == text) for text in ids} == {(4, True)}


@pytest.mark.parametrize(
    ("value", "expected"), [("s", "s"), (True, "true"), (5, "5"), ({"a": [1]}, '{"a": [1]}'), (None, "null")]
)
def test_options_as_texts(value, expected):
    """String maps hold booleans, numbers and nested values as JSON does."""
    assert option_text(value) == expected
