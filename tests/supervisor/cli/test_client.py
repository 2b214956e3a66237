"""Where a command looks for the server, and what it says when nobody answers."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from trailboss.cli.app import run
from trailboss.cli.client import CommandFailed, ConfigurationWrong, rpc_address
from trailboss.cli.options import Settings

CLIENT_COMMANDS = (
    ["reset"],
    ["workers"],
    ["jobs", "--list"],
    ["jobs", "push", "p", "n"],
    ["jobs", "stat"],
    ["jobs", "dead", "list"],
    ["jobs", "dead"],
    ["jobs", "dead", "--json"],
    ["state"],
    ["status"],
    ["why"],
)


@pytest.fixture(autouse=True)
def _no_runtime_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, with the default socket below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("DOTENV_PATH", raising=False)


def test_address_of_the_configuration(tmp_path: Path) -> None:
    """rpc.listen, as workers would get it; a wildcard is reached on loopback."""
    (tmp_path / ".rr.yaml").write_text(
        'version: "3"\nrpc: {listen: "tcp://0.0.0.0:6001", allow_remote: true}\n'
    )
    assert rpc_address(Settings()) == "tcp://127.0.0.1:6001"


def test_default_address_without_a_file(tmp_path: Path) -> None:
    """No file, no flag: the private socket."""
    assert rpc_address(Settings()) == f"unix://{tmp_path}/trailboss.sock"


def test_override_works_without_a_file_and_with_an_empty_one(tmp_path: Path) -> None:
    """Laravel Octane names an empty file and gives everything with -o, with or without version."""
    override = "rpc.listen=tcp://127.0.0.1:6801"
    assert rpc_address(Settings(overrides=[override])) == "tcp://127.0.0.1:6801"
    (tmp_path / "empty.yaml").write_text("")
    for overrides in ([override], ["version=3", override]):
        assert rpc_address(Settings(config="empty.yaml", overrides=overrides)) == "tcp://127.0.0.1:6801"


def test_a_wrong_file_and_a_port_that_is_off_are_said(tmp_path: Path) -> None:
    """A file that was named must be right; with rpc.enabled false there is nothing to call."""
    with pytest.raises(ConfigurationWrong):
        rpc_address(Settings(config="absent.yaml"))
    (tmp_path / "off.yaml").write_text('version: "3"\nrpc: {enabled: false}\n')
    with pytest.raises(CommandFailed, match=r"rpc\.enabled is false"):
        rpc_address(Settings(config="off.yaml"))


@pytest.mark.parametrize("words", CLIENT_COMMANDS, ids=" ".join)
def test_nobody_answers_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    """The line names the address that was tried and how to start a server; exit code 1; also with -s."""
    for flags in ([], ["-s"]):
        assert run(["trailboss", *words, *flags]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert f"unix://{tmp_path}/trailboss.sock" in captured.err
        assert "trailboss serve" in captured.err


@pytest.mark.parametrize("same_user", [True, False], ids=["same user", "another user"])
def test_a_server_that_closes_at_once_is_explained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_user: bool
) -> None:
    """A server that answers the knock and then closes most likely belongs to somebody else; the line says so."""
    uid = os.geteuid()
    if not same_user:
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/trailboss.sock")
        listener.listen()
        accepting = threading.Thread(target=_close_everybody, args=(listener,))
        accepting.start()
        assert run(["trailboss", "state"]) == 1
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "closed the connection" in captured.err
    assert "the server runs as another user" in captured.err
    assert (f"uid {uid}, you are uid {uid + 1}" in captured.err) is not same_user
    assert "trailboss serve" not in captured.err


def _close_everybody(listener: socket.socket) -> None:
    while True:
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        accepted.close()


def test_stop_without_a_pid_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """No .pid: exit code 1 and what to do."""
    assert run(["trailboss", "stop"]) == 1
    assert "serve -p" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "abc", "1", "-5", "99999999999", f"{os.getpid()}"])
def test_stop_never_signals_what_is_no_server(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str
) -> None:
    """Nonsense in .pid, or the process id of somebody else, is refused."""
    (tmp_path / ".pid").write_text(content)
    assert run(["trailboss", "stop"]) == 1
    assert ".pid" in capsys.readouterr().err
