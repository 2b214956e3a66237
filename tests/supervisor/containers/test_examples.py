"""The container examples say what they promise: no root, no shell or init in front, probes and times that fit each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from trailboss.config import Config, LoadRequest, load

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def config() -> Config:
    """The configuration of the image."""
    return load(LoadRequest(path=str(EXAMPLES / "docker/trailboss.yaml")))


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, in order."""
    lines = (EXAMPLES / "docker/Dockerfile").read_text().splitlines()
    return [
        (line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line and line[0] not in "# "
    ]


def documents() -> list[dict[str, Any]]:
    """Objects of the Kubernetes example."""
    return list(yaml.safe_load_all((EXAMPLES / "kubernetes/trailboss.yaml").read_text()))


def test_the_image_has_two_stages_no_root_and_no_init() -> None:
    """The compiler stays in the first stage; the server is process 1, started without a shell."""
    found = instructions()
    starts = [index for index, (name, _) in enumerate(found) if name == "FROM"]
    last = found[starts[-1] :]
    assert len(starts) == 2
    assert not any("gcc" in text for _, text in last)
    assert dict(last)["USER"] == "10001:10001"
    command = json.loads(dict(last)["ENTRYPOINT"]) + json.loads(dict(last)["CMD"])
    assert command == ["trailboss", "serve", "-c", "trailboss.yaml"]
    copied = [text.split()[:-1] for name, text in last if name == "COPY" and not text.startswith("--from")]
    assert all((EXAMPLES.parent / path).exists() for paths in copied for path in paths)


def test_the_probes_ask_where_the_server_answers() -> None:
    """Ports of the deployment are those of the configuration; readiness and liveness ask for what they mean."""
    container = documents()[0]["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    loaded = config()
    assert loaded.http is not None
    assert loaded.status is not None
    assert loaded.metrics is not None
    assert (f"0.0.0.0:{ports['http']}",) == loaded.http.address
    assert f"0.0.0.0:{ports['status']}" == loaded.status.address
    assert f"0.0.0.0:{ports['metrics']}" == loaded.metrics.address
    asked = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert asked == {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}


def test_there_is_time_to_stop() -> None:
    """Readiness is seen to fail within the drain delay, and the whole stop ends before the kill."""
    spec = documents()[0]["spec"]["template"]["spec"]
    readiness = spec["containers"][0]["readinessProbe"]
    endure = config().endure
    assert readiness["periodSeconds"] * readiness["failureThreshold"] < endure.drain_delay
    assert endure.drain_delay + endure.grace_period + 1 < spec["terminationGracePeriodSeconds"]
    assert spec["securityContext"]["runAsNonRoot"] is True
