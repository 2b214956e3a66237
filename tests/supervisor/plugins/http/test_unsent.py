"""What a client has not taken yet: order, exact accounts, the ways from memory to a file and back."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from trailboss.plugins.http.unsent import AnswerAccount, FilePart, Kept, Unsent


def take(unsent: Unsent, count: int) -> bytes:
    """Send at most `count` bytes of what is first, as a socket would."""
    first = unsent.first
    if isinstance(first, FilePart):
        data = os.pread(first.fd, min(count, first.count), first.offset)
    else:
        data = bytes(first[:count])
    unsent.sent(len(data))
    return data


def numbers(account: AnswerAccount) -> tuple[int, int, int]:
    """What is held now."""
    return account.memory_bytes, account.file_bytes, account.files


@pytest.mark.parametrize("seed", range(30))
def test_bytes_come_out_in_order_whatever_the_sizes(seed: int, tmp_path: Path) -> None:
    """Parts of all kinds and sizes, taken at any pace; limits are never passed by more than a part, at the end all is 0."""
    rng = random.Random(seed)
    account = AnswerAccount(50_000, 120_000, 200_000, 300_000, str(tmp_path))
    queues = [Unsent(account) for _ in range(3)]
    wanted = [bytearray() for _ in queues]
    got = [bytearray() for _ in queues]
    static = tmp_path / "static"
    static.write_bytes(rng.randbytes(100_000))
    for _ in range(400):
        number = rng.randrange(3)
        unsent = queues[number]
        if rng.random() < 0.5:
            size = rng.choice((1, 100, 5000, 16_384, 40_000))
            data = rng.randbytes(size)
            part = memoryview(b"head" + data)[4:] if rng.random() < 0.3 else data
            whole = rng.random() < 0.2
            kept = unsent.keep(part, whole=whole)
            assert whole or kept is not Kept.LOST
            if kept is not Kept.LOST:
                wanted[number] += data
        elif rng.random() < 0.1:
            offset = rng.randrange(50_000)
            unsent.add_file(os.open(static, os.O_RDONLY), offset, 50_000)
            wanted[number] += static.read_bytes()[offset : offset + 50_000]
        else:
            for _ in range(rng.randrange(6)):
                if unsent.size:
                    got[number] += take(unsent, rng.choice((1, 1000, 30_000)))
        assert account.file_bytes <= 300_000
        assert all(queue.size == len(w) - len(g) for queue, w, g in zip(queues, wanted, got, strict=True))
    for number in (0, 1):
        while queues[number].size:
            got[number] += take(queues[number], 65_536)
        assert got[number] == wanted[number]
    queues[2].drop()
    queues[2].drop()
    assert wanted[2].startswith(got[2])
    assert numbers(account) == (0, 0, 0)
    assert os.listdir(tmp_path) == ["static"]


def test_a_view_counts_for_all_that_it_holds() -> None:
    """The rest of a large part keeps all of it in memory, and the account says so."""
    account = AnswerAccount(1 << 20, 1 << 20, 0, 0)
    unsent = Unsent(account)
    assert unsent.keep(memoryview(b"x" * 500_000)[400_000:]) is Kept.KEPT
    assert (unsent.size, account.memory_bytes) == (100_000, 500_000)
    take(unsent, 50_000)
    assert account.memory_bytes == 500_000
    take(unsent, 50_000)
    assert numbers(account) == (0, 0, 0)


def test_full_and_lost() -> None:
    """A source that can pause is told to; a whole answer goes on until all room is gone, then it is lost, unless it is tiny."""
    account = AnswerAccount(1000, 2000, 5000, 50_000)
    unsent = Unsent(account)
    assert unsent.keep(b"x" * 900) is Kept.KEPT
    assert unsent.keep(b"x" * 4000) is Kept.KEPT
    assert (account.memory_bytes, account.file_bytes) == (900, 4000)
    assert unsent.keep(b"x" * 2000) is Kept.FULL  # in memory, behind the file
    assert unsent.reason == "http.limits.answer_file is reached"
    assert unsent.keep(b"x" * 40_000, whole=True) is Kept.KEPT
    assert unsent.keep(b"x" * 40_000, whole=True) is Kept.LOST
    assert unsent.reason == "http.limits.answer_file_total is reached"
    assert unsent.keep(b"x" * 10_000, whole=True) is Kept.FULL
    assert (unsent.size, account.lost) == (56_900, 1)
    assert unsent.keep(b"") is Kept.KEPT
    unsent.drop()
    assert numbers(account) == (0, 0, 0)


def test_without_files() -> None:
    """Streams pause at their memory; a whole answer waits in memory, however long it is."""
    account = AnswerAccount(1000, 2000, 0, 0)
    unsent = Unsent(account)
    assert unsent.keep(b"x" * 900) is Kept.KEPT
    assert unsent.keep(b"x" * 900) is Kept.FULL
    assert unsent.keep(b"x" * 1_000_000, whole=True) is Kept.FULL
    assert (unsent.size, account.files, account.lost) == (1_001_800, 0, 0)
    unsent.drop()
    assert numbers(account) == (0, 0, 0)


def test_a_full_disk_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that a file does not take is kept in memory as a whole, and the source waits."""
    account = AnswerAccount(0, 0, 1 << 20, 1 << 20)
    unsent = Unsent(account)
    assert unsent.keep(b"first") is Kept.KEPT
    assert account.files == 1
    write = os.pwrite
    left = [10]

    def pwrite(fd: int, data: memoryview, position: int) -> int:
        if not left[0]:
            raise OSError(28, "No space left on device")
        count = write(fd, data[: left[0]], position)
        left[0] -= count
        return count

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert unsent.keep(b"second" * 10_000) is Kept.FULL
    assert unsent.reason == "No space left on device"
    left[0] = 1 << 20
    assert unsent.keep(b"third") is Kept.KEPT
    out = b""
    while unsent.size:
        out += take(unsent, 7000)
    assert out == b"first" + b"second" * 10_000 + b"third"
    assert numbers(account) == (0, 0, 0)
