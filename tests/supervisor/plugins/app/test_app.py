"""app: records of applications in the log, and raw text on standard error."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest
import structlog
import trio

from trailboss.container.contract import Caller
from trailboss.messages.applogger_pb2 import LogAttrs, LogEntry, Response
from trailboss.plugins.app.plugin import ATTRIBUTES_MAX, AppPlugin, write_raw
from trailboss.testing.check_plugin import check_plugin


def handler(plugin: AppPlugin, name: str) -> Any:
    method = next(method for method in plugin.rpc_methods() if method.name == f"app.{name}")
    return lambda argument: cast(Any, method.handler(argument, Caller()))


@pytest.mark.parametrize("level", ["error", "warning", "info", "debug"])
def test_a_string_becomes_a_record(level: str) -> None:
    """Each method logs the text as the event, at its level, in the channel app."""
    with structlog.testing.capture_logs() as records:
        assert handler(AppPlugin(), level.capitalize())("hello <b>") is False
    (record,) = records
    assert (record["log_level"], record["event"]) == (level, "hello <b>")


@pytest.mark.parametrize("level", ["error", "warning", "info", "debug"])
def test_attributes_become_values(level: str) -> None:
    """A LogEntry's attributes are values of the record."""
    entry = LogEntry(message="hi", log_attrs=[LogAttrs(key="user", value="7")])
    with structlog.testing.capture_logs() as records:
        assert handler(AppPlugin(), f"{level.capitalize()}WithContext")(entry) == Response()
    (record,) = records
    assert (record["log_level"], record["event"], record["user"]) == (level, "hi", "7")


@pytest.mark.parametrize("name", ["event", "exc_info", "logger", "level", "ts", "msg", "stack_info", "self"])
def test_attributes_cannot_take_the_place_of_the_records_own(name: str) -> None:
    """A client that names an attribute like a field of the record gets a field of its own."""
    entry = LogEntry(message="hi", log_attrs=[LogAttrs(key=name, value="forged")])
    with structlog.testing.capture_logs() as records:
        handler(AppPlugin(), "InfoWithContext")(entry)
    (record,) = records
    assert (record["event"], record[f"field_{name}"]) == ("hi", "forged")


def test_attributes_are_bounded() -> None:
    """A record keeps so many attributes, not more."""
    entry = LogEntry(message="hi", log_attrs=[LogAttrs(key=f"k{i}", value="") for i in range(1000)])
    with structlog.testing.capture_logs() as records:
        handler(AppPlugin(), "InfoWithContext")(entry)
    assert len([key for key in records[0] if key.startswith("k")]) == ATTRIBUTES_MAX


@pytest.mark.parametrize(("text", "data"), [("raw line", b"raw line\n"), ("ends\n", b"ends\n"), ("", b"\n")])
async def test_raw_text_ends_its_line(text: str, data: bytes) -> None:
    """app.Log writes the text as it is and ends the line once."""
    written: list[bytes] = []
    assert await handler(AppPlugin(written.append), "Log")(text) is False
    assert written == [data]


async def test_raw_text_with_context_shows_its_attributes() -> None:
    """app.LogWithContext puts the attributes behind the text."""
    written: list[bytes] = []
    entry = LogEntry(message="hi", log_attrs=[LogAttrs(key="a", value="1"), LogAttrs(key="b", value="x")])
    assert await handler(AppPlugin(written.append), "LogWithContext")(entry) == Response()
    assert written == [b"hi a=1 b=x\n"]


async def test_a_stuck_standard_error_holds_up_its_call_alone() -> None:
    """While one write blocks, others wait for their turn in order, and the event loop runs."""
    import threading

    free = threading.Event()
    written: list[bytes] = []

    def slow(data: bytes) -> None:
        assert free.wait(10)
        written.append(data)

    plugin = AppPlugin(slow)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handler(plugin, "Log"), "one")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(handler(plugin, "Log"), "two")
            await trio.testing.wait_all_tasks_blocked()
            free.set()
    assert written == [b"one\n", b"two\n"]


def test_raw_text_is_written_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    """The bytes arrive at descriptor 2, all of them."""
    write_raw(b"x" * 1000 + b"\n")
    assert capfd.readouterr().err == "x" * 1000 + "\n"


def test_a_closed_standard_error_loses_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads: the text is lost, the call is not to blame."""

    def broken(_fd: int, _data: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", broken)
    assert write_raw(b"lost") is None  # type: ignore[func-returns-value]


async def test_the_plugin_keeps_the_contract(autojump_clock: Any) -> None:
    """The battery for every plugin."""
    await check_plugin(AppPlugin)
