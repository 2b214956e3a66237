"""Compares the plain HTTP message in C with the reference in Python on files: the corpus, or whatever a fuzzer found.

Every file is taken as a request's head and as an answer's context. What the C code finds plain must mean the same to the
reference: the same request, the same context, the same answer. Prints how many were plain; the first difference ends the
program with exit code 1.
"""

from __future__ import annotations

import os
import sys

from trailboss.plugins.http.answer import BadAnswer, parse_plain, parse_reference
from trailboss.plugins.http.context import ContextWriter, describe
from trailboss.plugins.http.h1 import HeadParser, Refusal
from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.native import is_native
from trailboss_worker.protocol.frames import JSON
from trailboss_worker.protocol.http_message import encode_request_json

SETTINGS = [(underscores, forms) for underscores in (True, False) for forms in (True, False)]
WRITERS = {
    (underscores, forms): ContextWriter(underscores=underscores, forms=forms)
    for underscores, forms in SETTINGS
}
LIMITS = (Limits(), Limits(request_line_bytes=40, head_bytes=200, header_count=3, body_bytes=10))


def head_difference(data: bytes, limits: Limits = LIMITS[0]) -> str | None:
    """Says how C and the reference read a head differently; "" where they agree, None where it is not plain."""
    native, reference = HeadParser(limits, "local:80"), HeadParser(limits, "local:80")
    request = native.parse_plain(data, 1.0)
    if request is None:
        return None
    try:
        expected = reference.parse_any(data, 1.0)
    except Refusal as refusal:
        return f"C reads {request!r}, the reference refuses: {refusal}"
    contexts = []
    for setting in SETTINGS:
        context = WRITERS[setting].write_plain(request)
        told = encode_request_json(describe(expected, underscores=setting[0]))
        if context is not None and context != told:
            contexts.append(f"{setting}: C tells {context!r}, the reference {told!r}")
    names = ("method", "target", "path", "query", "version", "host", "scheme", "remote_addr", "started")
    ours = {name: getattr(request, name) for name in names}
    theirs = {name: getattr(expected, name) for name in names}
    for name in {key.lower() for key, _ in expected.headers} | {b"x-none"}:
        ours[name.decode()], theirs[name.decode()] = request.header(name), expected.header(name)
    ours["headers"], theirs["headers"] = request.headers, expected.headers
    for name in ("length", "keep_alive", "expects_continue"):
        ours[name], theirs[name] = getattr(native, name), getattr(reference, name)
    if ours != theirs:
        contexts.append(f"C reads {ours}, the reference {theirs}")
    return "\n".join(contexts)


def answer_difference(data: bytes) -> str | None:
    """Says how C and the reference read an answer differently; "" where they agree, None where it is not plain."""
    head = parse_plain(data, JSON)
    if head is None:
        return None
    try:
        expected = parse_reference(data, JSON)
    except BadAnswer as error:
        return f"C reads {head}, the reference refuses: {error}"
    if head != expected:
        return f"C reads {head}, the reference {expected}"
    return ""


def main(folders: list[str]) -> int:
    """Compares all files of some folders; returns the exit code."""
    if not is_native:
        print("there is no C code to compare; run pip install . first", file=sys.stderr)
        return 1
    heads = answers = 0
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                data = file.read()
            found = [head_difference(data, limits) for limits in LIMITS]
            heads += sum(difference is not None for difference in found)
            found.append(answer_difference(data))
            answers += found[-1] is not None
            for difference in found:
                if difference:
                    print(f"{path}:\n{difference}")
                    return 1
    print(f"C and Python agree about {heads} plain heads and {answers} plain answers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
