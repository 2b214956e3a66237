#!/usr/bin/env python3
"""Measures the frame codec: batches in C and in plain Python, single frames, encoding, one job's conversation.

Rates are ratios within one run, so the first column to look at is the last one. Every figure is the best of a
few rounds. `--json` prints the same as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from types import ModuleType

from trailboss_worker.protocol import frames, frames_native, frames_reference
from trailboss_worker.protocol.conversation import ServerConversation, WorkerConversation
from trailboss_worker.protocol.payload import encode_answer

ROUNDS = 5
SMALL_FRAME = frames.encode_frame(b"ctxbody", flags=frames.RAW, options=(3,))
BUFFER_SIZE_BYTES = 64 * 1024


def seconds_per_call(work: Callable[[], object], seconds: float = 0.1) -> float:
    """The best average of a few rounds of about that many seconds."""
    count = 1
    while True:
        started = time.perf_counter()
        for _ in range(count):
            work()
        taken = time.perf_counter() - started
        if taken >= seconds / 4:
            break
        count *= 4
    best = taken / count
    count = max(1, int(seconds / best))
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter() - started) / count)
    return best


def batch_rate(codec: ModuleType) -> float:
    """Small frames a second in one core, in buffers of 64 KiB, one reused batch."""
    count = BUFFER_SIZE_BYTES // len(SMALL_FRAME)
    buffer = SMALL_FRAME * count
    batch = codec.FrameBatch()
    rate = count / seconds_per_call(lambda: codec.decode_batch(buffer, batch=batch))
    assert batch.count == count
    return rate


def sliced_rate(codec: ModuleType) -> float:
    """The same with a Frame made of each."""
    count = BUFFER_SIZE_BYTES // len(SMALL_FRAME)
    buffer = SMALL_FRAME * count
    decoder = codec.FrameDecoder()

    def work() -> None:
        decoder.feed(buffer)
        assert len(decoder.next_frames()) == count

    return count / seconds_per_call(work)


def single_seconds(codec: ModuleType) -> float:
    """Feeding one small frame and taking it out."""
    decoder = codec.FrameDecoder()
    feed, next_frame = decoder.feed, decoder.next_frame

    def work() -> None:
        feed(SMALL_FRAME)
        next_frame()

    return seconds_per_call(work)


def exec_seconds() -> tuple[float, float]:
    """One job in the server's conversation, and in the worker's."""
    server = ServerConversation()
    server.start(1)
    server.receive_data(frames.encode_frame(b'{"pid":2}', flags=frames.CONTROL))
    server.next_event()
    answer = encode_answer(b"", b"body")
    worker = WorkerConversation()
    worker.receive_data(frames.encode_frame(b'{"pid":1}', flags=frames.CONTROL))
    worker.next_event()
    worker.answer_pid(2)

    def serve() -> None:
        server.send_request(b"ctx", b"body", frames.RAW)
        server.receive_data(answer)
        server.next_event()

    def work() -> None:
        worker.receive_data(SMALL_FRAME)
        worker.next_event()
        worker.respond(b"", b"body")

    return seconds_per_call(serve), seconds_per_call(work)


def main(arguments: list[str]) -> int:
    """Prints the figures."""
    native_batch, reference_batch = batch_rate(frames_native), batch_rate(frames_reference)
    native_sliced, reference_sliced = sliced_rate(frames_native), sliced_rate(frames_reference)
    native_single, reference_single = single_seconds(frames_native), single_seconds(frames_reference)
    encode = seconds_per_call(lambda: frames.encode_frame(b"ctxbody", flags=frames.RAW, options=(3,)))
    reference_encode = seconds_per_call(
        lambda: frames_reference.encode_frame(b"ctxbody", flags=frames.RAW, options=(3,))
    )
    served, worked = exec_seconds()
    figures = {
        "batch decode, M frames/s": (
            native_batch / 1e6,
            reference_batch / 1e6,
            native_batch / reference_batch,
        ),
        "decode to Frame objects, M frames/s": (
            native_sliced / 1e6,
            reference_sliced / 1e6,
            native_sliced / reference_sliced,
        ),
        "one frame, feed + next_frame, ns": (
            native_single * 1e9,
            reference_single * 1e9,
            reference_single / native_single,
        ),
        "encode_frame, ns": (encode * 1e9, reference_encode * 1e9, reference_encode / encode),
        "one job, server's conversation, ns": (served * 1e9,),
        "one job, worker's conversation, ns": (worked * 1e9,),
    }
    if arguments == ["--json"]:
        print(json.dumps({"codec": frames.codec_name(), "figures": figures}, indent=2))
        return 0
    print(f"{'(codec in use: ' + frames.codec_name() + ')':<38}{'in use':>10}{'plain':>10}{'ratio':>9}")
    for name, values in figures.items():
        ratio = f"{values[2]:8.1f}x" if len(values) == 3 else ""
        print(f"{name:<38}" + "".join(f"{value:10.2f}" for value in values[:2]) + ratio)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
