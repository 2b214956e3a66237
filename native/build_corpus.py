"""Makes native/corpus and native/corpus_http: the seeds of the fuzz targets and input of the C tests.

The first comes from the recorded vectors: one file per distinct byte string of at most 4 KiB, named after the vector it
comes from, plus a few streams of several frames. The second holds the heads of the table of raw requests, the answers
among the vectors, and a few of each written here. `--check` compares instead of writing and exits with 1 where a folder
is not what it would write.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from types import ModuleType

HERE = os.path.dirname(os.path.abspath(__file__))
CORPUS = os.path.join(HERE, "corpus")
CORPUS_HTTP = os.path.join(HERE, "corpus_http")
TESTS = os.path.join(HERE, "..", "tests")
VECTORS = os.path.join(TESTS, "protocol", "vectors.json")
RAW_REQUESTS = os.path.join(TESTS, "supervisor", "plugins", "http", "raw_requests.py")
SIZE_BYTES_MAX = 4096
#: The part of a raw request that stands behind its first head is no matter of the C code.
HEAD_BYTES_MAX = 1024

HEADS = {
    "browser": b"GET /a/b%20c?x=1&y[]=2 HTTP/1.1\r\nHost: a.example:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux)\r\n"
    b"Accept: text/html,*/*;q=0.8\r\nAccept-Encoding: gzip, br\r\nConnection: keep-alive\r\nDNT: 1\r\n"
    b'Cookie: sid=abc; theme=dark; _ga=GA1.2.3\r\nIf-None-Match: "abc"\r\n\r\n',
    "form": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 5\r\n\r\n",
    "json_body": b"PUT /x HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 9\r\nx_y: z\r\n\r\n",
    "last": b"DELETE /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTE: trailers\r\nA: \t b \\ c\t\r\n\r\n",
    "twice": b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\na: c\r\nCookie: a=b; a=c; d=%41\r\n\r\n",
}
ANSWERS = {
    "php": b'{"status":200,"headers":{"Content-Type":["text\\/html; charset=UTF-8"],"Set-Cookie":["a=b","c=d; path=\\/"]}}',
    "spaced": b'{"headers": {"A": [" b\\t"], "Content-Length": ["5"]}, "status": 404}\n',
    "empty": b'{"status":500,"headers":[]}',
    "left_out": b'{"status":301,"headers":{"Connection":["close"],"Location":["\\/x"],"Date":["now"],"E":[]}}',
    "unusual": b'{"status":200,"headers":{"Trailer":["x"],"A":["\\u00e9"]}}',
}


def seeds() -> dict[str, bytes]:
    """File name -> content."""
    with open(VECTORS, encoding="utf-8") as file:
        document = json.load(file)
    found: dict[bytes, str] = {}
    for vector in document["vectors"]:
        data = bytes.fromhex(vector["hex"])
        if len(data) <= SIZE_BYTES_MAX:
            found.setdefault(data, vector["name"])
    for scenario in document["scenarios"]:
        for direction in ("server->worker", "worker->server"):
            lines = [step["hex"] for step in scenario["steps"] if step["dir"] == direction]
            data = bytes.fromhex("".join(lines))
            if len(data) <= SIZE_BYTES_MAX:
                found.setdefault(data, f"scenario_{scenario['name']}_{direction[:6]}")
    return {name: data for data, name in found.items()}


def raw_requests() -> ModuleType:
    """The table of raw requests that the tests of the web server use."""
    spec = importlib.util.spec_from_file_location("raw_requests", RAW_REQUESTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def http_seeds() -> dict[str, bytes]:
    """File name -> content."""
    found: dict[bytes, str] = {}
    for name, data in HEADS.items():
        found.setdefault(data, f"head_{name}")
    for name, data in ANSWERS.items():
        found.setdefault(data, f"answer_{name}")
    for case in raw_requests().CASES:
        data = case.data[: case.data.find(b"\r\n\r\n") + 4] if b"\r\n\r\n" in case.data else case.data
        if len(data) <= HEAD_BYTES_MAX:
            found.setdefault(data, "raw_" + re.sub("[^a-z0-9]+", "_", case.name.lower()))
    with open(VECTORS, encoding="utf-8") as file:
        document = json.load(file)
    for vector in document["vectors"]:
        context = bytes.fromhex(vector["decoded"].get("context_hex", ""))
        if context.startswith(b"{"):
            found.setdefault(context, f"context_{vector['name']}")
    return {name: data for data, name in found.items()}


def committed(folder: str) -> dict[str, bytes]:
    """The seeds there are."""
    contents = {}
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            contents[name] = file.read()
    return contents


def main(arguments: list[str]) -> int:
    """Writes the folders, or compares them; returns the exit code."""
    for folder, expected in ((CORPUS, seeds()), (CORPUS_HTTP, http_seeds())):
        if arguments == ["--check"]:
            if committed(folder) != expected:
                name = os.path.basename(folder)
                print(f"native/{name} is out of date: run `python native/build_corpus.py`", file=sys.stderr)
                return 1
            continue
        os.makedirs(folder, exist_ok=True)
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        for name, data in expected.items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
