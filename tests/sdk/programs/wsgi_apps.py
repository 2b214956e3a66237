"""WSGI applications for the tests, each an attribute of this module."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from wsgiref.validate import validator

LOG = os.environ.get("APP_LOG", os.devnull)
TEXT = [("Content-Type", "text/plain")]


def log(text):
    with open(LOG, "a") as file:
        file.write(text + "\n")


def show(environ, start_response):
    """Answers with its environ as JSON."""
    shown = {key: value for key, value in environ.items() if isinstance(value, (str, int, bool))}
    shown["wsgi.version"] = list(environ["wsgi.version"])
    shown["input"] = environ["wsgi.input"].read(-1).decode("latin-1")
    shown["attributes"] = environ.get("trailboss.attributes")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(shown).encode()]


def measure(environ, start_response):
    """Answers with length and digest of the body."""
    start_response("200 OK", TEXT)
    body = environ["wsgi.input"].read()
    return [json.dumps([environ["CONTENT_LENGTH"], hashlib.sha256(body).hexdigest()]).encode()]


class Text(str):  # noqa: SLOT000
    """As frameworks mark texts that are safe."""


class Data(bytes):
    pass


class Chunks:
    """An iterable that says when it is closed."""

    def __init__(self, chunks, name="chunks"):
        self.chunks = iter(chunks)
        self.name = name

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.chunks)

    def close(self):
        log(f"{self.name} closed")


def _raising():
    yield b"first"
    raise RuntimeError("in the middle")


def _endless():
    number = 0
    while True:
        yield b"chunk %d\n" % number
        number += 1


def _slow():
    yield b"one"
    while not os.path.exists(LOG + ".go"):
        time.sleep(0.005)
    yield b"two"


def paths(environ, start_response):
    """Answers by path."""
    path = environ["PATH_INFO"]
    if path == "/hello":
        start_response("200 OK", TEXT)
        return [b"hello"]
    if path == "/several":
        start_response("200 OK", TEXT)
        return (b"a", b"b", b"c")
    if path == "/empty":
        start_response("204 No Content", [])
        return []
    if path == "/nothing":
        start_response("200 OK", TEXT)
        return Chunks([b"", b""])
    if path == "/chunks":
        start_response("200 OK", TEXT)
        return Chunks([b"one", b"", b"two", b"three"])
    if path == "/many":
        start_response("200 OK", TEXT)
        return (b"%d," % number for number in range(40))
    if path == "/slow":
        start_response("200 OK", TEXT)
        return _slow()
    if path == "/measured":
        start_response("200 OK", [*TEXT, ("Content-Length", "5")])
        return Chunks([b"12345"], "measured")
    if path == "/too-much":
        start_response("200 OK", [*TEXT, ("Content-Length", "5")])
        return Chunks([b"12345", b"678"], "too much")
    if path == "/too-much-in-parts":
        start_response("200 OK", [*TEXT, ("Content-Length", "5")])
        return Chunks([b"123", b"456", b"789"], "parts")
    if path == "/odd":
        start_response(Text("200 OK"), ([Text("X-A"), Text(value)] for value in "ab"))
        return [Data(b"odd")]
    if path == "/large":
        start_response("200 OK", TEXT)
        return [bytes(3_000_000)]
    if path == "/large-given":
        start_response("200 OK", [*TEXT, ("content-length", "3000000")])
        return [bytes(3_000_000)]
    if path == "/write":
        write = start_response("200 OK", TEXT)
        write(b"written ")
        write(b"")
        return [b"and returned"]
    if path == "/file":
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the gateway closes it
        file.write(b"x" * 700_000)
        file.seek(0)
        start_response("200 OK", TEXT)
        return environ["wsgi.file_wrapper"](file, 4096)
    if path == "/raise":
        raise ValueError("on purpose")
    if path == "/raise-late":
        start_response("200 OK", TEXT)
        return _raising()
    if path == "/raise-before-chunk":
        start_response("200 OK", TEXT)
        return Chunks(iter(lambda: 1 // 0, None), "raising")
    if path == "/replace":
        start_response("200 OK", TEXT)
        try:
            raise LookupError("handled")
        except LookupError:
            start_response("404 Not Found", [*TEXT, ("X-Replaced", "yes")], sys.exc_info())
        return [b"replaced"]
    if path == "/replace-late":
        write = start_response("200 OK", TEXT)
        write(b"out")
        try:
            raise LookupError("too late")
        except LookupError:
            start_response("500 Oops", TEXT, sys.exc_info())
        return [b"never"]
    if path == "/twice":
        start_response("200 OK", TEXT)
        start_response("200 OK", TEXT)
        return [b"never"]
    if path == "/close-raises":
        start_response("200 OK", TEXT)
        chunks = Chunks([b"fine"])
        chunks.close = lambda: 1 // 0
        return chunks
    if path == "/endless":
        start_response("200 OK", TEXT)
        return Chunks(_endless(), "endless")
    if path == "/exit":
        sys.exit(7)
    if path == "/errors":
        environ["wsgi.errors"].write("a word to the log\n")
        environ["wsgi.errors"].writelines(["and ", "more\n"])
        environ["wsgi.errors"].flush()
        print("printed")
        start_response("200 OK", TEXT)
        return [b"said"]
    if path == "/headers":
        headers = [
            ("Set-Cookie", "a=1"),
            ("Set-Cookie", "b=2"),
            ("Connection", "keep-alive"),
            ("Transfer-Encoding", "chunked"),
            ("X-Text", "gr\u00fc\u00df"),
            ("X-Utf8", "gr\u00fc\u00df".encode().decode("latin-1")),
        ]
        start_response("200 OK", headers)
        return [b""]
    raise AssertionError(f"no such path: {path}")


#: What is wrong with an answer -> an application that gives it.
WRONG = {
    "status": lambda start: start("OK", TEXT),
    "status-number": lambda start: start(200, TEXT),
    "status-range": lambda start: start("999 No", TEXT),
    "line-break": lambda start: start("200 OK", [("X-A", "a\r\nX-B: b")]),
    "zero": lambda start: start("200 OK", [("X-A", "a\0")]),
    "name": lambda start: start("200 OK", [("X A", "a")]),
    "empty-name": lambda start: start("200 OK", [("", "a")]),
    "bytes": lambda start: start("200 OK", [(b"X-A", b"a")]),
    "beyond": lambda start: start("200 OK", [("X-A", "\u20ac")]),
    "triple": lambda start: start("200 OK", [("X-A", "a", "b")]),
    "number": lambda start: start("200 OK", [5]),
    "dict": lambda start: start("200 OK", {"X-A": "a"}),
    "none": lambda start: None,
}


def wrong(environ, start_response):
    """Gives the wrong answer that the query names."""
    WRONG[environ["QUERY_STRING"]](start_response)
    return [b"body"]


def wrong_chunk(environ, start_response):
    """Gives text where bytes are needed, in the way that the query names."""
    start_response("200 OK", TEXT)
    how = environ["QUERY_STRING"]
    if how == "list":
        return ["text"]
    if how == "several":
        return [b"a", "text"]
    if how == "generator":
        return (chunk for chunk in ["text"])
    return None


class Factory:
    """Holds a factory."""

    @staticmethod
    def make():
        return paths


validated = validator(show)
validated_paths = validator(paths)
application = paths
not_callable = 5
