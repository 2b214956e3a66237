"""What a reload takes in, refuses and takes back, with a container and plugins that only say what happens to them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import trio

from trailboss.config import LoadRequest, load
from trailboss.config.problems import ConfigError
from trailboss.config.schema import Config
from trailboss.container.contract import Change, Plugin, WholePhase
from trailboss.container.startup import Container
from trailboss.container.state import ServerState
from trailboss.reloading import Reloader, Report

FILE = """
version: "3"
server: {{command: [php, worker.php]}}
http: {{address: 127.0.0.1:8080, pool: {{num_workers: {workers}}}}}
jobs: {{}}
logs: {{level: {level}}}
"""


def _config(
    folder: Any, workers: int = 2, level: str = "info", variables: dict[str, str] | None = None
) -> Config:
    path = folder / ".rr.yaml"
    path.write_text(FILE.format(workers=workers, level=level))
    config = load(LoadRequest(path=str(path), environ={}))
    return replace(config, source=replace(config.source, environment=variables or {}))


@dataclass
class FakeContainer:
    """Its pools come up, or not."""

    failed: dict[str, str] = field(default_factory=dict)
    state: ServerState = field(default_factory=ServerState)
    resets: int = 0
    begun: trio.Event = field(default_factory=trio.Event)
    wait: trio.Event | None = None
    seen: list[str | None] = field(default_factory=list)

    def ready_pools(self) -> list[str]:
        """Two."""
        return ["http", "jobs"]

    async def reload(self, _reason: str) -> dict[str, str]:
        """Say which failed."""
        self.resets += 1
        self.begun.set()
        self.seen.append(os.environ.get("TB_TEST_A"))
        if self.wait is not None:
            await self.wait.wait()
        return self.failed


class Taking(Plugin):
    """Takes in the keys below `section`."""

    def __init__(self, section: str, *, reverts: bool) -> None:
        self.section = section
        self.value: object = "old"
        self.reverts = reverts
        self.error: Exception | None = None

    def prepare_reload(self, config: Config, changed: frozenset[str]) -> Change | None:
        """Note what becomes of it."""
        if self.error is not None:
            raise self.error
        taken = frozenset(key for key in changed if key.startswith(self.section))
        old = self.value

        def commit() -> None:
            self.value = config

        def revert(_pools: frozenset[str]) -> None:
            self.value = old

        return Change(taken, commit, revert) if self.reverts else Change(taken, commit)


@dataclass
class Scene:
    """A reloader and everybody around it."""

    reloader: Reloader
    container: FakeContainer
    pool: Taking
    logs: Taking


def _scene(config: Config, reread: Callable[[], Config], phase: WholePhase = WholePhase.READY) -> Scene:
    container = FakeContainer()
    container.state.whole = phase
    pool, logs = Taking("http.pool", reverts=True), Taking("logs", reverts=False)
    reloader = Reloader(config, [pool, logs], cast("Container", container), reread)
    return Scene(reloader, container, pool, logs)


async def _reload(scene: Scene) -> Report:
    with trio.fail_after(10):
        return await scene.reloader.reload("for the test")


async def test_what_is_taken_back_is_not_called_taken(tmp_path: Any) -> None:
    """The workers of http do not come up: their keys go back, what belongs to nobody's workers stays."""
    new = _config(tmp_path, workers=3, level="debug")
    scene = _scene(_config(tmp_path), lambda: new)
    scene.container.failed = {"http": "no"}
    report = await _reload(scene)
    assert report.failed == {"http": "no"}
    assert report.taken == ["logs.level"]
    assert scene.pool.value is not new
    scene.container.failed = {}
    report = await _reload(scene)
    assert "http.pool.num_workers" in report.taken
    assert scene.pool.value == new


async def test_variables_of_the_dotenv_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in force for the new workers, gone where the file has them no more, and back after a failure."""
    monkeypatch.setenv("TB_TEST_A", "one")
    monkeypatch.setenv("TB_TEST_B", "kept")
    environments = iter([{"TB_TEST_A": "two"}, {"TB_TEST_C": "new"}, {"TB_TEST_C": "new"}])
    scene = _scene(
        _config(tmp_path, variables={"TB_TEST_A": "one"}),
        lambda: _config(tmp_path, variables=next(environments)),
    )
    await _reload(scene)
    assert scene.container.seen == ["two"]
    scene.container.failed = {"http": "no"}
    await _reload(scene)
    assert scene.container.seen[-1] is None
    assert (os.environ.get("TB_TEST_A"), os.environ.get("TB_TEST_C")) == ("two", None)
    scene.container.failed = {}
    await _reload(scene)
    assert (os.environ.get("TB_TEST_A"), os.environ.get("TB_TEST_C")) == (None, "new")
    assert os.environ["TB_TEST_B"] == "kept"
    del os.environ["TB_TEST_C"]


@pytest.mark.parametrize("phase", [WholePhase.BOOTING, WholePhase.DRAINING])
async def test_only_while_the_server_is_ready(tmp_path: Any, phase: WholePhase) -> None:
    """A signal during the start or the stop changes nothing: pools that boot would be of another size than they say."""
    scene = _scene(_config(tmp_path), lambda: _config(tmp_path, workers=3), phase)
    report = await _reload(scene)
    assert phase.value in report.refused
    assert (scene.container.resets, scene.pool.value) == (0, "old")


@pytest.mark.parametrize("error", [ConfigError([]), OSError("gone"), KeyError("what")])
async def test_whatever_goes_wrong_is_in_the_report(tmp_path: Any, error: Exception) -> None:
    """Nothing is raised into the server, and nothing was changed."""
    scene = _scene(_config(tmp_path), lambda: _config(tmp_path, workers=3))
    scene.logs.error = error
    report = await _reload(scene)
    assert report.refused or isinstance(error, ConfigError)
    assert (scene.container.resets, scene.pool.value) == (0, "old")


async def test_a_caller_who_gives_up(tmp_path: Any) -> None:
    """What has begun goes on to its end: a failure is taken back although nobody waits for the report."""
    scene = _scene(_config(tmp_path), lambda: _config(tmp_path, workers=3))
    scene.container.failed = {"http": "no"}
    scene.container.wait = trio.Event()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.reloader.reload, "for the test")
            await scene.container.begun.wait()
            assert scene.pool.value != "old"
            nursery.cancel_scope.cancel()
            scene.container.wait.set()
    assert scene.pool.value == "old"
