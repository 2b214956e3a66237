"""Texts of single values: Go durations, addresses, numbers. Pure functions that know no file and no key.

Durations follow Go's syntax (`1h2m3.5s`, `100ms`, `10µs`). Each `check_*` returns None, or what is wrong and what to do;
the caller adds file, line and key. Numbers are digits-only before int() sees them: int() takes underscores, spaces and
other scripts' digits, and is quadratic in the length of its text.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

__all__ = [
    "Address",
    "check_address",
    "check_http_address",
    "check_listen",
    "check_log_target",
    "check_processors",
    "check_relay",
    "check_subnet",
    "check_umask",
    "format_duration",
    "is_loopback",
    "parse_address",
    "parse_duration",
    "parse_http_address",
    "parse_integer",
]

_UNIT_SECONDS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # U+00B5, the micro sign
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION_SECONDS_MAX: Final = 9_223_372_036.0
"""Go's largest duration, about 292 years."""
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_TEXT_LENGTH_MAX: Final = 200

Address = tuple[str, str, int]
"""(scheme, host or path, port); the port is 0 for a path."""


def parse_duration(text: str) -> float:
    """Return the seconds of a Go duration. Raises ValueError with a text that does not repeat `text`."""
    stripped = text.strip()
    sign = 1.0
    if stripped[:1] in ("+", "-"):
        sign = -1.0 if stripped[0] == "-" else 1.0
        stripped = stripped[1:]
    if stripped == "0":
        return 0.0
    if not stripped or len(stripped) > _TEXT_LENGTH_MAX:
        raise ValueError("not a duration")
    position = 0
    seconds = 0.0
    while position < len(stripped):
        part = _DURATION_PART.match(stripped, position)
        if part is None:
            raise ValueError("a duration without a unit" if _is_number(stripped) else "not a duration")
        seconds += float(part[1]) * _UNIT_SECONDS[part[2]]
        position = part.end()
    if seconds > _DURATION_SECONDS_MAX:
        raise ValueError("a duration of more than 292 years")
    return sign * seconds


def format_duration(seconds: float) -> str:
    """Return the shortest Go duration for `seconds` (0.3 -> 300ms, 90 -> 1m30s)."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds == 0:
        return "0s"
    if seconds < 1:
        for unit in ("ms", "us", "ns"):
            count = seconds / _UNIT_SECONDS[unit]
            if count >= 1 or unit == "ns":
                return f"{round(count, 6):.10g}{unit}"
    whole, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(whole), 60)
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    if rest or not any(parts):
        parts.append(f"{round(rest, 9):.9f}".rstrip("0").rstrip(".") + "s")
    return "".join(parts)


def parse_integer(text: str) -> int:
    """Return a decimal integer of at most 19 digits. Raises ValueError for everything else."""
    if _INTEGER.fullmatch(text) is None:
        raise ValueError("not a whole number")
    return int(text)


def parse_address(text: str) -> Address:
    """Split `tcp://host:port`, `unix://path` or `host:port` (scheme tcp). Raises ValueError saying what is wrong."""
    if text.startswith("unix://"):
        path = text[len("unix://") :]
        if not path or "\x00" in path:
            raise ValueError("the path is empty" if not path else "the path holds a zero byte")
        if len(path.encode(errors="replace")) > 107:
            raise ValueError("the path is longer than 107 bytes, the most a unix socket can have")
        return ("unix", path, 0)
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "tcp":
        raise ValueError("the scheme is neither tcp nor unix")
    host, colon, port_text = (rest if separator else text).rpartition(":")
    if not colon:
        raise ValueError("there is no port")
    try:
        port = parse_integer(port_text)
    except ValueError:
        raise ValueError("the port is not a number") from None
    if not 0 <= port <= 65535:
        raise ValueError("the port is not between 0 and 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address needs brackets")
    if any(char.isspace() or char in "/@" for char in host):
        raise ValueError("the host holds a character that no host name has")
    return ("tcp", host, port)


def parse_http_address(text: str) -> Address:
    """Split an address of the web server: as `parse_address`, and `unix:path` or `systemd:NAME` too.

    The latter, or `systemd` alone, is a socket that is passed to the process: ("systemd", NAME, 0).
    Raises ValueError saying what is wrong.
    """
    if text == "systemd" or text.startswith("systemd:"):
        name = text[len("systemd:") :]
        if len(name) > 255 or not all(" " < char <= "~" and char != ":" for char in name):
            raise ValueError("the name of a passed socket has characters that systemd does not allow there")
        return ("systemd", name, 0)
    if text.startswith("unix:") and not text.startswith("unix://"):
        text = f"unix://{text[len('unix:') :]}"
    return parse_address(text)


def is_loopback(host: str) -> bool:
    """Say whether a host of an address can only be reached from this machine; an empty host means every interface."""
    if host.lower() in ("localhost", "::1"):
        return True
    parts = host.split(".")
    return len(parts) == 4 and parts[0] == "127" and all(part.isascii() and part.isdigit() for part in parts)


def check_listen(text: str) -> tuple[str, str] | None:
    """Judge rpc.listen: empty, tcp://host:port or unix://path."""
    return None if not text else _check_dsn(text, "write tcp://127.0.0.1:6001 or unix:///path/to/rpc.sock")


def check_relay(text: str) -> tuple[str, str] | None:
    """Judge server.relay: pipes, tcp://host:port or unix://path."""
    return (
        None
        if text == "pipes"
        else _check_dsn(text, "write pipes, tcp://127.0.0.1:6002 or unix:///path/to/relay.sock")
    )


def check_address(text: str) -> tuple[str, str] | None:
    """Judge the address of a public listener: host:port, with or without tcp://."""
    remedy = "write host:port, for example 127.0.0.1:2114"
    try:
        scheme, _, _ = parse_address(text)
    except ValueError as error:
        return (f"not an address: {error}", remedy)
    return None if scheme == "tcp" else ("a unix socket is not possible here", remedy)


def check_http_address(text: str) -> tuple[str, str] | None:
    """Judge one address of the web server: host:port, unix:path or systemd:NAME."""
    try:
        parse_http_address(text)
    except ValueError as error:
        return (
            f"not an address: {error}",
            "write host:port, for example 127.0.0.1:8080, unix:/path/to.sock or systemd:NAME",
        )
    return None


def check_subnet(text: str) -> tuple[str, str] | None:
    """Judge one network: an address, or an address and a prefix length."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return ("not a network", "write address/bits, for example 10.0.0.0/8")
    return None


def check_umask(text: str) -> tuple[str, str] | None:
    """Say what is wrong with a umask."""
    if text and not re.fullmatch(r"0?[0-7]{3}", text):
        return "no umask", 'write three octal digits in quotes, such as "027"'
    return None


def check_processors(text: str) -> tuple[str, str] | None:
    """Say what is wrong with a list of processors as taskset takes it."""
    if text and not re.fullmatch(
        r"\d{1,4}(-\d{1,4}(:\d{1,4})?)?(,\d{1,4}(-\d{1,4}(:\d{1,4})?)?)*", text, re.ASCII
    ):
        return "no list of processors", "write numbers and ranges, such as 0-3,8"
    return None


def check_log_target(text: str) -> tuple[str, str] | None:
    """Judge one target of a log: stdout, stderr or a file path."""
    if "\x00" in text:
        return ("the path holds a zero byte", "write stdout, stderr or a file path")
    return None


def _check_dsn(text: str, remedy: str) -> tuple[str, str] | None:
    try:
        if "://" not in text:
            raise ValueError("it begins with neither tcp:// nor unix://")
        parse_address(text)
    except ValueError as error:
        return (f"not an address: {error}", remedy)
    return None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[0-9]+\.?[0-9]*|\.[0-9]+", text) is not None
