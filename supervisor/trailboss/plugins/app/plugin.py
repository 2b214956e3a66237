"""The plugin `app`: applications write into the server's log over RPC.

Every method exists twice, as in RoadRunner: with a plain string, and with a LogEntry message that carries attributes.
app.Log is for text that is no record: it goes to standard error as it is, its line ended (RoadRunner glues the next
record on). A slow reader of standard error holds up that call, nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence

import trio

from trailboss.container.contract import Caller, Layer, Plugin, RpcMethod, Services
from trailboss.log import logger
from trailboss.messages.applogger_pb2 import LogEntry, Response

__all__ = ["AppPlugin", "write_raw"]

log = logger("app")

#: Attributes of one record that are kept.
ATTRIBUTES_MAX = 100
#: Names with a meaning of their own in a record; an attribute of that name gets `field_` in front.
_RESERVED = frozenset(("event", "exc_info", "stack_info", "stack", "logger", "level", "ts", "msg", "self"))
_LEVELS = ("Error", "Warning", "Info", "Debug")


class AppPlugin(Plugin):
    """app.Error, Warning, Info, Debug, Log, and the same WithContext. `write` puts raw bytes out (it may block)."""

    name = "app"
    layer = Layer.TELEMETRY
    after = frozenset({"logs"})

    def __init__(self, write: Callable[[bytes], None] | None = None) -> None:
        self._write = write_raw if write is None else write
        # One at a time keeps the order, and a stuck standard error takes one thread, not all.
        self._turn: trio.CapacityLimiter | None = None

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Be there until `stopping`."""
        task_status.started()
        await stopping.wait()

    def rpc_methods(self) -> Sequence[RpcMethod]:
        """Return the methods of the service `app`."""
        methods: list[RpcMethod] = []
        for level in _LEVELS:
            write = getattr(log, level.lower())
            doc = f"log a record of level {level.lower()}"
            methods.append(RpcMethod(f"app.{level}", _plain(write), argument=str, doc=doc))
            methods.append(
                RpcMethod(
                    f"app.{level}WithContext",
                    _with_context(write),
                    argument=LogEntry,
                    result=Response,
                    doc=doc,
                )
            )
        doc = "write text to standard error as it is"
        methods.append(RpcMethod("app.Log", self._log, argument=str, doc=doc))
        methods.append(
            RpcMethod(
                "app.LogWithContext", self._log_with_context, argument=LogEntry, result=Response, doc=doc
            )
        )
        return methods

    async def _log(self, text: str, _caller: Caller) -> bool:
        await self._put(text)
        return False  # as RoadRunner, whose result is never set

    async def _log_with_context(self, entry: LogEntry, _caller: Caller) -> Response:
        attributes = "".join(f" {name}={value}" for name, value in _attributes(entry).items())
        await self._put(entry.message + attributes)
        return Response()

    def _put(self, text: str) -> Awaitable[None]:
        if self._turn is None:
            self._turn = trio.CapacityLimiter(1)
        data = text.encode("utf-8", "backslashreplace")
        if not data.endswith(b"\n"):
            data += b"\n"
        return trio.to_thread.run_sync(self._write, data, limiter=self._turn, abandon_on_cancel=True)


def write_raw(data: bytes) -> None:
    """Write all of `data` to standard error. Blocks while its reader does not take it; a closed one loses it."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(2, view) :]
    except OSError:
        pass  # nobody reads standard error any more; the application's call is not to blame


def _plain(write: Callable[..., object]) -> Callable[[str, Caller], bool]:
    def handle(text: str, _caller: Caller) -> bool:
        write(text)
        return False  # as RoadRunner, whose result is never set

    return handle


def _with_context(write: Callable[..., object]) -> Callable[[LogEntry, Caller], Response]:
    def handle(entry: LogEntry, _caller: Caller) -> Response:
        write(entry.message, **_attributes(entry))
        return Response()

    return handle


def _attributes(entry: LogEntry) -> dict[str, str]:
    return {
        (f"field_{pair.key}" if pair.key in _RESERVED else pair.key): pair.value
        for pair in entry.log_attrs[:ATTRIBUTES_MAX]
    }
