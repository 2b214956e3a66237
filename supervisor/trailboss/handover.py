"""LISTENING SOCKETS THAT GO FROM ONE SERVER TO THE NEXT: what a running server offers, what its successor takes over.

An upgrade starts the new program with the sockets of the old one, so that no address is ever without a listener and who
has connected waits in the kernel's queue for whoever accepts next. Both servers live for a while, and one of them is in
charge: of the RPC, status and metrics ports, of the files of unix sockets, of the pid file. The one in charge accepts; the
other keeps the sockets open and touches nothing that both share. HTTP alone is answered by both for the moment between.

The successor finds descriptors and a channel in one variable of its environment, says `ready` when its workers are up, and
is in charge after `go`, or when the old server has gone without a word. What it cannot do it says by `failed TEXT`. Over
the same channel comes what the old server has in memory (:mod:`trailboss.parcels`), until that ends.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from trailboss.activation import PassedSockets
from trailboss.log import logger
from trailboss.parcels import (
    Arrival,
    BadChannel,
    Decoder,
    Estate,
    Go,
    ParcelRefused,
    Sender,
    answer_line,
    unpack,
)

if TYPE_CHECKING:
    from trailboss.systemd.store import SocketStore

__all__ = ["VARIABLE", "Handover", "Offer", "Passed", "take_handover"]

log = logger("container")

VARIABLE: Final = "TRAILBOSS_HANDOVER"
#: A socket that systemd has opened; its key is the name systemd gave it.
SYSTEMD: Final = "systemd"
_FAILURE_CHARACTERS_MAX: Final = 16_000
_RECEIVE_BYTES: Final = 256 * 1024


@dataclass(eq=False, slots=True)
class Offer:
    """A listening socket in use. `kind` is its plugin, `key` its address as the configuration writes it.

    `give_up` stops accepting and closes this process's descriptor, nothing more: the file and the connections that wait
    belong to the successor. `path` and `inode` are the file of a unix socket.
    """

    kind: str
    key: str
    sock: socket.socket
    give_up: Callable[[], None]
    path: str = ""
    inode: tuple[int, int] = (0, 0)
    #: Called when systemd keeps the socket open from now on: its end is not that of the address any more.
    on_kept: Callable[[], None] = lambda: None


@dataclass(slots=True)
class Passed:
    """A listening socket of the predecessor. `path` and `inode` are those of an :class:`Offer`."""

    kind: str
    key: str
    fd: int
    path: str = ""
    inode: tuple[int, int] = (0, 0)

    def socket(self) -> socket.socket:
        """Return it as a non-blocking socket; to be called once."""
        sock = socket.socket(fileno=self.fd)
        sock.setblocking(False)
        return sock


@dataclass(eq=False, slots=True)
class Handover:
    """A service. Without arguments it is that of a server which has no predecessor: in charge from the beginning."""

    passed: list[Passed] = field(default_factory=list)
    channel: socket.socket | None = None
    #: Set when this server answers on all its addresses.
    in_charge: trio.Event = field(default_factory=trio.Event)
    #: This server has a successor that is in charge.
    given_up: bool = False
    offers: list[Offer] = field(default_factory=list)
    #: Called, once, when this server has come to be in charge after a predecessor.
    on_in_charge: list[Callable[[], None]] = field(default_factory=list)
    #: The way to the successor, once there is one that is ready.
    heir: Sender | None = None
    #: Set when nothing more will come from a predecessor.
    received: trio.Event = field(default_factory=trio.Event)
    _estates: dict[str, tuple[int, Estate]] = field(default_factory=dict)
    _decoder: Decoder = field(default_factory=Decoder)
    _taken: dict[str, int] = field(default_factory=dict)
    #: Where sockets outlive a crash.
    store: SocketStore | None = None

    def __post_init__(self) -> None:
        if self.channel is None:
            self.in_charge.set()
            self.received.set()

    @property
    def is_successor(self) -> bool:
        """Whether another server is still in charge."""
        return not self.in_charge.is_set()

    def claim(self, kind: str, key: str) -> Passed | None:
        """Return the socket that a predecessor had for this address, running or crashed, once; None where it had none."""
        for item in self.passed:
            if (item.kind, item.key) == (kind, key):
                self.passed.remove(item)
                return item
        return self.store.claim(kind, key) if self.store is not None else None

    def of_systemd(self) -> PassedSockets:
        """Return what systemd passed to the predecessor, as if it had come from systemd itself."""
        mine = [item for item in self.passed if item.kind == SYSTEMD]
        self.passed = [item for item in self.passed if item.kind != SYSTEMD]
        return PassedSockets([(item.key, item.fd) for item in mine])

    def offer(self, offer: Offer) -> None:
        """Note a socket that a successor can have, also one that comes after a crash."""
        self.offers.append(offer)
        if self.in_charge.is_set():
            self._keep(offer)

    def withdraw(self, kind: str, key: str) -> None:
        """Offer a socket no longer: its address is closed for good. Does nothing where another server is in charge of it."""
        if self.given_up or self.is_successor:
            return
        self.offers = [offer for offer in self.offers if (offer.kind, offer.key) != (kind, key)]
        if self.store is not None:
            self.store.forget(kind, key)

    def _keep(self, offer: Offer) -> None:
        # One of systemd's own is open without us anyway.
        if self.store is not None and offer.kind != SYSTEMD and self.store.keep(offer):
            offer.on_kept()

    def give_up_all(self) -> None:
        """Let go of every socket; from now on the successor is in charge."""
        self.given_up = True
        offers, self.offers = self.offers, []
        for offer in offers:
            offer.give_up()

    # --- what is in memory ------------------------------------------------------------------------------------------

    def add_estate(self, part: str, version: int, estate: Estate) -> None:
        """Name what a plugin has in memory; to be called before the server is ready. `version` is that of its parcels."""
        self._estates[part] = (version, estate)

    def hands_over(self, part: str) -> bool:
        """Whether there is a successor that takes what this server has of `part`."""
        version, _ = self._estates.get(part, (0, None))
        return self.heir is not None and self.heir.takes(part, version)

    async def declare(self, heir: Sender) -> None:
        """Tell a successor that is not in charge yet what there is by name.

        On cancellation: it may know a part of it.
        """
        for part, (version, estate) in self._estates.items():
            declarations = iter((estate.declarations(), None))
            await heir.deliver(part, version, declarations.__next__)

    async def deliver(self, part: str) -> int:
        """Hand over what this server has of `part` now; return how many items the successor has taken.

        On cancellation: what is under way stays so, and a later call goes on with it.
        """
        if self.heir is None or part not in self._estates:
            return 0
        version, estate = self._estates[part]
        items = await self.heir.deliver(part, version, estate.next_parcel)
        if items:
            log.info("handed over to the new server", part=part, items=items)
        return items

    async def deliver_all(self) -> None:
        """Hand over what every plugin has now; cancellation as in `deliver`."""
        for part in tuple(self._estates):
            await self.deliver(part)

    async def receive(self) -> None:
        """Take in what the predecessor has, from when this server is in charge until there is no more.

        On cancellation: the channel is closed, and the predecessor keeps what was not answered.
        """
        await self.in_charge.wait()
        channel = self.channel
        if channel is None:
            return
        with channel:
            try:
                while isinstance(message := await self._next_message(channel), Arrival):
                    await self._take_in(channel, message)
            except BadChannel as error:
                log.error("what the old server hands over cannot be understood", reason=str(error))
                with suppress(OSError):
                    channel.send(answer_line(0, f"it cannot be understood: {error}"))
        self.received.set()
        if self._taken:
            log.info("taken over from the old server", **self._taken)

    async def _next_message(self, channel: socket.socket) -> Go | Arrival | None:
        """Return the next message of the predecessor, None when it has gone. Raises BadChannel."""
        while (message := self._decoder.next_message()) is None:
            try:
                data = channel.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(channel)
                continue
            except OSError:
                return None
            if not data:
                return None
            self._decoder.feed(data)
        return message

    async def _take_in(self, channel: socket.socket, parcel: Arrival) -> None:
        refusal = ""
        try:
            if parcel.part not in self._estates:
                raise ParcelRefused(f"the new server has no {parcel.part}")
            items = await self._estates[parcel.part][1].receive(unpack(parcel.body))
            if items:
                self._taken[parcel.part] = self._taken.get(parcel.part, 0) + items
        except ParcelRefused as refused:
            refusal = str(refused)
        except Exception as error:  # the boundary of plugins: the old server keeps what one of them chokes on
            log.exception("a parcel of the old server could not be taken in", part=parcel.part)
            refusal = f"{type(error).__name__}: {error}"
        if refusal:
            log.error("a parcel of the old server is refused", part=parcel.part, reason=refusal)
        answer = answer_line(parcel.number, refusal)
        while answer:
            try:
                answer = answer[channel.send(answer) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(channel)
            except OSError:  # it has gone; what was taken in is ours
                return

    # --- taking charge ----------------------------------------------------------------------------------------------

    async def take_charge(self) -> None:
        """Tell the predecessor that everything is up, and return when it has let go, or has gone.

        On cancellation: the predecessor stays in charge.
        """
        channel = self.channel
        if channel is None or self.in_charge.is_set():
            if self.store is not None:
                self.store.drop_unclaimed()
            return
        log.info("ready to take over from the old server")
        with suppress(OSError):  # it has gone: nobody is in charge but us
            takes = {part: version for part, (version, _) in self._estates.items()}
            channel.send(f"ready {json.dumps({'takes': takes})}\n".encode())
        await self._wait_for_go(channel)
        self.in_charge.set()
        for callback in self.on_in_charge:
            try:
                callback()
            except Exception as error:  # such as a pid file that cannot be written: no reason to leave
                log.error("a step of taking over failed", reason=str(error) or type(error).__name__)
        for offer in self.offers:
            self._keep(offer)
        self._close_unclaimed()
        log.info("this server is in charge", pid=os.getpid())

    async def _wait_for_go(self, channel: socket.socket) -> None:
        try:
            while isinstance(message := await self._next_message(channel), Arrival):
                await self._take_in(channel, message)
        except BadChannel as error:
            self.report_failure(f"what the old server has said cannot be understood: {error}")
            await trio.sleep_forever()  # it stays in charge and ends this server

    def _close_unclaimed(self) -> None:
        rest, self.passed = self.passed, []
        for item in rest:
            os.close(item.fd)
            if item.path:
                remove_file(item.path, item.inode)
            if self.store is not None:
                self.store.forget(item.kind, item.key)

    def report_failure(self, text: str) -> None:
        """Tell the predecessor why this server does not get ready. Does nothing where there is none in charge."""
        if self.channel is not None and self.is_successor:
            line = json.dumps(text[:_FAILURE_CHARACTERS_MAX])
            with suppress(OSError):
                self.channel.sendall(f"failed {line}\n".encode())


def remove_file(path: str, inode: tuple[int, int]) -> None:
    """Remove the file of a unix socket, unless another server's file is there by now."""
    with suppress(OSError):
        found = os.lstat(path)
        if (found.st_dev, found.st_ino) == inode:
            os.unlink(path)


def take_handover(environ: MutableMapping[str, str]) -> Handover:
    """Take what a predecessor has passed to this process, and remove the variable.

    Standard error, which the predecessor has listened to so far, becomes the real one. What does not fit, as when the
    variable has come from somewhere else, is left alone.
    """
    text = environ.pop(VARIABLE, "")
    if not text:
        return Handover()
    try:
        told = json.loads(text)
        channel_fd, stderr_fd = int(told["channel"]), int(told["stderr"])
        passed = [
            Passed(str(kind), str(key), int(fd), str(path), (int(device), int(number)))
            for kind, key, fd, path, device, number in told["sockets"]
        ]
        for fd in (channel_fd, *(item.fd for item in passed)):
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise ValueError(f"descriptor {fd} is no socket")
            os.set_inheritable(fd, False)
        os.dup2(stderr_fd, 2)
        os.close(stderr_fd)
    except (ValueError, KeyError, TypeError, OSError) as error:
        log.warning("what an older server has passed cannot be used", variable=VARIABLE, reason=str(error))
        return Handover()
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(False)
    return Handover(passed, channel)
