"""Parcels between two servers: one owner at every moment, whoever goes when, whatever comes over the channel."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import structlog.testing
import trio
from hypothesis import given
from hypothesis import strategies as st

from trailboss.handover import Handover
from trailboss.parcels import (
    PARCEL_BYTES_MAX,
    Arrival,
    BadChannel,
    Decoder,
    Go,
    Parcel,
    ParcelRefused,
    Sender,
    answer_line,
    pack,
    unpack,
)

VERSION = 1


class Box:
    """An estate of numbers: gives them away three at a time, and takes them in unless told to refuse."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.refusal = ""
        self.fault: Exception | None = None
        self.heard: list[object] = []

    def declarations(self) -> Parcel | None:
        """Only that there are numbers."""
        return Parcel("numbers", 0, lambda: None)

    def next_parcel(self) -> Parcel | None:
        """The first three."""
        taken, self.numbers = self.numbers[:3], self.numbers[3:]

        def put_back() -> None:
            self.numbers = [*taken, *self.numbers]

        return Parcel(taken, len(taken), put_back) if taken else None

    async def receive(self, content: object) -> int:
        """Take all or nothing."""
        if self.fault is not None:
            raise self.fault
        if self.refusal:
            raise ParcelRefused(self.refusal)
        if isinstance(content, str):
            self.heard.append(content)
            return 0
        assert isinstance(content, list)
        self.numbers += content
        return len(content)


class Pair:
    """An old server and the new one, with nothing but numbers, over a socket pair."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        mine.setblocking(False)
        theirs.setblocking(False)
        self.old_box, self.new_box = Box(list(range(10))), Box([])
        self.mine, self.theirs = mine, theirs
        self.sender = Sender(mine, {"numbers": VERSION})
        self.old = Handover(heir=self.sender)
        self.old.add_estate("numbers", VERSION, self.old_box)
        self.new = Handover([], theirs)
        self.new.add_estate("numbers", VERSION, self.new_box)

    def close(self) -> None:
        """Close both ends."""
        self.mine.close()
        self.theirs.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two servers."""
    made = Pair()
    yield made
    made.close()


async def ready_line(pair: Pair) -> dict[str, object]:
    """What the new server says when it is ready."""
    with trio.fail_after(5):
        await trio.lowlevel.wait_readable(pair.mine)
    word, _, rest = pair.mine.recv(65536).partition(b" ")
    assert word == b"ready"
    told = json.loads(rest)
    assert isinstance(told, dict)
    return told


async def test_declarations_then_in_charge_then_everything(pair: Pair) -> None:
    """The new server hears names before it is in charge, takes everything afterwards, and knows when there is no more."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.new.take_charge)
        nursery.start_soon(pair.new.receive)
        assert await ready_line(pair) == {"takes": {"numbers": VERSION}}
        with trio.fail_after(5):
            await pair.old.declare(pair.sender)
            assert pair.new_box.heard == ["numbers"]
            assert pair.new.is_successor
            pair.sender.let_go()
            await pair.new.in_charge.wait()
            assert await pair.old.deliver("numbers") == 10
            assert (pair.old_box.numbers, pair.new_box.numbers) == ([], list(range(10)))
            pair.old_box.numbers = [10, 11]
            assert await pair.old.deliver("numbers") == 2
            assert not pair.new.received.is_set()
            pair.sender.close()
            await pair.new.received.wait()
    assert pair.new_box.numbers == list(range(12))


async def test_the_successor_goes_without_an_answer(pair: Pair) -> None:
    """What was not answered is back in its place; nothing more is sent."""
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.old.deliver, "numbers")
            with trio.fail_after(5):
                await trio.lowlevel.wait_readable(pair.theirs)
            pair.theirs.send(answer_line(1))
            with trio.fail_after(5):
                while b"parcel 2" not in pair.theirs.recv(65536):
                    await trio.lowlevel.wait_readable(pair.theirs)
            pair.theirs.close()
    assert pair.old_box.numbers == list(range(3, 10))
    assert not pair.old.hands_over("numbers")
    assert pair.sender.gone
    assert await pair.old.deliver("numbers") == 0
    assert [entry["reason"] for entry in logs if entry["log_level"] == "error"] == ["it has gone"]


async def test_the_successor_has_gone_before(pair: Pair) -> None:
    """A channel that nobody reads any more: everything stays."""
    pair.theirs.close()
    with trio.fail_after(5), structlog.testing.capture_logs():
        assert await pair.old.deliver("numbers") == 0
    assert pair.old_box.numbers == list(range(10))


@pytest.mark.parametrize("fault", [False, True])
async def test_a_refused_parcel_is_put_back(pair: Pair, fault: bool) -> None:
    """Refused, or choked on: the old server keeps it and knows why, and the new one serves the rest."""
    pair.new_box.refusal = "" if fault else "no room"
    pair.new_box.fault = KeyError("room") if fault else None
    pair.new.in_charge.set()
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.new.receive)
            with trio.fail_after(5):
                assert await pair.old.deliver("numbers") == 0
            pair.sender.close()
    assert (pair.old_box.numbers, pair.new_box.numbers) == (list(range(10)), [])
    assert not pair.old.hands_over("numbers")
    assert not pair.sender.gone
    reasons = [entry["reason"] for entry in logs if "does not take over" in entry["event"]]
    assert reasons == ["KeyError: 'room'" if fault else "no room"]


async def test_a_cancelled_delivery_is_taken_up_again(pair: Pair) -> None:
    """The parcel that waits for its answer is in nobody's box; a later call hears the answer and goes on."""
    with trio.move_on_after(0.05):
        await pair.old.deliver("numbers")
    assert pair.old_box.numbers == list(range(3, 10))
    assert pair.sender.on_the_way("numbers") == 3
    pair.new.in_charge.set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.new.receive)
        with trio.fail_after(5):
            assert await pair.old.deliver("numbers") == 10
        pair.sender.close()
    assert pair.new_box.numbers == list(range(10))


async def test_another_version_is_not_sent(pair: Pair) -> None:
    """A successor that takes another version, or nothing of that part, gets nothing."""
    pair.old.heir = Sender(pair.mine, {"numbers": VERSION + 1})
    assert not pair.old.hands_over("numbers")
    with trio.fail_after(5):
        assert await pair.old.deliver("numbers") == 0
    assert pair.old_box.numbers == list(range(10))


async def test_what_cannot_be_written_stays(pair: Pair) -> None:
    """A plugin that offers what msgpack does not know loses nothing."""
    pair.old_box.numbers = [2**70]
    with trio.fail_after(5), structlog.testing.capture_logs():
        assert await pair.old.deliver("numbers") == 0
    assert pair.old_box.numbers == [2**70]


async def test_nonsense_after_the_change_ends_the_handover(pair: Pair) -> None:
    """The new server says once that it does not understand, closes the channel, and serves on."""
    pair.new.in_charge.set()
    pair.mine.send(b"hello there\n")
    with structlog.testing.capture_logs() as logs, trio.fail_after(5):
        await pair.new.receive()
    assert pair.new.received.is_set()
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert pair.mine.recv(65536).startswith(b"refused 0 ")
    assert pair.mine.recv(1) == b""


CUTS = st.lists(st.integers(0, 60), max_size=20)


@given(parts=st.lists(st.binary(max_size=40), max_size=5), cuts=CUTS)
def test_the_decoder_does_not_care_how_bytes_arrive(parts: list[bytes], cuts: list[int]) -> None:
    """Every parcel comes out whole, in order, with `go` where it was."""
    text = b"go\n" + b"".join(
        b"parcel %d jobs %d\n" % (number, len(body)) + body for number, body in enumerate(parts)
    )
    decoder = Decoder()
    heard: list[Go | Arrival] = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(text)], strict=True):
        decoder.feed(text[start:end])
        while (message := decoder.next_message()) is not None:
            heard.append(message)
    assert heard == [Go(), *(Arrival(number, "jobs", body) for number, body in enumerate(parts))]


@given(st.binary(max_size=200))
def test_the_decoder_is_safe_from_anything(data: bytes) -> None:
    """Any bytes are messages, wait for more, or are refused with one exception."""
    decoder = Decoder()
    decoder.feed(data)
    with suppress(BadChannel):
        while (message := decoder.next_message()) is not None:
            assert isinstance(message, Go) or message.body in data


@pytest.mark.parametrize(
    "line",
    [
        b"parcel 1 jobs\n",
        b"parcel x jobs 1\n",
        b"parcel 1 jobs -1\n",
        b"parcel 1 ../x 1\n",
        b"parcel 1 jobs %d\n" % (PARCEL_BYTES_MAX + 1),
        b"x" * 70_000,
    ],
)
def test_lines_that_make_no_sense(line: bytes) -> None:
    """Each is refused, before any memory is taken for what it announces."""
    decoder = Decoder()
    decoder.feed(line)
    with pytest.raises(BadChannel):
        decoder.next_message()


@given(st.binary(max_size=200))
def test_a_body_is_read_or_refused(data: bytes) -> None:
    """No body raises anything else, and what is read can be written again."""
    with suppress(ParcelRefused):
        content = unpack(data)
        assert repr(unpack(pack(content))) == repr(content)
