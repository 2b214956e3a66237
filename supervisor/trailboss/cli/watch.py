"""`trailboss workers -i`: who works on what, live in the terminal, with keys to reset a pool and to change its size.

Three threads: one asks the server once a second, one at a time carries out what a key ordered, and this one draws and
reads keys, so neither a slow server nor a long reset makes the display hang. Signals and answers both arrive on a pipe
that the loop waits on. However it ends, the terminal is put back as it was.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Final

from trailboss.cli.client import CommandFailed
from trailboss.cli.output import clean

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from trailboss_worker.sdk import RPC

__all__ = ["View", "keys_of", "watch"]

REDRAW_SECONDS: Final = 1.0
#: Longest wait for one answer of the server before it counts as gone.
ANSWER_SECONDS: Final = 3.0
#: A reset or a new worker takes what the server allows it; this is only to end at all.
COMMAND_SECONDS: Final = 3600.0
MESSAGE_SECONDS: Final = 8.0
POOLS_SHOWN: Final = 6
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_KEYS: Final = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"k": "up",
    b"\x1b[B": "down", b"\x1bOB": "down", b"j": "down", b"\t": "down",
    b"q": "quit", b"Q": "quit",
    b"r": "reset", b"+": "add", b"=": "add", b"-": "remove",
}  # fmt: skip
_HELP: Final = (("r", "reset pool"), ("+ -", "workers"), ("↑ ↓", "choose pool"), ("q", "quit"))
_STATES: Final = {
    "busy": ("▶", "green"),
    "idle": ("○", "cyan"),
    "starting": ("…", "yellow"),
    "leaving": ("↓", "yellow"),
    "waiting": ("✕", "red"),
}
_ORDER: Final = ("busy", "starting", "leaving", "waiting", "idle")
_PHASES: Final = {"ready": "green", "degraded": "red", "stopped": "red"}
Row = Mapping[str, object]


# --- what is shown: pure ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class View:
    """The last answer of the server, what was chosen, and what is to be said."""

    pools: list[Row] = field(default_factory=list)
    version: str = ""
    phase: str = ""
    uptime_seconds: float = 0.0
    chosen: int = 0
    message: str = ""
    message_style: str = ""
    message_until: float = 0.0
    lost: str = ""  #: why there is no answer
    _cpu: dict[int, tuple[float, float]] = field(default_factory=dict)
    _cpu_percent: dict[int, float] = field(default_factory=dict)
    _done: dict[str, tuple[float, float]] = field(default_factory=dict)
    _per_second: dict[str, float] = field(default_factory=dict)

    def take(self, answer: object, only: Sequence[str], now: float) -> None:
        """Take an answer of trailboss.Workers; rates are those since the one before."""
        found = answer if isinstance(answer, dict) else {}
        pools = found.get("pools")
        name = self.chosen_name
        self.pools = [
            row
            for row in (pools if isinstance(pools, list) else [])
            if isinstance(row, dict) and (not only or row.get("name") in only)
        ]
        names = [str(row.get("name")) for row in self.pools]
        self.chosen = names.index(name) if name in names else min(self.chosen, max(0, len(names) - 1))
        self.version = str(found.get("version", ""))
        self.phase = str(found.get("phase", ""))
        self.uptime_seconds = number(found.get("uptime_seconds"))
        self.lost = ""
        self._reckon(now)

    def _reckon(self, now: float) -> None:
        cpu: dict[int, tuple[float, float]] = {}
        for row in self.pools:
            name, done = str(row.get("name")), number(row.get("executions"))
            before = self._done.get(name)
            if before is not None and now > before[0]:
                self._per_second[name] = max(0.0, done - before[1]) / (now - before[0])
            self._done[name] = (now, done)
            for worker in rows(row.get("workers")):
                pid, used = int(number(worker.get("pid"))), number(worker.get("cpu_seconds"))
                earlier = self._cpu.get(pid)
                cpu[pid] = (now, used)
                if earlier is not None and now > earlier[0]:
                    self._cpu_percent[pid] = max(0.0, 100 * (used - earlier[1]) / (now - earlier[0]))
        self._cpu = cpu
        self._cpu_percent = {pid: value for pid, value in self._cpu_percent.items() if pid in cpu}

    @property
    def chosen_name(self) -> str:
        """Name of the pool that keys act on, "" without pools."""
        return str(self.pools[self.chosen].get("name")) if self.chosen < len(self.pools) else ""

    def move(self, step: int) -> None:
        """Choose the next pool, or the one before."""
        if self.pools:
            self.chosen = (self.chosen + step) % len(self.pools)

    def say(self, text: str, style: str, now: float, seconds: float = MESSAGE_SECONDS) -> None:
        """Show a line for a while."""
        self.message, self.message_style, self.message_until = clean(text), style, now + seconds

    def draw(self, width: int, height: int, now: float) -> RenderableType:
        """Return the whole screen, at most `height` lines."""
        from rich.console import Group
        from rich.text import Text

        shown = self._pools_in_sight()
        above = 2 + 1 + len(shown) + 1  # headline, pools with their head, a space
        room = max(1, height - above - 1 - 2)  # less the head of the workers and the two lines below
        workers, count = self._worker_table(room, width)
        return Group(
            self._headline(),
            Text(""),
            self._pool_table(shown),
            Text(""),
            workers,
            *(Text("") for _ in range(room - count)),
            self._message(now),
            self._help(),
        )

    def _headline(self) -> Text:
        from rich.text import Text

        line = Text(no_wrap=True, overflow="ellipsis")
        line.append("Trailboss", "bold").append(f" {clean(self.version)}  ")
        line.append(clean(self.phase), _PHASES.get(self.phase, "yellow"))
        line.append(f"  up {age(self.uptime_seconds)}", "dim")
        if self.lost:
            line.append(f"  no answer: {clean(self.lost)}; trying again", "bold red")
        return line

    def _pools_in_sight(self) -> list[int]:
        first = max(0, min(self.chosen - POOLS_SHOWN // 2, len(self.pools) - POOLS_SHOWN))
        return list(range(first, min(len(self.pools), first + POOLS_SHOWN)))

    def _pool_table(self, shown: Sequence[int]) -> RenderableType:
        from rich.text import Text

        table = _table(
            ("", "left", 1), ("POOL", "left", 0), ("PHASE", "left", 0), ("WORKERS", "left", 0),
            ("QUEUED", "right", 6), ("DONE/S", "right", 7), ("DONE", "right", 9), ("REFUSED", "right", 7),
        )  # fmt: skip
        for place in shown:
            row = self.pools[place]
            name, phase = str(row.get("name")), str(row.get("phase"))
            table.add_row(
                Text("▸" if place == self.chosen else " ", "bold"),
                Text(clean(name), "bold" if place == self.chosen else ""),
                Text(clean(phase), _PHASES.get(phase, "yellow")),
                Text(f"{number(row.get('busy')):.0f} of {number(row.get('configured')):.0f} busy"),
                Text(f"{number(row.get('queued')):.0f}"),
                Text(f"{self._per_second.get(name, 0.0):.1f}"),
                Text(f"{number(row.get('executions')):.0f}"),
                Text(f"{number(row.get('refused')):.0f}", "red" if row.get("refused") else ""),
            )
        return table

    def _worker_table(self, room: int, width: int) -> tuple[RenderableType, int]:
        """Return the table and how many rows of `room` it takes; on a narrow screen with fewer columns."""
        from rich.text import Text

        if not self.pools:
            # One line in the place of a heading.
            return Text("no pool has workers" if self.version else "waiting for the first answer", "dim"), 0
        columns = [
            ("PID", "right", 6), ("STATE", "left", 6), ("DOES NOW", "left", -1), ("FOR", "right", 5),
            ("EXECS", "right", 5), ("MEMORY", "right", 6), ("CPU%", "right", 4), ("AGE", "right", 5),
        ]  # fmt: skip
        kept = [
            place for place, (name, _, _) in enumerate(columns) if width >= 70 or name not in ("EXECS", "AGE")
        ]
        table = _table(*(columns[place] for place in kept))
        workers = sorted(rows(self.pools[self.chosen].get("workers")), key=_rank)
        visible = workers if len(workers) <= room else workers[: max(0, room - 1)]
        for worker in visible:
            cells = self._worker_cells(worker)
            table.add_row(*(cells[place] for place in kept))
        left_out = len(workers) - len(visible)
        if left_out:
            table.add_row(*("" if place != 2 else Text(f"and {left_out} more", "dim") for place in kept))
        return table, len(visible) + (1 if left_out else 0)

    def _worker_cells(self, worker: Row) -> list[Text]:
        from rich.text import Text

        pid, state = int(number(worker.get("pid"))), str(worker.get("state"))
        sign, style = _STATES.get(state, ("?", ""))
        doing = clean(worker.get("doing") or "")
        next_try = worker.get("next_try_seconds")
        if isinstance(next_try, int | float):
            doing = f"next try in {next_try:.0f} s"
        known = [
            f"{number(worker.get('executions')):.0f}",
            megabytes(worker.get("memory_bytes")),
            f"{self._cpu_percent.get(pid, 0.0):.0f}",
            age(worker.get("age_seconds")),
        ]
        return [
            Text(str(pid) if pid else "-"),
            Text(f"{sign} {clean(state)}", style),
            Text(doing),
            Text(since(worker.get("doing_seconds")) if worker.get("doing") else ""),
            *(Text(text if pid else "") for text in known),
        ]

    def _message(self, now: float) -> Text:
        from rich.text import Text

        if now < self.message_until:
            return Text(self.message, self.message_style, no_wrap=True, overflow="ellipsis")
        failure = clean(self.pools[self.chosen].get("last_failure") or "") if self.pools else ""
        return Text(failure, "red", no_wrap=True, overflow="ellipsis")

    @staticmethod
    def _help() -> Text:
        from rich.text import Text

        line = Text(no_wrap=True, overflow="ellipsis")
        for key, meaning in _HELP:
            line.append(f" {key} ", "reverse").append(f" {meaning}   ")
        return line


def _table(*columns: tuple[str, str, int]) -> Table:
    """A table of columns: heading, side, width (0: as wide as needed, -1: what is left)."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), expand=True, pad_edge=False, header_style="dim")
    for heading, side, width in columns:
        table.add_column(
            heading,
            justify="right" if side == "right" else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=width if width > 0 else None,
            ratio=1 if width < 0 else None,
        )
    return table


def _rank(worker: Row) -> tuple[int, float]:
    state = str(worker.get("state"))
    return (_ORDER.index(state) if state in _ORDER else len(_ORDER), number(worker.get("slot")))


def rows(value: object) -> list[Row]:
    """Return the rows in a value of an answer."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def number(value: object) -> float:
    """Return a number of an answer, 0 where there is none."""
    return float(value) if isinstance(value, int | float) else 0.0


def megabytes(value: object) -> str:
    """Return a size in few letters."""
    size = number(value) / 1e6
    return f"{size:.0f} MB" if size < 1000 else f"{size / 1000:.1f} GB"


def since(value: object) -> str:
    """Return a short time with its tenths, a longer one as an age."""
    seconds = number(value)
    return f"{seconds:.1f}s" if seconds < 60 else age(seconds)


def age(value: object) -> str:
    """Return an age in at most two units."""
    seconds = int(number(value))
    for size, unit, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // below:02}{smaller}"
    return f"{seconds}s"


def keys_of(data: bytes) -> list[str]:
    """Return the meaning of what was typed, unknown keys left out."""
    found = []
    while data:
        for size in (3, 1):
            if data[:size] in _KEYS:
                found.append(_KEYS[data[:size]])
                break
        else:
            # An escape sequence that means nothing here goes as a whole.
            size = 1
            if data[:2] in (b"\x1b[", b"\x1bO"):
                size = 2
                while size < len(data) and not 0x40 <= data[size] <= 0x7E:
                    size += 1
                size += 1
        data = data[size:]
    return found


# --- the terminal and the threads -------------------------------------------------------------------------------------


def watch(connect: Callable[[], RPC], only: Sequence[str]) -> int:
    """Show until q or a signal; returns the exit code. `connect` makes a client; each thread has one of its own.

    Raises CommandFailed where there is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandFailed(
            "workers -i needs a terminal to draw on and to read keys from; without -i the table is printed once"
        )
    return _Watch(connect, only).run()


class _Watch:
    def __init__(self, connect: Callable[[], RPC], only: Sequence[str]) -> None:
        self._connect = connect
        self._only = only
        self._view = View()
        self._letters: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._caught = 0
        self._ended = threading.Event()
        self._working = ""

    def run(self) -> int:
        from rich.console import Console
        from rich.live import Live

        threading.Thread(target=self._poll, name="poll", daemon=True).start()
        console = Console()
        try:
            with (
                _signals(self._on_signal, self._wake_write),
                _raw_keys(sys.stdin.fileno()),
                Live(
                    console=console,
                    screen=True,
                    auto_refresh=False,
                    redirect_stdout=False,
                    redirect_stderr=False,
                ) as live,
            ):
                return self._loop(console, live)
        except OSError:  # the terminal itself has gone
            return 128 + signal.SIGHUP
        finally:
            self._ended.set()

    def _loop(self, console: object, live: object) -> int:
        while not self._caught:
            size = console.size  # type: ignore[attr-defined]
            live.update(self._view.draw(size.width, size.height, time.monotonic()), refresh=True)  # type: ignore[attr-defined]
            ready, _, _ = select.select([sys.stdin, self._wake_read], [], [], REDRAW_SECONDS)
            if self._wake_read in ready:
                self._open_letters()
            if sys.stdin in ready:
                data = os.read(sys.stdin.fileno(), 1024)
                if not data:
                    return 128 + signal.SIGHUP
                for key in keys_of(data):
                    if key == "quit":
                        return 0
                    self._on_key(key)
        return 128 + self._caught

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in _SIGNALS:
            self._caught = number

    def _open_letters(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass
        while True:
            try:
                self._letters.get_nowait()()
            except queue.Empty:
                return

    def _tell(self, letter: Callable[[], None]) -> None:
        """From a thread: have something done in the loop."""
        self._letters.put(letter)
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            pass  # it wakes up anyway

    # --- keys -------------------------------------------------------------------------------------------------------

    def _on_key(self, key: str) -> None:
        view, now = self._view, time.monotonic()
        if key in ("up", "down"):
            view.move(1 if key == "down" else -1)
            return
        pool = view.chosen_name
        if not pool:
            view.say("there is no pool yet", "yellow", now)
        elif self._working:
            view.say(f"{self._working} is still under way", "yellow", now)
        else:
            what, method, done = {
                "reset": ("the reset of", "resetter.Reset", "has new workers"),
                "add": ("one more worker for", "informer.AddWorker", "has one more worker"),
                "remove": (
                    "one worker less for",
                    "informer.RemoveWorker",
                    "gives a worker up, the last one stays",
                ),
            }[key]
            self._working = f"{what} {pool}"
            view.say(f"{self._working} ...", "", now, COMMAND_SECONDS)
            threading.Thread(
                target=self._carry_out, args=(method, pool, f"{pool} {done}"), name=key, daemon=True
            ).start()

    def _carry_out(self, method: str, pool: str, done: str) -> None:
        text, style = done, "green"
        try:
            with self._connect() as rpc:
                rpc.call(method, pool, timeout_seconds=COMMAND_SECONDS)
        except Exception as error:
            text, style = _one_line(error), "red"

        def letter() -> None:
            self._working = ""
            self._view.say(text, style, time.monotonic(), 2 * MESSAGE_SECONDS)

        self._tell(letter)

    # --- asking -----------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        rpc: RPC | None = None
        while not self._ended.is_set():
            try:
                if rpc is None:
                    rpc = self._connect()
                answer = rpc.call("trailboss.Workers", "", timeout_seconds=ANSWER_SECONDS)
            except Exception as error:
                if rpc is not None:
                    rpc.close()
                    rpc = None
                self._tell(partial(self._lose, _one_line(error)))
            else:
                self._tell(partial(self._view.take, answer, self._only, time.monotonic()))
            self._ended.wait(REDRAW_SECONDS)

    def _lose(self, why: str) -> None:
        self._view.lost = why


def _one_line(error: Exception) -> str:
    text = str(getattr(error, "text", "") or error) or type(error).__name__
    return " ".join(text.split())


@contextmanager
def _signals(handler: Callable[[int, FrameType | None], None], wake_fd: int) -> Iterator[None]:
    """Turn signals into bytes on a pipe; SIGWINCH only wakes, so that the new size is drawn at once."""
    watched = (*_SIGNALS, signal.SIGWINCH)
    before = {number: signal.signal(number, handler) for number in watched}
    old_fd = signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _raw_keys(fd: int) -> Iterator[None]:
    """Have keys come one by one and unseen; Ctrl-C stays a signal, Ctrl-Z does nothing."""
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        changed = termios.tcgetattr(fd)
        changed[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(fd, termios.TCSADRAIN, changed)
        yield
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        except termios.error:
            pass  # the terminal has gone
