"""A client of the RPC port for trio: one connection, one call at a time, and an error for each way a call can end.

The Python SDK's client blocks and tries again by itself; whoever judges a server must see each single attempt.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import trio

from trailboss_worker.protocol import frames
from trailboss_worker.protocol.frames import FrameDecoder
from trailboss_worker.protocol.rpc import RpcReply, decode_reply, encode_request

__all__ = ["CallFailed", "Client", "ConnectionGone", "connected"]


class CallFailed(Exception):
    """The server answered with an error; the text is the answer."""


class ConnectionGone(Exception):
    """The connection ended before the answer came, or could not be made."""


class Client:
    """One RPC connection over a unix socket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder()
        self._sequence = 0

    @classmethod
    async def connect(cls, path: str) -> Self:
        """Connect. Raises ConnectionGone."""
        try:
            return cls(await trio.open_unix_socket(path))
        except OSError as error:
            raise ConnectionGone(str(error)) from error

    def close(self) -> None:
        """Close the connection."""
        self.stream.socket.close()

    async def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises ConnectionGone."""
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionGone(str(error)) from error

    async def reply(self) -> RpcReply:
        """The next answer. Raises ConnectionGone."""
        while (frame := self._decoder.next_frame()) is None:
            try:
                data = await self.stream.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionGone(str(error)) from error
            if not data:
                raise ConnectionGone("end of stream")
            self._decoder.feed(data)
        return decode_reply(frame)

    async def exchange(self, method: str, argument: bytes, flags: int) -> RpcReply:
        """Send a call and return its answer, matched by number and name."""
        self._sequence += 1
        await self.send(encode_request(self._sequence, method, argument, flags))
        reply = await self.reply()
        if (reply.sequence, reply.method) != (self._sequence, method):
            raise AssertionError(
                f"call {self._sequence} of {method} got the answer {reply.sequence} of {reply.method}"
            )
        return reply

    async def call(self, method: str, argument: object = True, seconds: float = 20.0) -> Any:
        """Call with JSON, or with protobuf where `argument` is bytes. Raises CallFailed, ConnectionGone, TooSlowError."""
        proto = isinstance(argument, bytes)
        data = argument if isinstance(argument, bytes) else json.dumps(argument).encode()
        with trio.fail_after(seconds):
            reply = await self.exchange(method, data, frames.PROTO if proto else frames.JSON)
        if reply.is_error:
            raise CallFailed(reply.error_text)
        return reply.body if proto else json.loads(reply.body or b"null")


@asynccontextmanager
async def connected(path: str) -> AsyncIterator[Client]:
    """A connection that is closed at the end of the block. Raises ConnectionGone."""
    client = await Client.connect(path)
    try:
        yield client
    finally:
        client.close()
