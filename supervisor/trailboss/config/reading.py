"""Reading one configuration file without ever hanging, and without trusting what it is.

Only regular files are read, at most 8 MiB, as UTF-8. A FIFO, a device, a folder or a socket is refused by its type
before it is opened, and opened without blocking in case it changes in between.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from trailboss.config.json_tree import parse_json
from trailboss.config.problems import ConfigError, Problem
from trailboss.config.tree import Node
from trailboss.config.yaml_tree import parse_yaml

__all__ = ["FILE_BYTES_MAX", "read_text", "read_tree"]

FILE_BYTES_MAX: Final = 8 << 20
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_tree(path: str, shown: str) -> Node | None:
    """Return the tree of a YAML or JSON file (by its extension), None where it is empty. Raises ConfigError."""
    text = read_text(path, shown)
    if path.lower().endswith(".json"):
        return parse_json(text, shown)
    return parse_yaml(text, shown)


def read_text(path: str, shown: str) -> str:
    """Return the text of a regular UTF-8 file of at most 8 MiB. Raises ConfigError naming it `shown`."""
    try:
        _check_kind(os.stat(path).st_mode, shown)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(descriptor, "rb") as stream:
            _check_kind(os.fstat(descriptor).st_mode, shown)
            content = stream.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else "not a path"
        raise _error(shown, f"cannot be read: {what}", "check the path and its permissions") from None
    if len(content) > FILE_BYTES_MAX:
        raise _error(shown, "larger than 8 MiB", "name the configuration file, not a data file")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _error(shown, "not UTF-8 text", "save the file as UTF-8", line) from None


def _check_kind(mode: int, shown: str) -> None:
    for is_kind, word in _KINDS:
        if is_kind(mode):
            raise _error(shown, f"is {word}, not a file", "name a regular file")


def _error(shown: str, message: str, remedy: str, line: int = 0) -> ConfigError:
    return ConfigError([Problem(shown, line, "", message, remedy)])
