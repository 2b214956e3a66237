"""Global flags, the version line, help, and what becomes of wrong command lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

import trailboss
from trailboss.cli.app import cli, run
from trailboss.cli.options import Settings

COMMANDS = ("serve", "stop", "reset", "workers", "jobs", "state", "why", "check", "config")


def outcome(
    capsys: pytest.CaptureFixture[str], *words: str, program: str = "trailboss"
) -> tuple[int, str, str]:
    """Run a command line; return exit code, standard output and standard error."""
    code = run([program, *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("flag", ["--version", "-v"])
def test_version_is_one_line_and_names_the_codec(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    """The line begins `trailboss version X (` and says which frame codec is in use."""
    code, out, err = outcome(capsys, flag)
    assert (code, err) == (0, "")
    assert out.startswith(f"trailboss version {trailboss.__version__} (")
    assert "frame codec: " in out
    assert out.count("\n") == 1


def test_called_as_rr_the_version_is_roadrunners(capsys: pytest.CaptureFixture[str]) -> None:
    """Laravel Octane takes the third word of a line that begins `rr version `."""
    code, out, _ = outcome(capsys, "--version", program="/usr/local/bin/rr")
    assert code == 0
    assert out.split(" ")[:3] == ["rr", "version", trailboss.ROADRUNNER_COMPAT_VERSION]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_global_flags_in_both_places(command: str) -> None:
    """Before or after the command's name, the flags say the same."""
    words = ["-c", "a.yaml", "-w", "/srv", "--dotenv", ".env", "-o", "x=1", "-d", "-p", "-s", "-e", "-f"]
    expected = Settings("trailboss", "a.yaml", "/srv", ".env", ["x=1"], True, True, True, True, True)
    for line in ([*words, command], [command, *words]):
        settings = Settings()
        with click.Context(cli, obj=settings) as root:
            _parse_only(root, line)
        assert settings == expected


def _parse_only(root: click.Context, line: Sequence[str]) -> None:
    """Parse a command line through the group and its command without carrying anything out."""
    with cli.make_context("trailboss", list(line), parent=root) as context:
        name, command, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        with command.make_context(name, rest, parent=context):
            pass


def test_flags_of_both_places_add_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """-o before and after the command are both applied, the later one last."""
    (tmp_path / ".rr.yaml").write_text('version: "3"\n')
    words = [
        "-w",
        str(tmp_path),
        "-o",
        "rpc.listen=tcp://127.0.0.1:1",
        "config",
        "-o",
        "rpc.listen=tcp://127.0.0.1:2",
    ]
    code, out, _ = outcome(capsys, *words)
    assert code == 0
    assert "tcp://127.0.0.1:2" in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["serve", "--nonsense"], "No such option"),
        (["jobs", "--list", "push", "a", "b"], "either a flag or a sub-command"),
        (["jobs", "push", "p", "n", "-", "--payload", "x"], "give the payload once"),
        (["jobs", "push", "p", "n", "--header", "novalue"], "NAME=VALUE"),
        (["jobs", "push", "p", "n", "--delay", "soon"], "no duration"),
        (["jobs", "dead", "purge"], "name the ids, or give --all"),
        (["config", "--defaults", "--schema"], "either --defaults or --schema"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], text: str
) -> None:
    """The error names what is wrong; nothing is done."""
    if "push" in words:
        words = [*words, "-o", f"rpc.listen=unix://{tmp_path}/absent.sock", "-w", str(tmp_path)]
    code, out, err = outcome(capsys, *words)
    assert code == 2
    assert out == ""
    assert text in err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """--help lists the commands and the exit codes."""
    code, out, _ = outcome(capsys, "--help")
    assert code == 0
    for command in COMMANDS:
        assert f"  {command} " in out
    assert "Exit codes" in out


def test_the_client_side_imports_nothing_of_the_server() -> None:
    """--version and the commands that call the server load neither trio nor protobuf nor OpenTelemetry."""
    program = (
        "import sys\n"
        "from trailboss.cli.app import run\n"
        "from trailboss_worker.sdk import RPC, Jobs, Informer\n"
        "import trailboss.cli.jobs, trailboss.cli.workers, trailboss.cli.reset, trailboss.cli.state\n"
        "assert run(['trailboss', '--version']) == 0\n"
        "heavy = {'trio', 'structlog', 'google.protobuf', 'opentelemetry', 'rich', 'psutil'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_check_knows_the_names_of_middleware(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What a start would refuse is a finding, with its line."""
    text = 'version: "3"\nserver: {command: sh}\nhttp:\n  address: 127.0.0.1:0\n  middleware: [gziip]\n'
    (tmp_path / ".rr.yaml").write_text(text)
    code, _, err = outcome(capsys, "-w", str(tmp_path), "check")
    assert code == 1
    assert ".rr.yaml:5: http.middleware: there is no middleware gziip; write one of gzip, headers" in err
