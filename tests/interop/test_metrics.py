"""Metrics of a whole server: every name that is promised, clients in Python and PHP, scrapes while workers die, the examples."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from trailboss_worker.sdk import Jobs, Metrics, Resetter, ServiceError

from .conftest import Serve
from .live import PHP_PROGRAMS, Live, clean_environment, free_port, wait_for

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "monitoring"
APPLICATION = """
import os, signal

def application(environ, start_response):
    if environ["PATH_INFO"] == "/die":
        os.kill(os.getpid(), signal.SIGKILL)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ.get("HTTP_TRACEPARENT", "none").encode()]

def handle(task):
    pass
"""
CONFIG = """
version: "3"
rpc: {{listen: "unix://{folder}/rpc.sock"}}
server:
  command: [trailboss-worker, wsgi, "app:application"]
  on_init: {{command: ["{python}", on_init.py], exit_on_error: true}}
http:
  address: "127.0.0.1:{http}"
  middleware: [http_metrics, otel]
  pool: {{num_workers: 2}}
jobs:
  consume: [work]
  pool: {{num_workers: 1, command: [trailboss-worker, jobs, "app:handle"]}}
  pipelines: {{work: {{driver: memory}}}}
status: {{address: "127.0.0.1:{status}"}}
metrics:
  address: "127.0.0.1:{metrics}"
  max_series: 50
  collect:
    Registered_Users: {{type: counter, help: "Users.", labels: [country], namespace: app}}
logs: {{mode: production, output: [server.log]}}
"""

ON_INIT = """
from trailboss_worker.sdk import RPC, Metrics

with RPC.from_environment() as rpc:
    metrics = Metrics(rpc)
    metrics.declare("starts", "counter", "Starts.", namespace="app")
    metrics.add("starts")
"""

#: RoadRunner's names, with their types and labels (without `le`).
ROADRUNNERS = {
    "rr_http_request_total": ("counter", {"status"}),
    "rr_http_request_duration_seconds": ("histogram", {"status"}),
    "rr_http_requests_queue": ("gauge", set()),
    "rr_http_no_free_workers_total": ("counter", set()),
    "rr_http_uptime_seconds": ("counter", set()),
    "rr_jobs_jobs_ok": ("gauge", set()),
    "rr_jobs_jobs_err": ("gauge", set()),
    "rr_jobs_push_ok": ("gauge", set()),
    "rr_jobs_push_err": ("gauge", set()),
    "rr_jobs_requests_total": ("counter", {"job", "driver", "source"}),
    "rr_jobs_push_latency": ("histogram", {"job", "driver", "source"}),
    **{
        f"rr_{plugin}_{name}": ("gauge", labels)
        for plugin in ("http", "jobs")
        for name, labels in {
            "total_workers": set(),
            "workers_memory_bytes": set(),
            "worker_state": {"state", "pid"},
            "worker_memory_bytes": {"pid"},
            "workers_ready": set(),
            "workers_working": set(),
            "workers_invalid": set(),
        }.items()
    },
    **{
        f"process_{name}": (kind, set())
        for name, kind in {
            "cpu_seconds_total": "counter",
            "open_fds": "gauge",
            "max_fds": "gauge",
            "resident_memory_bytes": "gauge",
            "virtual_memory_bytes": "gauge",
            "start_time_seconds": "gauge",
        }.items()
    },
}


class Site:
    """A running server and its three ports."""

    def __init__(self, serve: Serve, folder: Path) -> None:
        (folder / "app.py").write_text(APPLICATION)
        (folder / "on_init.py").write_text(ON_INIT)
        self.http, self.status, self.metrics = free_port(), free_port(), free_port()
        self.server: Live = serve(
            CONFIG.format(
                folder=folder,
                python=sys.executable,
                http=self.http,
                status=self.status,
                metrics=self.metrics,
            )
        )

    def get(self, port: int, path: str, **headers: str) -> str:
        """The body of a page."""
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())

    def scrape(self) -> str:
        """A scrape of the metrics port."""
        return self.get(self.metrics, "/metrics")

    def values(self) -> dict[str, float]:
        """The lines of a scrape by name and label values; names as they are written, for a parser may change them."""
        text = self.scrape()
        assert list(parse_text(text))
        return {
            ",".join((name, *re.findall(r'="([^"]*)"', labels))): float(value)
            for name, labels, value in re.findall(r"^([a-zA-Z_:][\w:]*)(\{.*\})? (\S+)$", text, re.MULTILINE)
        }


@pytest.fixture
def site(serve: Serve, tmp_path: Path) -> Site:
    """A server with everything that has figures."""
    return Site(serve, tmp_path)


def types_and_labels(text: str) -> dict[str, tuple[str, set[str]]]:
    """Each family as it is written: its type, and the labels of its lines without `le`."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in kinds}
    for name, inner in re.findall(r"^([a-zA-Z_:][\w:]*)(\{.*?\})? ", text, re.MULTILINE):
        family = name if name in kinds else re.sub(r"_(bucket|sum|count)$", "", name)
        labels[family] |= set(re.findall(r'(\w+)="', inner)) - {"le"}
    return {name: (kind, labels[name]) for name, kind in kinds.items()}


def promised_names() -> set[str]:
    """The names in the tables of docs/metrics.md."""
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    names: set[str] = set()
    for name in re.findall(r"^\| `([a-z_<>{},]+)`", text, re.MULTILINE):
        names |= {name.replace("<pool>", pool) for pool in ("http", "jobs")} if "<pool>" in name else {name}
    return names


def test_names_types_and_labels(site: Site) -> None:
    """All of RoadRunner's, all of ours: what is documented is scraped, and what is scraped is documented."""
    site.get(site.http, "/")
    with site.server.rpc() as rpc:
        Jobs(rpc).push("work", "job")
    text = site.scrape()
    found = types_and_labels(text)

    assert {name: found.get(name) for name in ROADRUNNERS} == ROADRUNNERS
    assert promised_names() == found.keys() - {"app_registered_users", "app_starts"}
    assert all(family.documentation for family in parse_text(text))
    assert site.get(site.status, "/metrics").count("# TYPE") == text.count("# TYPE")
    openmetrics = site.get(site.metrics, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert len(list(parse_openmetrics(openmetrics))) == len(found)


def test_figures_follow_what_happens(site: Site) -> None:
    """Requests, jobs, deaths and restarts are counted where they belong."""
    for _ in range(3):
        site.get(site.http, "/")
    with pytest.raises(urllib.error.HTTPError, match="502"):
        urllib.request.urlopen(f"http://127.0.0.1:{site.http}/die", b"x", timeout=10).read()
    with site.server.rpc() as rpc:
        Jobs(rpc).push("work", "job")
    wait_for(lambda: site.values()["rr_jobs_jobs_ok"] == 1, "the job done")
    wait_for(lambda: site.values()["rr_http_workers_ready"] == 2, "the worker replaced")
    with site.server.rpc() as rpc:
        Resetter(rpc).reset("http")
    wait_for(lambda: site.values()["trailboss_worker_recycles_total,http,reset"] == 2, "the workers replaced")
    values = site.values()

    expected = {
        "rr_http_request_total,200": 3,
        "rr_http_request_total,502": 1,
        "rr_http_total_workers": 2,
        "trailboss_worker_deaths_total,http,signal": 1,
        "trailboss_pool_restarts_total,http": 1,
        "trailboss_pool_executions_total,http": 3,
        "trailboss_pool_exec_seconds_count,http": 3,
        "trailboss_pool_workers,http,idle": 2,
        "trailboss_pool_workers_configured,http": 2,
        "trailboss_http_refused_total,502": 1,
        "trailboss_jobs_total,work,done": 1,
        "rr_jobs_requests_total,work,memory,single": 1,
        "trailboss_ready": 1,
        "trailboss_gate_open": 1,
        "trailboss_pool_generation,http": 2,
        "app_starts": 1,
    }
    assert {name: values.get(name) for name in expected} == expected
    assert values["trailboss_pool_queue_seconds_count,http"] >= 3
    assert values["rr_http_workers_memory_bytes"] > 1_000_000
    assert values["process_open_fds"] > 5


def test_python_clients(site: Site) -> None:
    """Every verb of the SDK; what is refused says why; a bomb of labels ends at its limit."""
    with site.server.rpc() as rpc:
        metrics = Metrics(rpc)
        metrics.add("registered_users", 2, "se")
        metrics.add("Registered_Users", 1, "se")
        for _ in range(2):
            metrics.declare("heat", "gauge", "Heat.", namespace="app")
        metrics.set("heat", 10)
        metrics.add("heat", 5)
        metrics.sub("heat", 1)
        metrics.declare("wait", "histogram", labels=["where"], buckets=[0.5, 1])
        metrics.observe("wait", 0.7, "db")
        metrics.declare("size", "summary", objectives={0.5: 0.05})
        metrics.observe("size", 3)
        refusals = 0
        for number in range(10_000):
            try:
                metrics.add("registered_users", 1, f"user-{number}")
            except ServiceError as error:
                refusals += "metrics.max_series" in str(error)
        with pytest.raises(ServiceError, match="tried to register existing collector"):
            metrics.declare("heat", "counter", namespace="app")
        values = site.values()
        metrics.unregister("heat")
        with pytest.raises(ServiceError, match="undefined collector heat"):
            metrics.set("heat", 1)

    assert refusals == 10_000 - 49
    expected = {
        "app_registered_users,se": 3,
        "app_heat": 14,
        "wait_bucket,db,0.5": 0,
        "wait_bucket,db,1": 1,
        "wait_count,db": 1,
        "size,0.5": 3,
        "trailboss_metrics_refused_total": 9_951,
    }
    assert {name: values.get(name) for name in expected} == expected
    assert len([name for name in values if name.startswith("app_registered_users,")]) == 50


@pytest.mark.php
def test_php_clients(site: Site, php: str) -> None:
    """What PHP's SDK sends is understood: empty lists, whole numbers, results true, errors with RoadRunner's words."""

    def call(method: str, argument: object) -> tuple[int, str]:
        done = subprocess.run(
            [php, str(PHP_PROGRAMS / "rpc_cli.php"), method, json.dumps(argument)],
            env=clean_environment(RR_RPC=site.server.address),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    collector = {
        "namespace": "",
        "subsystem": "",
        "type": "counter",
        "help": "h",
        "labels": ["a"],
        "buckets": [],
    }
    assert call("metrics.Declare", {"name": "c", "collector": collector}) == (0, "true")
    assert call("metrics.Declare", {"name": "c", "collector": collector}) == (0, "true")
    assert call("metrics.Add", {"name": "c", "value": 1, "labels": ["x"]}) == (0, "true")
    assert call("metrics.Add", {"name": "c", "value": 1.5, "labels": ["x"]}) == (0, "true")
    code, text = call("metrics.Add", {"name": "", "value": 1, "labels": []})
    assert code == 1
    assert "metrics_plugin_add: undefined collector , try first Declare the desired collector" in text
    assert site.values()["c,x"] == 2.5
    assert call("metrics.Unregister", "c") == (0, "true")


def test_scrapes_while_workers_die(site: Site) -> None:
    """Each scrape is whole and can be parsed, whatever happens to the workers meanwhile; counters never go back."""
    stop = threading.Event()

    def kill() -> None:
        while not stop.is_set():
            with site.server.rpc() as rpc:
                answer = rpc.call("informer.Workers", "http")
            assert isinstance(answer, dict)
            for worker in answer["workers"] or ():
                try:
                    os.kill(worker["pid"], signal.SIGKILL)
                except ProcessLookupError:
                    continue
            stop.wait(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    counters: dict[str, float] = {}
    scrapes = 0
    try:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            text = site.scrape()
            scrapes += 1
            assert "trailboss_metrics_failures_total 0\n" in text
            for family in parse_text(text):
                for sample in family.samples:
                    if family.type in ("counter", "histogram") and not sample.name.endswith("_sum"):
                        key = f"{sample.name}{sorted(sample.labels.items())}"
                        assert sample.value >= counters.get(key, 0.0), key
                        counters[key] = sample.value
    finally:
        stop.set()
        killer.join(30)

    assert scrapes > 5
    assert site.values()["trailboss_worker_deaths_total,http,signal"] >= 2


# --- the examples -----------------------------------------------------------------------------------------------------

_WORDS = frozenset({"by", "le", "or", "and", "unless", "without", "on", "ignoring", "vector", "job", "up"})


def metric_names(expression: str) -> set[str]:
    """The names of metrics in an expression, as far as these examples need it."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', "", expression)
    bare = re.sub(r"\b(by|without)\s*\([^)]*\)", "", bare)
    names = set(re.findall(r"[a-zA-Z_][a-zA-Z0-9_]*(?!\s*\()\b", bare))
    calls = set(re.findall(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*\(", bare))
    return {name for name in names - calls - _WORDS if "_" in name}


def expressions_of(value: object) -> Iterator[str]:
    """Every PromQL expression in a document."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "expr" and isinstance(item, str):
                yield item
            elif key == "query" and isinstance(item, str) and item.startswith("label_values("):
                yield item.removeprefix("label_values(").rpartition(",")[0]
            else:
                yield from expressions_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from expressions_of(item)


def test_expressions_of_the_examples_name_what_is_there(site: Site) -> None:
    """Dashboard and alerts use no name, no label and no value that a server does not have."""
    site.get(site.http, "/")
    with site.server.rpc() as rpc:
        Jobs(rpc).push("work", "job")
    lines = {
        re.match(r"[\w:]+", line).group()  # type: ignore[union-attr] # every line begins with a name
        for line in site.scrape().splitlines()
        if not line.startswith("#")
    } | {"trailboss_worker_deaths_total", "trailboss_http_refused_total"}
    dashboard = json.loads((EXAMPLES / "grafana-dashboard.json").read_text("utf-8"))
    alerts = yaml.safe_load((EXAMPLES / "alerts.yml").read_text("utf-8"))
    found = {expression: metric_names(expression) for expression in expressions_of([dashboard, alerts])}

    assert len(found) > 30
    assert {expression: names - lines for expression, names in found.items() if names - lines} == {}
    assert [expression for expression, names in found.items() if not names and "up{" not in expression] == []


def test_the_dashboard_can_be_imported() -> None:
    """What Grafana asks of a file: panels with ids and places that do not overlap, variables before their use."""
    dashboard = json.loads((EXAMPLES / "grafana-dashboard.json").read_text("utf-8"))
    panels = dashboard["panels"]
    places = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        assert place["x"] + place["w"] <= 24
        places |= cells
    variables = {item["name"] for item in dashboard["templating"]["list"]}

    assert dashboard["id"] is None
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(panels))) - {"__rate_interval"} == variables


def test_the_scrape_example_is_one() -> None:
    """Its targets are the default address, and what it drops are the gauges with process ids."""
    example = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text("utf-8"))
    (scrape,) = example["scrape_configs"]
    (rule,) = scrape["metric_relabel_configs"]

    assert scrape["static_configs"] == [{"targets": ["127.0.0.1:2112"]}]
    dropped = {name for name in ROADRUNNERS if re.fullmatch(rule["regex"], name)}
    assert dropped == {name for name, (_, labels) in ROADRUNNERS.items() if "pid" in labels}
    assert (EXAMPLES / example["rule_files"][0]).exists()
