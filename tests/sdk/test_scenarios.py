"""The recorded dialogues with released PHP workers, replayed against the Python worker.

What the server said is sent byte for byte, what the worker said is compared by meaning: pids differ, our worker
looks for a stream's STOP before every chunk where PHP on pipes looks at every fifth, and a context of a stream
travels once. The recorded answers are what the worker program is told to give.
"""

from __future__ import annotations

import json
import pathlib

import pytest

from trailboss_worker.protocol.frames import CONTROL, PONG, STOP, STREAM, Frame, FrameDecoder
from trailboss_worker.protocol.payload import split_payload

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "protocol" / "vectors.json"
SCENARIOS = json.loads(VECTORS.read_text())["scenarios"] if VECTORS.exists() else []
assert len(SCENARIOS) == 13


def frames_of(data: bytes) -> list[Frame]:
    decoder = FrameDecoder()
    decoder.feed(data)
    return decoder.next_frames()


def frame_of(step: dict[str, str]) -> Frame:
    (frame,) = frames_of(bytes.fromhex(step["hex"]))
    return frame


def answers_of(steps: list[dict[str, str]]) -> list[list[Frame]]:
    """The recorded answer frames, one list for each request."""
    answers: list[list[Frame]] = []
    for step in steps:
        frame = frame_of(step)
        if step["dir"] == "server->worker":
            if not frame.flags & CONTROL and not frame.stream & (PONG | STOP):
                answers.append([])
        elif not frame.flags & CONTROL:
            answers[-1].append(frame)
    return answers


def meaning(frame: Frame) -> tuple[int, int, bytes, bytes]:
    context, body = split_payload(frame) if frame.options else (b"", frame.payload)
    return frame.flags, frame.stream, context, body


def is_stop(step: dict[str, str]) -> bool:
    return step["dir"] == "server->worker" and bool(frame_of(step).stream & STOP)


@pytest.mark.parametrize("relay", ["pipes", "unix"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_a_recorded_dialogue(serve_program, tmp_path, scenario, relay):
    """The worker's side of each dialogue means what the PHP worker's meant, up to the exit code."""
    steps = scenario["steps"]
    described = [
        [[*meaning(frame)[:2], *(part.hex() for part in meaning(frame)[2:])] for frame in answer]
        for answer in answers_of(steps)
    ]
    (tmp_path / "answers").write_text(json.dumps({"answers": described, "endless": any(map(is_stop, steps))}))
    worker = serve_program("replay.py", str(tmp_path / "answers"), relay=relay)
    stopped = inside_stream = False
    for step in steps:
        recorded = frame_of(step)
        if step["dir"] == "server->worker":
            worker.send(bytes.fromhex(step["hex"]))
            stopped = stopped or is_stop(step)
        elif recorded.flags & CONTROL:
            frame = worker.frame()
            assert (recorded.flags, recorded.stream, recorded.options) == (
                frame.flags,
                frame.stream,
                frame.options,
            )
            assert {"pid": worker.process.pid} == json.loads(frame.payload)
        elif stopped and recorded.stream & STREAM:
            continue  # how many chunks follow a STOP is up to the worker
        else:
            frame = next_after_stop(worker) if stopped else worker.frame()
            assert_same_meaning(recorded, frame, relay, inside_stream)
            inside_stream = bool(recorded.stream & STREAM)
            stopped = False
    assert scenario["exit_code_after_stdin_close"] == worker.exit_code()
    assert worker.rest() == b""


def next_after_stop(worker) -> Frame:
    while (frame := worker.frame()).stream & STREAM:
        pass
    return frame


def assert_same_meaning(recorded: Frame, frame: Frame, relay: str, inside_stream: bool) -> None:
    flags, stream, context, body = meaning(recorded)
    seen_flags, seen_stream, seen_context, seen_body = meaning(frame)
    assert (flags, body) == (seen_flags, seen_body)
    assert seen_context == context or (inside_stream and seen_context == b"")
    assert (stream if relay == "pipes" else stream & STREAM) == seen_stream
