"""How clients read answers, and what they make of them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from trailboss.chaos.load import Head, Load, body_length, parse_head
from trailboss.chaos.verdict import Outcome, Reply


@pytest.mark.parametrize(
    ("data", "status", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", 200, 5),
        (b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: Chunked", 404, None),
        (b"HTTP/1.1 204 No Content", 204, 0),
        (b"HTTP/1.1 200\r\nServer: x", 200, -1),
    ],
)
def test_heads(data: bytes, status: int, length: int | None) -> None:
    """Status and length of a body, in each way of saying it."""
    head = parse_head(data)

    assert (status, length) == (head.status, body_length(head))


@pytest.mark.parametrize("data", [b"nonsense", b"HTTP/1.1 abc", b"SSH-2.0-x 200"])
def test_nonsense_is_no_head(data: bytes) -> None:
    """What is no answer is said to be none."""
    with pytest.raises(ValueError, match="not an answer"):
        parse_head(data)


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (WHOLE, Outcome.ANSWERED),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + WHOLE, Outcome.ANSWERED),
        (CHUNKED, Outcome.ANSWERED),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", Outcome.ANSWERED),
        (WHOLE[:-1], Outcome.CUT),
        (CHUNKED[:-4], Outcome.CUT),
        (WHOLE[:20], Outcome.CUT),
        (b"", Outcome.CUT),
        (b"what?\r\n\r\n", Outcome.WRONG),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", Outcome.WRONG),
        (b"HTTP/1.1 503 No\r\nContent-Length: 0\r\ntrailboss-reason: no workers\r\n\r\n", Outcome.REFUSED),
        (b"HTTP/1.1 502 No\r\nContent-Length: 0\r\ntrailboss-reason: worker died\r\n\r\n", Outcome.WORKER),
    ],
)
async def test_outcomes(answer: bytes, outcome: Outcome) -> None:
    """What a browser makes of an answer, and of one that ends too early at any point."""
    (reply, *_) = await replies_to(answer)

    assert outcome == reply.outcome


async def test_nobody_there() -> None:
    """A port on which nobody listens is no error of the client."""
    (reply, *_) = await replies_to(None)

    assert reply.outcome == Outcome.UNREACHABLE


async def test_what_the_application_always_says_is_right() -> None:
    """A page that answered 500 before anything was done may go on doing so."""
    (reply, *_) = await replies_to(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", usual=500)

    assert reply.outcome == Outcome.ANSWERED


async def replies_to(answer: bytes | None, usual: int = 200) -> Sequence[Reply]:
    """What browsers get from a server that gives this answer and closes; None: there is no server."""
    replies: list[Reply] = []
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    load = Load(trio.current_time, replies.append, port, "/nonexistent/rpc.sock", clients=1, usual={usual})

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(4096)
            await stream.send_all(answer or b"")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            if answer is None:
                await listeners[0].aclose()
            else:
                nursery.start_soon(trio.serve_listeners, serve, listeners)
            await nursery.start(load.run)
            await load_is_told(replies)
            nursery.cancel_scope.cancel(reason="that was it")
    return [reply for reply in replies if reply.client == "http"]


async def load_is_told(replies: list[Reply]) -> None:
    """Wait for the first exchange of a browser."""
    while not any(reply.client == "http" for reply in replies):  # noqa: ASYNC110  the list tells nobody
        await trio.sleep(0.005)


def test_a_head_is_plain_data() -> None:
    """Two heads that say the same are equal."""
    assert Head(200, {"a": "b"}) == parse_head(b"HTTP/1.1 200 OK\r\nA: b")
