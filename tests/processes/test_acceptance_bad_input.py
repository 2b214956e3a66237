"""Bad RPC input against a live server: it goes on, its good clients go on, its memory stays, each offender is answered or closed.

Vectors, mutated calls of every method, depth, huge lengths, half-open and slow connections. "In time" is one second
for what is complete; what is not is bounded by rpc.read_timeout, which is short here.
"""

from __future__ import annotations

import binascii
import json
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from live_server import (
    ENDING,
    PATIENCE,
    TESTS,
    Client,
    ConnectionGone,
    Server,
    configuration,
    harmless_arguments,
    percentile,
    rss_bytes,
    serving,
)

from trailboss_worker.protocol.frames import JSON, MSGPACK, PROTO, RAW, encode_frame
from trailboss_worker.protocol.rpc import encode_request

pytestmark = pytest.mark.timeout(180)

ANSWER_SECONDS = 1.0 * PATIENCE
RSS_GROWTH_MAX = 64 * 1024 * 1024
READ_TIMEOUT_SECONDS = 1.5


@asynccontextmanager
async def attacked(folder: Path) -> AsyncIterator[Server]:
    """A server with a good client that calls all the time; its memory and its books are held to their bounds behind."""
    config = configuration(folder, workers=1)
    config["rpc"] |= {"read_timeout": "1500ms", "max_connections": 800}
    config["logs"]["level"] = "info"
    slow: list[float] = []
    async with serving(folder, config) as server:
        await server.push("ack", "before")
        await server.wait_quiet()
        before = rss_bytes(server.pid)
        over = trio.Event()
        good = await Client.connect(server.path)

        async def call_well() -> None:
            while not over.is_set():
                began = trio.current_time()
                assert isinstance(await good.call("rpc.Version", seconds=5), str)
                slow.append(trio.current_time() - began)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_well)
            yield server
            assert server.exit_code is None
            over.set()
        good.close()
        assert rss_bytes(server.pid) - before <= RSS_GROWTH_MAX
        assert percentile(slow, 0.99) <= 0.5 * PATIENCE
        await server.push("ack", "after")
        await server.wait_quiet()


async def outcome(server: Server, data: bytes, expected: int = 1) -> str:
    """Send bytes on a connection of their own: "answers" or "closed", or the test fails for want of either."""
    client = await Client.connect(server.path)
    try:
        with trio.fail_after(ANSWER_SECONDS):
            try:
                await client.send(data)
                for _ in range(expected):
                    await client.reply()
            except ConnectionGone:
                return "closed"
        return "answers"
    finally:
        client.close()


def vectors(*categories: str) -> list[dict[str, Any]]:
    """The recorded vectors of these categories."""
    known = json.loads((TESTS / "protocol" / "vectors.json").read_text())["vectors"]
    return [vector for vector in known if vector["category"] in categories]


async def test_every_negative_and_edge_vector(tmp_path: Path) -> None:
    """Each recorded bad or odd call is answered or its connection closed within a second, as the vector says."""
    with trio.fail_after(60 * PATIENCE):
        async with attacked(tmp_path) as server:
            played = 0
            for vector in vectors("rpc-neg", "rpc-edge"):
                calls = 2 if "pipelined" in vector["name"] or "duplicate" in vector["name"] else 1
                got = await outcome(server, bytes.fromhex(vector["hex"]), calls)
                wanted = vector["expected"]["server"]
                if wanted.startswith("close connection"):
                    assert (vector["name"], "closed") == (vector["name"], got)
                elif "close" not in wanted:
                    assert (vector["name"], "answers") == (vector["name"], got)
                played += 1
            assert played >= 18


def mutate(chance: random.Random, data: bytes) -> bytes:
    """Bytes that resemble `data`."""
    work = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        kind = chance.randrange(6)
        where = chance.randrange(len(work) + 1)
        if kind == 0 and work:
            work[where % len(work)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            work[where:where] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 2:
            del work[where : where + chance.randrange(1, 9)]
        elif kind == 3:
            work[where : where + 4] = struct.pack("<I", chance.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF]))
        elif kind == 4:
            work += work[where:]
        else:
            work[where:where] = chance.choice([b"\x00", b"\xff\xfe", b'"', b"[", b"\x80", b"-", b"1e999"])
    return bytes(work[:65536])


ODD_JSON = [
    b"",
    b"null",
    b"{}",
    b"[]",
    b'""',
    b"-1",
    b"1e999",
    b"NaN",
    b'"\\ud800"',
    b'{"a":' * 50 + b"1" + b"}" * 50,
    b'{"pipeline":1,"offset":-1}',
    b'{"ids":[1,null,{}],"all":true}',
    b"9" * 5000,
    b"\xff\xfe",
    b'{"limit":99999999999999999999999}',
    b'"' + b"x" * 100_000 + b'"',
]


async def test_two_thousand_mutated_calls(tmp_path: Path, chaos: random.Random) -> None:
    """2,000 mutated calls over all methods and codecs: each gets an answer, or its connection ends, within a second."""
    await run_mutations(tmp_path, chaos, 2000)


@pytest.mark.long
async def test_twenty_thousand_mutated_calls(tmp_path: Path, chaos: random.Random) -> None:
    """The same 20,000 times."""
    await run_mutations(tmp_path, chaos, 20_000)


async def run_mutations(tmp_path: Path, chaos: random.Random, count: int) -> None:
    with trio.fail_after(120 * PATIENCE):
        async with attacked(tmp_path) as server:
            # These would change the pool or end jobs; their arguments are mutated where they do no harm: see the gate tests.
            methods = [
                row
                for row in await server.call("trailboss.Methods")
                if row["name"]
                not in ("resetter.Reset", "informer.AddWorker", "jobs.Destroy", "trailboss.Reload", *ENDING)
            ]
            results = {"answers": 0, "closed": 0, "broken frame": 0}
            limit = trio.CapacityLimiter(16)

            async def one(data: bytes, whole: bool) -> None:
                async with limit:
                    if whole:
                        results[await outcome(server, data)] += 1
                    else:
                        results[await ends(server, data)] += 1

            async with trio.open_nursery() as nursery:
                for number in range(count):
                    row = chaos.choice(methods)
                    argument = harmless_arguments(row["name"], row["codec"])
                    encoded = argument if isinstance(argument, bytes) else json.dumps(argument).encode()
                    flags = chaos.choice([JSON, JSON, PROTO, PROTO, RAW, MSGPACK, 0x20, JSON | PROTO])
                    name = row["name"]
                    if number % 4 == 0:
                        encoded = chaos.choice(ODD_JSON)
                    elif flags == MSGPACK:
                        encoded = mutate(chaos, msgpack.packb([True, "jobs", {"a": [1, 2.5, None]}]))
                    else:
                        encoded = mutate(chaos, encoded)
                    if number % 17 == 0:
                        name = mutate(chaos, name.encode()).decode("latin-1")
                    data = encode_request(chaos.randrange(2**32), name, encoded, flags)
                    if number % 5 == 0:
                        nursery.start_soon(one, mutate(chaos, data), False)
                    else:
                        nursery.start_soon(one, data, True)
            assert sum(results.values()) == count
            assert results["answers"] >= 0.7 * count, results
            assert [
                row
                for row in server.log()
                if row["msg"] == "an RPC method failed; its caller got an error answer"
            ] == []


async def ends(server: Server, data: bytes) -> str:
    """Send a frame that may be incomplete, then the end of the stream: it must be answered or closed in time."""
    client = await Client.connect(server.path)
    try:
        with trio.fail_after(ANSWER_SECONDS):
            try:
                await client.send(data)
                await client.stream.send_eof()
                while await client.stream.receive_some(65536):
                    continue
            except (ConnectionGone, trio.BrokenResourceError):
                return "closed"
        return "broken frame"
    finally:
        client.close()


async def test_depth_and_length_bombs(tmp_path: Path) -> None:
    """JSON, msgpack and protobuf of depth 10,000, a declared length of 4 GiB, a method name of 60 KB: refused within a second."""
    deep_proto = b""
    for _ in range(10_000):
        deep_proto = b"\x0a" + varint(len(deep_proto)) + deep_proto
    bombs = {
        "json arrays": encode_request(1, "jobs.Dead", b"[" * 10_000 + b"]" * 10_000, JSON),
        "json objects": encode_request(1, "jobs.Dead", b'{"a":' * 10_000 + b"1" + b"}" * 10_000, JSON),
        "json open": encode_request(1, "jobs.Dead", b"[" * 1_000_000, JSON),
        "msgpack": encode_request(1, "jobs.Dead", b"\x91" * 10_000 + b"\xc0", MSGPACK),
        "msgpack length": encode_request(1, "jobs.Dead", b"\xdd\xff\xff\xff\xff", MSGPACK),
        "msgpack map length": encode_request(1, "jobs.Dead", b"\xdf\xff\xff\xff\xff", MSGPACK),
        "protobuf": encode_request(1, "jobs.Push", deep_proto, PROTO),
        "name": encode_request(1, "x" * 60_000, b"true", JSON),
        "name with dot": encode_request(1, "jobs." + "X" * 60_000, b"true", JSON),
        "number": encode_request(1, "jobs.Dead", b'{"limit":' + b"9" * 100_000 + b"}", JSON),
    }
    header = bytearray(encode_frame(b"x" * 20, flags=JSON, options=(1, 11))[:20])
    with trio.fail_after(60 * PATIENCE):
        async with attacked(tmp_path) as server:
            for name, data in bombs.items():
                assert (name, "answers") == (name, await outcome(server, data))
            for length in (2**32 - 1, 65 * 1024 * 1024):
                header[2:6] = struct.pack("<I", length)
                header[6:10] = struct.pack("<I", binascii.crc32(bytes(header[:6])))
                assert (length, "closed") == (length, await outcome(server, bytes(header)))


def varint(value: int) -> bytes:
    """Protobuf's variable-length number."""
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


async def test_half_open_and_slow_connections(tmp_path: Path, chaos: random.Random) -> None:
    """500 connections that send a part of a call, or nothing, or byte by byte: those that began are closed in time, others served."""
    call = encode_request(7, "rpc.Version", b"true", JSON)
    closed, answered = [0], [0]
    with trio.fail_after(60 * PATIENCE):
        async with attacked(tmp_path) as server:

            async def half(cut: int) -> None:
                client = await Client.connect(server.path)
                try:
                    await client.send(call[:cut])
                    with trio.fail_after((READ_TIMEOUT_SECONDS + 1.0) * PATIENCE):
                        with pytest.raises(ConnectionGone):
                            await client.reply()
                    closed[0] += 1
                finally:
                    client.close()

            async def drip() -> None:
                client = await Client.connect(server.path)
                try:
                    for byte in call:
                        await client.send(bytes([byte]))
                        await trio.sleep(0.02)
                    with trio.fail_after(ANSWER_SECONDS):
                        assert (await client.reply()).sequence == 7
                    answered[0] += 1
                finally:
                    client.close()

            async with trio.open_nursery() as nursery:
                silent = [await Client.connect(server.path) for _ in range(100)]
                for _ in range(370):
                    nursery.start_soon(half, chaos.randrange(1, len(call)))
                for _ in range(30):
                    nursery.start_soon(drip)
            for client in silent:
                assert isinstance(await client.call("rpc.Version"), str)
                client.close()
            assert (closed[0], answered[0]) == (370, 30)


async def test_clients_that_do_not_read(tmp_path: Path) -> None:
    """Clients that call for large answers and never read them cost a bounded amount of memory, and are closed in time."""
    with trio.fail_after(60 * PATIENCE):
        async with attacked(tmp_path) as server:
            clients = [await Client.connect(server.path) for _ in range(10)]
            call = encode_request(1, "trailboss.State", b"true", JSON)

            async def flood(client: Client) -> None:
                with pytest.raises(ConnectionGone):
                    with trio.fail_after(20 * PATIENCE):
                        while True:
                            await client.send(call * 100)

            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(flood, client)
            for client in clients:
                client.close()


async def test_a_flood_of_connections_spares_the_others(tmp_path: Path) -> None:
    """More connections than rpc.max_connections: the surplus is closed at once, those there go on, and room comes back."""
    with trio.fail_after(60 * PATIENCE):
        async with attacked(tmp_path) as server:
            clients: list[Client] = []
            refused = 0
            for _ in range(900):
                client = await Client.connect(server.path)
                try:
                    await client.call("rpc.Version", seconds=2)
                    clients.append(client)
                except ConnectionGone:
                    refused += 1
                    client.close()
            assert 700 <= len(clients) < 800
            assert len(clients) + refused == 900
            for client in clients:
                client.close()
            for _ in range(50):
                try:
                    assert isinstance(await server.call("rpc.Version"), str)
                    break
                except ConnectionGone:
                    await trio.sleep(0.02)
            else:
                raise AssertionError("no room came back")
