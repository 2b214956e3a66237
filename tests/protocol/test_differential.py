"""The C reader and the plain Python one agree on everything, mutated vectors included."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss_worker.protocol.errors import FrameError

from .support import CODECS, VECTORS, Outcome, raw, read

NATIVE = CODECS["C"]
REFERENCE = CODECS["python"]
CORPUS = [raw(vector) for vector in VECTORS if len(vector["hex"]) < 4096]

cuts = st.lists(st.integers(0, 400), max_size=6)
caps = st.sampled_from([0, 1, 5, 100, 2**26, 2**32 - 1, 2**40])


@st.composite
def mutated_streams(draw: st.DrawFn) -> bytes:
    """Some vectors behind each other, with bits flipped, bytes changed, and pieces cut out or put in."""
    stream = bytearray(b"".join(draw(st.lists(st.sampled_from(CORPUS), min_size=1, max_size=4))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(stream) - 1)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if kind == "flip" and stream:
            stream[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del stream[at : at + draw(st.integers(1, 20))]
        elif kind == "insert":
            stream[at:at] = draw(st.binary(max_size=8))
        elif kind == "end":
            del stream[at:]
    return bytes(stream)


def pieces(stream: bytes, cut_points: list[int]) -> list[bytes]:
    """The stream, cut at some points."""
    marks = [0, *sorted(min(cut, len(stream)) for cut in cut_points), len(stream)]
    return [stream[start:stop] for start, stop in itertools.pairwise(marks)]


def both(chunks: list[bytes], *, eof: bool, cap: int, strict: bool) -> tuple[Outcome, Outcome]:
    """What each reader makes of it."""
    return (
        read(REFERENCE, chunks, eof=eof, cap=cap, strict=strict),
        read(NATIVE, chunks, eof=eof, cap=cap, strict=strict),
    )


@settings(max_examples=600, deadline=None)
@given(mutated_streams(), cuts, caps, st.booleans(), st.booleans())
def test_readers_agree(stream: bytes, cut_points: list[int], cap: int, eof: bool, strict: bool) -> None:
    """Both readers give the same frames, errors and needs, however the bytes are cut."""
    reference, native = both(pieces(stream, cut_points), eof=eof, cap=cap, strict=strict)

    assert reference == native
    assert reference == read(NATIVE, [stream], eof=eof, cap=cap, strict=strict)


@settings(max_examples=300, deadline=None)
@given(mutated_streams(), caps, st.booleans())
def test_batches_agree(stream: bytes, cap: int, strict: bool) -> None:
    """Both batch readers find the same frames at the same places."""
    reference = REFERENCE.decode_batch(stream, cap, strict)
    native = NATIVE.decode_batch(stream, cap, strict)

    assert list(reference) == list(native)
    assert (reference.count, reference.missing, reference.consumed, reference.error) == (
        *(native.count, native.missing, native.consumed, native.error),
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(mutated_streams(), st.binary(max_size=30)), max_size=5), st.booleans())
def test_batch_reading_agrees(chunks: list[bytes], pull_each: bool) -> None:
    """`next_frames` gives what repeated `next_frame` gives, and both decoders count alike."""
    decoders = [codec.FrameDecoder(2**26) for codec in (REFERENCE, NATIVE)]
    for chunk in chunks:
        standings = []
        for decoder in decoders:
            decoder.feed(chunk)
            try:
                found = decoder.next_frames() if pull_each else [decoder.next_frame()]
            except FrameError as error:
                found = [str(error)]
            standings.append((found, decoder.missing, decoder.buffered, decoder.pending_bytes()))
        assert standings[0] == standings[1]


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200),
    st.integers(0, 255),
    st.integers(0, 255),
    st.lists(st.integers(0, 2**32 - 1), max_size=10),
)
def test_round_trip(payload: bytes, flags: int, stream: int, options: list[int]) -> None:
    """What is encoded is decoded to the same fields, by all encoders and decoders."""
    frame = REFERENCE.encode_frame(payload, flags=flags, stream=stream, options=options)

    assert frame[: len(frame) - len(payload)] == NATIVE.encode_header_native(
        len(payload), flags, stream, tuple(options)
    )
    expected = ([(flags, stream, tuple(options), payload)], "eof_clean")
    assert (expected, expected) == both([frame], eof=True, cap=2**32, strict=True)
