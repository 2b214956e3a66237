"""The plugin `reload`: watch the application's files and replace the workers when one changes. For development.

The kernel says what has changed (watchfiles, in a thread that sleeps); nothing is scanned. What comes within a moment is
one change. Then every pool is reset as by `trailboss reset`: new workers first, and where they do not boot, because of
half a line of code, the old ones go on and the log shows why; the next change tries again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from trailboss.config.schema import ReloadConfig
from trailboss.container.contract import Layer, Phase, Plugin, PluginFailed, Services
from trailboss.log import logger
from trailboss.plugins.reload.files import FOLDERS_MAX, Rules, is_folder
from trailboss.workers.pool import PoolSet, ResetFailed

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

    from trailboss.workers.pool import Pool

__all__ = ["MISSING_TEXT", "ReloadPlugin"]

log = logger("reload")

MISSING_TEXT: Final = "reloading needs the package watchfiles, which is not installed: pip install watchfiles, where Trailboss is installed"
#: Between two looks at what the kernel has said, and how long changes that go on are collected.
STEP_MILLISECONDS: Final = 100
GATHER_MILLISECONDS: Final = 1000
#: Files that a log line names.
NAMED_MAX: Final = 5


class ReloadPlugin(Plugin):
    """See the module's text. Idle until the server is ready, and again as soon as it stops."""

    name = "reload"
    layer = Layer.TELEMETRY
    after = frozenset({"logs"})

    def __init__(self, config: ReloadConfig) -> None:
        self._roots = [os.path.abspath(path) for path in config.paths]
        self._rules = Rules(config.patterns, config.ignore)
        self._opened = trio.Event()
        self._closing = trio.Event()
        self._folders: list[str] = []
        self._notify: RustNotify | None = None

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Begin to watch; act on changes from `open` on.

        Raises: PluginFailed where watchfiles is missing, a path does not exist, or the kernel allows no more watches.
        On cancellation: watching ends; a reset that is under way goes on in its pool.
        """
        await self._watch_anew()
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, services)
                await self._closing_or(stopping)
                nursery.cancel_scope.cancel(reason="the server is stopping")
        finally:
            self._notify = None

    async def open(self) -> None:
        """The workers are ready: changes count."""
        self._opened.set()

    async def close_intake(self) -> None:
        """No new workers while the old ones drain."""
        self._closing.set()

    async def _closing_or(self, stopping: trio.Event) -> None:
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel(reason="one of them is set")

            nursery.start_soon(wait, stopping)
            nursery.start_soon(wait, self._closing)

    # --- watching -----------------------------------------------------------------------------------------------------

    async def _watch_anew(self) -> list[str]:
        """Watch the folders that there are now; returns the files in those that are new."""
        try:
            from watchfiles._rust_notify import RustNotify
        except ImportError as error:
            raise PluginFailed(self.name, Phase.STARTING, MISSING_TEXT) from error
        before = set(self._folders)
        try:
            folders = await trio.to_thread.run_sync(self._rules.folders, self._roots)
        except FileNotFoundError as error:
            text = f"reload.paths: there is no {error.filename}; correct the path"
            raise PluginFailed(self.name, Phase.STARTING, text) from error
        if len(folders) >= FOLDERS_MAX:
            log.warning(
                "too many folders: the rest is not watched; put large ones into reload.ignore",
                watched=len(folders),
            )
        make = partial(RustNotify, folders, False, False, 0, False, True)
        try:
            self._notify = await trio.to_thread.run_sync(make)
        except OSError as error:
            text = f"the files cannot be watched: {error}; put large folders into reload.ignore"
            raise PluginFailed(self.name, Phase.STARTING, text) from error
        self._folders = folders
        return self._rules.files_in([folder for folder in folders if before and folder not in before])

    async def _follow(self, services: Services) -> None:
        """Wait for changes and act on them, for ever."""
        await self._opened.wait()
        log.info("watching for changes", paths=self._roots, folders=len(self._folders))
        while True:
            changed = await self._changes()
            files = {path for path in changed if self._rules.takes_file(path)}
            if await trio.to_thread.run_sync(self._any_new_or_gone, changed):
                try:
                    files.update(await self._watch_anew())
                except PluginFailed as error:
                    log.error("changes are not seen any more", text=error.reason)
                    return
            if files:
                await self._reload(files, services)

    async def _changes(self) -> set[str]:
        """The paths that have changed, once nothing has changed for a moment."""
        notify, stop = self._notify, threading.Event()
        assert notify is not None
        watch = partial(notify.watch, GATHER_MILLISECONDS, STEP_MILLISECONDS, 0, stop)
        try:
            changes = await trio.to_thread.run_sync(watch, abandon_on_cancel=True)
        finally:
            stop.set()  # ends an abandoned thread within one step
        return {path for _, path in changes} if isinstance(changes, set) else set()

    def _any_new_or_gone(self, changed: Iterable[str]) -> bool:
        """Whether a folder has come or gone, so that others have to be watched."""
        return any(self._is_new_or_gone(path) for path in changed)

    def _is_new_or_gone(self, path: str) -> bool:
        return (path in self._folders) != (self._rules.takes_folder(path) and is_folder(path))

    # --- acting -------------------------------------------------------------------------------------------------------

    async def _reload(self, files: Iterable[str], services: Services) -> None:
        names = sorted(map(self._shown, files))
        more = {"more": len(names) - NAMED_MAX} if len(names) > NAMED_MAX else {}
        log.info("reloading", changed=names[:NAMED_MAX], **more)
        reason = f"{names[0]} has changed"
        pools = list(services.find(PoolSet) or ())
        async with trio.open_nursery() as nursery:
            for pool in pools:
                nursery.start_soon(_reset, pool, reason)

    def _shown(self, path: str) -> str:
        for root in self._roots:
            if path.startswith(f"{root}/"):
                return os.path.relpath(path, root)
        return path


async def _reset(pool: Pool, reason: str) -> None:
    began, name = trio.current_time(), pool.name
    try:
        await pool.reset(reason)
    except ResetFailed:
        # The pool has said why; what the new workers said stands above it.
        log.error("not reloaded: the old workers go on; correct the file to try again", pool=name)
    else:
        log.info("reloaded", pool=name, took_seconds=round(trio.current_time() - began, 3))
