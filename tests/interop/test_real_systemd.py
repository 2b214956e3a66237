"""THE UNIT UNDER A REAL SYSTEMD, with its system call filter: start, reload, crash, restart, watchdog, upgrade, stop.

systemd is process 1 of namespaces of its own (tests/support/real_systemd.py). Two services run in it, as
`trailboss systemd unit` has written their units: PHP on addresses that the server binds, Python on a socket unit. A client
asks all the time where no request may be refused.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "support"))

from real_systemd import PATIENCE, PYTHON, Machine, booted, why_not  # noqa: E402  findable by the line above

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(170),
]

CONFIG = """
version: "3"
server: {command: "COMMAND"}
rpc: {listen: "unix:///run/NAME/rpc.sock"}
http: {address: ADDRESS, pool: {num_workers: 2, max_jobs: 200, process: {private_tmp: true}}}
status: {address: "127.0.0.1:STATUS"}
metrics: {address: "127.0.0.1:METRICS"}
logs: {level: info, channels: {http: {level: warn}}}
"""
APPLICATION = """
import os, re

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    status = open("/proc/self/status").read()
    return [re.sub(r"[^\\n]*?(Seccomp|NoNewPrivs|CapEff):\\t(\\w+)", r"\\1=\\2", status).encode()]
"""
#: Asks anew for each request until it is told to end; then it prints what came of it.
CLIENT = """
import http.client, json, select, sys, time
port, path, refused, served, slowest = int(sys.argv[1]), sys.argv[2], [], 0, 0.0
print("asking", flush=True)
while not select.select([sys.stdin], [], [], 0.005)[0]:
    began = time.monotonic()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
        connection.connect()
    except OSError as error:
        refused.append(str(error))
        continue
    try:
        connection.request("GET", path)
        served += connection.getresponse().status == 200
    except OSError:
        pass
    finally:
        connection.close()
        slowest = max(slowest, time.monotonic() - began)
print(json.dumps([served, refused, slowest]))
"""
DROP_IN = f"""
[Service]
Environment=LD_LIBRARY_PATH={PYTHON}/lib PYTHONDONTWRITEBYTECODE=1 PATH=/opt/venv/bin:/usr/bin:/bin
WatchdogSec=3s
StandardOutput=append:/var/log/%N.log
StandardError=append:/var/log/%N.log
[Unit]
DefaultDependencies=no
"""
SOCKET_DROP_IN = "[Unit]\nDefaultDependencies=no\n"
PREPARE = """
for name in php python; do
  (cd /srv/$name && trailboss systemd unit -c /srv/$name/.rr.yaml --name $name --output /etc/systemd/system)
done
"""
SERVICES = {
    "php": ("php -d pcre.jit=1 /opt/tests/php/http_worker.php", "127.0.0.1:8080", 8081, 8082),
    "python": ("trailboss-worker wsgi app:application", "systemd:web", 8181, 8182),
}
PORTS = {"php": 8080, "python": 80}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which both services run."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    files = {"srv/python/app.py": APPLICATION, "srv/client.py": CLIENT}
    for name, (command, address, status, metrics) in SERVICES.items():
        words = {"COMMAND": command, "NAME": name, "ADDRESS": address, "STATUS": status, "METRICS": metrics}
        text = CONFIG
        for word, value in words.items():
            text = text.replace(word, str(value))
        files[f"srv/{name}/.rr.yaml"] = text
        files[f"etc/systemd/system/{name}.service.d/test.conf"] = DROP_IN
    files["etc/systemd/system/python-web.socket.d/test.conf"] = SOCKET_DROP_IN
    with booted(tmp_path_factory.mktemp("systemd"), files, PREPARE) as found:
        found.run("systemctl", "start", "python-web.socket")
        found.run("systemctl", "start", "php.service", "python.service")
        yield found


@pytest.fixture(params=["php", "python"])
def name(request: pytest.FixtureRequest, machine: Machine) -> Iterator[str]:
    """A service that runs, also after the test."""
    if machine.show(request.param, "ActiveState") != "active":
        machine.run("systemctl", "reset-failed", f"{request.param}.service", check=False)
        machine.run("systemctl", "start", f"{request.param}.service")
    yield request.param
    assert machine.show(request.param, "ActiveState") == "active", machine.said()


@contextmanager
def asking(machine: Machine, port: int, path: str = "/") -> Iterator[list[object]]:
    """Ask all the time; afterwards the list has how many were answered with 200, what was refused, and the longest."""
    found: list[object] = []
    command = machine.inside(
        "env", f"LD_LIBRARY_PATH={PYTHON}/lib", "/opt/venv/bin/python", "/srv/client.py", str(port), path
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdin is not None
        try:
            assert client.stdout.readline() == "asking\n"
            yield found
            client.stdin.close()
            found += json.loads(client.stdout.read())
        finally:
            client.kill()


def get(machine: Machine, port: int) -> str:
    """One request."""
    code = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}/', timeout=40).read().decode())"
    return machine.run(
        "env", f"LD_LIBRARY_PATH={PYTHON}/lib", "/opt/venv/bin/python", "-c", code
    ).stdout.strip()


def main_pid(machine: Machine, name: str) -> str:
    """The main process of a service; never 0, which `kill` takes for the group of its caller."""
    pid = machine.show(name, "MainPID")
    assert int(pid) > 1, machine.said()
    return pid


def children(machine: Machine, name: str) -> list[str]:
    """Return processes of the main process of a service."""
    return machine.run("pgrep", "-P", main_pid(machine, name)).stdout.split()


def wait_for_log(machine: Machine, name: str, text: str, times: int = 1) -> None:
    """Wait until the service has written `text`."""
    deadline = time.monotonic() + 30 * PATIENCE
    while machine.run("grep", "-c", text, f"/var/log/{name}.log", check=False).stdout.strip() < str(times):
        assert time.monotonic() < deadline, f"{text}\n{machine.said()}"
        time.sleep(0.05)


def test_it_runs_confined(machine: Machine, name: str) -> None:
    """Server and workers are an ordinary user, have the filter, no capability and no way to more; systemd has its status."""
    get(machine, PORTS[name])
    assert machine.show(name, "StatusText") == "ready"
    for pid in (main_pid(machine, name), *children(machine, name)):
        status = machine.run("cat", f"/proc/{pid}/status").stdout
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status
        assert "CapEff:\t0000000000000000" in status
        assert "Uid:\t990\t990\t990\t990" in status
    assert machine.run("systemctl", "is-active", name).stdout == "active\n"


def test_reload(machine: Machine, name: str) -> None:
    """`systemctl reload` replaces the workers and refuses nothing."""
    before = set(children(machine, name))
    with asking(machine, PORTS[name]) as found:
        machine.run("systemctl", "reload", name)
        wait_for_log(machine, name, "reload done")
    served, refused, _ = found
    assert refused == []
    assert served
    assert len(before & set(children(machine, name))) <= 1  # the guard stays


def test_a_killed_worker_is_replaced(machine: Machine, name: str) -> None:
    """What kills, spawns and watches processes passes the filter."""
    before = set(children(machine, name))
    machine.run("pkill", "-KILL", "-P", main_pid(machine, name), "-f", "http_worker|wsgi")
    deadline = time.monotonic() + 20 * PATIENCE
    while len(set(children(machine, name)) - before) < 2:
        assert time.monotonic() < deadline, machine.said()
        time.sleep(0.05)
    get(machine, PORTS[name])


def test_workers_are_recycled(machine: Machine, name: str) -> None:
    """max_jobs: a worker that has had its share goes and another one comes, all under the filter; its files go with it."""
    before = set(children(machine, name))
    with asking(machine, PORTS[name]) as found:
        deadline = time.monotonic() + 60 * PATIENCE
        while len(set(children(machine, name)) - before) < 2:
            assert time.monotonic() < deadline, machine.said()
            time.sleep(0.1)
    assert found[1] == [], machine.said()
    pid = main_pid(machine, name)
    folders = machine.run("sh", "-c", f"ls -d /proc/{pid}/root/tmp/trailboss-tmp-*/*").stdout.split()
    assert len(folders) in (2, 3)  # one may be on its way


def test_a_crash_refuses_nothing(machine: Machine, name: str) -> None:
    """After SIGKILL the sockets are still open, and the next server, which systemd starts, takes them over."""
    restarts = int(machine.show(name, "NRestarts"))
    with asking(machine, PORTS[name]) as found:
        machine.run("kill", "-KILL", main_pid(machine, name))
        machine.until(name, "NRestarts", str(restarts + 1), 20)
        machine.until(name, "StatusText", "ready", 20)
    assert found[1] == [], machine.said()
    assert machine.run("ss", "-Hltn", f"sport = :{SERVICES[name][2]}").stdout != ""


def test_a_restart_refuses_nothing(machine: Machine, name: str) -> None:
    """`systemctl restart` finishes requests, and who comes meanwhile waits for the new server."""
    pid = main_pid(machine, name)
    with asking(machine, PORTS[name]) as found:
        machine.run("systemctl", "restart", name)
    assert main_pid(machine, name) != pid
    assert found[1] == [], machine.said()


def test_an_upgrade_moves_the_main_process(machine: Machine, name: str) -> None:
    """SIGUSR2: systemd follows to the new server, which has the sockets in the store as its own."""
    pid = main_pid(machine, name)
    with asking(machine, PORTS[name]) as found:
        machine.run("kill", "-USR2", pid)
        deadline = time.monotonic() + 30 * PATIENCE
        while main_pid(machine, name) == pid or machine.run("kill", "-0", pid, check=False).returncode == 0:
            assert time.monotonic() < deadline, machine.said()
            time.sleep(0.05)
    assert found[1] == [], machine.said()
    assert "only permitted for main PID" not in machine.said()
    test_a_crash_refuses_nothing(machine, name)


def test_the_watchdog_ends_a_server_that_stands_still(machine: Machine, name: str) -> None:
    """A stopped process says no WATCHDOG=1; systemd ends it and starts the next."""
    restarts = int(machine.show(name, "NRestarts"))
    machine.run("kill", "-STOP", main_pid(machine, name))
    machine.until(name, "NRestarts", str(restarts + 1), 30)
    machine.until(name, "StatusText", "ready", 20)
    assert f"{name}.service: Watchdog timeout" in machine.said()
    get(machine, PORTS[name])


def test_a_changed_address_leaves_the_store(machine: Machine) -> None:
    """What the configuration has no address for any more is closed at the next start, with one line."""
    stored = machine.show("php", "NFileDescriptorStore")
    machine.run("sed", "-i", "s/8082/8083/", "/srv/php/.rr.yaml")
    machine.run("systemctl", "restart", "php")
    assert machine.run("ss", "-Hltn", "sport = :8082").stdout == ""
    assert machine.run("ss", "-Hltn", "sport = :8083").stdout != ""
    assert machine.show("php", "NFileDescriptorStore") == stored
    lines = [line for line in machine.said().splitlines() if "a stored socket is closed" in line]
    assert [line.count("trailboss-metrics-127.0.0.1%3A8082") for line in lines] == [1]


def test_stop_leaves_nothing(machine: Machine, name: str) -> None:
    """`systemctl stop`: exit code 0, the store is empty, ports of our own are closed, folders are gone."""
    machine.run("systemctl", "stop", name)
    assert machine.show(name, "ActiveState") == "inactive"
    assert machine.show(name, "Result") == "success"
    assert machine.show(name, "ExecMainStatus") == "0"
    assert machine.show(name, "NFileDescriptorStore") == "0"
    if name == "php":
        assert machine.run("ss", "-Hltn", "sport = :8080").stdout == ""
    assert machine.run("test", "-e", f"/run/{name}", check=False).returncode == 1
    assert not machine.run(
        "cat", f"/sys/fs/cgroup/system.slice/{name}.service/cgroup.procs", check=False
    ).stdout
    machine.run("systemctl", "start", name)
    get(machine, PORTS[name])
