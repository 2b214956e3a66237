"""`trailboss quarantine`: what is refused because it kills workers, and letting it run again."""

from __future__ import annotations

import click

from trailboss.cli.client import connect
from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import clean, json_flag, print_json

__all__ = ["command"]


@click.command("quarantine")
@click.option("--lift", "fingerprint", metavar="FINGERPRINT", help="Let this one run again.")
@json_flag
@global_flags
@click.pass_context
def command(context: click.Context, fingerprint: str | None, as_json: bool) -> None:
    """Show the executions that are refused because they killed one worker after the other."""
    with connect(settings_of(context)) as rpc:
        if fingerprint is not None:
            rpc.call("trailboss.LiftQuarantine", fingerprint)
            if as_json:
                print_json({"lifted": fingerprint})
            else:
                click.echo(f"lifted: {clean(fingerprint)} may run again")
            return
        answer = rpc.call("trailboss.Quarantine", True)
    rows = [row for row in answer if isinstance(row, dict)] if isinstance(answer, list) else []
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("nothing is in quarantine")
    for row in rows if not as_json else ():
        doing = clean(str(row.get("doing") or "(no name)"))
        click.echo(
            f"{clean(str(row.get('fingerprint')))}  {clean(str(row.get('pool')))}: {doing}\n"
            f"  {row.get('deaths')} workers died over it ({clean(str(row.get('cause')))}), refused {row.get('refused')} times, "
            f"tried again in {row.get('seconds_left')} s"
        )
