"""Values with their places: what a configuration file said before any key is known.

Both readers (YAML, JSON) give a tree of Nodes; `-o` flags are laid over it and includes replace sections of it. A node
keeps its file, its line (the key's line where it stands behind a key) and, for a scalar, the text as it was written:
`user: 0010` is the text 0010 where the key wants a text. Sizes are bounded by the readers through a Budget.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trailboss.config.problems import ConfigError, Problem

__all__ = [
    "DEPTH_MAX",
    "NODES_MAX",
    "OVERRIDE_FILE",
    "Node",
    "core_scalar",
    "find",
    "lay_over",
    "parse_override",
    "plain",
]

DEPTH_MAX: Final = 64
NODES_MAX: Final = 100_000
OVERRIDE_FILE: Final = "-o"
"""Stands for the file name of values that came from the command line."""

_NULL: Final = frozenset(("", "~", "null", "Null", "NULL"))
_BOOLEAN: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,19}")
_OCTAL: Final = re.compile(r"0o[0-7]{1,21}")
_HEXADECIMAL: Final = re.compile(r"0x[0-9a-fA-F]{1,16}")
_FLOAT: Final = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)

Scalar = str | int | float | bool | None


class SecretText(str):
    """A text that is hidden wherever the configuration is shown."""

    __slots__ = ()


@dataclass(slots=True)
class Node:
    """One value and its place."""

    value: Scalar | list[Node] | dict[str, Node]
    text: str = ""
    file: str = ""
    line: int = 0
    substituted: bool = False
    """Holds text of environment variables, so it is never quoted in a message."""
    is_secret: bool = False
    """Holds a credential, so it is never shown at all."""
    unset: tuple[str, ...] = ()
    """Variables named in it that are not set."""

    @property
    def is_override(self) -> bool:
        """Say whether the value came from `-o`."""
        return self.file == OVERRIDE_FILE

    def problem(self, key: str, message: str, remedy: str = "") -> Problem:
        """Return a finding about this node."""
        return Problem(self.file, self.line, key, message, remedy)


def core_scalar(text: str) -> Scalar:
    """Return the value of an unquoted scalar by the core schema of YAML 1.2 (yes, on, 12:30 and dates are texts)."""
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text, 0)
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 0)
    if len(text) <= 64 and _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def plain(node: Node) -> object:
    """Return a node as dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {name: plain(child) for name, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    if node.is_secret and isinstance(node.value, str):
        return SecretText(node.value)
    return node.value


def find(children: Mapping[str, Node], name: str) -> str | None:
    """Return the key of `children` that equals `name` but for case, or None."""
    if name in children:
        return name
    wanted = name.lower()
    return next((key for key in children if key.lower() == wanted), None)


def parse_override(text: str) -> tuple[tuple[str, ...], Node]:
    """Split one `-o key=value` into the key's parts and the value. Raises ConfigError."""
    name, separator, value = text.partition("=")
    name = name.strip()
    remedy = "write -o key=value, for example -o rpc.listen=tcp://127.0.0.1:6001"
    path = tuple(name.split("."))
    if not separator or len(path) > DEPTH_MAX or not all(path):
        raise ConfigError([Problem(OVERRIDE_FILE, 0, "", "an override that is not key=value", remedy)])
    value = value.strip()
    if not value:
        raise ConfigError([Problem(OVERRIDE_FILE, 0, name, "the value is empty", remedy)])
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'`":
        value = value[1:-1]
    return path, Node(value, value, OVERRIDE_FILE)


def lay_over(root: Node, path: Sequence[str], value: Node) -> None:
    """Put `value` at `path` into the tree, making the sections on the way; what stood there is replaced."""
    node = root
    for name in path[:-1]:
        node = _child_section(node, name)
    children = node.value
    assert isinstance(children, dict)
    children[find(children, path[-1]) or path[-1]] = value


def _child_section(node: Node, name: str) -> Node:
    children = node.value
    assert isinstance(children, dict)
    known = find(children, name)
    if known is not None and isinstance(children[known].value, dict):
        return children[known]
    section = Node({}, "", OVERRIDE_FILE)
    children[known or name] = section
    return section
