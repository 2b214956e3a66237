"""What `trailboss check` finds beyond the file itself: things of this machine, and values that hardly can be meant.

Commands, users, addresses, log files, and pairs of keys that work against each other. Nothing is changed: a port is
bound and let go at once, a folder is only asked whether it is writable. Findings are Problems like those of the loader;
what can never work is already an error there.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import shutil
import socket
from collections.abc import Iterator

from trailboss.config.problems import Problem
from trailboss.config.rules import pools
from trailboss.config.schema import (
    Command,
    Config,
    FileLoggerConfig,
    HttpSslConfig,
    LogChannelConfig,
    LogsConfig,
)
from trailboss.config.values import format_duration, parse_address, parse_http_address

__all__ = ["check"]

_PYTHON_WORKER = "trailboss-worker"


def check(config: Config) -> list[Problem]:
    """Return what is likely to fail or not to be meant, in the order of sections; an empty list means all is well.

    Blocks for as long as the system calls take (no name is looked up over the network except hosts of listeners).
    """
    return [
        *_rpc(config),
        *_server(config),
        *_pools(config),
        *_http(config),
        *_jobs(config),
        *_status(config),
        *_metrics(config),
        *_logs(config),
    ]


def _rpc(config: Config) -> Iterator[Problem]:
    rpc = config.rpc
    if not rpc.enabled:
        return
    if rpc.listen:
        yield from _listener(config, "rpc.listen", rpc.listen)
    if rpc.max_bytes_in_flight < rpc.max_frame_size:
        yield config.source.problem(
            "rpc.max_bytes_in_flight",
            "one frame of rpc.max_frame_size does not fit into it",
            f"write {rpc.max_frame_size} or more",
        )


def _server(config: Config) -> Iterator[Problem]:
    server = config.server
    if server is None:
        return
    yield from _command(config, "server.command", server.command, server.python)
    yield from _user(config, "server.user", server.user)
    if server.group:
        try:
            grp.getgrnam(server.group)
        except KeyError:
            yield config.source.problem(
                "server.group", "there is no such group", "create it or correct the name"
            )
    if server.relay != "pipes":
        yield from _listener(config, "server.relay", server.relay)
    if server.on_init is not None:
        yield from _command(config, "server.on_init.command", server.on_init.command, "")
        yield from _user(config, "server.on_init.user", server.on_init.user)


def _pools(config: Config) -> Iterator[Problem]:
    grace = config.endure.grace_period
    for name, pool in pools(config):
        python = config.server.python if config.server else ""
        yield from _command(config, f"{name}.command", pool.command, python)
        # RoadRunner's own defaults (30s and 60s) contradict each other, so only a destroy_timeout that was written counts.
        for key, seconds in (("stop_timeout", pool.stop_timeout), ("destroy_timeout", pool.destroy_timeout)):
            written = f"{name}.{key}" in config.source.places or key == "stop_timeout"
            if written and seconds > grace:
                yield config.source.problem(
                    "endure.grace_period",
                    f"{format_duration(grace)} is shorter than {name}.{key} ({format_duration(seconds)}), "
                    "so a stop cuts workers off",
                    f"write {format_duration(seconds)} or more",
                )
        limits = pool.supervisor
        for key, seconds in (("exec_ttl", limits.exec_ttl), ("idle_ttl", limits.idle_ttl)):
            if limits.ttl and seconds > limits.ttl:
                yield config.source.problem(
                    f"{name}.supervisor.{key}",
                    f"longer than the whole life of a worker, ttl {format_duration(limits.ttl)}",
                    f"make ttl longer or {key} shorter",
                )


def _http(config: Config) -> Iterator[Problem]:
    if config.http is None:
        return
    ssl = config.http.ssl
    for key, addresses in (
        ("http.address", config.http.address),
        ("http.ssl.address", ssl.address if ssl else ()),
    ):
        for address in addresses:
            scheme, host, _ = parse_http_address(address)
            if scheme != "systemd":  # passed to the server when it is started
                yield from _listener(config, key, f"unix://{host}" if scheme == "unix" else address)
    if ssl is not None:
        yield from _ssl(config, ssl)
    http = config.http
    if "static" in http.middleware and http.static is not None:
        yield from _folder(config, "http.static.dir", http.static.dir)
    if "sendfile" in http.middleware:
        yield from _folder(config, "http.sendfile.root", http.sendfile.root)
    yield from _folder(config, "http.uploads.dir", http.uploads.dir, os.R_OK | os.W_OK | os.X_OK)


def _folder(config: Config, name: str, path: str, mode: int = os.R_OK | os.X_OK) -> Iterator[Problem]:
    if not path:
        return
    path = os.path.normpath(os.path.join(config.source.working_directory, path))
    if not os.path.isdir(path):
        yield config.source.problem(name, f"there is no folder {path}", "create it, or correct the path")
    elif not os.access(path, mode):
        what = "writable" if mode & os.W_OK else "readable"
        yield config.source.problem(name, f"the folder {path} is not {what}", "change its owner or mode")


def _ssl(config: Config, ssl: HttpSslConfig) -> Iterator[Problem]:
    from trailboss.certificates import CertificateError, judge_files

    folder = config.source.working_directory
    try:
        notes = judge_files(ssl, folder)
    except CertificateError as error:
        yield config.source.problem(f"http.ssl.{error.key}", error.what, error.remedy)
    else:
        for note in notes:
            yield config.source.problem(f"http.ssl.{note.key}", note.what, note.remedy)


def _jobs(config: Config) -> Iterator[Problem]:
    jobs = config.jobs
    if jobs is not None and jobs.retry_backoff > jobs.retry_backoff_max:
        yield config.source.problem(
            "jobs.retry_backoff",
            "longer than retry_backoff_max",
            "make it shorter, or raise retry_backoff_max",
        )


def _status(config: Config) -> Iterator[Problem]:
    if config.status is not None:
        yield from _listener(config, "status.address", config.status.address)


def _metrics(config: Config) -> Iterator[Problem]:
    if config.metrics is not None:
        yield from _listener(config, "metrics.address", config.metrics.address)


def _command(config: Config, name: str, command: Command, python: str) -> Iterator[Problem]:
    if not command:
        return
    if command[0] == _PYTHON_WORKER:  # run with our own interpreter where no other is named
        if python:
            yield from _program(config, "server.python", python)
        return
    yield from _program(config, name, command[0])
    script = command[1] if len(command) > 1 else ""
    if script.endswith((".php", ".py")) and not script.startswith("-"):
        path = os.path.join(config.source.working_directory, script)
        if not os.path.isfile(path):
            yield config.source.problem(
                name, f"there is no script {path}", "correct the path, or start with -w FOLDER"
            )


def _program(config: Config, name: str, program: str) -> Iterator[Problem]:
    if "/" in program:
        path = os.path.join(config.source.working_directory, program)
        if not os.path.exists(path):
            yield config.source.problem(
                name, f"there is no program {path}", "correct the path, or start with -w FOLDER"
            )
        elif not os.path.isfile(path) or not os.access(path, os.X_OK):
            yield config.source.problem(
                name, f"{path} is not executable", f"chmod +x {path}, or name its interpreter"
            )
        return
    search = config.source.environment.get("PATH") or os.environ.get("PATH")
    if shutil.which(program, path=search) is None:
        yield config.source.problem(
            name, f"there is no program {program} in PATH", "install it, or write its full path"
        )


def _user(config: Config, name: str, user: str) -> Iterator[Problem]:
    if not user:
        return
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        yield config.source.problem(name, "there is no such user", "create the user or correct the name")
        return
    if os.geteuid() not in (0, account.pw_uid):
        yield config.source.problem(
            name, "only root can run workers as another user", "start as root, or remove the key"
        )


def _listener(config: Config, name: str, address: str) -> Iterator[Problem]:
    scheme, host, port = parse_address(address)
    if scheme == "unix":
        yield from _unix_listener(config, name, os.path.join(config.source.working_directory, host))
    else:
        yield from _tcp_listener(config, name, host, port)


def _tcp_listener(config: Config, name: str, host: str, port: int) -> Iterator[Problem]:
    try:
        choices = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, target = choices[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
            listener.listen(1)
    except socket.gaierror:
        yield config.source.problem(
            name, "the host of the address is not known", "write an IP address of this machine"
        )
    except OSError as error:
        yield config.source.problem(name, *_bind_failure(error))


_IF_NOT_US = "if it is this very server, running already, nothing is wrong; else "


def _bind_failure(error: OSError) -> tuple[str, str]:
    if error.errno == errno.EADDRINUSE:
        return (
            "the port is in use",
            f"{_IF_NOT_US}stop what listens there, or choose another port",
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return ("this machine has no such address", "write an address of this machine, for example 127.0.0.1")
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            "the port may not be opened by this user",
            "choose a port above 1023, or start with CAP_NET_BIND_SERVICE",
        )
    return (f"the port cannot be opened: {error.strerror}", "choose another address")


def _unix_listener(config: Config, name: str, path: str) -> Iterator[Problem]:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        yield config.source.problem(name, f"there is no folder {folder}", "create it, or choose another path")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield config.source.problem(name, f"the folder {folder} is not writable", "change its owner or mode")
    elif os.path.lexists(path) and _is_answered(path):
        yield config.source.problem(
            name,
            "the socket is in use",
            f"{_IF_NOT_US}stop what listens there",
        )


def _is_answered(path: str) -> bool:
    """Say whether a process listens on the socket; a file left over from a dead one does not count."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _logs(config: Config) -> Iterator[Problem]:
    yield from _log_section(config, "logs", config.logs)
    for name, channel in config.logs.channels.items():
        yield from _log_section(config, f"logs.channels.{name}", channel)


def _log_section(config: Config, name: str, section: LogsConfig | LogChannelConfig) -> Iterator[Problem]:
    for key, targets in (("output", section.output), ("err_output", section.err_output)):
        for target in targets or ():
            if target not in ("stdout", "stderr"):
                yield from _log_file(config, f"{name}.{key}", target)
    options: FileLoggerConfig | None = section.file_logger_options
    if options is not None and options.log_output:
        yield from _log_file(config, f"{name}.file_logger_options.log_output", options.log_output)


def _log_file(config: Config, name: str, target: str) -> Iterator[Problem]:
    path = os.path.join(config.source.working_directory, target)
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        yield config.source.problem(name, f"{path} is a folder", "name a file")
    elif not os.path.isdir(folder):
        yield config.source.problem(name, f"there is no folder {folder}", "create it, or choose another path")
    elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
        yield config.source.problem(
            name, f"{path} is not writable", "change its owner or mode, or choose another path"
        )
