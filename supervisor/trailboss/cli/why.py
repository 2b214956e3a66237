"""`trailboss why`: how workers died, the newest last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import click

from trailboss.cli.client import CommandFailed, connect
from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import clean, json_flag, print_json

__all__ = ["command", "explain"]


@click.command("why")
@click.argument("worker", type=int, required=False, metavar="[PID]")
@json_flag
@global_flags
@click.pass_context
def command(context: click.Context, worker: int | None, as_json: bool) -> None:
    """Explain the last deaths of workers, or that of the worker PID: cause, what it ran, its last output."""
    with connect(settings_of(context)) as rpc:
        answer = rpc.call("trailboss.Deaths", True)
    deaths = deaths_of(answer)
    if worker is not None:
        deaths = [death for death in deaths if death.get("pid") == worker]
    if as_json:
        print_json(deaths)
    elif deaths:
        click.echo("\n\n".join(explain(death) for death in deaths))
    elif worker is None:
        click.echo("no worker has died since the start")
    if worker is not None and not deaths:
        raise CommandFailed(f"no death of a worker {worker} is known; the last 100 are kept")


def deaths_of(answer: object) -> list[Mapping[str, object]]:
    """Return the records of an answer: a list, or an object that holds one under `deaths`."""
    rows = answer.get("deaths") if isinstance(answer, dict) else answer
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def explain(death: Mapping[str, object]) -> str:
    """Return one record for people, several lines."""
    doing = death.get("doing")
    lines = [
        (
            f"worker {death.get('pid')} of pool {clean(death.get('pool', ''))} died at {when(death.get('at'))}: "
            f"{clean(death.get('text', ''))}"
        ),
        f"  cause: {clean(death.get('cause', ''))}; it was {clean(death.get('phase', ''))}"
        + (f", running {clean(doing)}" if doing else ""),
        (
            f"  lived {death.get('age_seconds')} s, {death.get('executions')} executions, "
            f"CPU {death.get('user_seconds')} s user, {death.get('system_seconds')} s system"
        ),
    ]
    for name, label in (("stray_output", "on standard output"), ("hint", "likely")):
        if death.get(name):
            lines.append(f"  {label}: {clean(death[name])}")
    output = death.get("last_output")
    if isinstance(output, Sequence) and not isinstance(output, str) and output:
        lines += ["  last lines on standard error:", *(f"    {clean(line)}" for line in output)]
    return "\n".join(lines)


def when(at: object) -> str:
    """Return the time of a record in local time."""
    try:
        return datetime.fromisoformat(str(at)).astimezone().isoformat(" ", "seconds")
    except ValueError:
        return clean(at)
