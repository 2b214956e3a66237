"""`trailboss state` (also `status`): phase of the server and of every plugin, and what is waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import click

from trailboss.cli.client import connect
from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import clean, json_flag, print_json, print_table

__all__ = ["command", "headline", "plugin_row", "pool_row"]

#: Characters of a failed reset's reason in the table; --json has all of it.
FAILURE_WIDTH = 120
PLUGIN_HEADINGS = ("PLUGIN", "PHASE", "SINCE", "HEALTHY", "WAITING FOR", "REASON")
_POOL_COLUMNS = (
    *("name", "phase", "ready", "quorum", "idle", "busy", "booting"),
    *("queued", "deaths", "restarts", "last_failure"),
)
POOL_HEADINGS = ("POOL", *(name.upper().replace("_", " ") for name in _POOL_COLUMNS[1:]))


@click.command("state")
@json_flag
@global_flags
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show phase and health of the server, its plugins and pools. Exit code 1 while it is not ready."""
    with connect(settings_of(context)) as rpc:
        state = rpc.state()
    if as_json:
        print_json(state)
    else:
        click.echo(headline(state))
        print_table("", PLUGIN_HEADINGS, [plugin_row(row) for row in rows_of(state, "plugins")])
        if rows_of(state, "pools"):
            print_table("", POOL_HEADINGS, [pool_row(row) for row in rows_of(state, "pools")])
    context.exit(0 if state.get("ready") else 1)


def headline(state: Mapping[str, object]) -> str:
    """Return the server in one line."""
    waiting = state.get("waiting_for")
    waits = f"; waiting for {', '.join(map(clean, waits_of(waiting)))}" if waiting else ""
    ready = "ready" if state.get("ready") else "not ready"
    return (
        f"Trailboss {clean(state.get('version', ''))}: {ready}, phase {clean(state.get('phase', ''))}, "
        f"gate {clean(state.get('gate', ''))}, up {seconds(state.get('uptime_seconds'))}{waits}"
    )


def plugin_row(row: Mapping[str, object]) -> list[object]:
    """Return one row of the table of plugins."""
    phase = str(row.get("phase", ""))
    healthy = ("yes" if row.get("healthy") else "NO") if phase == "healthy" else ""
    name = f"{row.get('name', '')} (optional)" if row.get("optional") else row.get("name", "")
    waits = ", ".join(map(str, waits_of(row.get("waiting_for"))))
    return [name, phase, seconds(row.get("since_seconds")), healthy, waits, row.get("reason", "")]


def pool_row(row: Mapping[str, object]) -> list[object]:
    """Return one row of the table of pools."""
    cells = [row.get(name, "") for name in _POOL_COLUMNS]
    if not cells[-1] and row.get("last_reset_failure"):
        text = str(row["last_reset_failure"])
        cells[-1] = f"reset: {text[:FAILURE_WIDTH]}…" if len(text) > FAILURE_WIDTH else f"reset: {text}"
    return cells


def rows_of(state: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    """Return the rows under `name`; the answer comes from outside."""
    rows = state.get(name)
    if not isinstance(rows, list):
        return []
    return [cast("Mapping[str, object]", row) for row in rows if isinstance(row, Mapping)]


def waits_of(value: object) -> list[object]:
    """Return a list of the answer, or an empty one."""
    return value if isinstance(value, list) else []


def seconds(value: object) -> str:
    """Return a number of seconds for people."""
    from trailboss.config.values import format_duration

    if not isinstance(value, int | float):
        return ""
    return format_duration(round(value, 1) if value < 60 else round(value))
