"""Remote calls to the server over the address in RR_RPC.

One connection, one call under way on it at a time, a lock around both: threads may share a client, and each
gets the answer to its own call, matched by sequence number (wire protocol 4). The connection is made at the
first call, kept, and made anew after it was lost; a forked child makes its own. A worker that was given a token
(TRAILBOSS_TOKEN) shows it there first, so that the server knows whose calls these are.

A server that is still starting answers `service not ready`, and a call that was answered so has had no effect.
So such calls, and only such, may be repeated blindly: `retry_until` says for how many seconds. They are not
where waiting cannot help, because the server is stopping or waits for this very process.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time

from trailboss_worker.protocol import frames
from trailboss_worker.protocol.errors import ProtocolError
from trailboss_worker.protocol.rpc import RpcReply, decode_reply, encode_request
from trailboss_worker.sdk.relay import RelayError, connect, split_host_port, wait_ready
from trailboss_worker.sdk.rpc_errors import (
    CallTimeout,
    ConnectionLost,
    NotReadyError,
    OutOfStep,
    RpcError,
    service_error,
)

DEFAULT_ADDRESS = "tcp://127.0.0.1:6001"
TOKEN_VARIABLE = "TRAILBOSS_TOKEN"
CALL_TIMEOUT_SECONDS = 65.0  # a little more than the server's own limit for a call, whose text says more
RETRY_DELAY_SECONDS_FIRST = 0.02
RETRY_DELAY_SECONDS_MAX = 0.5
READ_BYTES = 64 * 1024
ANSWER_CAP_BYTES = 256 * 1024 * 1024

_CODEC_FLAGS = {"json": frames.JSON, "raw": frames.RAW, "proto": frames.PROTO}


class RPC:
    """A client of the server's RPC port. Safe to share between threads; calls wait for each other."""

    def __init__(
        self, address: str, *, timeout_seconds: float = CALL_TIMEOUT_SECONDS, retry_until: float = 0.0
    ) -> None:
        """Name the server, `tcp://host:port` or `unix://path`; nothing is connected yet.

        The two limits are the defaults of `call`. Raises RpcError for an address of another form.
        """
        self.address = address
        self.timeout_seconds = timeout_seconds
        self.retry_until = retry_until
        self._kind, self._host, self._port = _parse_address(address)
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._decoder = frames.FrameDecoder(ANSWER_CAP_BYTES)
        self._owner_pid = 0
        self._sequence = 0

    @classmethod
    def from_environment(
        cls, *, timeout_seconds: float = CALL_TIMEOUT_SECONDS, retry_until: float = 0.0
    ) -> RPC:
        """A client of the server that started this process (RR_RPC, else tcp://127.0.0.1:6001)."""
        address = os.environ.get("RR_RPC") or DEFAULT_ADDRESS
        return cls(address, timeout_seconds=timeout_seconds, retry_until=retry_until)

    def __repr__(self) -> str:
        state = "connected" if self._connection is not None else "not connected"
        return f"<RPC {self.address} {state}, {self._sequence} calls>"

    def __enter__(self) -> RPC:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def call(
        self,
        method: str,
        argument: object = None,
        codec: str = "json",
        *,
        timeout_seconds: float | None = None,
        retry_until: float | None = None,
    ) -> object:
        """Call `service.Method` and give its result.

        With the codec `json` argument and result are JSON values; with `raw` and `proto` both are bytes.
        timeout_seconds limits one try. While the server answers `service not ready`, the call is repeated
        with growing pauses for retry_until seconds, counted from now. Defaults: those of the client.
        Raises ServiceError (NotReadyError, RefusedError) for an answered error, ConnectionLost, CallTimeout
        or OutOfStep where no answer came.
        """
        try:
            flags = _CODEC_FLAGS[codec]
        except KeyError:
            raise ValueError(f"codec {codec!r} is none of {', '.join(_CODEC_FLAGS)}") from None
        reply = self._call_with_retries(
            method, encode_argument(argument, codec), flags, timeout_seconds, retry_until
        )
        if codec != "json":
            return reply
        try:
            return json.loads(reply) if reply else None
        except ValueError as error:
            raise OutOfStep(f"{method}: the answer is no JSON: {error}") from error

    def state(self) -> dict[str, object]:
        """The server's phase and that of each plugin (`trailboss.State`); answered at any time.

        Under RoadRunner, which does not have it, a ServiceError.
        """
        answer = self.call("trailboss.State", True)
        if not isinstance(answer, dict):
            raise OutOfStep(f"trailboss.State: the answer is no object but {type(answer).__name__}")
        return answer

    def close(self) -> None:
        """Close the connection, if there is one; the next call makes a new one."""
        with self._lock:
            self._drop()

    # One call

    def _call_with_retries(
        self,
        method: str,
        argument: bytes,
        flags: int,
        timeout_seconds: float | None,
        retry_until: float | None,
    ) -> bytes:
        give_up_at = time.monotonic() + (self.retry_until if retry_until is None else retry_until)
        attempt = 0
        while True:
            try:
                return self._call_once(method, argument, flags, timeout_seconds)
            except NotReadyError as error:
                delay = retry_delay_seconds(attempt, os.urandom(1)[0] / 255)
                if not error.may_pass or time.monotonic() + delay > give_up_at:
                    raise
            attempt += 1
            time.sleep(delay)

    def _call_once(self, method: str, argument: bytes, flags: int, timeout_seconds: float | None) -> bytes:
        limit = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + limit
        with self._lock:
            try:
                reply = self._exchange(method, argument, flags, deadline)
            except (TimeoutError, socket.timeout) as error:  # noqa: UP041 - two types before Python 3.10
                self._drop()
                raise CallTimeout(f"{method}: no answer from {self.address} within {limit:g} s") from error
            except RelayError as error:
                raise ConnectionLost(f"{method}: {error}") from error
            except (OSError, ProtocolError) as error:
                self._drop()
                kind = OutOfStep if isinstance(error, ProtocolError) else ConnectionLost
                raise kind(f"{method}: {self.address}: {error}") from error
            except BaseException:
                self._drop()  # interrupted half-way: an answer may still be under way on this connection
                raise
        if reply.is_error:
            raise service_error(method, reply.body.decode("utf-8", "replace"))
        return reply.body

    def _exchange(self, method: str, argument: bytes, flags: int, deadline: float) -> RpcReply:
        connection = self._connected(deadline)
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        return self._ask(connection, self._sequence, method, argument, flags, deadline)

    def _ask(
        self,
        connection: socket.socket,
        sequence: int,
        method: str,
        argument: bytes,
        flags: int,
        deadline: float,
    ) -> RpcReply:
        connection.settimeout(_remaining(deadline))
        connection.sendall(encode_request(sequence, method, argument, flags))
        reply = decode_reply(self._read_frame(connection, deadline))
        if reply.sequence != sequence or reply.method != method:
            raise OutOfStep(
                f"{method} (sequence {sequence}): {self.address} answered"
                f" {reply.method} (sequence {reply.sequence})"
            )
        return reply

    def _introduce(self, connection: socket.socket, deadline: float) -> None:
        """Show the token of this worker to the server that gave it, and to nobody else.

        An answer that does not take it changes nothing: the server tells its workers by other means as well.
        """
        token = os.environ.get(TOKEN_VARIABLE)
        if token and self.address == os.environ.get("RR_RPC"):
            self._ask(
                connection, 0, "trailboss.Authenticate", json.dumps(token).encode(), frames.JSON, deadline
            )

    def _read_frame(self, connection: socket.socket, deadline: float) -> frames.Frame:
        while True:
            frame = self._decoder.next_frame()
            if frame is not None:
                return frame
            connection.settimeout(_remaining(deadline))
            data = connection.recv(READ_BYTES)
            if not data:
                raise ConnectionResetError("the server closed the connection before it answered")
            self._decoder.feed(data)

    def _connected(self, deadline: float) -> socket.socket:
        if self._connection is not None and not self._is_usable(self._connection):
            self._drop()
        if self._connection is None:
            self._connection = connect(self._kind, self._host, self._port)
            if self._kind == "tcp":
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._decoder = frames.FrameDecoder(ANSWER_CAP_BYTES)
            self._owner_pid = os.getpid()
            self._introduce(self._connection, deadline)
        return self._connection

    def _is_usable(self, connection: socket.socket) -> bool:
        """Between calls nothing may arrive: what is there is an end of stream or an answer out of step."""
        if self._owner_pid != os.getpid() or self._decoder.buffered:
            return False
        return not wait_ready(connection.fileno(), select.POLLIN, 0)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def encode_argument(argument: object, codec: str) -> bytes:
    """The argument's bytes. Raises TypeError for what the codec cannot carry."""
    if codec == "json":
        return json.dumps(argument, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )
    if argument is None:
        return b""
    if isinstance(argument, (bytes, bytearray, memoryview)):
        return bytes(argument)
    raise TypeError(f"the codec {codec} carries bytes, not {type(argument).__name__}")


def retry_delay_seconds(attempt: int, jitter: float) -> float:
    """The pause after a try that was answered `not ready`: doubling, capped, less up to half by jitter (0…1)."""
    full = min(RETRY_DELAY_SECONDS_MAX, RETRY_DELAY_SECONDS_FIRST * 2.0 ** min(attempt, 16))
    return full * (1 - jitter / 2)


def _parse_address(address: str) -> tuple[str, str, int]:
    scheme, separator, rest = address.partition("://")
    if separator and rest and scheme == "unix":
        return "unix", rest, 0
    if separator and scheme == "tcp":
        try:
            host, port = split_host_port(rest)
        except RelayError as error:
            raise RpcError(f"RPC address {address!r}: {error}") from error
        return "tcp", host, port
    raise RpcError(f"RPC address {address!r} is neither tcp://host:port nor unix://path")


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining
