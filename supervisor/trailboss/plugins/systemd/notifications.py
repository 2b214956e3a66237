"""What systemd is told and when: plain decisions over a snapshot of the server.

READY=1 goes out when the gate is open and every pool has its quorum, and again after a reload, which RELOADING=1 begins;
STOPPING=1 once, when the stop begins; STATUS=
whenever its text changes. WATCHDOG=1 goes out at a third of the interval systemd asks for, and only while there is proof
of progress since the last time: the loop ran (or nobody would ask), the data plane took its turn, a server that says it
is ready has its gate open, and the invariant watchdog has found nothing that is still broken. Pure: no clock, no socket.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trailboss.container.lifecycle import WholePhase

__all__ = ["Notifications", "Snapshot", "watchdog_interval_seconds"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The server at one moment. `waiting_for` are names; `short_pools` are pools below their quorum."""

    whole: WholePhase
    gate_open: bool
    fully_ready: bool
    waiting_for: Sequence[str] = ()
    short_pools: Sequence[str] = ()
    #: The workers are being replaced; `monotonic_usec` is the time of this snapshot (CLOCK_MONOTONIC).
    reloading: bool = False
    monotonic_usec: int = 0
    #: Invariants that do not hold at this moment; see `trailboss.workers.watchdog`.
    broken: Sequence[str] = ()

    @property
    def status(self) -> str:
        """One line for `systemctl status`."""
        if self.whole in (WholePhase.DRAINING, WholePhase.STOPPED):
            return "stopping: what runs is finished"
        if self.broken:
            return f"broken, being repaired: {', '.join(self.broken)}"
        if self.reloading:
            return "reloading: new workers take over"
        if self.fully_ready:
            return "ready"
        if self.whole is WholePhase.READY:
            return (
                f"degraded: pool {', '.join(self.short_pools)} has too few workers"
                if self.short_pools
                else "degraded"
            )
        waits = ", ".join(self.waiting_for) or ", ".join(f"pool {name}" for name in self.short_pools)
        return f"{self.whole.value}: waiting for {waits}" if waits else self.whole.value


class Notifications:
    """Remembers what has been said; `plan` returns the next datagram, or "" when there is nothing new."""

    def __init__(self) -> None:
        self.ready_sent = False
        self.stopping_sent = False
        self.reloading_sent = False
        self._status = ""

    def plan(self, snapshot: Snapshot) -> str:
        """Return what to send now, as lines of one datagram."""
        lines = []
        stopping = snapshot.whole in (WholePhase.DRAINING, WholePhase.STOPPED)
        if stopping and not self.stopping_sent:
            self.stopping_sent = True
            lines.append("STOPPING=1")
        if snapshot.fully_ready and not self.ready_sent and not self.stopping_sent:
            self.ready_sent = True
            lines.append("READY=1")
        if self.ready_sent and not self.stopping_sent and snapshot.reloading is not self.reloading_sent:
            self.reloading_sent = snapshot.reloading
            # Type=notify-reload waits for the one, with its time, and then for the other.
            lines += (
                ["RELOADING=1", f"MONOTONIC_USEC={snapshot.monotonic_usec}"]
                if snapshot.reloading
                else ["READY=1"]
            )
        if snapshot.status != self._status:
            self._status = snapshot.status
            lines.append(f"STATUS={snapshot.status}")
        return "\n".join(lines)

    def alive(self, snapshot: Snapshot, reactor_took_its_turn: bool) -> str:
        """Return the watchdog's datagram, or "" where there is no proof of progress."""
        wedged = snapshot.whole is WholePhase.READY and not snapshot.gate_open
        return "WATCHDOG=1" if reactor_took_its_turn and not wedged and not snapshot.broken else ""


def watchdog_interval_seconds(environ: Mapping[str, str], pid: int) -> float | None:
    """Return a third of the interval systemd asks this very process for, or None where it asks for nothing."""
    text = environ.get("WATCHDOG_USEC", "")
    if not (text.isascii() and text.isdigit()) or len(text) > 18 or int(text) == 0:
        return None
    if environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(text) / 3_000_000
