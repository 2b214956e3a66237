"""Connections on a real reactor and real sockets: order, limits, torn frames, slow and vanishing clients."""

from __future__ import annotations

import dataclasses
import gc
import socket
import struct
import time
import weakref
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from trailboss.config.schema import RpcConfig
from trailboss.container.contract import Access, Caller, RpcMethod
from trailboss_worker.protocol.frames import JSON, PROTO
from trailboss_worker.protocol.rpc import encode_request

pytestmark = pytest.mark.usefixtures("short_deadline")


@pytest.fixture
async def short_deadline() -> Any:
    """No test of this file takes longer than this."""
    with trio.fail_after(20):
        yield


def version(_argument: object, _caller: Caller) -> str:
    return "2025.1.15"


class Handlers:
    """Methods whose tasks the tests hold in their hands."""

    def __init__(self) -> None:
        self.release = trio.Event()
        self.begun = 0
        self.ended = 0
        self.texts: list[str] = []

    def methods(self) -> list[RpcMethod]:
        return [
            RpcMethod("rpc.Version", version, Access.ALWAYS),
            RpcMethod("test.Held", self._held, argument=str),
            RpcMethod("test.Echo", lambda text, _c: text, argument=str),
            RpcMethod("test.Note", self._note, argument=str),
            RpcMethod("test.Blob", lambda size, _c: "x" * size, argument=int),
        ]

    async def _held(self, text: str, _caller: Caller) -> str:
        self.begun += 1
        await self.release.wait()
        self.ended += 1
        return text

    def _note(self, text: str, _caller: Caller) -> bool:
        self.texts.append(text)
        return False


async def until(condition: Any) -> None:
    """Return when `condition()` holds; the test's deadline bounds it."""
    while not condition():  # noqa: ASYNC110 - looks into the server, which has no event for it
        await trio.sleep(0.002)


async def test_answers_come_in_the_order_of_completion(helpers: Any, rpc_config: RpcConfig) -> None:
    """A call that waits does not hold up a later one on the same connection."""
    handlers = Handlers()
    async with helpers.running(handlers.methods(), rpc_config) as bench, bench.client() as client:
        await client.send(encode_request(1, "test.Held", b'"slow"', JSON))
        await client.send(encode_request(2, "rpc.Version", b"true", JSON))
        first = await client.reply()
        handlers.release.set()
        second = await client.reply()
        assert [(reply.sequence, reply.body) for reply in (first, second)] == [
            (2, b'"2025.1.15"'),
            (1, b'"slow"'),
        ]


async def test_frames_torn_at_every_byte_are_one_call(helpers: Any, rpc_config: RpcConfig) -> None:
    """A call that arrives byte by byte is answered like any other."""
    async with helpers.running(Handlers().methods(), rpc_config) as bench, bench.client() as client:
        for byte in encode_request(7, "test.Echo", b'"torn"', JSON):
            await client.send(bytes([byte]))
            await trio.lowlevel.checkpoint()
        reply = await client.reply()
        assert (reply.sequence, reply.body) == (7, b'"torn"')
        assert bench.server.bytes_held == 0


async def test_a_thousand_pipelined_calls_are_all_answered_in_order(
    helpers: Any, rpc_config: RpcConfig
) -> None:
    """Calls glued into one write are answered one by one, with bounded batches in between."""
    async with helpers.running(Handlers().methods(), rpc_config) as bench, bench.client() as client:
        await client.send(b"".join(encode_request(i, "rpc.Version", b"true", JSON) for i in range(1000)))
        assert list(range(1000)) == [(await client.reply()).sequence for _ in range(1000)]


async def test_answers_to_good_calls_before_bad_bytes_go_out(helpers: Any, rpc_config: RpcConfig) -> None:
    """Bytes that are no frame close the connection after the calls in front of them were answered."""
    async with helpers.running(Handlers().methods(), rpc_config) as bench, bench.client() as client:
        good = b"".join(encode_request(i, "rpc.Version", b"true", JSON) for i in range(3))
        await client.send(good + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [(await client.reply()).sequence for _ in range(3)] == [0, 1, 2]
        assert await client.closed()
        assert bench.server.counters.broken == 1


async def test_a_huge_declared_length_closes_without_memory(helpers: Any, rpc_config: RpcConfig) -> None:
    """A header that promises 4 GiB closes that connection at once; nothing is held for it."""
    import zlib

    head = struct.pack("<BBI", 0x15, JSON, 0xFFFFFFFF)
    async with helpers.running(Handlers().methods(), rpc_config) as bench, bench.client() as client:
        await client.send(head + struct.pack("<IHII", zlib.crc32(head), 0, 1, 11))
        assert await client.closed()
        assert (bench.server.bytes_held, bench.server.counters.broken) == (0, 1)


async def test_a_frame_that_stops_half_way_is_closed_after_read_timeout(
    helpers: Any, rpc_config: RpcConfig
) -> None:
    """A frame that has begun must be complete within rpc.read_timeout; a quiet connection may stay."""
    config = dataclasses.replace(rpc_config, read_timeout=0.2)
    async with (
        helpers.running(Handlers().methods(), config) as bench,
        bench.client() as quiet,
        bench.client() as client,
    ):
        await client.send(encode_request(1, "rpc.Version", b"true", JSON)[:20])
        began = trio.current_time()
        assert await client.closed()
        assert 0.2 <= trio.current_time() - began < 2
        assert (await quiet.call("rpc.Version", b"true")).body == b'"2025.1.15"'


async def test_an_idle_connection_is_closed_only_when_asked_for(helpers: Any, rpc_config: RpcConfig) -> None:
    """With rpc.idle_timeout a silent connection ends; one with a call under way does not."""
    handlers = Handlers()
    config = dataclasses.replace(rpc_config, idle_timeout=0.2)
    async with (
        helpers.running(handlers.methods(), config) as bench,
        bench.client() as busy,
        bench.client() as idle,
    ):
        await busy.send(encode_request(1, "test.Held", b'"x"', JSON))
        assert await idle.closed()
        assert len(bench.server.connections) == 1
        handlers.release.set()
        assert (await busy.reply()).sequence == 1


async def test_a_client_that_takes_no_answers_is_not_read(helpers: Any, rpc_config: RpcConfig) -> None:
    """Unsent answers are bounded: the connection is paused, then closed, and others are served meanwhile."""
    config = dataclasses.replace(rpc_config, read_timeout=0.3)
    async with (
        helpers.running(Handlers().methods(), config) as bench,
        bench.client() as deaf,
        bench.client() as good,
    ):
        calls = b"".join(encode_request(i, "test.Blob", b"500000", JSON) for i in range(100))
        await deaf.send(calls)
        await until(lambda: bench.server.bytes_held > 0)
        assert bench.server.bytes_held < 3_000_000
        assert (await good.call("rpc.Version", b"true")).body == b'"2025.1.15"'
        await until(lambda: len(bench.server.connections) == 1)
        assert bench.server.bytes_held == 0


async def test_calls_one_by_one_do_not_get_round_the_bound(helpers: Any, rpc_config: RpcConfig) -> None:
    """A client that sends a call at a time and takes no answer is not read either."""
    async with helpers.running(Handlers().methods(), rpc_config) as bench, bench.client() as deaf:
        for number in range(60):
            calls = bench.server.counters.calls
            await deaf.send(encode_request(number, "test.Blob", b"100000", JSON))
            with trio.move_on_after(0.02):
                await until(lambda calls=calls: bench.server.counters.calls > calls)
        assert 0 < bench.server.bytes_held < 1_500_000
        assert [(await deaf.reply()).sequence for _ in range(60)] == list(range(60))


async def test_a_paused_client_that_leaves_is_finished(helpers: Any, rpc_config: RpcConfig) -> None:
    """A client that is not read because its answers pile up may go: its calls are carried out, nothing is held."""
    handlers = Handlers()
    async with helpers.running(handlers.methods(), rpc_config) as bench:
        async with bench.client() as client:
            await client.send(b"".join(encode_request(i, "test.Blob", b"500000", JSON) for i in range(50)))
            await until(lambda: bench.server.bytes_held > 1_000_000)
            await client.send(encode_request(99, "test.Note", b'"last"', JSON))
        await until(lambda: not bench.server.connections)
        assert (handlers.texts, bench.server.bytes_held) == (["last"], 0)


async def test_a_frame_begun_before_a_pause_keeps_its_deadline(helpers: Any, rpc_config: RpcConfig) -> None:
    """A torn frame behind calls that held up reading is still given up after rpc.read_timeout."""
    handlers = Handlers()
    config = dataclasses.replace(rpc_config, read_timeout=0.2)
    async with helpers.running(handlers.methods(), config) as bench, bench.client() as client:
        calls = b"".join(encode_request(i, "test.Held", b'"x"', JSON) for i in range(128))
        await client.send(calls + encode_request(999, "test.Echo", b'"torn"', JSON)[:-3])
        await until(lambda: handlers.begun == 128)
        await trio.sleep(0.5)
        assert len(bench.server.connections) == 1
        handlers.release.set()
        assert {(await client.reply()).sequence for _ in range(128)} == set(range(128))
        assert await client.closed()


async def test_a_slow_reader_gets_everything(helpers: Any, rpc_config: RpcConfig) -> None:
    """Partial writes are kept and sent on, in order and complete."""
    async with helpers.running(Handlers().methods(), rpc_config) as bench, bench.client() as client:
        count = 40
        await client.send(b"".join(encode_request(i, "test.Blob", b"300000", JSON) for i in range(count)))
        await until(lambda: bench.server.bytes_held > 0)
        replies = [await client.reply() for _ in range(count)]
        assert list(range(count)) == [reply.sequence for reply in replies]
        assert {300_002} == {len(reply.body) for reply in replies}
        await until(lambda: bench.server.bytes_held == 0)


async def test_a_half_closed_client_still_gets_its_answer(helpers: Any, rpc_config: RpcConfig) -> None:
    """A client that sends and shuts down its sending side gets what it asked for, then the end."""
    handlers = Handlers()
    async with helpers.running(handlers.methods(), rpc_config) as bench, bench.client() as client:
        await client.send(encode_request(1, "test.Held", b'"x"', JSON))
        await client.stream.send_eof()
        await until(lambda: handlers.begun == 1)
        handlers.release.set()
        assert (await client.reply()).body == b'"x"'
        assert await client.closed()


async def test_calls_of_a_client_that_leaves_are_carried_out(helpers: Any, rpc_config: RpcConfig) -> None:
    """Fire and forget: a thousand calls followed by a close all have their effect."""
    handlers = Handlers()
    async with helpers.running(handlers.methods(), rpc_config) as bench:
        async with bench.client() as client:
            await client.send(
                b"".join(encode_request(i, "test.Note", b'"%d"' % i, JSON) for i in range(1000))
            )
        await until(lambda: not bench.server.connections)
        assert list(map(str, range(1000))) == handlers.texts


async def test_a_begun_call_outlives_its_client(helpers: Any, rpc_config: RpcConfig) -> None:
    """The handler ends normally although the connection is gone."""
    handlers = Handlers()
    async with helpers.running(handlers.methods(), rpc_config) as bench:
        async with bench.client() as client:
            await client.send(encode_request(1, "test.Held", b'"x"', JSON))
            await until(lambda: handlers.begun == 1)
        await until(lambda: not bench.server.connections)
        handlers.release.set()
        await until(lambda: handlers.ended == 1)
        assert bench.server.counters.failures == 0


async def test_calls_with_tasks_are_bounded_per_connection(helpers: Any, rpc_config: RpcConfig) -> None:
    """Beyond the bound a connection is not read; all calls are answered in the end."""
    handlers = Handlers()
    async with (
        helpers.running(handlers.methods(), rpc_config) as bench,
        bench.client() as client,
        bench.client() as good,
    ):
        await client.send(b"".join(encode_request(i, "test.Held", b'"x"', JSON) for i in range(500)))
        await until(lambda: handlers.begun == 128)
        assert (await good.call("rpc.Version", b"true")).body == b'"2025.1.15"'
        assert bench.server.tasks == 128
        handlers.release.set()
        assert set(range(500)) == {(await client.reply()).sequence for _ in range(500)}


async def test_more_connections_than_allowed_are_closed(helpers: Any, rpc_config: RpcConfig) -> None:
    """The newest is turned away, the others are served, and a freed place can be taken."""
    config = dataclasses.replace(rpc_config, max_connections=2)
    async with helpers.running(Handlers().methods(), config) as bench, bench.client() as first:
        async with bench.client() as second, bench.client() as third:
            await first.call("rpc.Version")
            await second.call("rpc.Version")
            assert await third.closed()
        await until(lambda: len(bench.server.connections) == 1)
        async with bench.client() as fourth:
            assert (await fourth.call("rpc.Version")).body == b'"2025.1.15"'
        assert bench.server.counters.turned_away == 1


async def test_begun_frames_together_are_bounded(helpers: Any, rpc_config: RpcConfig) -> None:
    """When begun frames hold more than rpc.max_bytes_in_flight, the one that asks for more is closed."""
    config = dataclasses.replace(rpc_config, max_bytes_in_flight=1)
    argument = b"x" * 900_000
    async with (
        helpers.running(Handlers().methods(), config) as bench,
        bench.client() as one,
        bench.client() as two,
    ):
        await one.send(encode_request(1, "test.Echo", argument, JSON)[:-1])
        await until(lambda: bench.server.bytes_held > 890_000)
        with pytest.raises((trio.BrokenResourceError, AssertionError)):
            await two.send(encode_request(1, "test.Echo", argument, JSON)[:-1])
            assert not await two.closed()
        await until(lambda: len(bench.server.connections) == 1)
        assert bench.server.bytes_held <= 1024 * 1024


async def test_a_long_batch_leaves_the_loop_to_others(helpers: Any, rpc_config: RpcConfig) -> None:
    """Glued calls that take their time are cut by the clock of the turn: tasks run after a few of them."""

    def slow(_argument: object, _caller: Caller) -> bool:
        nonlocal served
        served += 1
        ends = time.perf_counter() + 0.0006
        while time.perf_counter() < ends:
            pass
        return True

    served = 0
    longest = 0
    async with helpers.running([RpcMethod("test.Slow", slow)], rpc_config) as bench, bench.client() as client:
        await client.send(b"".join(encode_request(i, "test.Slow", b"true", JSON) for i in range(96)))
        while served < 96:
            before = served
            await trio.lowlevel.checkpoint()
            longest = max(longest, served - before)
        assert [(await client.reply()).sequence for _ in range(96)] == list(range(96))
    assert 1 <= longest <= 8


async def test_a_full_server_puts_a_lone_call_by(
    helpers: Any, rpc_config: RpcConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all tasks taken, a call that comes alone waits too, its bytes are counted, and it is answered in the end."""
    monkeypatch.setattr("trailboss.rpc.server.TASKS_MAX", 1)
    handlers = Handlers()
    async with (
        helpers.running(handlers.methods(), rpc_config) as bench,
        bench.client() as one,
        bench.client() as two,
    ):
        await one.send(encode_request(1, "test.Held", b'"x"', JSON))
        await until(lambda: handlers.begun == 1)
        await two.send(encode_request(2, "test.Held", b'"' + b"y" * 1000 + b'"', JSON))
        await until(lambda: bench.server.bytes_waiting > 1000)
        assert (handlers.begun, bench.server.tasks) == (1, 1)
        handlers.release.set()
        assert (await two.reply()).sequence == 2
        assert (bench.server.bytes_waiting, bench.server.bytes_held) == (0, 0)


async def test_calls_put_by_are_bounded_together(
    helpers: Any, rpc_config: RpcConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complete calls that wait for room count against rpc.max_bytes_in_flight; who asks for more is closed."""
    monkeypatch.setattr("trailboss.rpc.server.TASKS_MAX", 1)
    handlers = Handlers()
    config = dataclasses.replace(rpc_config, max_bytes_in_flight=1)
    call = encode_request(1, "test.Echo", b'"' + b"x" * 700_000 + b'"', JSON)
    async with helpers.running(handlers.methods(), config) as bench:
        async with bench.client() as full, bench.client() as one, bench.client() as two:
            await full.send(encode_request(1, "test.Held", b'"x"', JSON))
            await until(lambda: handlers.begun == 1)
            await one.send(call)
            await until(lambda: bench.server.bytes_waiting > 700_000)
            with pytest.raises((trio.BrokenResourceError, AssertionError)):
                await two.send(call[:-1])
                assert not await two.closed()
            assert bench.server.counters.broken == 1
            handlers.release.set()
            assert (await one.reply()).sequence == 1
        await until(lambda: not bench.server.connections)
        assert (bench.server.bytes_waiting, bench.server.bytes_held) == (0, 0)


async def test_a_closed_connection_is_not_kept_by_its_deadline(helpers: Any, rpc_config: RpcConfig) -> None:
    """With an hour of rpc.idle_timeout, connections that are gone leave nothing but an empty entry behind."""
    config = dataclasses.replace(rpc_config, idle_timeout=3600.0)
    async with helpers.running(Handlers().methods(), config) as bench:
        async with bench.client() as client:
            await client.call("rpc.Version")
            (connection,) = bench.server.connections
            gone = weakref.ref(connection)
            del connection
        await until(lambda: not bench.server.connections)
        await trio.lowlevel.checkpoint()
        gc.collect()
        assert gone() is None
        assert len(bench.reactor.wheel) == 1


async def test_half_open_connections_cost_nothing(helpers: Any, rpc_config: RpcConfig) -> None:
    """Hundreds of silent connections arm no deadline and do not slow a good client."""
    async with helpers.running(Handlers().methods(), rpc_config) as bench:
        silent = []
        try:
            for _ in range(400):
                sock = socket.socket(socket.AF_UNIX)
                silent.append(sock)
                sock.setblocking(False)
                with trio.socket.from_stdlib_socket(sock.dup()) as connecting:
                    await connecting.connect(bench.plugin.exported_address().removeprefix("unix://"))
            await until(lambda: len(bench.server.connections) == 400)
            assert len(bench.reactor.wheel) == 0
            async with bench.client() as client:
                began = trio.current_time()
                for _ in range(50):
                    await client.call("rpc.Version", b"true")
                assert trio.current_time() - began < 5
        finally:
            for sock in silent:
                sock.close()


async def test_deep_arguments_are_errors_not_crashes(helpers: Any, rpc_config: RpcConfig) -> None:
    """Ten thousand levels in JSON, msgpack and protobuf are answered with an error on a living connection."""
    async with helpers.running(Handlers().methods(), rpc_config) as bench, bench.client() as client:
        for argument, flags in ((b"[" * 10_000, JSON), (b"\x91" * 10_000, 0x10), (b"\x0b" * 10_000, PROTO)):
            assert (await client.call("rpc.Version", argument, flags)).is_error
        assert (await client.call("rpc.Version", b"true")).body == b'"2025.1.15"'


async def test_stopping_finishes_what_has_begun(helpers: Any, rpc_config: RpcConfig) -> None:
    """After `stopping` no new call is read, and the answer to a begun one still goes out before the end."""
    handlers = Handlers()
    async with helpers.running(handlers.methods(), rpc_config) as bench, bench.client() as client:
        await client.send(encode_request(1, "test.Held", b'"x"', JSON))
        await until(lambda: handlers.begun == 1)
        bench.stopping.set()
        await until(lambda: bench.plugin._bound.sock.fileno() == -1)
        await client.send(encode_request(2, "rpc.Version", b"true", JSON))
        handlers.release.set()
        assert (await client.reply()).sequence == 1
        assert await client.closed()


async def test_figures_for_people(helpers: Any, rpc_config: RpcConfig) -> None:
    """state_detail counts connections, calls and errors and names the address."""
    async with helpers.running(Handlers().methods(), rpc_config) as bench, bench.client() as client:
        await client.call("rpc.Version", b"true")
        await client.call("no.Such", b"true")
        detail = bench.plugin.state_detail()
        assert (detail["calls"], detail["errors"], detail["open_connections"]) == (2, 1, 1)
        assert bench.plugin.exported_address() == detail["address"]
        assert bench.plugin.health().ok


async def test_broken_connections_do_not_flood_the_log(helpers: Any, rpc_config: RpcConfig) -> None:
    """A hostile client costs a few log lines a minute; all are counted."""
    with structlog.testing.capture_logs() as records:
        async with helpers.running(Handlers().methods(), rpc_config) as bench:
            for _ in range(50):
                async with bench.client() as client:
                    await client.send(b"GET / HTTP/1.1\r\n\r\n")
                    assert await client.closed()
            assert bench.server.counters.broken == 50
    lines = [record for record in records if "reason" in record]
    assert 10 <= len(lines) <= 20
    assert "another protocol" in lines[0]["reason"]
