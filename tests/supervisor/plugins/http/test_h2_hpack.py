"""HPACK that remembers says and understands exactly what the library does."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss.plugins.http.h2_hpack import RememberingDecoder, RememberingEncoder

NAMES = (b":status", b"date", b"server", b"set-cookie", b"x-a", b"x-b", b"content-length", b"vary")
VALUES = (b"", b"200", b"a", b"b" * 100, b"c" * 300, b"d" * 3000, b"e" * 5000, b"\xff")
FIELDS = st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES))
#: A list of fields, or a new size of the table.
STEPS = st.lists(st.lists(FIELDS, max_size=6) | st.sampled_from((0, 40, 200, 4096)), max_size=30)


@settings(deadline=None, max_examples=100)
@given(STEPS)
def test_what_is_encoded_is_what_the_library_decodes(steps: list[list[tuple[bytes, bytes]] | int]) -> None:
    """Whatever repeats, whatever the table's size becomes."""
    encoder, decoder = RememberingEncoder(), Decoder()
    for step in steps:
        if isinstance(step, int):
            encoder.header_table_size = step
        else:
            assert list(decoder.decode(encoder.encode(step), raw=True)) == step


@settings(deadline=None, max_examples=100)
@given(STEPS)
def test_what_the_library_encodes_is_decoded(steps: list[list[tuple[bytes, bytes]] | int]) -> None:
    """Blocks that are known and blocks that are not, with tables that fill, shrink and empty."""
    encoder, decoder = Encoder(), RememberingDecoder(65_536)
    for step in steps:
        if isinstance(step, int):
            if step != encoder.header_table_size:  # the library's encoder says nothing of a size set twice
                encoder.header_table_size = step
            continue
        block = encoder.encode(step)
        assert list(decoder.decode(block, raw=True)) == step


def test_a_known_block_is_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time a block that changes no table comes, nothing is worked out."""
    encoder, decoder = Encoder(), RememberingDecoder(65_536)
    fields = [(b":method", b"GET"), (b"x-a", b"1")]
    decoder.decode(encoder.encode(fields), raw=True)
    block = encoder.encode(fields)
    first = decoder.decode(block, raw=True)
    monkeypatch.setattr(Decoder, "decode", None)
    assert decoder.decode(block, raw=True) is first


def test_what_comes_once_stays_out_of_the_table() -> None:
    """Lengths and the like never push out what repeats; secrets are never in it."""
    encoder = RememberingEncoder()
    for number in range(100):
        encoder.encode([(b":status", b"200"), (b"content-length", b"%d" % number), (b"server", b"a")])
        encoder.encode([(b"set-cookie", b"secret")])
    assert list(encoder.header_table.dynamic_entries) == [(b"server", b"a")]


def test_memories_are_bounded() -> None:
    """However many different fields and blocks come."""
    encoder, decoder = RememberingEncoder(), RememberingDecoder(65_536)
    for number in range(2000):
        decoder.decode(encoder.encode([(b"x-%d" % number, b"1")]), raw=True)
        decoder.decode(encoder.encode([(b"x-%d" % (number % 300), b"2")]), raw=True)
    assert len(encoder._known) <= 128
    assert len(encoder._seen) <= 128
    assert len(decoder._known) <= 64
