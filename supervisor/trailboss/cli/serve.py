"""`trailboss serve`: run the server until it is told to stop."""

from __future__ import annotations

import os

import click

from trailboss.cli.client import CommandFailed, ConfigurationWrong
from trailboss.cli.options import Settings, global_flags, settings_of
from trailboss.cli.stop import PID_FILE

__all__ = ["command"]


@click.command("serve")
@global_flags
@click.pass_context
def command(context: click.Context) -> int:
    """Run the server in the foreground. SIGTERM or Ctrl-C stops it gracefully, a second one at once.

    Exit codes: 0 after a graceful stop; 1 when the start failed or the stop was forced; 2 for a wrong configuration.
    """
    settings = settings_of(context)
    from trailboss.config import ConfigError

    try:
        config = settings.load()
    except ConfigError as error:
        raise ConfigurationWrong(str(error)) from error
    os.chdir(config.source.working_directory or ".")
    os.environ.update(config.source.environment)
    from trailboss.main import StartError, run

    if settings.pid:
        write_pid_file()
    try:
        return run(config, banner=banner(settings), debug=settings.debug)
    except StartError as error:
        raise CommandFailed(click.style(str(error), fg="bright_red")) from error
    finally:
        if settings.pid:
            remove_pid_file()


def banner(settings: Settings) -> str:
    """Return the line on standard output when the server is ready, or "" with -s.

    Called as `rr` it is RoadRunner's, which tools know by its beginning.
    """
    import trailboss

    if settings.silent:
        return ""
    if settings.is_rr:
        version = trailboss.ROADRUNNER_COMPAT_VERSION
        return f"[INFO] RoadRunner server started; version: {version}, buildtime: Trailboss {trailboss.__version__}"
    return f"[INFO] Trailboss server started; version: {trailboss.__version__}"


def write_pid_file() -> None:
    """Write our process id to .pid in the working directory. Raises CommandFailed."""
    try:
        with open(PID_FILE, "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
    except OSError as error:
        raise CommandFailed(
            f"cannot write {os.path.abspath(PID_FILE)}: {error.strerror}; start without -p"
        ) from error


def remove_pid_file() -> None:
    """Remove .pid if it is still ours."""
    try:
        with open(PID_FILE, encoding="ascii") as file:
            ours = file.read() == str(os.getpid())
        if ours:
            os.unlink(PID_FILE)
    except OSError:
        return  # somebody has removed it already
