"""What one client may take, in bytes and in time: a table of states and deadlines, and nothing else.

A connection is in one state at a time; each has at most one deadline, worked out from when the state began and, for a
body, from what has arrived. A client that takes nothing of its answer has a deadline besides, whatever the state. There
is none while a worker has the request: how long that may take is the pool's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Final

from trailboss.config.schema import HttpLimitsConfig

__all__ = ["LINGER_SECONDS", "Limits", "Waiting", "deadline"]

#: After an answer that refused a request, what the client still sends is read and thrown away for this long, so that
#: the answer is not lost to a reset.
LINGER_SECONDS: Final = 2.0
#: What 0 means, as in RoadRunner.
MAX_REQUEST_SIZE_MEGABYTES: Final = 1000


class Waiting(Enum):
    """What a connection waits for."""

    REQUEST = "the next request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    ANSWER = "the answer"
    DEPARTURE = "the client to leave"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a connection, in bytes and seconds."""

    request_line_bytes: int = 8192
    head_bytes: int = 65_536
    header_count: int = 100
    chunk_extension_bytes: int = 1024
    body_bytes: int = 1000 << 20
    head_timeout_seconds: float = 10.0
    body_bytes_per_second: int = 1024
    body_grace_seconds: float = 10.0
    idle_timeout_seconds: float = 75.0
    write_timeout_seconds: float = 30.0
    connections: int = 10_000

    @classmethod
    def of(cls, config: HttpLimitsConfig, max_request_size_megabytes: int) -> Limits:
        """Return the limits a configuration asks for."""
        return cls(
            request_line_bytes=config.request_line,
            head_bytes=config.head,
            header_count=config.header_count,
            chunk_extension_bytes=config.chunk_extension,
            body_bytes=(max_request_size_megabytes or MAX_REQUEST_SIZE_MEGABYTES) << 20,
            head_timeout_seconds=config.head_timeout,
            body_bytes_per_second=config.body_rate,
            body_grace_seconds=config.body_grace,
            idle_timeout_seconds=config.idle_timeout,
            write_timeout_seconds=config.write_timeout,
            connections=config.max_connections,
        )


def deadline(waiting: Waiting, since: float, body_received: int, limits: Limits) -> float:
    """Return when a connection has waited too long, on the clock of `since`; inf where it may wait for ever."""
    match waiting:
        case Waiting.REQUEST:
            return since + limits.idle_timeout_seconds
        case Waiting.HEAD:
            return since + limits.head_timeout_seconds
        case Waiting.BODY:
            if not limits.body_bytes_per_second:
                return inf
            return since + limits.body_grace_seconds + body_received / limits.body_bytes_per_second
        case Waiting.ANSWER:
            return inf
        case Waiting.DEPARTURE:
            return since + LINGER_SECONDS
