"""The environ of a request: what is remembered of a context's beginning changes nothing of what is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss_worker.protocol.errors import MessageError
from trailboss_worker.sdk.http import REMEMBERED_MAX
from trailboss_worker.wsgi import EnvironBuilder

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
CONTEXTS = st.fixed_dictionaries(
    {
        "remoteAddr": st.sampled_from(["127.0.0.1", "::1", "", 'a"b', "ü"]) | TEXTS,
        "protocol": st.sampled_from(["HTTP/1.1", "HTTP/2.0", "HTTP/1.0"]),
        "method": st.sampled_from(["GET", "POST", "OPTIONS"]) | TEXTS,
        "uri": st.builds(
            "{}://{}{}".format,
            st.sampled_from(["http", "https"]),
            st.sampled_from(["example.org", "example.org:8080", "[::1]:80", "", "ex?x", "münchen"]),
            st.sampled_from(["/", "", "*", "?q", "/a%20b", "/a/b?c=/d", "/ü", "//x", '/"', "/\\"]) | TEXTS,
        ),
        "headers": st.none() | st.dictionaries(TEXTS, st.lists(TEXTS, min_size=1, max_size=3), max_size=4),
        "cookies": st.just({}),
        "rawQuery": TEXTS,
        "parsed": st.just(False),
        "uploads": st.none(),
        "attributes": st.dictionaries(TEXTS, TEXTS, max_size=2),
    }
)


def written(value: dict[str, object], **more: bool) -> bytes:
    """A context as Trailboss writes it: no blanks, these keys in this order."""
    return json.dumps(value, separators=(",", ":"), **more).encode()  # type: ignore[arg-type]


def read(builder: EnvironBuilder, context: bytes) -> dict[str, object]:
    """The environ, its input read."""
    environ = builder.build(context, b"body", 0)
    return {**environ, "wsgi.input": environ["wsgi.input"].read(), "wsgi.errors": None}


def spaced(context: bytes) -> bytes:
    """The same JSON, not as Trailboss writes it."""
    return b"{ " + context[1:]


@settings(max_examples=500)
@given(
    value=CONTEXTS,
    other=CONTEXTS,
    escaped=st.booleans(),
    root=st.sampled_from(["", "/a"]),
    blank=st.booleans(),
)
def test_both_ways_give_the_same(
    value: dict[str, object], other: dict[str, object], escaped: bool, root: str, blank: bool
) -> None:
    """A context is read alike whole and in two parts, the first time and the next, whoever asked in between."""
    context = written(value, ensure_ascii=escaped)
    # With a blank in it, it is the same JSON, but none of ours: it is read as a whole.
    whole = read(EnvironBuilder(root), spaced(context))
    builder = EnvironBuilder(root)
    assert read(builder, context) == whole
    between = written(other, ensure_ascii=not escaped)
    read(builder, spaced(between) if blank else between)
    assert read(builder, context) == whole


USUAL = {
    "remoteAddr": "10.0.0.1",
    "protocol": "HTTP/1.1",
    "method": "GET",
    "uri": "http://example.org:8080/a?b",
    "headers": {"Accept": ["*/*"]},
    "cookies": {},
    "rawQuery": "b",
    "parsed": False,
    "uploads": None,
    "attributes": {},
}


def test_the_beginning_is_remembered_but_never_shared() -> None:
    """What an application writes into its environ is gone with its request."""
    builder = EnvironBuilder()
    first = builder.build(written(USUAL), b"", 0)
    assert len(builder._templates) == 1
    first.clear()
    assert builder.build(written(USUAL), b"", 0)["REMOTE_ADDR"] == "10.0.0.1"
    assert len(builder._templates) == 1


def test_what_is_remembered_has_a_bound() -> None:
    """Clients choose the Host: a server that has seen many of them has not grown."""
    builder = EnvironBuilder()
    for number in range(3 * REMEMBERED_MAX):
        uri = f"http://host-{number}.example/"
        assert builder.build(written({**USUAL, "uri": uri}), b"", 0)["HTTP_HOST"] == f"host-{number}.example"
    assert len(builder._templates) <= REMEMBERED_MAX


@pytest.mark.parametrize("cut", [0, 1, 20, 80, 100, -1])
def test_a_torn_context_is_refused(cut: int) -> None:
    """Half a context is an error, whether its beginning is known or not."""
    builder = EnvironBuilder()
    for _ in range(2):
        with pytest.raises((MessageError, LookupError)):
            builder.build(written(USUAL)[:cut], b"", 0)
        builder.build(written(USUAL), b"", 0)
