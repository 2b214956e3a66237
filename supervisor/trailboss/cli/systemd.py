"""`trailboss systemd unit`: a hardened unit for this installation and this configuration."""

from __future__ import annotations

import os
import shutil
import sys

import click

from trailboss.cli.client import CommandFailed, ConfigurationWrong
from trailboss.cli.options import global_flags, settings_of

__all__ = ["command"]


@click.group("systemd")
def command() -> None:
    """Units for systemd."""


@command.command("unit")
@click.option(
    "--user", "for_user", is_flag=True, help="For systemctl --user; the default is a unit of the system."
)
@click.option("--system", "for_system", is_flag=True, help="For the system's service manager (the default).")
@click.option("--name", default="trailboss", show_default=True, metavar="NAME", help="Name of the unit.")
@click.option(
    "--run-as", default="trailboss", show_default=True, metavar="USER", help="Whom the server runs as."
)
@click.option(
    "--output",
    metavar="DIR",
    help="Write NAME.service, and a socket unit for each systemd: address, into DIR.",
)
@global_flags
@click.pass_context
def unit(
    context: click.Context, for_user: bool, for_system: bool, name: str, run_as: str, output: str | None
) -> None:
    """Print a hardened unit for the configuration: budget of a stop, ports, folders and users are read from it.

    \b
    trailboss systemd unit -c /srv/app/.rr.yaml --output /etc/systemd/system
    systemctl daemon-reload && systemctl enable --now trailboss
    """
    if for_user and for_system:
        raise click.UsageError("give either --user or --system")
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise click.UsageError("a unit's name has letters, digits, - and _")
    from trailboss.config import ConfigError
    from trailboss.systemd.unit import facts_of, service_unit, socket_unit

    try:
        config = settings_of(context).load()
    except ConfigError as error:
        raise ConfigurationWrong(str(error)) from error
    facts = facts_of(config, _program(), name=name, user=run_as, for_user_manager=for_user)
    units = {f"{name}.service": service_unit(facts)}
    for socket, listen in facts.sockets:
        units[f"{name}-{socket}.socket"] = socket_unit(facts, socket, listen)
    if output is None:
        for index, (file, text) in enumerate(units.items()):
            if index:
                click.echo(f"\n# ---- {file}")
            click.echo(text, nl=False)
        return
    for file, text in units.items():
        path = os.path.join(output, file)
        try:
            with open(path, "w", encoding="utf-8") as target:
                target.write(text)
        except OSError as error:
            raise CommandFailed(
                f"{path} cannot be written: {error.strerror}; choose another --output"
            ) from error
        click.echo(path)


def _program() -> str:
    """Return the absolute path of the trailboss command of this installation."""
    beside = os.path.join(os.path.dirname(sys.executable), "trailboss")
    if os.access(beside, os.X_OK):
        return beside
    return shutil.which("trailboss") or os.path.abspath(sys.argv[0])
