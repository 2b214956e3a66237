"""Why workers died: one record per death, the last 100 of them kept.

A planned retirement (reset, max_jobs, ttl …) is no death and leaves no record. Everything else does, also what we did
ourselves against a worker's will (exec_ttl, a broken protocol). The record is written when the process has been reaped
and its pipes were read to their end, so that exit status and last output are in it. Whoever is shown a record gets it
without what looks like a secret in the words of the worker.
"""

from __future__ import annotations

import datetime
from collections import Counter, deque
from dataclasses import dataclass, field, replace

from trailboss.config.redact import redacted_text

__all__ = ["DeathRecord", "Deaths", "quote"]

RECORDS_MAX = 100
#: Lines of standard error kept with a record.
STDERR_LINES_MAX = 20


def quote(text: bytes) -> str:
    """Escape bytes for one line of a log: printable ASCII stays, line feeds and everything else become escapes."""
    return text.decode("latin-1").encode("unicode_escape").decode("ascii")


@dataclass(frozen=True, slots=True)
class DeathRecord:
    """One death. Times: `at` is seconds since the epoch, ages are seconds."""

    at: float
    pool: str
    pid: int
    #: Cause class, a stable word: "exit", "signal", "exec_ttl", "boot_timeout", "stdout garbage",
    #: "protocol violation", "oom", "script not found", "closed its pipes", "spawn failed", "handshake".
    cause: str
    #: One sentence for people.
    text: str
    exit_code: int | None
    signal: int | None
    #: Phase of life it died in: "spawning", "handshaking", "ready", "busy", "draining", "stopping".
    phase: str
    #: What it was running, "" when idle.
    doing: str
    age_seconds: float
    executions: int
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    #: 0: not known, that is below the supervisor's own peak.
    memory_peak_bytes: int = 0
    #: How its resident memory grew; 0: not known (memory is only looked at where max_worker_memory is set).
    memory_growth_bytes_per_hour: float = 0.0
    #: Last lines of its standard error, oldest first.
    last_output: tuple[str, ...] = ()
    #: Stray bytes found on its standard output, escaped.
    stray_output: str = ""
    #: Likely cause of stray output, for people.
    hint: str = ""
    #: Of one that hung: what the kernel said it was doing, and its own stack where it could tell it.
    seen: str = ""
    stack: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """JSON values without secrets, for `trailboss.Deaths` and `--json`; with `explanation`, several lines for people."""
        shown = self._without_secrets()
        return {**shown._values(), "explanation": shown.explain()}

    def _without_secrets(self) -> DeathRecord:
        return replace(
            self,
            text=redacted_text(self.text),
            doing=redacted_text(self.doing),
            last_output=tuple(map(redacted_text, self.last_output)),
            stray_output=redacted_text(self.stray_output),
            hint=redacted_text(self.hint),
            stack=tuple(map(redacted_text, self.stack)),
        )

    def _values(self) -> dict[str, object]:
        return {
            "at": datetime.datetime.fromtimestamp(self.at, tz=datetime.UTC).isoformat(
                timespec="milliseconds"
            ),
            "pool": self.pool,
            "pid": self.pid,
            "cause": self.cause,
            "text": self.text,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "phase": self.phase,
            "doing": self.doing,
            "age_seconds": round(self.age_seconds, 3),
            "executions": self.executions,
            "user_seconds": round(self.user_seconds, 3),
            "system_seconds": round(self.system_seconds, 3),
            "memory_peak_bytes": self.memory_peak_bytes,
            "memory_growth_bytes_per_hour": round(self.memory_growth_bytes_per_hour),
            "last_output": list(self.last_output),
            "stray_output": self.stray_output,
            "hint": self.hint,
            "seen": self.seen,
            "stack": list(self.stack),
        }

    def explain(self) -> str:
        """Several lines for people, secrets included."""
        when = datetime.datetime.fromtimestamp(self.at).astimezone().isoformat(sep=" ", timespec="seconds")
        if not self.pid:
            return f"a worker of pool {self.pool} could not be started at {when}: {self.text}"
        running = f", running {self.doing}" if self.doing else ""
        lines = [
            f"worker {self.pid} of pool {self.pool} died at {when}: {self.text}",
            f"  cause: {self.cause}; it was {self.phase}{running}",
            f"  lived {self.age_seconds:.1f} s, {self.executions} executions",
            f"  CPU {self.user_seconds:.2f} s user, {self.system_seconds:.2f} s system",
        ]
        if self.memory_peak_bytes:
            lines.append(f"  peak memory {self.memory_peak_bytes / 1048576:.1f} MiB")
        if self.memory_growth_bytes_per_hour:
            growth = self.memory_growth_bytes_per_hour / 1048576
            lines.append(f"  memory {'grew' if growth > 0 else 'shrank'} by {abs(growth):.1f} MiB an hour")
        if self.stray_output:
            lines.append(f"  on standard output: {self.stray_output}")
        if self.hint:
            lines.append(f"  likely: {self.hint}")
        if self.seen:
            lines.append(f"  when it was killed: {self.seen}")
        if self.stack:
            lines.append("  its stack then:")
            lines += [f"    {line}" for line in self.stack]
        if self.last_output:
            lines.append("  last lines on standard error:")
            lines += [f"    {line}" for line in self.last_output]
        return "\n".join(lines)


@dataclass(slots=True)
class Deaths:
    """The last records, and counters per pool and cause for ever."""

    _records: deque[DeathRecord] = field(default_factory=lambda: deque(maxlen=RECORDS_MAX))
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, record: DeathRecord) -> None:
        """Keep `record`; the oldest goes when there are 100."""
        self._records.append(record)
        self.counts[record.pool, record.cause] += 1

    def records(self) -> list[DeathRecord]:
        """The records kept, oldest first."""
        return list(self._records)

    def total(self, pool: str | None = None) -> int:
        """Deaths since the start, of one pool or of all."""
        return sum(count for (name, _), count in self.counts.items() if pool is None or name == pool)
