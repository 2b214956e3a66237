"""HTTP/2 clients that do anything at all: whatever comes in, nothing is left behind and nothing fails inside.

Each seed is one connection's life: requests, bodies, resets, windows, settings, noise, flipped bits, a client that stops
reading, time that passes, handlers of every temper, and at times the stop. A seed that fails is the recipe to repeat it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from front_bench import Bench
from h2_bench import RawClient, get, window_update
from hyperframe.frame import DataFrame, GoAwayFrame, RstStreamFrame, SettingsFrame
from structlog.testing import capture_logs

from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.message import Request, Responder

LIMITS = Limits(
    body_bytes=50_000,
    head_timeout_seconds=3,
    idle_timeout_seconds=4,
    write_timeout_seconds=2,
    body_grace_seconds=1,
)
LAST = (1 << 31) - 1


class Life:
    """One connection and what happens to it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.held: list[Responder] = []
        self.bench = Bench(self.handle, LIMITS)
        self.client = RawClient(self.bench)
        self.client.decoder.max_allowed_table_size = LAST
        self.next = 1
        self.flips = self.random.choice((0.0, 0.05, 0.3))

    def handle(self, _request: Request, responder: Responder) -> None:
        """Handler of a temper that changes."""
        chance = self.random.random()
        if chance < 0.5:
            responder.respond(200, [(b"A", b"b")], bytes(self.random.choice((0, 5, 20_000, 200_000))))
        elif chance < 0.8:
            if chance < 0.7:
                responder.head(200, [])
                responder.data(b"x" * self.random.choice((1, 70_000)))
            self.held.append(responder)
        elif chance < 0.85:
            responder.abort()
        elif chance < 0.9:
            responder.fail(503, "x", close=self.random.random() < 0.3)
        elif chance < 0.93:
            raise ValueError
        else:
            responder.inform(103, [])
            responder.head(200, [], length=10)
            responder.data(b"x" * 10)
            responder.end([(b"T", b"1")])

    def settle_some(self) -> bytes:
        """End some of the answers that wait."""
        for responder in list(self.held):
            if self.random.random() < 0.5:
                continue
            self.held.remove(responder)
            if self.random.random() < 0.4:
                responder.abort()
            elif responder.started and not responder.finished:
                responder.data(b"more")
                responder.end()
            else:
                responder.respond(200, [], b"late")
        return b""

    def request(self) -> bytes:
        """A request, complete or not, of a length that is allowed or not."""
        more = [(b"a", b"b" * self.random.randrange(3000))] if self.random.random() < 0.2 else []
        method = self.random.choice((b"GET", b"HEAD", b"POST"))
        flags = ("END_HEADERS",) if self.random.random() < 0.4 else ("END_HEADERS", "END_STREAM")
        self.next += 2
        return self.client.request(self.next - 2, get(b"/", *more, method=method), *flags)

    def some_stream(self) -> int:
        """A stream that is open, or was, or will be."""
        return max(
            1, self.random.choice((self.next, self.next - 2, self.next - 4, self.random.randrange(50)))
        )

    def body(self) -> bytes:
        """Data for some stream."""
        frame = DataFrame(self.some_stream(), bytes(self.random.choice((0, 1, 16_000))))
        if self.random.random() < 0.5:
            frame.flags.add("END_STREAM")
        return bytes(frame.serialize())

    def settings(self) -> bytes:
        """Another opinion on windows, frames and tables."""
        values = {
            SettingsFrame.INITIAL_WINDOW_SIZE: self.random.choice((0, 1, 65_535, 1 << 20, LAST)),
            SettingsFrame.MAX_FRAME_SIZE: self.random.choice((16_384, 100_000)),
            SettingsFrame.HEADER_TABLE_SIZE: self.random.choice((0, 100, 1 << 20)),
        }
        return bytes(SettingsFrame(0, settings=values).serialize())

    def noise(self) -> bytes:
        """Something that looks like a frame."""
        start = bytes(
            (0, 0, self.random.randrange(60), self.random.randrange(12), self.random.randrange(256))
        )
        return start + self.some_stream().to_bytes(4, "big") + self.random.randbytes(60)

    def wait(self) -> bytes:
        """Time passes."""
        self.bench.advance(self.random.choice((0.1, 0.5, 1.5)))
        return b""

    def step(self) -> None:
        """One more thing happens."""
        steps: tuple[Callable[[], bytes], ...] = (
            self.request,
            self.request,
            self.request,
            self.body,
            self.settings,
            self.noise,
            self.wait,
            self.settle_some,
            lambda: bytes(RstStreamFrame(self.some_stream(), 8).serialize()),
            lambda: window_update(
                self.random.choice((0, self.some_stream())), self.random.choice((1, 1000, 1 << 20, LAST))
            ),
            lambda: bytes(GoAwayFrame(0).serialize()) if self.random.random() < 0.2 else b"",
            lambda: self.client.request(self.some_stream(), [(b"x-sum", b"1")]),
        )
        data = bytearray(self.random.choice(steps)())
        if data and self.random.random() < self.flips:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        if self.random.random() < 0.05:
            self.client.reading = not self.client.reading
        self.client.send(bytes(data))
        front = self.bench.front
        front.draining = front.draining or self.random.random() < 0.02
        if front.draining:
            front.close_idle(self.bench.reactor.now)

    def end(self) -> None:
        """The last answers, and the end of it all."""
        self.client.reading = True
        for responder in self.held:
            responder.abort()
        self.bench.settle()
        if self.random.random() < 0.5:
            self.client.sock.close()
            self.bench.settle()
        else:
            self.bench.advance(9)
        assert self.bench.front.in_flight == 0
        self.bench.close()


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_any_life_ends_well(first: int) -> None:
    """No request, body, file or connection is left; the only failures in the log are those of the handlers."""
    for seed in range(first, first + 20):
        life = Life(seed)
        with capture_logs() as records:
            for _ in range(life.random.randrange(5, 60)):
                if life.client.ended:
                    break
                life.step()
            life.end()
        front = life.bench.front
        left = (front.spool.memory_bytes, front.spool.files, front.answers.memory_bytes, front.answers.files)
        assert (left, len(front.connections), life.bench.reactor.failures) == ((0, 0, 0, 0), 0, 0), seed
        failures = {record["event"] for record in records if "failed" in record["event"]}
        assert failures <= {"a handler failed"}, seed
