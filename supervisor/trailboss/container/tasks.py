"""Tasks with an owner and an end that can be bounded: what the container runs plugins, pools and single steps in.

Each task has a cancel scope of its own and a done event; an exception ends up as a value in it and never reaches the
nursery, so no plugin can take another one down. :meth:`OwnedTasks.finish` waits for an end up to a deadline, then
cancels, then waits a little more, and gives up: trio cannot take a task away from code that shields itself for ever.
Such a task is *abandoned*: named, logged, and left to the end of the process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from trailboss.container.contract import PluginFailed
from trailboss.container.deadlines import StopBudget
from trailboss.log import logger

__all__ = ["OwnedTask", "OwnedTasks", "describe_error", "is_own_error", "open_tasks"]

log = logger("container")


@dataclass(eq=False, slots=True)
class OwnedTask:
    """One task: whose it is, what it does ("run", "open", "pool jobs"), and how it ended."""

    owner: str
    what: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    error: BaseException | None = None
    abandoned: bool = False

    @property
    def title(self) -> str:
        """The task in words, for logs and for `Container.abandoned`."""
        return self.owner if self.what == "run" else f"{self.owner} ({self.what})"


class OwnedTasks:
    """All tasks of one container; made by :func:`open_tasks`, which also ends them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._running: set[OwnedTask] = set()
        self._waits: set[trio.CancelScope] = set()
        self._axe_waits: set[trio.CancelScope] = set()
        self._hurried = False
        self._budget: StopBudget | None = None

    @property
    def abandoned(self) -> tuple[str, ...]:
        """Titles of the tasks that were given up and still run."""
        return tuple(sorted(task.title for task in self._running if task.abandoned))

    def keep_to(self, budget: StopBudget) -> StopBudget:
        """Take the budget of the stop, of which cleaning up gets its share; returns it, hurried if everybody is."""
        self._budget = budget.hurried(trio.current_time()) if self._hurried else budget
        return self._budget

    def spawn(
        self,
        owner: str,
        what: str,
        function: Callable[[], Awaitable[object]],
        on_end: Callable[[OwnedTask], None] = lambda _task: None,
    ) -> OwnedTask:
        """Run `function` in a task; `on_end` is called in it, once, when it has ended in whatever way."""
        task = OwnedTask(owner, what)
        self._running.add(task)
        self._nursery.start_soon(self._guard, task, function, on_end, name=f"trailboss {task.title}")
        return task

    async def wait(self, event: trio.Event, deadline: float) -> bool:
        """Wait for `event` up to `deadline`, or until everybody is told to hurry; say whether it has happened."""
        with trio.CancelScope(deadline=trio.current_time() if self._hurried else deadline) as scope:
            self._waits.add(scope)
            try:
                await event.wait()
            finally:
                self._waits.discard(scope)
        return event.is_set()

    async def finish(self, tasks: Iterable[OwnedTask], deadline: float) -> None:
        """Let all end by `deadline`; cancel who is late; give up who does not even obey that. Never raises."""
        tasks = list(tasks)
        for task in tasks:
            await self.wait(task.done, deadline)
        late = [task for task in tasks if not task.done.is_set()]
        for task in late:
            log.warning("stop deadline passed, cancelling", plugin=task.owner, step=task.what)
            task.scope.cancel(reason="its stop deadline has passed")
        await self._cleaned_up(late)

    async def cut(self, tasks: Iterable[OwnedTask], deadline: float) -> None:
        """Cancel all now and let them clean up until `deadline`; give up who does not end. Never raises."""
        tasks = [task for task in tasks if not task.done.is_set()]
        for task in tasks:
            task.scope.cancel(reason="the server stops")
        for task in tasks:
            await self.wait(task.done, deadline)
        await self._cleaned_up([task for task in tasks if not task.done.is_set()])

    def hurry(self) -> None:
        """Make every deadline now, of waits under way as well as of those to come."""
        self._hurried = True
        now = trio.current_time()
        if self._budget is not None:
            self._budget = self._budget.hurried(now)
            for scope in self._axe_waits:  # the share was one of a longer time
                scope.deadline = min(scope.deadline, self._axe_until(now))
        for scope in self._waits:
            scope.deadline = min(scope.deadline, now)

    def _axe_until(self, now: float) -> float:
        return now if self._budget is None else self._budget.axe_until(now, len(self._running))

    async def _cleaned_up(self, tasks: list[OwnedTask]) -> None:
        for task in tasks:
            with trio.move_on_at(self._axe_until(trio.current_time())) as scope:
                self._axe_waits.add(scope)
                try:
                    await task.done.wait()
                finally:
                    self._axe_waits.discard(scope)
            if not task.done.is_set():
                task.abandoned = True
                log.error(
                    "task ignores its cancellation, given up; it ends with the process",
                    plugin=task.owner,
                    step=task.what,
                )

    async def _guard(
        self,
        task: OwnedTask,
        function: Callable[[], Awaitable[object]],
        on_end: Callable[[OwnedTask], None],
    ) -> None:
        """The supervision boundary: what a plugin raises becomes a value; KeyboardInterrupt and our own end pass."""
        try:
            with task.scope:
                await function()
        except (Exception, SystemExit) as error:
            task.error = error
        except BaseExceptionGroup as group:
            # Raised beside an outer cancellation: that one has to go on, and what it cut short needs no report.
            task.error, others = group.split(lambda error: isinstance(error, (Exception, SystemExit)))
            if others is not None:
                raise others from None
        finally:
            self._running.discard(task)
            task.done.set()
            on_end(task)


@asynccontextmanager
async def open_tasks() -> AsyncIterator[OwnedTasks]:
    """Open the nursery of the container's tasks; on leaving, whatever still runs is cancelled and waited for."""
    async with trio.open_nursery() as nursery:
        tasks = OwnedTasks(nursery)
        try:
            yield tasks
        finally:
            nursery.cancel_scope.cancel(reason="the container has ended")


def describe_error(error: BaseException) -> str:
    """Say in one text what went wrong: our own errors speak for themselves, others need their type."""
    if isinstance(error, PluginFailed):
        return error.reason
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(describe_error(part) for part in error.exceptions))
    text = str(error)
    if text and is_own_error(error):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_own_error(error: BaseException) -> bool:
    """Say whether the error is one of Trailboss's own, whose text is a sentence for people."""
    return type(error).__module__.partition(".")[0] == "trailboss"
