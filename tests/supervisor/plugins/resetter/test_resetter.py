"""resetter: replace the workers of a pool, and say why where that fails."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

from trailboss.config.schema import PoolConfig
from trailboss.container.contract import Access, Caller, CallerRole, RpcRefused, Services
from trailboss.plugins.resetter.plugin import ResetterPlugin
from trailboss.testing.check_plugin import check_plugin
from trailboss.workers.pool import PoolSet, ResetFailed


class FakePool:
    """A pool whose reset takes a while, or fails."""

    def __init__(self, name: str, failure: str = "", seconds: float = 0.0) -> None:
        self.name = name
        self.config = PoolConfig(reset_timeout=20.0)
        self.reasons: list[str] = []
        self._failure = failure
        self._seconds = seconds

    async def reset(self, reason: str) -> None:
        await trio.sleep(self._seconds)
        if self._failure:
            raise ResetFailed(self._failure)
        self.reasons.append(reason)


async def started(nursery: trio.Nursery, *pools: FakePool) -> Any:
    services = Services()
    pool_set = PoolSet()
    for pool in pools:
        pool_set.add(cast(Any, pool))
    services.provide(PoolSet, pool_set)
    plugin = ResetterPlugin()
    await nursery.start(plugin.run, services, trio.Event())
    methods = {method.name: method for method in plugin.rpc_methods()}
    caller = Caller(CallerRole.OPERATOR, pid=42)
    return lambda name, argument: cast(Any, methods[f"resetter.{name}"].handler(argument, caller))


async def test_the_list_names_what_can_be_reset(nursery: trio.Nursery) -> None:
    """resetter.List gives the names of all pools."""
    call = await started(nursery, FakePool("jobs"))
    assert call("List", True) == ["jobs"]


def test_before_the_start_the_list_is_empty() -> None:
    """The always-on method answers at any time."""
    methods = {method.name: method for method in ResetterPlugin().rpc_methods()}
    assert methods["resetter.List"].handler(True, Caller()) == []
    assert methods["resetter.List"].access is Access.ALWAYS


async def test_a_reset_answers_true_when_it_is_done(nursery: trio.Nursery) -> None:
    """The call returns after the pool has; the pool is told who asked."""
    pool = FakePool("jobs")
    call = await started(nursery, pool)
    assert await call("Reset", "jobs") is True
    assert pool.reasons == ["asked for by operator, pid 42"]


async def test_an_unknown_plugin_is_an_error(nursery: trio.Nursery) -> None:
    """RoadRunner's text for a name that does not exist."""
    call = await started(nursery, FakePool("jobs"))
    with pytest.raises(RpcRefused, match=r"^no such plugin: nope$"):
        await call("Reset", "nope")


async def test_a_failed_reset_says_why(nursery: trio.Nursery) -> None:
    """The pool's reason is the answer; the caller never hears "reset" when it was not."""
    call = await started(nursery, FakePool("jobs", failure="the new workers did not start: boom"))
    with pytest.raises(RpcRefused, match="the new workers did not start: boom"):
        await call("Reset", "jobs")


async def test_a_reset_has_the_pools_limit_and_five_seconds(
    nursery: trio.Nursery, autojump_clock: Any
) -> None:
    """reset_timeout + 5 s bounds the call; the reset itself goes on."""
    call = await started(nursery, FakePool("jobs", seconds=1000))
    began = trio.current_time()
    with pytest.raises(RpcRefused, match="has not ended within 25s"):
        await call("Reset", "jobs")
    assert trio.current_time() - began == pytest.approx(25)


def test_reset_is_sensitive_and_needs_the_pool() -> None:
    """The gate refuses it while on_init runs, and for a booting worker of that pool."""
    method = next(method for method in ResetterPlugin().rpc_methods() if method.name == "resetter.Reset")
    assert method.access is Access.SENSITIVE
    assert callable(method.needs_pool)
    assert method.needs_pool("jobs") == "jobs"


async def test_the_plugin_keeps_the_contract(autojump_clock: Any) -> None:
    """The battery for every plugin."""
    await check_plugin(ResetterPlugin)
