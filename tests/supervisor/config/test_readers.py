"""YAML and JSON to trees: lines, duplicate keys, bounds; files that are no files."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss.config import ConfigError
from trailboss.config.json_tree import parse_json
from trailboss.config.reading import read_text
from trailboss.config.tree import Node, plain
from trailboss.config.yaml_tree import parse_yaml


def values_of(node: Node | None) -> object:
    """Return a tree as plain values."""
    return None if node is None else plain(node)


def test_every_node_has_its_line() -> None:
    """A value behind a key has the key's line, a member of a list its own."""
    node = parse_yaml("a:\n  b: 1\n  c:\n    - x\n    - y\n", "f")

    assert node is not None
    assert isinstance(node.value, dict)
    section = node.value["a"]
    assert isinstance(section.value, dict)
    members = section.value["c"].value
    assert isinstance(members, list)
    assert (
        section.line,
        section.value["b"].line,
        section.value["c"].line,
        [member.line for member in members],
    ) == (1, 2, 3, [4, 5])


def test_json_lines_are_those_of_the_keys() -> None:
    """JSON nodes carry lines as well."""
    node = parse_json('{\n "a": 1,\n "b": {\n  "c": [true, null, "x"]}}', "f")

    assert node is not None
    assert isinstance(node.value, dict)
    inner = node.value["b"].value
    assert isinstance(inner, dict)
    assert (node.value["a"].line, node.value["b"].line, inner["c"].line) == (2, 3, 4)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a: &x {k: 1}\nb: *x\n", {"a": {"k": 1}, "b": {"k": 1}}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}\n", {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
        (
            "a: &x {k: 1}\nb: &y {l: 2}\nc: {<<: [*x, *y]}\n",
            {"a": {"k": 1}, "b": {"l": 2}, "c": {"k": 1, "l": 2}},
        ),
        ("a: !!str 5\nb: !!int 5\nc: '5'\nd: ! 5\n", {"a": "5", "b": 5, "c": "5", "d": "5"}),
        ("1: a\ntrue: b\n", {"1": "a", "true": "b"}),
        ("a: |\n  x\n  y\n", {"a": "x\ny\n"}),
        ("--- # only one\na: 1\n...\n", {"a": 1}),
        ("# nothing\n", None),
        ("", None),
    ],
)
def test_yaml_features_in_use(text: str, values: object) -> None:
    """Anchors, merge keys, harmless tags, block texts and odd keys read as people expect."""
    assert values == values_of(parse_yaml(text, "f"))


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a is given twice (first in line 1)"),
        ("a: [1\n", 2, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: *hunter2\n", 1, "an alias"),
        ("a: !hunter2 x\n", 1, "a tag"),
        ("a: !!python/object/apply:os.system [x]\n", 1, "a tag"),
        ("a: !!int x\n", 1, "a tag"),
        ("a: 1\n---\nb: 2\n", 2, "a second document"),
        ("? [a]\n: 1\n", 1, "a key that is not a text"),
        ("'': 1\n", 1, "a key that is empty"),
        ("a: &x [*x]\n", 1, "an alias"),
        ("a: {<<: 5}\n", 1, "a merge key"),
        ("a: \x01\n", 1, "a character that YAML does not allow"),
        ("a: " + "[" * 500, 1, "nested deeper than 64 levels"),
        ("a: " + "[" * 100_000, 1, "nested deeper than 64 levels"),
        ("{a: " * 500, 1, "nested deeper than 64 levels"),
        ("[" + "1," * 200_000 + "1]", 1, "more than 100000 values"),
    ],
)
def test_bad_yaml_names_its_line(text: str, line: int, what: str) -> None:
    """One problem with a line, quickly, and nothing of the file is repeated."""
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f")

    (problem,) = caught.value.problems
    assert line == problem.line
    assert what in problem.message
    assert "hunter2" not in str(problem)
    assert time.monotonic() - started < 2.0


def test_alias_bombs_cost_a_fixed_amount() -> None:
    """A billion laughs, in width and in depth, is refused at its budget."""
    wide = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40)
    )
    deep = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 200))
    for bomb, what in ((wide, "more than 100000 values"), (deep, "nested deeper than 64 levels")):
        started = time.monotonic()
        with pytest.raises(ConfigError, match=what):
            parse_yaml(bomb, "f")
        assert time.monotonic() - started < 2.0


def test_both_yaml_parsers_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without libyaml the values, the lines and the refusal of a large file come from PyYAML's own parser."""
    text = "a: {b: [1, 'x', off], c: &c 0o7}\nd: *c\ne: |\n  t\n"
    with_library = values_of(parse_yaml(text, "f"))
    monkeypatch.setattr(yaml, "__with_libyaml__", False)

    assert with_library == values_of(parse_yaml(text, "f"))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        parse_yaml("#" * (2 << 20), "f")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1,",
        '{"a" 1}',
        "{'a': 1}",
        '{"a":1,}',
        "nul",
        "01",
        "1 2",
        '"a',
        '{"":1}',
        '{"a":1,"a":2}',
        "NaN",
        "[" * 9999,
    ],
)
def test_bad_json_is_one_problem(text: str) -> None:
    """Malformed JSON, duplicate keys and depth are ConfigErrors with a line."""
    with pytest.raises(ConfigError) as caught:
        parse_json(text, "f")

    assert [problem.line for problem in caught.value.problems] == [1]


_JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(_JSON_VALUES, st.sampled_from([None, 2]), st.booleans())
def test_json_reads_what_the_standard_library_writes(
    value: object, indent: int | None, ascii_only: bool
) -> None:
    """The reader agrees with json.loads on every value json.dumps gives."""
    assert value == values_of(parse_json(json.dumps(value, indent=indent, ensure_ascii=ascii_only), "f"))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="{}[]:,-&*!|>'\"#?<%@ \n\tab1$~", max_size=60))
def test_any_text_is_a_tree_or_a_config_error(text: str) -> None:
    """Neither reader raises anything else, whatever it is given."""
    for parse in (parse_yaml, parse_json):
        problems: tuple[object, ...] = ()
        try:
            parse(text, "f")
        except ConfigError as error:
            problems = error.problems
        assert len(problems) <= 1


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    """A folder, a FIFO, a device, a socket, a missing and an oversized file each give one clear error."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    large = tmp_path / "large"
    large.write_bytes(b"#" * (10 << 20))
    started = time.monotonic()
    with listener:
        for path, what in (
            (str(tmp_path), "is a folder"),
            (str(fifo), "is a FIFO"),
            ("/dev/zero", "is a device"),
            (str(tmp_path / "socket"), "is a socket"),
            (str(tmp_path / "none"), "No such file"),
            (str(large), "larger than 8 MiB"),
            ("a\x00b", "not a path"),
        ):
            with pytest.raises(ConfigError, match=what):
                read_text(path, "f")

    assert time.monotonic() - started < 2.0


def test_text_that_is_not_utf_8_names_its_line(tmp_path: Path) -> None:
    """The line of the first bad byte is in the error; a byte order mark is no part of the text."""
    path = tmp_path / "f.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match="f:2: not UTF-8 text"):
        read_text(str(path), "f")
    path.write_bytes(b"\xef\xbb\xbfa: 1")

    assert read_text(str(path), "f") == "a: 1"


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be opened gives the system's reason (simulated, since root may open everything)."""
    path = tmp_path / "f.yaml"
    path.write_text("a: 1")

    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        read_text(str(path), "f")
