"""What systemd is told, decided over snapshots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trailboss.container.lifecycle import WholePhase
from trailboss.plugins.systemd.notifications import Notifications, Snapshot, watchdog_interval_seconds

READY = Snapshot(WholePhase.READY, gate_open=True, fully_ready=True)


def test_a_whole_life_is_told_in_order() -> None:
    """Status texts while starting, READY=1 once, STOPPING=1 once."""
    notifications = Notifications()
    told = [
        notifications.plan(snapshot)
        for snapshot in (
            Snapshot(WholePhase.STARTING, False, False, waiting_for=("jobs", "status")),
            Snapshot(WholePhase.STARTING, False, False, waiting_for=("jobs",)),
            Snapshot(WholePhase.STARTING, False, False, waiting_for=("jobs",)),
            Snapshot(WholePhase.BOOTING, True, False, short_pools=("jobs",)),
            READY,
            Snapshot(WholePhase.READY, True, False, short_pools=("jobs",)),
            READY,
            Snapshot(WholePhase.DRAINING, True, False),
            Snapshot(WholePhase.STOPPED, False, False),
        )
    ]
    assert told == [
        "STATUS=starting: waiting for jobs, status",
        "STATUS=starting: waiting for jobs",
        "",
        "STATUS=booting pools: waiting for pool jobs",
        "READY=1\nSTATUS=ready",
        "STATUS=degraded: pool jobs has too few workers",
        "STATUS=ready",
        "STOPPING=1\nSTATUS=stopping: what runs is finished",
        "",
    ]


def test_a_server_that_stops_while_starting_never_says_ready() -> None:
    """READY=1 does not follow STOPPING=1, whatever the snapshot says."""
    notifications = Notifications()
    assert notifications.plan(Snapshot(WholePhase.DRAINING, True, True)).startswith("STOPPING=1")
    assert "READY=1" not in notifications.plan(READY)


def test_a_reload_is_told_and_ended() -> None:
    """RELOADING=1 with the time, then READY=1 again: what Type=notify-reload waits for. Before READY=1, nothing."""
    notifications = Notifications()
    reloading = Snapshot(WholePhase.READY, True, True, reloading=True, monotonic_usec=123)
    assert "RELOADING" not in Notifications().plan(
        Snapshot(WholePhase.STARTING, False, False, reloading=True)
    )
    notifications.plan(READY)
    said = notifications.plan(reloading)
    assert said == "RELOADING=1\nMONOTONIC_USEC=123\nSTATUS=reloading: new workers take over"
    assert notifications.plan(reloading) == ""
    assert notifications.plan(READY) == "READY=1\nSTATUS=ready"


def test_watchdog_needs_progress_and_a_working_gate() -> None:
    """No WATCHDOG=1 when the data plane did not take its turn, nor for a ready server whose gate is closed."""
    notifications = Notifications()
    assert notifications.alive(READY, reactor_took_its_turn=True) == "WATCHDOG=1"
    assert notifications.alive(READY, reactor_took_its_turn=False) == ""
    broken = replace(READY, broken=("idle_worker_lost",))
    assert notifications.alive(broken, reactor_took_its_turn=True) == ""
    assert notifications.plan(broken).endswith("STATUS=broken, being repaired: idle_worker_lost")
    assert notifications.alive(Snapshot(WholePhase.READY, False, False), reactor_took_its_turn=True) == ""
    starting = Snapshot(WholePhase.STARTING, False, False)
    assert notifications.alive(starting, reactor_took_its_turn=True) == "WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "17"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "18"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "1e6"}, None),
        ({"WATCHDOG_USEC": "٣٠"}, None),
        ({"WATCHDOG_USEC": "9" * 400}, None),
    ],
)
def test_watchdog_interval_is_a_third(environ: dict[str, str], seconds: float | None) -> None:
    """A third of WATCHDOG_USEC, for this process alone, and nothing for what is no number."""
    assert watchdog_interval_seconds(environ, 17) == seconds
