"""`trailboss check`: everything that can be known to be wrong before a start."""

from __future__ import annotations

import click

from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import json_flag, print_json

__all__ = ["command"]


@click.command("check")
@json_flag
@global_flags
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Check the configuration, and that paths, users and ports are as it needs them.

    Exit code 2 when the file is wrong, 1 when a start is likely to fail, 0 otherwise.
    """
    from trailboss.config import Config, ConfigError, Problem
    from trailboss.config.check import check

    settings = settings_of(context)
    config: Config | None = None
    problems: tuple[Problem, ...] = ()
    findings: list[Problem] = []
    try:
        config = settings.load()
        findings = check(config)
    except ConfigError as error:
        problems = error.problems
    notes = config.notes if config is not None else ()
    if as_json:
        print_json(
            {
                "errors": [as_dict(problem) for problem in problems],
                "findings": [as_dict(problem) for problem in findings],
                "notes": [as_dict(problem) for problem in notes],
            }
        )
    else:
        for problem in (*problems, *findings):
            click.echo(str(problem), err=True)
        for note in notes:
            click.echo(f"{note} (note)", err=True)
        if config is not None and not findings and not settings.silent:
            click.echo(f"{config.source.path}: fine")
    context.exit(2 if problems else 1 if findings else 0)


def as_dict(problem: object) -> dict[str, object]:
    """Return one problem for --json."""
    names = ("file", "line", "key", "message", "remedy")
    return {name: getattr(problem, name) for name in names}
