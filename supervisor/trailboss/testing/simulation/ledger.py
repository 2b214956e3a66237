"""The books of a simulation: its trace, the calls and jobs in it, and what has been found to be wrong."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from trailboss.workers.outcome import Answer, Outcome

if TYPE_CHECKING:
    from trailboss.testing.simulation.machine import FakeProcess

__all__ = ["Ledger", "Violation"]

#: Lines of the trace that are kept for people; the hash covers all.
LINES_MAX = 400


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that did not hold."""

    name: str
    text: str
    at: float

    def __str__(self) -> str:
        return f"{self.name}: {self.text} (at {self.at:.3f} s)"


class Ledger:
    """See the module's text."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.lines: deque[str] = deque(maxlen=LINES_MAX)
        self.events = 0
        self.violations: list[Violation] = []
        self.began = 0.0
        #: Calls without an outcome, by number.
        self.open_calls: dict[int, str] = {}
        self._outcomes: Counter[int] = Counter()
        self._next_call = 0
        #: What came of the calls, by kind of outcome.
        self.results: Counter[str] = Counter()
        #: Administrative calls under way.
        self.pending: Counter[str] = Counter()

    @property
    def trace_hash(self) -> str:
        """SHA-256 of the whole trace."""
        return self._hash.hexdigest()

    def note(self, kind: str, *details: object) -> None:
        """Add a line to the trace."""
        line = " ".join([f"{trio.current_time() - self.began:.6f}", kind, *map(str, details)])
        self.events += 1
        self._hash.update(line.encode() + b"\n")
        self.lines.append(line)

    def violate(self, name: str, text: str) -> None:
        """Write down that the invariant `name` does not hold."""
        at = trio.current_time() - self.began
        self.violations.append(Violation(name, text, at))
        self.note("VIOLATION", name, text)

    # --- calls ----------------------------------------------------------------------------------------------------------

    def begin_call(self, what: str) -> int:
        """Note a call; returns its number."""
        self._next_call += 1
        self.open_calls[self._next_call] = what
        self.note("call", self._next_call, what)
        return self._next_call

    def end_call(self, number: int, outcome: Outcome | None, expected: bytes) -> None:
        """Note what came of a call; None: it was cancelled. An answer must be the one to this very call."""
        what = self.open_calls.pop(number, "")
        self._outcomes[number] += 1
        word = type(outcome).__name__ if outcome is not None else "cancelled"
        self.note("outcome", number, word)
        self.results[word] += 1
        if self._outcomes[number] > 1:
            self.violate("one outcome", f"call {number} has had {self._outcomes[number]} outcomes")
        if isinstance(outcome, Answer) and outcome.body not in (expected, b""):
            self.violate("own answer", f"call {number} ({what}) got {outcome.body[:60]!r}")

    def running(self, process: FakeProcess, context: bytes, body: bytes) -> str:
        """A worker has read an exec."""
        what = body.decode("ascii", "replace")
        if context.startswith(b"{") and json.loads(context)["id"] != what:
            self.violate("payload", f"worker {process.pid} got {what!r} with the context {context!r}")
        self.note("run", process.pid, what)
        return what or context.decode("ascii", "replace")

    def answered(self, process: FakeProcess, context: bytes) -> None:
        """A worker is about to answer."""
        self.note("answer", process.pid)
