"""What a pool is told about HTTP: requests to warm a worker up, what a failed answer is, what tells requests apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trailboss.plugins.http.answer import BadAnswer, parse_head
from trailboss.plugins.http.message import Request
from trailboss.workers.outcome import Answer
from trailboss_worker.protocol.errors import MessageError
from trailboss_worker.protocol.http_message import decode_request_context

if TYPE_CHECKING:
    from trailboss.plugins.http.exchange import Exchange

__all__ = ["failure_of", "query_of", "warmup_payload"]


def warmup_payload(exchange: Exchange, target: str) -> tuple[bytes, bytes, int]:
    """Return context, body and flags of `GET target` as the server itself asks for it."""
    path, _, query = target.partition("?")
    headers = [(b"Host", b"localhost"), (b"User-Agent", b"Trailboss-Warmup"), (b"Accept", b"*/*")]
    request = Request("GET", target, path, query, "1.1", headers, "localhost")
    return exchange.context_of(request), b"", exchange.flags


def failure_of(answer: Answer) -> str:
    """Return what is wrong with a worker's answer, "" where nothing is: a status of 500 or more, or none at all."""
    try:
        status = parse_head(answer.context, answer.flags).status
    except (BadAnswer, MessageError, ValueError) as error:
        return str(error)
    return f"status {status}" if status >= 500 else ""


def query_of(context: bytes, flags: int) -> bytes:
    """Return the query of the request in `context`: one that kills workers says nothing about the path without it."""
    try:
        return decode_request_context(context, flags).raw_query.encode("utf-8", "surrogateescape")
    except (MessageError, ValueError):
        return b""
