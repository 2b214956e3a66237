"""`trailboss serve`: run the server until it is told to stop.

With --wsgi or --asgi it needs no configuration file: the flags are the configuration (:mod:`trailboss.cli.application`).
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from trailboss.cli.client import CommandFailed, ConfigurationWrong
from trailboss.cli.options import Settings, global_flags, settings_of
from trailboss.cli.stop import PID_FILE

if TYPE_CHECKING:
    from trailboss.config import Config

__all__ = ["command"]


@click.command("serve")
@global_flags
@click.option(
    "--wsgi", metavar="MODULE[:NAME]", help="Serve a WSGI application; no configuration file is needed."
)
@click.option(
    "--asgi", metavar="MODULE[:NAME]", help="Serve an ASGI application; no configuration file is needed."
)
@click.option(
    "--bind",
    multiple=True,
    metavar="ADDRESS",
    help="host:port or unix:/path, may be repeated; else 127.0.0.1:8000.",
)
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Workers; else one per CPU.")
@click.option("--factory", is_flag=True, help="NAME is a function that gives the application.")
@click.option("--chdir", metavar="DIR", help="Folder of the application; else the current one.")
@click.option("--pythonpath", multiple=True, metavar="DIR", help="Import from DIR too; may be repeated.")
@click.option("--python", metavar="FILE", help="Interpreter of the application, such as that of its venv.")
@click.option(
    "--reload", is_flag=True, help="Development: new workers when a file of the application changes."
)
@click.option("--dev", is_flag=True, help="Development: one worker, and errors shown in the browser.")
@click.pass_context
def command(context: click.Context, /, **flags: object) -> int:
    """Run the server in the foreground. SIGTERM or Ctrl-C stops it gracefully, a second one at once.

    \b
    Without a file:
      trailboss serve --wsgi myproject.wsgi          Django, Flask
      trailboss serve --asgi app:app                 FastAPI, Starlette
      trailboss serve --wsgi app --reload --dev      while you work on it

    Exit codes: 0 after a graceful stop; 1 when the start failed or the stop was forced; 2 for a wrong configuration.
    """
    settings = settings_of(context)
    from trailboss.config import ConfigError
    from trailboss.upgrading import Origin

    origin = Origin.now()  # before the folder and the environment change

    try:
        config = load(settings, flags)
    except ConfigError as error:
        raise ConfigurationWrong(str(error)) from error
    os.chdir(config.source.working_directory or ".")
    reread = rereading(settings, config)  # with the environment as it is without the dotenv file
    os.environ.update(config.source.environment)
    from trailboss.main import StartError, run

    try:
        return run(
            config,
            banner=banner(settings),
            debug=settings.debug,
            reread=reread,
            origin=origin,
            on_in_charge=write_pid_file if settings.pid else lambda: None,
        )
    except StartError as error:
        raise CommandFailed(click.style(str(error), fg="bright_red")) from error
    finally:
        if settings.pid:
            remove_pid_file()


def rereading(settings: Settings, config: Config) -> Callable[[], Config]:
    """Return what loads the same configuration again from wherever the server is by then."""
    from trailboss.config import load as load_config

    source = config.source
    request = dataclasses.replace(
        settings.load_request(without_file=not source.path),
        path=source.path or None,
        workdir=source.working_directory,
        environ=dict(os.environ),
    )
    return lambda: load_config(request)


def load(settings: Settings, flags: dict[str, object]) -> Config:
    """Return the configuration of the file, of the flags, or of the flags over the file. Raises ConfigError, UsageError."""
    from trailboss.cli.application import application_of, development_overrides, overrides_of

    if flags.get("reload"):
        require_watchfiles()
    application = application_of(**flags)  # type: ignore[arg-type]  # click has checked them
    if application is None:
        folder = [os.path.abspath(settings.workdir or ".")] if flags.get("reload") else []
        settings.overrides[:0] = development_overrides(folder, dev=bool(flags.get("dev")))
        return settings.load()
    with_file = settings.config is not None
    settings.overrides[:0] = overrides_of(application, with_file=with_file)
    if not with_file and application.directory:
        settings.workdir = application.directory
    return settings.load(without_file=not with_file)


def require_watchfiles() -> None:
    """Raise CommandFailed where the package that --reload needs is missing."""
    try:
        importlib.import_module("watchfiles")
    except ImportError as error:
        raise CommandFailed(
            "--reload needs the package watchfiles, which is not installed: pip install watchfiles, where Trailboss is installed"
        ) from error


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
