"""Checks of the machine and of pairs of keys, as `trailboss check` runs them."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator

import pytest

from trailboss.config.check import check

from .conftest import Folder

HEAD = 'version: "3"\n'
GOOD = HEAD + "server: {command: [/bin/sh]}\n"


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Give the number of a port that something listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        yield int(listener.getsockname()[1])


def lines_of(folder: Folder, text: str) -> list[str]:
    """Return the findings about a configuration as lines, without the folder."""
    return [str(problem).replace(f"{folder.path}/", "") for problem in check(folder.load(text))]


def test_a_sound_configuration_has_no_findings(folder: Folder) -> None:
    """Defaults, an existing command, a script in the working directory and free ports are all well."""
    folder.write("", "worker.php")
    folder.write("#!/bin/sh\n", "run.sh").chmod(0o755)
    user = getpass.getuser()
    text = (
        f"{HEAD}server: {{command: [sh, worker.php], user: '{user}', relay: 'unix://r.sock', on_init: {{command: ./run.sh}}}}\n"
        "rpc: {listen: 'tcp://127.0.0.1:0'}\nstatus: {address: '127.0.0.1:0'}\n"
        "jobs: {pool: {supervisor: {ttl: 1h, exec_ttl: 1m}}}\nlogs: {output: [stdout, app.log], channels: {jobs: {level: info}}}\n"
    )

    assert lines_of(folder, text) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            HEAD + "server: {command: [no-such-program-here]}\n",
            "server.command: there is no program no-such-program-here in PATH",
        ),
        (HEAD + "server: {command: [./none]}\n", "server.command: there is no program ./none"),
        (HEAD + "server: {command: [./plain]}\n", "server.command: ./plain is not executable; chmod +x"),
        (HEAD + "server: {command: [sh, none.php]}\n", "server.command: there is no script none.php"),
        (
            HEAD + "server: {command: [trailboss-worker, jobs, 'a:b'], python: ./py}\n",
            "server.python: there is no program ./py",
        ),
        (GOOD + "jobs: {pool: {command: [./none]}}\n", "jobs.pool.command: there is no program ./none"),
        (HEAD + "server: {command: [sh], user: no-such-user}\n", "server.user: there is no such user"),
        (HEAD + "server: {command: [sh], group: no-such-group}\n", "server.group: there is no such group"),
        (
            HEAD + "server: {command: [sh], on_init: {command: ./none}}\n",
            "server.on_init.command: there is no program ./none",
        ),
        (
            HEAD + "server: {command: [sh], on_init: {command: sh, user: no-such-user}}\n",
            "server.on_init.user: there is no such user",
        ),
        (HEAD + "rpc: {listen: 'unix://none/r.sock'}\n", "rpc.listen: there is no folder none"),
        (
            HEAD + "rpc: {max_bytes_in_flight: 2}\n",
            "rpc.max_bytes_in_flight: one frame of rpc.max_frame_size does not fit",
        ),
        (HEAD + "status: {address: '192.0.2.1:80'}\n", "status.address: this machine has no such address"),
        (
            GOOD + "endure: {grace_period: 5s}\njobs: {}\n",
            "endure.grace_period: 5s is shorter than jobs.pool.stop_timeout (10s)",
        ),
        (
            GOOD + "jobs: {pool: {destroy_timeout: 40s}}\n",
            "endure.grace_period: 30s is shorter than jobs.pool.destroy_timeout (40s)",
        ),
        (
            GOOD + "jobs: {pool: {supervisor: {ttl: 10s, exec_ttl: 1m}}}\n",
            "jobs.pool.supervisor.exec_ttl: longer than the whole life of a worker, ttl 10s",
        ),
        (GOOD + "jobs: {retry_backoff: 2m}\n", "jobs.retry_backoff: longer than retry_backoff_max"),
        (
            GOOD + "http: {address: '127.0.0.1:0', uploads: {dir: none}}\n",
            "http.uploads.dir: there is no folder none",
        ),
        (
            GOOD + "http: {address: '127.0.0.1:0', middleware: [static], static: {dir: plain}}\n",
            "http.static.dir: there is no folder plain",
        ),
        (
            GOOD + "http: {address: '127.0.0.1:0', middleware: [sendfile], sendfile: {root: none}}\n",
            "http.sendfile.root: there is no folder none",
        ),
        (HEAD + "logs: {output: [none/app.log]}\n", "logs.output: there is no folder none"),
        (
            HEAD + "logs: {channels: {jobs: {err_output: [.]}}}\n",
            "logs.channels.jobs.err_output: . is a folder",
        ),
        (
            HEAD + "logs: {file_logger_options: {log_output: none/a.log}}\n",
            "logs.file_logger_options.log_output: there is no folder none",
        ),
    ],
)
def test_each_finding_names_key_and_remedy(folder: Folder, text: str, line: str) -> None:
    """One mistake gives one finding with a remedy."""
    folder.write("", "plain")
    lines = lines_of(folder, text)

    assert len(lines) == 1
    assert lines[0].split(": ", 1)[1].startswith(line)
    assert "; " in lines[0]


def test_a_taken_port_is_found(folder: Folder, taken_port: int) -> None:
    """The port is tried; a free one is let go again."""
    lines = lines_of(
        folder,
        f"{HEAD}rpc: {{listen: 'tcp://127.0.0.1:{taken_port}'}}\nstatus: {{address: 'localhost:{taken_port}'}}\n",
    )

    assert [line.split(";")[0] for line in lines] == [
        ".rr.yaml:2: rpc.listen: the port is in use",
        ".rr.yaml:3: status.address: the port is in use",
    ]
    assert all("; if it is this very server, running already, nothing is wrong; " in line for line in lines)


def test_a_served_socket_is_found_and_a_dead_one_is_not(folder: Folder) -> None:
    """A socket file counts only while something answers behind it."""
    text = HEAD + "rpc: {listen: 'unix://r.sock'}\n"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder.path / "r.sock"))
        listener.listen(1)
        lines = lines_of(folder, text)
        assert len(lines) == 1
        assert "rpc.listen: the socket is in use" in lines[0]

    assert lines_of(folder, text) == []


def test_folders_that_are_not_writable_are_found(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of access(2) decides (simulated, since root may write everywhere)."""
    config = folder.load(
        HEAD
        + "server: {command: [sh]}\nrpc: {listen: 'unix://r.sock'}\nlogs: {output: [a.log]}\n"
        + "http: {address: '127.0.0.1:0', uploads: {dir: .}}\n"
    )
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and real(path, mode))

    assert [problem.key for problem in check(config)] == ["rpc.listen", "http.uploads.dir", "logs.output"]
    assert all("is not writable" in problem.message for problem in check(config))


def test_only_root_may_change_users(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's name is a finding for everybody but root."""
    config = folder.load(HEAD + "server: {command: [sh], user: root}\n")
    monkeypatch.setattr(os, "geteuid", lambda: 54321)

    assert [problem.message for problem in check(config)] == ["only root can run workers as another user"]


def test_ports_of_the_system_need_a_right(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused bind says which right is missing (simulated, since root may bind everywhere)."""
    config = folder.load(HEAD + "status: {address: '127.0.0.1:80'}\n")

    def refuse(_socket: object, _address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)

    assert [problem.message for problem in check(config)] == ["the port may not be opened by this user"]
