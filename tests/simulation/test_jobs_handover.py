"""Two servers and a channel that breaks anywhere: every job is in exactly one of them, or died with the one it was in.

The old server pushes jobs while it hands over; the relay between the two cuts the channel after some number of bytes in one
of the directions, which is the death of the other side as seen from this one. Every case is decided by a seed.
"""

from __future__ import annotations

import random
import socket

import pytest
import structlog.testing
import trio

from trailboss.config.schema import JobsConfig, PipelineConfig
from trailboss.container.contract import Caller, Services
from trailboss.handover import Handover
from trailboss.messages import jobs_pb2
from trailboss.parcels import Sender
from trailboss.plugins.jobs.estate import ESTATE_VERSION
from trailboss.plugins.jobs.plugin import JobsPlugin
from trailboss.testing.fake_pool import FakePool

PIPELINES = ("one", "two")
JOBS = 40


def make_plugin() -> JobsPlugin:
    """A server whose jobs nobody runs."""
    plugin = JobsPlugin(
        JobsConfig(pipelines={name: PipelineConfig(driver="memory") for name in PIPELINES}, consume=PIPELINES)
    )
    plugin.attach_pool(FakePool(0))
    return plugin


def push(plugin: JobsPlugin, number: int, choose: random.Random) -> None:
    """Push one job: some are delayed, some have a payload that makes a parcel of their own."""
    handlers = {item.name: item.handler for item in plugin.rpc_methods()}
    job = jobs_pb2.Job(
        id=str(number),
        job="t",
        payload=bytes(choose.choice((0, 1000, 100_000, 400_000))),
        options=jobs_pb2.Options(
            pipeline=choose.choice(PIPELINES),
            delay=choose.choice((0, 0, 3600)),
            priority=choose.choice((1, 10)),
        ),
    )
    handlers["jobs.Push"](jobs_pb2.PushRequest(job=job), Caller())


def ids(plugin: JobsPlugin) -> list[str]:
    """Every job that waits or is delayed; the books say so, too."""
    found: list[str] = []
    for pipeline in plugin.pipelines.by_name.values():
        share = pipeline.driver.let_go(1 << 40)
        if share is not None:
            found += [job.id for job in share.waiting] + [job.id for _, job in share.delayed]
            pipeline.driver.take_back(share)
    books = plugin.pipelines.total()
    assert books.balanced, books
    assert books.waiting + books.delayed == len(found)
    assert plugin.room.used == len(found)
    return found


class Relay:
    """Carries bytes between the two, and cuts both ends when one direction has had its number of bytes."""

    def __init__(self, limit_forth: int, limit_back: int) -> None:
        self.old_end, self._old_side = socket.socketpair()
        self.new_end, self._new_side = socket.socketpair()
        for sock in (self.old_end, self._old_side, self.new_end, self._new_side):
            sock.setblocking(False)
        self.limits = {self._old_side: limit_forth, self._new_side: limit_back}
        self.is_cut = False

    async def run(self) -> None:
        """Carry until an end is closed or it is time to cut."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._carry, self._old_side, self._new_side, nursery.cancel_scope)
            nursery.start_soon(self._carry, self._new_side, self._old_side, nursery.cancel_scope)
        for sock in (self._old_side, self._new_side):
            sock.close()

    async def _carry(self, source: socket.socket, target: socket.socket, over: trio.CancelScope) -> None:
        while True:
            await trio.lowlevel.wait_readable(source)
            try:
                data = source.recv(min(50_000, self.limits[source]))
            except OSError:
                data = b""
            self.limits[source] -= len(data)
            while data:
                try:
                    data = data[target.send(data) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(target)
                except OSError:
                    over.cancel()
                    return
            if not self.limits[source]:
                self.is_cut = True
                over.cancel()
                return
            if source.fileno() >= 0 and _at_end(source):
                over.cancel()
                return


def _at_end(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("seed", range(30))
async def test_the_channel_breaks_anywhere(seed: int) -> None:
    """The old one has what was not answered, the new one whole parcels; none is missing, none is there twice."""
    choose = random.Random(seed)
    limit_forth = choose.choice((10**9, choose.randrange(1, 200), choose.randrange(1, 5_000_000)))
    limit_back = choose.choice((10**9, choose.randrange(1, 300)))
    relay = Relay(limit_forth, limit_back)
    old, new = make_plugin(), make_plugin()
    old_handover = Handover(heir=Sender(relay.old_end, {"jobs": ESTATE_VERSION}), given_up=True)
    new_handover = Handover([], relay.new_end)
    new_handover.in_charge.set()
    stopping = trio.Event()
    with structlog.testing.capture_logs(), trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for plugin, handover in ((old, old_handover), (new, new_handover)):
                services = Services()
                services.provide(Handover, handover)
                await nursery.start(plugin.run, services, stopping)
            nursery.start_soon(relay.run)
            nursery.start_soon(new_handover.receive)
            for number in range(JOBS // 2):
                push(old, number, choose)
            async with trio.open_nursery() as handing_over:
                handing_over.start_soon(old_handover.deliver, "jobs")
                for number in range(JOBS // 2, JOBS):  # its own workers go on pushing
                    push(old, number, choose)
                    await trio.lowlevel.checkpoint()
            await old_handover.deliver("jobs")
            relay.old_end.shutdown(socket.SHUT_RDWR)
            relay.old_end.close()
            await new_handover.received.wait()
            in_old, in_new = ids(old), ids(new)
            handed_over = old.pipelines.total().handed_over
            old_handover.heir = None
            stopping.set()
    everything = {str(number) for number in range(JOBS)}
    assert len(set(in_old)) == len(in_old)
    assert len(set(in_new)) == len(in_new)
    assert len(in_old) + handed_over == JOBS
    if not relay.is_cut:
        assert (in_old, set(in_new)) == ([], everything)
        for pipeline in new.pipelines.by_name.values():
            waiting = [(job.priority, int(job.id)) for job in pipeline.driver.ready]
            assert waiting == sorted(waiting)
    # Seen from the old one the new one is dead: what it has not answered is back, what it has answered was its own.
    assert everything - set(in_old) <= set(in_new)
    if set(in_old) & set(in_new):
        assert relay.is_cut  # the answer was lost: the side that has gone has it no more
