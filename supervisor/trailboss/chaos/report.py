"""THE REPORT: one HTML file that needs nothing but itself, with the run as a timeline. Pure.

The timeline has a lane for the server and one for each pool, in which a bar begins with an injection and ends when all
was whole again; below it is what the clients got in the same seconds. Every mark says what it is when it is pointed at.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Final

from trailboss.chaos.plan import Kind, Plan, Stage
from trailboss.chaos.screen import (
    CLIENT_HEADINGS,
    RECOVERY_HEADINGS,
    client_rows,
    outcome_text,
    recovery_rows,
    seconds_text,
    sign_of,
)
from trailboss.chaos.verdict import Done, Outcome, Reply, Seen, Verdict, percentile

__all__ = ["render_report"]

_STYLE: Final = resources.files("trailboss.chaos").joinpath("report.css").read_text("utf-8")

#: Kind -> class of its colour.
_COLOURS: Final = {
    Kind.KILL_BOOT: "kill",
    Kind.KILL_CALL: "kill",
    Kind.KILL: "kill",
    Kind.KILL_ALL: "kill",
    Kind.FREEZE_BOOT: "freeze",
    Kind.FREEZE: "freeze",
    Kind.PAUSE: "freeze",
    Kind.RESET: "change",
    Kind.RESIZE: "change",
    Kind.POWER: "power",
    Kind.POWER_BOOT: "power",
    Kind.GROW: "limit",
    Kind.LIMIT: "limit",
    Kind.OOM: "kill",
    Kind.OOM_LIKE: "kill",
}
_KEY: Final = {
    "kill": "workers killed",
    "freeze": "workers frozen or stopped",
    "change": "killed while the pool was changed",
    "power": "the server killed",
    "limit": "workers above their memory limit",
}

# The picture, in its own units.
_WIDTH, _LEFT, _RIGHT = 1080.0, 76.0, 12.0
_LANE, _BAR, _CHART = 30.0, 16.0, 84.0


def render_report(
    plan: Plan,
    seen: Seen,
    verdict: Verdict,
    stages: Sequence[tuple[Stage, float, float]],
    changed: Sequence[str],
    again: str,
) -> str:
    """Return the page."""
    count = len(verdict.findings)
    if not verdict.holds:
        badge = f'<div class="badge bad">✗ Failed: {len(verdict.broken)} of {count} broken</div>'
    elif verdict.interrupted:
        badge = '<div class="badge soft">Interrupted: nothing broken so far</div>'
    else:
        badge = f'<div class="badge good">✓ Passed: all {count} hold</div>'
    state = "failed" if not verdict.holds else "interrupted" if verdict.interrupted else "passed"
    answered = sum(served.outcomes.get(Outcome.ANSWERED, 0) for served in verdict.served)
    summary = (
        f"{len(seen.done)} injections in {seen.seconds:.0f} s while clients got {answered:,} answers. "
        f"Plan {_esc(plan.name)}, seed {plan.seed}."
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Chaos {state}: {_esc(plan.name)}, seed {plan.seed}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<style>
{_STYLE}</style>
</head>
<body>
<main>
<header>
<div class="what"><h1>Trailboss chaos</h1><p class="soft">{summary}</p></div>
{badge}
</header>
<section>
<h2>What happened</h2>
<div class="scroll">{_timeline(seen, stages)}</div>
{_key(seen)}
</section>
<section>
<h2>Verdict</h2>
<div class="scroll">{_findings(verdict)}</div>
</section>
<div class="two">
<section><h2>Time until all was whole again</h2><div class="scroll">{_table(RECOVERY_HEADINGS, recovery_rows(verdict))}</div></section>
<section><h2>What the clients saw</h2><div class="scroll">{_table(CLIENT_HEADINGS, client_rows(verdict))}</div></section>
</div>
<section><details><summary>Every injection ({len(seen.done)})</summary><div class="scroll">{_injections(seen.done)}</div></details></section>
<section><details><summary>What was different from your configuration</summary><pre>{_esc(chr(10).join(changed))}</pre></details></section>
<section><h2>The same again</h2><code>{_esc(again)}</code></section>
</main>
</body>
</html>
"""


def _esc(value: object) -> str:
    return html.escape(str(value), quote=True)


def _findings(verdict: Verdict) -> str:
    rows = []
    for finding in sorted(verdict.findings, key=lambda finding: finding.holds):
        sign, _ = sign_of(finding)
        colour = "soft" if not finding.judged else "good" if finding.holds else "bad"
        rows.append(
            f'<tr><td class="sign {colour}">{sign}</td><td class="name">{_esc(finding.name)}</td>'
            f'<td class="rule">{_esc(finding.text)}</td><td>{_esc(finding.seen)}</td></tr>'
        )
    return (
        '<table class="findings"><thead><tr><th></th><th>invariant</th><th>what must hold</th><th>seen</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        first, *others = cells
        numbers = "".join(f'<{tag} class="number">{_esc(cell)}</{tag}>' for cell in others)
        return f"<tr><{tag}>{_esc(first)}</{tag}>{numbers}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', headings)}</thead><tbody>{body}</tbody></table>"


def _injections(done: Sequence[Done]) -> str:
    rows = [
        (
            f'<tr><td class="number">{row.at:.2f} s</td><td>{_esc(row.injection.describe())}</td>'
            f'<td class="number{"" if row.recovered is not None else " bad"}">{seconds_text(row.recovered)}</td>'
            f"<td>{_esc(row.note)}</td></tr>"
        )
        for row in done
    ]
    return (
        '<table><thead><tr><th class="number">at</th><th>what</th><th class="number">whole again</th><th></th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _key(seen: Seen) -> str:
    used = {_COLOURS[done.injection.kind] for done in seen.done}
    items = [f'<span><i class="{name}"></i>{text}</span>' for name, text in _KEY.items() if name in used]
    items.append('<span><i class="downkey"></i>server not up</span>')
    if any(reply.outcome is not Outcome.ANSWERED for reply in seen.replies):
        items.append('<span><i class="failkey"></i>exchanges without an answer</span>')
    return f'<div class="key">{"".join(items)}</div>'


# --- the timeline ---------------------------------------------------------------------------------------------------


class _Scale:
    """Seconds to the picture's units."""

    def __init__(self, seconds: float) -> None:
        self.seconds = max(seconds, 1.0)
        self._unit = (_WIDTH - _LEFT - _RIGHT) / self.seconds

    def x(self, at: float) -> float:
        return _LEFT + min(max(at, 0.0), self.seconds) * self._unit

    def rect(
        self, begin: float, end: float, y: float, height: float, colour: str, text: str, least: float = 3.0
    ) -> str:
        x = self.x(begin)
        width = max(self.x(end) - x, least)
        return (
            f'<rect class="{colour}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2">'
            f"<title>{_esc(text)}</title></rect>"
        )


def _timeline(seen: Seen, stages: Sequence[tuple[Stage, float, float]]) -> str:
    scale = _Scale(seen.seconds)
    pools = sorted({done.injection.pool for done in seen.done if done.injection.pool})
    lanes = ["server", *pools]
    top = 26.0
    bottom = top + len(lanes) * _LANE
    first_chart, second_chart = bottom + 26.0, bottom + 26.0 + _CHART + 30.0
    height = second_chart + _CHART + 26.0
    label = f"Timeline of {len(seen.done)} injections in {seen.seconds:.0f} seconds"
    parts = [
        f'<svg class="timeline" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="{label}">'
    ]
    for number, (stage, begin, end) in enumerate(stages):
        if number % 2 == 0:
            parts.append(
                f'<rect class="band" x="{scale.x(begin):.1f}" y="4" width="{scale.x(end) - scale.x(begin):.1f}" '
                f'height="{height - 26:.1f}" rx="4"/>'
            )
        parts.append(f'<text class="strong" x="{scale.x(begin) + 6:.1f}" y="18">{_esc(stage.value)}</text>')
    parts += _axis(scale, height)
    for number, lane in enumerate(lanes):
        y = top + number * _LANE + (_LANE - _BAR) / 2
        parts.append(f'<text x="{_LEFT - 10:.0f}" y="{y + 12:.1f}" text-anchor="end">{_esc(lane)}</text>')
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y + _BAR / 2:.1f}" y2="{y + _BAR / 2:.1f}"/>'
        )
        if lane == "server":
            parts += [
                scale.rect(begin, end, y, _BAR, "down", f"not up from {begin:.2f} s to {end:.2f} s")
                for begin, end in seen.down
            ]
        parts += [_bar(scale, done, y) for done in seen.done if (done.injection.pool or "server") == lane]
    parts += _rates(scale, seen, first_chart)
    parts += _times(scale, seen, second_chart)
    parts.append("</svg>")
    return "".join(parts)


def _bar(scale: _Scale, done: Done, y: float) -> str:
    end = done.at + done.recovered if done.recovered is not None else scale.seconds
    colour = _COLOURS[done.injection.kind] + (" never" if done.recovered is None and done.over else "")
    return scale.rect(
        done.at, end, y, _BAR, colour, f"{done.at:.2f} s: {done.injection.describe()}, {outcome_text(done)}"
    )


def _axis(scale: _Scale, height: float) -> list[str]:
    step = next(
        (step for step in (1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600) if scale.seconds / step <= 12),
        7200,
    )
    parts = []
    for number in range(int(scale.seconds // step) + 1):
        x = scale.x(number * step)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="26" y2="{height - 22:.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 6:.1f}" text-anchor="middle">{number * step} s</text>')
    return parts


def _buckets(scale: _Scale, replies: Iterable[Reply]) -> tuple[float, list[list[Reply]]]:
    """Exchanges by the time they ended; at most some 240 steps."""
    step = next(
        step
        for step in (0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 600)
        if scale.seconds / step <= 240 or step == 600
    )
    rows: list[list[Reply]] = [[] for _ in range(int(scale.seconds // step) + 1)]
    for reply in replies:
        rows[min(int((reply.at + reply.seconds) // step), len(rows) - 1)].append(reply)
    return step, rows


def _rates(scale: _Scale, seen: Seen, y: float) -> list[str]:
    """Answers a second, and beneath the line what was not answered."""
    step, rows = _buckets(scale, (reply for reply in seen.replies if reply.client != "rpc"))
    good = [sum(reply.outcome is Outcome.ANSWERED for reply in row) / step for row in rows]
    bad = [sum(reply.outcome is not Outcome.ANSWERED for reply in row) / step for row in rows]
    most = max([*good, *bad, 1.0])
    parts = _chart_frame(y, "answers", f"{most:,.0f}/s")
    parts += _area(scale, step, good, most, y)
    for number, rate in enumerate(bad):
        if rate:
            height = max(3.0, rate / most * _CHART)
            texts = sorted(
                {reply.outcome.value for reply in rows[number] if reply.outcome is not Outcome.ANSWERED}
            )
            parts.append(
                scale.rect(
                    number * step, (number + 0.8) * step, y + _CHART - height, height, "failed",
                    f"{rate * step:.0f} without an answer at {number * step:g} s: {', '.join(texts)}",
                )
            )  # fmt: skip
    return parts


def _times(scale: _Scale, seen: Seen, y: float) -> list[str]:
    """The slowest of a hundred answers in each step."""
    step, rows = _buckets(scale, (reply for reply in seen.replies if reply.client == "http"))
    times = [[reply.seconds for reply in row if reply.outcome is Outcome.ANSWERED] for row in rows]
    values = [percentile(row, 0.99) if row else 0.0 for row in times]
    most = max([*values, 0.001])
    return [*_chart_frame(y, "HTTP p99", seconds_text(most)), *_area(scale, step, values, most, y)]


def _chart_frame(y: float, name: str, most: str) -> list[str]:
    return [
        f'<text x="{_LEFT - 10:.0f}" y="{y + 11:.1f}" text-anchor="end">{_esc(most)}</text>',
        f'<text class="strong" x="{_LEFT + 6:.0f}" y="{y - 6:.1f}">{_esc(name)}</text>',
        f'<text x="{_LEFT - 10:.0f}" y="{y + _CHART:.1f}" text-anchor="end">0</text>',
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y + _CHART:.1f}" y2="{y + _CHART:.1f}"/>',
    ]


def _area(scale: _Scale, step: float, values: Sequence[float], most: float, y: float) -> list[str]:
    points = [
        f"{scale.x((number + 0.5) * step):.1f},{y + _CHART - value / most * _CHART:.1f}"
        for number, value in enumerate(values)
    ]
    base = y + _CHART
    closed = f"{scale.x(0.5 * step):.1f},{base:.1f} {' '.join(points)} {scale.x((len(values) - 0.5) * step):.1f},{base:.1f}"
    return [
        f'<polygon class="answered" points="{closed}"/>',
        f'<polyline class="edge" points="{" ".join(points)}"/>',
    ]
