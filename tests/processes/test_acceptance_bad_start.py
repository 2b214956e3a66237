"""Servers that cannot start: one error that names key, value and remedy, the documented exit code, soon, and nothing left."""

# ruff: noqa: ASYNC240  the other side is a process: it is asked by files, /proc and commands
from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from live_server import PATIENCE, PHP_WORKER, PYTHON_WORKER, configuration, serving

pytestmark = pytest.mark.timeout(60)

Config = dict[str, Any]


def rpc_port_in_use(config: Config, folder: Path) -> tuple[str, ...]:
    port = occupied()
    config["rpc"]["listen"] = f"tcp://127.0.0.1:{port}"
    return "rpc.listen", f"127.0.0.1:{port}", "in use"


def rpc_socket_in_use(config: Config, folder: Path) -> tuple[str, ...]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/rpc.sock")
    listener.listen()
    held.append(listener)
    return "rpc.listen", f"{folder}/rpc.sock", "another"


def rpc_socket_unwritable(config: Config, folder: Path) -> tuple[str, ...]:
    config["rpc"]["listen"] = "unix:///proc/no/rpc.sock"
    return "rpc.listen", "/proc/no/rpc.sock"


def rpc_socket_is_a_file(config: Config, folder: Path) -> tuple[str, ...]:
    (folder / "rpc.sock").write_text("precious")
    return "rpc.listen", f"{folder}/rpc.sock"


def rpc_socket_too_long(config: Config, folder: Path) -> tuple[str, ...]:
    config["rpc"]["listen"] = f"unix://{folder}/{'x' * 120}.sock"
    return "rpc.listen", "107 bytes"


def status_port_in_use(config: Config, folder: Path) -> tuple[str, ...]:
    port = occupied()
    config["status"] = {"address": f"127.0.0.1:{port}"}
    return "status.address", f"127.0.0.1:{port}", "in use"


def user_unknown(config: Config, folder: Path) -> tuple[str, ...]:
    config["server"]["user"] = "nobody-like-this"
    return "server.user", "nobody-like-this"


def group_unknown(config: Config, folder: Path) -> tuple[str, ...]:
    config["server"] |= {"user": "nobody", "group": "no-such-group"}
    return "server.group", "no-such-group"


def command_not_found(config: Config, folder: Path) -> tuple[str, ...]:
    config["server"]["command"] = "no-such-program --at-all"
    return "server.command", "no-such-program"


def pool_command_not_found(config: Config, folder: Path) -> tuple[str, ...]:
    config["jobs"]["pool"]["command"] = "no-such-program --at-all"
    return "jobs.pool.command", "no-such-program"


def command_not_executable(config: Config, folder: Path) -> tuple[str, ...]:
    (folder / "worker").write_text("#!/bin/sh\n")
    config["server"]["command"] = f"{folder}/worker"
    return "server.command", f"{folder}/worker", "ermission"


def command_is_a_folder(config: Config, folder: Path) -> tuple[str, ...]:
    config["server"]["command"] = str(folder)
    return "server.command", str(folder)


def command_without_interpreter(config: Config, folder: Path) -> tuple[str, ...]:
    worker = folder / "worker"
    worker.write_text("#!/no/such/interpreter\n")
    worker.chmod(0o755)
    config["server"]["command"] = str(worker)
    return "server.command", str(worker)


def on_init_not_found(config: Config, folder: Path) -> tuple[str, ...]:
    config["server"]["on_init"] = {"command": "no-such-program", "exit_on_error": True}
    return "server.on_init", "no-such-program"


def python_not_found(config: Config, folder: Path) -> tuple[str, ...]:
    config["server"] |= {"command": "trailboss-worker jobs x:y", "python": "/no/such/python"}
    return "server.python", "/no/such/python"


def relay_port_in_use(config: Config, folder: Path) -> tuple[str, ...]:
    port = occupied()
    config["server"]["relay"] = f"tcp://127.0.0.1:{port}"
    return "server.relay", f"127.0.0.1:{port}", "in use"


def worker_that_fails(config: Config, folder: Path) -> tuple[str, ...]:
    (folder / "worker.py").write_text("import sys; sys.exit('the database is not there')")
    config["server"]["command"] = f"{sys.executable} {folder}/worker.py"
    return "the database is not there", "jobs"


def worker_that_is_silent(config: Config, folder: Path) -> tuple[str, ...]:
    config["server"]["command"] = "sleep 600"
    config["jobs"]["pool"]["boot_timeout"] = "500ms"
    return "jobs", "boot_timeout"


def handler_that_is_missing(config: Config, folder: Path) -> tuple[str, ...]:
    config["server"]["command"] = "trailboss-worker jobs no_such_module:handle"
    return "no_such_module", "jobs"


def php_script_that_is_missing(config: Config, folder: Path) -> tuple[str, ...]:
    config["server"]["command"] = f"php {folder}/no_such_script.php"
    return "no_such_script.php", "jobs"


def log_file_unwritable(config: Config, folder: Path) -> tuple[str, ...]:
    config["logs"]["output"] = ["/proc/no/server.log"]
    return "/proc/no/server.log", "log"


held: list[socket.socket] = []

STARTS: list[Callable[[Config, Path], tuple[str, ...]]] = [
    rpc_port_in_use,
    rpc_socket_in_use,
    rpc_socket_unwritable,
    rpc_socket_is_a_file,
    rpc_socket_too_long,
    status_port_in_use,
    user_unknown,
    group_unknown,
    command_not_found,
    pool_command_not_found,
    command_not_executable,
    command_is_a_folder,
    command_without_interpreter,
    on_init_not_found,
    python_not_found,
    relay_port_in_use,
    worker_that_fails,
    worker_that_is_silent,
    handler_that_is_missing,
    log_file_unwritable,
]


def occupied() -> int:
    """A port of the loopback that somebody else listens on."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    held.append(listener)
    return int(listener.getsockname()[1])


async def fails(folder: Path, config: Config, words: tuple[str, ...], codes: tuple[int, ...]) -> None:
    """The server ends within five seconds with one line that holds `words`; a worker's own words may follow it."""
    try:
        with trio.fail_after(20 * PATIENCE):
            async with serving(folder, config, wait=False, check=False) as server:
                code = await server.wait_exit(5 * PATIENCE)
                lines = server.stderr().strip().splitlines()
                assert code in codes, lines
                assert len(lines) == 1 or "1 boot failed" in lines[0] or "boots failed" in lines[0], lines
                for word in words:
                    assert word in lines[0]
                assert b"started" not in (folder / "stdout").read_bytes()
                assert "Traceback" not in server.stderr()
                await server.expect_nothing_left(1)
    finally:
        while held:
            held.pop().close()


@pytest.mark.parametrize("start", STARTS)
async def test_a_start_that_must_fail(
    start: Callable[[Config, Path], tuple[str, ...]], tmp_path: Path
) -> None:
    """Exit 1 or 2 within 5 s, one line with key and value, nothing left running."""
    config = configuration(tmp_path, PYTHON_WORKER, 2)
    words = start(config, tmp_path)
    await fails(tmp_path, config, words, (1, 2))
    if start is rpc_socket_is_a_file:
        assert (tmp_path / "rpc.sock").read_text() == "precious"


@pytest.mark.php
@pytest.mark.skipif(shutil.which("php") is None, reason="there is no php command on this machine")
async def test_a_php_script_that_is_missing(tmp_path: Path) -> None:
    """PHP's own words are quoted."""
    config = configuration(tmp_path, PHP_WORKER, 2)
    await fails(tmp_path, config, php_script_that_is_missing(config, tmp_path), (1, 2))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("jobs__pool__num_wrokers", 2, ("num_wrokers", "num_workers")),
        ("jobs__pool__allocate_timeout", 60, ("allocate_timeout", "60")),
        ("jobs__pipelines__work__driver", "nosuch", ("driver", "nosuch", "memory")),
        ("kv", {"local": {"driver": "memory"}}, ("kv", "not available")),
        (
            "http",
            {"address": ":8080", "fcgi": {"address": "tcp://0.0.0.0:7921"}},
            ("http.fcgi", "not available"),
        ),
        ("rpc__listen", "http://nowhere", ("rpc.listen", "tcp://127.0.0.1:6001")),
        ("jobs__consume", ["absent"], ("consume", "declare it under jobs.pipelines")),
    ],
)
async def test_a_configuration_that_is_wrong(
    path: str, value: object, words: tuple[str, ...], tmp_path: Path
) -> None:
    """Exit code 2, one line `file:line: key: what; what to do`."""
    config = configuration(tmp_path, PYTHON_WORKER, 2, **{path: value})
    await fails(tmp_path, config, ("trailboss.json:1: ", *words), (2,))


async def test_a_stale_socket_is_taken_over(tmp_path: Path) -> None:
    """A socket file that nobody listens on is a leftover: the start replaces it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/rpc.sock")
    assert os.path.exists(f"{tmp_path}/rpc.sock")
    with trio.fail_after(20 * PATIENCE):
        async with serving(tmp_path, configuration(tmp_path, workers=1)) as server:
            assert isinstance(await server.call("rpc.Version"), str)
