"""A container for tests: plugins up inside a ``async with`` block, walked back when it is left.

The real container, with nothing faked, so that a plugin's test exercises the very start and stop that production uses.
Works under trio's mock clock (where plugins do no real I/O) and under the real one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import trio

from trailboss.container.contract import Plugin, Services
from trailboss.container.startup import Container, PoolLike

if TYPE_CHECKING:
    from trailboss.workers.pool import PoolSpec

__all__ = ["Ready", "lived", "run_container"]


class Ready:
    """A task_status that can be asked and waited for."""

    def __init__(self) -> None:
        self.event = trio.Event()

    @property
    def status(self) -> trio.TaskStatus[None]:
        """Itself, as the type that `run` takes."""
        return cast("trio.TaskStatus[None]", self)

    def started(self, value: object = None) -> None:
        """Note that the thing can serve."""
        self.event.set()


@asynccontextmanager
async def run_container(
    plugins: Sequence[Plugin],
    *,
    rpc: Plugin | None = None,
    optional: Collection[str] = (),
    on_init: Callable[[], Awaitable[None]] | None = None,
    make_pool: Callable[[PoolSpec], PoolLike] | None = None,
    services: Services | None = None,
    grace_period_seconds: float = 5.0,
    start_seconds_max: float = 60.0,
) -> AsyncIterator[Container]:
    """Give the container when it is ready, and stop it in order on the way out.

    Raises: PluginFailed or StartFailed, bare, where the start fails; trio.TooSlowError where start or stop hangs.
    """
    container = Container(
        plugins,
        rpc=rpc,
        optional=optional,
        on_init=on_init,
        make_pool=make_pool,
        services=services,
        grace_period_seconds=grace_period_seconds,
    )
    async with lived(container, start_seconds_max, grace_period_seconds + 2):
        yield container


@asynccontextmanager
async def lived(
    container: Container, start_seconds_max: float, stop_seconds_max: float
) -> AsyncIterator[None]:
    """Let a container live: ready inside the block, stopped behind it. Raises what :func:`run_container` raises."""
    stop, ready, over = trio.Event(), Ready(), trio.Event()
    failures: list[
        Exception
    ] = []  # of the container or of the block; raised bare, which a nursery would not do

    async def live() -> None:
        try:
            await container.run(stop, task_status=ready.status)
        except Exception as error:
            failures.append(error)
        finally:
            over.set()
            ready.event.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        with trio.fail_after(start_seconds_max):
            await ready.event.wait()
        if not failures:
            try:
                yield
            except Exception as error:
                failures.append(error)
            finally:
                stop.set()
                # Shielded so that a test which fails its own deadline still stops in order; bounded by the grace period.
                with trio.fail_after(stop_seconds_max, shield=True):
                    await over.wait()
    if failures:
        raise failures[0]
