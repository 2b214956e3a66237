"""`trailboss why`: how workers died, or why requests were refused; the newest last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import click

from trailboss.cli.client import CommandFailed, connect
from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import clean, json_flag, print_json

__all__ = ["command", "explain", "explain_refusal"]

#: Kinds of refusals in the closing line.
KINDS_SHOWN = 8


@click.command("why")
@click.argument("worker", type=int, required=False, metavar="[PID]")
@click.option(
    "--http",
    "of_requests",
    is_flag=True,
    help="Requests that were refused instead, and what held the workers.",
)
@click.option("-n", "last", type=click.IntRange(min=1), metavar="N", help="Only the last N.")
@json_flag
@global_flags
@click.pass_context
def command(
    context: click.Context, worker: int | None, of_requests: bool, last: int | None, as_json: bool
) -> None:
    """Explain the last deaths of workers, or that of the worker PID: cause, what it ran, its last output.

    With --http: the last requests that got no answer of a worker, each with its reason and with what the workers did.
    """
    if of_requests and worker is not None:
        raise click.UsageError("either a PID or --http")
    with connect(settings_of(context)) as rpc:
        if of_requests:
            show_refusals(rpc.call("trailboss.Refusals", True), last, as_json)
            return
        answer = rpc.call("trailboss.Deaths", True)
    deaths = deaths_of(answer)
    if worker is not None:
        deaths = [death for death in deaths if death.get("pid") == worker]
    if last is not None:
        deaths = deaths[-last:]
    if as_json:
        print_json(deaths)
    elif deaths:
        click.echo("\n\n".join(explain(death) for death in deaths))
    elif worker is None:
        click.echo("no worker has died since the start")
    if worker is not None and not deaths:
        raise CommandFailed(f"no death of a worker {worker} is known; the last 100 are kept")


def show_refusals(answer: object, last: int | None, as_json: bool) -> None:
    """Print the answer of trailboss.Refusals."""
    report = dict(answer) if isinstance(answer, dict) else {}
    rows = [row for row in _list(report.get("refusals")) if isinstance(row, dict)]
    report["refusals"] = rows = rows[-last:] if last is not None else rows
    if as_json:
        print_json(report)
    elif not report.get("total"):
        click.echo("no request has been refused since the start")
    else:
        click.echo("\n\n".join([*(explain_refusal(row) for row in rows), refusals_in_all(report)]))


def refusals_in_all(report: Mapping[str, object]) -> str:
    """Return one line: how many, by status and reason."""
    kinds = [
        f"{count.get('count')} x {count.get('status')} {clean(count.get('reason', ''))}"
        for count in _list(report.get("counts"))
        if isinstance(count, dict)
    ]
    left_out = len(kinds) - KINDS_SHOWN
    more = [f"{left_out} other reasons"] if left_out > 0 else []
    return f"since the start {report.get('total')} refused: {', '.join(kinds[:KINDS_SHOWN] + more)}"


def explain_refusal(row: Mapping[str, object]) -> str:
    """Return one refusal for people, several lines."""
    asked = " ".join(clean(row.get(name) or "") for name in ("method", "path")).strip()
    lines = [
        f"{when(row.get('at'))}  {row.get('status')} {clean(row.get('reason', ''))}: "
        + (asked or "a request that was not understood")
    ]
    if row.get("detail"):
        lines.append(f"  {clean(row['detail'])}")
    if row.get("queued"):
        lines.append(f"  {row['queued']} waited in the queue")
    held_by = [holder for holder in _list(row.get("held_by")) if isinstance(holder, dict)]
    if held_by:
        lines.append("  the workers were busy with:")
        lines += [
            f"    {clean(holder.get('doing') or 'something')}  for {holder.get('since_seconds')} s  (pid {holder.get('pid')})"
            for holder in held_by
        ]
    if row.get("held_by_left_out"):
        lines.append(f"    and {row['held_by_left_out']} more")
    if row.get("more"):
        lines.append(f"  {row['more']} more like this within the same second")
    return "\n".join(lines)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


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
    if death.get("seen"):
        lines.append(f"  when it was killed: {clean(death['seen'])}")
    stack = death.get("stack")
    if isinstance(stack, list) and stack:
        lines += ["  its stack then:", *(f"    {clean(line)}" for line in stack)]
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
