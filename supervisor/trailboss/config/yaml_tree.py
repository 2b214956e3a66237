"""YAML text to a tree of Nodes, with YAML 1.2 scalars, line numbers, and a bound on everything.

PyYAML supplies the events (libyaml where it is built in); what they mean is decided here, in one pass without
recursion: the depth is checked before a level is entered and aliases are copied against a budget of nodes, so neither
deep nesting nor an alias bomb costs more than a fixed amount. Duplicate keys are errors. Merge keys (`<<`) work.

Messages never repeat text of the file: a password that begins with `*` or `!` is "an alias" or "a tag" to the parser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from trailboss.config.problems import ConfigError, Problem
from trailboss.config.tree import DEPTH_MAX, NODES_MAX, Node, core_scalar

__all__ = ["parse_yaml"]

_TAG_PREFIX: Final = "tag:yaml.org,2002:"
_TAG_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "null": (type(None),),
}
_QUOTED: Final = re.compile(r"'[^']{2,}'|\"[^\"]{2,}\"")
_PYTHON_PARSER_CHARACTERS_MAX: Final = 1 << 20


def parse_yaml(text: str, file: str) -> Node | None:
    """Return the tree of the one document in `text`, None where there is none. Raises ConfigError with one problem."""
    builder = _Builder(file)
    try:
        for event in _events(text, file):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if "nesting depth" in (error.problem or ""):  # PyYAML 6.0.4 and later have a bound of their own
            raise _too_deep(file, mark.line + 1 if mark else 0) from None
        what = _QUOTED.sub("...", error.problem or "cannot be read")
        raise _error(file, mark.line + 1 if mark else 0, f"not valid YAML: {what}", _advice(what)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 0
        raise _error(
            file, line, "a character that YAML does not allow", "remove control characters"
        ) from None
    except yaml.YAMLError:
        raise _error(file, 0, "not valid YAML", "check indentation and quotes") from None
    return builder.root


def _events(text: str, file: str) -> Iterator[Event]:
    if yaml.__with_libyaml__:
        yield from yaml.parse(text, Loader=yaml.CBaseLoader)
        return
    if len(text) > _PYTHON_PARSER_CHARACTERS_MAX:
        raise _error(
            file, 0, "larger than 1 MiB", "install PyYAML with libyaml, or split the file with include"
        )
    yield from yaml.parse(text, Loader=yaml.BaseLoader)


def _advice(what: str) -> str:
    if "\\t" in what or "\t" in what:
        return "indent with spaces, not with tabs"
    if "alias" in what or "anchor" in what or "tag" in what or "token" in what:
        return "put quotes around a text that begins with one of * & ! % @ `"
    return "check indentation and quotes"


def _error(file: str, line: int, message: str, remedy: str) -> ConfigError:
    return ConfigError([Problem(file, line, "", message, remedy)])


@dataclass(slots=True)
class _Level:
    """A collection that is being read."""

    node: Node
    anchor: str | None
    key: tuple[str, int] | None = None
    merges: list[Node] = field(default_factory=list)


class _Builder:
    """Takes events in order; `root` is the finished document."""

    __slots__ = ("_anchors", "_file", "_levels", "_nodes", "root")

    def __init__(self, file: str) -> None:
        self.root: Node | None = None
        self._file = file
        self._levels: list[_Level] = []
        self._anchors: dict[str, Node] = {}
        self._nodes = 0

    def take(self, event: Event) -> None:
        """Take one event. Raises ConfigError."""
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, ScalarEvent):
            self._take_scalar(event, line)
        elif isinstance(event, MappingStartEvent | SequenceStartEvent):
            self._open(event, line)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            level = self._levels.pop()
            _merge(level)
            self._finish(level.node, level.anchor)
        elif isinstance(event, AliasEvent):
            anchor = self._anchors.get(event.anchor or "")
            if anchor is None:
                what = "an alias (*name) whose anchor (&name) does not stand before it"
                raise _error(self._file, line, f"not valid YAML: {what}", _advice(what))
            self._refuse_key(line)
            copy = self._copy(anchor, len(self._levels), line)
            copy.line = line
            self._finish(copy, None)
        elif isinstance(event, DocumentStartEvent) and self.root is not None:
            raise _error(
                self._file, line, "a second document", "keep one document in a file, use include for more"
            )

    def _take_scalar(self, event: ScalarEvent, line: int) -> None:
        level = self._levels[-1] if self._levels else None
        if level is not None and isinstance(level.node.value, dict) and level.key is None:
            self._take_key(level, event, line)
            return
        self._charge(1, line)
        self._finish(Node(self._scalar_value(event, line), event.value, self._file, line), event.anchor)

    def _take_key(self, level: _Level, event: ScalarEvent, line: int) -> None:
        name = event.value
        if event.anchor:
            self._anchors[event.anchor] = Node(name, name, self._file, line)
        if not name:
            raise _error(self._file, line, "a key that is empty", "give it a name")
        assert isinstance(level.node.value, dict)
        if name in level.node.value:
            earlier = level.node.value[name].line
            shown = name if len(name) <= 64 else "a key"
            raise _error(
                self._file, line, f"{shown} is given twice (first in line {earlier})", "remove one of the two"
            )
        level.key = (name, line)

    def _scalar_value(self, event: ScalarEvent, line: int) -> str | int | float | bool | None:
        tag = event.tag
        if tag is None or tag == "!":
            is_plain = event.style is None or event.style == ""
            return core_scalar(event.value) if is_plain and tag is None else event.value
        name = tag.removeprefix(_TAG_PREFIX)
        if name == "str":
            return str(event.value)
        value = core_scalar(event.value)
        if name not in _TAG_TYPES or not isinstance(value, _TAG_TYPES[name]):
            what = "a tag (!name) that is not allowed here"
            raise _error(self._file, line, f"not valid YAML: {what}", _advice(what))
        return value

    def _open(self, event: MappingStartEvent | SequenceStartEvent, line: int) -> None:
        self._refuse_key(line)
        is_mapping = isinstance(event, MappingStartEvent)
        if event.tag not in (None, "!", _TAG_PREFIX + ("map" if is_mapping else "seq")):
            what = "a tag (!name) that is not allowed here"
            raise _error(self._file, line, f"not valid YAML: {what}", _advice(what))
        self._charge(1, line)
        self._check_depth(len(self._levels) + 1, line)
        self._levels.append(_Level(Node({} if is_mapping else [], "", self._file, line), event.anchor))

    def _refuse_key(self, line: int) -> None:
        level = self._levels[-1] if self._levels else None
        if level is not None and isinstance(level.node.value, dict) and level.key is None:
            raise _error(self._file, line, "a key that is not a text", "write keys as plain words")

    def _finish(self, node: Node, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = node
        if not self._levels:
            self.root = node
            return
        level = self._levels[-1]
        children = level.node.value
        if isinstance(children, list):
            children.append(node)
            return
        assert isinstance(children, dict)
        assert level.key is not None
        (name, line), level.key = level.key, None
        if name == "<<":
            level.merges.append(node)
        else:
            # The anchored node keeps its own line; here the key's line is the one to name in a message.
            children[name] = replace(node, line=line)

    def _copy(self, node: Node, depth: int, line: int) -> Node:
        self._charge(1, line)
        if isinstance(node.value, dict):
            self._check_depth(depth + 1, line)
            return replace(
                node, value={name: self._copy(item, depth + 1, line) for name, item in node.value.items()}
            )
        if isinstance(node.value, list):
            self._check_depth(depth + 1, line)
            return replace(node, value=[self._copy(item, depth + 1, line) for item in node.value])
        return replace(node)

    def _charge(self, count: int, line: int) -> None:
        self._nodes += count
        if self._nodes > NODES_MAX:
            raise _error(
                self._file, line, f"more than {NODES_MAX} values, aliases counted in full", "make it smaller"
            )

    def _check_depth(self, depth: int, line: int) -> None:
        if depth > DEPTH_MAX:
            raise _too_deep(self._file, line)


def _too_deep(file: str, line: int) -> ConfigError:
    return _error(file, line, f"nested deeper than {DEPTH_MAX} levels", "make it flatter")


def _merge(level: _Level) -> None:
    """Fill in what merge keys (`<<: *defaults`) bring; keys written in the mapping itself win."""
    children = level.node.value
    for source in level.merges:
        parts = source.value if isinstance(source.value, list) else [source]
        for part in parts:
            if not isinstance(part.value, dict):
                raise _error(
                    source.file, source.line, "a merge key (<<) without a mapping", "write <<: *name"
                )
            assert isinstance(children, dict)
            for name, node in part.value.items():
                children.setdefault(name, node)
