"""What the state says to people: no secrets, and cheap where it is asked often."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trailboss.assembly import assemble
from trailboss.config import LoadRequest, load
from trailboss.container.order import Stage, stop_sequence
from trailboss.container.state import ServerState
from trailboss.plugins.logs.system import LogSystem


class FakePool:
    """A pool that says of itself what a test wants."""

    def __init__(self, name: str, at_quorum: bool, failure: object = "") -> None:
        self.name = name
        self.at_quorum = at_quorum
        self.failure = failure

    def describe(self) -> Mapping[str, object]:
        return {"name": self.name, "last_failure": self.failure}


async def test_last_words_are_shown_without_secrets() -> None:
    """Why a pool has no workers may hold a command line or the output of a worker."""
    state = ServerState()
    state.add_pool(
        FakePool("jobs", False, "exit 1: no access to pgsql://app:hunter2@db with --token=hunter2")
    )
    (pool,) = state.as_dict()["pools"]  # type: ignore[misc] # a list of rows
    assert pool["last_failure"] == "exit 1: no access to pgsql://***@db with --token=***"


def test_short_pools_are_those_below_their_quorum() -> None:
    """Names only, in the order in which the pools came to be."""
    state = ServerState()
    for pool in (FakePool("a", False), FakePool("b", True), FakePool("c", False)):
        state.add_pool(pool)
    assert state.short_pools == ("a", "c")


def test_logs_stop_last(tmp_path: Path) -> None:
    """Every plugin that starts early starts after the one that writes the log, so it stops before it and may speak."""
    path = tmp_path / "trailboss.json"
    path.write_text('{"version": "3", "rpc": {}, "otel": {}, "status": {"address": "127.0.0.1:0"}}')
    config = load(LoadRequest(path=str(path)))
    assembly = assemble(config, LogSystem(config.logs), {"NOTIFY_SOCKET": "/nowhere"})
    assembly.reactor.close()
    plan = assembly.container._plan
    early = {*plan.stage(Stage.TELEMETRY), *plan.stage(Stage.RPC)} - {"logs"}
    assert {"rpc", "status", "otel", "systemd", "informer", "resetter", "app"} <= early
    assert [name for name in sorted(early) if "logs" not in plan.requirements[name]] == []
    assert stop_sequence(plan, plan.order).after_gate_closed[-1] == "logs"
