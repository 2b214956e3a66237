"""The unit that `trailboss systemd unit` prints: what it is made from, and what systemd says about it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from trailboss.cli.app import cli
from trailboss.config import LoadRequest, load
from trailboss.systemd.unit import UnitFacts, facts_of, quote, service_unit, socket_unit

PLAIN = """
version: "3"
server: {command: [php, worker.php]}
rpc: {listen: "unix:///run/trailboss/rpc.sock"}
http: {address: 127.0.0.1:8080, pool: {num_workers: 2}}
"""
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def _facts(folder: Path, text: str, user: str = "trailboss", *, for_user_manager: bool = False) -> UnitFacts:
    (folder / ".rr.yaml").write_text(text)
    config = load(LoadRequest(path=str(folder / ".rr.yaml"), environ={}))
    return facts_of(config, "/opt/t/bin/trailboss", name="shop", user=user, for_user_manager=for_user_manager)


def _score(folder: Path, facts: UnitFacts) -> float:
    path = folder / "shop.service"
    path.write_text(service_unit(facts).replace("/opt/t/bin/trailboss", "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr
    assert "Unknown" not in verified.stderr
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = re.search(r"exposure level for shop.service: ([0-9.]+)", done.stdout)
    assert found is not None
    return float(found[1])


@needs_analyze
def test_the_default_unit_is_exposed_little(tmp_path: Path) -> None:
    """At most 1.5 of 10."""
    assert _score(tmp_path, _facts(tmp_path, PLAIN)) <= 1.5


@needs_analyze
@pytest.mark.parametrize(
    ("old", "new", "most"),
    [
        ("127.0.0.1:8080", "0.0.0.0:80", 1.7),
        ("num_workers: 2", "process: {memory_max: 64}", 1.8),
        ("command: [php, worker.php]", "command: [php, worker.php], user: www-data", 3.5),
    ],
)
def test_variants_add_the_least_they_need(tmp_path: Path, old: str, new: str, most: float) -> None:
    """A low port costs a capability, workers of another user a few more."""
    assert _score(tmp_path, _facts(tmp_path, PLAIN.replace(old, new))) <= most


def test_what_is_read_from_the_configuration(tmp_path: Path) -> None:
    """The budget of a stop, folders that are written to, the command line."""
    text = (
        PLAIN + "endure: {grace_period: 45s}\nlogs: {mode: production, output: [/var/log/shop/server.log]}\n"
    )
    unit = service_unit(_facts(tmp_path, text))
    assert "TimeoutStopSec=55s\n" in unit
    assert "TimeoutAbortSec=10s\n" in unit
    assert "ReadWritePaths=-/var/log/shop\n" in unit
    assert f"ExecStart=/opt/t/bin/trailboss serve -c {tmp_path}/.rr.yaml\n" in unit
    assert f"WorkingDirectory={tmp_path}\n" in unit
    assert "User=trailboss\n" in unit
    assert "CapabilityBoundingSet=\n" in unit
    assert "PrivateUsers=yes\n" in unit


def test_a_low_port_needs_one_capability(tmp_path: Path) -> None:
    """And that is all it gets."""
    unit = service_unit(_facts(tmp_path, PLAIN.replace("127.0.0.1:8080", "0.0.0.0:80")))
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n" in unit
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE\n" in unit
    assert "PrivateUsers" not in unit


def test_workers_of_another_user_need_a_server_that_is_root(tmp_path: Path) -> None:
    """No User=, and what starting, ending and paying files to another user takes."""
    unit = service_unit(_facts(tmp_path, PLAIN.replace("worker.php]", "worker.php], user: www-data")))
    assert "User=" not in unit.replace("PrivateUsers=", "")
    assert "CAP_SETUID CAP_SETGID CAP_KILL" in unit
    assert "SystemCallFilter=~@resources\n" in unit


def test_a_pool_of_another_user_does_too(tmp_path: Path) -> None:
    """pool.process.user counts as server.user does."""
    text = PLAIN.replace("num_workers: 2", "process: {user: www-data}")
    assert _facts(tmp_path, text).changes_user


def test_control_groups_are_delegated(tmp_path: Path) -> None:
    """Limits that need control groups have the unit delegate them; without such limits nothing is delegated."""
    unit = service_unit(_facts(tmp_path, PLAIN.replace("num_workers: 2", "process: {memory_max: 64}")))
    assert "Delegate=cpu memory pids\n" in unit
    assert "ProtectControlGroups=no\n" in unit
    plain = service_unit(_facts(tmp_path, PLAIN))
    assert "Delegate" not in plain
    assert "ProtectControlGroups=yes\n" in plain


def test_passed_sockets_have_units(tmp_path: Path) -> None:
    """systemd opens the port, the service waits for it."""
    facts = _facts(tmp_path, PLAIN.replace("127.0.0.1:8080", "systemd:web"))
    assert facts.sockets == (("web", "80"),)
    unit = service_unit(facts)
    assert "Sockets=shop-web.socket\n" in unit
    assert "CAP_" not in unit
    text = socket_unit(facts, *facts.sockets[0])
    assert "FileDescriptorName=web\n" in text
    assert "ListenStream=80\n" in text


def test_a_unit_of_a_users_own_manager(tmp_path: Path) -> None:
    """It has none of what only the system's manager may do."""
    unit = service_unit(_facts(tmp_path, PLAIN, for_user_manager=True))
    assert "User=" not in unit
    assert "ProtectSystem" not in unit
    assert "WantedBy=default.target" in unit


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("plain-word_1.yaml", "plain-word_1.yaml"),
        ("with space", '"with space"'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ('say "hi"', '"say \\"hi\\""'),
        ("", '""'),
        ("back\\slash", "back\\\\slash"),
    ],
)
def test_words_arrive_as_they_are(word: str, text: str) -> None:
    """Spaces, percent signs, dollars and quotes mean nothing to systemd any more."""
    assert quote(word) == text


def test_the_command_writes_files(tmp_path: Path) -> None:
    """--output: one file for the service, one for each socket; where that fails, what to do."""
    (tmp_path / ".rr.yaml").write_text(PLAIN.replace("127.0.0.1:8080", "systemd:web"))
    arguments = ["systemd", "unit", "-c", str(tmp_path / ".rr.yaml"), "--name", "shop"]
    done = CliRunner().invoke(cli, [*arguments, "--output", str(tmp_path)])
    assert done.output.splitlines() == [str(tmp_path / "shop.service"), str(tmp_path / "shop-web.socket")]
    assert (tmp_path / "shop.service").read_text().startswith("# Made by `trailboss systemd unit`")
    failed = CliRunner().invoke(cli, [*arguments, "--output", str(tmp_path / "nowhere")])
    assert failed.exit_code == 1
    assert "choose another --output" in failed.output
    shown = CliRunner().invoke(cli, arguments)
    assert "# ---- shop-web.socket" in shown.output


@pytest.mark.parametrize(
    ("keys", "filters"),
    [
        ("", ["@system-service", "~@privileged @resources"]),
        (", process: {nice: 5}", ["@system-service", "~@privileged"]),
        (", process: {cpu_affinity: 0}", ["@system-service", "~@privileged"]),
        (", process: {io_class: idle, user: root}", ["@system-service"]),
    ],
)
def test_priorities_of_workers_are_allowed(tmp_path: Path, keys: str, filters: list[str]) -> None:
    """Where a pool sets them, the filter leaves the calls for it; otherwise its workers could not even start."""
    text = PLAIN.replace("num_workers: 2}", f"num_workers: 2{keys}}}")
    unit = service_unit(_facts(tmp_path, text))
    assert re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE) == filters
