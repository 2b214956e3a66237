"""`trailboss upgrade`: the running server starts its program anew, hands the listening sockets over and leaves when that is ready.

Exit code 1 where the new server did not get ready; the old one then goes on as if nothing had happened.
"""

from __future__ import annotations

import click

from trailboss.cli.client import CommandFailed, connect
from trailboss.cli.options import global_flags, settings_of
from trailboss.cli.output import clean

__all__ = ["command"]


@click.command("upgrade")
@global_flags
@click.pass_context
def command(context: click.Context) -> None:
    """Replace the running server by the program as it is installed now, without a refused connection.

    Returns when the new server is ready and in charge; the old one finishes what it has. Also by SIGUSR2.
    """
    from trailboss_worker.sdk import ServiceError

    settings = settings_of(context)
    with connect(settings) as rpc:
        try:
            pid = rpc.call("trailboss.Upgrade", True)
        except ServiceError as error:
            raise CommandFailed(f"not upgraded, the old server goes on: {clean(error.text)}") from error
    if not settings.silent:
        click.echo(f"upgraded: the server is process {pid} now")
