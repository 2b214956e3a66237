"""`trailboss workers`: the workers of every plugin, and its pipelines."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from trailboss.cli.client import connect, rpc_address
from trailboss.cli.options import Settings, global_flags, settings_of
from trailboss.cli.output import human_age, human_bytes, json_flag, print_json, print_table

if TYPE_CHECKING:
    from trailboss_worker.sdk import RPC

__all__ = ["command", "worker_rows"]

WORKER_HEADINGS = ("PID", "STATUS", "EXECS", "MEMORY", "CPU%", "CREATED")
JOB_HEADINGS = ("STATUS", "PIPELINE", "DRIVER", "QUEUE", "ACTIVE", "DELAYED", "RESERVED")


@dataclass(frozen=True, slots=True)
class PluginWorkers:
    """What one plugin answered; `error` is its reason not to."""

    name: str
    workers: Sequence[Mapping[str, object]] = ()
    jobs: Sequence[Mapping[str, object]] = ()
    error: str = ""


@click.command("workers")
@click.argument("plugins", nargs=-1, metavar="[PLUGIN]...")
@click.option(
    "-i",
    "--interactive",
    is_flag=True,
    help="Live: what each worker does now, with keys to reset and to add or remove workers.",
)
@json_flag
@global_flags
@click.pass_context
def command(context: click.Context, plugins: tuple[str, ...], interactive: bool, as_json: bool) -> None:
    """Show the workers of the named plugins, or of all."""
    settings = settings_of(context)
    if interactive and not as_json:
        context.exit(interact(settings, plugins))
    with connect(settings) as rpc:
        if as_json:
            print_json([as_dict(found) for found in ask(rpc, plugins)])
        else:
            show(ask(rpc, plugins))


def interact(settings: Settings, plugins: Sequence[str]) -> int:
    """Show them live. Raises CommandFailed where nobody answers at the beginning, or without a terminal."""
    from trailboss.cli.watch import watch
    from trailboss_worker.sdk import RPC

    address = rpc_address(settings)
    if sys.stdin.isatty() and sys.stdout.isatty():
        with connect(settings) as rpc:  # who is not there at all gets the line that every command has
            rpc.call("trailboss.State", True)
    return watch(lambda: RPC(address), plugins)


def ask(rpc: RPC, plugins: Sequence[str]) -> list[PluginWorkers]:
    """Ask every plugin; one that answers with an error becomes an error of its own."""
    from trailboss_worker.sdk import Informer, ServiceError

    informer = Informer(rpc)
    answers = []
    for name in plugins or informer.list():
        try:
            answers.append(PluginWorkers(name, informer.workers(name), informer.jobs(name)))
        except ServiceError as error:
            answers.append(PluginWorkers(name, error=error.text))
    return answers


def tables(answers: Sequence[PluginWorkers]) -> list[tuple[str, Sequence[str], list[list[object]]]]:
    """Return title, headings and rows of every table."""
    found: list[tuple[str, Sequence[str], list[list[object]]]] = []
    for answer in answers:
        rows = [["ERROR", answer.error, "", "", "", ""]] if answer.error else worker_rows(answer.workers)
        found.append((f"Workers of [{answer.name}]:", WORKER_HEADINGS, [list[object](row) for row in rows]))
        if answer.jobs:
            found.append((f"Jobs of [{answer.name}]:", JOB_HEADINGS, job_rows(answer.jobs)))
    return found


def worker_rows(workers: Sequence[Mapping[str, object]], now: float | None = None) -> list[list[object]]:
    """Return the rows of the table of workers, by process id."""
    rows = []
    for worker in sorted(workers, key=lambda worker: number(worker, "pid")):
        rows.append(
            [
                number(worker, "pid"),
                str(worker.get("statusStr") or worker.get("status", "")),
                number(worker, "numExecs"),
                human_bytes(number(worker, "memoryUsage")),
                f"{decimal(worker, 'CPUPercent'):.2f}",
                human_age(number(worker, "created"), now),
            ]
        )
    return rows


def job_rows(jobs: Sequence[Mapping[str, object]]) -> list[list[object]]:
    """Return the rows of the table of pipelines, by name."""
    return [
        [
            "READY" if job.get("Ready", job.get("ready")) else "PAUSED/STOPPED",
            str(job.get("Pipeline", job.get("pipeline", ""))),
            str(job.get("Driver", job.get("driver", ""))),
            str(job.get("Queue", job.get("queue", ""))),
            number(job, "Active"),
            number(job, "Delayed"),
            number(job, "Reserved"),
        ]
        for job in sorted(jobs, key=lambda job: str(job.get("Pipeline", job.get("pipeline", ""))))
    ]


def show(answers: Sequence[PluginWorkers]) -> None:
    """Print every table."""
    for title, headings, rows in tables(answers):
        print_table(title, headings, rows)


def as_dict(answer: PluginWorkers) -> dict[str, object]:
    """Return the answer of one plugin for --json."""
    return {
        "plugin": answer.name,
        "workers": list(answer.workers),
        "jobs": list(answer.jobs),
        "error": answer.error,
    }


def number(row: Mapping[str, object], name: str) -> int:
    """Return a whole number of an answer, 0 where there is none."""
    value = row.get(name, row.get(name.lower(), 0))
    return int(value) if isinstance(value, int | float) else 0


def decimal(row: Mapping[str, object], name: str) -> float:
    """Return a number of an answer, 0 where there is none."""
    value = row.get(name, row.get("cpuPercent", 0.0))
    return float(value) if isinstance(value, int | float) else 0.0
