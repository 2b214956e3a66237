"""The client's end as calls see it: whom to answer, and who it is; with a span around the call where spans are recorded.

A span begins when the call has been read and ends with its answer, so waiting at the gate is part of it. Where nobody
records spans the call works with the connection itself.
"""

from __future__ import annotations

from typing import Protocol

from trailboss.container.contract import Caller
from trailboss.telemetry import Telemetry
from trailboss_worker.protocol.rpc import RpcRequest

__all__ = ["Peer", "TracedPeer"]


class Peer(Protocol):
    """What the server needs of a connection."""

    @property
    def caller(self) -> Caller:
        """Who is calling, as known when the connection was made or looked up last."""

    @property
    def closed(self) -> bool:
        """Whether the client has gone."""

    def fresh_caller(self) -> Caller:
        """Look up again who is calling: a worker may have become ready since it connected."""

    def answer(self, request: RpcRequest, result: bytes) -> None:
        """Send an answer; does nothing where the client has gone."""

    def answer_error(self, request: RpcRequest, text: str) -> None:
        """Send an error answer; does nothing where the client has gone."""

    def call_started(self) -> None:
        """Take note that a call has got a task of its own."""

    def call_ended(self) -> None:
        """Take note that such a call has ended."""

    @property
    def has_unsent(self) -> bool:
        """Whether answers wait for the client to take them."""

    def end_intake(self) -> None:
        """Read no further calls."""

    def close(self) -> None:
        """End the connection now."""


class TracedPeer:
    """A peer for one call, with a span that ends with the answer."""

    def __init__(self, peer: Peer, request: RpcRequest, telemetry: Telemetry) -> None:
        self._peer = peer
        self._telemetry = telemetry
        service, _, method = request.method.rpartition(".")
        self._span = telemetry.start(
            f"rpc {request.method}",
            {
                "rpc.system": "goridge",
                "rpc.service": service,
                "rpc.method": method,
                "trailboss.caller": peer.caller.role.value,
            },
        )

    @property
    def caller(self) -> Caller:
        """Who is calling."""
        return self._peer.caller

    @property
    def closed(self) -> bool:
        """Whether the client has gone."""
        return self._peer.closed

    @property
    def has_unsent(self) -> bool:
        """Whether answers wait for the client to take them."""
        return self._peer.has_unsent

    def fresh_caller(self) -> Caller:
        """Look up again who is calling."""
        return self._peer.fresh_caller()

    def answer(self, request: RpcRequest, result: bytes) -> None:
        """Send an answer and end the span."""
        self._telemetry.finish(self._span)
        self._peer.answer(request, result)

    def answer_error(self, request: RpcRequest, text: str) -> None:
        """Send an error answer and end the span as failed."""
        self._telemetry.finish(self._span, text or "error")
        self._peer.answer_error(request, text)

    def call_started(self) -> None:
        """Take note that the call has got a task of its own."""
        self._peer.call_started()

    def call_ended(self) -> None:
        """Take note that the task has ended; a call that was dropped has no answer that could end the span."""
        self._telemetry.finish(self._span)
        self._peer.call_ended()

    def end_intake(self) -> None:
        """Read no further calls."""
        self._peer.end_intake()

    def close(self) -> None:
        """End the connection."""
        self._peer.close()
