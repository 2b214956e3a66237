"""What a private instance changes of a configuration."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Sequence
from pathlib import Path

from trailboss.chaos.instance import Privacy, free_port, privacy_of
from trailboss.config import Config, LoadRequest, load

FILE = """
version: "3"
rpc: {listen: "tcp://127.0.0.1:6001", enabled: false}
server: {command: "php worker.php", relay: "tcp://127.0.0.1:6009"}
http:
  address: "0.0.0.0:80"
  ssl: {address: "0.0.0.0:443", cert: c.pem, key: k.pem}
  pool: {num_workers: 3, supervisor: {exec_ttl: 2s}}
jobs:
  consume: [a]
  pool: {num_workers: 2}
  pipelines: {a: {driver: memory}, b: {driver: memory}}
status: {address: "0.0.0.0:2114"}
metrics: {address: "0.0.0.0:2112"}
logs:
  output: [/var/log/app.log]
  channels:
    http: {output: [/var/log/access.log]}
    jobs: {file_logger_options: {log_output: /var/log/jobs.log}}
"""


def loaded(folder: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration above, with overrides."""
    path = folder / "trailboss.yaml"
    path.write_text(FILE)
    return load(LoadRequest(path=str(path), overrides=tuple(overrides)))


def private(folder: Path, given: Sequence[str] = (), *, system_calls: bool = False) -> Privacy:
    """How the private instance differs; ports count from 40001."""
    ports = itertools.count(40001)
    return privacy_of(loaded(folder, given), "/run/x", given, lambda: next(ports), system_calls=system_calls)


def changed(folder: Path, privacy: Privacy, given: Sequence[str] = ()) -> Config:
    """The configuration that the private instance has."""
    return loaded(folder, [*privacy.limits, *given, *privacy.addresses])


def test_no_address_and_no_log_stays(tmp_path: Path) -> None:
    """Every listener is on loopback or in the folder, and every log too."""
    config = changed(tmp_path, private(tmp_path))
    assert config.http is not None
    assert config.http.ssl is not None
    assert config.status is not None
    assert config.metrics is not None
    assert config.server is not None
    assert config.rpc.enabled

    assert config.rpc.listen == "unix:///run/x/rpc.sock"
    assert config.http.address == ("127.0.0.1:40001",)
    assert config.http.ssl.address == ("127.0.0.1:40002",)
    assert config.status.address == "127.0.0.1:40003"
    assert config.metrics.address == "127.0.0.1:40004"
    assert config.server.relay == "unix:///run/x/relay.sock"
    assert config.logs.output == ("/run/x/server.log",)
    assert "/var/log" not in repr(config.logs)


def test_limits_become_short_and_quarantine_off(tmp_path: Path) -> None:
    """A frozen worker is found out within seconds; a limit that is shorter still stays."""
    config = changed(tmp_path, private(tmp_path))
    assert config.http is not None
    assert config.jobs is not None

    assert (config.http.pool.supervisor.exec_ttl, config.jobs.pool.supervisor.exec_ttl) == (2.0, 3.0)
    assert (config.http.pool.boot_timeout, config.jobs.pool.boot_timeout) == (5.0, 5.0)
    assert (config.http.pool.quarantine.deaths, config.jobs.pool.quarantine.deaths) == (0, 0)


def test_limits_of_the_command_line_stay(tmp_path: Path) -> None:
    """Who says a limit with -o means it; an address is ours all the same."""
    given = ["jobs.pool.supervisor.exec_ttl=20s", "http.address=0.0.0.0:99"]
    privacy = private(tmp_path, given)
    config = changed(tmp_path, privacy, given)
    assert config.http is not None
    assert config.jobs is not None

    assert 20.0 == config.jobs.pool.supervisor.exec_ttl == privacy.exec_ttl["jobs"]
    assert config.http.address == ("127.0.0.1:40001",)


def test_what_is_told(tmp_path: Path) -> None:
    """Every change is named, and what the run has to know is there."""
    privacy = private(tmp_path)

    assert len(privacy.limits) + len(privacy.addresses) == len(privacy.told)
    assert privacy.pools == {"http": 3, "jobs": 2}
    assert privacy.pipelines == ("a",)
    assert privacy.gated == [("informer.Workers", "http"), ("informer.Workers", "jobs"), ("jobs.Books", True)]


def test_workers_by_a_script_for_system_calls(tmp_path: Path) -> None:
    """With system calls each pool's command is started by the script in the folder."""
    config = changed(tmp_path, private(tmp_path, system_calls=True))
    assert config.http is not None

    assert tuple(config.http.pool.command) == ("/run/x/traced_worker", "php", "worker.php")


def test_what_the_memory_stage_has_to_know(tmp_path: Path) -> None:
    """The commands behind which our script is put, and the limits that the user has set."""
    given = [
        "jobs.pool.command=php,a,b",
        "http.pool.supervisor.max_worker_memory=128",
        "http.pool.supervisor.memory_measure=pss",
    ]
    privacy = private(tmp_path, given, system_calls=True)

    assert privacy.commands["http"] == ("/run/x/traced_worker", "php", "worker.php")
    assert privacy.commands["jobs"] == ("/run/x/traced_worker", "php", "a", "b")
    assert privacy.worker_memory == {"http": 128, "jobs": 0}
    assert privacy.memory_max == {"http": 0, "jobs": 0}
    assert privacy.proportional == {"http"}


def test_a_pool_without_lasting_workers_is_left_out(tmp_path: Path) -> None:
    """In debug mode there is no worker that could be hurt."""
    assert private(tmp_path, ["http.pool.debug=true"]).pools == {"jobs": 2}


def test_ports_are_not_of_those_that_connections_get() -> None:
    """A client that knocks at a server which is not up cannot take its port; and it can be listened at."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {free_port() for _ in range(20)}

    assert len(ports) > 1
    assert not [port for port in ports if low <= port <= high]
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            listener.listen()
