"""FORMS: bodies of browsers to the trees that workers get instead (wire protocol 3.1.4).

Which bodies are forms is told by Content-Type alone. An urlencoded one is parsed at once and whole; a multipart one is
fed piece by piece, so that a body of a gigabyte never lies in memory and the reactor keeps its turn between pieces.
The fields of a form are few and short: their number, the size of their headers and of all their values are limited.
Files are not kept here; each is handed on to a sink as it comes.

What cannot be read is a FormRefused with the status that the client gets. All of this is pure, but for the sinks.
"""

from __future__ import annotations

import logging
import re
from binascii import a2b_qp
from collections.abc import Callable
from typing import Final, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from trailboss_worker.protocol.http_message import FormTreeError, build_form_tree, encode_form_tree

__all__ = [
    "EMPTY_TREE",
    "MULTIPART",
    "URLENCODED",
    "URLENCODED_LENGTH_MAX",
    "FileSink",
    "FormRefused",
    "MultipartForm",
    "form_kind",
    "parse_urlencoded",
]

EMPTY_TREE: Final = b"{}"
URLENCODED: Final = "urlencoded"
MULTIPART: Final = "multipart"

URLENCODED_LENGTH_MAX: Final = 10 * 1024 * 1024
"""Bytes of an urlencoded form; Go's limit, and so RoadRunner's."""
FIELDS_MAX: Final = 10_000
"""Fields of an urlencoded form."""
NAMES_LENGTH_MAX: Final = 256 * 1024
"""Characters of all names of a form: they are taken apart one by one."""
PARTS_MAX: Final = 1000
"""Parts of a multipart form."""
PREAMBLE_LENGTH_MAX: Final = 8192
"""Bytes before the first boundary, which mean nothing (RFC 2046, 5.1.1)."""
PART_HEADERS_MAX: Final = 16
PART_HEADER_LENGTH_MAX: Final = 8192
VALUES_LENGTH_MAX: Final = 32 * 1024 * 1024
"""Bytes of all values of a multipart form that are no files."""

_BAD_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# What is wrong with a form is told to whoever sent it; a client must not be able to write to our log.
logging.getLogger("python_multipart.multipart").disabled = True


class FormRefused(Exception):
    """A form that cannot be read: 400, or 413 where it is too much."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FileSink(Protocol):
    """Takes one uploaded file."""

    def write(self, data: bytes) -> None:
        """Take the next piece."""

    def close(self) -> None:
        """No more comes."""


OpenFile = Callable[[str, str, str], FileSink]
"""Called with field name, file name and media type of a file that begins."""


def form_kind(content_type: bytes | None) -> str:
    """URLENCODED, MULTIPART, or "" for a body that is no form."""
    if content_type is None:
        return ""
    text = content_type.lower()
    if b"application/x-www-form-urlencoded" in text:
        return URLENCODED
    return MULTIPART if b"multipart/form-data" in text else ""


def parse_urlencoded(body: bytes) -> bytes:
    """The tree of an urlencoded form, as JSON. Raises FormRefused."""
    if not body:
        return EMPTY_TREE
    if len(body) > URLENCODED_LENGTH_MAX:
        raise FormRefused(413, f"a form of {len(body)} bytes; the limit is {URLENCODED_LENGTH_MAX}")
    if body.count(b"&") >= FIELDS_MAX:
        raise FormRefused(413, f"a form of more than {FIELDS_MAX} fields")
    if b";" in body:
        raise FormRefused(400, "a form with a semicolon between its fields")
    if _BAD_PERCENT.search(body) is not None:
        raise FormRefused(400, "a form with an invalid percent escape")
    fields: dict[str, list[str]] = {}
    for piece in body.replace(b"+", b" ").split(b"&"):
        if piece:
            name, _, value = piece.partition(b"=")
            fields.setdefault(_decoded(name), []).append(_decoded(value))
    return _tree(fields)


def _decoded(raw: bytes) -> str:
    """Text of valid percent escapes: quoted-printable is the same but for its sign, and C decodes it 25 times as fast."""
    if b"%" in raw:
        raw = a2b_qp(raw.replace(b"=", b"=3D").replace(b"%", b"="))
    return raw.decode("utf-8", "replace")


def _tree(fields: dict[str, list[str]]) -> bytes:
    if sum(map(len, fields)) > NAMES_LENGTH_MAX:
        raise FormRefused(413, f"a form whose names have more than {NAMES_LENGTH_MAX} characters")
    try:
        return encode_form_tree(build_form_tree(fields.items()))
    except FormTreeError as error:
        raise FormRefused(400, str(error)) from None


class MultipartForm:
    """A multipart form that is being read: `feed` its body in pieces, then `finish`."""

    def __init__(self, content_type: bytes, open_file: OpenFile) -> None:
        """Raises FormRefused where the boundary is missing or no good."""
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise FormRefused(400, "a multipart form without its boundary")
        self._open_file = open_file
        self._first_boundary = b"--" + boundary
        #: What has come of the preamble; None behind it.
        self._preamble: bytearray | None = bytearray()
        self._fields: dict[str, list[str]] = {}
        self._parts = 0
        self._values_length = 0
        self._name = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._field = ""
        self._content: list[bytes] | None = None
        self._sink: FileSink | None = None
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._on_name,
                    "on_header_value": self._on_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._on_data,
                    "on_part_end": self._end,
                },
                max_header_count=PART_HEADERS_MAX,
                max_header_size=PART_HEADER_LENGTH_MAX,
            )
        except FormParserError as error:
            raise FormRefused(400, f"a multipart form with a bad boundary: {error}") from None

    def feed(self, data: bytes) -> None:
        """Read the next piece of the body. Raises FormRefused, and OSError of the sinks."""
        if self._preamble is not None:
            data = self._after_preamble(self._preamble, data)
            if not data:
                return
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise FormRefused(400, f"a malformed multipart form: {error}") from None

    def _after_preamble(self, preamble: bytearray, data: bytes) -> bytes:
        """Return what there is from the first boundary on. Raises FormRefused."""
        preamble += data
        boundary = self._first_boundary
        start = 0 if preamble.startswith(boundary) else preamble.find(b"\r\n" + boundary)
        if 0 <= start <= PREAMBLE_LENGTH_MAX:
            self._preamble = None
            return data if not start and len(data) == len(preamble) else bytes(preamble[start:])
        if len(preamble) > PREAMBLE_LENGTH_MAX + len(boundary) + 2:
            raise FormRefused(
                400, f"a multipart form without its boundary in the first {PREAMBLE_LENGTH_MAX} bytes"
            )
        return b""

    def finish(self) -> bytes:
        """The tree of the fields that are no files, as JSON. Raises FormRefused, also for a form that ends too early."""
        if self._parser.state is not MultipartState.END:
            raise FormRefused(400, "a multipart form that ends before its last boundary")
        return _tree(self._fields)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise FormRefused(413, f"a multipart form of more than {PARTS_MAX} parts")
        self._headers = {}
        self._content = None
        self._sink = None

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"")
        if kind != b"form-data" or not name:
            return  # nothing that a worker could look up
        self._field = name.decode("utf-8", "replace")
        file_name = options.get(b"filename", b"")
        if file_name:
            mime = self._headers.get(b"content-type", b"").decode("latin-1")
            self._sink = self._open_file(self._field, file_name.decode("utf-8", "replace"), mime)
        else:
            self._content = []

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._sink is not None:
            self._sink.write(data[start:end] if start or end != len(data) else data)
        elif self._content is not None:
            self._values_length += end - start
            if self._values_length > VALUES_LENGTH_MAX:
                raise FormRefused(413, f"values of more than {VALUES_LENGTH_MAX} bytes in a multipart form")
            self._content.append(data[start:end])

    def _end(self) -> None:
        if self._sink is not None:
            self._sink.close()
        elif self._content is not None:
            value = b"".join(self._content).decode("utf-8", "replace")
            self._fields.setdefault(self._field, []).append(value)
