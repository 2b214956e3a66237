"""`trailboss reload`: read the configuration again and replace the workers of all pools.

What the file changes and can change while the server runs is in force afterwards; the rest is listed. Exit code 1 where the
file is wrong (then nothing was changed) or the workers of a pool did not come up (then its old ones go on).
"""

from __future__ import annotations

import click

from trailboss.cli.client import CommandFailed, connect
from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import clean, json_flag, print_json

__all__ = ["command"]


@click.command("reload")
@json_flag
@global_flags
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Read the configuration again and replace all workers: new ones first, then the old ones finish."""
    settings = settings_of(context)
    with connect(settings) as rpc:
        answer = rpc.call("trailboss.Reload", True)
    report = answer if isinstance(answer, dict) else {}
    refused = str(report.get("refused") or "")
    failed = report.get("failed") or {}
    if as_json:
        print_json(report)
        if refused or failed:
            context.exit(1)
        return
    if refused:
        raise CommandFailed(f"not reloaded, nothing was changed:\n{clean(refused)}")
    if not settings.silent:
        for key in report.get("taken") or ():
            click.echo(f"changed: {clean(str(key))}")
        for key in report.get("needs_restart") or ():
            click.echo(f"needs a restart: {clean(str(key))}")
        for name in report.get("pools") or ():
            click.echo(f"new workers: [{clean(str(name))}]")
    if failed:
        raise CommandFailed(
            "\n".join(
                f"old workers go on: [{clean(str(name))}]: {clean(str(why))}" for name, why in failed.items()
            )
        )
