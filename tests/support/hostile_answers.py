"""Answers that no worker should give, of which no byte may reach a client: a table for tests of checks and of servers.

`hostile_answers` has name, flags, context and body of each. Whether the body agrees with the head matters for those that
announce a length: it is always five bytes long, but for interim statuses.
"""

from __future__ import annotations

import json

from trailboss_worker.protocol.frames import GOB, JSON, MSGPACK, PROTO, RAW
from trailboss_worker.protocol.http_message import encode_answer_proto

Hostile = tuple[str, int, bytes, bytes]


def in_json(status: object, headers: object) -> bytes:
    """A context in the JSON dialect, whatever is in it."""
    return json.dumps({"status": status, "headers": headers}).encode()


def in_proto(status: int, name: str, value: bytes) -> bytes:
    """A context with one header in the protobuf dialect."""
    return encode_answer_proto(status, {name: [value]})


def hostile_answers() -> list[Hostile]:
    """Name, flags, context and body of each."""
    rows: list[Hostile] = []

    def add(name: str, context: bytes, flags: int = JSON, body: bytes = b"12345") -> None:
        rows.append((f"{len(rows)} {name}", flags, context, body))

    controls = [number for number in [*range(32), 127] if number != 9]
    for number in controls:
        character = chr(number)
        add(f"0x{number:02x} in a value", in_json(200, {"X-A": ["a" + character + "b"]}))
        add(f"0x{number:02x} before a value", in_json(200, {"X-A": [character + "b"]}))
        add(f"0x{number:02x} behind a value", in_json(200, {"X-A": ["b" + character]}))
        add(f"0x{number:02x} in a protobuf value", in_proto(200, "X-A", b"a" + bytes([number]) + b"b"), PROTO)
        add(f"0x{number:02x} in a name", in_json(200, {"X" + character + "A": ["a"]}))
    for character in ' "(),/:;<=>?@[\\]{}\tÄ€':
        add(f"{character!r} in a name", in_json(200, {"X" + character: ["a"]}))
        add(f"{character!r} in a protobuf name", in_proto(200, character + "X", b"a"), PROTO)
    add("no name", in_json(200, {"": ["a"]}))
    add("a very long name", in_json(200, {"x" * 300: ["a"]}))
    for split in (
        "\r\nSet-Cookie: a=b",
        "\r\n\r\n<script>",
        "\n\nHTTP/1.1 200 OK",
        "\r\n folded",
        "\r\n\tfolded",
    ):
        add(f"splitting by {split!r}", in_json(200, {"Location": ["/" + split]}))
        add(f"splitting by the name {split!r}", in_json(200, {"Location" + split: ["/"]}))
        add(f"splitting by {split!r} in a cookie", in_json(200, {"Set-Cookie": ["a=b", "c=d" + split]}))
    for status in (-1, 0, 1, 99, 600, 700, 999, 1000, 99999, -200, 2**31, 2**63, 10**30):
        add(f"status {status}", in_json(status, {}))
    for status in (-1, 99, 600, 99999):
        add(f"status {status} in protobuf", encode_answer_proto(status, {}), PROTO)
    for text in ("200", "200 OK", 200.5, 2e2, True, None, [200], {"a": 1}, "", "\r\n"):
        add(f"status {text!r}", in_json(text, {}))
    for status in (100, 101, 102, 103, 199):
        add(f"interim {status} as the whole answer", in_json(status, {}), body=b"")
    lengths = (
        "+5",
        "-5",
        "5_0",
        "٥",
        "0x5",
        "5.0",
        "5e0",
        "5,5",
        "5, 5",
        "",
        "five",
        "5 5",
        "4",
        "6",
        "0",
        "05x",
    )
    for length in (*lengths, "99999999999999999999", "18446744073709551621", "-0", "½", "5;", "'5'"):
        add(f"Content-Length {length!r}", in_json(200, {"Content-Length": [length]}))
    add("two lengths", in_json(200, {"Content-Length": ["5", "6"]}))
    add("two equal lengths", in_json(200, {"Content-Length": ["5", "5"]}))
    add("two lengths by case", in_json(200, {"Content-Length": ["5"], "content-length": ["6"]}))
    add(
        "two lengths by case, the first wrong",
        in_json(200, {"CONTENT-LENGTH": ["7"], "content-length": ["5"]}),
    )
    add("length in protobuf", in_proto(200, "content-length", b"4"), PROTO)
    codings = (
        "gzip",
        "gzip, chunked",
        "chunked, chunked",
        "xchunked",
        "chunked;a",
        "chunked, identity",
        "deflate",
    )
    for coding in (*codings, "\x0bchunked", "chunked\x00", '"chunked"', "c"):
        add(f"Transfer-Encoding {coding!r}", in_json(200, {"Transfer-Encoding": [coding]}))
        add(
            f"transfer-encoding {coding!r} and a length",
            in_json(200, {"transfer-encoding": [coding], "Content-Length": ["5"]}),
        )
    add("Trailer that is no token", in_json(200, {"Trailer": ["a b"]}))
    add("Trailer with a line break", in_json(200, {"Trailer": ["a\r\nb"]}))
    for headers in ("text", 5, True, ["a"], [["a", "b"]], {"A": "text"}, {"A": 5}, {"A": [5]}, {"A": [None]}):
        add(f"headers {headers!r}", in_json(200, headers))
    broken: tuple[object, ...] = ({"A": {"a": "b"}}, {"A": [["b"]]}, {"A": [True]}, {"A": [{}]}, {"A": None})
    for values in broken:
        add(f"headers {values!r}", in_json(200, values))
    malformed = (
        b"{", b"}", b"[", b"[]", b"null", b"200", b'"text"', b'{"status":200', b"{'status':200}",
        b'{"status":200,}', b'{"status":NaN}', b'{"status":200}}', b'{"status":200}\x00', b"\xff\xfe",
        b'{"status":200,"headers":{"A":["\\ud800"]}}', b'{"status":200,"headers":{"A":["\xff"]}}', b"\x00",
        b"HTTP/1.1 200 OK", b"\r\n\r\n", b" ", b"<html>", b"[" * 100_000, b'{"a":' * 100_000,
        b'{"status":' + b"9" * 5000 + b"}",
    )  # fmt: skip
    for context in malformed:
        add(f"malformed {context[:20]!r}", context)
    for context in (
        b"\xff",
        b"\x08",
        b"\x12\x05a",
        b"\x0a\x03abc",
        b"{}",
        b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ):
        add(f"malformed protobuf {context!r}", context, PROTO)
    for flags in (RAW, MSGPACK, GOB):
        add(f"the unknown codec {flags:#x}", in_json(200, {}), flags)
    add("a head of two megabytes", in_json(200, {"X-A": ["a" * 2_000_000]}))
    add("too many headers", in_json(200, {f"X-{number}": ["a"] for number in range(1500)}))
    return rows
