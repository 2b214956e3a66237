"""The dialogues recorded between a server and released PHP workers, played against the real pool.

A small program says the worker's lines as they were recorded and compares what the pool says with the recorded lines of
the server, byte for byte. Jobs take no streamed answers, so a dialogue that streams ends where the first piece arrives:
with a typed outcome and another worker. The PHP half plays the same server's lines to real PHP workers.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from trailboss.workers.outcome import Answer, ExecFailed, Outcome, SoftError, WorkerDied
from trailboss.workers.pool import Pool
from trailboss_worker.protocol.frames import CONTROL, ERROR, STREAM, Frame, FrameDecoder
from trailboss_worker.protocol.payload import split_payload

from ..processes.workers.stage import Stage, open_stage
from .live import clean_environment

HERE = Path(__file__).resolve().parent
REPLAY = (sys.executable, "-I", "-S", str(HERE / "programs" / "replay_worker.py"))
SCENARIOS = json.loads((HERE.parent / "protocol" / "vectors.json").read_text())["scenarios"]
#: What a worker answers that wants to be replaced; written out here, so that the server's own idea of it is tested.
STOP_ANSWER = b'{"stop":true}'
#: Longest wait for anything here, seconds.
PATIENCE = 20.0


def frame_of(step: dict[str, str]) -> Frame:
    """The one frame of a step."""
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex(step["hex"]))
    (frame,) = decoder.next_frames()
    return frame


def requests_of(steps: list[dict[str, str]]) -> list[tuple[Frame, Frame]]:
    """The execs of a dialogue: each request of the server with the first frame that answered it."""
    pairs = []
    for step, following in itertools.pairwise(steps):
        frame = frame_of(step)
        if step["dir"] == "server->worker" and frame.options and not frame.flags & CONTROL:
            pairs.append((frame, frame_of(following)))
    return pairs


async def run_exec(pool: Pool, request: Frame) -> Outcome:
    """The outcome of one recorded request, given to the pool as a plugin would."""
    context, body = split_payload(request)
    with trio.fail_after(PATIENCE):
        try:
            return await pool.exec(context, body, request.flags, "a recorded request")
        except ExecFailed as failure:
            return failure


async def dialogue_pool(stage: Stage, tmp_path: Path, steps: list[dict[str, str]]) -> Pool:
    """A pool of one worker that plays `steps`; those after it are plain."""
    (tmp_path / "dialogue").write_text(json.dumps(steps))
    return await stage.pool(command=(*REPLAY, str(tmp_path / "dialogue"), str(tmp_path)))


def seen_by_worker(tmp_path: Path) -> list[str]:
    """What the playing worker noted."""
    return (tmp_path / "seen").read_text().splitlines()


@pytest.fixture(params=["pipes", "unix", "tcp"])
async def relayed_stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    """Pools over each relay; nothing may be left afterwards."""
    relay = {"pipes": "pipes", "unix": f"unix://{tmp_path}/relay.sock", "tcp": "tcp://127.0.0.1:0"}[
        request.param
    ]
    async with open_stage(relay) as opened:
        yield opened


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario["name"]))
async def test_a_recorded_dialogue(relayed_stage: Stage, tmp_path: Path, scenario: dict[str, Any]) -> None:
    """The pool says the recorded lines and makes of the recorded answers what they mean."""
    steps = scenario["steps"]
    pool = await dialogue_pool(relayed_stage, tmp_path, steps)
    streamed = False
    for request, answer in requests_of(steps):
        outcome = await run_exec(pool, request)
        context, body = split_payload(answer) if answer.options else (b"", answer.payload)
        if answer.stream & STREAM:
            streamed = True
            assert isinstance(outcome, WorkerDied)
            assert outcome.cause == "protocol violation"
            assert "answered with a stream" in str(outcome)
        elif answer.flags & ERROR:
            assert isinstance(outcome, SoftError)
            assert str(outcome) == body.decode()
        elif context == STOP_ANSWER:  # the same request, answered by the plain worker after it
            assert outcome == Answer(0, *split_payload(request))
        else:
            assert outcome == Answer(answer.flags, context, body)
    await relayed_stage.whole(pool)
    probe = Frame(4, 0, (1,), b"cb")
    if streamed:
        assert await run_exec(pool, probe) == Answer(0, b"c", b"b")
        (record,) = relayed_stage.deaths
        assert record.cause == "protocol violation"
        assert (record.phase, record.doing) == ("busy", "a recorded request")
        assert "complete" not in seen_by_worker(tmp_path)
        return
    with trio.fail_after(PATIENCE):
        await pool.stop(trio.current_time() + 5)
    assert relayed_stage.deaths == []
    from_server = [f"step {number}" for number, step in enumerate(steps) if step["dir"] == "server->worker"]
    assert [*from_server, "complete"] == seen_by_worker(tmp_path)


def described(frame: Frame) -> list[object]:
    """A frame as told_worker.php is told to give it."""
    context, body = split_payload(frame) if frame.options else (b"", frame.payload)
    return [frame.flags, frame.stream, context.hex(), body.hex()]


def told_answers(steps: list[dict[str, str]]) -> list[list[list[object]]]:
    """The worker's frames of a dialogue, one list for each request."""
    answers: list[list[list[object]]] = []
    for step in steps:
        frame = frame_of(step)
        if not frame.flags & CONTROL:
            if step["dir"] == "server->worker":
                answers.append([])
            else:
                answers[-1].append(described(frame))
    return answers


def needs_ping(steps: list[dict[str, str]]) -> bool:
    """Whether a dialogue holds more of streams than jobs workers know: PING, PONG and STOP."""
    return any(frame_of(step).stream & ~STREAM for step in steps)


PLAIN_SCENARIOS = [scenario for scenario in SCENARIOS if not needs_ping(scenario["steps"])]


@pytest.mark.php
@pytest.mark.parametrize("scenario", PLAIN_SCENARIOS, ids=lambda scenario: str(scenario["name"]))
def test_the_recorded_lines_to_a_php_worker(php: str, tmp_path: Path, scenario: dict[str, Any]) -> None:
    """A PHP worker that is sent the server's recorded lines sends the worker's recorded lines, the pid aside."""
    steps = scenario["steps"]
    (tmp_path / "answers").write_text(json.dumps(told_answers(steps)))
    said = b"".join(bytes.fromhex(step["hex"]) for step in steps if step["dir"] == "server->worker")
    finished = subprocess.run(
        [php, str(HERE / "programs" / "told_worker.php"), str(tmp_path / "answers")],
        input=said,
        env=clean_environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, b"")
    decoder = FrameDecoder()
    decoder.feed(finished.stdout)
    handshake, *frames = decoder.next_frames()
    recorded_handshake, *recorded = [frame_of(step) for step in steps if step["dir"] == "worker->server"]
    assert recorded_handshake[:3] == handshake[:3]
    assert list(json.loads(handshake.payload)) == ["pid"]
    assert recorded == frames
    assert decoder.buffered == 0


def test_every_kind_of_dialogue_is_played() -> None:
    """The recordings hold what the test above tells apart: eight plain dialogues and five that stream."""
    kinds = [any(frame_of(step).stream & STREAM for step in scenario["steps"]) for scenario in SCENARIOS]
    assert (kinds.count(False), kinds.count(True)) == (8, 5)
    assert len(PLAIN_SCENARIOS) == 9
    assert all(requests_of(scenario["steps"]) for scenario in SCENARIOS)
