"""A log file that is rotated by size, as RoadRunner's `file_logger_options` promise.

The file in use keeps its name. One that would grow beyond its size is renamed with the time in its name
(`trailboss-2026-11-24T10-15-00.000.log`), optionally compressed, and the oldest ones beyond `max_backups` or older than
`max_age` days are deleted (0 turns a limit off). All of it happens in the writer's thread. A failure to tidy up never
costs a line: what could not be renamed is simply written on.
"""

from __future__ import annotations

import datetime
import gzip
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trailboss.plugins.logs.targets import open_log, same_file, write_all

__all__ = ["Backup", "RotatingFile", "backups_to_delete"]

_DAY_SECONDS = 86_400.0
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3})")
_TIME_FORMAT = "%Y-%m-%dT%H-%M-%S"


@dataclass(frozen=True, slots=True)
class Backup:
    """A rotated file: its path and when it was rotated, in unix seconds."""

    path: str
    rotated: float


def backups_to_delete(
    backups: Iterable[Backup], now: float, max_backups: int, max_age_days: int
) -> list[Backup]:
    """Return the backups that are one too many or too old; 0 turns a limit off."""
    newest_first = sorted(backups, key=lambda backup: (backup.rotated, backup.path), reverse=True)
    return [
        backup
        for position, backup in enumerate(newest_first)
        if (max_backups and position >= max_backups)
        or (max_age_days and now - backup.rotated > max_age_days * _DAY_SECONDS)
    ]


class RotatingFile:
    """An Output that rotates before a line would take the file beyond `size_bytes_max`."""

    def __init__(
        self,
        path: str,
        size_bytes_max: int,
        max_backups: int,
        max_age_days: int,
        compress: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the file and tidy up what earlier runs left. Raises OSError."""
        self.path = path
        self._size_bytes_max = size_bytes_max
        self._max_backups = max_backups
        self._max_age_days = max_age_days
        self._compress = compress
        self._clock = clock
        self._fd = open_log(path)
        self._size = os.fstat(self._fd).st_size
        self._tidy()

    def write(self, data: bytes) -> None:
        """Append whole lines, in as many files as it takes. Raises OSError."""
        if not same_file(self.path, self._fd):  # somebody moved it away
            self._reopen()
        for line in (
            data.splitlines(keepends=True) if self._size + len(data) > self._size_bytes_max else [data]
        ):
            if self._size and self._size + len(line) > self._size_bytes_max:
                self._rotate()
            write_all(self._fd, line)
            self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def backups(self) -> list[Backup]:
        """Return the rotated files of this log, in no order."""
        folder, stem, ending = self._name_parts()
        found = []
        for name in os.listdir(folder):
            middle = name.removeprefix(f"{stem}-").removesuffix(".gz").removesuffix(ending)
            if name.startswith(f"{stem}-") and _TIME.fullmatch(middle):
                moment = datetime.datetime.strptime(middle[:19], _TIME_FORMAT).replace(tzinfo=datetime.UTC)
                found.append(Backup(os.path.join(folder, name), moment.timestamp() + float(middle[19:])))
        return found

    def _rotate(self) -> None:
        folder, stem, ending = self._name_parts()
        now = self._clock()
        while True:
            moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
            stamp = f"{moment:{_TIME_FORMAT}}.{moment.microsecond // 1000:03d}"
            backup = os.path.join(folder, f"{stem}-{stamp}{ending}")
            if not os.path.exists(backup) and not os.path.exists(f"{backup}.gz"):
                break
            now += 0.001
        try:
            os.rename(self.path, backup)
        except OSError:
            return  # the folder may have become read-only: write on into the old file
        self._reopen()
        if self._compress:
            self._pack(backup)
        self._tidy()

    def _reopen(self) -> None:
        fd = open_log(self.path)
        os.close(self._fd)
        self._fd = fd
        self._size = os.fstat(fd).st_size

    @staticmethod
    def _pack(path: str) -> None:
        packed = f"{path}.gz"
        try:
            with open(path, "rb") as plain, gzip.open(packed, "wb") as file:
                shutil.copyfileobj(plain, file)
            os.unlink(path)
        except OSError:
            if os.path.exists(path) and os.path.exists(packed):
                os.unlink(packed)  # half a copy; the plain file stays

    def _tidy(self) -> None:
        try:
            for backup in backups_to_delete(
                self.backups(), self._clock(), self._max_backups, self._max_age_days
            ):
                os.unlink(backup.path)
        except OSError:
            return  # tried again at the next rotation

    def _name_parts(self) -> tuple[str, str, str]:
        folder, name = os.path.split(os.path.abspath(self.path))
        stem, ending = os.path.splitext(name)
        return folder, stem, ending
