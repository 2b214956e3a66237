"""What `trailboss chaos` says before it starts anything: each refusal names what is wrong and what to do."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

import pytest

from trailboss.cli.app import run
from trailboss.cli.chaos import Asked
from trailboss.cli.options import Settings

WITH_WORKERS = """
version: "3"
server: {command: "php worker.php"}
http: {address: "127.0.0.1:0", pool: {num_workers: 1}}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A configuration with workers."""
    path = tmp_path / "trailboss.yaml"
    path.write_text(WITH_WORKERS)
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Run the command; returns its exit code and what it said."""
    code = run(["trailboss", "chaos", *words])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        'version: "3"\nrpc: {listen: "tcp://127.0.0.1:6001"}\n',
        WITH_WORKERS.replace("num_workers: 1", "debug: true"),
    ],
)
def test_nothing_to_kill(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server without workers, or with one for each execution, is not run."""
    path = tmp_path / "rpc.yaml"
    path.write_text(text)
    code, said = refused(capsys, "-c", str(path))

    assert code == 1
    assert "no workers that last; it needs http or jobs, with pool.debug off" in said


def test_no_strace(file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Who asks for system calls without strace is told before the run."""
    monkeypatch.setenv("PATH", "/nowhere")
    code, said = refused(capsys, "-c", file, "--system-calls")

    assert code == 1
    assert "needs strace, which is not on PATH; install it, or leave the flag out" in said


def test_a_report_that_cannot_be_written(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be a pity to find that out after the run."""
    code, said = refused(capsys, "-c", file, "--report", str(tmp_path / "nowhere/x.html"))

    assert code == 1
    assert f"there is no folder {tmp_path}/nowhere" in said


def test_no_temporary_folder(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a place to write in there is no run."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    code, said = refused(capsys, "-c", file)

    assert code == 1
    assert "no temporary folder can be made for the run: No such file or directory; TMPDIR may name" in said


def test_a_temporary_folder_that_is_too_deep(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A socket's path has at most 107 bytes; what was made in vain is removed."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    code, said = refused(capsys, "-c", file)

    assert code == 1
    assert f"{deep} is too long a path for a socket (107 bytes); TMPDIR may name another place" in said
    assert list(deep.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [("--for", "3s"), ("--at-most", "0"), ("--plan", "nonsense"), ("--path", "health"), ("--seed", "-1")],
)
def test_wrong_usage(words: tuple[str, ...], file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and the flag is named."""
    code, said = refused(capsys, "-c", file, *words)

    assert code == 2
    assert words[0] in said


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong configuration is exit code 2 as everywhere."""
    code, said = refused(capsys, "-c", str(tmp_path / "none.yaml"))

    assert code == 2
    assert "No such file or directory" in said


def test_the_line_that_repeats_a_run() -> None:
    """It has every flag that was given, quoted for a shell, and no other."""
    settings = Settings(config="a b.yaml", overrides=["http.pool.num_workers=3"])
    asked = Asked("storm", 7, 90.0, 12, ("/x?y=1&z",), 5, "send mail", '{"to": 1}', True)
    plain = Asked("all", 7, 40.0, 0, (), 0, "trailboss-chaos", "{}", False)

    assert [
        *("chaos", "-c", "a b.yaml", "-o", "http.pool.num_workers=3", "--plan", "storm", "--seed", "7"),
        *("--for", "90s", "--at-most", "12", "--path", "/x?y=1&z", "--clients", "5", "--job", "send mail"),
        *("--payload", '{"to": 1}', "--system-calls"),
    ] == shlex.split(asked.again(settings))[1:]
    assert (shlex.split(plain.again(Settings()))[1:]) == [
        "chaos",
        "--plan",
        "all",
        "--seed",
        "7",
        "--for",
        "40s",
    ]
