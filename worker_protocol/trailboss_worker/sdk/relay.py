"""The worker's end of the byte stream to its server.

RR_RELAY says which one: `pipes` (default: standard input and output), `unix://path` or `tcp://host:port`.
Whatever it is, a Relay is two plain descriptors: bytes come from one, whole frames go to the other with
one system call each, because a frame cut by two writes is what kills simple readers (wire protocol 1.4).

On pipes standard output *is* the relay, so everything else has to be kept off it: the two descriptors are
duplicated to private numbers, descriptor 0 then reads nothing and descriptor 1 becomes standard error.
That also catches what C libraries and child processes print, which no replaced `sys.stdout` would.

Trailboss may put a socket beside the pipes, named by TRAILBOSS_FILES, through which open files come: a large body is
then read from its file instead of travelling through the pipe.
"""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket  # at run time only where a socket is used: a worker on pipes starts faster without

FILES_VARIABLE = "TRAILBOSS_FILES"
CONNECT_TRIES = 11
CONNECT_PAUSE_SECONDS = 0.1
CONNECT_TIMEOUT_SECONDS = 5.0
_WRITE_PARTS_MAX = 16


class RelayError(OSError):
    """The relay that RR_RELAY names cannot be used; the text says what was tried."""


class Relay:
    """Two descriptors that carry frames. Owned by one Worker; not safe for several threads."""

    __slots__ = ("files_fd", "kind", "read_fd", "write_fd")

    def __init__(self, kind: str, read_fd: int, write_fd: int, files_fd: int = -1) -> None:
        self.kind = kind
        self.read_fd = read_fd
        self.write_fd = write_fd
        #: The socket that open files come through; -1 where there is none.
        self.files_fd = files_fd

    def __repr__(self) -> str:
        return f"<Relay {self.kind} reading {self.read_fd} writing {self.write_fd}>"

    def receive(self, size: int) -> bytes:
        """What is there now, at most size bytes; waits for at least one. Empty means end of stream."""
        while True:
            try:
                return os.read(self.read_fd, size)
            except BlockingIOError:
                wait_ready(self.read_fd, select.POLLIN)
            except ConnectionResetError:
                return b""

    def send(self, *parts: bytes) -> None:
        """Write all parts as one frame, in one system call as far as the kernel takes it.

        Raises BrokenPipeError or ConnectionResetError when the server is gone.
        """
        remaining = [part for part in parts if part]
        while remaining:
            try:
                written = os.writev(self.write_fd, remaining[:_WRITE_PARTS_MAX])
            except BlockingIOError:
                wait_ready(self.write_fd, select.POLLOUT)
                continue
            remaining = after_written(remaining, written)

    def close(self) -> None:
        """Close all descriptors; a second call does nothing."""
        descriptors = {self.read_fd, self.write_fd, self.files_fd} - {-1}
        self.read_fd = self.write_fd = self.files_fd = -1
        for descriptor in descriptors:
            os.close(descriptor)


def after_written(parts: list[bytes], written: int) -> list[bytes]:
    """What is left of the parts once the kernel took so many bytes."""
    for index, part in enumerate(parts):
        if written < len(part):
            return [part[written:], *parts[index + 1 :]]
        written -= len(part)
    return []


def wait_ready(descriptor: int, event: int, timeout_seconds: float | None = None) -> bool:
    """Wait until the descriptor is readable or writable; False when the time passed first."""
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(None if timeout_seconds is None else max(0.0, timeout_seconds) * 1000))


def open_relay(text: str | None = None) -> Relay:
    """The relay that text (default: the variable RR_RELAY, else `pipes`) names, ready for use.

    Raises RelayError for an unknown text, a server that cannot be reached within about a second, and
    pipes that are not there or that this process has already taken.
    """
    if text is None:
        text = os.environ.get("RR_RELAY") or "pipes"
    if text == "pipes":
        return _take_standard_streams()
    scheme, separator, address = text.partition("://")
    if separator and address and scheme == "unix":
        return _from_socket("unix", address, 0)
    if separator and scheme == "tcp":
        host, port = split_host_port(address)
        return _from_socket("tcp", host, port)
    raise RelayError(f"RR_RELAY={text!r} is none of pipes, unix://path and tcp://host:port")


def split_host_port(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[v6]:port` or `:port` (this machine). Raises RelayError."""
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise RelayError(f"{address!r} is no host:port")
    return (host[1:-1] if host.startswith("[") and host.endswith("]") else host) or "127.0.0.1", int(port)


_pipes_taken = False


def _take_standard_streams() -> Relay:
    global _pipes_taken
    if _pipes_taken:
        raise RelayError("the pipes relay is already in use by this process; make one Worker and keep it")
    try:
        read_fd = os.dup(0)
        write_fd = os.dup(1)
    except OSError as error:
        raise RelayError(f"the pipes relay needs standard input and output: {error}") from error
    _pipes_taken = True
    _point_standard_streams_elsewhere()
    return _forget_in_children(Relay("pipes", read_fd, write_fd, _take_files_socket()))


def _take_files_socket() -> int:
    """The socket that TRAILBOSS_FILES names, kept from the application's own children; -1 where there is none."""
    number = os.environ.pop(FILES_VARIABLE, "")
    if not (number.isascii() and number.isdigit() and int(number) > 2):
        return -1
    descriptor = int(number)
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return -1
        os.set_inheritable(descriptor, False)
    except OSError:
        return -1
    return descriptor


def _point_standard_streams_elsewhere() -> None:
    """From now on descriptor 0 is empty and descriptor 1 is standard error."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(nothing, 1)  # started without standard error: there is nowhere to print to
    if nothing > 2:
        os.close(nothing)
    print_line_by_line()


def print_line_by_line() -> None:
    """Let what was and will be printed leave at each line, so that a killed worker's last words are seen."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(line_buffering=True)
        sys.stdout.flush()


def _from_socket(kind: str, host: str, port: int) -> Relay:
    import socket

    connection = connect(kind, host, port)
    if kind == "tcp":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(None)
    descriptor = connection.detach()
    print_line_by_line()
    return _forget_in_children(Relay(kind, descriptor, descriptor))


def connect(kind: str, host: str, port: int) -> socket.socket:
    """A connected socket; tries 11 times within about a second. Raises RelayError."""
    import socket
    import time

    address = f"unix://{host}" if kind == "unix" else f"tcp://{host}:{port}"
    for attempt in range(1, CONNECT_TRIES + 1):
        try:
            if kind == "tcp":
                return socket.create_connection((host, port), CONNECT_TIMEOUT_SECONDS)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.settimeout(CONNECT_TIMEOUT_SECONDS)
                connection.connect(host)
            except BaseException:
                connection.close()
                raise
            return connection
        except OSError as error:
            if attempt == CONNECT_TRIES:
                raise RelayError(f"cannot connect to {address} ({attempt} tries): {error}") from error
        time.sleep(CONNECT_PAUSE_SECONDS)
    raise AssertionError("the loop above returns or raises")


def _forget_in_children(relay: Relay) -> Relay:
    """A forked child must not hold the relay open: the server would never see this worker end."""
    os.register_at_fork(after_in_child=relay.close)
    return relay
