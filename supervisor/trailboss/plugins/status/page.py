"""THE STATUS PAGE: a snapshot as HTML, whole for the first sight, in parts for the stream of events.

There is one renderer, this one. A browser with scripts puts the parts of each event in their places; one without loads
the page anew every few seconds and sees the same. Every text goes through `esc`, whoever wrote it; the page's policy
allows the two inline blocks below by their hashes and nothing else, so that not even a mistake here could run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Final, cast

__all__ = ["PAGE_HEADERS", "render_page", "render_parts", "title_of"]

#: A browser without scripts loads the page again after so many seconds.
RELOAD_SECONDS: Final = 5

Row = Mapping[str, object]

_FILES: Final = resources.files("trailboss.plugins.status")
_STYLE: Final = _FILES.joinpath("page.css").read_text("utf-8")
_SCRIPT: Final = _FILES.joinpath("page.js").read_text("utf-8")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


#: Headers of the page and of its events.
PAGE_HEADERS: Final = (
    (
        "Content-Security-Policy",
        "; ".join(
            (
                "default-src 'none'",
                f"script-src {_hash(_SCRIPT)}",
                f"style-src {_hash(_STYLE)}",
                "connect-src 'self'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
                "frame-ancestors 'none'",
            )
        ),
    ),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)

_LOGO: Final = (
    '<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8" fill="#2563c9"/>'
    '<path d="M7 22c4-9 6-9 9-3s5 4 9-9" fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round"/>'
    '<circle cx="25" cy="9" r="2.6" fill="#fff"/></svg>'
)
_ICON: Final = (
    "data:image/svg+xml,"
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Crect width='32' height='32' rx='8' fill='%232563c9'/%3E"
    "%3Cpath d='M7 22c4-9 6-9 9-3s5 4 9-9' fill='none' stroke='%23fff' stroke-width='3' stroke-linecap='round'/%3E%3C/svg%3E"
)

#: State of a slot: the sign in its square, and what it means.
_SLOT_SIGNS: Final = {
    "idle": ("○", "ready, nothing to do"),
    "busy": ("▶", "working"),
    "starting": ("…", "starting"),
    "leaving": ("↓", "finishing its last work"),
    "waiting": ("✕", "failed, waiting for the next try"),
}
#: What two refusals, or two deaths, have to have in common to be told as one.
_SAME_REFUSAL: Final = ("status", "reason", "method", "path")
_SAME_DEATH: Final = ("pool", "cause", "text", "phase", "doing", "last_output", "stray_output")
_GOOD_PHASES: Final = ("ready", "healthy")
_COMING_PHASES: Final = (
    "starting",
    "declared",
    "booting",
    "booting pools",
    "initialising",
    "running on_init",
    "draining",
)
_UNSHOWABLE: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def esc(value: object) -> str:
    """Return a text that is nothing but text in HTML, in attributes too; control characters become �."""
    return html.escape(_UNSHOWABLE.sub("\ufffd", str(value)), quote=True)


def title_of(snapshot: Row) -> str:
    """Return the title of the window."""
    return f"{snapshot.get('phase')}: Trailboss on {snapshot.get('host')}"


def render_page(snapshot: Row) -> bytes:
    """Return the whole page."""
    parts = render_parts(snapshot)
    sections = "\n".join(
        f'<{tag} id="{name}"{more}>{parts[name]}</{tag}>'
        for name, tag, more in (
            ("figures", "section", ' aria-label="Figures"'),
            ("pools", "section", ' aria-label="Pools"'),
            ("logs", "div", ' class="two"'),
            ("rest", "div", ""),
        )
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{esc(title_of(snapshot))}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<link rel="icon" href="{_ICON}">
<noscript><meta http-equiv="refresh" content="{RELOAD_SECONDS}"></noscript>
<style>{_STYLE}</style>
</head>
<body>
<a class="skip" href="#figures">To the figures</a>
<header>
<div class="top"><h1>{_LOGO}Trailboss</h1><div id="head">{parts["head"]}</div>
<p class="link" id="link">picture of {_time(snapshot.get("at"))}<noscript>, loaded again every {RELOAD_SECONDS} s</noscript></p></div>
</header>
<main>
{sections}
</main>
<footer id="foot">{parts["foot"]}</footer>
<script>{_SCRIPT}</script>
</body>
</html>
""".encode("utf-8", "replace")


def render_parts(snapshot: Row) -> dict[str, str]:
    """Return the inner HTML of every place on the page, by its id."""
    return {
        "head": _head(snapshot),
        "figures": _figures(snapshot),
        "pools": "".join(_pool(pool) for pool in _rows(snapshot.get("pools")))
        + _failed_part(snapshot, "pools"),
        "logs": _refusals(snapshot) + _deaths(snapshot),
        "rest": _pipelines(snapshot) + _plugins(snapshot),
        "foot": _foot(snapshot),
    }


# --- head and figures -------------------------------------------------------------------------------------------------


def _head(snapshot: Row) -> str:
    phase = str(snapshot.get("phase", ""))
    waits = [str(item) for item in _list(snapshot.get("waiting_for"))]
    short = [
        str(pool.get("name")) for pool in _rows(snapshot.get("pools")) if pool.get("phase") == "degraded"
    ]
    if short:
        pill = f'<p class="pill bad" role="status">✕ degraded: {esc(", ".join(short))}</p>'
    elif snapshot.get("ready"):
        pill = '<p class="pill good" role="status">● ready</p>'
    elif phase == "ready":
        pill = '<p class="pill warn" role="status">▲ ready, but short of workers</p>'
    else:
        text = phase + (f"; waiting for {', '.join(waits)}" if waits else "")
        pill = f'<p class="pill warn" role="status">▲ {esc(text)}</p>'
    return (
        f'<div class="top">{pill}<p class="soft">{esc(snapshot.get("host"))} '
        f'<span class="extra">· up {esc(_age(snapshot.get("uptime_seconds")))}</span></p></div>'
    )


def _figures(snapshot: Row) -> str:
    pools = _rows(snapshot.get("pools"))
    http = snapshot.get("http")
    tiles = []
    if isinstance(http, Mapping) and "error" not in http:
        since = (
            "since the start"
            if http.get("since_start")
            else f"last {_number(http.get('window_seconds')):.0f} s"
        )
        history = [float(value) for value in _list(http.get("history")) if isinstance(value, int | float)]
        rate = f"{_count(http.get('per_second'))} <small>/s</small>"
        tiles.append(_tile(f"Requests, {since}", rate, _spark(history), wide=True))
        tiles.append(_latency_tile(http.get("latency_ms"), since))
        tiles.append(
            _tile(
                "In flight",
                _count(http.get("in_flight")),
                _note(f"{_count(http.get('connections'))} connections"),
            )
        )
    queued = sum(_number(pool.get("queued")) for pool in pools)
    busy = sum(_number(pool.get("busy")) for pool in pools)
    configured = sum(_number(pool.get("configured")) for pool in pools)
    tiles.append(
        _tile(
            "Workers busy",
            f"{busy:.0f} <small>of {configured:.0f}</small>",
            _note(f"{_count(queued)} queued"),
        )
    )
    if isinstance(http, Mapping):
        refusals = snapshot.get("refusals")
        total = refusals.get("total", 0) if isinstance(refusals, Mapping) else 0
        tiles.append(
            _tile(
                "Refused",
                _count(total),
                _note(f"of {_count(http.get('requests'))} requests"),
                alert=bool(total),
            )
        )
    deaths = snapshot.get("deaths")
    died = deaths.get("total", 0) if isinstance(deaths, Mapping) else 0
    tiles.append(_tile("Workers died", _count(died), _note("since the start"), alert=bool(died)))
    return f'<dl class="figures">{"".join(tiles)}</dl>' + _failed_part(snapshot, "http")


def _tile(name: str, value: str, below: str, *, wide: bool = False, alert: bool = False) -> str:
    """One figure; `value` and `below` are HTML."""
    opening = '<div class="wide">' if wide else "<div>"
    return f'{opening}<dt>{name}</dt><dd class="big{" alert" if alert else ""}">{value}</dd>{below and f"<dd>{below}</dd>"}</div>'


def _note(text: str) -> str:
    return f'<span class="note">{text}</span>'


def _latency_tile(latency: object, since: str) -> str:
    if not isinstance(latency, Mapping):
        return _tile("Latency", "\u2013", _note("no request"), wide=True)
    values = "".join(
        f"<span>{_milliseconds(latency.get(name))}<i>{label}</i></span>"
        for name, label in (("p50", "median"), ("p95", "95 %"), ("p99", "99 %"))
    )
    return _tile(f"Latency, {since}", f'<span class="trio">{values}</span>', "", wide=True)


def _spark(history: Sequence[float]) -> str:
    """A line of the last minute, in a box of 60 by 20."""
    if len(history) < 2:
        return ""
    top = max(*history, 1.0)
    points = [
        f"{60 - (len(history) - 1 - place):.0f} {19 - 18 * value / top:.1f}"
        for place, value in enumerate(history[-61:])
    ]
    first = points[0].split(" ")[0]
    line = "M" + " L".join(points)
    return (
        f'<svg class="spark" viewBox="0 0 60 20" preserveAspectRatio="none" role="img" '
        f'aria-label="requests per second in the last minute, at most {_count(top)}">'
        f'<path class="area" d="{line} L60 20 L{first} 20 Z"/><path class="line" d="{line}"/></svg>'
    )


# --- pools ------------------------------------------------------------------------------------------------------------


def _pool(pool: Row) -> str:
    name = esc(pool.get("name"))
    workers = _rows(pool.get("workers"))
    facts = [
        f"{_count(pool.get('busy'))} of {_count(pool.get('configured'))} busy",
        f"{_count(pool.get('queued'))} queued",
        f"{_count(pool.get('per_second'))} /s",
        f"{_count(pool.get('executions'))} done",
    ]
    for key, text in (("refused", "refused"), ("deaths", "died")):
        if pool.get(key):
            facts.append(f"{_count(pool.get(key))} {text}")
    if _number(pool.get("generation")) > 1:
        facts.append(f"generation {_count(pool.get('generation'))}")
    trouble = ""
    if pool.get("last_failure"):
        probe = pool.get("next_probe_seconds")
        when = f" · next try in {_number(probe):.0f} s" if isinstance(probe, int | float) else ""
        trouble = f'<p class="trouble">{esc(pool["last_failure"])}{when}</p>'
    left_out = _number(pool.get("workers_left_out"))
    more = f'<p class="soft">and {left_out:.0f} more workers</p>' if left_out else ""
    return (
        f'<article class="card" aria-labelledby="pool-{name}"><div class="cardhead"><h2 id="pool-{name}">Pool {name}</h2>'
        f'{_phase_pill(pool.get("phase"))}<p class="soft">{" · ".join(facts)}</p></div>{trouble}'
        f"{_slots(workers)}{_workers(workers)}{more}</article>"
    )


def _slots(workers: Sequence[Row]) -> str:
    if not workers:
        return '<p class="empty">no worker</p>'
    squares = []
    for worker in workers:
        state = str(worker.get("state"))
        sign, meaning = _SLOT_SIGNS.get(state, ("?", state))
        text = f"worker {worker.get('pid') or 'to come'}: {meaning}"
        if worker.get("doing"):
            text += f": {worker['doing']}, for {_seconds(worker.get('doing_seconds'))}"
        if isinstance(worker.get("next_try_seconds"), int | float):
            text += f", in {_number(worker['next_try_seconds']):.0f} s"
        kind = state if state in _SLOT_SIGNS else "leaving"
        squares.append(f'<li class="slot {kind}" title="{esc(text)}" aria-label="{esc(text)}">{sign}</li>')
    present = {str(worker.get("state")) for worker in workers}
    signs = "".join(
        f'<li><span class="slot {state}" aria-hidden="true">{sign}</span>{meaning}</li>'
        for state, (sign, meaning) in _SLOT_SIGNS.items()
        if state in present
    )
    # Where all are idle, the line below says it.
    legend = f'<ul class="legend">{signs}</ul>' if present != {"idle"} else ""
    many = " many" if len(workers) > 64 else ""
    return f'<ul class="slots{many}">{"".join(squares)}</ul>{legend}'


def _workers(workers: Sequence[Row]) -> str:
    shown = [worker for worker in workers if worker.get("pid")]
    active = [worker for worker in shown if worker.get("state") != "idle"]
    active.sort(key=lambda worker: -_number(worker.get("doing_seconds")))
    idle = [worker for worker in shown if worker.get("state") == "idle"]
    text = _worker_table(active) if active else ""
    if idle:
        name = "idle worker" if len(idle) == 1 else "idle workers"
        text += f"<details><summary>{len(idle)} {name}</summary>{_worker_table(idle, idle=True)}</details>"
    return text


def _worker_table(workers: Iterable[Row], *, idle: bool = False) -> str:
    rows = []
    for worker in workers:
        state = str(worker.get("state"))
        doing = worker.get("doing") or _SLOT_SIGNS.get(state, ("", state))[1]
        does = f'<td class="does mono">{esc(doing)}</td><td class="num">{_seconds(worker.get("doing_seconds"))}</td>'
        rows.append(
            f"<tr><td>{esc(worker.get('pid'))}</td>{'' if idle else does}"
            f'<td class="num{"" if idle else " extra"}">{_count(worker.get("executions"))}</td>'
            f'<td class="num{"" if idle else " extra"}">{_bytes(worker.get("memory_bytes"))}</td>'
            f'<td class="num extra">{_number(worker.get("cpu_percent")):.0f} %</td>'
            f'<td class="num extra">{esc(_age(worker.get("age_seconds")))}</td></tr>'
        )
    does = "" if idle else '<th scope="col">does now</th><th scope="col" class="num">for</th>'
    return (
        f'<table><thead><tr><th scope="col">pid</th>{does}'
        f'<th scope="col" class="num{"" if idle else " extra"}">done</th>'
        f'<th scope="col" class="num{"" if idle else " extra"}">memory</th>'
        f'<th scope="col" class="num extra">CPU</th><th scope="col" class="num extra">age</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


# --- what went wrong --------------------------------------------------------------------------------------------------


def _refusals(snapshot: Row) -> str:
    if not isinstance(snapshot.get("http"), Mapping):
        return ""
    refusals = snapshot.get("refusals")
    if not isinstance(refusals, Mapping) or "error" in refusals:
        return _failed_part(snapshot, "refusals")
    entries = [_refusal(row) for row in _alike(_rows(refusals.get("last")), _SAME_REFUSAL)]
    empty = "No request has been refused."
    return _log_card(
        "refused", "Why was this refused?", refusals.get("total"), entries, empty, "trailboss why --http"
    )


def _alike(rows: Iterable[Row], keys: Sequence[str]) -> list[Row]:
    """Put rows of one kind that follow each other into one: the newest, which comes first, with how many more there are."""
    found: list[dict[str, object]] = []
    for row in rows:
        more = int(_number(row.get("more")))
        last = found[-1] if found else None
        if last is not None and all(last.get(key) == row.get(key) for key in keys):
            last["more"] = int(_number(last["more"])) + 1 + more
            last["since"] = row.get("at")
        else:
            found.append({**row, "more": more, "since": row.get("at")})
    return list(found)


def _more(row: Row) -> str:
    if not row.get("more"):
        return ""
    return f'<p class="soft">and {_count(row["more"])} more like this since {_time(row.get("since"))}</p>'


def _refusal(row: Row) -> str:
    asked = f"{row.get('method') or ''} {row.get('path') or ''}".strip()
    kind = "warn" if 400 <= _number(row.get("status")) < 500 else "bad"
    lines = []
    if row.get("detail"):
        lines.append(f'<p class="soft">{esc(row["detail"])}</p>')
    held = _rows(row.get("held_by"))
    if held:
        holders = "".join(
            f'<li><span class="mono">{esc(holder.get("doing") or "something")}</span> '
            f'<span class="soft">for {_seconds(holder.get("since_seconds"))}, pid {esc(holder.get("pid"))}</span></li>'
            for holder in held
        )
        rest = int(_number(row.get("held_by_left_out")))
        holders += f"<li>and {rest} more</li>" if rest else ""
        queued = _number(row.get("queued"))
        waited = f", {_count(queued)} waited" if queued else ""
        count = len(held) + rest
        name = "busy worker" if count == 1 else "busy workers"
        lines.append(
            f"<details><summary>held by {count} {name}{waited}</summary><ul>{holders}</ul></details>"
        )
    lines.append(_more(row))
    what = f'<span class="mono">{esc(asked)}</span>' if asked else "<span>not a request</span>"
    return (
        f'<li><div class="entry"><span class="pill {kind}">{esc(row.get("status"))} {esc(row.get("reason"))}</span>'
        f"{what}{_time(row.get('at'))}</div>{''.join(lines)}</li>"
    )


def _deaths(snapshot: Row) -> str:
    deaths = snapshot.get("deaths")
    if not isinstance(deaths, Mapping) or "error" in deaths:
        return _failed_part(snapshot, "deaths")
    entries = [_death(row) for row in _alike(_rows(deaths.get("last")), _SAME_DEATH)]
    return _log_card(
        "died",
        "Why did this worker die?",
        deaths.get("total"),
        entries,
        "No worker has died.",
        "trailboss why",
    )


def _death(row: Row) -> str:
    what = f"pid {row.get('pid')} of {row.get('pool')}" if row.get("pid") else f"pool {row.get('pool')}"
    lived = f"lived {_age(row.get('age_seconds'))}, {_count(row.get('executions'))} done"
    doing = f', was running <span class="mono">{esc(row["doing"])}</span>' if row.get("doing") else ""
    lines = [f'<p>{esc(row.get("text"))} <span class="soft">· {esc(lived)}{doing}</span></p>']
    if row.get("hint"):
        lines.append(f"<p>likely: {esc(row['hint'])}</p>")
    output = [str(line) for line in _list(row.get("last_output"))]
    if row.get("stray_output"):
        output.append(f"on standard output: {row['stray_output']}")
    if len(output) == 1:
        lines.append(f"<pre>{esc(output[0])}</pre>")
    elif output:
        said = "\n".join(esc(line) for line in output)
        lines.append(
            f"<details><summary>its last words: <code>{esc(output[-1])}</code></summary><pre>{said}</pre></details>"
        )
    lines.append(_more(row))
    return (
        f'<li><div class="entry"><span class="pill bad">{esc(row.get("cause"))}</span><span>{esc(what)}</span>'
        f"{_time(row.get('at'))}</div>{''.join(lines)}</li>"
    )


def _log_card(name: str, title: str, total: object, entries: Sequence[str], empty: str, command: str) -> str:
    count = f'<p class="soft">{_count(total)} since the start · <code>{command}</code></p>' if total else ""
    body = f'<ul class="log">{"".join(entries)}</ul>' if entries else f'<p class="empty">{empty}</p>'
    return (
        f'<section class="card" aria-labelledby="{name}"><div class="cardhead"><h2 id="{name}">{title}</h2>{count}</div>'
        f"{body}</section>"
    )


# --- the rest ---------------------------------------------------------------------------------------------------------


def _pipelines(snapshot: Row) -> str:
    rows = "".join(
        f"<tr><td>{esc(row.get('Pipeline'))}</td><td>{_ready(row)}</td>"
        + "".join(f'<td class="num">{_count(row.get(key))}</td>' for key in ("Active", "Delayed", "Reserved"))
        + f'<td class="extra">{esc(row.get("Driver"))}</td></tr>'
        for row in _rows(snapshot.get("jobs"))
    )
    if not rows:
        return _failed_part(snapshot, "jobs")
    return (
        '<section class="card" aria-labelledby="pipelines"><div class="cardhead"><h2 id="pipelines">Pipelines</h2></div>'
        '<div class="scroll"><table><thead><tr><th scope="col">name</th><th scope="col">state</th>'
        '<th scope="col" class="num">waiting</th><th scope="col" class="num">delayed</th>'
        '<th scope="col" class="num">running</th><th scope="col" class="extra">driver</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )


def _ready(row: Row) -> str:
    if row.get("ErrorMessage"):
        return f'<span class="mark bad">✕</span> {esc(row["ErrorMessage"])}'
    return (
        '<span class="mark good">●</span> consuming'
        if row.get("Ready")
        else '<span class="mark warn">▲</span> paused'
    )


def _plugins(snapshot: Row) -> str:
    items = []
    for plugin in _rows(snapshot.get("plugins")):
        phase = str(plugin.get("phase"))
        if phase == "healthy" and plugin.get("healthy"):
            kind, sign = "good", "●"
        elif phase in _COMING_PHASES or phase == "stopped":
            kind, sign = "warn", "▲"
        else:
            kind, sign = "bad", "✕"
        reason = str(plugin.get("reason") or "")
        waits = [str(item) for item in _list(plugin.get("waiting_for"))]
        if waits and not reason:
            reason = "waits for " + ", ".join(waits)
        told = f'<span class="reason">{esc(reason)}</span>' if reason else ""
        items.append(
            f'<li><span class="mark {kind}" aria-hidden="true">{sign}</span><span>{esc(plugin.get("name"))}</span>'
            f'<span class="soft">{esc(phase)}</span>{told}</li>'
        )
    if not items:
        return _failed_part(snapshot, "plugins")
    return (
        '<section class="card" aria-labelledby="plugins"><div class="cardhead"><h2 id="plugins">Plugins</h2></div>'
        f'<ul class="plugins">{"".join(items)}</ul></section>'
    )


def _foot(snapshot: Row) -> str:
    http = snapshot.get("http")
    addresses = [str(item) for item in _list(http.get("addresses"))] if isinstance(http, Mapping) else []
    listening = f"<span>serves {esc(', '.join(addresses))}</span>" if addresses else ""
    return (
        f"<span>Trailboss {esc(snapshot.get('version'))}, pid {esc(snapshot.get('pid'))}</span>{listening}"
        '<span>as JSON: <a href="state">state</a>, <a href="health">health</a>, <a href="ready">ready</a>, '
        '<a href="jobs">jobs</a></span>'
    )


def _failed_part(snapshot: Row, name: str) -> str:
    part = snapshot.get(name)
    if not isinstance(part, Mapping) or "error" not in part:
        return ""
    return f'<p class="trouble">{name} cannot be shown: {esc(part["error"])}</p>'


# --- small things -----------------------------------------------------------------------------------------------------


def _phase_pill(phase: object) -> str:
    text = str(phase)
    if text in _GOOD_PHASES:
        return f'<p class="pill good">● {esc(text)}</p>'
    kind, sign = ("warn", "▲") if text in _COMING_PHASES else ("bad", "✕")
    return f'<p class="pill {kind}">{sign} {esc(text)}</p>'


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _rows(value: object) -> list[Row]:
    return [cast(Row, row) for row in _list(value) if isinstance(row, Mapping)]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _count(value: object) -> str:
    number = _number(value)
    if number and abs(number) < 10 and number != int(number):
        return f"{number:.1f}"
    return f"{number:,.0f}".replace(",", "\u202f")


def _seconds(value: object) -> str:
    seconds = _number(value)
    if not seconds:
        return ""
    return f"{seconds:.1f} s" if seconds < 60 else _age(seconds)


def _milliseconds(value: object) -> str:
    if not isinstance(value, int | float):
        return "\u2013"
    if value < 1000:
        return f"{value:.{2 if value < 1 else 1 if value < 10 else 0}f} <small>ms</small>"
    return f"{value / 1000:.{1 if value < 10000 else 0}f} <small>s</small>"


def _bytes(value: object) -> str:
    size = _number(value)
    if not size:
        return ""
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _age(value: object) -> str:
    seconds = int(_number(value))
    for unit, size, below in (("d", 86_400, 3600), ("h", 3600, 60), ("min", 60, 1)):
        if seconds >= size:
            rest = seconds % size // below
            smaller = {"d": "h", "h": "min", "min": "s"}[unit]
            return f"{seconds // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds} s"


def _time(value: object) -> str:
    text = str(value)
    return f'<time datetime="{esc(text)}">{esc(text[11:19])} UTC</time>'
