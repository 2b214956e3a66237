"""What the protocol tests share: the vectors, the two frame readers, and one way to run a reader.

An outcome is what a reader makes of a stream: its frames, then how it stands. It is written as in the vectors
("frame", "eof_clean", "need_more (1 byte)", "error: truncated (header)"), so that expected and actual compare as text.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from trailboss_worker.protocol import frames_native, frames_reference
from trailboss_worker.protocol.errors import FrameError
from trailboss_worker.protocol.frames_reference import Frame

with open(os.path.join(os.path.dirname(__file__), "vectors.json"), encoding="utf-8") as _file:
    _DOCUMENT: dict[str, Any] = json.load(_file)

VECTORS: list[dict[str, Any]] = _DOCUMENT["vectors"]
BY_NAME = {vector["name"]: vector for vector in VECTORS}
SPLIT_WRITES: dict[str, Any] = _DOCUMENT["split_writes"]
SCENARIOS: list[dict[str, Any]] = _DOCUMENT["scenarios"]
FORM_CASES: list[dict[str, Any]] = _DOCUMENT["form_tree"]["cases"]
DECLARED_COUNTS = (_DOCUMENT["count"], _DOCUMENT["scenario_count"])

CODECS: dict[str, ModuleType] = {"C": frames_native, "python": frames_reference}
CAP = 64 * 1024 * 1024  # the setting that the expectations of the vectors assume

Outcome = tuple[list[Frame], str]


def raw(vector: dict[str, Any]) -> bytes:
    """The bytes of a vector."""
    return bytes.fromhex(vector["hex"])


def endings(vector: dict[str, Any]) -> list[bool]:
    """Whether the stream ends after the bytes: one answer, or both where the vector leaves it open."""
    return [vector["eof_after"]] if "eof_after" in vector else [True, False]


def read(
    codec: ModuleType, chunks: Iterable[bytes], *, eof: bool, cap: int = CAP, strict: bool = True
) -> Outcome:
    """Feeds chunk after chunk and pulls every frame as soon as it can be had."""
    decoder = codec.FrameDecoder(cap, strict)
    frames: list[Frame] = []
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while (frame := decoder.next_frame()) is not None:
                frames.append(frame)
        if eof:
            decoder.feed_eof()
            assert decoder.next_frame() is None
    except FrameError as error:
        return frames, f"error: {error.code}" + (f" ({error.place})" if error.code == "truncated" else "")
    if decoder.at_clean_eof:
        return frames, "eof_clean"
    return frames, need_more(decoder.missing)


def need_more(missing: int) -> str:
    """How the vectors write that bytes are missing."""
    return f"need_more ({missing} byte{'' if missing == 1 else 's'})"


def expected_outcome(vector: dict[str, Any], *, eof: bool) -> tuple[int, str]:
    """How many frames a vector holds and how a reader stands behind them."""
    text = vector["expected"]["parser"]
    count = len(re.findall(r"\bframe\b", text)) if text.startswith("frame") else 0
    if count:
        return count, "eof_clean" if eof else need_more(12)
    error = re.match(r"error: \w+", text)
    if error is None:
        return 0, text
    if error[0] == "error: truncated":
        return 0, text[: text.index(")") + 1]
    return 0, error[0]


def check_first_frame(vector: dict[str, Any], frame: Frame) -> None:
    """Compares a frame with the fields that the vector lists."""
    decoded = vector["decoded"]
    assert decoded["complete"]
    assert decoded["flags"] == frame.flags
    assert decoded["byte10"] == frame.stream
    assert decoded["options"] == list(frame.options)
    assert decoded["payload_len"] == len(frame.payload)
    if "payload_hex" in decoded:
        assert decoded["payload_hex"] == frame.payload.hex()
    else:
        assert decoded["payload_sha256"] == hashlib.sha256(frame.payload).hexdigest()


def only_frame(vector: dict[str, Any]) -> Frame:
    """The one frame that a vector holds (the first, if there are two)."""
    decoder = frames_reference.FrameDecoder(CAP)
    decoder.feed(raw(vector))
    frame = decoder.next_frame()
    assert frame is not None
    return frame


def names(*categories: str) -> list[str]:
    """The names of the vectors in some categories."""
    return [vector["name"] for vector in VECTORS if vector["category"] in categories]
