"""RPC as plugins see it: a method, who may call it when, and who called.

The gate (:mod:`trailboss.container.gate`) decides from these values alone whether a call may run now; the RPC plugin
looks methods up by name and runs their handlers inside its guard. No I/O and no clock here.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Access", "Caller", "CallerRole", "Handler", "RpcMethod", "RpcRefused", "raw"]


class Access(enum.Enum):
    """How the gate treats a method (design: "Start-up")."""

    NORMAL = "normal"  # waits for the gate
    SENSITIVE = "sensitive"  # waits for the gate; refused while on_init runs
    ALWAYS = "always"  # answers in every phase


class CallerRole(enum.Enum):
    """Who an RPC peer is, as far as the operating system can tell."""

    WORKER = "worker"
    ON_INIT = "on_init"
    OPERATOR = "operator"  # anybody else who may connect: CLI, exporter, another process of the same user


@dataclass(frozen=True, slots=True)
class Caller:
    """The peer of one RPC connection; matched to workers by session id, so wrappers and children count as theirs."""

    role: CallerRole = CallerRole.OPERATOR
    pool: str = ""  #: pool of the worker, "" otherwise
    pid: int = 0  #: 0 where the transport does not tell (loopback TCP after the peer has gone)
    uid: int = -1
    booting: bool = False  #: the worker has not finished its handshake
    session: int = (
        0  #: pid of the worker or on_init command that it belongs to, which leads the session; 0: none
    )
    #: It has shown a token: a handler that returns this says who the connection is from now on.
    authenticated: bool = False


class RpcRefused(Exception):
    """A handler declines; its text is the error answer as it stands (nothing is logged but a debug line)."""


class raw(bytes):  # noqa: N801 - reads like the codec it stands for
    """Bytes of a method that speaks the RAW codec (rpc.Config): plain with RAW, base64 text with JSON."""


#: A handler takes the decoded argument and the caller; sync handlers are answered in place on the reactor and must not
#: block; async ones get a task of their own and the deadline of the call.
Handler = Callable[[Any, Caller], object | Awaitable[object]]


@dataclass(frozen=True, slots=True)
class RpcMethod:
    """One RPC method: ``service.Method``, who may call it when, and how argument and result travel.

    `argument` and `result` are either a generated protobuf message class (PROTO codec only) or None for plain values
    (JSON and msgpack: str, bool, int, list, dict; RAW where the result is :class:`raw`).
    """

    name: str
    handler: Handler
    access: Access = Access.NORMAL
    argument: type[object] | None = None
    result: type[object] | None = None
    #: The call may have to wait for this pool (reset, add worker): a caller that this very pool waits for, a booting
    #: worker of it, is refused at once. A callable takes the decoded argument and returns the pool's name.
    needs_pool: str | Callable[[Any], str] = ""
    #: Longest run in seconds; None means `rpc.call_timeout`. Methods with a limit of their own set that + 5 s.
    deadline_seconds: float | None = None
    #: The call reaches a plugin whose failure has to be reported instead ("" = the part before the dot).
    plugin: str = ""
    #: One line for people (`trailboss.Methods`, docs).
    doc: str = field(default="", compare=False)
