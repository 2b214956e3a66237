"""A record becomes ONE line of bytes, whatever is in it.

Texts come from workers, clients and configurations, so they are hostile: they hold newlines and terminal escapes, NUL,
bytes that are no UTF-8, half a megabyte of anything, or a line that looks like a record of ours. Whatever they hold, one
record is one line, and no text leaves the field it was given for. In JSON that is the encoder's work plus the characters
that some readers take for line ends or that turn a terminal's text round; in the console and raw forms control characters
are written as escapes. Texts are cut at a cap, with a note that says how much is missing.

Pure: no clock, no I/O. Keys of the JSON form are RoadRunner's: `level`, `ts` (unix nanoseconds), `logger`, `msg`.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping
from typing import Final

__all__ = [
    "LEVELS",
    "TEXT_LENGTH_MAX",
    "Record",
    "Renderer",
    "clean_text",
    "render_console",
    "render_json",
    "render_raw",
]

#: RoadRunner's level names and their order.
LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warn": 30, "error": 40, "panic": 50}

#: Longest text of one field, in characters; the rest is cut and counted.
TEXT_LENGTH_MAX: Final = 65_536
#: Longest line of one record, in characters; beyond it the record keeps its message only.
LINE_LENGTH_MAX: Final = 262_144
_DEPTH_MAX: Final = 16
_ITEMS_MAX: Final = 1_000
_RESERVED: Final = frozenset({"level", "ts", "logger", "msg"})

#: What the JSON encoder leaves as it is, and a reader may take for a line end, an escape or a change of direction.
_JSON_UNSAFE: Final = re.compile(
    "[\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
_CONSOLE_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
_SHORT_ESCAPES: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_COLOURS: Final = {"debug": "35", "info": "34", "warn": "33", "error": "31", "panic": "31;1"}


class Record:
    """One thing that was logged: `level` is a key of LEVELS, `fields` hold anything, `time_ns` is unix time."""

    __slots__ = ("fields", "level", "logger", "message", "time_ns")

    def __init__(
        self, time_ns: int, level: str, logger: str, message: object, fields: Mapping[str, object]
    ) -> None:
        self.time_ns = time_ns
        self.level = level
        self.logger = logger
        self.message = message
        self.fields = fields


#: Makes one line, without its line ending. Never raises.
Renderer = Callable[[Record], str]


def render_json(record: Record) -> str:
    """Return the record as one line of JSON."""
    values: dict[str, object] = {
        "level": record.level,
        "ts": record.time_ns,
        "logger": record.logger,
        "msg": _text(record.message),
    }
    for name, value in record.fields.items():
        values[f"field_{name}" if name in _RESERVED else name] = value
    line = _encode(values)
    if len(line) > LINE_LENGTH_MAX:
        note = f"the record had {len(line)} characters, its fields are left out"
        kept = {name: values[name] for name in ("level", "ts", "logger", "msg")}
        line = _encode({**kept, "cut": note})
    return line


def render_console(record: Record, colour: bool = False) -> str:
    """Return the record for people: time, level, logger, message, then the fields as JSON; separated by tabs."""
    level = record.level.upper()
    if colour:
        level = f"\x1b[{_COLOURS.get(record.level, '0')}m{level}\x1b[0m"
    parts = [
        _iso_time(record.time_ns),
        level,
        f"{_clean_line(record.logger):<12}",
        _clean_line(_text(record.message)),
    ]
    if record.fields:
        fields = _encode(dict(record.fields))
        if len(fields) > LINE_LENGTH_MAX:
            fields = _encode({"cut": f"the fields had {len(fields)} characters and are left out"})
        parts.append(fields)
    return "\t".join(parts)


def render_raw(record: Record) -> str:
    """Return the message alone."""
    return _clean_line(_text(record.message))


def clean_text(text: str) -> str:
    """Return `text` in valid UTF-8, at most TEXT_LENGTH_MAX characters and a note how many were cut."""
    if len(text) > TEXT_LENGTH_MAX:
        text = f"{text[:TEXT_LENGTH_MAX]}... [{len(text) - TEXT_LENGTH_MAX} more characters cut]"
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # Bytes that were no UTF-8 arrive as surrogates; they are shown as the bytes they were.
        try:
            return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
        except UnicodeEncodeError:
            return text.encode(errors="backslashreplace").decode()
    return text


def _text(value: object) -> str:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return clean_text(bytes(value[: TEXT_LENGTH_MAX + 4]).decode(errors="backslashreplace"))
    try:
        return clean_text(str(value))
    except Exception as error:  # a value of somebody else's type may fail to describe itself
        return f"<{type(value).__name__} whose text cannot be made: {type(error).__name__}>"


def _clean_line(text: str) -> str:
    return _CONSOLE_UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    return _SHORT_ESCAPES.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


def _encode(values: dict[str, object]) -> str:
    line = json.dumps(_plain(values, 0), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return line if line.isascii() and "\x7f" not in line else _JSON_UNSAFE.sub(_escape_json, line)


def _escape_json(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _plain(value: object, depth: int) -> object:
    """Return `value` as something every JSON reader takes: no NaN, no huge integer, no cycle, no foreign type."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else _text(hex(value))
    if isinstance(value, float):
        return float(value) if value - value == 0 else _text(value)  # infinities and NaN are no JSON
    if isinstance(value, Mapping) and depth < _DEPTH_MAX:
        items = list(value.items())
        plain = {_text(name): _plain(item, depth + 1) for name, item in items[:_ITEMS_MAX]}
        if len(items) > _ITEMS_MAX:
            plain["..."] = f"{len(items) - _ITEMS_MAX} more left out"
        return plain
    if isinstance(value, (list, tuple, set, frozenset)) and depth < _DEPTH_MAX:
        members = list(value)
        shown = [_plain(item, depth + 1) for item in members[:_ITEMS_MAX]]
        return (
            shown
            if len(members) <= _ITEMS_MAX
            else [*shown, f"... {len(members) - _ITEMS_MAX} more left out"]
        )
    return _text(value)


def _iso_time(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest // 1_000_000:03d}Z"
