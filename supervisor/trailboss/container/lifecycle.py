"""Phases of one plugin and of the whole server, and the one table of what leads from phase to phase.

`declared → starting → healthy → draining → stopped`, or `failed(reason)` from anywhere before the end. A plugin is
`healthy` when it said that it can serve, not when its task exists. What happens to it is an :class:`Event`; a pair that
the table does not list is a mistake of the caller and raises :class:`LifecycleError`. Nothing here knows tasks or time.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

__all__ = ["TRANSITIONS", "Event", "LifecycleError", "Phase", "WholePhase", "event_of_exit", "step"]


class Phase(enum.Enum):
    """Phase of one plugin; the transitions are :data:`TRANSITIONS`."""

    DECLARED = "declared"
    STARTING = "starting"
    HEALTHY = "healthy"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class WholePhase(enum.Enum):
    """Phase of the whole server, as `trailboss.State` and `service not ready` say it."""

    STARTING = "starting"  # steps 1-4: back-ends start, the gate is closed
    INITIALISING = "initialising"  # step 5: on_init commands run, sensitive methods are refused
    BOOTING = "booting pools"  # step 6: workers start
    READY = "ready"  # step 7: every pool has its quorum, listeners open
    DRAINING = "draining"  # stopping: intake closed, what runs is finished
    STOPPED = "stopped"


class Event(enum.Enum):
    """What can happen to a plugin."""

    START = "start"  # its requirements are healthy, its task begins
    READY = "ready"  # it said that it can serve
    FAIL = "fail"  # it raised, ended unasked, was too late, or what it requires has failed
    STOP = "stop"  # the server stops
    EXIT = "exit"  # its task has ended as asked


_P, _E = Phase, Event

TRANSITIONS: Final[Mapping[Phase, Mapping[Event, Phase]]] = {
    _P.DECLARED: {
        _E.START: _P.STARTING,
        _E.FAIL: _P.FAILED,
        _E.STOP: _P.STOPPED,  # never started: there is nothing to drain
    },
    _P.STARTING: {
        _E.READY: _P.HEALTHY,
        _E.FAIL: _P.FAILED,
        _E.STOP: _P.DRAINING,
    },
    _P.HEALTHY: {
        _E.FAIL: _P.FAILED,
        _E.STOP: _P.DRAINING,
    },
    _P.DRAINING: {
        _E.READY: _P.DRAINING,  # "I can serve" came after the order to stop: too late to matter
        _E.STOP: _P.DRAINING,
        _E.FAIL: _P.FAILED,  # an error while cleaning up; the walk goes on
        _E.EXIT: _P.STOPPED,
    },
    _P.STOPPED: {
        _E.STOP: _P.STOPPED,
    },
    # The reason of a failure stays visible to the end, whatever its task does afterwards.
    _P.FAILED: {
        _E.READY: _P.FAILED,
        _E.FAIL: _P.FAILED,
        _E.STOP: _P.FAILED,
        _E.EXIT: _P.FAILED,
    },
}


class LifecycleError(Exception):
    """The table has no such transition; holds `phase` and `event`."""

    def __init__(self, phase: Phase, event: Event) -> None:
        super().__init__(f"a plugin that is {phase.value} cannot {event.value}")
        self.phase = phase
        self.event = event


def step(phase: Phase, event: Event) -> Phase:
    """Return the phase that `event` leads to. Raises LifecycleError for a pair that the table does not have."""
    try:
        return TRANSITIONS[phase][event]
    except KeyError:
        raise LifecycleError(phase, event) from None


def event_of_exit(phase: Phase, *, raised: bool) -> Event:
    """Say what the end of a plugin's task means: ending is right only while it drains, and only without an error."""
    if raised or phase in (Phase.STARTING, Phase.HEALTHY):
        return Event.FAIL
    return Event.EXIT
