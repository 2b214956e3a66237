"""`trailboss serve --wsgi …` and `--asgi …`: a configuration without a file. Pure.

What the flags say becomes overrides, the same `key=value` texts as those of -o, so nothing here is a second way to
configure: everything else keeps its default, and an -o of the user's own comes later and wins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import click

__all__ = ["DEFAULT_BIND", "Application", "application_of", "overrides_of"]

DEFAULT_BIND: Final = "127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Application:
    """A Python application and how it is served. `kind` is wsgi or asgi; paths are absolute."""

    kind: str
    target: str
    bind: Sequence[str] = (DEFAULT_BIND,)
    workers: int = 0
    factory: bool = False
    directory: str = ""
    pythonpath: Sequence[str] = ()
    python: str = ""
    reload: bool = False
    dev: bool = False


def application_of(
    *,
    wsgi: str | None,
    asgi: str | None,
    bind: Sequence[str] = (),
    workers: int | None = None,
    factory: bool = False,
    chdir: str | None = None,
    pythonpath: Sequence[str] = (),
    python: str | None = None,
    reload: bool = False,
    dev: bool = False,
) -> Application | None:
    """Return the application that the flags name, None where they name none. Raises UsageError."""
    if wsgi is None and asgi is None:
        given = {
            "--bind": bind,
            "--workers": workers is not None,
            "--factory": factory,
            "--chdir": chdir,
            "--pythonpath": pythonpath,
            "--python": python,
        }
        for name, value in given.items():
            if value:
                raise click.UsageError(f"{name} goes with --wsgi or --asgi; a file says it otherwise")
        return None
    if wsgi is not None and asgi is not None:
        raise click.UsageError("either --wsgi or --asgi: one server, one application")
    target = wsgi if wsgi is not None else asgi
    assert target is not None
    module, colon, name = target.partition(":")
    if not module or (colon and not name):
        raise click.UsageError(f"an application is written MODULE or MODULE:NAME, not {target!r}")
    return Application(
        "asgi" if wsgi is None else "wsgi",
        target,
        tuple(bind) or (DEFAULT_BIND,),
        workers or 0,
        factory,
        os.path.abspath(chdir) if chdir else "",
        tuple(map(os.path.abspath, pythonpath)),
        _absolute_command(python) if python else "",
        reload,
        dev,
    )


def _absolute_command(program: str) -> str:
    """A name alone is looked for in $PATH later; a path must not depend on --chdir."""
    return os.path.abspath(program) if os.sep in program else program


def overrides_of(application: Application, *, with_file: bool = False) -> list[str]:
    """Return the configuration as `key=value` texts.

    `with_file`: they are laid over a file, which keeps its own logs and working directory. Raises UsageError for a word
    that cannot be said in such a text.
    """
    command = ["trailboss-worker", application.kind, application.target]
    if application.factory:
        command.append("--factory")
    if with_file and application.directory:
        command += ["--chdir", application.directory]
    for path in application.pythonpath:
        command += ["--pythonpath", path]
    overrides = [
        f"http.address={_joined(application.bind)}",
        f"{'http.pool' if with_file else 'server'}.command={_joined(command)}",
        "http.raw_body=true",
    ]
    folders = [application.directory or os.path.abspath("."), *application.pythonpath]
    overrides += development_overrides(folders if application.reload else (), dev=application.dev)
    if application.workers:
        overrides.append(f"http.pool.num_workers={application.workers}")
    if application.python:
        overrides.append(f"server.python={_escaped(application.python)}")
    if not with_file:
        overrides += ["version=3", "logs.level=info"]
    return overrides


def development_overrides(folders: Sequence[str], *, dev: bool) -> list[str]:
    """Return what --reload (`folders` are watched then) and --dev add to any configuration."""
    overrides = [f"reload.paths={_joined(folders)}"] if folders else []
    return [*overrides, "http.dev=true", "http.pool.num_workers=1"] if dev else overrides


def _joined(words: Sequence[str]) -> str:
    """A list in an override: words between commas."""
    for word in words:
        if "," in word or word.strip() != word or not word:
            raise click.UsageError(f"{word!r} cannot be given here; write a configuration file instead")
    return ",".join(map(_escaped, words)) + ("," if len(words) == 1 else "")


def _escaped(text: str) -> str:
    return text.replace("$", "$$")
