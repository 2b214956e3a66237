"""The command `trailboss-worker`: which kind of worker this process becomes.

Options are read by hand from one table per command, because a worker's start is part of the time in which
a crashed pool is short of one, and argparse alone costs as much of it as everything else here together.
The relay is opened before the application is imported, so that what the application prints while it is
being imported is on standard error already.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trailboss_worker import __version__
from trailboss_worker.application import ApplicationOptions

USAGE = """\
Usage: trailboss-worker COMMAND [OPTIONS]

Runs Python code as a worker of Trailboss or RoadRunner, which starts this command (server.command).

Commands:
  jobs MODULE:HANDLER   call HANDLER(task) for each job; returning = ack, raising = nack
  wsgi MODULE[:NAME]    answer requests with a WSGI application (default names: application, app)
  asgi MODULE[:NAME]    answer requests with an ASGI application, one at a time
  echo                  answer each request with its own context and body

Options of all but echo:
  --chdir DIR           change to DIR first; modules are imported from the working directory

Options of wsgi and asgi:
  --factory             NAME is a function that gives the application
  --pythonpath DIR      import modules from DIR too, after the working directory; may be repeated
  --root-path PATH      where the application is mounted: SCRIPT_NAME, root_path (default: at the root)
  --lifespan MODE       asgi: auto, on (it must start by lifespan) or off (default auto)

Options of jobs:
  --nack-requeue        a job whose handler raised goes back to its queue (default)
  --no-nack-requeue     ... is rejected instead (what that means depends on the queue)
  --nack-delay SECONDS  ... goes back after so many seconds (default 0)
  --runner NAME         trio or asyncio: the loop that async handlers run on (default asyncio)

  --version             print the version and which frame codec is in use
  --help                print this text

Exit codes: 0 asked to stop, or the server is gone; 1 the handler or application cannot be imported or does
not start, the relay cannot be opened or the server speaks another protocol; 2 wrong usage.
"""

RUNNERS = ("trio", "asyncio")
LIFESPAN_MODES = ("auto", "on", "off")


class UsageError(Exception):
    """The command line makes no sense; the text says why."""


class JobsOptions(NamedTuple):
    """What `trailboss-worker jobs` was told."""

    target: str
    directory: str = "."
    nack_requeue: bool = True
    nack_delay_seconds: int = 0
    runner: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except UsageError as error:
        print(f"trailboss-worker: {error}\nTry `trailboss-worker --help`.", file=sys.stderr)
        return 2


def _run(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("", [])
    if "--help" in words or command == "-h":
        print(USAGE, end="")
        return 0
    if command == "--version":
        print(version_text())
        return 0
    if command == "jobs":
        options = parse_jobs_options(rest)
        from trailboss_worker.jobs import run_jobs

        return run_jobs(options)
    if command == "wsgi":
        application = parse_application_options(rest, command)
        from trailboss_worker.wsgi import run_wsgi

        return run_wsgi(application)
    if command == "asgi":
        application = parse_application_options(rest, command)
        from trailboss_worker.asgi import run_asgi

        return run_asgi(application)
    if command == "echo":
        if rest:
            raise UsageError(f"echo takes no arguments, not {rest[0]!r}")
        return _run_echo()
    raise UsageError(f"unknown command {command!r}" if command else "a command is needed")


def parse_jobs_options(words: Sequence[str]) -> JobsOptions:
    """The options of the jobs command. Raises UsageError."""
    options = JobsOptions("")
    switches = ("--nack-requeue", "--no-nack-requeue")
    for name, value in _split(words, switches, ("--chdir", "--nack-delay", "--runner")):
        if name in switches:
            options = options._replace(nack_requeue=name == "--nack-requeue")
        elif name:
            options = _with_value(options, name, value)
        elif options.target:
            raise UsageError(f"one handler is enough: {options.target!r} or {value!r}")
        else:
            options = options._replace(target=value)
    module, colon, attribute = options.target.partition(":")
    if not (module and colon and attribute):
        raise UsageError(f"a handler is written MODULE:NAME, not {options.target!r}")
    return options


def _split(words: Sequence[str], switches: Sequence[str], valued: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Option and value of each word or pair of words, in order; a word that is no option has the option "".

    A value follows its option after `=` or as the next word. Raises UsageError.
    """
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, value = word.partition("=")
        if word in switches:
            yield word, ""
        elif name in valued:
            if not equals:
                if not remaining:
                    raise UsageError(f"{name} needs a value")
                value = remaining.pop(0)
            yield name, value
        elif word.startswith("-"):
            raise UsageError(f"unknown option {word!r}")
        else:
            yield "", word


def _with_value(options: JobsOptions, name: str, value: str) -> JobsOptions:
    if name == "--chdir":
        return options._replace(directory=value)
    if name == "--runner":
        if value not in RUNNERS:
            raise UsageError(f"--runner is trio or asyncio, not {value!r}")
        return options._replace(runner=value)
    if not (value.isascii() and value.isdigit()):
        raise UsageError(f"--nack-delay is a number of seconds, not {value!r}")
    return options._replace(nack_delay_seconds=int(value))


def parse_application_options(words: Sequence[str], command: str) -> ApplicationOptions:
    """The options of the commands wsgi and asgi. Raises UsageError."""
    options = ApplicationOptions("")
    valued = ("--chdir", "--pythonpath", "--root-path", *(("--lifespan",) if command == "asgi" else ()))
    for name, value in _split(words, ("--factory",), valued):
        if name == "--factory":
            options = options._replace(factory=True)
        elif name:
            options = _with_application_value(options, name, value)
        elif options.target:
            raise UsageError(f"one application is enough: {options.target!r} or {value!r}")
        else:
            options = options._replace(target=value)
    module, colon, attribute = options.target.partition(":")
    if not module or (colon and not attribute):
        raise UsageError(f"an application is written MODULE or MODULE:NAME, not {options.target!r}")
    return options


def _with_application_value(options: ApplicationOptions, name: str, value: str) -> ApplicationOptions:
    if name == "--chdir":
        return options._replace(directory=value)
    if name == "--pythonpath":
        return options._replace(paths=(*options.paths, value))
    if name == "--lifespan":
        if value not in LIFESPAN_MODES:
            raise UsageError(f"--lifespan is auto, on or off, not {value!r}")
        return options._replace(lifespan=value)
    if not value.startswith("/"):
        raise UsageError(f"--root-path begins with a slash, unlike {value!r}")
    return options._replace(root_path=value)


def version_text() -> str:
    """One line: version, frame codec, Python."""
    from trailboss_worker.protocol.frames import codec_name

    python = ".".join(map(str, sys.version_info[:3]))
    return f"trailboss-worker {__version__} (frame codec: {codec_name()}, Python {python}, pid {os.getpid()})"


def _run_echo() -> int:
    from trailboss_worker.protocol.errors import ProtocolError
    from trailboss_worker.sdk.relay import RelayError
    from trailboss_worker.sdk.worker import Worker

    try:
        with Worker() as worker:
            while True:
                payload = worker.wait_payload()
                if payload is None:
                    return 0
                worker.respond(payload.body, payload.context)
    except (RelayError, ProtocolError) as error:
        print(f"trailboss-worker: {error}", file=sys.stderr)
        return 1
