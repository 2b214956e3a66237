"""Cases that RoadRunner fails, part 2: births and deaths, reloads, calls and strangers, and the server's own end.

Each test is one case from the outside: a real server, real workers, callers that count. `serving` holds it to the rest:
every pool whole, books balanced, no descriptor gained, no traceback, no process left. See also
test_roadrunner_cases_requests.py.
"""

# ruff: noqa: ASYNC240  the other side is a process: it is asked by files, /proc and commands
from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from case_kit import (
    COMMANDS,
    KINDS,
    MOSTLY_PHP,
    MOSTLY_PYTHON,
    ask,
    deaths,
    pids,
    port_of,
    wait_pool,
    web_configuration,
)
from http_server import free_port
from live_server import (
    PATIENCE,
    PHASE_WORKER,
    PHP_WORKER,
    PYTHON_WORKER,
    TESTS,
    Answers,
    CallFailed,
    Client,
    ConnectionGone,
    Server,
    children_of,
    configuration,
    marked,
    push_argument,
    seen,
    serving,
    storm,
    until,
    until_async,
    untyped,
)
from marks import needs_php

from trailboss.chaos.processes import kill_if_there
from trailboss_worker.protocol.control import encode_pid_answer
from trailboss_worker.protocol.frames import JSON
from trailboss_worker.protocol.rpc import encode_request

pytestmark = pytest.mark.timeout(180)

#: Both SDKs; where others cover the second at length, that one in the long tier only.
SDKS = [
    pytest.param(PHP_WORKER, id="php", marks=needs_php),
    pytest.param(PYTHON_WORKER, id="python", marks=pytest.mark.long),
]


def phase_configuration(folder: Path, workers: int) -> dict[str, Any]:
    """Jobs workers written by hand: each takes one line of the file `plan`, and waits for the file `go`."""
    (folder / "plan").touch()
    (folder / "go").touch()
    config = configuration(folder, PHASE_WORKER, workers)
    config["server"]["env"] |= {"KILL_PLAN": f"{folder}/plan", "WAIT_FOR": f"{folder}/go"}
    return config


async def newborn(server: Server, before: set[int]) -> int:
    """The pid of the next child, as soon as it is there."""
    return int(
        await until(
            lambda: next(iter(set(children_of(server.pid)) - before), 0), 5 * PATIENCE, "a new worker", 0.001
        )
    )


# --- births and deaths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", SDKS)
async def test_case_kill_in_the_handshake(command: str, tmp_path: Path) -> None:
    """A worker killed before it has said hello is replaced, whatever it was started for; RoadRunner tries again once a
    second and then gives the slot up for ever. (At every moment and byte: test_worker_start.py.)"""
    config = configuration(tmp_path, command, 2)
    config["server"]["env"]["BOOT_SLEEP_MS"] = "150"
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            before = set(children_of(server.pid))
            os.kill(next(iter(await pids(server, "jobs"))), signal.SIGKILL)
            os.kill(await newborn(server, before), signal.SIGKILL)
            await server.wait_whole(deaths=2)
            await server.push("ack", "job")
            assert (await server.wait_quiet())["done"] == 1
            found = await deaths(server, "jobs")
    assert [death["cause"] for death in found] == ["signal", "signal"]
    assert sorted(death["phase"] == "ready" for death in found) == [False, True]


async def test_case_handshake_never_or_late(tmp_path: Path) -> None:
    """A worker that says hello late is used, one that says it too late or never is killed and reaped; RoadRunner abandons
    both, and they live for ever."""
    config = phase_configuration(tmp_path, 2)
    config["jobs"]["pool"]["boot_timeout"] = "400ms"
    go, plan = tmp_path / "go", tmp_path / "plan"
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            number = 0

            async def born_over(order: str) -> int:
                nonlocal number
                await server.push("ack", f"proof-{number}")
                await server.wait_quiet()
                before = set(children_of(server.pid))
                plan.write_text(f"{order} {int(signal.SIGSTOP)}\n")
                used = (await server.call("informer.Workers", "jobs"))["workers"]
                os.kill(max(used, key=lambda row: int(row["numExecs"]))["pid"], signal.SIGKILL)
                number += 1
                return await newborn(server, before)

            go.unlink()
            late = await born_over("nowhere")
            await trio.sleep(0.15)
            go.touch()
            await server.wait_whole(deaths=1)
            assert late in await pids(server, "jobs")
            for order in ("boot", "part-9"):
                known = len(await deaths(server, "jobs"))
                silent = seen(await born_over(order))
                await server.wait_whole(deaths=known + 2)
                assert silent is None or not silent.alive
            go.unlink()
            too_late = seen(await born_over("nowhere"))
            await until(lambda: too_late is None or not too_late.alive, 3 * PATIENCE, "its end")
            go.touch()
            await server.wait_whole()
            causes = [death["cause"] for death in await deaths(server, "jobs")]
    assert causes.count("boot_timeout") >= 3, causes


async def test_case_crash_loop_after_the_handshake(tmp_path: Path) -> None:
    """Four workers that die right after their hello are started a few times, the other pool serves on, and a reset heals;
    RoadRunner starts 280 in 5 s, and where none boots any more the whole process panics."""
    await run_crash_loop(tmp_path, by_itself=False)


@pytest.mark.long
async def test_case_crash_loop_heals_by_itself(tmp_path: Path) -> None:
    """The same, whole again within 30 s of the cure without anybody's help."""
    await run_crash_loop(tmp_path, by_itself=True)


async def run_crash_loop(folder: Path, *, by_itself: bool) -> None:
    config = phase_configuration(folder, 4)
    config["http"] = web_configuration(folder, "python", 1)["http"]
    port = port_of(config)
    orders = 500
    with trio.fail_after(90 * PATIENCE):
        async with serving(folder, config) as server:
            (folder / "plan").write_text("hello 9\n" * orders)
            for pid in await pids(server, "jobs"):
                os.kill(pid, signal.SIGKILL)
            end = trio.current_time() + (3 if by_itself else 2)
            while trio.current_time() < end:
                assert (await ask(port, "/pid")).status == 200
                await server.push("ack", secrets.token_hex(4))
                await trio.sleep(0.1)
            started = orders - len((folder / "plan").read_text().splitlines())
            assert 4 <= started <= 10
            (folder / "plan").write_text("")
            if not by_itself:
                await server.call("resetter.Reset", "jobs")
            await server.wait_whole(31 if by_itself else 5)
            books = await server.wait_quiet()
            assert books["done"] == books["pushed"]


HOSTILE = [sys.executable, "-I", "-S", f"{TESTS}/processes/programs/hostile.py"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param([*HOSTILE, "garbage-short"], "Hi", id="3 bytes"),
        pytest.param(
            [*HOSTILE, "garbage-long"], "Undefined variable $x", id="65 bytes", marks=pytest.mark.long
        ),
        pytest.param(["php", "warns.php"], "Warning: in the way", id="php", marks=needs_php),
    ],
)
async def test_case_garbage_before_the_hello(command: list[str], words: str, tmp_path: Path) -> None:
    """A worker that says something else before its hello ends the start at once, and what it said is told; RoadRunner
    waits allocate_timeout for the rest of 12 bytes."""
    program = PHP_WORKER.removeprefix("php ")
    (tmp_path / "warns.php").write_text(f"<?php echo 'Warning: in the way'; require '{program}';\n")
    config = configuration(tmp_path, workers=2, server__command=command)
    with trio.fail_after(20 * PATIENCE):
        async with serving(tmp_path, config, wait=False, check=False) as server:
            assert await server.wait_exit(5 * PATIENCE) == 1
            assert words in server.stderr()
            assert "Traceback" not in server.stderr()


# --- reloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_case_reload_with_broken_code(kind: str, tmp_path: Path) -> None:
    """Code that does not boot changes nothing, and call and command say why; RoadRunner stops all workers first, is left
    with none, and its command prints success."""
    program = tmp_path / ("worker.php" if kind == "php" else "worker.py")
    *interpreter, real = COMMANDS[kind]
    good = f"<?php require '{real}';\n" if kind == "php" else f"exec(open({real!r}).read())\n"
    program.write_text(good)
    config = web_configuration(tmp_path, kind, 2, pool__command=[*interpreter, str(program)])
    port = port_of(config)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            before = await pids(server)
            program.write_text("<?php $x = ;\n" if kind == "php" else "x = = 1\n")
            async with trio.open_nursery() as nursery:
                over = trio.Event()
                nursery.start_soon(ask_until, port, over)
                with pytest.raises(CallFailed, match=r"(?i)syntax ?error"):
                    await server.call("resetter.Reset", "http")
                command = [sys.executable, "-m", "trailboss", "-c", str(server.config_path), "reset", "http"]
                done = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
                assert done.returncode == 1
                assert b"yntax" in done.stderr
                assert before == await pids(server)
                program.write_text(good)
                await server.call("resetter.Reset", "http")
                over.set()
            await wait_pool(server)
            assert not before & await pids(server)


async def ask_until(port: int, over: trio.Event) -> None:
    """A client that must be served all the time."""
    while not over.is_set():
        assert (await ask(port, "/slow?ms=5")).status == 200


@pytest.mark.parametrize("kind", MOSTLY_PHP)
async def test_case_reload_with_one_corpse(kind: str, tmp_path: Path) -> None:
    """A reset over one dead and one busy worker is as quick as any, and what runs ends well; RoadRunner counts the corpse
    as idle and stops the busy one, or waits the whole reset_timeout."""
    config = web_configuration(tmp_path, kind, 2, pool__reset_timeout="20s")
    port = port_of(config)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            before = await pids(server)
            replies = []

            async def slow() -> None:
                replies.append(await ask(port, "/slow?ms=700"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(slow)

                async def busy() -> list[int]:
                    rows = (await server.call("informer.Workers", "http"))["workers"]
                    return [row["pid"] for row in rows if row["status"] == 2]

                (working,) = await until_async(busy, 3 * PATIENCE, "a busy worker")
                os.kill(*(before - {working}), signal.SIGKILL)
                began = trio.current_time()
                await server.call("resetter.Reset", "http")
                assert trio.current_time() - began <= 3 * PATIENCE
            assert [(reply.status, int(reply.body)) for reply in replies] == [(200, working)]
            await wait_pool(server, deaths=1)
            assert not before & await pids(server)
            assert len(await deaths(server)) == 1


# --- calls and strangers ---------------------------------------------------------------------------------------------


async def test_case_rpc_of_every_method_in_every_phase(tmp_path: Path) -> None:
    """Every method again and again, from the port's birth over on_init and boots that fail to the stop: a result or an
    error that says what is missing; in RoadRunner some 20 of them end the process. (Phase by phase: test_gate_phases.py.)"""
    config = phase_configuration(tmp_path, 2)
    (tmp_path / "plan").write_text("part-5 9\nhello 9\n")
    config["server"]["on_init"] = {"command": "sleep 0.4", "exit_on_error": True}
    config["rpc"]["ready_timeout"] = "200ms"
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config, wait=False) as server:

            async def methods_of() -> list[dict[str, Any]]:
                try:
                    return list(await server.call("trailboss.Methods"))
                except (ConnectionGone, OSError):
                    return []

            methods = await until_async(methods_of, 10 * PATIENCE, "the RPC port", 0.002)
            for ending in (False, True):
                answers, over = Answers(), trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(storm, server.path, methods, 8, over, answers, 0.01)
                    await server.wait_ready()
                    await trio.sleep(0.5)
                    if ending:
                        server.note_children()
                        assert await server.stop() == 0
                    over.set()
                assert answers.started == answers.total
                assert untyped(answers) == {}
                assert answers.good.total() > 50
                assert ending or answers.gone == 0
                if not ending:
                    early = ("service not ready: ", "refused during on_init: ")
                    assert any(text.startswith(early) for _, text in answers.errors)
                    await server.wait_whole()
                    await server.assert_books_balance()


BAD_COLLECTORS: list[dict[str, Any]] = [
    {"type": "histogram", "help": "h", "buckets": [3, 1, 2]},
    {"type": "histogram", "help": "h", "buckets": [1, 1]},
    {"type": "histogram", "help": "h", "buckets": [1, float("nan")]},
    {"type": "histogram", "help": "h", "buckets": [1, float("inf"), float("-inf")]},
    {"type": "histogram", "help": "h", "buckets": [1, "2"]},
    {"type": "histogram", "help": "h", "buckets": {"a": 1}},
    {"type": "histogram", "help": "h", "buckets": [1], "labels": ["le"]},
    {"type": "summary", "help": "h", "objectives": {"0.5": 0.1}, "labels": ["quantile"]},
    {"type": "summary", "help": "h", "objectives": {"1.5": -1}},
    {"type": "counter", "help": "h", "labels": ["not a name", "a", "a"]},
    {"type": "nothing", "help": "h"},
]


async def test_case_negative_times_and_bad_buckets_in_calls(tmp_path: Path) -> None:
    """Collectors that cannot be, times and numbers below zero: each caller gets an error or its due, and all goes on; one
    such call ends RoadRunner's process."""
    config = configuration(tmp_path, PHASE_WORKER, 1)
    config["metrics"] = {"address": f"127.0.0.1:{free_port()}"}
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, config) as server:
            for number, collector in enumerate(BAD_COLLECTORS):
                with pytest.raises(CallFailed):
                    await server.call("metrics.Declare", {"name": f"bad_{number}", "collector": collector})
            good = {"type": "histogram", "help": "h", "buckets": [1, 2]}
            await server.call("metrics.Declare", {"name": "good", "collector": good})
            for value in (float("nan"), "1", None, [1]):
                with pytest.raises(CallFailed):
                    await server.call("metrics.Observe", {"name": "good", "value": value, "labels": ["x"]})
            await server.call("jobs.Push", push_argument("work", "ack", "early", delay=-5, priority=-7))
            await server.call("jobs.Push", push_argument("work", "ack", "lowest", delay=-(2**63)))
            for method in ("lock.Lock", "lock.UpdateTTL"):
                with pytest.raises(CallFailed):
                    await server.call(method, {"resource": "r", "id": "i", "ttl": -1, "wait": -1})
            assert (await server.wait_quiet())["done"] == 2
            async with await trio.open_tcp_stream("127.0.0.1", port_at(config["metrics"])) as stream:
                await stream.send_all(b"GET /metrics HTTP/1.0\r\n\r\n")
                assert (await stream.receive_some(15)).startswith(b"HTTP/1.")


def port_at(section: dict[str, Any]) -> int:
    """The port of a section's address."""
    return int(section["address"].rpartition(":")[2])


HISTOGRAM: dict[str, Any] = {"type": "histogram", "help": "h"}


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(
            {
                "jobs.pool.stop_timeout": "-2s",
                "jobs.pool.boot_timeout": "-1ms",
                "jobs.pool.supervisor.ttl": "-1s",
                "jobs.pool.supervisor.idle_ttl": "-5s",
                "jobs.pool.supervisor.exec_ttl": "-1h",
            },
            id="times",
        ),
        pytest.param(
            {
                "metrics.collect.unsorted": {**HISTOGRAM, "buckets": [3, 1, 2]},
                "metrics.collect.reserved": {**HISTOGRAM, "buckets": [1], "labels": ["le"]},
                "metrics.collect.quantile": {"type": "summary", "help": "h", "objectives": {"1.5": 0.1}},
            },
            id="buckets",
        ),
    ],
)
async def test_case_negative_times_and_bad_buckets_in_the_configuration(
    bad: dict[str, Any], tmp_path: Path
) -> None:
    """Each is an error that names its key, all at once, before anything is started; RoadRunner starts, and panics at a
    tick or at the first scrape."""
    changes = {key.replace(".", "__"): value for key, value in bad.items()}
    config = configuration(tmp_path, PHASE_WORKER, 1, metrics__address="127.0.0.1:0", **changes)
    with trio.fail_after(20 * PATIENCE):
        async with serving(tmp_path, config, wait=False, check=False) as server:
            assert await server.wait_exit() == 2
            lines = server.stderr().splitlines()
            for key in bad:
                assert any(f": {key}" in line for line in lines), (key, lines)
            assert len(bad) == len(lines)
            assert "server starting" not in server.log_texts()


#: What strangers say: too little, text, the head of a frame and no more, an endless frame, somebody's pid.
SAYINGS = [
    b"x",
    b"\x13" * 11,
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    encode_pid_answer(1),
    encode_pid_answer(1)[:7],
    b"\x14\x00\xff\xff\xff\xff",
    secrets.token_bytes(64),
]


@asynccontextmanager
async def strangers(address: str) -> AsyncIterator[None]:
    """Clients of a socket: 20 that are silent, some that talk nonsense, some that hang up at once."""
    clients = []
    for saying in [b""] * 20 + SAYINGS * 2:
        client = await Client.connect(address.removeprefix("unix://"))
        clients.append(client)
        try:
            await client.send(saying)
        except ConnectionGone:
            continue
    for client in clients[-len(SAYINGS) :]:
        client.close()
    try:
        yield
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("command", "scheme"),
    [
        pytest.param(PHP_WORKER, "tcp", id="php-tcp", marks=needs_php),
        pytest.param(PHP_WORKER, "unix", id="php-unix", marks=[*needs_php, pytest.mark.long]),
        pytest.param(PYTHON_WORKER, "tcp", id="python-tcp", marks=pytest.mark.long),
        pytest.param(PYTHON_WORKER, "unix", id="python-unix"),
    ],
)
async def test_case_silent_and_garbage_clients_on_the_relay(
    command: str, scheme: str, tmp_path: Path
) -> None:
    """Strangers on the relay cost their own connection, workers boot and are replaced meanwhile; in RoadRunner a silent one
    blocks every handshake, and one that talks nonsense ends the accept loop."""
    relay = f"unix://{tmp_path}/relay.sock" if scheme == "unix" else f"tcp://127.0.0.1:{free_port()}"
    config = configuration(tmp_path, command, 2)
    config["server"]["relay"] = relay
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server, strangers(relay):
            for pid in await pids(server, "jobs"):
                os.kill(pid, signal.SIGKILL)
            await server.wait_whole(deaths=2)
            await server.call("resetter.Reset", "jobs")
            for number in range(4):
                await server.push("ack", f"job-{number}")
            assert (await server.wait_quiet())["done"] == 4


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
async def test_case_silent_and_garbage_clients_on_the_rpc_port(scheme: str, tmp_path: Path) -> None:
    """Strangers on the RPC port cost their own connection, calls are answered and workers boot meanwhile; RoadRunner
    answers nonsense with a hang, and a call of the wrong shape with its end. (Every vector: test_acceptance_bad_input.py.)"""
    config = configuration(tmp_path, PYTHON_WORKER, 2)
    if scheme == "tcp":
        config["rpc"]["listen"] = f"tcp://127.0.0.1:{free_port()}"
    half = encode_request(1, "informer.Workers", b'"jobs"', JSON)
    with trio.fail_after(60 * PATIENCE):
        async with serving(tmp_path, config) as server:
            if scheme == "tcp":
                await server.call("rpc.Version")
                server.note_descriptors()  # with the one that tells who the peers of TCP are
            async with strangers(server.path):
                quitters = [await Client.connect(server.path) for _ in range(10)]
                for number, quitter in enumerate(quitters):
                    await quitter.send(half[: len(half) * number // 9])
                for pid in await pids(server, "jobs"):
                    os.kill(pid, signal.SIGKILL)
                await server.wait_whole(deaths=2)
                for number in range(20):
                    began = trio.current_time()
                    await server.push("push" if number == 9 else "ack", f"job-{number}")
                    assert trio.current_time() - began <= 1 * PATIENCE
                assert (await server.wait_quiet())[
                    "done"
                ] == 21  # one job has pushed another, from its worker
                for quitter in quitters:
                    quitter.close()


# --- the server's own end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaf", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_case_sigterm_during_on_init(deaf: bool, tmp_path: Path) -> None:
    """SIGTERM ends on_init with its children and then the server, in order; RoadRunner dies of the signal where it stands
    and on_init lives on."""
    script = "setsid sleep 600 &\nsleep 600 &\necho begun > begun\nwait\nsleep 600\n"
    (tmp_path / "on_init.sh").write_text("trap '' TERM INT\n" * deaf + script)
    config = configuration(tmp_path, PYTHON_WORKER, 2)
    config["server"]["on_init"] = {"command": f"sh {tmp_path}/on_init.sh"}
    with trio.fail_after(30 * PATIENCE):
        async with serving(tmp_path, config, wait=False) as server:
            await until(lambda: (tmp_path / "begun").exists(), 10 * PATIENCE, "on_init begun")
            assert (await server.state())["phase"] == "initialising"
            assert len(marked(server.mark)) >= 4
            server.note_children()
            began = trio.current_time()
            assert await server.stop() == 0
            assert trio.current_time() - began <= 5 * PATIENCE
            await server.expect_nothing_left(0.5)
            assert "server stopped" in server.log_texts()
            assert not Path(server.path).exists()


@pytest.mark.parametrize("kind", MOSTLY_PYTHON)
async def test_case_supervisor_killed(kind: str, tmp_path: Path) -> None:
    """2 s after SIGKILL to the server nothing of it is left: workers busy and idle, their children in any session; the
    next start succeeds. RoadRunner's go on until they touch the pipe. (Under load, five times: test_acceptance_kills.py.)"""
    config = web_configuration(tmp_path, kind, 3)
    port = port_of(config)
    with trio.fail_after(60 * PATIENCE):
        server = Server(tmp_path, config)
        server.start()
        try:
            await server.wait_ready()
            await wait_pool(server)
            for _ in range(3):
                assert (await ask(port, "/children")).status == 200
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /slow?ms=60000 HTTP/1.1\r\nHost: a\r\n\r\n")
                await trio.sleep(0.1)
                assert len(marked(server.mark)) >= 1 + 1 + 3 + 6
                server.kill()
                await server.expect_nothing_left(2.0)
        finally:
            server.kill()
        async with serving(tmp_path, config) as server:
            assert (await ask(port, "/pid")).status == 200


def may_unshare() -> bool:
    """Whether a process with a numbering of its own can be made here."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except OSError:
        return False


def zombies_of(pid: int) -> list[int]:
    """Children of a process that have ended and that nobody has waited for."""
    return [child for child in children_of(pid) if (process := seen(child)) and not process.alive]


@pytest.mark.skipif(not may_unshare(), reason="no process here may make a numbering of its own")
@pytest.mark.parametrize("kind", MOSTLY_PHP)
async def test_case_zombies_as_pid_1(kind: str, tmp_path: Path) -> None:
    """As PID 1 the server waits for the orphans of its workers, and takes none of its own workers for one; in a container
    RoadRunner collects zombies until there is no room for a process."""
    config = web_configuration(tmp_path, kind, 2)
    port = port_of(config)
    server = Server(tmp_path, config)
    server.launcher = ("unshare", "--pid", "--fork", "--mount-proc")
    with trio.fail_after(60 * PATIENCE):
        server.start()
        try:
            await server.wait_ready()
            (supervisor,) = children_of(server.pid)
            await wait_pool(server)
            for _ in range(10):
                assert (await ask(port, "/orphans")).status == 200
            await until(lambda: not sleepers(server), 3 * PATIENCE, "the orphans ended")
            assert zombies_of(supervisor)  # they are left to whoever may wait for them for 5 s
            workers = [child for child in children_of(supervisor) if b"case_worker" in cmdline(child)]
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            await wait_pool(server, deaths=len(workers))
            await server.push("ack", "one")
            assert (await server.wait_quiet())["done"] == 1
            await until(
                lambda: not zombies_of(supervisor),
                8 * PATIENCE,
                lambda: f"no zombie left: {zombies_of(supervisor)}",
                0.1,
            )
            os.kill(supervisor, signal.SIGTERM)
            assert await server.wait_exit() == 0
            server.assert_no_traceback()
            await server.expect_nothing_left()
        finally:
            server.kill()
            for pid in marked(server.mark):
                kill_if_there(pid, signal.SIGKILL)


def cmdline(pid: int) -> bytes:
    """The command line of a process; nothing where it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def sleepers(server: Server) -> list[int]:
    """The orphans that have not ended yet."""
    return [pid for pid in marked(server.mark) if cmdline(pid).startswith(b"sleep\0")]
