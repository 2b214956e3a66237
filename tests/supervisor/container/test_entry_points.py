"""Third-party plugins by entry point: the example one, and every way to be broken."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import trio

from trailboss.config.schema import Config, PluginOptions
from trailboss.container.contract import Caller, Phase, Plugin, PluginFailed
from trailboss.container.entry_points import GROUP, BrokenPlugin, find_entry_points, load_plugins
from trailboss.testing.check_plugin import check_plugin
from trailboss.testing.container import run_container

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugin"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the example plugin."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("trailboss_example_heartbeat")
    sys.modules.pop("trailboss_example_heartbeat", None)


def example_entry_point(group: str) -> metadata.EntryPoint:
    """The entry point of the example, as its pyproject.toml declares it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return metadata.EntryPoint("heartbeat", project["entry-points"][group]["heartbeat"], group)


def config_of(example: Any, path: Path, **options: object) -> Config:
    """A configuration with a heartbeat section."""
    return Config(extensions={"heartbeat": example.HeartbeatConfig(path=str(path), **options)})


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until something is the case that nobody announces."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - health is asked, it has no event
            await trio.sleep(0.01)


async def test_example_plugin_passes_the_battery(example: Any, tmp_path: Path) -> None:
    """The example keeps the contract."""
    config = config_of(example, tmp_path / "beat", interval=0.01)

    await check_plugin(lambda: load_plugins(config, [example_entry_point(GROUP)])[0])


async def test_example_plugin_in_a_server(example: Any, tmp_path: Path) -> None:
    """It writes its file, answers, shows its figures, reports a write that fails, and removes the file at the stop."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "beat"
    (plugin,) = load_plugins(config_of(example, path, interval=0.01), [example_entry_point(GROUP)])
    (method,) = plugin.rpc_methods()

    async with run_container([plugin]) as container:
        await eventually(lambda: method.handler(None, Caller()) >= 3)  # type: ignore[operator]
        assert path.exists()
        row = container.state.as_dict()["plugins"][0]  # type: ignore[index]
        assert row["detail"]["path"] == str(path)
        path.unlink()
        path.mkdir()  # from now on it cannot be written
        await eventually(lambda: not plugin.health().ok)
        assert plugin.health().reason == f"cannot write {path}: Is a directory"
        path.rmdir()
        await eventually(lambda: plugin.health().ok)

    assert not path.exists()


async def test_example_plugin_with_a_bad_path_fails_the_start(example: Any, tmp_path: Path) -> None:
    """What keeps it from ever being ready ends the start, by name."""
    (plugin,) = load_plugins(config_of(example, tmp_path / "nowhere" / "beat"), [example_entry_point(GROUP)])

    with pytest.raises(PluginFailed, match="plugin heartbeat failed while starting: FileNotFoundError"):
        async with run_container([plugin]):
            pass


def test_plugin_that_is_not_configured_is_left_out(example: Any) -> None:
    """None means: the configuration does not ask for it."""
    assert load_plugins(Config(), [example_entry_point(GROUP)]) == []


def test_example_section_is_a_section(example: Any) -> None:
    """The second entry point names the dataclass of the section."""
    section = example_entry_point("trailboss.plugin_sections").load()

    assert section is example.HeartbeatConfig
    assert json.dumps({"interval": section(path="x").interval}) == '{"interval": 10.0}'


BROKEN_MODULE = """
import os
from trailboss.container.contract import Plugin

class Named(Plugin):
    def __init__(self, name): self.name = name

class Unaskable(Named):
    def rpc_methods(self): raise KeyError("methods")

not_callable = 3
def raises(config): raise ValueError("no licence")
def leaves(config): raise SystemExit(3)
def other_type(config): return object()
def other_name(config): return Named("somebody")
def unaskable(config): return Unaskable("broken")
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that is broken in many ways."""
    (tmp_path / "broken_by_design.py").write_text(BROKEN_MODULE, encoding="utf-8")
    (tmp_path / "broken_import.py").write_text("import a_module_that_does_not_exist", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "broken_by_design"
    sys.modules.pop("broken_by_design", None)


CASES = [
    ("broken_import:make", "ModuleNotFoundError: No module named 'a_module_that_does_not_exist'"),
    ("broken_by_design:missing", "AttributeError: module 'broken_by_design' has no attribute 'missing'"),
    ("broken_by_design:not_callable", "is a int; it must be a callable that takes the configuration"),
    ("broken_by_design:raises", "ValueError: no licence"),
    ("broken_by_design:leaves", "SystemExit: 3"),
    ("broken_by_design:other_type", "returned a object; it must return a Plugin or None"),
    ("broken_by_design:other_name", "returned a plugin named 'somebody'"),
    ("broken_by_design:unaskable", "KeyError: 'methods'"),
]


@pytest.mark.parametrize(("value", "words"), CASES)
async def test_broken_plugin_is_one_clear_error(value: str, words: str, broken: str) -> None:
    """Whatever is wrong with it: one sentence with name, entry point and cause, before anything has started."""
    entry_point = metadata.EntryPoint("broken", value, GROUP)

    with pytest.raises(PluginFailed) as caught:
        load_plugins(Config(), [entry_point])

    text = str(caught.value)
    assert text.startswith(f"plugin broken failed while declared: (entry point {value}) cannot be loaded: ")
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(("value", "words"), CASES)
async def test_broken_optional_plugin_shows_in_the_state(value: str, words: str, broken: str) -> None:
    """Where it is optional the server starts, and the state says what is wrong with it."""
    config = Config(plugins={"broken": PluginOptions(optional=True)})
    plugins: list[Plugin] = load_plugins(config, [metadata.EntryPoint("broken", value, GROUP)])
    assert [type(plugin) for plugin in plugins] == [BrokenPlugin]

    async with run_container(plugins, optional={"broken"}) as container:
        (row,) = container.state.plugins()
        assert container.state.fully_ready

    assert row.phase is Phase.FAILED
    assert words in row.reason


def test_installed_distributions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of the group come from the installed distributions, in the order of their names."""
    for name in ("zebra", "ant"):
        folder = tmp_path / f"trailboss_{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: trailboss-{name}\nVersion: 1.0\n", "utf-8"
        )
        (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = no_such_{name}:make\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    found = [entry_point.name for entry_point in find_entry_points()]
    with pytest.raises(PluginFailed, match=r"of trailboss-ant 1\.0\) cannot be loaded: ModuleNotFoundError"):
        load_plugins(Config(), [one for one in find_entry_points() if one.name in ("ant", "zebra")])

    assert [name for name in found if name in ("ant", "zebra")] == ["ant", "zebra"]
