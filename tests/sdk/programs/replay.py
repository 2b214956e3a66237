"""Gives recorded answers, one list of frames for each request, by the verbs an application would use."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator

from trailboss_worker.protocol.control import STOP_ANSWER_CONTEXT
from trailboss_worker.protocol.frames import ERROR, STREAM
from trailboss_worker.sdk import Worker

recorded = json.loads(pathlib.Path(sys.argv[1]).read_text())
answers = [
    [(flags, stream, bytes.fromhex(context), bytes.fromhex(body)) for flags, stream, context, body in answer]
    for answer in recorded["answers"]
]


def bodies(answer: list[tuple[int, int, bytes, bytes]]) -> Iterator[bytes]:
    for _, _, _, body in answer[:-1]:
        yield body
    while recorded["endless"]:
        yield b"more"
    return answer[-1][3]  # type: ignore[return-value]


with Worker() as worker:
    for answer in answers:
        assert worker.wait_payload() is not None
        flags, stream, context, body = answer[0]
        if flags & ERROR:
            worker.error(body.decode())
        elif context == STOP_ANSWER_CONTEXT:
            worker.stop()
        elif len({part[2] for part in answer} - {b""}) > 1:  # interim answers: each has its own context
            for flags, stream, context, body in answer:
                if stream & STREAM:
                    worker.respond_part(body, context, flags)
                else:
                    worker.respond(body, context, flags)
        elif stream & STREAM:
            worker.stream(bodies(answer), context, flags)
        else:
            worker.respond(body, context, flags)
    assert worker.wait_payload() is None
