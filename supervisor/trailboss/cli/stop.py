"""`trailboss stop`: SIGTERM to the process in `.pid`; with -f a second one, which ends all grace."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import click

from trailboss.cli.client import CommandFailed
from trailboss.cli.options import Settings, global_flags, settings_of

__all__ = ["PID_FILE", "command"]

PID_FILE = ".pid"
_FORCE_AFTER_SECONDS = 1.0


@click.command("stop")
@global_flags
@click.pass_context
def command(context: click.Context) -> None:
    """Stop the server whose process id is in .pid (serve -p); -f: without grace.

    Returns at once; the server finishes what runs.
    """
    settings = settings_of(context)
    path = pid_file(settings)
    pid = read_pid(path)
    if not settings.silent:
        click.echo(f"stopping process with PID: {pid}")
    send(pid, path)
    if settings.force:
        time.sleep(_FORCE_AFTER_SECONDS)
        if is_server(pid):
            send(pid, path)


def pid_file(settings: Settings) -> Path:
    """Return where serve -p writes: the working directory, or the folder of the configuration."""
    if settings.workdir:
        return Path(settings.workdir) / PID_FILE
    if settings.config:
        return Path(settings.config).parent / PID_FILE
    return Path(PID_FILE)


def read_pid(path: Path) -> int:
    """Return the process id in the file. Raises CommandFailed."""
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise CommandFailed(
            f"cannot read {path}: {error.strerror}; start the server with `serve -p` in this folder, or send it SIGTERM"
        ) from error
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 10) or int(text) < 2:
        raise CommandFailed(f"{path} holds no process id")
    pid = int(text)
    if not is_server(pid):
        raise CommandFailed(f"{path} names process {pid}, which is no running server; remove the file")
    return pid


def is_server(pid: int) -> bool:
    """Say whether `pid` is a server: a process id may have gone to somebody else since the file was written."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    names = {os.path.basename(argument) for argument in arguments[:3]}
    return b"serve" in arguments and (
        not names.isdisjoint({b"trailboss", b"rr", b"__main__.py"}) or b"trailboss" in arguments
    )


def send(pid: int, path: Path) -> None:
    """Send SIGTERM. Raises CommandFailed."""
    try:
        os.kill(pid, signal.SIGTERM)
    except OSError as error:
        raise CommandFailed(f"cannot stop process {pid} of {path}: {error.strerror}") from error
