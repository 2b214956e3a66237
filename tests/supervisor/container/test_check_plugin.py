"""The battery for plugins: it passes good ones and catches each kind of bad one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import trio
import trio.lowlevel
import trio.testing

from trailboss.container.contract import Health, Layer, Plugin, RpcMethod, Services
from trailboss.container.state import ServerState
from trailboss.testing.check_plugin import check_plugin

Status = trio.TaskStatus[None]


class Good(Plugin):
    """A plugin with a task of its own, which needs another one."""

    name = "good"
    layer = Layer.DRIVER
    requires = frozenset({"base"})
    stop_timeout_seconds = 1.0

    async def run(
        self, services: Services, stopping: trio.Event, task_status: Status = trio.TASK_STATUS_IGNORED
    ) -> None:
        services.get(ServerState)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep(0.1)
            task_status.started()
            await stopping.wait()
            nursery.cancel_scope.cancel()


class Base(Plugin):
    """What the good one needs."""

    name = "base"


async def test_good_plugin_passes(autojump_clock: trio.testing.MockClock) -> None:
    """A plugin that keeps the contract passes."""
    await check_plugin(Good, beside=lambda: [Base()])


async def test_default_plugin_passes(autojump_clock: trio.testing.MockClock) -> None:
    """The base class itself is a sound plugin once it has a name."""
    await check_plugin(Base)


class Bad(Plugin):
    """A plugin to be spoilt."""

    name = "bad"
    start_timeout_seconds = 3.0
    stop_timeout_seconds = 1.0


class Nameless(Bad):
    name = ""


class NeverReady(Bad):
    async def run(
        self, services: Services, stopping: trio.Event, task_status: Status = trio.TASK_STATUS_IGNORED
    ) -> None:
        await stopping.wait()


class NeverEnding(Bad):
    async def run(
        self, services: Services, stopping: trio.Event, task_status: Status = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await trio.sleep_forever()


class EndsUnasked(Bad):
    async def run(
        self, services: Services, stopping: trio.Event, task_status: Status = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await trio.lowlevel.checkpoint()


class FailsInCleanup(Bad):
    async def run(
        self, services: Services, stopping: trio.Event, task_status: Status = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await stopping.wait()
        raise OSError("the door is stuck")


class SilentlyIll(Bad):
    def health(self) -> Health:
        return Health(ok=False)


class IllAfterStart(Bad):
    def health(self) -> Health:
        return Health(ok=False, reason="not yet")


class Unspeakable(Bad):
    def state_detail(self) -> Mapping[str, object]:
        return {"figure": object()}


async def handler(argument: object, caller: object) -> None:
    """Never called."""


class DoubleMethods(Bad):
    def rpc_methods(self) -> list[RpcMethod]:
        return [RpcMethod("bad.Thing", handler), RpcMethod("bad.Thing", handler)]


class OddMethods(Bad):
    def rpc_methods(self) -> list[RpcMethod]:
        return [RpcMethod("Thing", handler)]


class LeavesSomething(Bad):
    """Takes something that its second life finds taken: what a listening socket that is never closed does."""

    taken = False

    async def run(
        self, services: Services, stopping: trio.Event, task_status: Status = trio.TASK_STATUS_IGNORED
    ) -> None:
        if LeavesSomething.taken:
            raise OSError("address already in use")
        LeavesSomething.taken = True
        task_status.started()
        await stopping.wait()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Nameless, "has no name"),
        (NeverReady, "not ready within its start timeout of 3 s"),
        (NeverEnding, "did not return within stop_timeout_seconds = 1"),
        (EndsUnasked, "ended without being asked to"),
        (FailsInCleanup, "the door is stuck"),
        (SilentlyIll, "bad health without a reason"),
        (IllAfterStart, "bad health right after the start: not yet"),
        (Unspeakable, "not JSON serializable"),
        (DoubleMethods, "declared twice"),
        (OddMethods, "is not Service.Method"),
        (LeavesSomething, "address already in use"),
    ],
)
async def test_bad_plugin_is_caught(
    make: Callable[[], Plugin], words: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Each way of breaking the contract fails the battery, and the error says which."""
    LeavesSomething.taken = False

    with pytest.raises(Exception, match=words):
        await check_plugin(make)
