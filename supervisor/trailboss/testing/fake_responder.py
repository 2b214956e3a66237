"""A Responder without a connection: keeps the answer, and is stricter about the contract than a connection would be.

What a handler may never do raises ContractBroken at the call that does it: two heads, a body before the head, framing headers
in the list, more bytes than announced. Calls after the end, and after the client has gone, are ignored. A test plays the
client by `leave`, `stall` and `flow`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple

from trailboss.plugins.http.message import HeaderList

__all__ = ["ContractBroken", "Failure", "FakeResponder"]

_FRAMING: Final = frozenset(
    {b"connection", b"content-length", b"date", b"keep-alive", b"server", b"transfer-encoding"}
)


class ContractBroken(AssertionError):
    """A handler did what the contract forbids."""


class Failure(NamedTuple):
    """An answer of the server itself."""

    status: int
    reason: str
    retry_after: int | None
    close: bool


class FakeResponder:
    """Takes one answer; `method` is the request's, for HEAD has no body."""

    def __init__(self, method: str = "GET") -> None:
        self.wants_more = True
        self.on_ready: Callable[[], None] | None = None
        self.on_gone: Callable[[], None] | None = None
        self.started = False
        self.finished = False
        #: Status of the final head, 0 before it.
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        #: The length that was announced.
        self.length: int | None = None
        #: The parts of the body that reach the client.
        self.parts: list[bytes] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self.interim: list[tuple[int, list[tuple[bytes, bytes]]]] = []
        self.failure: Failure | None = None
        #: The connection was cut before the answer was complete.
        self.cut = False
        #: The client has gone.
        self.gone = False
        #: Names of the calls that counted, in order.
        self.calls: list[str] = []
        self._method = method
        self._received_bytes = 0

    @property
    def body(self) -> bytes:
        """What reached the client as the body."""
        return b"".join(self.parts)

    @property
    def complete(self) -> bool:
        """The answer has ended as it should, and the client has it."""
        return self.finished and not self.cut and not self.gone and self.failure is None

    def header(self, name: bytes) -> bytes | None:
        """Return the values of `name` (lower case) joined, None where there is none."""
        found = [value for key, value in self.headers if key.lower() == name]
        return b", ".join(found) if found else None

    # --- the client ----------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The client goes, which ends the request."""
        if self.finished:
            return
        self.gone = self.finished = True
        callback, self.on_gone = self.on_gone, None
        if callback is not None:
            callback()

    def stall(self) -> None:
        """The client takes nothing more for now."""
        self.wants_more = False

    def flow(self) -> None:
        """The client takes more again."""
        self.wants_more = True
        if self.on_ready is not None and not self.finished:
            self.on_ready()

    # --- the contract --------------------------------------------------------------------------------------------------

    def _ignored(self, call: str) -> bool:
        if self.finished:
            return True
        self.calls.append(call)
        return False

    def inform(self, status: int, headers: HeaderList) -> None:
        """Keep an interim answer."""
        if self.started or self._ignored("inform"):
            return
        if not 100 <= status <= 199 or status == 101:
            raise ContractBroken(f"status {status} in an interim answer")
        self._check(headers)
        self.interim.append((status, list(headers)))

    def head(self, status: int, headers: HeaderList, *, length: int | None = None) -> None:
        """Keep the head."""
        if self._ignored("head"):
            return
        if self.started:
            raise ContractBroken("a second head")
        if not 200 <= status <= 599:
            raise ContractBroken(f"status {status} in a final head")
        self._check(headers)
        self.started = True
        self.status = status
        self.headers = list(headers)
        self.length = length

    def data(self, chunk: bytes) -> None:
        """Keep a part of the body."""
        if not self._ignored("data"):
            self._take(chunk)

    def file(self, fd: int, offset: int, count: int) -> None:
        """Read and close the file."""
        try:
            if not self._ignored("file"):
                content = os.pread(fd, count, offset)
                if len(content) != count:
                    raise ContractBroken(f"a file has {len(content)} of {count} bytes")
                self._take(content)
        finally:
            os.close(fd)

    def end(self, trailers: HeaderList = ()) -> None:
        """Keep the end."""
        if self._ignored("end"):
            return
        if not self.started:
            raise ContractBroken("an end without a head")
        self._check(trailers)
        self.trailers = list(trailers)
        self.finished = True
        if not self._bodiless and self.length is not None and self._received_bytes < self.length:
            self.cut = True

    def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Keep a whole answer."""
        if self._ignored("respond"):
            return
        before = len(self.calls)
        self.head(status, headers, length=len(body))
        if body:
            self.data(body)
        self.end()
        del self.calls[before:]

    def fail(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        """Keep the answer of the server itself, or be cut."""
        if self._ignored("fail"):
            return
        if not 400 <= status <= 599:
            raise ContractBroken(f"fail with status {status}")
        self.failure = Failure(status, reason, retry_after, close)
        self.finished = True
        if self.started:
            self.cut = True
        else:
            self.started = True
            self.status = status

    def abort(self) -> None:
        """Be cut."""
        if not self._ignored("abort"):
            self.finished = True
            self.cut = True

    @property
    def _bodiless(self) -> bool:
        return self._method == "HEAD" or self.status in (204, 304)

    def _take(self, chunk: bytes) -> None:
        if not self.started:
            raise ContractBroken("a body before the head")
        self._received_bytes += len(chunk)
        if self._bodiless:
            return
        if self.length is not None and self._received_bytes > self.length:
            raise ContractBroken(f"{self._received_bytes} bytes of a body of {self.length}")
        self.parts.append(bytes(chunk))

    @staticmethod
    def _check(headers: HeaderList) -> None:
        for name, value in headers:
            if name.lower() in _FRAMING:
                raise ContractBroken(f"{name.decode()} is the connection's own business")
            if not name or any(byte in b"\r\n\0" for byte in name + value):
                raise ContractBroken(f"header {name!r}: {value!r} would break the head")
