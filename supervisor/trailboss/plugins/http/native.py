"""PLAIN MESSAGES IN C: heads, contexts and answers of the usual kind, several times as fast as Python reads them.

The C code (`trailboss._http`) decides nothing that matters: it takes what is plain, and says so of everything else. Then
the code in Python that stands behind each of the three calls has the word; it alone refuses, and it is the reference that
tests and fuzzing compare with. Where the module cannot be imported (no compiler when it was installed, or
TRAILBOSS_PURE_PYTHON=1 in the environment), nothing is plain and the reference does everything.
"""

from __future__ import annotations

import os  # for one environment variable; nothing here does I/O
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from trailboss.plugins.http.limits import Limits

__all__ = ["AnswerReader", "ContextBuffer", "HeadReader", "is_native"]

ffi: Any = None
lib: Any = None
if os.environ.get("TRAILBOSS_PURE_PYTHON") != "1":
    try:
        from trailboss._http import ffi as c_ffi
        from trailboss._http import lib as c_lib

        ffi, lib = c_ffi, c_lib
    except ImportError:  # installed without a compiler
        pass

#: Contexts and header lines that are longer are left to the reference.
BUFFER_BYTES: Final = 16 * 1024

_HEAD: Final = struct.Struct("=7I")
_ANSWER: Final = struct.Struct("=qII")

is_native: Final = lib is not None

if TYPE_CHECKING or not is_native:

    def _read_head(*_: Any) -> int:
        return 0

    def _write_context(*_: Any) -> int:
        return 0

    def _read_answer(*_: Any) -> int:
        return 0

else:
    _read_head = lib.trailboss_http_read_head
    _write_context = lib.trailboss_http_write_context
    _read_answer = lib.trailboss_http_read_answer
    if _HEAD.size != ffi.sizeof("struct trailboss_http_head") or _ANSWER.size != ffi.sizeof(
        "struct trailboss_http_answer"
    ):  # pragma: no cover - a build for another machine
        raise ImportError("trailboss._http was built with another record layout")


def _new(kind: str) -> tuple[Any, Any]:
    """Memory for a call, and a view of its bytes."""
    if not is_native:
        return None, b""
    memory = ffi.new(kind)
    return memory, ffi.buffer(memory)


@lru_cache(maxsize=64)
def _limits(limits: Limits) -> Any:
    if not is_native:
        return None
    largest: int = lib.TRAILBOSS_HTTP_LENGTH_MAX
    return ffi.new(
        "struct trailboss_http_limits *",
        tuple(
            min(limit, largest)
            for limit in (
                limits.request_line_bytes,
                limits.head_bytes,
                limits.header_count,
                limits.body_bytes,
            )
        ),
    )


class HeadReader:
    """Reads the plain heads of one connection.

    `read(head, len(head), limits, memory)` says whether `head` is exactly one plain head. `found(view)` tells then the
    sizes of method, target and path, offset and size of the host, length of the body, 0 where the connection closes.
    """

    __slots__ = ("limits", "memory", "view")

    read: Callable[[bytes, int, Any, Any], int] = staticmethod(_read_head)
    found: Callable[[Any], tuple[int, int, int, int, int, int, int]] = staticmethod(_HEAD.unpack)

    def __init__(self, limits: Limits) -> None:
        self.limits = _limits(limits)
        self.memory, self.view = _new("struct trailboss_http_head *")


class ContextBuffer:
    """Writes the contexts of plain requests, one after the other."""

    __slots__ = ("_memory", "_options", "_view")

    def __init__(self, *, underscores: bool, forms: bool) -> None:
        """`underscores`: names with one are told. `forms`: a request with a form is plain, too."""
        self._memory, self._view = _new(f"uint8_t[{BUFFER_BYTES}]")
        self._options = underscores * 1 + forms * 2

    def write(self, beginning: bytes, target: str, query: str, head: bytes, ending: bytes) -> bytes | None:
        """The context in the JSON dialect; None for a request that is not plain, or a context that is too long."""
        try:
            target_bytes, query_bytes = target.encode("ascii"), query.encode("ascii")
        except UnicodeEncodeError:
            return None
        size = _write_context(
            self._memory,
            BUFFER_BYTES,
            beginning,
            len(beginning),
            target_bytes,
            len(target_bytes),
            query_bytes,
            len(query_bytes),
            head,
            len(head),
            ending,
            len(ending),
            self._options,
        )
        context: bytes | None = self._view[:size] if size else None
        return context


class AnswerReader:
    """Reads the plain contexts of answers, one after the other."""

    __slots__ = ("_lines", "_memory", "_record", "_view")

    def __init__(self) -> None:
        self._memory, self._lines = _new(f"uint8_t[{BUFFER_BYTES}]")
        self._record, self._view = _new("struct trailboss_http_answer *")

    def read(self, context: bytes) -> tuple[int, int | None, bytes] | None:
        """Status, Content-Length and header lines; None for a context that is not plain, or is too long."""
        if not _read_answer(context, len(context), self._memory, BUFFER_BYTES, self._record):
            return None
        length, status, size = _ANSWER.unpack(self._view)
        return status, length if length >= 0 else None, self._lines[:size]
