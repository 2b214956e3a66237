"""Writing the log never holds up the server; rotated files follow their limits."""

from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

from trailboss.plugins.logs.rotation import Backup, RotatingFile, backups_to_delete
from trailboss.plugins.logs.targets import FileOutput, StreamOutput, Target

DAY = 86_400.0


class Held:
    """An output that waits until it is let go, like a pipe that nobody reads."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Event()
        self.data = b""

    def write(self, data: bytes) -> None:
        self.started.set()
        assert self.go.wait(30)
        self.data += data

    def close(self) -> None:
        pass


class Broken:
    """An output that fails like a pipe whose reader has gone, until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.data = b""

    def write(self, data: bytes) -> None:
        if not self.mended:
            raise BrokenPipeError(32, "Broken pipe")
        self.data += data

    def close(self) -> None:
        pass


def test_a_full_target_drops_and_says_how_many() -> None:
    """A target nobody reads takes what fits, drops the rest at once, and tells the number when it is read again."""
    output = Held()
    target = Target("pipe", output, buffer_bytes_max=100, dropped_line=lambda count: b"dropped %d\n" % count)
    assert target.offer(b"first\n")
    assert output.started.wait(30)
    taken = [target.offer(b"0123456789") for _ in range(15)]
    assert taken == [True] * 10 + [False] * 5
    assert target.dropped == 5
    output.go.set()
    assert target.flush(30)
    assert output.data == b"first\n" + b"0123456789" * 10 + b"dropped 5\n"
    assert target.close(30)


def test_a_broken_target_is_reported_once_and_recovers() -> None:
    """An output that fails costs lines, is reported once, and is written again when it works again."""
    output = Broken()
    reports: list[str] = []
    target = Target("stdout", output, on_error=reports.append)
    for _ in range(3):
        target.offer(b"lost\n")
        assert target.flush(30)
    assert reports == ["cannot write the log to stdout: Broken pipe"]
    assert target.error == reports[0]
    output.mended = True
    target.offer(b"kept\n")
    assert target.flush(30)
    assert target.error == ""
    assert output.data == b"kept\n"
    assert target.close(30)


def test_a_full_pipe_does_not_hold_up_the_caller() -> None:
    """A real pipe that nobody reads: 16 MiB are offered without waiting, and close gives up at its limit."""
    reader, writer = os.pipe()
    target = Target("pipe", StreamOutput(writer))
    for _ in range(16_384):
        target.offer(b"x" * 1024)
    assert target.dropped > 0
    assert not target.close(0.05)
    os.close(reader)  # the write ends with EPIPE and the thread with it
    assert target.close(30)
    os.close(writer)


def test_a_pipe_made_non_blocking_is_written_whole() -> None:
    """A descriptor that somebody made non-blocking loses nothing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    target = Target("pipe", StreamOutput(writer))
    expected = b"".join(b"%08d\n" % number for number in range(40_000))
    for number in range(40_000):
        target.offer(b"%08d\n" % number)
    received = b""
    while len(received) < len(expected):
        received += os.read(reader, 65_536)
    assert received == expected
    assert target.close(30)
    os.close(reader)
    os.close(writer)


def test_a_footer_stays_below_what_is_written() -> None:
    """Lines of the footer are taken away, the log lines written, and the footer drawn again."""
    output = Held()
    output.go.set()
    target = Target("terminal", output)
    target.set_footer(["one", "two"])
    assert target.flush(30)
    target.offer(b"log\n")
    assert target.flush(30)
    target.set_footer(())
    assert target.flush(30)
    erase = b"\x1b[2F\x1b[J"
    assert output.data == b"one\ntwo\n" + erase + b"log\none\ntwo\n" + erase
    assert target.close(30)


def test_a_file_moved_away_is_made_anew(tmp_path: Path) -> None:
    """After logrotate moved the file, lines go to a new file of the old name."""
    path = tmp_path / "server.log"
    output = FileOutput(str(path))
    output.write(b"one\n")
    path.rename(tmp_path / "server.log.1")
    output._checked = float("-inf")  # a second has passed
    output.write(b"two\n")
    output.close()
    assert (tmp_path / "server.log.1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"two\n"


def test_backups_beyond_the_number_or_the_age_are_deleted() -> None:
    """The newest max_backups stay, unless they are older than max_age days; 0 turns a limit off."""
    now = 100 * DAY
    backups = [Backup(f"{days}", now - days * DAY) for days in (1, 2, 3, 30)]
    assert [backup.path for backup in backups_to_delete(backups, now, 2, 0)] == ["3", "30"]
    assert [backup.path for backup in backups_to_delete(backups, now, 0, 24)] == ["30"]
    assert backups_to_delete(backups, now, 0, 0) == []


def test_a_file_is_rotated_before_it_grows_beyond_its_size(tmp_path: Path) -> None:
    """No file exceeds its size, no line is torn or lost, and only max_backups are kept."""
    seconds = iter(range(1_000, 2_000))
    path = tmp_path / "server.log"
    file = RotatingFile(str(path), 100, 3, 0, False, clock=lambda: float(next(seconds)))
    for number in range(10):
        file.write(b"".join(b"%02d.%d345678901234567\n" % (number, line) for line in range(4)))
    file.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    for found in files:
        assert len(found.read_bytes()) <= 100
        assert all(len(line) == 19 for line in found.read_bytes().splitlines())
    assert path.read_bytes().endswith(b"09.3345678901234567\n")


def test_rotated_files_can_be_compressed(tmp_path: Path) -> None:
    """With `compress` a rotated file is gzip, and its content is what was written."""
    file = RotatingFile(str(tmp_path / "server.log"), 10, 0, 0, True)
    file.write(b"one line\n")
    file.write(b"two line\n")
    file.close()
    (packed,) = [found for found in tmp_path.iterdir() if found.name.endswith(".log.gz")]
    assert gzip.decompress(packed.read_bytes()) == b"one line\n"


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """Only files with the time of a rotation in their name count as backups."""
    for name in ("server-old.log", "server.log.1", "other-2026-11-24T10-15-00.000.log"):
        (tmp_path / name).write_text("keep")
    file = RotatingFile(str(tmp_path / "server.log"), 5, 1, 0, False)
    for _ in range(5):
        file.write(b"line\n")
    file.close()
    names = {found.name for found in tmp_path.iterdir()}
    assert {"server-old.log", "server.log.1", "other-2026-11-24T10-15-00.000.log", "server.log"} < names
    assert len(names) == 5


class Counting:
    """An output that counts its writes."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        pass


def test_many_lines_are_few_writes_and_nobody_waits_for_long() -> None:
    """Each wake of the thread takes the interpreter from the data plane, so it is woken seldom; flush and close hurry."""
    output = Counting()
    target = Target("counting", output)
    lines = [b"%d\n" % number for number in range(2_000)]
    for line in lines[:1_000]:
        target.offer(line)
    target.offer_many(lines[1_000:])
    assert target.flush(30)
    assert b"".join(output.writes) == b"".join(lines)
    assert len(output.writes) < 500
    target.offer(b"last\n")
    assert target.close(30)
    assert output.writes[-1].endswith(b"last\n")


def test_offer_many_drops_what_does_not_fit() -> None:
    """Line by line, as offer does."""
    output = Held()
    target = Target("pipe", output, buffer_bytes_max=100, dropped_line=lambda count: b"dropped %d\n" % count)
    target.offer(b"first\n")
    assert output.started.wait(30)
    target.offer_many([b"0123456789"] * 15)
    assert target.dropped == 5
    output.go.set()
    assert target.close(30)
    assert output.data == b"first\n" + b"0123456789" * 10 + b"dropped 5\n"
