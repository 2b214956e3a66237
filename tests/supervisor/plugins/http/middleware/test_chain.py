"""The chain: its order, its guard, and third parties in it."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from importlib import metadata

import pytest

from trailboss.config.schema import HttpConfig
from trailboss.plugins.http.contract import GROUP, MiddlewareError, MiddlewareServices, ResponderWrapper
from trailboss.plugins.http.message import Handler, HeaderList, Middleware, Request, Responder
from trailboss.plugins.http.middleware.chain import BUILT_IN, build_chain, wrong_names
from trailboss.testing.check_http_middleware import MiddlewareBench, make_request

MODULE = "trailboss_test_middleware"


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """A module for entry points to point into."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    yield module
    del sys.modules[MODULE]


def entry(name: str, value: str = "") -> metadata.EntryPoint:
    """Return an entry point into the module."""
    return metadata.EntryPoint(name, value or f"{MODULE}:{name}", GROUP)


def bench_for(
    names: tuple[str, ...], entry_points: tuple[metadata.EntryPoint, ...] = (), answer: Handler | None = None
) -> MiddlewareBench:
    """Return a bench around a whole chain."""
    config = HttpConfig(address=("127.0.0.1:0",), middleware=names)
    return MiddlewareBench(
        lambda services: lambda innermost: build_chain(config, services, innermost, entry_points),
        answer or (lambda _, responder: responder.respond(200, [], b"page")),
    )


def marking(mark: str) -> object:
    """Return the factory of a middleware that leaves a mark on requests and on answers."""

    class Marked(ResponderWrapper):
        def respond(self, status: int, headers: HeaderList, body: bytes) -> None:
            self.inner.respond(status, headers, body + mark.encode())

    def factory(config: HttpConfig, services: MiddlewareServices) -> Middleware:
        def wrap(next_handler: Handler) -> Handler:
            def handle(request: Request, responder: Responder) -> None:
                request.attributes.setdefault("marks", []).append(mark)
                next_handler(request, Marked(responder))

            return handle

        return wrap

    return factory


def test_the_last_of_the_list_sees_the_request_first(module: types.ModuleType) -> None:
    """RoadRunner's order, and the answer goes the other way."""
    for name in "abc":
        setattr(module, name, marking(name))
    bench = bench_for(("a", "b", "c"), (entry("a"), entry("b"), entry("c")))
    client = bench.exchange(make_request())
    assert bench.requests[0].attributes == {"marks": ["c", "b", "a"]}
    assert client.body == b"pageabc"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (sorted(BUILT_IN), []),
        (["gzip", "gzip"], ["it names gzip twice; remove one of them"]),
        (
            ["cache"],
            [
                "cache is not available in this version of Trailboss; remove it and cache in a proxy in front",
            ],
        ),
        (["nothing"], ["there is no middleware nothing; write one of "]),
    ],
)
def test_wrong_names_are_found_without_building(names: list[str], expected: list[str]) -> None:
    """`trailboss check` says what a start would refuse."""
    found = ["; ".join(pair) for pair in wrong_names(names)]
    assert len(found) == len(expected)
    assert all(text.startswith(begin) for text, begin in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("nothing",), r"there is no middleware nothing; there are .*gzip, headers, .*static"),
        (("gzip", "gzip"), "names gzip twice"),
        (("static",), "no section http.static"),
        (("broken",), r"broken \(entry point .*\) cannot be made: on purpose"),
        (("number",), "it must be a callable"),
        (("none",), "must return a callable that wraps a handler"),
        (("unwrapped",), "wrapped a handler into a int"),
        (("missing",), "cannot be made"),
        (("quits",), "cannot be made"),
        (("double",), "more than one distribution offers double"),
        (("picky",), "^http.picky needs a key$"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    module: types.ModuleType, names: tuple[str, ...], words: str
) -> None:
    """Unknown, unavailable, doubled, broken: the start fails with what to do."""

    def broken(config: HttpConfig, services: MiddlewareServices) -> Middleware:
        raise RuntimeError("on purpose")

    def quits(config: HttpConfig, services: MiddlewareServices) -> Middleware:
        raise SystemExit("on purpose")

    def picky(config: HttpConfig, services: MiddlewareServices) -> Middleware:
        raise MiddlewareError("http.picky needs a key")

    module.__dict__.update(
        broken=broken,
        quits=quits,
        picky=picky,
        number=7,
        none=lambda *_: None,
        unwrapped=lambda *_: lambda handler: 7,
    )
    names_there = ("broken", "number", "none", "unwrapped", "missing", "quits", "picky")
    points = (
        *(entry(name) for name in names_there),
        entry("double", f"{MODULE}:a"),
        entry("double", f"{MODULE}:b"),
    )
    with pytest.raises(MiddlewareError, match=words):
        bench_for(names, points)


def test_a_name_of_ours_cannot_be_taken(module: types.ModuleType) -> None:
    """A third party that calls itself gzip is not asked."""
    module.gzip = marking("taken")  # type: ignore[attr-defined]
    bench = bench_for(("gzip",), (entry("gzip"),))
    assert bench.exchange(make_request()).body == b"page"
    assert "gzip" in BUILT_IN


def test_a_handler_that_raises_is_an_answer_500() -> None:
    """Before its answer: 500; in the midst of it: cut; after it: nothing; each is logged by the access log once."""

    def before(request: Request, responder: Responder) -> None:
        raise RuntimeError("on purpose")

    def amidst(request: Request, responder: Responder) -> None:
        responder.head(200, [])
        raise RuntimeError("on purpose")

    def after(request: Request, responder: Responder) -> None:
        responder.respond(201, [], b"")
        raise RuntimeError("on purpose")

    client = bench_for((), answer=before).exchange(make_request())
    assert client.failure is not None
    assert client.failure.status == 500
    assert bench_for((), answer=amidst).exchange(make_request()).cut
    bench = bench_for((), answer=after)
    client = bench.exchange(make_request())
    assert (client.status, client.complete) == (201, True)
    assert [fields["status"] for _, fields in bench.records] == [201]


@pytest.mark.parametrize("call", ["inform", "head", "data", "file", "end", "respond", "fail", "abort"])
def test_a_third_partys_responder_hurts_nobody_behind_it(module: types.ModuleType, call: str) -> None:
    """Whoever answers through it, a worker's lane for one, sees no exception; the client gets 500 or is cut."""
    import os

    def raising(self: object, *_: object, **__: object) -> None:
        raise RuntimeError("on purpose")

    broken = type("Broken", (ResponderWrapper,), {call: raising})

    def factory(config: HttpConfig, services: MiddlewareServices) -> Middleware:
        return lambda next_handler: lambda request, responder: next_handler(request, broken(responder))

    module.third = factory  # type: ignore[attr-defined]
    bench = bench_for(("third",), (entry("third"),), lambda request, responder: None)
    client = bench.begin(make_request())
    responder = bench.responder
    fd = os.open("/dev/zero", os.O_RDONLY)
    if call == "inform":
        responder.inform(103, [])
    elif call == "respond":
        responder.respond(200, [], b"")
    elif call in ("fail", "abort"):
        getattr(responder, call)(*((503, "full") if call == "fail" else ()))
    else:
        responder.head(200, [])
        responder.data(b"x")
        responder.file(os.dup(fd), 0, 1)
        responder.end()
    os.close(fd)
    assert responder.finished
    if call == "fail":
        assert client.cut
    else:
        assert client.finished
        assert client.failure is not None
        assert client.failure.status == 500
