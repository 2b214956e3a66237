"""The plugin: one datagram socket, one task that follows the server's state, one that beats the watchdog.

It exists only where NOTIFY_SOCKET is set. A datagram that cannot be sent is logged once and never an error: systemd then
decides by its own deadlines.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence

import trio

from trailboss.container.contract import Layer, Plugin, Services
from trailboss.container.state import ServerState
from trailboss.handover import Handover
from trailboss.log import logger
from trailboss.plugins.systemd.notifications import Notifications, Snapshot, watchdog_interval_seconds
from trailboss.reactor import Reactor
from trailboss.systemd import send_notification
from trailboss.workers.watchdog import Watchdog

__all__ = ["SystemdPlugin"]

log = logger("systemd")


class SystemdPlugin(Plugin):
    """Speaks sd_notify. The first layer, so that STATUS= says what the others wait for."""

    name = "systemd"
    layer = Layer.TELEMETRY
    after = frozenset({"logs"})

    def __init__(self, environ: Mapping[str, str]) -> None:
        """`environ` is the process's environment as systemd made it."""
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog_seconds = watchdog_interval_seconds(environ, os.getpid())
        self._notifications = Notifications()
        self._handover = Handover()
        self._failed = ""
        self._watchdog: Watchdog | None = None

    @classmethod
    def wanted(cls, environ: Mapping[str, str]) -> bool:
        """Whether a service manager listens."""
        return bool(environ.get("NOTIFY_SOCKET"))

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Follow the server's state until the very end of the stop. On cancellation: ends at once."""
        state = services.get(ServerState)
        reactor = services.find(Reactor)
        self._watchdog = services.find(Watchdog)
        self._handover = services.find(Handover) or self._handover
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.setblocking(False)
            self._follow(notify, state)
            self._handover.on_in_charge.append(state.changed)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_changes, notify, state)
                if self._watchdog_seconds is not None:
                    nursery.start_soon(self._beat, notify, state, reactor, self._watchdog_seconds)
                task_status.started()
                await stopping.wait()
                nursery.cancel_scope.cancel("the server stops")
            self._follow(notify, state)

    def state_detail(self) -> Mapping[str, object]:
        """Say what systemd was told."""
        return {
            "ready_sent": self._notifications.ready_sent,
            "watchdog_seconds": self._watchdog_seconds or 0,
            "error": self._failed,
        }

    async def _follow_changes(self, notify: socket.socket, state: ServerState) -> None:
        while True:
            self._follow(notify, state)
            await state.wait_change()

    def _follow(self, notify: socket.socket, state: ServerState) -> None:
        if self._handover.is_successor:  # the old server speaks; systemd complains of anybody else
            return
        was_ready = self._notifications.ready_sent
        self._send(notify, self._notifications.plan(snapshot(state)))
        if self._notifications.ready_sent and not was_ready:
            log.info("sdnotify: notified", watchdog_seconds=self._watchdog_seconds or 0)

    async def _beat(
        self, notify: socket.socket, state: ServerState, reactor: Reactor | None, seconds: float
    ) -> None:
        """Send WATCHDOG=1 whenever the data plane has answered the question of the beat before."""
        answered = True

        def answer() -> None:
            nonlocal answered
            answered = True

        while True:
            broken = self._watchdog.broken if self._watchdog is not None else ()
            if not self._handover.is_successor:
                self._send(notify, self._notifications.plan(snapshot(state, broken)))
                self._send(notify, self._notifications.alive(snapshot(state, broken), answered))
            if reactor is not None:
                answered = False
                reactor.call_soon(answer)
            await trio.sleep(seconds)

    def _send(self, notify: socket.socket, text: str) -> None:
        if not text or self._handover.given_up:  # its successor speaks for the service
            return
        try:
            send_notification(notify, self._address, text)
            self._failed = ""
        except OSError as error:
            if not self._failed:
                log.warning("systemd cannot be notified", socket=self._address, error=error.strerror)
            self._failed = f"cannot send to {self._address}: {error.strerror}"


def snapshot(state: ServerState, broken: Sequence[str] = ()) -> Snapshot:
    """Return what the notifications are decided from."""
    view = state.view()
    return Snapshot(
        whole=view.whole,
        gate_open=view.open,
        fully_ready=state.fully_ready,
        waiting_for=tuple(name.partition(" (")[0] for name in state.waiting_for()),
        short_pools=tuple(sorted(view.booting_pools)) or state.short_pools,
        reloading=state.reloading,
        monotonic_usec=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000,
        broken=broken,
    )
