"""The folder of uploaded files: what killed servers have left goes, what anybody else has stays."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from trailboss.plugins.http.upload_folder import PREFIX, Owner, UploadFolder, sweep

KILLED = """
import os, signal, sys
from trailboss.plugins.http.upload_folder import UploadFolder
folder = UploadFolder(sys.argv[1])
for _ in range(3):
    fd, path = folder.create()
    os.write(fd, b"content")
print(path, flush=True)
if sys.argv[2] == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""


def other_server(folder: Path, what: str) -> subprocess.Popen[bytes]:
    """Another process with three uploads, once it has them."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), what], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(str(folder).encode())
    return process


def end(process: subprocess.Popen[bytes]) -> int:
    """Kill a process and collect it."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode


@pytest.fixture
def living(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that lives, with uploads in the same folder."""
    process = other_server(tmp_path, "lives")
    yield process
    end(process)


def test_what_a_killed_server_has_left_is_removed(tmp_path: Path) -> None:
    """All files and the folder; once."""
    end(other_server(tmp_path, "dies"))
    assert len(list(tmp_path.glob("*/upload*"))) == 3
    with structlog.testing.capture_logs() as records:
        assert sweep(str(tmp_path)) == 3
        assert sweep(str(tmp_path)) == 0
    assert list(tmp_path.iterdir()) == []
    assert [(record["event"], record["files"]) for record in records] == [
        ("uploaded files of an earlier run were removed", 3)
    ]


def test_what_lives_stays(tmp_path: Path, living: subprocess.Popen[bytes]) -> None:
    """Files of a server that runs are not touched, nor those of this one; after its death they go."""
    ours = UploadFolder(str(tmp_path))
    fd, path = ours.create()
    os.close(fd)
    assert sweep(str(tmp_path)) == 0
    assert len(list(tmp_path.glob("*/upload*"))) == 4
    os.unlink(path)
    ours.let_go()
    end(living)
    assert sweep(str(tmp_path)) == 3
    assert list(tmp_path.iterdir()) == []


def test_what_others_have_stays(tmp_path: Path) -> None:
    """Files with other names, links and what is behind them, folders that are called otherwise or belong to others."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "uploadabcdefgh").write_text("a user's")
    left = tmp_path / f"{PREFIX}abcdefgh"
    left.mkdir()
    for name in ("uploadabcdefgh", "uploadabc", "upload_report.pdf", "notes", "upload12345678.txt"):
        (left / name).write_text("x")
    (left / "uploadasubdir").mkdir()
    (left / "upload_link_00").symlink_to(precious / "uploadabcdefgh")
    (tmp_path / f"{PREFIX}link").symlink_to(precious)
    (tmp_path / f"{PREFIX}file").write_text("x")
    assert sweep(str(tmp_path)) == 1
    assert sorted(path.name for path in left.iterdir()) == [
        "notes",
        "upload12345678.txt",
        "upload_link_00",
        "upload_report.pdf",
        "uploadabc",
        "uploadasubdir",
    ]
    assert (precious / "uploadabcdefgh").read_text() == "a user's"
    assert (tmp_path / f"{PREFIX}file").exists()


def test_folders_of_other_users_stay(tmp_path: Path) -> None:
    """Only folders of this user and of the workers' user are looked into."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give a folder away")
    left = tmp_path / f"{PREFIX}abcdefgh"
    left.mkdir()
    (left / "uploadabcdefgh").write_text("x")
    os.chown(left, 4711, 4711)
    assert sweep(str(tmp_path)) == 0
    assert sweep(str(tmp_path), Owner(4711, 4711)) == 1


def test_nothing_to_sweep(tmp_path: Path) -> None:
    """A folder that is not there is no error."""
    assert sweep(str(tmp_path / "none")) == 0


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads work, and nothing is swept: it might be in use."""

    def refuse(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = UploadFolder(str(tmp_path))
    fd, path = folder.create()
    os.close(fd)
    assert sweep(str(tmp_path)) == 0
    assert os.path.exists(path)
    os.unlink(path)
    folder.let_go()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_comes_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that another server sweeps away before it is locked is made anew."""
    real, calls = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise BlockingIOError
        if len(calls) == 2:
            os.rmdir(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd"))
    folder = UploadFolder(str(tmp_path))
    fd, path = folder.create()
    os.close(fd)
    assert len(calls) == 3
    os.unlink(path)
    folder.let_go()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_cleaner_that_takes_everything(tmp_path: Path) -> None:
    """A folder that was removed under its files is made anew; where the parent is gone as well, that is an error."""
    parent = tmp_path / "parent"
    parent.mkdir()
    folder = UploadFolder(str(parent))
    first = folder.create()
    os.close(first[0])
    for path in (Path(first[1]), Path(first[1]).parent):
        path.unlink() if path.is_file() else path.rmdir()
    fd, second = folder.create()
    os.close(fd)
    assert os.path.exists(second)
    folder.let_go()
    os.unlink(second)
    folder.let_go()
    assert list(parent.iterdir()) == []
    parent.rmdir()
    with pytest.raises(FileNotFoundError):
        folder.create()


def test_the_workers_user_may_take_a_file_away(tmp_path: Path) -> None:
    """Read it, and rename it into a folder of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    place = Path("/tmp") / f"trailboss-test-{os.getpid()}"
    place.mkdir(mode=0o711)
    try:
        folder = UploadFolder(str(place), Owner(65534, 65534))
        fd, path = folder.create()
        os.write(fd, b"content")
        os.fchown(fd, 65534, 65534)
        os.close(fd)
        target = place / "own"
        target.mkdir()
        os.chown(target, 65534, 65534)
        words = ["/bin/sh", "-c", f"cat {path} && mv {path} {target}/kept"]
        done = subprocess.run(words, user=65534, group=65534, check=True, cwd="/", capture_output=True)
        assert done.stdout == b"content"
        folder.let_go()
        assert (target / "kept").read_bytes() == b"content"
        assert sorted(os.listdir(place)) == ["own"]
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)
