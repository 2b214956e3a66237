"""Uploaded files: what the application is told, whose they are, and that none is left."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import structlog

from trailboss.config.schema import UploadsConfig
from trailboss.plugins.http.forms import FormRefused
from trailboss.plugins.http.uploads import (
    CANNOT_WRITE,
    FORBIDDEN,
    NO_FOLDER,
    OK,
    Owner,
    UploadRules,
    Uploads,
    safe_name,
)


def rules(folder: Path, *, owner: Owner | None = None, **keys: object) -> UploadRules:
    """Rules for files in `folder`."""
    return UploadRules(UploadsConfig(dir=str(folder), **keys), owner)  # type: ignore[arg-type]


def store(uploads: Uploads, field: str, name: str, content: bytes = b"content") -> None:
    """One file, in two pieces."""
    sink = uploads.open(field, name, "text/plain")
    sink.write(content[:3])
    sink.write(content[3:])
    sink.close()


def test_one_file(tmp_path: Path) -> None:
    """A file is stored for its owner alone and told by name, type, size and place; then it is gone."""
    uploads = Uploads(rules(tmp_path))
    store(uploads, "photo", "a.jpg")
    entry = json.loads(uploads.tree())["photo"]
    path = Path(entry.pop("tmpName"))
    assert entry == {"name": "a.jpg", "mime": "text/plain", "size": 7, "error": OK}
    assert path.parent.parent == tmp_path
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.name.startswith("upload")
    assert path.read_bytes() == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert uploads.paths() == [str(path)]
    uploads.remove()
    assert list(tmp_path.iterdir()) == []
    uploads.remove()


def test_tree_of_files(tmp_path: Path) -> None:
    """Keys nest as in forms; of several files under one key the first counts, and all are removed."""
    uploads = Uploads(rules(tmp_path))
    for field, name in [("a", "1"), ("a", "2"), ("list[]", "3"), ("list[]", "4"), ("b[c]", "5")]:
        store(uploads, field, name)
    tree = json.loads(uploads.tree())
    assert tree["a"]["name"] == "1"
    assert [entry["name"] for entry in tree["list"]] == ["3", "4"]
    assert tree["b"]["c"]["name"] == "5"
    assert len(list(tmp_path.glob("*/upload*"))) == 5
    assert len(list(tmp_path.iterdir())) == 1
    uploads.remove()
    assert list(tmp_path.iterdir()) == []


def test_contradicting_fields(tmp_path: Path) -> None:
    """A file and a branch under one key are refused."""
    uploads = Uploads(rules(tmp_path))
    store(uploads, "a", "1")
    store(uploads, "a[b]", "2")
    with pytest.raises(FormRefused) as caught:
        uploads.tree()
    assert caught.value.status == 400
    uploads.remove()
    assert list(tmp_path.iterdir()) == []


def test_no_files(tmp_path: Path) -> None:
    """Without a file there is no tree."""
    assert Uploads(rules(tmp_path)).tree() == b""


@pytest.mark.parametrize(
    ("name", "forbid", "allow", "expected"),
    [
        ("a.php", (".php",), (), FORBIDDEN),
        ("a.PHP", (".php",), (), FORBIDDEN),
        ("a.php", ("php",), (), FORBIDDEN),
        ("a.php.jpg", (".php",), (), OK),
        ("a.jpg", (), (".jpg", ".png"), OK),
        ("a.gif", (), (".jpg", ".png"), FORBIDDEN),
        ("a.jpg", (".jpg",), (".jpg",), FORBIDDEN),
        ("a", (), (".jpg",), FORBIDDEN),
        ("a", (".php",), (), OK),
        (".htaccess", (".htaccess",), (), FORBIDDEN),
        (".php", (".php",), (), FORBIDDEN),
        ("...PHP", (".php",), (), FORBIDDEN),
        ("a.", (".php",), (), OK),
    ],
)
def test_extensions(
    tmp_path: Path, name: str, forbid: tuple[str, ...], allow: tuple[str, ...], expected: int
) -> None:
    """A forbidden file is told with error 8 and without a place; nothing of it is stored."""
    uploads = Uploads(rules(tmp_path, forbid=forbid, allow=allow))
    store(uploads, "f", name)
    entry = json.loads(uploads.tree())["f"]
    assert entry["error"] == expected
    assert entry["size"] == 7
    assert bool(entry["tmpName"]) is (expected == OK)
    assert len(list(tmp_path.iterdir())) == (expected == OK)
    uploads.remove()


def test_missing_folder(tmp_path: Path) -> None:
    """Without its folder a file is told with error 6."""
    uploads = Uploads(rules(tmp_path / "missing"))
    with structlog.testing.capture_logs():
        store(uploads, "f", "a")
    entry = json.loads(uploads.tree())["f"]
    assert (entry["error"], entry["tmpName"], entry["size"]) == (NO_FOLDER, "", 7)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be written is told with error 7, and what was written is removed."""

    def full(fd: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    uploads = Uploads(rules(tmp_path))
    sink = uploads.open("f", "a", "")
    with structlog.testing.capture_logs() as records:
        monkeypatch.setattr("trailboss.plugins.http.uploads.os.write", full)
        sink.write(b"content")
        sink.write(b"more")
        sink.close()
        monkeypatch.undo()
    entry = json.loads(uploads.tree())["f"]
    assert (entry["error"], entry["tmpName"], entry["size"]) == (CANNOT_WRITE, "", 11)
    assert list(tmp_path.iterdir()) == []
    assert len(records) == 1


def test_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and their folder are given to the worker's user."""
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "trailboss.plugins.http.uploads.os.fchown", lambda fd, uid, gid: given.append((uid, gid))
    )
    uploads = Uploads(rules(tmp_path, owner=Owner(1234, 5678)))
    store(uploads, "f", "a")
    assert given == [(1234, 5678)] * 2  # the folder, so that it may be moved away, and the file
    uploads.remove()


def test_owner_that_cannot_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the worker could not read is told with error 7."""

    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("trailboss.plugins.http.uploads.os.fchown", refuse)
    uploads = Uploads(rules(tmp_path, owner=Owner(1234, 5678)))
    with structlog.testing.capture_logs():
        store(uploads, "f", "a")
    assert json.loads(uploads.tree())["f"]["error"] == CANNOT_WRITE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("replacement", ["moved", "unlinked"])
def test_file_taken_by_the_application(tmp_path: Path, replacement: str) -> None:
    """An application that has moved its file keeps it."""
    uploads = Uploads(rules(tmp_path))
    store(uploads, "f", "a")
    kept = tmp_path / "kept"
    if replacement == "moved":
        os.rename(uploads.paths()[0], kept)
    else:
        os.unlink(uploads.paths()[0])
    uploads.remove()
    assert [path.name for path in tmp_path.iterdir()] == (["kept"] if replacement == "moved" else [])


def test_removed_while_it_is_written(tmp_path: Path) -> None:
    """A client that goes away in the middle leaves nothing, no descriptor either."""
    before = len(os.listdir("/proc/self/fd"))
    uploads = Uploads(rules(tmp_path))
    uploads.open("f", "a", "").write(b"begun")
    uploads.remove()
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", "a.txt"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\dir\\a.txt", "a.txt"),
        ("..\\..\\a", "a"),
        ("..", "file"),
        (".", "file"),
        ("", "file"),
        ("a/", "file"),
        ("a\0b\r\nc", "abc"),
        (".htaccess", ".htaccess"),
        ("\u00e4 b.txt", "\u00e4 b.txt"),
        ("\u202egpj.exe", "gpj.exe"),
        ("x" * 300, "x" * 255),
    ],
)
def test_names_are_no_paths(name: str, expected: str) -> None:
    """The application sees the last part of the name, without control characters."""
    assert safe_name(name) == expected
