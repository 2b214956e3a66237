"""`trailboss check`: everything that can be known to be wrong before a start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import json_flag, print_json

if TYPE_CHECKING:
    from trailboss.config import Config, Problem

__all__ = ["command"]


@click.command("check")
@json_flag
@global_flags
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Check the configuration, and that paths, users and ports are as it needs them.

    Exit code 2 when the file is wrong, 1 when a start is likely to fail, 0 otherwise.
    """
    from trailboss.config import ConfigError
    from trailboss.config.check import check

    settings = settings_of(context)
    config: Config | None = None
    problems: tuple[Problem, ...] = ()
    findings: list[Problem] = []
    try:
        config = settings.load()
        findings = [*check(config), *middleware_findings(config)]
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


def middleware_findings(config: Config) -> list[Problem]:
    """Return what is wrong with the names of `http.middleware`, which only the web server knows."""
    if config.http is None or not config.http.middleware:
        return []
    from trailboss.plugins.http.middleware.chain import wrong_names

    names = wrong_names(config.http.middleware)
    return [config.source.problem("http.middleware", what, remedy) for what, remedy in names]


def as_dict(problem: object) -> dict[str, object]:
    """Return one problem for --json."""
    names = ("file", "line", "key", "message", "remedy")
    return {name: getattr(problem, name) for name in names}
