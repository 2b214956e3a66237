"""The pure parts of ``tools/bench http``: reading the clients' output, ratios, goals, and what is printed of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[3] / "tools"

WRK = """Running 4s test @ http://127.0.0.1:18080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.90ms    1.21ms  24.70ms   79.20%
    Req/Sec    22.60k     1.15k   24.87k    72.50%
  Latency Distribution
     50%    2.67ms
     75%    3.40ms
     90%  950.00us
     99%    1.05s
  89994 requests in 4.01s, 11.50MB read
  Socket errors: connect 1, read 2, write 0, timeout 3
  Non-2xx or 3xx responses: 94
Requests/sec:  22430.13
Transfer/sec:      2.87MB
"""

H2LOAD = """starting benchmark...
Application protocol: h2

finished in 1.00s, 12345.00 req/s, 1.10MB/s
requests: 12350 total, 12478 started, 12345 done, 12300 succeeded, 45 failed, 45 errored, 0 timeout
status codes: 12300 2xx, 0 3xx, 45 4xx, 0 5xx
"""


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    """The module; tools are no package."""
    spec = importlib.util.spec_from_file_location("bench_http_figures", TOOLS / "bench_http_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sample(
    figures: ModuleType, rate: int, *, cpu: float = 30.0, noise: float = 0.0, errors: int = 0
) -> object:
    """One second at so many requests."""
    load = figures.Load(rate, 1.0, 1.0, 4.0, errors)
    return figures.Sample(load, cpu, 10.0, 50.0, 40.0, noise)


def test_wrk_is_read_with_all_its_units_and_kinds_of_errors(figures: ModuleType) -> None:
    """Requests, seconds, p50 in ms, p99 in s, and every failed request."""
    load = figures.parse_wrk(WRK)
    assert figures.Load(89994, 4.01, 2.67, 1050.0, 100) == load
    assert pytest.approx(load.rate, abs=0.1) == 22442.4


def test_wrk_without_errors_has_none(figures: ModuleType) -> None:
    """The lines about errors are missing then."""
    clean = "\n".join(line for line in WRK.splitlines() if "errors" not in line and "Non-2xx" not in line)
    assert figures.parse_wrk(clean).errors == 0


@pytest.mark.parametrize("text", ["", "unable to connect to 127.0.0.1:1 Connection refused"])
def test_what_is_no_output_of_a_client_is_refused(figures: ModuleType, text: str) -> None:
    """Nothing is made up from an error message."""
    with pytest.raises(ValueError, match="no output of wrk"):
        figures.parse_wrk(text)
    with pytest.raises(ValueError, match="no output of h2load"):
        figures.parse_h2load(text, "")


def test_h2load_is_read_with_the_latencies_of_its_log(figures: ModuleType) -> None:
    """Latencies come from the log; refused requests count as errors."""
    log = "".join(f"{number}\t200\t{number * 10}\n" for number in range(1, 101))
    assert figures.Load(12345, 1.0, 0.51, 1.0, 45) == figures.parse_h2load(H2LOAD, log)


def test_the_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians(figures: ModuleType) -> None:
    """A machine that gets slower in between slows both of one round."""
    assert figures.median_ratio([200, 20, 40], [100, 10, 20]) == 2.0
    assert figures.median_ratio([10, 15], [0, 10]) == 1.5
    assert figures.median_ratio([], []) is None


def test_a_goal_beside_a_peer_is_judged_by_rounds(figures: ModuleType) -> None:
    """More is better for rates, less for all else."""
    goals = (
        figures.Goal(figures.Quantity.RATE, 1.3, figures.NGINX),
        figures.Goal(figures.Quantity.SUPERVISOR, 0.6, figures.NGINX),
    )
    cell = figures.Cell("a cell", "php", 64, goals=goals)
    samples = {
        figures.OURS: [sample(figures, 130), sample(figures, 65)],
        figures.NGINX: [sample(figures, 100, cpu=40), sample(figures, 50, cpu=40)],
    }
    verdicts = figures.judge(cell, samples)
    assert [(verdict.value, verdict.met) for verdict in verdicts] == [(1.3, True), (0.75, False)]


def test_an_absolute_goal_needs_no_peer(figures: ModuleType) -> None:
    """Such as the processor time of the constant cell."""
    cell = figures.Cell("a cell", "php", 64, goals=(figures.Goal(figures.Quantity.SUPERVISOR, 17),))
    (verdict,) = figures.judge(cell, {figures.OURS: [sample(figures, 1, cpu=16.5)]})
    assert verdict.met is True
    assert str(verdict) == "supervisor CPU: 16.5 µs, goal ≤ 17 µs: met"


def test_roadrunner_is_worked_out_through_nginx_where_it_is_not_there(figures: ModuleType) -> None:
    """nginx + php-fpm of this run, times what RoadRunner did beside it when both were measured."""
    goals = (figures.Goal(figures.Quantity.RATE, 2.0, figures.ROADRUNNER),)
    cell = figures.Cell("a cell", "php", 64, "plain", "constant 64", goals)
    samples = {figures.OURS: [sample(figures, 45_786)], figures.NGINX: [sample(figures, 18_892)]}
    (verdict,) = figures.judge(cell, samples)
    assert pytest.approx(verdict.value) == 2.0
    assert verdict.estimated
    assert "~2.00x" in str(verdict)


def test_roadrunner_itself_wins_over_the_estimate(figures: ModuleType) -> None:
    """Where RR_BIN names one it is what counts."""
    goals = (figures.Goal(figures.Quantity.RATE, 2.0, figures.ROADRUNNER),)
    cell = figures.Cell("a cell", "php", 64, "plain", "constant 64", goals)
    samples = {
        figures.OURS: [sample(figures, 300)],
        figures.NGINX: [sample(figures, 100)],
        figures.ROADRUNNER: [sample(figures, 100)],
    }
    (verdict,) = figures.judge(cell, samples)
    assert (verdict.value, verdict.estimated) == (3.0, False)


def test_without_a_peer_nobody_can_tell(figures: ModuleType) -> None:
    """Neither met nor missed, and the table says why."""
    cell = figures.Cell("a cell", "wsgi", 64, goals=(figures.Goal(figures.Quantity.RATE, 3, "gunicorn"),))
    (verdict,) = figures.judge(cell, {figures.OURS: [sample(figures, 1)]})
    assert verdict.met is None
    assert "gunicorn was not measured" in str(verdict)


def test_the_table_shows_every_server_the_goals_and_the_noise(figures: ModuleType) -> None:
    """What a reader of a busy machine's figures has to know stands beside them."""
    goals = (figures.Goal(figures.Quantity.RATE, 1.3, figures.NGINX),)
    cell = figures.Cell("constant PHP worker, 64 connections", "php", 64, goals=goals)
    samples = {
        figures.OURS: [sample(figures, 20_000, noise=0.8)],
        figures.NGINX: [sample(figures, 10_000, noise=0.8, errors=7)],
    }
    lines = figures.render(cell, samples).splitlines()
    assert lines[0] == "constant PHP worker, 64 connections"
    assert lines[2].split() == [
        "Trailboss",
        "20,000",
        "1.00",
        "4.00",
        "30.0",
        "µs",
        "10.0",
        "µs",
        "50+40",
        "0",
    ]
    assert lines[3].split()[-1] == "7"
    assert "goal ≥ 1.3x: met" in lines[4]
    assert "0.8 cores" in lines[5]


def test_the_summary_names_what_is_missed_and_what_failed(figures: ModuleType) -> None:
    """An error is never lost in a long table."""
    goals = (figures.Goal(figures.Quantity.RATE, 1.3, figures.NGINX),)
    cell = figures.Cell("a cell", "php", 64, goals=goals)
    samples = {figures.OURS: [sample(figures, 100)], figures.NGINX: [sample(figures, 100)]}
    text = figures.summary({"a cell": figures.judge(cell, samples)}, {"a cell": 3, "other": 0})
    assert text.splitlines() == [
        "0 of 1 goals met",
        "  missed: a cell: requests/s of nginx + php-fpm's: 1.00x, goal ≥ 1.3x: MISSED",
        "  ERRORS: a cell: 3 requests failed",
    ]


def test_the_figures_for_files_are_json(figures: ModuleType) -> None:
    """Rounds, medians and goals of a cell."""
    cell = figures.Cell("a cell", "php", 64, goals=(figures.Goal(figures.Quantity.SUPERVISOR, 17),))
    told = json.loads(json.dumps(figures.as_json(cell, {figures.OURS: [sample(figures, 100)]})))
    assert told["servers"]["Trailboss"]["median"]["rate"] == 100
    assert [goal["met"] for goal in told["goals"]] == [False]


def test_a_row_in_markdown_marks_what_is_missed(figures: ModuleType) -> None:
    """The table of the documentation comes from the same figures."""
    goals = (
        figures.Goal(figures.Quantity.RATE, 1.3, figures.NGINX),
        figures.Goal(figures.Quantity.SUPERVISOR, 17),
        figures.Goal(figures.Quantity.P99, 0.5, "gunicorn"),
    )
    cell = figures.Cell("a cell", "php", 64, goals=goals)
    samples = {figures.OURS: [sample(figures, 200)], figures.NGINX: [sample(figures, 100)]}
    assert figures.as_markdown(cell, samples) == (
        "| a cell | 200 | 4.00 | 30.0 + 10.0 | nginx + php-fpm: 2.00x, 30 + 10 µs | "
        "nginx + php-fpm 2.00x (≥ 1.3), **CPU 30 (≤ 17)**, p99 gunicorn: not compared |"
    )
