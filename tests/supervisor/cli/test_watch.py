"""The live table of workers: what is drawn from an answer, at which size, and what keys mean. Pure."""

from __future__ import annotations

import io
from typing import Any

import pytest

from trailboss.cli.watch import View, keys_of


def answer(*, done: int = 100, cpu: float = 1.0, pools: int = 2, workers: int = 3) -> dict[str, Any]:
    """An answer of trailboss.Workers."""
    rows = [
        {
            "slot": number,
            "state": "busy" if number == 2 else "idle",
            "pid": 100 + number,
            "doing": "GET /report" if number == 2 else "",
            "doing_seconds": 3.25 if number == 2 else 0.0,
            "executions": 7,
            "age_seconds": 3700.0,
            "memory_bytes": 31_000_000,
            "cpu_seconds": cpu,
            "next_try_seconds": None,
        }
        for number in range(1, workers + 1)
    ]
    named = [f"pool{number}" for number in range(pools)]
    return {
        "version": "1.2.3",
        "phase": "ready",
        "uptime_seconds": 61.0,
        "pools": [
            {
                "name": name,
                "phase": "ready",
                "busy": 1,
                "configured": workers,
                "queued": 5,
                "executions": done,
                "workers": rows,
            }
            for name in named
        ],
    }


def drawn(view: View, width: int = 80, height: int = 24, now: float = 0.0) -> list[str]:
    """The screen as text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(view.draw(width, height, now))
    return capture.get().splitlines()


def test_a_screen_says_what_each_worker_does() -> None:
    """Busy ones first; rates and CPU are those since the answer before."""
    view = View()
    view.take(answer(), (), 10.0)
    view.take(answer(done=150, cpu=1.5), (), 11.0)
    lines = drawn(view)
    assert lines[0] == "Trailboss 1.2.3  ready  up 1m01s"
    assert lines[3].split() == ["▸", "pool0", "ready", "1", "of", "3", "busy", "5", "50.0", "150", "0"]
    assert lines[7].split() == ["102", "▶", "busy", "GET", "/report", "3.2s", "7", "31", "MB", "50", "1h01m"]
    assert lines[8].split() == ["101", "○", "idle", "7", "31", "MB", "50", "1h01m"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 14), (200, 60), (40, 10), (80, 5)])
@pytest.mark.parametrize(("pools", "workers"), [(0, 0), (1, 1), (2, 300), (40, 16)])
def test_a_screen_is_never_exceeded(width: int, height: int, pools: int, workers: int) -> None:
    """At any size no line is too long, and, where there is room at all, none too many; what is left out is said."""
    view = View()
    view.take(answer(pools=pools, workers=workers), (), 1.0)
    view.chosen = max(0, pools - 1)
    lines = drawn(view, width, height)
    assert max(map(len, lines)) <= width
    if height >= 14:
        assert len(lines) <= height
        assert "reset pool" in lines[-1]
        assert (workers <= height) or any("more" in line for line in lines)
        assert pools == 0 or any(line.startswith("▸") and f"pool{pools - 1}" in line for line in lines)


def test_the_choice_stays_with_its_pool() -> None:
    """Another order of the pools, or fewer of them, does not turn a key against the wrong one."""
    view = View()
    view.take(answer(pools=3), (), 1.0)
    view.move(-1)
    assert view.chosen_name == "pool2"
    reordered = answer(pools=3)
    reordered["pools"].reverse()
    view.take(reordered, (), 2.0)
    assert (view.chosen, view.chosen_name) == (0, "pool2")
    view.take(answer(pools=1), (), 3.0)
    assert view.chosen_name == "pool0"
    view.take(answer(pools=0), (), 4.0)
    assert view.chosen_name == ""
    view.move(1)


def test_only_named_pools_are_shown() -> None:
    """As `trailboss workers http`."""
    view = View()
    view.take(answer(pools=3), ("pool1",), 1.0)
    assert view.chosen_name == "pool1"


def test_texts_of_workers_stay_on_their_line() -> None:
    """Escape sequences and line feeds in what a worker does are no orders to the terminal; markup is text."""
    view = View()
    evil = answer(pools=1, workers=2)
    evil["pools"][0]["workers"][1]["doing"] = "GET /\x1b[2J\n[red]x"
    view.take(evil, (), 1.0)
    view.say("failed: \x1b[31m\nno", "red", 1.0)
    text = "\n".join(drawn(view, now=1.0))
    assert "GET /?[2J?[red]x" in text
    assert "failed: ?[31m?no" in text


def test_a_lost_server_and_messages_are_said() -> None:
    """The reason stands beside the last figures; a message goes after its time."""
    view = View()
    view.take(answer(), (), 1.0)
    view.lost = "Connection refused"
    view.say("pool0 has new workers", "", 1.0, 5.0)
    assert "no answer: Connection refused; trying again" in drawn(view, 120)[0]
    assert "pool0 has new workers" in drawn(view, now=5.9)[-2]
    assert "pool0 has new workers" not in drawn(view, now=6.1)[-2]


def test_a_pool_without_workers_says_why() -> None:
    """Slots that wait for their next try, and above the keys what the last one died of."""
    view = View()
    broken = answer(pools=1, workers=1)
    broken["pools"][0].update(phase="degraded", last_failure="exit code 255: no such file")
    broken["pools"][0]["workers"][0].update(state="waiting", pid=0, next_try_seconds=4.6)
    view.take(broken, (), 1.0)
    lines = drawn(view)
    assert lines[6].split() == ["-", "✕", "waiting", "next", "try", "in", "5", "s"]
    assert lines[-2].strip() == "exit code 255: no such file"


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["quit"]),
        (b"\x1b[A\x1b[B", ["up", "down"]),
        (b"\x1bOAjk", ["up", "down", "up"]),
        (b"r+-=", ["reset", "add", "remove", "add"]),
        (b"\x1b[1;5Ar", ["reset"]),
        (b"\x1b", []),
        (b"\x1b[", []),
        (b"xyz\xff\x00", []),
    ],
)
def test_keys(data: bytes, keys: list[str]) -> None:
    """Known keys, also several at once; sequences that mean nothing are swallowed whole."""
    assert keys_of(data) == keys
