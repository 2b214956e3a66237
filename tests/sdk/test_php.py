"""The PHP programs of these tests, against the same scripted server: they are what a released PHP worker is."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest

from trailboss_worker.protocol import messages
from trailboss_worker.protocol.control import STOP_ANSWER_CONTEXT, encode_pid
from trailboss_worker.protocol.frames import CONTROL, ERROR, JSON, PROTO, STREAM, Frame, FrameDecoder
from trailboss_worker.protocol.payload import encode_payload, split_payload
from trailboss_worker.protocol.rpc import RpcRequest, decode_request, encode_error, encode_reply

PHP = pathlib.Path(__file__).resolve().parent.parent / "php"
EXAMPLES = PHP.parent.parent / "examples"
ACK = {"type": 2, "data": []}

pytestmark = pytest.mark.php
every_relay = pytest.mark.parametrize("relay", ["pipes", "unix", "tcp"])


@every_relay
def test_a_whole_life(serve_php, relay):
    """Handshake, requests, a second handshake, stop: exit code 0."""
    worker = serve_php("echo_worker.php", relay=relay)
    assert worker.shake_hands() == worker.process.pid
    assert worker.exec(b"body", b"ctx") == (b"ctx", b"body")
    assert worker.exec(b"b" * 50_000, b"c") == (b"c", b"b" * 50_000)
    assert worker.shake_hands() == worker.process.pid
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.rest() == b""
    assert worker.stderr() == ""


def test_the_handshake_is_the_recorded_one(serve_php):
    """Flags 0x01 without a codec bit, no options, as released workers answer."""
    worker = serve_php("echo_worker.php")
    worker.send(encode_pid(1))
    assert worker.frame() == Frame(CONTROL, 0, (), b'{"pid":%d}' % worker.process.pid)


def test_a_header_in_two_writes_kills_it_on_pipes(serve_php):
    """The habit that servers have to respect: the first 12 bytes are one read."""
    worker = serve_php("echo_worker.php")
    worker.shake_hands()
    frame = encode_payload(b"", b"x")
    worker.send(frame[:5])
    assert worker.exit_code() != 0
    assert "Incorrect header size" in worker.stderr()


def test_a_wrong_checksum_is_not_noticed(serve_php):
    """The other habit: what arrives is taken as it is."""
    worker = serve_php("echo_worker.php")
    worker.shake_hands()
    frame = bytearray(encode_payload(b"", b"x"))
    frame[6] ^= 0xFF
    worker.send(bytes(frame))
    assert split_payload(worker.frame()) == (b"", b"x")


def test_the_end_inside_a_payload(serve_php):
    """An exception by default, the released packages' endless loop when asked for."""
    worker = serve_php("echo_worker.php")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"x" * 100)[:50])
    worker.close_relay()
    assert worker.exit_code() != 0
    worker = serve_php("echo_worker.php", GORIDGE_SPIN_AT_EOF="1")
    worker.shake_hands()
    worker.send(encode_payload(b"", b"x" * 100)[:50])
    before = cpu_seconds(worker.process.pid)
    worker.close_relay()
    deadline = time.monotonic() + 10
    while cpu_seconds(worker.process.pid) < before + 0.05:
        assert time.monotonic() < deadline
    assert worker.process.poll() is None
    worker.signal(signal.SIGKILL)


def cpu_seconds(pid: int) -> float:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_the_constant_worker(serve_php):
    """Whatever it is asked, it acknowledges."""
    worker = serve_php("constant_worker.php")
    worker.shake_hands()
    assert worker.exec(b"x", b"{}") == (b"", b'{"type":2,"data":[]}')


@every_relay
def test_jobs_are_answered_as_told(serve_php, relay, tmp_path):
    """Each behaviour of the jobs worker that answers, byte for byte what the released package sends."""
    log = tmp_path / "log"
    worker = serve_php("jobs_worker.php", relay=relay, JOBS_LOG=str(log))
    worker.shake_hands()
    answers = {}
    for name, arguments in [
        ("ack", {}),
        ("complete", {}),
        ("nack", {"message": "no", "requeue": True, "delay": 3}),
        ("requeue", {"message": "later", "delay": 5, "headers": {"attempts": ["2"]}}),
        ("requeue", {}),
        ("fail", {"message": "oops", "requeue": True, "delay": 10, "headers": {"attempts": ["1"]}}),
        ("sleep", {"ms": 5}),
        ("memory", {"mb": 1}),
        ("empty", {}),
        ("broken", {}),
    ]:
        worker.send_job(name, arguments, attempts=2)
        answers[name, str(arguments)] = split_payload(worker.frame())
    assert {context for context, _ in answers.values()} == {b""}
    assert [body for _, body in answers.values()] == [
        b'{"type":2,"data":[]}',
        b'{"type":0,"data":[]}',
        b'{"type":3,"data":{"message":"no","requeue":true,"delay_seconds":3}}',
        b'{"type":4,"data":{"message":"later","delay_seconds":5,"headers":{"attempts":["2"]}}}',
        b'{"type":4,"data":{"message":"as told","delay_seconds":0}}',
        b'{"type":1,"data":{"message":"oops","requeue":true,"delay_seconds":10,"headers":{"attempts":["1"]}}}',
        b'{"type":2,"data":[]}',
        b'{"type":2,"data":[]}',
        b"",
        b'{"type":',
    ]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 10
    assert (lines[0]["id"], lines[0]["job"], lines[0]["attempts"]) == ("id-1", "ack", 2)


def test_frames_that_are_no_job_answers(serve_php):
    """ERROR frame, streamed answer, request to be replaced."""
    worker = serve_php("jobs_worker.php")
    worker.shake_hands()
    worker.send_job("error", {"message": "boom"})
    assert worker.frame() == Frame(ERROR, 0, (), b"boom")
    worker.send_job("stream", {})
    assert [worker.frame().stream for _ in range(2)] == [STREAM, 0]
    worker.send_job("stop", {})
    assert worker.frame() == Frame(0, 0, (13,), STOP_ANSWER_CONTEXT)


def test_echo_is_kept_off_the_relay_and_stdout_is_not(serve_php):
    """echo goes to standard error; a write to STDOUT lands in front of the answer."""
    worker = serve_php("jobs_worker.php")
    worker.shake_hands()
    assert worker.job("echo", {"text": "echoed text"}) == ACK
    assert worker.wait_stderr("echoed text")
    assert worker.job("stderr", {"bytes": 160}) == ACK
    worker.wait_stderr("x" * 79)
    worker.send_job("stdout", {"text": "PHP garbage\n"})
    worker.close_relay()
    assert worker.rest().startswith(b"PHP garbage\n\x14")


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [("exit", {"code": 3}, 3), ("die", {}, -9), ("fatal", {}, 255)],
)
def test_deaths(serve_php, name, arguments, code):
    """A worker that dies in a job leaves no byte of an answer."""
    worker = serve_php("jobs_worker.php")
    worker.shake_hands()
    worker.send_job(name, arguments)
    assert worker.exit_code() == code
    assert worker.rest() == b""
    assert ("this_function_does_not_exist" in worker.stderr()) is (name == "fatal")


def test_a_worker_that_never_answers(serve_php):
    """hang holds the job until it is killed."""
    worker = serve_php("jobs_worker.php")
    worker.shake_hands()
    worker.send_job("hang", {})
    assert worker.is_silent(0.1)
    worker.signal(signal.SIGKILL)
    assert worker.exit_code() == -9


def test_a_late_boot(serve_php):
    """BOOT_SLEEP_MS delays the handshake."""
    worker = serve_php("jobs_worker.php", BOOT_SLEEP_MS="150")
    started = time.monotonic()
    worker.shake_hands()
    assert time.monotonic() - started > 0.1


# The RPC client and its programs


@pytest.fixture
def rpc_server(tmp_path):
    """A server that answers jobs.*, echo.Echo and fails the rest; collects the requests."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "rpc"))
    listener.listen(4)
    requests: list[RpcRequest] = []
    thread = threading.Thread(target=_serve, args=(listener, requests))
    thread.start()
    yield f"unix://{tmp_path / 'rpc'}", requests
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def _serve(listener, requests: list[RpcRequest]) -> None:
    while True:
        try:
            connection = listener.accept()[0]
        except OSError:
            return
        with connection:
            connection.settimeout(20)
            decoder = FrameDecoder()
            while data := connection.recv(65536):
                decoder.feed(data)
                for frame in decoder.next_frames():
                    requests.append(decode_request(frame))
                    connection.sendall(_reply(requests[-1]))


def _reply(request: RpcRequest) -> bytes:
    if request.method == "echo.Echo" and request.flags == JSON:
        return encode_reply(request, request.argument)
    if not request.method.startswith("jobs.") or request.flags != PROTO:
        return encode_error(request, f"rpc: can't find method {request.method}")
    if request.method in ("jobs.List", "jobs.Destroy"):
        return encode_reply(request, messages.JOBS_PIPELINES.encode({"pipelines": ["one", "two"]}))
    if request.method == "jobs.Stat":
        stat = {
            "pipeline": "one",
            "driver": "memory",
            "queue": "q",
            "active": 300,
            "delayed": 2,
            "ready": True,
            "priority": 10,
        }
        return encode_reply(request, messages.JOBS_STATS.encode({"stats": [stat]}))
    return encode_reply(request, b"")


def run_php(
    php: str, program: pathlib.Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RR_")}
    return subprocess.run(
        [php, str(program), *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_the_on_init_program(php, rpc_server, tmp_path):
    """It prints the pipelines and exits 0; without a server it says so and exits 1."""
    finished = run_php(php, PHP / "on_init_list.php", RR_RPC=rpc_server[0])
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "one\ntwo\n", "")
    assert [(request.method, request.flags, request.argument) for request in rpc_server[1]] == [
        ("jobs.List", PROTO, b"")
    ]
    finished = run_php(php, PHP / "on_init_list.php", RR_RPC=f"unix://{tmp_path}/nobody")
    assert (finished.returncode, finished.stdout) == (1, "")
    assert "unable to establish connection" in finished.stderr


def test_json_calls(php, rpc_server):
    """rpc_cli prints results, and errors with exit code 1."""
    finished = run_php(php, PHP / "rpc_cli.php", "echo.Echo", '{"a":[1,"x"]}', RR_RPC=rpc_server[0])
    assert (finished.returncode, finished.stdout) == (0, '{"a":[1,"x"]}\n')
    finished = run_php(php, PHP / "rpc_cli.php", "no.Method", RR_RPC=rpc_server[0])
    assert (finished.returncode, finished.stdout) == (1, "")
    assert f"Error 'rpc: can't find method no.Method' on {rpc_server[0]}" in finished.stderr


def test_jobs_calls(php, rpc_server):
    """Every jobs method, encoded so that the tables of the Python side read it."""
    address, requests = rpc_server

    def call(method: str, argument: object = None) -> object:
        finished = run_php(php, PHP / "rpc_cli.php", method, json.dumps(argument), RR_RPC=address)
        assert (finished.returncode, finished.stderr) == (0, "")
        return json.loads(finished.stdout)

    push = {"pipeline": "p", "job": "App\\Ping", "payload": '{"v":1}', "id": "i", "priority": 300, "delay": 5, "auto_ack": True, "headers": {"h": ["v", "w"]}}  # fmt: skip
    assert call("jobs.Push", push) == "i"
    job = messages.JOBS_PUSH_REQUEST.decode(requests[-1].argument)["job"]
    assert (job["job"], job["id"], job["payload"], job["headers"]) == ("App\\Ping", "i", b'{"v":1}', {"h": {"value": ["v", "w"]}})  # fmt: skip
    assert [job["options"][key] for key in ("pipeline", "priority", "delay", "auto_ack")] == [
        "p",
        300,
        5,
        True,
    ]
    ids = call(
        "jobs.PushBatch", [{"pipeline": "p", "job": "a"}, {"pipeline": "p", "job": "b", "payload": "x"}]
    )
    jobs = messages.JOBS_PUSH_BATCH_REQUEST.decode(requests[-1].argument)["jobs"]
    assert [(job["job"], job["id"], job["payload"]) for job in jobs] == [
        ("a", ids[0], b""),
        ("b", ids[1], b"x"),
    ]
    for method in ("jobs.Pause", "jobs.Resume"):
        assert call(method, ["a", "b"]) is None
        assert messages.JOBS_PIPELINES.decode(requests[-1].argument) == {"pipelines": ["a", "b"]}
    assert call("jobs.Destroy", ["one", "two"]) == ["one", "two"]
    assert call("jobs.Declare", {"name": "n", "driver": "memory"}) is None
    assert messages.JOBS_DECLARE_REQUEST.decode(requests[-1].argument) == {
        "pipeline": {"name": "n", "driver": "memory"}
    }
    assert call("jobs.List") == ["one", "two"]
    assert call("jobs.Stat") == [
        {"pipeline": "one", "driver": "memory", "queue": "q", "active": 300, "delayed": 2, "reserved": 0, "ready": True, "priority": 10}
    ]  # fmt: skip
    assert {request.flags for request in requests} == {PROTO}


def test_a_job_that_pushes_another(serve_php, rpc_server):
    """A worker in the middle of a job calls the server."""
    worker = serve_php("jobs_worker.php", RR_RPC=rpc_server[0])
    worker.shake_hands()
    assert worker.job("push", {"pipeline": "p", "job": "next", "payload": "{}"}) == ACK
    (request,) = rpc_server[1]
    assert messages.JOBS_PUSH_REQUEST.decode(request.argument)["job"]["job"] == "next"


# The examples


def test_the_php_example(serve, php, rpc_server):
    """Every job of the example does what it says, from the example's own folder."""
    worker = serve([php, str(EXAMPLES / "php" / "worker.php")], RR_RPC=rpc_server[0])
    worker.shake_hands()
    assert worker.job("greet", b"Ann") == ACK
    worker.wait_stderr("Hello Ann, from PHP")
    assert worker.job("later", b"")["type"] == 4
    assert worker.job("later", b"", headers={"x-seen": ["1"]}) == ACK
    assert worker.job("greet-everybody", b"Ann\nBob") == ACK
    (request,) = rpc_server[1]
    jobs = messages.JOBS_PUSH_BATCH_REQUEST.decode(request.argument)["jobs"]
    assert [job["payload"] for job in jobs] == [b"Ann", b"Bob"]
    assert worker.job("unknown", b"")["type"] == 3
