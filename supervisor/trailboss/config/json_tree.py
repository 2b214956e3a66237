"""JSON text to a tree of Nodes, with line numbers and a bound on depth and size.

The standard library's decoder keeps no positions and recurses as deep as its input says, so the grammar is walked here;
the strings, the only difficult part of JSON, are left to the standard library's scanner.
"""

from __future__ import annotations

import bisect
import re
from json import JSONDecodeError, JSONDecoder
from typing import Final

from trailboss.config.problems import ConfigError, Problem
from trailboss.config.tree import DEPTH_MAX, NODES_MAX, Node, Scalar

__all__ = ["parse_json"]

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_STRINGS: Final = JSONDecoder()
_WORDS: Final[dict[str, Scalar]] = {"true": True, "false": False, "null": None}


def parse_json(text: str, file: str) -> Node | None:
    """Return the tree of `text`, None where it is blank. Raises ConfigError with one problem."""
    reader = _Reader(text, file)
    if reader.skip(0) == len(text):
        return None
    node, end = reader.value(0, 0)
    if reader.skip(end) != len(text):
        raise reader.error(end, "not valid JSON: something follows the value", "remove it")
    return node


class _Reader:
    __slots__ = ("_file", "_newlines", "_nodes", "_text")

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._nodes = 0

    def skip(self, position: int) -> int:
        """Return where the next character that is no white space stands."""
        match = _SPACE.match(self._text, position)
        return match.end() if match else position

    def error(
        self, position: int, message: str, remedy: str = "check commas, quotes and brackets"
    ) -> ConfigError:
        """Return an error at `position`."""
        return ConfigError([Problem(self._file, self._line(position), "", message, remedy)])

    def value(self, position: int, depth: int) -> tuple[Node, int]:
        """Read the value at `position`; return it and where it ends."""
        position = self.skip(position)
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise self.error(position, f"more than {NODES_MAX} values", "make it smaller")
        if depth > DEPTH_MAX:
            raise self.error(position, f"nested deeper than {DEPTH_MAX} levels", "make it flatter")
        start = self._text[position : position + 1]
        if start == "{":
            return self._object(position, depth)
        if start == "[":
            return self._array(position, depth)
        if start == '"':
            text, end = self._string(position)
            return self._node(text, text, position), end
        return self._scalar(position)

    def _object(self, position: int, depth: int) -> tuple[Node, int]:
        children: dict[str, Node] = {}
        node = self._node(children, "", position)
        position = self.skip(position + 1)
        if self._text[position : position + 1] == "}":
            return node, position + 1
        while True:
            position = self.skip(position)
            key_position = position
            if self._text[position : position + 1] != '"':
                raise self.error(position, "not valid JSON: a key in double quotes is expected")
            name, position = self._string(position)
            if not name:
                raise self.error(key_position, "a key that is empty", "give it a name")
            if name in children:
                shown = name if len(name) <= 64 else "a key"
                earlier = children[name].line
                raise self.error(
                    key_position, f"{shown} is given twice (first in line {earlier})", "remove one of the two"
                )
            position = self.skip(position)
            if self._text[position : position + 1] != ":":
                raise self.error(position, "not valid JSON: a colon is expected")
            child, position = self.value(position + 1, depth + 1)
            child.line = self._line(key_position)
            children[name] = child
            position, is_last = self._next(position, "}")
            if is_last:
                return node, position

    def _array(self, position: int, depth: int) -> tuple[Node, int]:
        items: list[Node] = []
        node = self._node(items, "", position)
        position = self.skip(position + 1)
        if self._text[position : position + 1] == "]":
            return node, position + 1
        while True:
            item, position = self.value(position, depth + 1)
            items.append(item)
            position, is_last = self._next(position, "]")
            if is_last:
                return node, position

    def _next(self, position: int, closing: str) -> tuple[int, bool]:
        position = self.skip(position)
        found = self._text[position : position + 1]
        if found not in (",", closing) or not found:
            raise self.error(position, f"not valid JSON: a comma or {closing} is expected")
        return position + 1, found == closing

    def _string(self, position: int) -> tuple[str, int]:
        try:
            text, end = _STRINGS.raw_decode(self._text, position)
            return str(text), end
        except JSONDecodeError as error:
            raise self.error(
                error.pos, "not valid JSON: a string that is not closed or holds a bad escape"
            ) from None

    def _scalar(self, position: int) -> tuple[Node, int]:
        for word, value in _WORDS.items():
            if self._text.startswith(word, position):
                return self._node(value, word, position), position + len(word)
        match = _NUMBER.match(self._text, position)
        if match is None or match.end() - position > 64:
            raise self.error(position, "not valid JSON: a value is expected")
        text = match[0]
        number: Scalar = float(text) if match[2] or match[3] or len(text) > 20 else int(text)
        return self._node(number, text, position), match.end()

    def _node(self, value: Scalar | list[Node] | dict[str, Node], text: str, position: int) -> Node:
        return Node(value, text, self._file, self._line(position))

    def _line(self, position: int) -> int:
        return bisect.bisect_left(self._newlines, position) + 1
