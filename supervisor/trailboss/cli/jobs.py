"""`trailboss jobs`: pipelines, pushing, dead letters.

The flags --list, --pause, --resume and --destroy are RoadRunner's; push, stat and dead are Trailboss's own.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, BinaryIO

import click

from trailboss.cli.client import CommandFailed, connect
from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import clean, json_flag, print_json, print_table

__all__ = ["command"]

_PAGE = 1_000


class Delay(click.ParamType[float]):
    """Seconds, or a duration with a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds. Fails for what is neither."""
        from trailboss.config.values import parse_duration

        if isinstance(value, float | int):
            return float(value)
        text = str(value)
        try:
            seconds = parse_duration(f"{text}s" if text.isascii() and text.isdigit() else text)
        except ValueError:
            self.fail(f"{text!r} is no duration; write 10s, 5m or 1h30m", param, ctx)
        if seconds < 0:
            self.fail("a delay cannot be negative", param, ctx)
        return seconds


@click.group("jobs", invoke_without_command=True)
@click.option("--list", "list_", is_flag=True, help="List the pipelines.")
@click.option("--pause", metavar="A,B", help="Hand no further jobs of these pipelines to workers.")
@click.option("--resume", metavar="A,B", help="Hand jobs of these pipelines to workers.")
@click.option("--destroy", metavar="A,B", help="Remove these pipelines with the jobs that wait in them.")
@json_flag
@global_flags
@click.pass_context
def command(
    context: click.Context,
    list_: bool,
    pause: str | None,
    resume: str | None,
    destroy: str | None,
    as_json: bool,
) -> None:
    """Look after pipelines; push jobs; handle dead letters."""
    wanted = [("list", "")] if list_ else []
    wanted += [
        (verb, names) for verb, names in (("pause", pause), ("resume", resume), ("destroy", destroy)) if names
    ]
    if context.invoked_subcommand is not None:
        if wanted:
            raise click.UsageError("give either a flag or a sub-command")
        return
    if len(wanted) != 1:
        raise CommandFailed("give one of --list, --pause, --resume, --destroy, or a sub-command; see --help")
    ((verb, names),) = wanted
    pipelines = [name for name in (part.strip() for part in names.split(",")) if name]
    with connect(settings_of(context)) as rpc:
        from trailboss_worker.sdk import Jobs

        jobs = Jobs(rpc)
        if verb == "list":
            pipelines = list(jobs.list())
        elif verb == "pause":
            jobs.pause(*pipelines)
        elif verb == "resume":
            jobs.resume(*pipelines)
        else:
            pipelines = list(jobs.destroy(*pipelines))
    if as_json:
        print_json({"pipelines": pipelines})
    else:
        print_table("", ["Pipeline(s)"], [[name] for name in pipelines])


@command.command("push")
@click.argument("pipeline")
@click.argument("name")
@click.argument("standard_input", required=False, type=click.Choice(["-"]), metavar="[-]")
@click.option("--payload", help="Payload as text.")
@click.option("--file", "file", type=click.File("rb"), help="Payload from a file; - is standard input.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="A header; may be repeated.")
@click.option(
    "--priority", type=click.IntRange(0), default=0, help="Lower is more urgent; 0: the pipeline's."
)
@click.option("--delay", type=Delay(), default=0.0, help="Run it this much later (10s, 5m).")
@click.option("--id", "job_id", default="", help="Id of the job; else one is made.")
@json_flag
@global_flags
@click.pass_context
def push(
    context: click.Context,
    pipeline: str,
    name: str,
    standard_input: str | None,
    payload: str | None,
    file: BinaryIO | None,
    headers: tuple[str, ...],
    priority: int,
    delay: float,
    job_id: str,
    as_json: bool,
) -> None:
    """Push the job NAME to PIPELINE and print its id. A last argument - reads the payload from standard input."""
    if sum(source is not None for source in (payload, file, standard_input)) > 1:
        raise click.UsageError("give the payload once: --payload, --file or -")
    if standard_input is not None:
        body = sys.stdin.buffer.read()
    elif file is not None:
        body = file.read()
    else:
        body = (payload or "").encode(errors="surrogateescape")
    named = read_headers(headers)
    with connect(settings_of(context)) as rpc:
        from trailboss_worker.sdk import Jobs

        pushed = Jobs(rpc).push(
            pipeline,
            name,
            body,
            id=job_id,
            headers=named,
            priority=priority,
            delay_seconds=delay,
        )
    if as_json:
        print_json({"id": pushed, "pipeline": pipeline, "job": name})
    else:
        click.echo(pushed)


@command.command("stat")
@json_flag
@global_flags
@click.pass_context
def stat(context: click.Context, as_json: bool) -> None:
    """Show the figures of every pipeline: pushed, done, dead, waiting, delayed, running."""
    with connect(settings_of(context)) as rpc:
        from trailboss_worker.sdk import Jobs, ServiceError

        stats = Jobs(rpc).stat()
        try:
            books = rpc.call("jobs.Books", True)
        except ServiceError:  # the server is a RoadRunner
            books = None
    if as_json:
        print_json({"pipelines": [found._asdict() for found in stats], "books": books})
        return
    headings = ["STATUS", "PIPELINE", "DRIVER", "QUEUE", "ACTIVE", "DELAYED", "RESERVED", "PRIORITY"]
    rows: list[list[object]] = [
        [
            "READY" if found.ready else "PAUSED/STOPPED",
            found.pipeline,
            found.driver,
            found.queue,
            found.active,
            found.delayed,
            found.reserved,
            found.priority,
        ]
        for found in stats
    ]
    print_table("Pipelines:", headings, rows)
    counted = books.get("pipelines") if isinstance(books, dict) else None
    if isinstance(counted, dict) and counted:
        names = list(next(iter(counted.values())))
        print_table(
            "Jobs since the start:",
            ["PIPELINE", *(name.upper() for name in names)],
            [[pipeline, *(figures.get(name, "") for name in names)] for pipeline, figures in counted.items()],
        )


@command.group("dead", invoke_without_command=True)
@json_flag
@global_flags
@click.pass_context
def dead(context: click.Context, as_json: bool) -> None:
    """Jobs that were given up: list (also without a command), requeue, purge."""
    if context.invoked_subcommand is None:
        context.invoke(dead_list, as_json=as_json)


@dead.command("list")
@click.argument("pipeline", required=False, default="")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Most rows to show.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Rows to leave out at the beginning.")
@json_flag
@global_flags
@click.pass_context
def dead_list(context: click.Context, pipeline: str, limit: int, offset: int, as_json: bool) -> None:
    """List dead letters of PIPELINE, or of all."""
    with connect(settings_of(context)) as rpc:
        jobs: list[Mapping[str, object]] = []
        total = 0
        while len(jobs) < limit:
            wanted = min(_PAGE, limit - len(jobs))
            answer = rpc.call(
                "jobs.Dead", {"pipeline": pipeline, "offset": offset + len(jobs), "limit": wanted}
            )
            page = answer.get("jobs", []) if isinstance(answer, dict) else []
            total = int(answer.get("total", 0)) if isinstance(answer, dict) else 0
            jobs.extend(page)
            if len(page) < wanted:
                break
    if as_json:
        print_json({"total": total, "offset": offset, "jobs": jobs})
        return
    headings = ["DIED", "PIPELINE", "JOB", "ID", "ATTEMPTS", "REASON"]
    print_table(f"Dead letters: {total}", headings, [dead_row(job) for job in jobs])


@dead.command("requeue")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--pipeline", default="", help="Of this pipeline only.")
@json_flag
@global_flags
@click.pass_context
def dead_requeue(
    context: click.Context, ids: tuple[str, ...], everything: bool, pipeline: str, as_json: bool
) -> None:
    """Queue dead letters again."""
    settle(context, "jobs.Requeue", ids, everything, pipeline, as_json)


@dead.command("purge")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--pipeline", default="", help="Of this pipeline only.")
@json_flag
@global_flags
@click.pass_context
def dead_purge(
    context: click.Context, ids: tuple[str, ...], everything: bool, pipeline: str, as_json: bool
) -> None:
    """Delete dead letters."""
    settle(context, "jobs.Purge", ids, everything, pipeline, as_json)


def settle(
    context: click.Context, method: str, ids: Sequence[str], everything: bool, pipeline: str, as_json: bool
) -> None:
    """Requeue or purge, and print how many; exit code 1 when an id was not found."""
    if bool(ids) == everything:
        raise click.UsageError("name the ids, or give --all")
    chosen: dict[str, object] = {"all": True} if everything else {"ids": list(ids)}
    with connect(settings_of(context)) as rpc:
        answer = rpc.call(method, {"pipeline": pipeline, **chosen})
    fields = answer if isinstance(answer, dict) else {}
    if as_json:
        print_json(fields)
    else:
        for word in ("requeued", "purged"):
            if word in fields:
                click.echo(f"{word}: {fields[word]}")
    missing = fields.get("not_found") or []
    if missing:
        raise CommandFailed(f"no dead letter has the id {', '.join(map(clean, missing))}")


def read_headers(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the headers of NAME=VALUE texts; a name may have several values. Raises UsageError."""
    headers: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"a header is NAME=VALUE, not {text!r}")
        headers.setdefault(name, []).append(value)
    return headers


def dead_row(job: Mapping[str, object]) -> list[object]:
    """Return one row of the table of dead letters."""
    died = job.get("died_at")
    when = (
        datetime.fromtimestamp(died).astimezone().isoformat(" ", "seconds")
        if isinstance(died, int | float)
        else ""
    )
    return [when, *(job.get(name, "") for name in ("pipeline", "job", "id", "attempts", "reason"))]
