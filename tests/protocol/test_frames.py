"""Both frame readers against the recorded vectors, and what the vectors do not cover."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest

from trailboss_worker.protocol import frames, frames_native
from trailboss_worker.protocol.errors import FrameError, LocalProtocolError

from .support import (
    BY_NAME,
    CAP,
    CODECS,
    DECLARED_COUNTS,
    SCENARIOS,
    SPLIT_WRITES,
    VECTORS,
    check_first_frame,
    endings,
    expected_outcome,
    only_frame,
    raw,
    read,
)


def is_writable(vector: dict[str, Any]) -> bool:
    """Whether these bytes are one frame that a writer of this protocol produces."""
    decoded = vector["decoded"]
    return (
        decoded["complete"]
        and not decoded["trailing_bytes"]
        and decoded["version"] == 1
        and decoded["byte11"] == 0
        and 3 <= decoded["hl_words"] <= 13
    )


every_vector = pytest.mark.parametrize("name", list(BY_NAME))


@pytest.fixture(params=list(CODECS), name="codec")
def _codec(request: pytest.FixtureRequest) -> ModuleType:
    return CODECS[request.param]


def test_vectors_are_complete() -> None:
    """The committed file holds all the vectors and scenarios it announces."""
    assert DECLARED_COUNTS == (248, 13)
    assert (len(BY_NAME), len(SCENARIOS)) == DECLARED_COUNTS


@every_vector
def test_vector_whole(codec: ModuleType, name: str) -> None:
    """A vector fed in one piece gives the recorded outcome and fields."""
    vector = BY_NAME[name]
    for eof in endings(vector):
        frames_read, standing = read(codec, [raw(vector)], eof=eof)

        assert expected_outcome(vector, eof=eof) == (len(frames_read), standing)
        if frames_read:
            check_first_frame(vector, frames_read[0])


@every_vector
def test_vector_split_in_two(codec: ModuleType, name: str) -> None:
    """Every cut of a vector gives what the whole gives."""
    vector = BY_NAME[name]
    data = raw(vector)
    cuts: Sequence[int] = range(len(data) + 1)
    if len(data) > 8192:  # the 64 KiB one: around its edges, and around powers of two
        marks = [0, 12, 16, len(data), *(2**power for power in range(17))]
        cuts = sorted({cut for mark in marks for cut in range(mark - 3, mark + 4) if 0 <= cut <= len(data)})
    for eof in endings(vector):
        whole = read(codec, [data], eof=eof)
        for cut in cuts:
            assert whole == read(codec, [data[:cut], data[cut:]], eof=eof)


@every_vector
def test_vector_byte_by_byte(codec: ModuleType, name: str) -> None:
    """Single bytes give what the whole gives, and errors of the head come with the 12th byte."""
    vector = BY_NAME[name]
    data = raw(vector)
    for eof in endings(vector):
        whole = read(codec, [data], eof=eof)

        assert whole == read(codec, [data[at : at + 1] for at in range(len(data))], eof=eof)
    if whole[1].startswith("error") and "truncated" not in whole[1]:
        assert whole == read(codec, [data[:12]], eof=False)
        assert read(codec, [data[:11]], eof=False)[1] == "need_more (1 byte)"


@pytest.mark.parametrize("name", [vector["name"] for vector in VECTORS if is_writable(vector)])
def test_vector_encoded(name: str) -> None:
    """Building a frame from its fields gives the recorded bytes, wherever a writer may produce them at all."""
    vector = BY_NAME[name]
    frame = only_frame(vector)
    header: dict[str, Any] = {"flags": frame.flags, "stream": frame.stream, "options": frame.options}

    assert vector["hex"] == frames.encode_frame(frame.payload, **header).hex()
    head = frames.encode_header(len(frame.payload), **header)
    assert raw(vector) == head + frame.payload
    assert head == CODECS["python"].encode_header(len(frame.payload), **header)
    assert head == frames_native.encode_header_native(
        len(frame.payload), frame.flags, frame.stream, frame.options
    )


def test_complete_vectors_glued(codec: ModuleType) -> None:
    """All whole frames behind each other come out one by one, in order, and leave nothing behind."""
    chosen = [
        v for v in VECTORS if v["expected"]["parser"] == "frame" and v["decoded"]["trailing_bytes"] == 0
    ]
    stream = b"".join(raw(vector) for vector in chosen)
    expected = [only_frame(vector) for vector in chosen]

    for size in (1, 7, 13, 100, 4096, 5000, 65536, len(stream)):
        chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert (expected, "eof_clean") == read(codec, chunks, eof=True)
        decoder = codec.FrameDecoder(CAP)
        batches = []
        for chunk in chunks:
            decoder.feed(chunk)
            batches += decoder.next_frames()
        assert expected == batches
        assert decoder.buffered == 0
    decoder = codec.FrameDecoder(CAP)
    for at in range(0, len(stream), 1000):  # stored first, read afterwards
        decoder.feed(bytearray(stream[at : at + 1000]))
    assert expected == decoder.next_frames()


@pytest.mark.parametrize("name", [case["name"] for case in SPLIT_WRITES["cases"]])
def test_split_writes(codec: ModuleType, name: str) -> None:
    """What kills a PHP worker on pipes is no problem for our reader."""
    case = next(case for case in SPLIT_WRITES["cases"] if case["name"] == name)
    whole = read(codec, [raw(BY_NAME[SPLIT_WRITES["vector"]])], eof=True)

    assert len(whole[0]) == 1
    assert whole == read(codec, map(bytes.fromhex, case["chunks_hex"]), eof=True)


@pytest.mark.parametrize("name", ["go_version_0", "go_version_15", "hand_version_2"])
def test_lenient_version(codec: ModuleType, name: str) -> None:
    """Without the strict setting any version is taken."""
    vector = BY_NAME[name]
    frames_read, standing = read(codec, [raw(vector)], eof=True, strict=False)

    assert standing == "eof_clean"
    check_first_frame(vector, frames_read[0])


def test_payload_cap(codec: ModuleType) -> None:
    """The cap decides between too_large and waiting; a payload of exactly the cap is allowed."""
    just_64m = raw(BY_NAME["hand_huge_len_64m"])
    just_80m = raw(BY_NAME["hand_len_big_endian"])

    assert read(codec, [just_64m], eof=True, cap=CAP - 1)[1] == "error: too_large"
    assert read(codec, [just_64m], eof=True, cap=CAP)[1] == "error: truncated (payload)"
    assert read(codec, [just_80m], eof=False, cap=83_886_080)[1] == "need_more (83886075 bytes)"
    assert read(codec, [just_80m], eof=True, cap=83_886_080)[1] == "error: truncated (payload)"
    assert (
        read(codec, [raw(BY_NAME["hand_huge_len_max"])], eof=False, cap=2**70)[1]
        == "need_more (4294967292 bytes)"
    )


def test_announced_length_allocates_nothing(codec: ModuleType) -> None:
    """Memory follows what arrives, never what a header announces."""
    data = raw(BY_NAME["hand_huge_len_max"])
    decoder = codec.FrameDecoder(2**32)
    tracemalloc.start()
    try:
        for piece in (data, b"x" * 1000):
            decoder.feed(piece)
            assert decoder.next_frame() is None
        assert codec.decode_batch(data, 2**32).missing > 4_000_000_000
        assert tracemalloc.get_traced_memory()[1] < 256 * 1024
    finally:
        tracemalloc.stop()


def test_large_payload_in_pieces(codec: ModuleType) -> None:
    """A payload of 20 MiB that arrives in small pieces comes out whole, and what follows it as well."""
    payload = os.urandom(20 * 1024 * 1024)
    stream = frames.encode_frame(payload, options=(5,)) + frames.encode_frame(b"next", flags=frames.JSON)
    decoder = codec.FrameDecoder()
    got = []
    for at in range(0, len(stream), 60_000):
        decoder.feed(memoryview(stream)[at : at + 60_000])
        got += decoder.next_frames()

    assert [len(payload), 4] == [len(frame.payload) for frame in got]
    assert payload == got[0].payload
    assert got[1] == (frames.JSON, 0, (), b"next")
    assert decoder.buffered == 0


def test_error_is_final(codec: ModuleType) -> None:
    """After an error the decoder raises the same one for ever and keeps a bounded rest for the log."""
    vector = BY_NAME["hand_garbage_php_warning"]
    decoder = codec.FrameDecoder()
    decoder.feed(frames.encode_frame(b"good"))
    decoder.feed(raw(vector))

    assert decoder.next_frames() == [(0, 0, (), b"good")]
    with pytest.raises(FrameError) as first:
        decoder.next_frames()
    assert vector["expected"]["diagnostic_prefix"].encode() in first.value.excerpt
    assert decoder.pending_bytes(11) == b"PHP Warning"
    for _ in range(20):
        decoder.feed(b"y" * 10_000)
        with pytest.raises(FrameError) as again:
            decoder.next_frame()
        assert first.value is again.value
    assert decoder.missing == 0
    assert not decoder.at_clean_eof
    assert 60_000 < decoder.buffered <= 64 * 1024


def test_counters(codec: ModuleType) -> None:
    """`missing` and `buffered` say how the decoder stands, without a look at frames."""
    decoder = codec.FrameDecoder()
    frame = frames.encode_frame(b"x" * 100, options=(1, 2))
    assert (decoder.missing, decoder.buffered) == (12, 0)
    decoder.feed(frame[:5])
    assert (decoder.missing, decoder.buffered) == (7, 5)
    decoder.feed(frame[5:50])
    assert (decoder.missing, decoder.buffered) == (70, 50)
    assert decoder.next_frame() is None
    assert (decoder.missing, decoder.buffered) == (70, 50)
    decoder.feed(frame[50:] + frame[:3])
    assert (decoder.missing, decoder.buffered) == (0, 123)
    assert decoder.next_frame() is not None
    assert (decoder.missing, decoder.buffered) == (9, 3)
    decoder.feed(b"")
    assert (decoder.missing, decoder.buffered) == (9, 3)
    decoder.feed_eof()
    with pytest.raises(LocalProtocolError):
        decoder.feed(b"late")


def test_batch(codec: ModuleType) -> None:
    """One call finds every frame as offsets into the buffer, and says what follows them."""
    parts = [
        frames.encode_frame(bytes([n]) * n, flags=n, stream=n, options=range(n % 11)) for n in range(200)
    ]
    stream = b"".join(parts)
    batch = codec.FrameBatch()
    for buffer in (stream, bytearray(stream), memoryview(stream + parts[3][:20])):
        assert batch is codec.decode_batch(buffer, batch=batch)

        assert (200, len(stream), None) == (batch.count, batch.consumed, batch.error)
        assert list(batch) == [batch.frame(index) for index in range(len(batch))]
        for number, (flags, bits, options, start, length) in enumerate(batch):
            assert (number, number, tuple(range(number % 11))) == (flags, bits, options)
            assert bytes([number]) * number == bytes(buffer[start : start + length])
        assert batch.missing == (12 if len(buffer) == len(stream) else len(parts[3]) - 20)
    assert codec.decode_batch(stream + b"<br />\n<b>Warning</b>", batch=batch).error == "bad_crc"
    assert (200, len(stream), 0) == (batch.count, batch.consumed, batch.missing)
    assert (codec.decode_batch(b"", batch=batch).count, batch.missing) == (0, 12)
    with pytest.raises(IndexError):
        batch.frame(0)


def test_batch_grows(codec: ModuleType) -> None:
    """A buffer with more frames than the array holds is still read in full."""
    frame = frames.encode_frame(b"ctxbody", flags=frames.RAW, options=(3,))
    batch = codec.decode_batch(frame * 5000 + frame[:-1])

    assert (5000, 5000 * len(frame), 1) == (batch.count, batch.consumed, batch.missing)
    assert batch.frame(4999) == (frames.RAW, 0, (3,), 5000 * len(frame) - 7, 7)


@pytest.mark.parametrize(
    ("payload_length", "header"),
    [
        (1, {"options": range(11)}),
        (2**32, {}),
        (-1, {}),
        (1, {"flags": 256}),
        (1, {"stream": -1}),
        (1, {"options": [2**32]}),
        (1, {"options": [-1]}),
    ],
)
def test_encoder_refuses(payload_length: int, header: dict[str, Any]) -> None:
    """What a header cannot say is refused, naming the field, and nothing is sent."""
    for encode in (frames.encode_header, CODECS["python"].encode_header):
        with pytest.raises(LocalProtocolError):
            encode(payload_length, **header)
    if payload_length == 1:
        with pytest.raises(LocalProtocolError):
            frames.encode_frame(b"x", **header)


def test_native_encoder_refuses() -> None:
    """The C encoder itself refuses what it can be handed."""
    for length, options in ((1, tuple(range(11))), (2**32, ())):
        with pytest.raises(LocalProtocolError):
            frames_native.encode_header_native(length, 0, 0, options)


@pytest.mark.parametrize(
    ("setting", "preparation", "name"),
    [
        ("", "", "C"),
        ("1", "", "python"),
        ("", "import sys; sys.modules['trailboss_worker._frame'] = None;", "python"),
    ],
    ids=["usual", "asked for", "no C module"],
)
def test_choice_of_codec(setting: str, preparation: str, name: str) -> None:
    """The C codec is in use unless the environment asks for plain Python or the C module cannot be imported."""
    program = preparation + (
        "from trailboss_worker.protocol import frames; decoder = frames.FrameDecoder();"
        "decoder.feed(frames.encode_frame(b'x')); assert decoder.next_frame().payload == b'x';"
        "print(frames.codec_name(), frames.codec_fallback_reason() is None)"
    )
    environment = {**os.environ, "TRAILBOSS_PURE_PYTHON": setting}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.split() == [name, str(name == "C")]


def test_guard_page() -> None:
    """The C reader never looks past the buffer: every prefix of every vector ends right before forbidden memory."""
    program = os.path.join(os.path.dirname(__file__), "guard_page.py")
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False, timeout=100)

    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 10_000
