"""The report and the terminal's text, made from a run that never was."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

from rich.console import Console

from trailboss.chaos.plan import Injection, Kind, Plan, Stage, make_plan
from trailboss.chaos.report import render_report
from trailboss.chaos.screen import as_json, seconds_text, shown
from trailboss.chaos.verdict import Done, Outcome, Reply, Seen, Verdict, judge

HOSTILE = "<script>alert(1)</script>"


def ran(note: str = "") -> tuple[Plan, Seen, Verdict]:
    """A plan, what was seen, and the verdict; with `note` a pool that never became whole."""
    plan = make_plan(11, "all", ["http", "jobs"], 45, system_calls=True)
    seen = Seen(seconds=40.0, starts=[1.0], exits=[0], down=[(0, 1)])
    for number, kind in enumerate(Kind):
        seen.done.append(Done(Injection(Stage.STORM, kind, "http", at=0.5), number + 1.0, 0.4, victims=1))
    seen.replies = [Reply("http", at / 10, 0.01, Outcome.ANSWERED) for at in range(400)]
    seen.replies += [Reply("rpc", 1, 0.01, Outcome.ANSWERED), Reply("http", 2, 0.2, Outcome.WORKER, "502")]
    seen.recycled = 2
    seen.causes["oom"] = 1
    if note:
        seen.done.append(Done(Injection(Stage.STORM, Kind.KILL, "http"), 20.0, None, note=note))
    return plan, seen, judge(seen, has_http=True, has_jobs=False)


def page(note: str = "") -> str:
    """The report."""
    plan, seen, verdict = ran(note)
    return render_report(plan, seen, verdict, [(Stage.STORM, 0, 40)], [HOSTILE], f"trailboss chaos {HOSTILE}")


class Outline(HTMLParser):
    """Checks that tags are closed in order, and keeps the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_well_formed_and_needs_nothing() -> None:
    """Tags are closed in order; there is no address in it, no script, and nothing to load."""
    text = page()
    outline = Outline()
    outline.feed(text)

    assert outline.open == []
    assert "✓ Passed" in outline.text
    assert not re.search(r"https?:|src=|href=|url\(|@import|<script", text)


def test_texts_from_outside_stay_texts() -> None:
    """Notes, changes and the command line are escaped."""
    assert HOSTILE not in page(note=HOSTILE)
    assert "&lt;script&gt;" in page(note=HOSTILE)


def test_every_injection_is_a_bar_with_a_text() -> None:
    """Each thing that was done is in the timeline, with what it was."""
    _, seen, _ = ran()
    text = page()

    assert all(
        f"{done.injection.describe()}, whole again" in text.replace("&#x27;", "'") for done in seen.done
    )


def test_a_failed_run_names_what_is_broken() -> None:
    """Report, terminal and JSON agree on the invariant that does not hold."""
    plan, seen, verdict = ran(note="1 of 2 workers")
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115  closed below
    console.print(shown(verdict))
    text = console.export_text()
    console.file.close()
    document = json.loads(json.dumps(as_json(plan, seen, verdict, [])))

    assert "✗ Failed" in page(note="1 of 2 workers")
    assert "FAIL  pools whole (1 of" in text
    assert "1 of 2 workers" in text
    assert document["passed"] is False
    assert [row["name"] for row in document["invariants"] if not row["holds"]] == ["pools whole"]
    assert len(seen.done) == len(document["injections"])


def test_a_run_that_was_ended_says_so() -> None:
    """Neither passed nor failed: what was not looked at has a sign of its own, in report and terminal."""
    plan, seen, _ = ran()
    seen.exits.clear()
    seen.done.append(Done(Injection(Stage.STORM, Kind.KILL, "http"), 30.0, over=False))
    verdict = judge(seen, has_http=True, has_jobs=False, interrupted=True)
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115  closed below
    console.print(shown(verdict))
    text = console.export_text()
    console.file.close()
    html = render_report(plan, seen, verdict, [(Stage.STORM, 0, 40)], [], "trailboss chaos")

    assert "INTERRUPTED  nothing broken so far" in text
    assert "○   exit code" in text
    assert "Interrupted: nothing broken so far" in html
    assert "the run was ended in the middle of it" in html
    assert as_json(plan, seen, verdict, [])["passed"] is False


def test_times() -> None:
    """Times are read as people say them."""
    assert [seconds_text(value) for value in (0.0123, 0.9999, 5.04, None)] == [
        "12 ms",
        "1.00 s",
        "5.04 s",
        "never",
    ]
