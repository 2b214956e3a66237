"""The root command, and what becomes of errors.

Exit codes: 0 done (serve: stopped gracefully); 1 it could not be done (serve: a failed start or plugin, or a stop without
grace); 2 the command line or the configuration is wrong. Errors are single lines on standard error.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

import click

from trailboss.cli.options import Settings, global_flags

__all__ = ["cli", "run"]

#: command -> module that has it as `command`; in the order of --help.
_COMMANDS = {
    "serve": "serve",
    "stop": "stop",
    "reload": "reload",
    "upgrade": "upgrade",
    "reset": "reset",
    "workers": "workers",
    "jobs": "jobs",
    "state": "state",
    "why": "why",
    "quarantine": "quarantine",
    "check": "check",
    "config": "config",
    "systemd": "systemd",
    "chaos": "chaos",
}
_ALIASES = {"status": "state"}


class LazyGroup(click.Group):
    """Imports the module of a command when that command is wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None."""
        module = _COMMANDS.get(_ALIASES.get(cmd_name, cmd_name))
        if module is None:
            return None
        command: object = importlib.import_module(f"trailboss.cli.{module}").command
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 failed, 2 the command line or the configuration is wrong.",
)
@global_flags
def cli() -> None:
    """Trailboss runs PHP and Python workers and keeps them running."""


def run(argv: Sequence[str]) -> int:
    """Run a command line and return its exit code; `argv[0]` is the name it was called by."""
    settings = Settings(program=os.path.basename(argv[0]) if argv else "trailboss")
    if settings.program not in ("rr", "trailboss"):
        settings.program = "trailboss"  # python -m, a renamed copy
    try:
        result = cli.main(list(argv[1:]), prog_name=settings.program, standalone_mode=False, obj=settings)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Whoever read our output (head, less) has gone; Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return result if isinstance(result, int) else 0
