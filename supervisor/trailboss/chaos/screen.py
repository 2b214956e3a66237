"""What a run says on the terminal, as JSON, and as rows that the report shows as well. Pure but for the drawing."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from trailboss.chaos.plan import Plan
from trailboss.chaos.verdict import Done, Finding, Outcome, Seen, Verdict

__all__ = [
    "CLIENTS",
    "as_json",
    "client_rows",
    "outcome_text",
    "progress_line",
    "recovery_rows",
    "seconds_text",
    "shown",
    "summary",
]

#: What the kinds of clients are called.
CLIENTS = {"http": "HTTP requests", "push": "jobs pushed", "rpc": "RPC calls"}


def seconds_text(seconds: float | None) -> str:
    """A time as people say it."""
    if seconds is None:
        return "never"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def recovery_rows(verdict: Verdict) -> list[tuple[str, str, str, str, str]]:
    """What was done, how often, and how long until all was whole again: p50, p99, longest."""
    return [
        (
            row.kind.value,
            str(row.count),
            seconds_text(row.p50),
            seconds_text(row.p99),
            seconds_text(None if row.failed else row.longest),
        )
        for row in verdict.recoveries
    ]


def client_rows(verdict: Verdict) -> list[tuple[str, str, str, str, str, str]]:
    """What each kind of client asked and got: answered, told to wait or failed, while the server was down, p99, longest."""
    rows = []
    for served in verdict.served:
        answered = served.outcomes.get(Outcome.ANSWERED, 0)
        rest = sum(served.outcomes.values()) - answered
        rows.append(
            (
                CLIENTS[served.client],
                f"{answered:,}",
                f"{rest - served.while_down:,}",
                f"{served.while_down:,}",
                seconds_text(served.p99),
                seconds_text(served.longest),
            )
        )
    return rows


RECOVERY_HEADINGS = ("injected", "times", "recovered p50", "p99", "longest")
CLIENT_HEADINGS = ("clients saw", "answered", "failed", "server down", "p99", "longest")


def progress_line(done: Done) -> str:
    """One injection for people who look on."""
    return f"{done.at:7.2f} s  {done.injection.describe()}: {outcome_text(done)}"


def outcome_text(done: Done) -> str:
    """How an injection ended."""
    if not done.over:
        return "the run was ended in the middle of it"
    if done.recovered is None:
        return f"NOT WHOLE: {done.note}"
    whole = f"whole again after {seconds_text(done.recovered)}"
    return f"{done.note}, {whole}" if done.note else whole


def sign_of(finding: Finding) -> tuple[str, str]:
    """A sign for a finding, and how it is shown."""
    if not finding.judged:
        return "○", "dim"
    return ("✓", "green") if finding.holds else ("✗", "bold red")


def summary(verdict: Verdict) -> str:
    """The verdict in a line."""
    count, names = len(verdict.findings), ", ".join(finding.name for finding in verdict.broken)
    if names:
        text = f"FAIL  {names} ({len(verdict.broken)} of {count} broken)"
        return f"{text}; interrupted" if verdict.interrupted else text
    if verdict.interrupted:
        judged = sum(finding.judged for finding in verdict.findings)
        return f"INTERRUPTED  nothing broken so far; {judged} of {count} invariants were looked at"
    return f"PASS  all {count} invariants hold"


def shown(verdict: Verdict) -> RenderableType:
    """The verdict for a terminal."""
    findings = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "invariant", "seen"):
        findings.add_column(heading, overflow="fold")
    for finding in verdict.findings:
        sign, style = sign_of(finding)
        seen = Text(finding.seen)
        if not finding.holds:
            seen = Text(f"{finding.text}\n", style="red").append(finding.seen, style="default")
        findings.add_row(Text(sign, style), Text(finding.name, style), seen)
    style = "bold red" if verdict.broken else "bold yellow" if verdict.interrupted else "bold green"
    last = Text(summary(verdict), style)
    return Group(
        _table(RECOVERY_HEADINGS, recovery_rows(verdict)),
        _table(CLIENT_HEADINGS, client_rows(verdict)),
        findings,
        last,
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="right" if position else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def console() -> Console:
    """Standard output; plain text where it is no terminal, and then wide enough for every row."""
    probe = Console(highlight=False)
    return probe if probe.is_terminal else Console(highlight=False, width=160)


def as_json(plan: Plan, seen: Seen, verdict: Verdict, changed: Sequence[str]) -> dict[str, object]:
    """Everything, for `--json`."""
    return {
        "passed": verdict.passed,
        "interrupted": verdict.interrupted,
        "plan": {"name": plan.name, "seed": plan.seed, "digest": plan.digest},
        "seconds": round(seen.seconds, 3),
        "changed": list(changed),
        "invariants": [
            {
                "name": finding.name,
                "holds": finding.holds,
                "judged": finding.judged,
                "text": finding.text,
                "seen": finding.seen,
            }
            for finding in verdict.findings
        ],
        "recovery": [
            {
                "kind": row.kind.value,
                "count": row.count,
                "failed": row.failed,
                "p50_seconds": row.p50,
                "p99_seconds": row.p99,
                "max_seconds": row.longest,
            }
            for row in verdict.recoveries
        ],
        "clients": {
            row.client: {
                "outcomes": {outcome.value: count for outcome, count in row.outcomes.items()},
                "while_down": row.while_down,
                "p50_seconds": row.p50,
                "p99_seconds": row.p99,
                "max_seconds": row.longest,
            }
            for row in verdict.served
        },
        "deaths": dict(seen.causes),
        "starts_seconds": [round(value, 3) for value in seen.starts],
        "injections": [
            {
                "at_seconds": round(done.at, 3),
                "stage": done.injection.stage.value,
                "kind": done.injection.kind.value,
                "pool": done.injection.pool,
                "text": done.injection.describe(),
                "recovered_seconds": done.recovered,
                "victims": done.victims,
                "note": done.note,
            }
            for done in seen.done
        ],
    }
