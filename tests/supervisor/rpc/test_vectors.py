"""The recorded RPC dialogues of PHP and Go clients, played to the server: in memory and over a unix socket."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
import trio

from trailboss_worker.protocol.errors import FrameError, RpcFrameError
from trailboss_worker.protocol.frames import FrameDecoder
from trailboss_worker.protocol.rpc import decode_reply, decode_request, encode_error, encode_reply

#: Answers whose text is this server's own, not upstream's: see docs/rpc.md.
OWN_TEXT = {
    "rpc_php_jobs_List_2_req": "takes and gives protobuf messages",
    "rpc_php_raw_Str_3_req": "json: cannot unmarshal object into a value of type string",
    "rpc_php_kv_Clear_req": "rpc: can't find method kv.Clear",
}
#: The kv, lock and service messages belong to plugins that are not part of these stand-ins.
ABSENT = ("kv.MGet",)


def requests(helpers: Any) -> dict[str, dict[str, Any]]:
    vectors = helpers.load_vectors("rpc")
    return {name: vector for name, vector in vectors.items() if vector["direction"] == "client->rpc"}


async def answers_in_memory(helpers: Any, data: bytes) -> list[bytes]:
    """Return the answer frames of a server without a socket."""
    from trailboss.reactor import Reactor
    from trailboss.rpc.registry import Registry
    from trailboss.rpc.server import RpcLimits, RpcServer

    reactor = Reactor()
    try:
        async with trio.open_nursery() as nursery:
            server = RpcServer(
                Registry(helpers.stand_ins()), RpcLimits(), reactor, helpers.opened_state(), nursery
            )
            peer = helpers.MemoryPeer()
            decoder = FrameDecoder()
            decoder.feed(data)
            for frame in decoder.next_frames():
                server.serve(peer, decode_request(frame))
            return [
                encode_error(request, body.decode()) if is_error else encode_reply(request, body)
                for request, is_error, body in peer.answers
            ]
    finally:
        reactor.close()


def compare(name: str, request: dict[str, Any], recorded: dict[str, Any], frame: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(frame)
    got_frame = decoder.next_frame()
    assert got_frame is not None
    got = decode_reply(got_frame)
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex(recorded["hex"]))
    wanted_frame = decoder.next_frame()
    assert wanted_frame is not None
    wanted = decode_reply(wanted_frame)
    assert (wanted.sequence, wanted.method) == (got.sequence, got.method)
    if request["decoded"]["flags"] == 0x20:
        assert (got.flags, got.is_error) == (0x60, True)
        assert wanted.is_error or b"GOB is not supported" in got.body
        return
    assert wanted.flags == got.flags
    if name in OWN_TEXT:
        assert OWN_TEXT[name] in got.error_text
    elif wanted.flags == 0x10:
        assert msgpack.unpackb(wanted.body) == msgpack.unpackb(got.body)
    else:
        assert wanted.body == got.body


async def test_recorded_calls_get_the_recorded_answers_in_memory(helpers: Any) -> None:
    """Every recorded call is answered like the recorded server: flags, number, name, bytes or text."""
    vectors = helpers.load_vectors("rpc")
    played = 0
    for name, request in requests(helpers).items():
        if request["decoded"].get("method") in ABSENT:
            continue
        (frame,) = await answers_in_memory(helpers, bytes.fromhex(request["hex"]))
        compare(name, request, vectors[name.replace("_req", "_resp")], frame)
        played += 1
    assert played >= 40


async def test_recorded_calls_get_the_recorded_answers_over_a_socket(helpers: Any, rpc_config: Any) -> None:
    """The same dialogues over a real unix socket, all of them glued into one stream, matched by sequence number."""
    with trio.fail_after(10):
        async with helpers.running(helpers.stand_ins(), rpc_config) as bench, bench.client() as client:
            vectors = helpers.load_vectors("rpc")
            for name, request in requests(helpers).items():
                if request["decoded"].get("method") in ABSENT:
                    continue
                await client.send(bytes.fromhex(request["hex"]))
                reply = await client.reply()
                assert reply is not None
                wanted = vectors[name.replace("_req", "_resp")]["decoded"]
                assert (wanted["seq"], wanted["method"]) == (reply.sequence, reply.method)


async def test_requests_of_the_php_packages_are_answered(helpers: Any, rpc_config: Any) -> None:
    """Each recorded request of the official PHP packages gets exactly one answer with its number and name."""
    with trio.fail_after(10):
        async with helpers.running(helpers.stand_ins(), rpc_config) as bench, bench.client() as client:
            for vector in helpers.load_vectors("rpc-sdk").values():
                await client.send(bytes.fromhex(vector["hex"]))
                reply = await client.reply()
                assert reply is not None
                assert (vector["decoded"]["seq"], vector["decoded"]["method"]) == (
                    reply.sequence,
                    reply.method,
                )
                service = vector["decoded"]["method"].partition(".")[0]
                if service in ("jobs", "informer", "app", "metrics"):
                    assert not (reply.is_error and b"can't find service" in reply.body)


CLOSING = {
    "rpc_neg_bad_crc",
    "rpc_neg_no_options",
    "rpc_neg_one_option",
    "rpc_neg_three_options",
    "rpc_neg_method_len_beyond_payload",
}


async def test_broken_calls_close_their_own_connection_alone(helpers: Any, rpc_config: Any) -> None:
    """Frames that cannot be answered close that connection; a good client beside it never notices."""
    with trio.fail_after(10):
        async with helpers.running(helpers.stand_ins(), rpc_config) as bench, bench.client() as good:
            for name in sorted(CLOSING):
                async with bench.client() as bad:
                    await bad.send(bytes.fromhex(helpers.load_vectors("rpc-neg")[name]["hex"]))
                    assert await bad.closed(), name
                assert (await good.call("rpc.Version", b"true")).body == b'"2025.1.15"'
            assert len(CLOSING) == bench.server.counters.broken


async def test_odd_calls_are_answered_as_recorded(helpers: Any, rpc_config: Any) -> None:
    """Odd but answerable calls get upstream's flags, number and name, and its text where clients rely on it."""
    with trio.fail_after(10):
        async with helpers.running(helpers.stand_ins(), rpc_config) as bench:
            for name, vector in helpers.load_vectors("rpc-neg", "rpc-edge").items():
                if name in CLOSING:
                    continue
                recorded = FrameDecoder()
                recorded.feed(bytes.fromhex(vector.get("go_observed", {}).get("reply_hex", "")))
                wanted = [decode_reply(frame) for frame in recorded.next_frames()]
                async with bench.client() as client:
                    await client.send(bytes.fromhex(vector["hex"]))
                    for answer in wanted:
                        reply = await client.reply()
                        assert reply is not None, name
                        assert (answer.sequence, answer.method, answer.flags) == (
                            reply.sequence,
                            reply.method,
                            reply.flags,
                        ), name
                        assert answer.body == reply.body, name


async def test_duplicate_sequence_numbers_under_way_are_both_answered(helpers: Any, rpc_config: Any) -> None:
    """Two calls with the same number on one connection, which end upstream's process, get their two answers."""
    vector = helpers.load_vectors("rpc-neg")["rpc_neg_duplicate_seq_in_flight"]
    with trio.fail_after(5):
        async with helpers.running(helpers.stand_ins(), rpc_config) as bench, bench.client() as client:
            await client.send(bytes.fromhex(vector["hex"]))
            bodies = {(await client.reply()).body for _ in range(2)}
    assert {b'"\\u003cabc\\u003e"', b'"\\u003cdef\\u003e"'} == bodies


@pytest.mark.parametrize("name", sorted(CLOSING - {"rpc_neg_bad_crc"}))
def test_unanswerable_envelopes_say_so(helpers: Any, name: str) -> None:
    """The envelope decoder refuses what has no number or name to answer to."""
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex(helpers.load_vectors("rpc-neg")[name]["hex"]))
    frame = decoder.next_frame()
    assert frame is not None
    with pytest.raises(RpcFrameError):
        decode_request(frame)


def test_a_damaged_checksum_is_found(helpers: Any) -> None:
    """The damaged frame is an error of the stream, so no call can come out of it."""
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex(helpers.load_vectors("rpc-neg")["rpc_neg_bad_crc"]["hex"]))
    with pytest.raises(FrameError):
        decoder.next_frame()
