"""One record is one line, whatever is in it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from trailboss.plugins.logs.render import (
    TEXT_LENGTH_MAX,
    Record,
    clean_text,
    render_console,
    render_json,
    render_raw,
)

TIME_NS = 1_795_520_487_123_456_789

#: Pieces that have broken log readers: line ends of every kind, terminal escapes, half characters, fake records.
HOSTILE = (
    "\n",
    "\r\n",
    "\r",
    "\x0b",
    "\x0c",
    "\x85",
    "\u2028",
    "\u2029",
    "\x00",
    "\x1b[2J\x1b[1;1H",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\udc80\udcff",
    "\ud800",
    "\U0001f600",
    "\u202edrow",
    "\x7f\x08\x08",
    '"}\n{"level":"error","ts":1,"logger":"server","msg":"forged"}',
    '{"level":"panic","msg":"forged"}',
    "\\",
    '\\"',
    "%s %(msg)s {}",
    "'; DROP TABLE jobs; --",
    "\ufeff",
    "plain words",
)


def crafted_lines(count: int, seed: int) -> Iterator[str]:
    """Yield `count` texts, glued from the hostile pieces; now and then one of a megabyte."""
    source = random.Random(seed)
    for number in range(count):
        text = "".join(source.choices(HOSTILE, k=source.randint(1, 6)))
        yield text * (1_048_576 // len(text)) if number % 500 == 499 else text


def record(message: object, **fields: object) -> Record:
    """Return a record of the channel `server`."""
    return Record(TIME_NS, "info", "server", message, fields)


def is_one_line(line: str) -> bool:
    """Say whether every reader takes `line` for one line, and no terminal for a command."""
    return len(line.splitlines()) == 1 and "\x1b" not in line and "\x00" not in line and "\x9b" not in line


def test_json_line_has_roadrunners_keys_in_its_order() -> None:
    """The JSON form has level, ts in unix nanoseconds, logger and msg, then the fields."""
    expected = '{"level":"info","ts":1795520487123456789,"logger":"server","msg":"worker ready","pid":17,"pool":"jobs"}'
    assert expected == render_json(record("worker ready", pid=17, pool="jobs"))


def test_5000_crafted_lines_give_5000_valid_records() -> None:
    """No text can add a line, break the JSON, or write another field than the one it was given for."""
    for text in crafted_lines(5_000, seed=20261124):
        line = render_json(record(text, worker=text, **{"level": text, "msg": text, "key\n": text}))
        assert is_one_line(line)
        values = json.loads(line)
        line.encode()  # valid UTF-8 on the way out
        assert values["level"] == "info"
        assert values["ts"] == TIME_NS
        assert values["logger"] == "server"
        assert len(line) < 300_000


@pytest.mark.parametrize("render", [render_console, render_raw])
def test_no_crafted_text_adds_a_line_for_people(render: object) -> None:
    """Console and raw forms show control characters as escapes, one line per record."""
    assert callable(render)
    for text in crafted_lines(1_000, seed=7):
        line = render(record(text, worker=text))
        assert is_one_line(line) or (render is render_raw and not line)
        line.encode()


def test_short_text_survives_json_unchanged() -> None:
    """What is valid text comes back from the JSON exactly as it was logged."""
    for text in ("Grüße, мир", "tab\tand\nnewline", "\U0001f600", '{"a": 1}', "\u2028"):
        assert text == json.loads(render_json(record(text)))["msg"]


def test_long_text_is_cut_with_a_note() -> None:
    """A text of a megabyte is cut at the cap and says how much is missing."""
    text = clean_text("x" * 1_048_576)
    assert text == "x" * TEXT_LENGTH_MAX + f"... [{1_048_576 - TEXT_LENGTH_MAX} more characters cut]"


def test_a_record_of_many_long_fields_keeps_its_message() -> None:
    """A record whose fields are huge together is written without them, and says so."""
    fields = {f"field{number}": "y" * 60_000 for number in range(10)}
    values = json.loads(render_json(record("event", **fields)))
    assert {"level", "ts", "logger", "msg", "cut"} == set(values)
    assert values["msg"] == "event"


def test_bytes_that_are_no_utf8_are_shown_as_the_bytes_they_were() -> None:
    """Bytes and surrogates become readable escapes."""
    assert json.loads(render_json(record(b"ok \xff")))["msg"] == "ok \\xff"
    assert json.loads(render_json(record("ok \udcff")))["msg"] == "ok \\xff"


def test_values_without_a_json_form_are_described() -> None:
    """NaN, cycles, deep nesting and objects that fail to describe themselves never raise."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no")

    cycle: dict[str, object] = {}
    cycle["self"] = cycle
    line = render_json(
        record("x", nan=float("nan"), cycle=cycle, broken=Broken(), big=10**5000, many=set("ab"))
    )
    values = json.loads(line)
    assert values["nan"] == "nan"
    assert "Broken" in values["broken"]
    assert sorted(values["many"]) == ["a", "b"]


def test_console_form_is_separated_by_tabs() -> None:
    """Time in UTC, level, logger, message, fields."""
    expected = ["2026-11-24T11:41:27.123Z", "INFO", "server      ", "worker ready", '{"pid":17}']
    assert expected == render_console(record("worker ready", pid=17)).split("\t")
