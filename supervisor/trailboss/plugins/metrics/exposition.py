"""Scrapes: made for all who ask at the same time, in pieces between which everything else has its turn.

A scrape is what the sources say at that moment. Those who ask while one is being made, or within FRESH_SECONDS of its
end, share it: several Prometheus servers cost what one does, and a flood of scrapes costs a bounded share of the time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from trailboss.log import logger
from trailboss.metrics import Family, ScrapePage
from trailboss.reactor import Reactor

__all__ = ["Scrapes", "accepts_gzip"]

log = logger("metrics")

FRESH_SECONDS: Final = 0.25
#: gzip's level: the fastest makes a tenth of the text already.
COMPRESSION_LEVEL: Final = 1


class _Shape(NamedTuple):
    """What one client wants."""

    openmetrics: bool
    gzip: bool


class Scrapes:
    """Makes pages of what `families` yields. All calls belong on the reactor."""

    def __init__(
        self,
        reactor: Reactor,
        families: Callable[[], Iterable[Family]],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._reactor = reactor
        self._families = families
        self._on_error = on_error
        self._under_way: dict[_Shape, list[Callable[[ScrapePage], None]]] = {}
        self._fresh: dict[_Shape, tuple[float, ScrapePage]] = {}
        #: Scrapes made, and pages handed out.
        self.made = 0
        self.served = 0
        #: Bytes of the last text, before compression.
        self.size_bytes = 0
        #: When somebody asked last, on the reactor's clock.
        self.asked_at = float("-inf")

    def scrape(self, accept: str, accept_encoding: str, on_done: Callable[[ScrapePage], None]) -> None:
        """Call `on_done` with a page, now or soon."""
        from trailboss.plugins.metrics.render import (
            wants_openmetrics,  # the library is imported at the first scrape
        )

        self.asked_at = now = self._reactor.now
        self.served += 1
        shape = _Shape(wants_openmetrics(accept), accepts_gzip(accept_encoding))
        fresh = self._fresh.get(shape)
        if fresh is not None and now - fresh[0] < FRESH_SECONDS:
            on_done(fresh[1])
            return
        waiting = self._under_way.get(shape)
        if waiting is not None:
            waiting.append(on_done)
            return
        self._under_way[shape] = [on_done]
        _Making(self._reactor, shape, self._families(), self._on_error, self._finish).go_on()

    def scrape_now(self) -> ScrapePage:
        """Return a page in the old format, made in one go where there is no fresh one."""
        self.asked_at = now = self._reactor.now
        self.served += 1
        shape = _Shape(openmetrics=False, gzip=False)
        fresh = self._fresh.get(shape)
        if fresh is not None and now - fresh[0] < FRESH_SECONDS:
            return fresh[1]
        making = _Making(self._reactor, shape, self._families(), self._on_error, self._finish)
        page = None
        while page is None:
            page = making.work()
        if page.status == 200:
            self._fresh[shape] = (now, page)
        self.made += 1
        return page

    def _finish(self, shape: _Shape, page: ScrapePage, size_bytes: int) -> None:
        self.made += 1
        self.size_bytes = size_bytes
        if page.status == 200:
            self._fresh[shape] = (self._reactor.now, page)
        for on_done in self._under_way.pop(shape):
            try:
                on_done(page)
            except Exception:
                log.exception("a scrape could not be handed out")


class _Making:
    """One scrape on its way."""

    def __init__(
        self,
        reactor: Reactor,
        shape: _Shape,
        families: Iterable[Family],
        on_error: Callable[[Exception], None],
        on_done: Callable[[_Shape, ScrapePage, int], None],
    ) -> None:
        from trailboss.plugins.metrics import render

        self._reactor = reactor
        self._shape = shape
        self._on_done = on_done
        pieces = render.openmetrics_pieces if shape.openmetrics else render.text_pieces
        self._content_type = render.OPENMETRICS_TYPE if shape.openmetrics else render.TEXT_TYPE
        self._pieces: Iterator[bytes] = pieces(families, on_error)
        self._compressor = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, 31) if shape.gzip else None
        self._size_bytes = 0
        self._parts: list[bytes] = []

    def go_on(self) -> None:
        """Make pieces until there are no more, or the turn of the reactor is over."""
        page = self.work()
        if page is None:
            self._reactor.call_soon(self.go_on)
        else:
            self._on_done(self._shape, page, self._size_bytes)

    def work(self) -> ScrapePage | None:
        """Return the page, or None where there is more to do in another turn. Never raises."""
        try:
            return self._work()
        except Exception:
            log.exception("a scrape failed")
            return ScrapePage("text/plain; charset=utf-8", "", b"the scrape failed, the log says why\n", 500)

    def _work(self) -> ScrapePage | None:
        compressor, parts = self._compressor, self._parts
        for piece in self._pieces:
            self._size_bytes += len(piece)
            parts.append(piece if compressor is None else compressor.compress(piece))
            if self._reactor.late:
                return None
        if compressor is not None:
            parts.append(compressor.flush())
        return ScrapePage(self._content_type, "gzip" if compressor else "", b"".join(parts))


def accepts_gzip(accept_encoding: str) -> bool:
    """Say whether an Accept-Encoding header allows gzip."""
    for offer in accept_encoding.lower().split(","):
        coding, _, parameters = offer.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
