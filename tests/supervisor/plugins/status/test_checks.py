"""Who is healthy and who is ready: the table of cases, as pure decisions."""

from __future__ import annotations

import pytest

from trailboss.container.contract import Health, Phase, PluginState
from trailboss.plugins.status.checks import Check, PoolFigures, StatusRow, overall_code, row_of, rows


def plugin(
    name: str, phase: Phase = Phase.HEALTHY, reason: str = "", health: Health | None = None
) -> PluginState:
    if health is None and phase is Phase.HEALTHY:
        health = Health(ok=True)
    return PluginState(name, phase, 1.0, (), reason, False, health)


def pool(
    name: str, phase: str = "ready", ready: int = 2, *, quorum: int = 1, debug: bool = False
) -> PoolFigures:
    return PoolFigures(name, phase, ready, quorum, phase == "ready" and ready >= quorum, debug)


@pytest.mark.parametrize(
    ("state", "figures", "health", "ready"),
    [
        (plugin("jobs"), pool("jobs"), "", ""),
        (plugin("jobs"), None, "", ""),
        (None, pool("jobs"), "", ""),
        (plugin("jobs"), pool("jobs", ready=1, quorum=2), "", "pool ready: 1 of 2 workers ready"),
        (
            plugin("jobs"),
            pool("jobs", "booting", 0),
            "pool booting: no worker",
            "pool booting: 0 of 1 workers ready",
        ),
        (
            plugin("jobs"),
            pool("jobs", "degraded", 0),
            "pool degraded: no worker",
            "pool degraded: 0 of 1 workers ready",
        ),
        (plugin("jobs"), pool("jobs", ready=0, quorum=0, debug=True), "", ""),
        (plugin("jobs", Phase.STARTING), None, "starting", "starting"),
        (plugin("jobs", Phase.FAILED, "no disk"), pool("jobs"), "failed: no disk", "failed: no disk"),
        (plugin("jobs", health=Health(ok=False, reason="full")), pool("jobs"), "full", "full"),
        (plugin("jobs", health=Health(ok=False)), None, "not healthy", "not healthy"),
    ],
)
def test_one_plugin(state: PluginState | None, figures: PoolFigures | None, health: str, ready: str) -> None:
    """Each case: what /health says, what /ready says; the code follows from the text."""
    plugins = {"jobs": state} if state else {}
    pools = {"jobs": figures} if figures else {}
    for check, text in ((Check.HEALTH, health), (Check.READY, ready)):
        expected = StatusRow("jobs", text, 503 if text else 200)
        assert row_of("jobs", check, plugins, pools, 503) == expected


def test_without_names_pools_and_trouble_are_listed() -> None:
    """Plugins with a pool are always there; others only when something is wrong with them."""
    plugins = {name: plugin(name) for name in ("jobs", "logs")} | {
        "otel": plugin("otel", Phase.FAILED, "gone")
    }
    found = rows([], Check.HEALTH, plugins, {"jobs": pool("jobs")}, 503)
    assert [(row.plugin_name, row.status_code) for row in found] == [("jobs", 200), ("otel", 503)]


def test_a_name_that_does_not_exist_is_404() -> None:
    """A typing error in a probe is told, never an empty 200."""
    found = rows(["jobs", "typo"], Check.READY, {"jobs": plugin("jobs")}, {}, 503)
    assert found == [StatusRow("jobs", "", 200), StatusRow("typo", "no such plugin: typo", 404)]
    assert overall_code(found, 503) == 404


@pytest.mark.parametrize(("codes", "code"), [([], 200), ([200], 200), ([200, 503], 555), ([503, 404], 404)])
def test_the_overall_code(codes: list[int], code: int) -> None:
    """Wrong question first, then anything unwell, else 200."""
    assert overall_code([StatusRow("x", "", found) for found in codes], 555) == code
