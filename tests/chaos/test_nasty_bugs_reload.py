"""Known bugs of other servers around resets, reloads and recycling, each as a test that is named after its number.

The scenarios are those that have hurt users of RoadRunner, gunicorn, uWSGI, Puma, Passenger and others most. Real servers
and real workers; behind each test the invariants of :mod:`nasty` hold. Short here, at their full length in the long tier.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from http_server import Wish, free_port, read_all, request, until
from live_server import PATIENCE, children_of
from nasty import HELLO, LIGHT, PHP_OR_LIGHT, TROUBLE, Site, configuration, loaded, needs_php, scene

from trailboss_worker.sdk import ServiceError

pytestmark = pytest.mark.timeout(120)


class Caller(threading.Thread):
    """A thread that does something until told to stop; what it raises is raised again by `join_in`."""

    def __init__(self, act: Any, *, once: bool = False) -> None:
        super().__init__()
        self._act = act
        self._once = once
        self.over = threading.Event()
        self.times: list[float] = []
        self.failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Act, and note how long each time took."""
        try:
            while not self.over.is_set():
                began = time.monotonic()
                self._act()
                self.times.append(time.monotonic() - began)
                if self._once:
                    return
        except BaseException as error:
            self.failure = error

    def join_in(self, seconds: float = 30.0) -> list[float]:
        """Stop it; returns how long each time took."""
        self.over.set()
        self.join(seconds * PATIENCE)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure
        return self.times


def kill_during_resets(server: Site, chance: random.Random, resets: int) -> None:
    """SIGKILL a random worker at a random moment of each reset."""

    told: list[str] = []

    def reset() -> None:
        try:
            server.call("resetter.Reset", "http", 10)
        except ServiceError as error:
            told.append(error.text)

    for _ in range(resets):
        thread = Caller(reset, once=True)
        while thread.is_alive():
            time.sleep(0.03 * chance.random())
            workers = sorted(set(children_of(server.pid)) - {server.detail("server")["guard_pid"]})
            if workers and chance.random() < 0.3:
                try:
                    os.kill(chance.choice(workers), signal.SIGKILL)
                except ProcessLookupError:
                    continue
        thread.join_in()
    # Where the first of the new ones was killed the old ones go on, and that is what was said.
    assert [text for text in told if "start" not in text] == []


@pytest.mark.parametrize(
    ("command", "resets"),
    [
        pytest.param(PHP_OR_LIGHT[0].values[0], 3, id="php", marks=needs_php),
        pytest.param(LIGHT, 3, id="python"),
        pytest.param(LIGHT, 300, id="long", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
    ],
)
def test_bug_04_kill_during_reset(
    command: list[str], resets: int, tmp_path: Path, chaos: random.Random
) -> None:
    """Workers are killed while resets run: each reset ends, the count is exact afterwards (RoadRunner 1180)."""
    with scene(tmp_path, configuration(tmp_path, command, 4), seconds=40) as server:
        kill_during_resets(server, chaos, resets)
        assert server.get("/size?n=5").body == b"xxxxx"


@pytest.mark.parametrize(
    "seconds", [2, pytest.param(600, marks=[pytest.mark.long, pytest.mark.timeout(800)])]
)
def test_bug_04_a_stream_holds_a_worker_during_reset(seconds: int, tmp_path: Path) -> None:
    """A client holds a worker while a reset waits for it: requests, probes and worker lists go on, two resets end together."""
    pool = {"reset_timeout": f"{seconds}s", "stream_timeout": "1s"}
    with scene(tmp_path, configuration(tmp_path, TROUBLE, 2, pool=pool)) as server:
        with server.connect() as sock:
            sock.sendall(request("/stream"))
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
            began = time.monotonic()
            resets = [
                Caller(partial(server.call, "resetter.Reset", "http", seconds + 15), once=True)
                for _ in range(2)
            ]
            questions: list[Callable[[], object]] = [
                lambda: server.get("/").status == 200,
                lambda: server.probe("/health") == 200,
                lambda: server.call("informer.Workers", "http")["workers"],
            ]
            times: list[float] = []
            while any(reset.is_alive() for reset in resets) or server.pool()["leaving"]:
                for ask in questions:
                    at = time.monotonic()
                    assert ask()
                    times.append(time.monotonic() - at)
                time.sleep(0.02)
                with suppress(ConnectionResetError):  # which is how it is cut off
                    assert sock.recv(65536) or not server.pool()["leaving"]  # the stream goes on
            drained = time.monotonic() - began
            assert read_all(sock)[-5:] != b"0\r\n\r\n"  # cut off, and not to be taken for whole
            took = [reset.join_in()[0] for reset in resets]
        assert len(times) > 30
        assert max(times) <= 0.5 * PATIENCE
        assert max(took) <= 3 * PATIENCE  # the new ones serve; nobody waits for the stream, once or twice
        assert seconds - 0.3 <= drained <= seconds + 1 + 2 * PATIENCE


@pytest.mark.parametrize(
    ("command", "resets"),
    [
        pytest.param(PHP_OR_LIGHT[0].values[0], 8, id="php", marks=needs_php),
        pytest.param(LIGHT, 10, id="python"),
        pytest.param(LIGHT, 5000, id="long", marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
)
def test_bug_05_resets_in_a_row(command: list[str], resets: int, tmp_path: Path) -> None:
    """Resets in a row from two clients, overlapping, under load: each returns, the load sees no error (RoadRunner 1168, 1108)."""
    with scene(tmp_path, configuration(tmp_path, command, 2)) as server, loaded(server, 2) as load:
        count = threading.Semaphore(resets)

        def reset() -> None:
            if count.acquire(blocking=False):
                assert server.call("resetter.Reset", "http", 20) is True
            else:
                time.sleep(0.01)

        before = server.pool()["generation"]
        callers = [Caller(reset) for _ in range(2)]
        until(lambda: count._value == 0, 60 + resets * 0.5, "all resets")
        for caller in callers:
            caller.join_in()
        generations = server.pool()["generation"] - before
        assert load.total > resets
        # Overlapping ones share a reset; those that came too late for it have one of their own.
        assert resets // 3 <= generations <= resets


PHP_SITE = """<?php
namespace Trailboss\\Php;
require '{php}/http_exchange.php';
require __DIR__ . '/code.php';
$worker = HttpWorker::create();
while (($request = $worker->waitRequest()) !== null) {{
    $worker->respond(200, page($request->path()), ['Content-Type' => ['text/plain']]);
}}
"""
PHP_CODE = "<?php function page($path) {{ {first} return 'xxxxx'; }} {boot}"
PYTHON_CODE = """
import os, time
{boot}
def application(environ, start_response):
    {first}
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"xxxxx"]
"""
#: Kinds of broken code: what is written where the program starts, and where a page is made; what the report has to say.
BROKEN: dict[str, dict[str, tuple[str, str, str]]] = {
    "php": {
        "syntax error": ("this is no PHP", "", "syntax error"),
        "exit 0 at once": ("exit(0);", "", "exit code 0"),
        "hangs before the handshake": ("sleep(3600);", "", "boot_timeout"),
        "dies at the first request": ("", "exit(9);", "exit code 9"),
    },
    "python": {
        "syntax error": ("this is no Python", "", "SyntaxError"),
        "exit 0 at once": ("os._exit(0)", "", "exit code 0"),
        "hangs before the handshake": ("time.sleep(3600)", "", "boot_timeout"),
        "dies at the first request": ("", "os._exit(9)", "exit code 9"),
    },
}


@pytest.mark.parametrize("language", [pytest.param("php", marks=needs_php), "python"])
def test_bug_06_reload_to_broken_code(language: str, tmp_path: Path) -> None:
    """Broken code in four ways: no request fails, the old workers go on, one clear report, no loop (gunicorn 2443, uWSGI 1052, Puma 187)."""
    if language == "php":
        command = ["php", str(tmp_path / "site.php")]
        (tmp_path / "site.php").write_text(
            PHP_SITE.format(php=Path(__file__).resolve().parent.parent / "php")
        )
        code, template = tmp_path / "code.php", PHP_CODE
    else:
        command = ["trailboss-worker", "wsgi", "app:application"]
        code, template = tmp_path / "app.py", PYTHON_CODE
    good = template.format(boot="", first="pass" if language == "python" else "")
    code.write_text(good)
    pool = {"boot_timeout": "1500ms", "warmup": ["/"]}
    config = configuration(tmp_path, command, 2, pool=pool)
    with scene(tmp_path, config) as server:  # noqa: SIM117
        with loaded(server, 2) as load:
            workers = set(server.workers())
            for name, (boot, first, said) in BROKEN[language].items():
                code.write_text(
                    template.format(boot=boot, first=first or ("pass" if language == "python" else ""))
                )
                failed = len(server.records("worker died"))
                with pytest.raises(ServiceError) as told:
                    server.call("resetter.Reset", "http", 15)
                assert said in told.value.text, name
                assert said in server.pool()["last_reset_failure"], name
                assert set(server.workers()) == workers, name
                # The first of the new workers is tried, once more at most: no loop.
                assert len(server.records("worker died")) - failed <= 2, name
            answered = load.total
            until(lambda: load.total > answered + 20, 10, "the old workers go on")
            assert server.pool()["deaths"] <= 8
            code.write_text(good)
            assert server.call("resetter.Reset", "http", 15) is True
            assert set(server.workers()) & workers == set()


RELAYS = ["pipes", "unix", "tcp"]


@pytest.mark.parametrize(
    ("relay", "command", "total"),
    [
        pytest.param("pipes", PHP_OR_LIGHT[0].values[0], 120, id="php", marks=needs_php),
        pytest.param("pipes", LIGHT, 250, id="pipes"),
        pytest.param("unix", TROUBLE, 60, id="unix"),
        *(
            pytest.param(
                relay, TROUBLE, 3000, id=f"long-{relay}", marks=[pytest.mark.long, pytest.mark.timeout(600)]
            )
            for relay in RELAYS
        ),
    ],
)
def test_bug_10_recycle_under_keep_alive_load(
    relay: str, command: list[str], total: int, tmp_path: Path
) -> None:
    """max_jobs=5 under kept connections: no reset, no 5xx, no long wait, over each relay (gunicorn 3038, 2297, RoadRunner 1008).

    So small a quota is used up before a replacement can have booted, so workers may be missing; requests then wait for a
    boot, never for a retry. The next test is about those that need not be missing.
    """
    config = configuration(tmp_path, command, 3, pool={"max_jobs": 5})
    config["server"]["relay"] = {
        "pipes": "pipes",
        "unix": f"unix://{tmp_path}/relay.sock",
        "tcp": f"tcp://127.0.0.1:{free_port()}",
    }[relay]
    page = HELLO
    if command is TROUBLE:
        page = Wish("second", request("/die-once?mark=/"), b"second")  # the mark is there, so nobody dies
    with scene(tmp_path, config) as server:
        with loaded(server, 3, [page]) as load:
            until(lambda: load.total >= total, total * 0.1, "the load")
        assert {status for _, status in load.answers} == {200}
        assert load.slowest <= 1.0 * PATIENCE
        assert len(server.records("worker ready")) >= total // 6  # no life was longer
        assert server.pool()["deaths"] == 0


def test_bug_10_all_due_at_once_leave_none_missing(tmp_path: Path) -> None:
    """Four workers reach their ttl under kept connections: never a worker short, no answer but 200 (gunicorn 3427, Swoole 5662)."""
    config = configuration(tmp_path, workers=4, pool={"supervisor": {"ttl": "700ms"}})
    with scene(tmp_path, config) as server:
        first, now = set(server.workers()), set[int]()
        fewest = 4
        with loaded(server, 3) as load:

            def renewed() -> bool:
                nonlocal fewest
                fewest = min(fewest, server.pool()["ready"])
                now.update(server.workers())
                return len(now - first) >= 5

            until(renewed, 20, "all workers replaced, and again")
        assert fewest == 4
        assert {status for _, status in load.answers} == {200}
        assert server.pool()["deaths"] == 0
        # From now on there is time for the invariants between two replacements.
        trailboss_file = tmp_path / "trailboss.json"
        trailboss_file.write_text(trailboss_file.read_text().replace('"700ms"', '"1h"'))
        assert server.call("trailboss.Reload")["failed"] == {}


def test_bug_21_routing_prefers_the_good_generation(tmp_path: Path) -> None:
    """A bad new generation is given up after its canary, a bad old one is left by a reset that goes through (Passenger 2551)."""
    pool = {"canary": {"window": "700ms"}, "quarantine": {"deaths": 0}}
    with scene(tmp_path, configuration(tmp_path, workers=3, retry=False, pool=pool), seconds=30) as server:
        good = set(server.workers())
        for _ in range(30):
            assert server.get("/size?n=5").status == 200
        # A new worker that dies of its first request: that one fails, and no other; the reset is given up.
        server.set_mode("dies-first")
        statuses: list[int] = []
        client = Caller(lambda: statuses.append(server.get("/size?n=5").status))
        with pytest.raises(ServiceError):
            server.call("resetter.Reset", "http", 20)
        client.join_in()
        assert len([status for status in statuses if status != 200]) <= 1
        assert len(statuses) > 20
        assert set(server.workers()) == good
        assert [server.get("/size?n=5").status for _ in range(20)] == [200] * 20
        # The other way round: one old worker after the other dies of what it is given, while the new ones are good.
        for pid in good:
            os.kill(pid, signal.SIGKILL)
        bad = set[int]()

        def all_bad() -> bool:
            bad.update(server.workers())
            return len(bad - good) >= 1

        until(all_bad, 10, "workers of the bad code")
        server.set_mode("")
        began = time.monotonic()
        assert server.call("resetter.Reset", "http", 20) is True
        assert time.monotonic() - began <= 8 * PATIENCE
        assert [server.get("/size?n=5").status for _ in range(30)] == [200] * 30
        assert set(server.workers()) & bad == set()


@pytest.mark.parametrize(
    "deaths", [12, pytest.param(300, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
def test_bug_23_one_replacement_for_each_death(deaths: int, tmp_path: Path, chaos: random.Random) -> None:
    """A singleton that is killed in every way, twice at the same time too, has exactly one successor each time (RoadRunner 2199)."""
    with scene(tmp_path, configuration(tmp_path, workers=1, retry=False)) as server:
        most = 1
        for number in range(deaths):
            server.get("/size?n=5")  # so that it has proved itself
            (pid,) = server.workers()
            way = chaos.randrange(3)
            if way == 0:
                with suppress(ProcessLookupError):  # it may be gone before the third
                    for _ in range(3):
                        os.kill(pid, signal.SIGKILL)
            elif way == 1:
                assert server.get(f"/kill?at={chaos.choice(('request', 'answer-9'))}", "POST").status == 502
            else:
                os.kill(pid, signal.SIGSTOP)
                os.kill(pid, signal.SIGKILL)
            until(lambda number=number: server.pool()["deaths"] == number + 1, 5, "the death known")  # type: ignore[misc]
            while not server.is_whole():
                alive = set(children_of(server.pid)) - {server.detail("server")["guard_pid"]}
                most = max(most, len(alive))
        assert len(server.lines("boots")) == deaths + 1
        assert most == 1
