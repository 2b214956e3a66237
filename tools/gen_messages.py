#!/usr/bin/env python3
"""Generates `trailboss.messages` (the *_pb2.py and *_pb2.pyi files) from tools/proto/*.proto.

The generated files are committed, so neither building nor running Trailboss needs protoc; this script needs
grpcio-tools. `--check` compares instead of writing and exits with 1 where something differs.

Two things are done to what protoc gives. The sources are read as `trailboss/messages/NAME.proto`, so that one
imports another by the package's name and no other package's `status.proto` clashes with ours in the
process-wide pool. And the stamp of the generating version is taken out: it would refuse every protobuf
release but its own major version, although the descriptor inside the file suits all of them.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
PROTO_FOLDER = os.path.join(HERE, "proto")
PACKAGE = "trailboss.messages"
OUTPUT_FOLDER = os.path.join(HERE, "..", "supervisor", *PACKAGE.split("."))

_VERSION_STAMP = re.compile(
    r"^# Protobuf Python Version: .*\n"
    r"|^from google\.protobuf import runtime_version as _runtime_version\n"
    r"|^_runtime_version\.ValidateProtobufRuntimeVersion\([^)]*\)\n",
    re.MULTILINE,
)


def generate() -> dict[str, str]:
    """Returns file name -> content of everything that is generated."""
    from grpc_tools import protoc  # type: ignore[import-untyped]  # it ships no types

    well_known = os.path.join(os.path.dirname(protoc.__file__), "_proto")
    virtual = PACKAGE.replace(".", "/")
    sources = sorted(name for name in os.listdir(PROTO_FOLDER) if name.endswith(".proto"))
    with tempfile.TemporaryDirectory() as folder:
        code = protoc.main(
            [
                "protoc",
                f"--proto_path={virtual}={PROTO_FOLDER}",
                f"--proto_path={well_known}",
                f"--python_out={folder}",
                f"--pyi_out={folder}",
                *(f"{virtual}/{name}" for name in sources),
            ]
        )
        if code != 0:
            raise SystemExit(f"protoc failed with {code}")
        written = os.path.join(folder, virtual)
        return {
            name: without_version_stamp(os.path.join(written, name)) for name in sorted(os.listdir(written))
        }


def without_version_stamp(path: str) -> str:
    """The text of a generated file, without the check that ties it to one protobuf release."""
    with open(path, encoding="utf-8") as file:
        return _VERSION_STAMP.sub("", file.read())


def main(arguments: list[str]) -> int:
    """Writes the files, or compares them; returns the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: gen_messages.py [--check]", file=sys.stderr)
        return 2
    generated = generate()
    if arguments:
        different = [name for name, text in generated.items() if not is_same(name, text)]
        different += sorted(name for name in committed_names() if name not in generated)
        for name in different:
            print(f"{name} is not what tools/gen_messages.py generates: run it", file=sys.stderr)
        return 1 if different else 0
    for name, text in generated.items():
        with open(os.path.join(OUTPUT_FOLDER, name), "w", encoding="utf-8") as file:
            file.write(text)
    return 0


def committed_names() -> list[str]:
    """The generated files there are."""
    return [name for name in os.listdir(OUTPUT_FOLDER) if "_pb2." in name]


def is_same(name: str, text: str) -> bool:
    """Whether the committed file says the same."""
    try:
        with open(os.path.join(OUTPUT_FOLDER, name), encoding="utf-8") as file:
            committed = file.read()
    except FileNotFoundError:
        return False
    return committed == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
