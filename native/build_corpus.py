"""Makes native/corpus, corpus_http and corpus_guard: the seeds of the fuzz targets and input of the C tests.

The first comes from the recorded vectors: one file per distinct byte string of at most 4 KiB, named after the vector it
comes from, plus a few streams of several frames. The second holds the heads of the table of raw requests, the answers
among the vectors, and a few of each written here; the third what the guard reads: lines, environments, stat. `--check` compares instead of writing and exits with 1 where a folder
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
CORPUS_GUARD = os.path.join(HERE, "corpus_guard")
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

GUARD = {
    "lines": b"+4242\n@/sys/fs/cgroup/trailboss-1\n+4243\nxlost\n-4242\nxother\nq\n",
    "lines_quit": b"+17\n-17\nq\n@\nx\n",
    "lines_odd": b"\n+\n+0\n+1\n+2\n+4194303\n+4194304\n+-5\n+ 5\n-5x\nq5\n5\n+0000000000000005\nqq\n\0\n@a\0b\nx\0\n",
    "lines_part": b"+12\n+3",
    "lines_bytes": b"@/sys/fs/cgroup/\xff\xfe \xc3\xa9\nx\xff\nxlost\nxlost\n",
    "lines_many": b"".join(b"+%d\nxtoken-%d\n" % (number * 977, number) for number in range(2, 60)),
    "environ": b"PATH=/bin\0TRAILBOSS_TOKEN=lost\0TRAILBOSS_INSTANCE=0123456789abcdef\0",
    "environ_last": b"A=\0\0TRAILBOSS_TOKEN=other",
    "environ_not": b"X=TRAILBOSS_TOKEN=lost\0TRAILBOSS_TOKEN=lost2\0TRAILBOSS_TOKEN=los\0RAILBOSS_TOKEN=lost\0",
    "environ_empty": b"TRAILBOSS_TOKEN=\0TRAILBOSS_TOKEN\0",
    "stat": b"4242 (php) S 1 4242 4240 0 -1 4194560 1 0 0 0\n",
    "stat_zombie": b"4242 (php) Z 1 4242 4240 0 -1\n",
    "stat_name": b"7 (a) Z 1 (b\n) R) S 1 7 6 0 -1\n",
    "stat_short": b"7 (a) S 1",
    "stat_none": b"7 a S 1 2 3\n",
    "stat_outside": b"7 (a) S 0 0 0 0 -1\n",
    "stat_negative": b"7 (a) S 1 2 -3 0 -1\n",
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
    for folder, expected in ((CORPUS, seeds()), (CORPUS_HTTP, http_seeds()), (CORPUS_GUARD, GUARD)):
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
