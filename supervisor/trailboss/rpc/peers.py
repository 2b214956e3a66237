"""The client's end as calls see it: whom to answer, and who it is; with what follows a single call around it.

Calls that change something are logged with who made them and how they ended. A span begins when the call has been read and ends with its answer, so waiting at the gate is part of it. Where nobody
records spans the call works with the connection itself.
"""

from __future__ import annotations

from typing import Protocol

from trailboss.container.contract import Caller
from trailboss.log import logger
from trailboss.telemetry import Telemetry
from trailboss_worker.protocol.rpc import RpcRequest

__all__ = ["AuditedPeer", "PassingPeer", "Peer", "TracedPeer"]

log = logger("rpc")

#: Of an error in the audit log.
AUDITED_TEXT_CHARS_MAX = 500


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

    def become(self, caller: Caller) -> None:
        """Take note of who it has proved to be."""

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


class PassingPeer:
    """Passes everything on to another peer; for what follows a single call."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

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

    def become(self, caller: Caller) -> None:
        """Take note of who it has proved to be."""
        self._peer.become(caller)

    def answer(self, request: RpcRequest, result: bytes) -> None:
        """Send an answer."""
        self._peer.answer(request, result)

    def answer_error(self, request: RpcRequest, text: str) -> None:
        """Send an error answer."""
        self._peer.answer_error(request, text)

    def call_started(self) -> None:
        """Take note that the call has got a task of its own."""
        self._peer.call_started()

    def call_ended(self) -> None:
        """Take note that the task has ended."""
        self._peer.call_ended()

    def end_intake(self) -> None:
        """Read no further calls."""
        self._peer.end_intake()

    def close(self) -> None:
        """End the connection."""
        self._peer.close()


class AuditedPeer(PassingPeer):
    """A peer for one call that changes something: who called what, and how it ended, is in the log."""

    def __init__(self, peer: Peer, request: RpcRequest) -> None:
        super().__init__(peer)
        self._method = request.method
        self._told = False

    def answer(self, request: RpcRequest, result: bytes) -> None:
        """Send an answer and log the call."""
        self._tell("done")
        super().answer(request, result)

    def answer_error(self, request: RpcRequest, text: str) -> None:
        """Send an error answer and log the call."""
        self._tell("failed", text)
        super().answer_error(request, text)

    def call_ended(self) -> None:
        """Log a call that was dropped: its client went while it waited."""
        self._tell("not carried out: the client has gone")
        super().call_ended()

    def _tell(self, outcome: str, text: str = "") -> None:
        if self._told:
            return
        self._told = True
        caller = self._peer.caller
        details = {"pool": caller.pool} if caller.pool else {}
        if text:
            details["text"] = text[:AUDITED_TEXT_CHARS_MAX]
        log.info(
            "sensitive call",
            method=self._method,
            caller=caller.role.value,
            pid=caller.pid,
            uid=caller.uid,
            outcome=outcome,
            **details,
        )


class TracedPeer(PassingPeer):
    """A peer for one call, with a span that ends with the answer."""

    def __init__(self, peer: Peer, request: RpcRequest, telemetry: Telemetry) -> None:
        super().__init__(peer)
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

    def answer(self, request: RpcRequest, result: bytes) -> None:
        """Send an answer and end the span."""
        self._telemetry.finish(self._span)
        self._peer.answer(request, result)

    def answer_error(self, request: RpcRequest, text: str) -> None:
        """Send an error answer and end the span as failed."""
        self._telemetry.finish(self._span, text or "error")
        self._peer.answer_error(request, text)

    def call_ended(self) -> None:
        """Take note that the task has ended; a call that was dropped has no answer that could end the span."""
        self._telemetry.finish(self._span)
        self._peer.call_ended()
