"""Makes native/corpus from the recorded vectors: the seeds of the fuzz target and input of the C tests.

One file per distinct byte string of at most 4 KiB, named after the vector it comes from, plus a few streams of
several frames. `--check` compares instead of writing and exits with 1 where the folder is not what it would
write.
"""

from __future__ import annotations

import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
CORPUS = os.path.join(HERE, "corpus")
VECTORS = os.path.join(HERE, "..", "tests", "protocol", "vectors.json")
SIZE_BYTES_MAX = 4096


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


def committed() -> dict[str, bytes]:
    """The seeds there are."""
    contents = {}
    for name in os.listdir(CORPUS):
        with open(os.path.join(CORPUS, name), "rb") as file:
            contents[name] = file.read()
    return contents


def main(arguments: list[str]) -> int:
    """Writes the folder, or compares it; returns the exit code."""
    expected = seeds()
    if arguments == ["--check"]:
        if committed() != expected:
            print("native/corpus is out of date: run `python native/build_corpus.py`", file=sys.stderr)
            return 1
        return 0
    os.makedirs(CORPUS, exist_ok=True)
    for name in os.listdir(CORPUS):
        os.unlink(os.path.join(CORPUS, name))
    for name, data in expected.items():
        with open(os.path.join(CORPUS, name), "wb") as file:
            file.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
