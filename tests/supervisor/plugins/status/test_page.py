"""The status page as HTML: well formed, self-contained, and whatever a worker says stays text."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from trailboss.plugins.status.page import PAGE_HEADERS, esc, render_page, render_parts

VOID = {"meta", "link", "br", "input", "img", "path", "rect", "circle"}
#: Attributes that a page without any script of somebody else's may have.
KNOWN = {
    *(
        "id",
        "class",
        "title",
        "lang",
        "charset",
        "name",
        "content",
        "rel",
        "href",
        "http-equiv",
        "role",
        "scope",
    ),
    *("aria-label", "aria-labelledby", "aria-hidden", "datetime"),
    *(
        "viewbox",
        "width",
        "height",
        "rx",
        "cx",
        "cy",
        "r",
        "d",
        "fill",
        "stroke",
        "stroke-width",
        "stroke-linecap",
    ),
    *("stroke-linejoin", "preserveaspectratio"),
}

SNAPSHOT: dict[str, Any] = {
    "at": "2026-11-24T15:00:01.000+00:00",
    "version": "2026.11.0",
    "host": "box",
    "pid": 7,
    "phase": "ready",
    "gate": "open",
    "ready": True,
    "waiting_for": [],
    "uptime_seconds": 4000.0,
    "http": {
        "addresses": ["127.0.0.1:8080"],
        "requests": 123456,
        "history": [1.0, 5.0, 3.5],
        "per_second": 1234.5,
        "window_seconds": 10.0,
        "since_start": False,
        "latency_ms": {"p50": 0.71, "p95": 12.0, "p99": 1500.0},
        "in_flight": 3,
        "connections": 17,
        "refused": 2,
        "timeouts": 0,
    },
    "pools": [
        {
            "name": "http",
            "phase": "ready",
            "configured": 5,
            "busy": 1,
            "queued": 4,
            "executions": 100,
            "per_second": 3.25,
            "refused": 2,
            "deaths": 1,
            "generation": 2,
            "last_failure": "",
            "next_probe_seconds": None,
            "workers_left_out": 0,
            "workers": [
                {
                    "state": state,
                    "pid": pid,
                    "doing": "GET /shop" if state == "busy" else "",
                    "doing_seconds": 2.5 if state == "busy" else 0.0,
                    "executions": 20,
                    "age_seconds": 90000.0,
                    "memory_bytes": 31_000_000,
                    "cpu_percent": 12.5,
                    "next_try_seconds": 3.0 if state == "waiting" else None,
                }
                for pid, state in (
                    (11, "idle"),
                    (12, "busy"),
                    (13, "starting"),
                    (14, "leaving"),
                    (0, "waiting"),
                )
            ],
        },
        {
            "name": "jobs",
            "phase": "degraded",
            "configured": 1,
            "last_failure": "exit code 255: no such file",
            "next_probe_seconds": 4.0,
            "workers": [],
        },
    ],
    "jobs": [
        {"Pipeline": "emails", "Driver": "memory", "Ready": True, "Active": 5, "Delayed": 1, "Reserved": 2},
        {"Pipeline": "later", "Driver": "memory", "Ready": False, "Active": 0},
        {"Pipeline": "broken", "Driver": "amqp", "Ready": True, "ErrorMessage": "no broker"},
    ],
    "plugins": [
        {"name": "http", "phase": "healthy", "healthy": True, "reason": "", "waiting_for": []},
        {"name": "otel", "phase": "failed", "healthy": False, "reason": "no collector", "waiting_for": []},
        {"name": "late", "phase": "starting", "healthy": False, "reason": "", "waiting_for": ["otel"]},
    ],
    "deaths": {
        "total": 9,
        "last": [
            {
                "at": "2026-11-24T15:00:00.000+00:00",
                "pool": "http",
                "pid": 99,
                "cause": "exit",
                "text": "exit code 255",
                "doing": "GET /shop",
                "age_seconds": 12.0,
                "executions": 3,
                "last_output": ["Fatal error", "in line 7"],
                "stray_output": "garbage",
                "hint": "echo in the worker",
            }
        ],
    },
    "refusals": {
        "total": 1200,
        "counts": [],
        "last": [
            {
                "at": "2026-11-24T15:00:00.000+00:00",
                "status": 503,
                "reason": "queue full",
                "detail": "4 wait",
                "method": "GET",
                "path": "/shop",
                "queued": 4,
                "held_by": [{"pid": 12, "doing": "GET /slow", "since_seconds": 9.5}],
                "held_by_left_out": 2,
                "more": 40,
            },
            {
                "at": "2026-11-24T14:59:58.000+00:00",
                "status": 503,
                "reason": "queue full",
                "method": "GET",
                "path": "/shop",
                "held_by": [],
                "more": 9,
            },
            {
                "at": "x",
                "status": 400,
                "reason": "bad request",
                "method": "",
                "path": "",
                "held_by": [],
                "more": 0,
            },
        ],
    },
}


class Checker(HTMLParser):
    """Holds a page to what HTML asks for, and to what this page promises."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = [name for name, _ in attributes]
        if len(names) != len(set(names)):
            self.problems.append(f"{tag}: an attribute twice")
        for name, value in attributes:
            if name not in KNOWN:
                self.problems.append(f"{tag}: attribute {name}")
            if name == "id":
                self.ids.append(value or "")
            if name == "href" and not re.match(r"(data:image/svg\+xml,|#[a-z]|[a-z]+$)", value or ""):
                self.problems.append(f"{tag}: href {value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def checked(page: str) -> Checker:
    """Parse a page that must be right."""
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.problems == []
    assert checker.open == []
    assert sorted(set(checker.ids)) == sorted(checker.ids)
    return checker


def page_of(snapshot: dict[str, Any]) -> str:
    """Render the whole page."""
    return render_page(snapshot).decode()


def test_the_page_is_well_formed_and_says_what_there_is() -> None:
    """Tags are balanced, ids unique, nothing comes from elsewhere; every figure is there as text."""
    text = " ".join(" ".join(checked(page_of(SNAPSHOT)).text).split())
    parts = """degraded: jobs|1 234 /s|0.71 ms|1.5 s|Requests, last 10 s|GET /shop|31 MB|1 d 1 h|Fatal error|503 queue full|
    exit code 255: no such file · next try in 4 s|held by 3 busy workers|and 50 more like this|not a request|no collector|
    waits for otel|no broker|emails|paused"""
    for part in map(str.strip, parts.split("|")):
        assert part in text, part


def test_slots_have_a_shape_and_a_text_besides_their_colour() -> None:
    """Who sees no colours reads the sign; who sees nothing hears the text."""
    pools = render_parts(SNAPSHOT)["pools"]
    signs = dict(re.findall(r'<li class="slot (\w+)"[^>]*>(.)</li>', pools))
    assert len(signs) == len(set(signs.values())) == 5
    assert 'aria-label="worker 12: working: GET /shop, for 2.5 s"' in pools
    assert 'aria-label="worker to come: failed, waiting for the next try, in 3 s"' in pools


@pytest.mark.parametrize(
    "snapshot",
    [
        {},
        {"phase": "starting", "waiting_for": ["jobs (starting, 1.2s)"], "http": None, "pools": []},
        {
            "http": {"error": "x"},
            "pools": {"error": "x"},
            "deaths": {"error": "x"},
            "refusals": {"error": "x"},
        },
        {"jobs": {"error": "x"}, "plugins": {"error": "x"}, "http": {"requests": 0, "latency_ms": None}},
    ],
)
def test_a_snapshot_with_nothing_in_it_is_a_page_all_the_same(snapshot: dict[str, Any]) -> None:
    """While the server starts, and where a part cannot be told, the rest is shown."""
    checked(page_of(snapshot))


def poisoned(value: Any, poison: str) -> Any:
    """Put `poison` behind every text of a snapshot."""
    if isinstance(value, dict):
        return {key: poisoned(item, poison) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, poison) for item in value]
    return value + poison if isinstance(value, str) else value


@pytest.mark.parametrize(
    "poison",
    [
        "<script>alert(1)</script>",
        "'\"><img src=x onerror=alert(1)>",
        "</style></script><svg onload=alert(1)>",
        "javascript:alert(1)",
        "\x00\x1b[31m\u202e\ud800&lt;",
        "--><!--",
        "{{7*7}}${7*7}",
    ],
)
def test_whatever_a_worker_says_stays_text(poison: str) -> None:
    """A poison in every text of a snapshot makes no tag, no attribute and no link more than there were."""
    clean = copy.deepcopy(SNAPSHOT)
    # Words that choose a class are compared, never copied; those have to stay for the same page.
    evil = poisoned(clean, poison)
    before, after = checked(page_of(poisoned(clean, "x"))), checked(page_of(evil))
    assert after.tags == before.tags
    assert len(after.ids) == len(before.ids)
    for made in render_parts(evil).values():
        assert "<script" not in made
        assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', made))


def test_the_policy_allows_the_two_inline_blocks_and_nothing_else() -> None:
    """The hashes are those of the blocks as they stand in the page."""
    policy = dict(PAGE_HEADERS)["Content-Security-Policy"]
    page = page_of(SNAPSHOT)
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (block,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert " style=" not in page


def test_texts_are_escaped_for_attributes_and_for_eyes() -> None:
    """Quotes, angles, ampersands; control characters and tricks with the direction of writing become visible."""
    assert esc("<a b='c' d=\"e\">&\x1b\u202e") == "&lt;a b=&#x27;c&#x27; d=&quot;e&quot;&gt;&amp;\ufffd\ufffd"


def luminance(colour: str) -> float:
    """How bright a colour is, as WCAG has it."""
    digits = colour.removeprefix("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (
        part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        *((name, ground) for name in ("ink", "soft") for ground in ("card", "ground", "sunk")),
        *((name, f"{name}-wash") for name in ("good", "busy", "warn", "bad")),
        *(("busy-ink", "busy"), ("busy", "card"), ("bad", "card"), ("good", "card")),
    ],
)
def test_texts_stand_out_from_their_ground(scheme: int, text: str, ground: str) -> None:
    """4.5 to 1 at least, light and dark."""
    block = re.findall(r":root \{(.*?)\}", page_of(SNAPSHOT), re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w+)", block))
    lower, upper = sorted((luminance(colours[text]), luminance(colours[ground])))
    assert (upper + 0.05) / (lower + 0.05) >= 4.5
