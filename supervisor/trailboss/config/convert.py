"""From a tree of Nodes to the dataclasses of schema.py, collecting every problem on the way.

The dataclass decides: its type hints say how the text of a value is read, its `key()` metadata bounds it, and a key it
does not have is an error with the nearest name it has. Conversion is weak where RoadRunner's is (a text for a number, a
`yes` for a switch, `a,b` for a list), because `-o` flags and environment variables are always texts. It is strict where
RoadRunner's silence costs people nights: unknown keys, bare numbers for durations, negative limits.

Values are quoted in a message only when they are plain words from the file itself; what came out of the environment
never is.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from trailboss.config.problems import ConfigError, Problem
from trailboss.config.schema import (
    PIPELINE_DRIVERS,
    UNAVAILABLE_KEYS,
    Kind,
    PipelineConfig,
    Warmup,
    section_keys,
)
from trailboss.config.tree import Node, find, plain
from trailboss.config.values import parse_duration, parse_integer

__all__ = ["Findings", "convert_section", "expand_dotted_keys", "field_types", "from_mapping", "unknown_key"]

T = TypeVar("T")

PROBLEMS_MAX: Final = 100
LIST_MEMBERS_MAX: Final = 10_000
_TRUE: Final = frozenset(("true", "t", "yes", "y", "on", "1"))
_FALSE: Final = frozenset(("false", "f", "no", "n", "off", "0"))
_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_KEY_WORD: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_NUMBER: Final = re.compile(r"[0-9]{1,18}(\.[0-9]{1,9})?")
_MISSING: Final = object()
"""Stands for a value that is absent or wrong; the default applies."""


@dataclass(slots=True)
class Findings:
    """What conversion found: problems, notes, and where every key stood."""

    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        """Record a problem. Raises ConfigError when there are so many that more would help nobody."""
        self.problems.append(problem)
        if len(self.problems) >= PROBLEMS_MAX:
            self.problems.append(Problem(problem.file, 0, "", "too many errors", "correct these first"))
            raise ConfigError(self.problems)


@functools.lru_cache(maxsize=64)
def field_types(section: type) -> dict[str, object]:
    """Return the type of every field of a section class, `Annotated` kinds included."""
    return dict(get_type_hints(section, include_extras=True))


def from_mapping(section: type[T], values: Mapping[str, object], name: str = "", file: str = "") -> T:
    """Make one section out of plain values, by the same rules as a file. Raises ConfigError with every problem.

    `name` is the dotted name that stands in messages. Serves what does not come from a file, such as jobs.Declare.
    """
    findings = Findings()
    converted = convert_section(section, _tree(values, file), name, findings)
    if findings.problems:
        raise ConfigError(findings.problems)
    return cast(T, converted)


def _tree(value: object, file: str) -> Node:
    if isinstance(value, Mapping):
        return Node({str(name): _tree(item, file) for name, item in value.items()}, "", file)
    if isinstance(value, list | tuple):
        return Node([_tree(item, file) for item in value], "", file)
    if value is None or isinstance(value, str | bool | int | float):
        return Node(value, str(value), file)
    return Node(str(value), str(value), file)


def convert_section(section: type, node: Node, name: str, findings: Findings) -> object:
    """Make a section out of a mapping; an object of the class, or a marker object when a problem was recorded."""
    if not isinstance(node.value, dict):
        findings.add(
            node.problem(name, "a section with keys is expected here", "write its keys below it, indented")
        )
        return _MISSING
    found_before = len(findings.problems)
    keys = section_keys(section)
    hints = field_types(section)
    values: dict[str, object] = {}
    for written, child in node.value.items():
        known = find_key(keys, written)
        if known is None:
            findings.add(unknown_key(section, written, child, name))
            continue
        dotted = join(name, known)
        if known in values:
            findings.add(child.problem(dotted, "the key is given twice", "remove one of the two"))
            continue
        value = convert(hints[known], child, dotted, keys[known], findings)
        if value is not _MISSING:
            values[known] = value
            note = keys[known].metadata.get("note")
            if note:
                findings.notes.append(child.problem(dotted, note))
    for known, item in keys.items():
        if is_required(item) and known not in values and find(node.value, known) is None:
            findings.add(node.problem(join(name, known), "the key is required", item.metadata.get("doc", "")))
    if len(findings.problems) > found_before:
        return _MISSING
    if section is PipelineConfig:
        return _pipeline(node, values, name, findings)
    return _construct(section, values, node, name, findings)


def is_required(item: dataclasses.Field[object]) -> bool:
    """Say whether a key has no default."""
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def find_key(keys: Iterable[str], written: str) -> str | None:
    """Return the key that equals `written` but for case, or None."""
    wanted = written.lower()
    return next((key for key in keys if key.lower() == wanted), None)


def join(name: str, key: str) -> str:
    """Return the dotted name of `key` in the section `name`."""
    return f"{name}.{key}" if name else key


def _construct(section: type, values: dict[str, object], node: Node, name: str, findings: Findings) -> object:
    try:
        return section(**values)
    except (ValueError, TypeError) as error:
        # Only a third-party section judges its own values when it is made.
        findings.add(node.problem(name, str(error)))
        return _MISSING


def _pipeline(node: Node, values: dict[str, object], name: str, findings: Findings) -> object:
    """Check a pipeline's keys with the dataclass of its driver; keep the ones that were written."""
    driver = str(values["driver"]).lower()
    assert isinstance(node.value, dict)
    options_type = PIPELINE_DRIVERS.get(driver)
    if options_type is None:
        known = ", ".join(PIPELINE_DRIVERS)
        child = node.value[find(node.value, "driver") or "driver"]
        message = f"unknown jobs driver{quoted(child)}"
        findings.add(child.problem(join(name, "driver"), message, f"use one of: {known}"))
        return _MISSING
    config_key = find(node.value, "config")
    config_node = node.value[config_key] if config_key else None
    if config_node is None or config_node.value is None:
        return PipelineConfig(driver=driver)
    options = convert_section(options_type, config_node, join(name, "config"), findings)
    if options is _MISSING:
        return _MISSING
    assert isinstance(config_node.value, dict)
    keys = [key for key in section_keys(options_type) if find(config_node.value, key) is not None]
    return PipelineConfig(driver=driver, config={key: getattr(options, key) for key in keys})


def unknown_key(section: type, written: str, node: Node, name: str, extra: Sequence[str] = ()) -> Problem:
    """Return the problem of a key that the section does not have, with the nearest name it has."""
    if not _KEY_WORD.fullmatch(written):
        return node.problem(name, "a key that is no name", "check indentation and quotes")
    unavailable = UNAVAILABLE_KEYS.get(section, {}).get(written.lower())
    if unavailable is not None:
        return node.problem(join(name, written), *unavailable)
    names = [*section_keys(section), *extra]
    near = difflib.get_close_matches(written.lower(), names, n=1, cutoff=0.6)
    inside = [path for path in _inner_keys(section) if path.rpartition(".")[2] == written.lower()] or near
    if inside:
        remedy = f"did you mean {inside[0]}?"
    else:
        remedy = f"known here: {', '.join(names)}" if len(names) <= 40 else "remove it"
    return node.problem(join(name, written), "unknown key", remedy)


def _inner_keys(section: type) -> list[str]:
    """Return the dotted names of keys one level below, for a key that was written one level too high."""
    paths: list[str] = []
    for name, hint in field_types(section).items():
        inner = section_type(hint)
        if inner is not None:
            paths.extend(f"{name}.{key}" for key in section_keys(inner))
    return paths


def section_type(hint: object) -> type | None:
    """Return the dataclass a hint stands for (`X` or `X | None`), or None."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for part in get_args(hint) if (found := section_type(part))), None)
    return None


def entry_type(hint: object) -> object | None:
    """Return what the values of a mapping hint are, or None where the hint is no mapping."""
    if get_origin(hint) in (Union, types.UnionType):
        return next((found for part in get_args(hint) if (found := entry_type(part)) is not None), None)
    origin = get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return cast(object, get_args(hint)[1])
    return None


def expand_dotted_keys(node: Node, hint: object, findings: Findings, name: str = "") -> None:
    """Turn `pool.debug: true` inside a section into nested keys, in place; names of variables keep their dots."""
    section = section_type(hint)
    inner = entry_type(hint)
    if not isinstance(node.value, dict) or (section is None and section_type(inner) is None):
        return
    children = node.value
    dotted = [(written, children.pop(written)) for written in list(children) if "." in written]
    spellings: dict[int, dict[str, str]] = {}
    for written, child in dotted:
        if not _put_dotted(children, written.split("."), child, spellings):
            shown = join(name, written) if _KEY_WORD.fullmatch(written) else name
            findings.add(
                child.problem(shown, "the key is given twice, or is no dotted name", "keep one of the two")
            )
    hints = field_types(section) if section else {}
    for written, child in children.items():
        known = find_key(hints, written) if section else written
        if known is not None:
            expand_dotted_keys(child, hints[known] if section else inner, findings, join(name, known))


def _put_dotted(
    children: dict[str, Node], parts: list[str], child: Node, spellings: dict[int, dict[str, str]]
) -> bool:
    """Put `child` at the path `parts`; False where the place is taken or a part is empty.

    `spellings` remembers the keys of each section in lower case, so that many dotted keys take linear time.
    """
    if len(parts) > 16 or not all(parts):
        return False
    for part in parts[:-1]:
        known = _spelling(children, part, spellings)
        section = children.setdefault(known, Node({}, "", child.file, child.line))
        if not isinstance(section.value, dict):
            return False
        children = section.value
    known = _spelling(children, parts[-1], spellings)
    return children.setdefault(known, child) is child


def _spelling(children: dict[str, Node], part: str, spellings: dict[int, dict[str, str]]) -> str:
    """Return how the key `part` is spelled in `children`, which is `part` itself where it is new."""
    known = spellings.get(id(children))
    if known is None:
        known = spellings[id(children)] = {key.lower(): key for key in children}
    return known.setdefault(part.lower(), part)


def convert(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    """Return the value of one key as its type hint wants it, or the missing marker after recording a problem."""
    if node.value is None:
        return _MISSING
    findings.places[name] = (node.file, node.line)
    if node.unset and node.text == "" and not _takes_text(hint):
        return _MISSING  # a variable that is not set, and noted; RoadRunner takes the default as well
    reader = _reader_of(hint)
    try:
        value = reader(hint, node, name, item, findings)
        if value is not _MISSING:
            _check_bounds(value, item)
            _check_texts(value, item)
        return value
    except _Wrong as wrong:
        findings.add(node.problem(name, wrong.message, wrong.remedy))
        return _MISSING


class _Wrong(Exception):
    """A value that cannot be used."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def quoted(node: Node) -> str:
    """Return ` "word"` for a plain word that the file itself holds, else nothing: it may be a secret."""
    if node.substituted or not _PLAIN_WORD.fullmatch(node.text):
        return ""
    return f' "{node.text}"'


_Reader = Callable[[object, Node, str, "dataclasses.Field[object]", Findings], object]


def _takes_text(hint: object) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_takes_text(part) for part in get_args(hint))
    return hint is str or hint is object or (get_origin(hint) is Literal and "" in get_args(hint))


def _reader_of(hint: object) -> _Reader:
    if get_origin(hint) is Annotated:
        return _KIND_READERS[next(part for part in get_args(hint)[1:] if isinstance(part, Kind))]
    if section_type(hint) is not None:
        return _read_section
    if get_origin(hint) in (Union, types.UnionType):
        return _read_optional
    if get_origin(hint) is Literal:
        return _read_choice
    if entry_type(hint) is not None:
        return _read_mapping
    if get_origin(hint) in (tuple, list, Sequence):
        return _read_list
    reader = _PLAIN_READERS.get(cast(type, hint))
    if reader is None:
        raise TypeError(f"a configuration key cannot have the type {hint}")
    return reader


def _read_section(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    section = section_type(hint)
    assert section is not None
    return convert_section(section, node, name, findings)


def _read_optional(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    inner = next(part for part in get_args(hint) if part is not type(None))
    return _reader_of(inner)(inner, node, name, item, findings)


def _read_bool(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    if isinstance(node.value, bool):
        return node.value
    word = node.text.strip().lower() if isinstance(node.value, str | int) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise _Wrong(f"not a switch{quoted(node)}", "write true or false")


def _read_int(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    if isinstance(node.value, int) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node.value, str):
        try:
            return parse_integer(node.value)
        except ValueError:
            pass
    unit = item.metadata.get("unit", "")
    remedy = f"write digits only (the unit is {unit})" if unit else "write digits only"
    raise _Wrong(f"not a whole number{quoted(node)}", remedy)


def _read_float(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    value = node.value
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise _Wrong(f"not a number{quoted(node)}", "write digits, with a point before a fraction")


def _read_str(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    if isinstance(node.value, dict | list):
        raise _Wrong("a single text is expected here", "write one value")
    return node.text


def _read_object(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    return plain(node)


def _read_choice(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    word = "" if isinstance(node.value, dict | list) else node.text.strip().lower()
    unavailable = item.metadata.get("unavailable", {}).get(word)
    if unavailable is not None:
        raise _Wrong(*unavailable)
    choices = [str(choice) for choice in get_args(hint)]
    known = {choice.lower(): choice for choice in choices}
    if isinstance(node.value, dict | list) or word not in known:
        raise _Wrong(f"not a known value{quoted(node)}", f"use one of: {', '.join(filter(None, choices))}")
    return known[word]


def _read_duration(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    if isinstance(node.value, dict | list | bool):
        raise _Wrong("not a duration", "write a number with a unit, for example 10s or 1m30s")
    try:
        seconds = parse_duration(node.text)
    except ValueError as error:
        example = (
            f"{node.text}s"
            if _NUMBER.fullmatch(node.text) and not node.substituted
            else "10s, 300ms or 1m30s"
        )
        raise _Wrong(f"{error}{quoted(node)}", f"add a unit, for example {example}") from None
    if seconds < 0:
        raise _Wrong("a negative duration", "write 0s or more")
    return seconds


def _read_seconds(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    try:
        seconds = parse_integer(node.text)
    except ValueError:
        return _read_duration(hint, node, name, item, findings)
    if not 0 <= seconds <= 10**9:
        raise _Wrong("not between 0 and 1000000000 seconds", "write seconds, or a duration such as 30s")
    return float(seconds)


def _read_command(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    """Split a text as RoadRunner does: a list is argv; `a,b` without spaces (and always for -o) splits at commas."""
    if isinstance(node.value, list):
        words = tuple(_list_texts(node))
    elif isinstance(node.value, dict):
        raise _Wrong("a command is a list or a text", "write command: [php, worker.php]")
    elif "," in node.text and (node.is_override or not re.search(r"\s", node.text)):
        words = tuple(part.strip() for part in node.text.split(",") if part.strip())
    else:
        words = tuple(node.text.split())
        if re.search(r"""(^|\s)(['"]).*\2""", node.text):
            findings.notes.append(
                node.problem(
                    name,
                    "quotes in a command are passed on as they are",
                    "write a list for words with spaces",
                )
            )
    if not words or not words[0]:
        raise _Wrong("the command is empty", "write command: [php, worker.php]")
    if any("\x00" in word for word in words):
        raise _Wrong("the command holds a zero byte", "remove it")
    return words


def _read_warmup(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    if not isinstance(node.value, list):
        command = _read_command(hint, node, name, item, findings)
        assert isinstance(command, tuple)
        return Warmup(command=command)
    paths = tuple(_list_texts(node))
    for path in paths:
        if (
            not path.startswith("/")
            or not path.isascii()
            or any(char <= " " or char == "\x7f" for char in path)
        ):
            raise _Wrong(
                f"{path!r} is no request path",
                'write paths that begin with /, such as [/health]; a command is one text, such as "php warm.php"',
            )
    return Warmup(paths=paths)


def _list_texts(node: Node) -> list[str]:
    assert isinstance(node.value, list)
    if any(isinstance(child.value, dict | list) or child.value is None for child in node.value):
        raise _Wrong("a list of single texts is expected here", "write each member as one value")
    return [child.text for child in node.value]


def _read_list(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    if isinstance(node.value, dict):
        raise _Wrong("a list is expected here", "write [a, b], or one member a line after a dash")
    inner = get_args(hint)[0] if get_args(hint) else str
    if isinstance(node.value, list):
        children = node.value
    else:
        texts = (part.strip() for part in node.text.split(","))
        children = [dataclasses.replace(node, value=text, text=text) for text in texts if text]
    if len(children) > LIST_MEMBERS_MAX:
        raise _Wrong(f"a list of more than {LIST_MEMBERS_MAX} members", "make it shorter")
    values: list[object] = []
    for index, child in enumerate(children):
        if child.value is None:
            raise _Wrong("a member of the list is empty", "remove it")
        try:
            value = _reader_of(inner)(inner, child, f"{name}[{index}]", item, findings)
        except _Wrong as wrong:
            findings.add(child.problem(f"{name}[{index}]", wrong.message, wrong.remedy))
            continue
        if value is not _MISSING:
            values.append(value)
    return values if get_origin(hint) is list else tuple(values)


def _read_mapping(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    if not isinstance(node.value, dict):
        raise _Wrong("a section with names is expected here", "write names below it, indented")
    inner = entry_type(hint)
    holds_sections = section_type(inner) is not None
    values: dict[str, object] = {}
    lowered: set[str] = set()
    for written, child in node.value.items():
        shown = written if _KEY_WORD.fullmatch(written) else "(a name)"
        if holds_sections and shown != written:
            findings.add(
                child.problem(name, "a name with characters that no name has", "use letters, digits, - and _")
            )
            continue
        if written.lower() in lowered:
            findings.add(
                child.problem(
                    join(name, shown), "the name is given twice, but for case", "rename one of the two"
                )
            )
            continue
        lowered.add(written.lower())
        if child.value is None and holds_sections:
            child = dataclasses.replace(child, value={})
        value = convert(inner, child, join(name, shown), item, findings)
        if value is not _MISSING:
            values[written] = value
    return values


def _read_environment(
    hint: object, node: Node, name: str, item: dataclasses.Field[object], findings: Findings
) -> object:
    values: dict[str, str] = {}
    for written, child in _written_variables(node):
        variable = written.upper()
        shown = join(name, written) if _KEY_WORD.fullmatch(written) else name
        findings.places[shown] = (child.file, child.line)
        if "=" in variable or "\x00" in variable:
            findings.add(
                child.problem(name, "the name of a variable holds = or a zero byte", "write NAME: value")
            )
        elif variable in values:
            findings.add(
                child.problem(shown, "the variable is given twice, but for case", "remove one of the two")
            )
        elif isinstance(child.value, dict | list):
            findings.add(child.problem(shown, "a single text is expected here", "write NAME: value"))
        elif "\x00" in child.text:
            findings.add(child.problem(shown, "the value holds a zero byte", "remove it"))
        elif isinstance(child.value, bool):
            # RoadRunner hands a YAML switch over as 1 or 0; PHP code that tests it would take the text "false" for true.
            values[variable] = "1" if child.value else "0"
            remedy = "put quotes around it to pass the word"
            findings.notes.append(child.problem(shown, f"is passed as {values[variable]}", remedy))
        else:
            values[variable] = "" if child.value is None else child.text
    return values


def _written_variables(node: Node) -> Iterator[tuple[str, Node]]:
    """Give names and values; RoadRunner also takes a list of maps (`- NAME: value`), which many of its files have."""
    for part in node.value if isinstance(node.value, list) else [node]:
        if not isinstance(part.value, dict):
            raise _Wrong("variables with values are expected here", "write NAME: value, one a line, indented")
        yield from part.value.items()


_KIND_READERS: Final[dict[Kind, _Reader]] = {
    Kind.DURATION: _read_duration,
    Kind.SECONDS_OR_DURATION: _read_seconds,
    Kind.MEGABYTES: _read_int,
    Kind.COMMAND: _read_command,
    Kind.WARMUP: _read_warmup,
    Kind.ENVIRONMENT: _read_environment,
}
_PLAIN_READERS: Final[dict[type, _Reader]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_str,
    object: _read_object,
}


def _check_bounds(value: object, item: dataclasses.Field[object]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    minimum, maximum = item.metadata.get("minimum"), item.metadata.get("maximum")
    if minimum is not None and value < minimum:
        raise _Wrong("the value is too small", f"write {minimum} or more")
    if maximum is not None and value > maximum:
        raise _Wrong("the value is too large", f"write {maximum} or less")


def _check_texts(value: object, item: dataclasses.Field[object]) -> None:
    check = item.metadata.get("check")
    if check is None:
        return
    for text in value if isinstance(value, tuple) else (value,):
        finding = check(text)
        if finding is not None:
            raise _Wrong(*finding)
