"""A whole server, simulated: see :mod:`trailboss.testing.simulation.run`."""

from __future__ import annotations

from trailboss.testing.simulation.plan import Fault, FaultPlan, plan_of
from trailboss.testing.simulation.run import SABOTAGES, SimulationFailed, SimulationResult, shrink, simulate

__all__ = [
    "SABOTAGES",
    "Fault",
    "FaultPlan",
    "SimulationFailed",
    "SimulationResult",
    "plan_of",
    "shrink",
    "simulate",
]
