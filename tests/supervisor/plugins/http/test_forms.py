"""Forms: which bodies are forms, what becomes of their fields, and where they end."""

from __future__ import annotations

import json
import re
from urllib.parse import unquote_to_bytes, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.plugins.http import forms
from trailboss.plugins.http.forms import (
    MULTIPART,
    URLENCODED,
    FileSink,
    FormRefused,
    MultipartForm,
    form_kind,
    parse_urlencoded,
)


class Sink:
    """A file in memory."""

    def __init__(self, field: str, name: str, mime: str) -> None:
        self.about = (field, name, mime)
        self.content = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.content += data

    def close(self) -> None:
        self.closed = True


def part(head: str, content: bytes, boundary: str = "b") -> bytes:
    """One part of a multipart form."""
    return f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"


def field(name: str, content: bytes = b"v") -> bytes:
    """A part that is no file."""
    return part(f'Content-Disposition: form-data; name="{name}"', content)


END = b"--b--\r\n"
CONTENT_TYPE = b"multipart/form-data; boundary=b"


def read(
    body: bytes, content_type: bytes = CONTENT_TYPE, piece: int = 1 << 20
) -> tuple[dict[str, object], list[Sink]]:
    """The tree and the files of a form, its body fed in pieces."""
    sinks: list[Sink] = []

    def open_file(field: str, name: str, mime: str) -> FileSink:
        sinks.append(Sink(field, name, mime))
        return sinks[-1]

    form = MultipartForm(content_type, open_file)
    for position in range(0, len(body), piece):
        form.feed(body[position : position + piece])
    tree: dict[str, object] = json.loads(form.finish())
    assert all(sink.closed for sink in sinks)
    return tree, sinks


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (None, ""),
        (b"", ""),
        (b"application/json", ""),
        (b"application/x-www-form-urlencoded", URLENCODED),
        (b"Application/X-WWW-Form-URLencoded; charset=UTF-8", URLENCODED),
        (b"multipart/form-data; boundary=x", MULTIPART),
        (b"Multipart/Form-Data; boundary=x", MULTIPART),
        (b"multipart/mixed; boundary=x", ""),
    ],
)
def test_kinds(content_type: bytes | None, expected: str) -> None:
    """Content-Type alone tells, in any case of letters."""
    assert form_kind(content_type) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", {}),
        (b"&&&", {}),
        (b"a=1", {"a": "1"}),
        (b"a", {"a": ""}),
        (b"a=", {"a": ""}),
        (b"=1", {"": "1"}),
        (b"a=1&a=2", {"a": "2"}),
        (b"a[]=1&a[]=2", {"a": ["1", "2"]}),
        (b"a%5Bb%5D=1&a[c][]=2", {"a": {"b": "1", "c": ["2"]}}),
        (b"a=b=c", {"a": "b=c"}),
        (b"a=x+y%2Bz", {"a": "x y+z"}),
        (b"a=%C3%A4%FF", {"a": "\u00e4\ufffd"}),
        (b"a=\xc3\xa4", {"a": "\u00e4"}),
        (b"a=%00", {"a": "\0"}),
    ],
)
def test_urlencoded(body: bytes, expected: dict[str, object]) -> None:
    """Fields become the tree of wire protocol 3.1.4."""
    assert json.loads(parse_urlencoded(body)) == expected


def test_empty_tree_is_an_object() -> None:
    """A form without fields is `{}`, never nothing: old workers fail over an empty body."""
    assert parse_urlencoded(b"") == b"{}"
    assert parse_urlencoded(b"&") == b"{}"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"a=%", 400),
        (b"a=%4", 400),
        (b"%zz=1", 400),
        (b"a=1;b=2", 400),
        (b"a=1&a[b]=2", 400),
        (b"a&" * 10_001, 413),
        (b"a=" + b"a" * forms.URLENCODED_LENGTH_MAX, 413),
        (b"[" * 300_000, 413),
        (b"&".join(b"a[b][%d]" % number * 9 for number in range(9000)), 413),
    ],
)
def test_urlencoded_refused(body: bytes, status: int) -> None:
    """What cannot be read is the client's mistake; what is too much is told so."""
    with pytest.raises(FormRefused) as caught:
        parse_urlencoded(body)
    assert caught.value.status == status


@pytest.mark.parametrize("piece", [1, 2, 7, 1000])
def test_multipart(piece: int) -> None:
    """Fields and files come out the same however the body is cut."""
    content = b"line\r\n--b\r--bx\r\n-" * 20
    body = (
        field("a", b"1")
        + field("list[]", b"2")
        + part(
            'Content-Disposition: form-data; name="f[x]"; filename="C:\\dir\\n.txt"\r\nContent-Type: text/plain',
            content,
        )
        + field("list[]", "\u00e4".encode())
        + END
    )
    tree, sinks = read(body, piece=piece)
    assert tree == {"a": "1", "list": ["2", "\u00e4"]}
    assert [(sink.about, sink.content) for sink in sinks] == [(("f[x]", "n.txt", "text/plain"), content)]


def test_file_without_a_name_is_a_field() -> None:
    """A file input in which nothing was chosen is an empty value, as RoadRunner has it."""
    tree, sinks = read(part('Content-Disposition: form-data; name="f"; filename=""', b"") + END)
    assert tree == {"f": ""}
    assert sinks == []


def test_parts_without_a_name_are_left_out() -> None:
    """Nobody could look them up."""
    body = (
        part("Content-Type: text/plain", b"x") + part('Content-Disposition: attachment; name="a"', b"y") + END
    )
    assert read(body) == ({}, [])


def test_empty_form() -> None:
    """A form of no parts, and text before and behind the parts."""
    assert read(END) == ({}, [])
    assert read(field("a") + END + b"epilogue") == ({"a": "v"}, [])


@pytest.mark.parametrize(
    "preamble",
    [
        b"\r\n",
        b"This is a multi-part message in MIME format.\r\n",
        b"a\r\n--c\r\n- --b\r\n--\r\n",
        b"in the --b middle of a line\r\n",
        b"x" * 8192 + b"\r\n",
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_a_preamble_is_ignored(preamble: bytes, piece: int) -> None:
    """Text before the first boundary means nothing (RFC 2046, 5.1.1), in whatever pieces it comes."""
    file = part('Content-Disposition: form-data; name="f"; filename="n"', b"--b inside")
    tree, sinks = read(preamble + field("a") + file + END, piece=piece)
    assert tree == {"a": "v"}
    assert [sink.content for sink in sinks] == [b"--b inside"]


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("nothing", b"", 400),
        ("a preamble alone", b"text\r\n", 400),
        ("a boundary behind text", b"text" + field("a"), 400),
        ("a preamble too long", b"x" * 8193 + b"\r\n" + field("a") + END, 400),
        ("a preamble for ever", b"x" * 1_000_000, 400),
        ("no last boundary", field("a"), 400),
        ("cut in a header", b"--b\r\nContent-Dis", 400),
        ("another boundary", part("A: b", b"", boundary="c") + b"--c--\r\n", 400),
        ("bare line feeds", field("a").replace(b"\r\n", b"\n") + END, 400),
        ("no colon", b"--b\r\nabc\r\n\r\nx\r\n" + END, 400),
        ("space in a header name", part("Content Disposition: form-data", b"") + END, 400),
        ("contradicting fields", field("a") + field("a[b]") + END, 400),
        ("a long header", part("A: " + "x" * 9000, b"") + END, 400),
        ("many headers", part("\r\n".join(f"A{n}: b" for n in range(20)), b"") + END, 400),
        ("many parts", field("a") * 1001 + END, 413),
        ("long names", b"".join(field(f"{n}" + "[a]" * 2000) for n in range(60)) + END, 413),
    ],
)
def test_multipart_refused(name: str, body: bytes, status: int) -> None:
    """Malformed forms are 400, too much of a form is 413."""
    with pytest.raises(FormRefused) as caught:
        read(body)
    assert caught.value.status == status, name


def test_values_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are no files are kept in memory, so all of them together are limited; files are not."""
    monkeypatch.setattr(forms, "VALUES_LENGTH_MAX", 1000)
    with pytest.raises(FormRefused) as caught:
        read(field("a", b"x" * 600) + field("b", b"x" * 600) + END)
    assert caught.value.status == 413
    file = part('Content-Disposition: form-data; name="f"; filename="n"', b"x" * 5000)
    assert read(file + END)[1][0].content == b"x" * 5000


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary="' + b"b" * 300 + b'"',
    ],
)
def test_bad_boundaries(content_type: bytes) -> None:
    """Without a usable boundary a form cannot be read."""
    with pytest.raises(FormRefused) as caught:
        read(END, content_type)
    assert caught.value.status == 400


@given(
    start=st.sampled_from([b"--b\r\n", b"", b"text\r\n--b\r\n"]),
    body=st.binary(max_size=200),
    piece=st.integers(1, 50),
)
def test_any_bytes_as_a_form(start: bytes, body: bytes, piece: int) -> None:
    """Any bytes are a form or are refused, the same whatever the pieces."""

    def outcome(size: int) -> object:
        try:
            tree, sinks = read(start + body, piece=size)
        except FormRefused as error:
            return error.status
        return tree, [sink.content for sink in sinks]

    assert outcome(piece) == outcome(1 << 20)


@given(contents=st.lists(st.binary(max_size=60), max_size=5), piece=st.integers(1, 40))
def test_files_are_exact(contents: list[bytes], piece: int) -> None:
    """Every byte of a file arrives, as long as the boundary is not in it."""
    contents = [content for content in contents if b"--b" not in content]
    body = b"".join(
        part(f'Content-Disposition: form-data; name="f"; filename="{number}"', content)
        for number, content in enumerate(contents)
    )
    assert [sink.content for sink in read(body + END, piece=piece)[1]] == contents


PLAIN_NAMES = st.text(st.characters(exclude_characters=" []", exclude_categories=["Cs"]), max_size=8)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(fields=st.lists(st.tuples(PLAIN_NAMES, TEXTS), max_size=6))
def test_urlencoded_fields(fields: list[tuple[str, str]]) -> None:
    """Whatever a browser encodes comes out as it was: of plain names the last value."""
    assert json.loads(parse_urlencoded(urlencode(fields).encode())) == dict(fields)


@given(body=st.binary(max_size=60))
def test_any_bytes_as_an_urlencoded_form(body: bytes) -> None:
    """Any bytes are a tree or the client's mistake."""
    try:
        tree = json.loads(parse_urlencoded(body))
    except FormRefused:
        return
    assert isinstance(tree, dict)


@given(raw=st.binary(max_size=30).map(lambda raw: re.sub(rb"%(?![0-9A-Fa-f]{2})|[&;+]", b"", raw)))
def test_escapes_decode_as_the_library_decodes_them(raw: bytes) -> None:
    """Percent escapes mean what urllib makes of them, whatever stands between them."""
    body = b"a=" + re.sub(rb"%(?![0-9A-Fa-f]{2})", b"", raw)
    expected = unquote_to_bytes(body[2:]).decode("utf-8", "replace")
    assert json.loads(parse_urlencoded(body)) == {"a": expected}
