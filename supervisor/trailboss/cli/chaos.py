"""`trailboss chaos`: kill and freeze the workers of one's own configuration, and see whether anybody is the worse for it.

Everything beyond the flags is in :mod:`trailboss.chaos`, which is imported when the command runs and never by the server.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trailboss.cli.client import CommandFailed, ConfigurationWrong
from trailboss.cli.options import Settings, global_flags, settings_of
from trailboss.cli.output import json_flag, print_json

if TYPE_CHECKING:
    from trailboss.chaos.runner import Run
    from trailboss.chaos.verdict import Seen
    from trailboss.config import Config

__all__ = ["command"]

PLANS = ("mid-init", "storm", "power", "memory", "all")
#: Exit code of a run that a signal has ended.
INTERRUPTED = 130
DEFAULT_JOB = "trailboss-chaos"


class Span(click.ParamType[float]):
    """A time: 40, 40s, 2m."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, int | float):
            return float(value)
        from trailboss.config.values import parse_duration

        text = str(value)
        try:
            seconds = parse_duration(f"{text}s" if text.isdigit() else text)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not 5.0 <= seconds <= 86_400.0:
            self.fail("a run takes between 5s and 24h", param, ctx)
        return seconds


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for; 0 where it leaves a number open."""

    plan: str
    seed: int
    seconds: float
    at_most: int
    paths: tuple[str, ...]
    clients: int
    job: str
    payload: str
    system_calls: bool

    def again(self, settings: Settings) -> str:
        """Return the command line that does the same again."""
        words = [settings.program, "chaos"]
        for flag, value in (
            ("-c", settings.config),
            ("-w", settings.workdir),
            ("--dotenv", settings.dotenv),
        ):
            words += [flag, value] if value else []
        for override in settings.overrides:
            words += ["-o", override]
        words += ["--plan", self.plan, "--seed", str(self.seed), "--for", f"{self.seconds:g}s"]
        words += ["--at-most", str(self.at_most)] if self.at_most else []
        for path in self.paths:
            words += ["--path", path]
        words += ["--clients", str(self.clients)] if self.clients else []
        words += ["--job", self.job] if self.job != DEFAULT_JOB else []
        words += ["--payload", self.payload] if self.payload != "{}" else []
        words += ["--system-calls"] if self.system_calls else []
        return shlex.join(words)


@click.command("chaos")
@click.option(
    "--plan",
    "plan_name",
    type=click.Choice(PLANS),
    default="all",
    show_default=True,
    help="What is done; see above.",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Do the same again; else one is drawn and said."
)
@click.option(
    "--for", "seconds", type=Span(), default="40s", show_default=True, help="How long faults go on, in all."
)
@click.option("--at-most", type=click.IntRange(1), metavar="N", help="No more than N faults in each part.")
@click.option("--path", "paths", multiple=True, metavar="PATH", help="GET this; may be repeated. Else /.")
@click.option(
    "--clients",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Browsers; else two more than http workers.",
)
@click.option(
    "--job",
    default=DEFAULT_JOB,
    show_default=True,
    metavar="NAME",
    help="Name of the jobs that are pushed.",
)
@click.option("--payload", default="{}", show_default=True, metavar="TEXT", help="Their payload.")
@click.option(
    "--system-calls",
    is_flag=True,
    help="Kill at system calls of the start too; needs strace. Workers start by a script.",
)
@click.option(
    "--report", type=click.Path(dir_okay=False), metavar="FILE.html", help="Write a report with a timeline."
)
@click.option(
    "--keep", is_flag=True, help="Leave the folder of the run, with the server's log, and say where it is."
)
@json_flag
@global_flags
@click.pass_context
def command(
    context: click.Context,
    plan_name: str,
    seed: int | None,
    seconds: float,
    at_most: int | None,
    paths: tuple[str, ...],
    clients: int | None,
    job: str,
    payload: str,
    system_calls: bool,
    report: str | None,
    keep: bool,
    as_json: bool,
) -> int:
    """Run this configuration in a private instance, kill and freeze its workers under load, and judge what clients saw.

    \b
      trailboss chaos -c .rr.yaml                           40 seconds of everything
      trailboss chaos -c .rr.yaml --plan mid-init --for 5m  deaths in the start
      trailboss chaos -c .rr.yaml --path /health --path /products --job send-mail

    \b
    Plans:
      mid-init   workers killed and frozen somewhere in their own start
      storm      workers killed, stopped and frozen, also during resets and resizes
      power      the server itself killed, at work and in its start
      memory     workers that grow above their memory limit, and OOM kills
      all        the four after each other, each with a server of its own

    A server that runs is not touched: the instance has addresses, logs and temporary files of its own. But the code is
    yours: on_init runs, and so do the requests and jobs you name.

    \b
    Exit codes:
      0    every invariant holds
      1    one is broken, or the instance does not start
      2    wrong usage or configuration
      130  ended by a signal; what was seen so far is shown
    """
    from trailboss.config import ConfigError

    settings = settings_of(context)
    if system_calls and shutil.which("strace") is None:
        raise CommandFailed(
            "--system-calls needs strace, which is not on PATH; install it, or leave the flag out"
        )
    if any(not path.startswith("/") or any(not "!" <= sign <= "~" for sign in path) for path in paths):
        raise click.UsageError(
            "a --path begins with / and has neither spaces nor other signs that a URL cannot have"
        )
    if report is not None:
        check_report(report)
    try:
        config = settings.load()
    except ConfigError as error:
        raise ConfigurationWrong(str(error)) from error
    seed = secrets.randbits(32) if seed is None else seed
    asked = Asked(plan_name, seed, seconds, at_most or 0, paths, clients or 0, job, payload, system_calls)
    folder = folder_of_run()
    try:
        run = prepared(settings, config, folder, asked)
        return carried_out(
            run, asked.again(settings), report, quiet=as_json or settings.silent, as_json=as_json
        )
    finally:
        if keep:
            click.echo(f"the folder of the run: {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def check_report(report: str) -> None:
    """Find out before the run whether a report can be written after it. Raises CommandFailed."""
    folder = os.path.dirname(os.path.abspath(report))
    if not os.path.isdir(folder):
        raise CommandFailed(f"{report} cannot be written: there is no folder {folder}")
    if not os.access(report if os.path.exists(report) else folder, os.W_OK):
        raise CommandFailed(f"{report} cannot be written: permission denied")


def folder_of_run() -> Path:
    """Make the folder of the run. Raises CommandFailed."""
    from trailboss.chaos.instance import SOCKET_NAME, SOCKET_PATH_MAX

    hint = "TMPDIR may name another place"
    try:
        folder = Path(tempfile.mkdtemp(prefix="trailboss-chaos-"))
    except OSError as error:
        raise CommandFailed(
            f"no temporary folder can be made for the run: {error.strerror or error}; {hint}"
        ) from error
    if len(os.fsencode(folder / SOCKET_NAME)) > SOCKET_PATH_MAX:
        folder.rmdir()
        raise CommandFailed(
            f"{folder.parent} is too long a path for a socket ({SOCKET_PATH_MAX} bytes); {hint}"
        )
    return folder


def prepared(settings: Settings, config: Config, folder: Path, asked: Asked) -> Run:
    """Return a run that has not begun. Raises CommandFailed."""
    from trailboss.chaos.instance import TRACED_WORKER, privacy_of
    from trailboss.chaos.plan import make_plan
    from trailboss.chaos.runner import Run, Wishes

    privacy = privacy_of(config, str(folder), settings.overrides, system_calls=asked.system_calls)
    if not privacy.pools:
        raise CommandFailed(
            "there is nothing to kill: the configuration has no workers that last; it needs http or jobs, with pool.debug off"
        )
    plan = make_plan(
        asked.seed,
        asked.plan,
        list(privacy.pools),
        asked.seconds,
        system_calls=asked.system_calls,
        at_most=asked.at_most,
    )
    if asked.system_calls:
        script = folder / "traced_worker"
        script.write_text(TRACED_WORKER)
        script.chmod(0o755)
    if config.server is not None and config.server.user:
        folder.chmod(0o711)  # workers of another user go through it to the RPC socket
    wishes = Wishes(
        server_words(settings, config),
        asked.paths or ("/",),
        asked.clients or privacy.pools.get("http", 0) + 2,
        asked.job,
        asked.payload.encode(errors="surrogateescape"),
    )
    return Run(plan, privacy, folder, wishes)


def server_words(settings: Settings, config: Config) -> list[str]:
    """Return the flags that make the server load what we have loaded."""
    words = ["-c", config.source.path or "", "-w", config.source.working_directory]
    if settings.dotenv:
        words += ["--dotenv", settings.dotenv]
    for override in settings.overrides:
        words += ["-o", override]
    return words


def carried_out(run: Run, again: str, report: str | None, *, quiet: bool, as_json: bool) -> int:
    """Do the run, show what it has shown; returns the exit code."""
    import trio

    from trailboss.chaos.report import render_report
    from trailboss.chaos.screen import as_json as json_of
    from trailboss.chaos.screen import console, shown
    from trailboss.chaos.verdict import judge

    terminal = console()
    seen = trio.run(run.run) if quiet else watched(run, terminal)
    if run.interrupted and not seen.done:
        click.echo("interrupted before the first fault: nothing was shown", err=True)
        return INTERRUPTED
    if not seen.starts:
        raise CommandFailed(did_not_start(run, seen))
    verdict = judge(
        seen,
        has_http="http" in run.privacy.pools,
        has_jobs=bool(run.privacy.pipelines),
        interrupted=run.interrupted,
    )
    if as_json:
        print_json(json_of(run.plan, seen, verdict, run.changes))
    else:
        terminal.print(shown(verdict))
        click.echo(f"again: {again}")  # not wrapped: it is there to be copied
    if report is not None:
        try:
            Path(report).write_text(
                render_report(run.plan, seen, verdict, run.stages, run.changes, again), "utf-8"
            )
        except OSError as error:
            raise CommandFailed(f"{report} cannot be written: {error.strerror}") from error
        if not quiet:
            click.echo(f"report: {os.path.abspath(report)}")
    if run.interrupted:
        return INTERRUPTED
    return 0 if verdict.passed else 1


def did_not_start(run: Run, seen: Seen) -> str:
    """Return why there was nothing to judge."""
    text = "; ".join(seen.failed_starts)
    shorter = [
        limit for limit in run.privacy.limits if ".boot_timeout=" in limit and "boot_timeout (" in text
    ]
    hint = f"; for workers that need longer: -o {shorter[0].partition('=')[0]}=60s" if shorter else ""
    return f"the private instance did not start: {text}{hint}"


def watched(run: Run, terminal: object) -> Seen:
    """Do the run and say what happens: on a terminal in one line that changes, elsewhere a line for each stage."""
    import trio
    from rich.console import Console
    from rich.text import Text

    from trailboss.chaos.screen import progress_line
    from trailboss.chaos.verdict import Done

    assert isinstance(terminal, Console)
    plan, pools = run.plan, ", ".join(f"{count} x {name}" for name, count in run.privacy.pools.items())
    terminal.print(
        f"[bold]Trailboss chaos[/bold]  plan {plan.name}, seed {plan.seed} ({plan.digest}), workers: {pools}"
    )
    for change in run.privacy.limits:
        terminal.print(f"  for this run {change.replace('=', ' = ', 1)}", style="dim")
    stage = ""
    with terminal.status("starting") as status:

        def say(text: str) -> None:
            status.update(Text(text, no_wrap=True, overflow="ellipsis"))

        def tell(text: str, done: Done | None) -> None:
            nonlocal stage
            if done is None:
                stage = text
                say(f"{stage}: starting the server")
                if not terminal.is_terminal:
                    terminal.print(f"{stage} …")
            elif done.recovered is None:
                terminal.print(progress_line(done), style="red", markup=False)
            else:
                say(f"{stage}: {progress_line(done).strip()}")

        run.tell = tell
        return trio.run(run.run)
