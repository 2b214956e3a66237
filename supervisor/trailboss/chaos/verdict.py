"""Pure: what was seen during a run, and whether the server kept its word.

Times are seconds since the begin of the run. A request may fail only for a reason that the run itself gave: its worker
was killed or frozen under it, or the whole server was. Everything else that a client did not get is lost, and a single
lost request fails the run. Each invariant has a name, a sentence that says what must hold, and what was seen instead.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from trailboss.chaos.plan import Injection, Kind

__all__ = [
    "Done",
    "Finding",
    "Outcome",
    "Recovery",
    "Reply",
    "Seen",
    "Served",
    "Verdict",
    "judge",
    "percentile",
]

#: Memory that the server may have gained at the end of a stage, in bytes: what buffers and allocators keep.
MEMORY_GAIN_MAX: Final = 24 << 20
#: A failure that follows its cause by no more is due to it: clients and the judge share the processors.
SLACK_SECONDS: Final = 0.5
#: Invariants that are looked at when the faults of a stage are over.
AT_THE_END: Final = frozenset(
    {"exit code", "jobs", "books", "no process left", "descriptors", "memory", "log"}
)
#: Beginnings of the texts with which a server refuses an RPC call on purpose.
TYPED: Final = (
    "service not ready: ",
    "service not available: ",
    "refused during on_init: ",
    "deadline exceeded: ",
)


class Outcome(Enum):
    """How an exchange of a client ended."""

    ANSWERED = "answered"
    WORKER = "the worker died or was ended"
    REFUSED = "refused with a reason"
    WRONG = "an answer that is not the application's"
    CUT = "cut in the middle"
    UNREACHABLE = "nobody there"
    SILENT = "no answer"


#: What a client may see of a server that is not up.
_FALLEN: Final = (Outcome.UNREACHABLE, Outcome.CUT, Outcome.REFUSED, Outcome.WORKER)


@dataclass(frozen=True, slots=True)
class Reply:
    """One exchange: `client` is http, push or rpc; `at` its begin, `seconds` how long it took."""

    client: str
    at: float
    seconds: float
    outcome: Outcome
    text: str = ""


@dataclass(slots=True)
class Done:
    """An injection that was done: `at`; how long until all was whole again, None where it never was.

    `victims`: workers that were killed or frozen when they could have had a request. `hit`: the victim was there to be
    hit (a worker that has already gone by itself is none). `over`: the run was not ended in the middle of it.
    """

    injection: Injection
    at: float
    recovered: float | None = None
    victims: int = 0
    hit: bool = True
    over: bool = True
    note: str = ""


@dataclass(slots=True)
class Seen:
    """What one run has seen."""

    replies: list[Reply] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    #: (begin, end) of times in which the server was not up: starting, killed, or told to stop.
    down: list[tuple[float, float]] = field(default_factory=list)
    fallen: float | None = None
    #: Exit code of each server that was told to stop.
    exits: list[int] = field(default_factory=list)
    #: Servers that ended without being told to.
    died: list[str] = field(default_factory=list)
    #: Starts: seconds until ready.
    starts: list[float] = field(default_factory=list)
    failed_starts: list[str] = field(default_factory=list)
    #: Processes that were left over, as command lines.
    left: list[str] = field(default_factory=list)
    #: Descriptors gained, by what they point to.
    descriptors: Counter[str] = field(default_factory=Counter)
    #: (before, after) of the server's memory in bytes, one a server.
    memory: list[tuple[int, int]] = field(default_factory=list)
    #: Books of the jobs when a server had come to rest: (acknowledged pushes, totals, balanced).
    books: list[tuple[int, dict[str, int], bool]] = field(default_factory=list)
    #: Queues that did not come to rest.
    restless: list[str] = field(default_factory=list)
    #: Log records of errors that nobody had thought of.
    tracebacks: list[str] = field(default_factory=list)
    #: Deaths of workers by cause, from the log.
    causes: Counter[str] = field(default_factory=Counter)
    #: Workers that were replaced for their memory.
    recycled: int = 0
    seconds: float = 0.0

    def fall(self, at: float) -> None:
        """From now on the server is not up; again while it is not, nothing changes."""
        if self.fallen is None:
            self.fallen = at

    def rise(self, at: float) -> None:
        """It is up again."""
        if self.fallen is not None:
            self.down.append((self.fallen, at))
            self.fallen = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One invariant: whether it holds, what it says, and what was seen."""

    name: str
    holds: bool
    text: str
    seen: str
    #: False: the run was ended before this could be looked at; it counts neither way.
    judged: bool = True


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long it took until all was whole again after one kind of injection; seconds, None where nothing recovered."""

    kind: Kind
    count: int
    failed: int
    p50: float | None
    p99: float | None
    longest: float | None


@dataclass(frozen=True, slots=True)
class Served:
    """What the clients of one kind saw. Times are seconds of exchanges that were answered."""

    client: str
    outcomes: dict[Outcome, int]
    while_down: int  #: of those not answered, how many while the server was not up
    p50: float
    p99: float
    longest: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run has shown."""

    findings: tuple[Finding, ...]
    recoveries: tuple[Recovery, ...]
    served: tuple[Served, ...]
    #: A signal has ended the run; what holds, holds so far.
    interrupted: bool = False

    @property
    def passed(self) -> bool:
        """Whether the run came to its end, and every invariant holds."""
        return self.holds and not self.interrupted

    @property
    def holds(self) -> bool:
        """Whether every invariant holds."""
        return all(finding.holds for finding in self.findings)

    @property
    def broken(self) -> list[Finding]:
        """Those that do not."""
        return [finding for finding in self.findings if not finding.holds]


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the value below which `fraction` of the values lie. Raises IndexError without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def judge(seen: Seen, *, has_http: bool, has_jobs: bool, interrupted: bool = False) -> Verdict:
    """Hold what was seen against the invariants; those of parts that the configuration does not have are left out."""
    findings = [_server(seen), _exit_code(seen)]
    if has_http:
        findings.append(_requests(seen))
    findings.append(_gate(seen))
    if has_jobs:
        findings += [_jobs(seen), _books(seen)]
    findings += [_pools(seen), _processes(seen), _descriptors(seen), _memory(seen), _log(seen)]
    if interrupted and not seen.exits:
        findings = [
            replace(finding, judged=False, seen="not looked at before the end")
            if finding.holds and finding.name in AT_THE_END
            else finding
            for finding in findings
        ]
    kinds = {done.injection.kind for done in seen.done if done.over}
    if kinds & {Kind.GROW, Kind.LIMIT}:
        findings.append(_limit(seen))
    if Kind.OOM in kinds:
        findings.append(_oom(seen))
    served = [_served(client, seen) for client in ("http", "push", "rpc")]
    return Verdict(
        tuple(findings),
        tuple(_recoveries(seen.done)),
        tuple(row for row in served if row.outcomes),
        interrupted,
    )


def _served(client: str, seen: Seen) -> Served:
    replies = [reply for reply in seen.replies if reply.client == client]
    times = [reply.seconds for reply in replies if reply.outcome is Outcome.ANSWERED] or [0.0]
    down = sum(reply.outcome is not Outcome.ANSWERED and _during(reply, seen.down) for reply in replies)
    counts = dict(Counter(reply.outcome for reply in replies))
    return Served(client, counts, down, percentile(times, 0.5), percentile(times, 0.99), max(times))


def _server(seen: Seen) -> Finding:
    wrong = seen.died + seen.failed_starts
    text = "The server ends only when it is told to or killed, and starts whenever it is started."
    starts = (
        f"{_count(len(seen.starts), 'start')}, the slowest {max(seen.starts):.1f} s"
        if seen.starts
        else "no start"
    )
    return Finding("server lives", not wrong and bool(seen.starts), text, "; ".join(wrong) or starts)


def _exit_code(seen: Seen) -> Finding:
    wrong = [code for code in seen.exits if code != 0]
    text = "SIGTERM ends the server with exit code 0, within its grace period."
    good = f"{_count(len(seen.exits), 'stop')}, exit code 0" if seen.exits else "no stop was asked for"
    return Finding("exit code", not wrong, text, f"exit codes {wrong}" if wrong else good)


def _requests(seen: Seen) -> Finding:
    """Failures must not be more than the workers that were hit, and in the time of an injection that hit some.

    Refusals with a reason may come while a pool heals.
    """
    text = "No request is lost: every one gets the whole answer of the application, or its worker was hit."
    replies = [reply for reply in seen.replies if reply.client == "http"]
    judged = [reply for reply in replies if not (reply.outcome in _FALLEN and _during(reply, seen.down))]
    healing = [(done.at, done.at + done.recovered) for done in seen.done if done.recovered is not None]
    failed = [
        reply
        for reply in judged
        if reply.outcome is not Outcome.ANSWERED
        and not (reply.outcome is Outcome.REFUSED and _during(reply, healing))
    ]
    allowed = sum(done.victims for done in seen.done)
    reasons = [_time_of_victims(done) for done in seen.done if done.victims]
    alone = sum(not _during(reply, reasons) for reply in failed)
    answered = sum(reply.outcome is Outcome.ANSWERED for reply in replies)
    holds = len(failed) <= allowed and not alone and answered > 0
    told = ", ".join(f"{count} {text}" for text, count in _texts(failed))
    report = f"{answered:,} answered, {len(failed)} failed; {_count(allowed, 'worker')} hit"
    if alone:
        report = f"{report}, {alone} of the failures when none was"
    return Finding("requests", holds, text, f"{report}: {told}" if failed else report)


def _time_of_victims(done: Done) -> tuple[float, float]:
    """When requests may have been on the workers that an injection hit."""
    # A call that lies beyond those of its start ends a worker at some later time.
    if done.recovered is None or done.injection.kind is Kind.KILL_CALL:
        return (done.at, math.inf)
    return (done.at, done.at + done.recovered + SLACK_SECONDS)


def _gate(seen: Seen) -> Finding:
    """Calls of the RPC port, in every phase of start and stop."""
    text = "Every RPC call ends in an answer or an error that says why, in every phase of start and stop."
    calls = [reply for reply in seen.replies if reply.client == "rpc"]
    bad = []
    for reply in calls:
        excused = _during(reply, seen.down)
        fine = reply.outcome is Outcome.ANSWERED or (
            reply.outcome is Outcome.REFUSED and reply.text.startswith(TYPED)
        )
        if not fine and not (excused and reply.outcome in (Outcome.UNREACHABLE, Outcome.CUT)):
            bad.append(reply)
    refused = sum(reply.outcome is Outcome.REFUSED for reply in calls)
    slowest = max((reply.seconds for reply in calls), default=0.0)
    good = f"{len(calls):,} calls, {refused} refused with a reason, the slowest {slowest:.2f} s"
    wrong = "; ".join(f"{count} {text}" for text, count in _texts(bad))
    return Finding("gate", not bad and bool(calls), text, wrong or good)


def _jobs(seen: Seen) -> Finding:
    text = (
        "No job is lost: every acknowledged push is done, dead-lettered or kept, and the queues come to rest."
    )
    problems = list(seen.restless)
    acknowledged = pushed = 0
    for known, totals, _ in seen.books:
        acknowledged += known
        pushed += totals["pushed"]
        if totals["pushed"] < known:
            problems.append(f"{known - totals['pushed']} acknowledged pushes are in no book")
    unanswered = [
        reply
        for reply in seen.replies
        if reply.client == "push"
        and reply.outcome is not Outcome.ANSWERED
        and not (reply.outcome in _FALLEN and _during(reply, seen.down))
    ]
    problems += [f"{count} pushes: {text}" for text, count in _texts(unanswered)]
    return Finding(
        "jobs",
        not problems,
        text,
        "; ".join(problems) or f"{acknowledged:,} acknowledged, {pushed:,} in the books",
    )


def _books(seen: Seen) -> Finding:
    text = "The books add up: pushed = done + dead + waiting + delayed + running + destroyed, none below 0."
    wrong = [f"{totals}" for _, totals, balanced in seen.books if not balanced or not _adds_up(totals)]
    done = sum(totals["done"] for _, totals, _ in seen.books)
    dead = sum(totals["dead"] for _, totals, _ in seen.books)
    good = (
        f"{_count(len(seen.books), 'time')}: {done:,} done, {dead:,} dead"
        if seen.books
        else "no server came to rest"
    )
    return Finding("books", not wrong, text, "; ".join(wrong) or good)


def _adds_up(totals: dict[str, int]) -> bool:
    parts = ("done", "dead", "waiting", "delayed", "running", "destroyed", "handed_over")
    came = totals["pushed"] + totals.get("taken_over", 0)
    return came == sum(totals.get(name, 0) for name in parts) and min(totals.values()) >= 0


def _pools(seen: Seen) -> Finding:
    text = "After every injection every pool has all its workers again."
    whole = [done for done in seen.done if done.over]
    never = [done for done in whole if done.recovered is None]
    slowest = max((done.recovered for done in whole if done.recovered is not None), default=0.0)
    good = f"{_count(len(whole), 'time')}, the slowest {slowest:.2f} s"
    wrong = "; ".join(
        f"not after {done.injection.describe()} at {done.at:.1f} s ({done.note})" for done in never[:3]
    )
    return Finding(
        "pools whole",
        not never and bool(whole),
        text,
        wrong or (good if whole else "nothing was done"),
    )


def _processes(seen: Seen) -> Finding:
    text = "Two seconds after a server has ended, whichever way, no process of it is left."
    return Finding("no process left", not seen.left, text, "; ".join(seen.left[:5]) or "none left")


def _descriptors(seen: Seen) -> Finding:
    text = "A server at rest has no more descriptors than when it became ready."
    gained = ", ".join(f"{count} x {name}" for name, count in seen.descriptors.most_common(5))
    return Finding("descriptors", not seen.descriptors, text, gained or "none gained")


def _memory(seen: Seen) -> Finding:
    text = f"The server's memory grows by no more than {MEMORY_GAIN_MAX >> 20} MiB in a stage."
    gained = max((after - before for before, after in seen.memory), default=0)
    return Finding("memory", gained <= MEMORY_GAIN_MAX, text, f"{gained / (1 << 20):+.1f} MiB at most")


def _log(seen: Seen) -> Finding:
    text = "The log has no error that nobody had thought of (no traceback)."
    return Finding("log", not seen.tracebacks, text, "; ".join(seen.tracebacks[:3]) or "none")


def _limit(seen: Seen) -> Finding:
    """A worker that has grown is waited for by its injection; here the server's own account of it is looked at."""
    text = "A worker above its memory limit is replaced, in its turn and after what it runs."
    grown = sum(done.injection.kind is Kind.GROW and done.hit and done.over for done in seen.done)
    lowered = sorted({done.injection.pool for done in seen.done if done.injection.kind is Kind.LIMIT})
    least = grown + len(lowered)
    told = [f"{grown} grown above it"] if grown else []
    told += (
        [f"limit lowered for {', '.join(lowered)}, where workers cannot be made to grow"] if lowered else []
    )
    holds = 0 < least <= seen.recycled
    return Finding("memory limit", holds, text, f"{seen.recycled} replaced: {'; '.join(told) or 'none grew'}")


def _oom(seen: Seen) -> Finding:
    text = "A worker that the kernel kills for want of memory is said to have died of that."
    killed = sum(done.injection.kind is Kind.OOM and done.over for done in seen.done)
    named = seen.causes["oom"]
    return Finding("oom named", killed <= named, text, f"{killed} killed by the kernel, {named} named")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _during(reply: Reply, spans: Iterable[tuple[float, float]]) -> bool:
    """Whether an exchange and one of the times overlap."""
    return any(begin <= reply.at + reply.seconds and reply.at <= end for begin, end in spans)


def _texts(replies: Iterable[Reply]) -> list[tuple[str, int]]:
    """What went wrong and how often, the most frequent first."""
    texts = (
        f"{reply.outcome.value} ({reply.text})" if reply.text else reply.outcome.value for reply in replies
    )
    return Counter(texts).most_common(4)


def _recoveries(done: Sequence[Done]) -> Iterable[Recovery]:
    for kind in Kind:
        # A worker that was to grow and was replaced for something else meanwhile shows nothing.
        rows = [
            row
            for row in done
            if row.injection.kind is kind and row.over and (row.hit or kind is not Kind.GROW)
        ]
        times = [row.recovered for row in rows if row.recovered is not None]
        if rows:
            figures = (
                (percentile(times, 0.5), percentile(times, 0.99), max(times)) if times else (None, None, None)
            )
            yield Recovery(kind, len(rows), len(rows) - len(times), *figures)
