"""Death records: kept, counted, readable for people and machines."""

from __future__ import annotations

import json
from dataclasses import replace

from trailboss.workers.deaths import RECORDS_MAX, DeathRecord, Deaths, quote

FULL = DeathRecord(
    at=1_700_000_000.0,
    pool="jobs",
    pid=4242,
    cause="signal",
    text="signal SIGSEGV (11)",
    exit_code=None,
    signal=11,
    phase="busy",
    doing="job App\\Report id=7",
    age_seconds=12.34,
    executions=56,
    user_seconds=1.5,
    system_seconds=0.25,
    memory_peak_bytes=64 * 1048576,
    last_output=("one", "two"),
    stray_output="PHP Warning",
    hint="a PHP warning printed on stdout",
)


def test_explain_is_for_people() -> None:
    """Everything that helps at three in the morning, one line each, no noise for what is not known."""
    lines = FULL.explain().split("\n")
    assert lines[0].startswith("worker 4242 of pool jobs died at ")
    assert lines[0].endswith(": signal SIGSEGV (11)")
    assert "  cause: signal; it was busy, running job App\\Report id=7" in lines
    assert "  lived 12.3 s, 56 executions" in lines
    assert lines[-3:] == ["  last lines on standard error:", "    one", "    two"]
    failed = DeathRecord(
        0, "jobs", 0, "spawn failed", "cannot start 'x': command not found", None, None, "spawning", "", 0, 0
    )
    text = failed.explain()
    assert text.startswith("a worker of pool jobs could not be started at ")
    assert text.endswith(": cannot start 'x': command not found")
    assert "CPU" not in text
    assert "pid 0" not in text


def test_as_dict_is_json() -> None:
    """The record survives JSON."""
    value = json.loads(json.dumps(FULL.as_dict()))
    assert value["at"] == "2023-11-14T22:13:20.000+00:00"
    assert value["doing"] == "job App\\Report id=7"
    assert value["last_output"] == ["one", "two"]


def test_no_secret_is_shown() -> None:
    """What a worker said before it died is shown without passwords, in the values and in the text for people."""
    secret = "hunter2"
    record = replace(
        FULL,
        text=f"cannot start 'php worker.php --password={secret}'",
        doing=f"GET /?token={secret}",
        last_output=(f"PDO: mysql://root:{secret}@db/app refused", f"API_KEY={secret}", "plain"),
        stray_output=f"secret: {secret}",
        hint=f"--token {secret}",
        stack=(f"connect('redis://:{secret}@cache')",),
    )
    value = record.as_dict()
    assert secret not in json.dumps(value)
    assert value["last_output"] == ["PDO: mysql://***@db/app refused", "API_KEY=***", "plain"]
    assert "    API_KEY=***" in str(value["explanation"])


def test_the_last_records_are_kept_and_all_are_counted() -> None:
    """A hundred records, counters for ever."""
    deaths = Deaths()
    for number in range(RECORDS_MAX + 50):
        pool = "jobs" if number % 2 else "http"
        deaths.add(DeathRecord(0, pool, number, "exit", "exit code 1", 1, None, "ready", "", 0, 0))
    assert [record.pid for record in deaths.records()] == list(range(50, RECORDS_MAX + 50))
    assert deaths.total() == RECORDS_MAX + 50
    assert deaths.total("jobs") == (RECORDS_MAX + 50) // 2
    assert deaths.total("none") == 0


def test_quote_is_one_line_of_ascii() -> None:
    """No byte of a worker can break a log line or a terminal."""
    text = quote(bytes(range(256)))
    assert text.isascii()
    assert text.isprintable()
    assert quote(b"a\nb\x1b[0m\xff") == "a\\nb\\x1b[0m\\xff"
