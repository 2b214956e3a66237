"""Folders for temporary files of workers: who gets in, what goes when, and what a killed server leaves."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest
import trio

from trailboss.workers.private_tmp import PREFIX, PrivateFolders, remove_abandoned
from trailboss.workers.process import Identity

NOBODY = Identity("nobody", 65534, 65534, ())


def test_a_folder_is_its_users_alone_and_goes_with_all_it_has(tmp_path: Path) -> None:
    """Mode 0700, the worker's owner; removal takes trees, and links as links."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    folders = PrivateFolders.open(str(tmp_path))
    mine = Path(folders.make(NOBODY if os.geteuid() == 0 else None))
    found = mine.stat()
    assert stat.S_IMODE(found.st_mode) == 0o700
    assert found.st_uid == (65534 if os.geteuid() == 0 else os.geteuid())
    assert stat.S_IMODE(os.stat(folders.folder).st_mode) == 0o711
    (mine / "a" / "b").mkdir(parents=True)
    (mine / "a" / "b" / "file").write_text("x")
    (mine / "link").symlink_to(kept)
    other = folders.make(None)
    trio.run(folders.discard, str(mine))
    assert not mine.exists()
    assert os.path.isdir(other)
    trio.run(folders.close)
    assert not os.path.exists(folders.folder)
    assert (kept / "file").read_text() == "mine"


def test_only_folders_of_dead_servers_are_removed_at_a_start(tmp_path: Path) -> None:
    """What is locked belongs to a server that runs; what is a file or a link is nobody's."""
    alive = PrivateFolders.open(str(tmp_path))
    dead = tmp_path / f"{PREFIX}dead"
    (dead / "worker").mkdir(parents=True)
    (tmp_path / f"{PREFIX}file").write_text("x")
    (tmp_path / "target").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "target")
    remove_abandoned(str(tmp_path))
    assert not dead.exists()
    assert os.path.isdir(alive.folder)
    assert (tmp_path / f"{PREFIX}file").exists()
    assert (tmp_path / "target").exists()
    trio.run(alive.close)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs folders of another user")
def test_a_folder_of_another_user_is_left_alone(tmp_path: Path) -> None:
    """Anybody can make a folder of such a name where temporary files go."""
    foreign = tmp_path / f"{PREFIX}foreign"
    foreign.mkdir()
    os.chown(foreign, 65534, 65534)
    remove_abandoned(str(tmp_path))
    assert foreign.exists()


def test_a_server_holds_its_folder(tmp_path: Path) -> None:
    """The lock is there from the moment on at which the folder has its name."""
    folders = PrivateFolders.open(str(tmp_path))
    fd = os.open(folders.folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)
    trio.run(folders.close)
