"""Tables, ages and sizes; texts from outside stay in their cell."""

from __future__ import annotations

from trailboss.cli.jobs import dead_row, read_headers
from trailboss.cli.output import clean, human_age, human_bytes, table_text
from trailboss.cli.state import headline, plugin_row, pool_row
from trailboss.cli.why import explain, explain_refusal, refusals_in_all
from trailboss.cli.workers import job_rows, worker_rows

NOW = 1_795_520_487.0


def test_plain_table_has_one_line_a_row() -> None:
    """Columns are as wide as their widest cell; control characters cannot add lines."""
    expected = "Workers of [a]:\nPID  STATUS\n1    ready\n23   bad?name"
    assert expected == table_text("Workers of [a]:", ["PID", "STATUS"], [[1, "ready"], [23, "bad\nname"]])


def test_texts_from_outside_cannot_drive_the_terminal() -> None:
    """Escapes, line ends and direction marks are shown as question marks."""
    assert clean("\x1b[2Jx\r\n\u202ey") == "?[2Jx???y"


def test_ages_and_sizes_read_as_people_say_them() -> None:
    """The largest whole unit, and the plural."""
    assert human_age(int((NOW - 1) * 1e9), NOW) == "1 second ago"
    assert human_age(int((NOW - 7200) * 1e9), NOW) == "2 hours ago"
    assert human_age(int((NOW + 5) * 1e9), NOW) == "0 seconds ago"
    assert human_bytes(31_000_000) == "31.0 MB"
    assert human_bytes(12) == "12 B"


def test_worker_rows_are_sorted_by_process_id() -> None:
    """RoadRunner's columns, from the keys of informer.Workers."""
    created = int((NOW - 61) * 1e9)
    workers = [
        {
            "pid": 9,
            "statusStr": "working",
            "numExecs": 5,
            "memoryUsage": 18_700_000,
            "CPUPercent": 1.234,
            "created": created,
        },
        {
            "pid": 8,
            "statusStr": "ready",
            "numExecs": 0,
            "memoryUsage": 0,
            "CPUPercent": 0,
            "created": created,
        },
    ]
    assert worker_rows(workers, NOW) == [
        [8, "ready", 0, "0 B", "0.00", "1 minute ago"],
        [9, "working", 5, "18.7 MB", "1.23", "1 minute ago"],
    ]


def test_job_rows_say_ready_or_paused() -> None:
    """The status column has RoadRunner's two words."""
    row = {
        "Pipeline": "b",
        "Driver": "memory",
        "Queue": "b",
        "Active": 1,
        "Delayed": 2,
        "Reserved": 3,
        "Ready": True,
    }
    paused = {**row, "Pipeline": "a", "Ready": False}
    assert job_rows([row, paused]) == [
        ["PAUSED/STOPPED", "a", "memory", "b", 1, 2, 3],
        ["READY", "b", "memory", "b", 1, 2, 3],
    ]


def test_state_in_one_line_and_rows() -> None:
    """Phase, gate, age, what is waited for; per plugin and pool the same."""
    state = {
        "version": "1",
        "phase": "starting",
        "gate": "closed",
        "uptime_seconds": 1.24,
        "ready": False,
        "waiting_for": ["jobs (starting, 1.2s)"],
    }
    expected = (
        "Trailboss 1: not ready, phase starting, gate closed, up 1.2s; waiting for jobs (starting, 1.2s)"
    )
    assert expected == headline(state)
    plugin = {"name": "kv", "phase": "failed", "since_seconds": 3, "optional": True, "reason": "no disk"}
    assert plugin_row(plugin) == ["kv (optional)", "failed", "3s", "", "", "no disk"]
    pool = {"name": "jobs", "phase": "degraded", "ready": 0, "quorum": 1, "last_failure": "exit code 3"}
    assert pool_row(pool) == ["jobs", "degraded", 0, 1, "", "", "", "", "", "", "exit code 3"]


def test_a_death_is_explained_in_lines() -> None:
    """Cause, what it ran, its output; nothing of it can add lines of its own."""
    death = {
        "at": "2026-11-24T11:41:27.123+00:00",
        "pool": "jobs",
        "pid": 17,
        "cause": "signal",
        "text": "killed by SIGKILL",
        "phase": "busy",
        "doing": "job greet\nid=1",
        "age_seconds": 1.5,
        "executions": 3,
        "user_seconds": 0.1,
        "system_seconds": 0.2,
        "last_output": ["Fatal error"],
        "hint": "a stray echo",
    }
    lines = explain(death).splitlines()
    assert lines[0].startswith("worker 17 of pool jobs died at 2026-11-24 ")
    assert lines[1:] == [
        "  cause: signal; it was busy, running job greet?id=1",
        "  lived 1.5 s, 3 executions, CPU 0.1 s user, 0.2 s system",
        "  likely: a stray echo",
        "  last lines on standard error:",
        "    Fatal error",
    ]


def test_headers_may_repeat_and_hold_equals_signs() -> None:
    """NAME=VALUE, split at the first equals sign."""
    assert read_headers(["a=1", "a=2", "b=x=y"]) == {"a": ["1", "2"], "b": ["x=y"]}


def test_dead_letter_row() -> None:
    """A dead letter without a time has an empty cell."""
    assert dead_row({"pipeline": "p", "job": "j", "id": "1", "attempts": 5, "reason": "died"}) == [
        "",
        "p",
        "j",
        "1",
        5,
        "died",
    ]


def test_a_refusal_is_explained_on_lines_of_its_own() -> None:
    """Reason, request, queue, who held the workers, how many more; what a client has sent cannot draw on the terminal."""
    row = {
        "at": "2026-11-24T15:00:00.000+00:00",
        "status": 503,
        "reason": "queue full",
        "detail": "7 executions wait",
        "method": "GET",
        "path": "/a\x1b[2J\nb",
        "queued": 7,
        "held_by": [{"pid": 12, "doing": "POST /slow", "since_seconds": 8.25}],
        "held_by_left_out": 3,
        "more": 41,
    }
    head, *rest = explain_refusal(row).split("\n")
    assert head.endswith("  503 queue full: GET /a?[2J?b")
    assert rest == [
        "  7 executions wait",
        "  7 waited in the queue",
        "  the workers were busy with:",
        "    POST /slow  for 8.25 s  (pid 12)",
        "    and 3 more",
        "  41 more like this within the same second",
    ]
    assert explain_refusal({"at": "x", "status": 400, "reason": "bad"}) == (
        "x  400 bad: a request that was not understood"
    )


def test_refusals_are_summed_up() -> None:
    """By status and reason; many kinds are not all listed."""
    counts = [{"status": 400, "reason": f"r{number}", "count": 20 - number} for number in range(10)]
    line = refusals_in_all({"total": 155, "counts": counts})
    assert line.startswith("since the start 155 refused: 20 x 400 r0, 19 x 400 r1, ")
    assert line.endswith(", 13 x 400 r7, 2 other reasons")
