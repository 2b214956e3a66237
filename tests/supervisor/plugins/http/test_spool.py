"""Bodies on their way in: memory up to a bound, files beyond, exact accounts, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trailboss.plugins.http.message import EMPTY_BODY, Body
from trailboss.plugins.http.spool import Spool


def test_a_small_body_stays_in_memory(tmp_path: Path) -> None:
    """It is counted until it is closed, and closing twice counts once."""
    spool = Spool(100, 1000, str(tmp_path))
    body = spool.take(b"hello")
    assert (body.bytes(), body.size, body.file) == (b"hello", 5, None)
    assert (spool.memory_bytes, spool.files) == (5, 0)
    body.close()
    body.close()
    assert spool.memory_bytes == 0
    assert body.size == 5


def test_no_body_costs_nothing() -> None:
    """An empty body is the one constant, which closing does not change."""
    spool = Spool(100, 1000)
    assert spool.take(b"") is EMPTY_BODY
    assert spool.begin().complete() is EMPTY_BODY
    EMPTY_BODY.close()
    assert EMPTY_BODY.bytes() == b""


@pytest.mark.parametrize("pieces", [[101], [100, 1], [50, 51], [1] * 150])
def test_a_large_body_is_a_file_without_a_name(tmp_path: Path, pieces: list[int]) -> None:
    """Beyond the bound of one body everything is in a file; it has no name, so nothing can stay behind."""
    spool = Spool(100, 1000, str(tmp_path))
    content = os.urandom(sum(pieces))
    incoming = spool.begin()
    start = 0
    for size in pieces:
        incoming.add(content[start : start + size])
        start += size
    body = incoming.complete()
    assert (spool.memory_bytes, spool.files, body.size) == (0, 1, len(content))
    assert body.file is not None
    assert list(tmp_path.iterdir()) == []
    assert body.bytes() == content
    assert os.pread(body.file, 10, 5) == content[5:15]
    descriptor = body.file
    body.close()
    body.close()
    assert spool.files == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_exactly_the_bound_stays_in_memory(tmp_path: Path) -> None:
    """The bound itself still fits."""
    spool = Spool(100, 1000, str(tmp_path))
    body = spool.take(b"x" * 100)
    assert body.file is None
    body.close()
    large = spool.take(b"x" * 101)
    assert large.file is not None
    large.close()


def test_all_bodies_together_have_a_bound(tmp_path: Path) -> None:
    """When the memory of all is used up, even small bodies go to files; freed memory is used again."""
    spool = Spool(100, 250, str(tmp_path))
    bodies = [spool.take(b"x" * 100) for _ in range(4)]
    assert [body.file is None for body in bodies] == [True, True, False, False]
    assert spool.memory_bytes == 200
    bodies[0].close()
    again = spool.take(b"y" * 100)
    assert again.file is None
    for body in [*bodies, again]:
        body.close()
    assert (spool.memory_bytes, spool.files) == (0, 0)


def test_a_body_that_outgrows_the_memory_of_all_moves_to_a_file(tmp_path: Path) -> None:
    """It moves as a whole, and what it held is free for others at once."""
    spool = Spool(100, 120, str(tmp_path))
    first, second = spool.begin(), spool.begin()
    first.add(b"a" * 60)
    second.add(b"b" * 60)
    first.add(b"c" * 10)
    assert (spool.memory_bytes, spool.files) == (60, 1)
    body = first.complete()
    assert body.bytes() == b"a" * 60 + b"c" * 10
    body.close()
    second.drop()
    second.drop()
    assert (spool.memory_bytes, spool.files) == (0, 0)


def test_a_dropped_file_is_closed(tmp_path: Path) -> None:
    """Dropping is all that is needed for a client that has gone."""
    spool = Spool(10, 100, str(tmp_path))
    incoming = spool.begin()
    incoming.add(b"x" * 11)
    assert spool.files == 1
    incoming.drop()
    assert spool.files == 0


def test_no_memory_at_all(tmp_path: Path) -> None:
    """With 0 megabytes every body is a file."""
    spool = Spool(0, 0, str(tmp_path))
    body = spool.take(b"x")
    assert body.file is not None
    assert body.bytes() == b"x"
    body.close()


def test_a_folder_that_is_not_there() -> None:
    """Whoever adds the part that needs a file is told, and nothing is counted once it is dropped."""
    spool = Spool(10, 100, "/nonexistent/folder")
    incoming = spool.begin()
    incoming.add(b"x" * 10)
    with pytest.raises(OSError, match="No such file"):
        incoming.add(b"x")
    incoming.drop()
    assert (spool.memory_bytes, spool.files) == (0, 0)


def test_a_file_system_without_unnamed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a named file is made and unlinked at once."""
    real_open = os.open

    def refuse(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real_open(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    spool = Spool(0, 0, str(tmp_path))
    body = spool.take(b"hello")
    assert list(tmp_path.iterdir()) == []
    assert body.bytes() == b"hello"
    assert body.file is not None
    assert os.fstat(body.file).st_mode & 0o077 == 0
    body.close()


def test_a_file_that_lost_bytes_is_an_error(tmp_path: Path) -> None:
    """A body is never silently shorter than its size."""
    spool = Spool(0, 0, str(tmp_path))
    body: Body = spool.take(b"hello")
    assert body.file is not None
    os.ftruncate(body.file, 2)
    with pytest.raises(OSError, match="shorter"):
        body.bytes()
    body.close()
