"""Every recorded call of PHP and Go clients, sent to a running server over its socket.

Calls of services that this server has are answered as the recorded server did, in flags, number, name and kind; calls of
services that belong to absent plugins get upstream's text. Nothing of it, however broken, touches another connection.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trailboss_worker.protocol.frames import ERROR, GOB, JSON, PROTO, FrameDecoder
from trailboss_worker.protocol.rpc import RpcReply, decode_reply, encode_request

from .live import WAIT_SECONDS, Live, live

TESTS = Path(__file__).resolve().parent.parent
VECTORS: dict[str, dict[str, Any]] = {
    vector["name"]: vector
    for vector in json.loads((TESTS / "protocol" / "vectors.json").read_text())["vectors"]
}
CALLS = {name: vector for name, vector in VECTORS.items() if vector["direction"] == "client->rpc"}
#: Services of plugins that this server does not have; `raw` are the recording's own test methods.
ABSENT = {"kv", "lock", "metrics", "service", "raw", "nosuch"}
#: What the answerable calls of the present services are refused for, where they are.
REFUSALS = {
    "rpc_php_informer_AddWorker_req": "plugin http does not support workers management",
    "rpc_php_informer_AddWorker_2_req": "plugin kv does not support workers management",
    "rpc_php_resetter_Reset_req": "no such plugin: http",
    "rpc_php_resetter_Reset_2_req": "no such plugin: nope",
    "rpc_php_informer_NoMethod_req": "rpc: can't find method informer.NoMethod",
    "rpc_php_nodot_req": "rpc: service/method request ill-formed: nodot",
    "rpc_php_jobs_Push_2_req": "rpc_push: empty ID field not allowed",
    "rpc_php_jobs_Pause_req": "no such pipeline, requested: x",
    "rpc_php_informer_List_2_req": "goridge_read_request_body: message type is not a proto",
    "rpc_php_jobs_List_2_req": (
        "goridge_read_request_body: jobs.List takes and gives protobuf messages (codec PROTO), not json"
    ),
    "rpc_go_informer_NoMethod_req": "rpc: can't find method informer.NoMethod",
    "rpc_sdk_jobs_Pause_4": "no such pipeline, requested: two",
    "rpc_sdk_informer_AddWorker_33": "plugin http does not support workers management",
    "rpc_sdk_informer_RemoveWorker_34": "plugin http does not support workers management",
}
CLOSING = {
    "rpc_neg_bad_crc",
    "rpc_neg_no_options",
    "rpc_neg_one_option",
    "rpc_neg_three_options",
    "rpc_neg_method_len_beyond_payload",
}
CONFIG = """
version: "3"
rpc: {{listen: "unix://{folder}/rpc.sock"}}
server: {{command: "{python} {worker}"}}
jobs:
  consume: [test]
  pool: {{num_workers: 1}}
  pipelines:
    test: {{driver: memory}}
logs: {{mode: production, output: [server.log]}}
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Live]:
    """A server with a jobs pool of one worker."""
    worker = TESTS / "sdk" / "programs" / "jobs_worker.py"
    (tmp_path / ".rr.yaml").write_text(CONFIG.format(folder=tmp_path, python=sys.executable, worker=worker))
    with live(tmp_path, f"unix://{tmp_path}/rpc.sock", "serve") as started:
        yield started


class Raw:
    """A connection on which bytes are sent as they are."""

    def __init__(self, server: Live) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WAIT_SECONDS)
        self._socket.connect(server.address.removeprefix("unix://"))
        self._decoder = FrameDecoder()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send."""
        self._socket.sendall(data)

    def replies(self, count: int) -> list[RpcReply]:
        """The next answers; fewer when the server closes the connection."""
        replies: list[RpcReply] = []
        while len(replies) < count:
            data = self._socket.recv(65536)
            if not data:
                break
            self._decoder.feed(data)
            replies += [decode_reply(frame) for frame in self._decoder.next_frames()]
        return replies


def bytes_of(name: str) -> bytes:
    """The recorded bytes of a vector."""
    return bytes.fromhex(VECTORS[name]["hex"])


def expected_error(name: str) -> str | None:
    """The text that a call is refused with, None for a call that is answered."""
    method = CALLS[name]["decoded"]["method"]
    if method.partition(".")[0] in ABSENT:
        return f"rpc: can't find service {method}"
    if name in REFUSALS:
        return REFUSALS[name]
    if CALLS[name]["decoded"]["flags"] == GOB:
        return "goridge_read_request_body: the codec GOB is not supported; use JSON, msgpack or PROTO"
    return None


def check_answer(name: str, reply: RpcReply) -> None:
    """Hold an answer to the recorded call, and to the recorded answer where there is one that can apply."""
    decoded = CALLS[name]["decoded"]
    codec = PROTO if decoded["flags"] & PROTO else decoded["flags"]
    text = expected_error(name)
    assert (decoded["seq"], decoded["method"]) == (reply.sequence, reply.method)
    assert codec | (ERROR if text is not None else 0) == reply.flags, name
    assert text == (reply.error_text if reply.is_error else None), name
    recorded = VECTORS.get(name.replace("_req", "_resp"), {}) if name.endswith("_req") else {}
    refused = bool(recorded and recorded["decoded"]["flags"] & ERROR)
    if refused:
        assert reply.is_error, name


def test_calls_of_one_client_glued_together(server: Live) -> None:
    """All calls of the PHP client, of its msgpack flavour and of the Go client, each in one burst on one connection."""
    for prefix, count in (("rpc_php_", 34), ("rpc_php_msgpack_", 7), ("rpc_go_", 8)):
        names = [
            name
            for name in CALLS
            if name.startswith(prefix)
            and (name.startswith("rpc_php_msgpack_") == (prefix == "rpc_php_msgpack_"))
        ]
        assert len(names) == count
        with Raw(server) as client:
            client.send(b"".join(map(bytes_of, names)))
            replies = {reply.sequence: reply for reply in client.replies(count)}
        assert len(replies) == count
        for name in names:
            check_answer(name, replies[CALLS[name]["decoded"]["seq"]])


def test_the_requests_of_the_php_packages(server: Live) -> None:
    """What the released PHP packages sent, one call after the other as they do it."""
    names = [name for name, vector in CALLS.items() if vector["category"] == "rpc-sdk"]
    assert len(names) == 35
    with Raw(server) as client:
        for name in names:
            client.send(bytes_of(name))
            (reply,) = client.replies(1)
            check_answer(name, reply)
    with server.rpc() as rpc:
        assert rpc.call("rpc.Version", True) == "2025.1.15"


def test_odd_and_broken_calls(server: Live) -> None:
    """Answered as recorded, text included, or that connection closed; a client beside them never notices."""
    names = [name for name, vector in CALLS.items() if vector["category"] in ("rpc-neg", "rpc-edge")]
    assert len(names) == 18
    with Raw(server) as bystander:
        for sequence, name in enumerate(names):
            with Raw(server) as client:
                client.send(bytes_of(name))
                if name in CLOSING:
                    assert client.replies(1) == [], name
                else:
                    check_odd(name, client)
            bystander.send(encode_request(sequence, "rpc.Version", b"true", JSON))
            (reply,) = bystander.replies(1)
            assert (sequence, b'"2025.1.15"') == (reply.sequence, reply.body)


def check_odd(name: str, client: Raw) -> None:
    """Compare with what upstream answered; where it died, every call gets its answer."""
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex(VECTORS[name]["go_observed"].get("reply_hex", "")))
    recorded = [decode_reply(frame) for frame in decoder.next_frames()]
    if not recorded:
        assert name == "rpc_neg_duplicate_seq_in_flight"
        text = b"rpc: can't find service raw.Str"
        assert [(5, "raw.Str", text)] * 2 == [(it.sequence, it.method, it.body) for it in client.replies(2)]
        return
    replies = {reply.sequence: reply for reply in client.replies(len(recorded))}
    for wanted in recorded:
        reply = replies[wanted.sequence]
        if wanted.method == "raw.Str":
            assert (ERROR | wanted.flags, "raw.Str") == (reply.flags, reply.method)
            continue
        assert (wanted.method, wanted.flags) == (reply.method, reply.flags), name
        if wanted.is_error or wanted.method == "rpc.Version":
            assert wanted.body == reply.body, name


def test_every_recorded_call_is_sent_by_a_test_here() -> None:
    """The categories above are all there are."""
    assert {vector["category"] for vector in CALLS.values()} == {"rpc", "rpc-sdk", "rpc-neg", "rpc-edge"}
    assert len(CALLS) == 34 + 7 + 8 + 35 + 18
