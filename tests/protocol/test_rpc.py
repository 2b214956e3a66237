"""RPC envelopes against the recorded calls and answers."""

from __future__ import annotations

import pytest

from trailboss_worker.protocol import frames, rpc
from trailboss_worker.protocol.errors import LocalProtocolError, RpcFrameError

from .support import BY_NAME, VECTORS, names, only_frame

CALLS = [v["name"] for v in VECTORS if v["direction"] == "client->rpc" and "method" in v["decoded"]]
ANSWERS = [v["name"] for v in VECTORS if v["direction"] == "rpc->client"]


@pytest.mark.parametrize("name", CALLS)
def test_recorded_calls(name: str) -> None:
    """Recorded calls decode to their fields and are encoded to the same bytes."""
    vector = BY_NAME[name]
    decoded = vector["decoded"]
    request = rpc.decode_request(only_frame(vector))

    assert (decoded["seq"], decoded["method"], decoded["args_hex"]) == (
        *(request.sequence, request.method, request.argument.hex()),
    )
    if rpc.request_codec(request.flags) is not None and not decoded["trailing_bytes"]:
        assert (
            vector["hex"]
            == rpc.encode_request(*(request.sequence, request.method, request.argument, request.flags)).hex()
        )


@pytest.mark.parametrize("name", ANSWERS)
def test_recorded_answers(name: str) -> None:
    """Recorded answers decode, and answering the recorded call with the same result gives the same bytes."""
    vector = BY_NAME[name]
    decoded = vector["decoded"]
    reply = rpc.decode_reply(only_frame(vector))

    assert (decoded["seq"], decoded["method"], decoded["args_hex"]) == (
        reply.sequence,
        reply.method,
        reply.body.hex(),
    )
    assert reply.is_error == ("error" in vector["expected"]["client"])
    request = rpc.decode_request(only_frame(BY_NAME[name.removesuffix("_resp") + "_req"]))
    if reply.is_error:
        assert vector["hex"] == rpc.encode_error(request, reply.error_text).hex()
    else:
        assert vector["hex"] == rpc.encode_reply(request, reply.body).hex()


@pytest.mark.parametrize("name", names("rpc-neg", "rpc-edge"))
def test_recorded_edge_cases(name: str) -> None:
    """Calls at the edge are answered with the flags that upstream uses; hopeless ones close the connection."""
    vector = BY_NAME[name]
    if vector["expected"]["parser"].startswith("error"):
        assert "close" in vector["expected"]["server"]
        return
    frame = only_frame(vector)
    if "close connection" in vector["expected"]["server"] or name == "rpc_neg_method_len_beyond_payload":
        with pytest.raises(RpcFrameError) as caught:
            rpc.decode_request(frame)
        assert caught.value.close
        return
    request = rpc.decode_request(frame)
    observed = vector["go_observed"].get("reply_hex")
    if observed:
        decoder = frames.FrameDecoder()
        decoder.feed(bytes.fromhex(observed))
        reply = rpc.decode_reply(decoder.next_frames()[0])
        encode = rpc.encode_error(request, "x") if reply.is_error else rpc.encode_reply(request, b"")
        decoder.feed(encode)
        ours = rpc.decode_reply(decoder.next_frames()[0])
        if "two_pipelined" not in name:
            assert (reply.sequence, reply.method, reply.flags) == (ours.sequence, ours.method, ours.flags)


def test_codec_precedence() -> None:
    """The first bit in the order PROTO, JSON, RAW, MSGPACK, GOB names the codec of a call and of its answer."""
    expected = {0xA0: "proto", 0x0C: "json", 0x14: "raw", 0x30: "msgpack", 0x20: "gob", 0x41: None, 0: None}

    assert expected == {flags: rpc.request_codec(flags) for flags in expected}
    assert [rpc.codec_flag(n) for n in ("proto", "json", "raw", "msgpack", "gob")] == [
        0x80,
        0x08,
        0x04,
        0x10,
        0x20,
    ]
    with pytest.raises(LocalProtocolError):
        rpc.encode_request(1, "rpc.Version", b"", frames.CONTROL)


def test_method_name_that_is_no_text() -> None:
    """A method name that is no UTF-8 closes the connection."""
    with pytest.raises(RpcFrameError) as caught:
        rpc.decode_request(frames.Frame(frames.JSON, 0, (1, 2), b"\xff\xfe"))
    assert caught.value.close
