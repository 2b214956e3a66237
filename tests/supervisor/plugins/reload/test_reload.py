"""Which files and folders a reload looks at, and starts that must fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trailboss.config.schema import ReloadConfig
from trailboss.container.contract import PluginFailed, Services
from trailboss.plugins.reload.files import Rules
from trailboss.plugins.reload.plugin import MISSING_TEXT, ReloadPlugin

DEFAULTS = ReloadConfig()
RULES = Rules(DEFAULTS.patterns, DEFAULTS.ignore)


@pytest.mark.parametrize(
    "name", ["a.py", "index.php", "page.html", "base.jinja2", "mail.twig", ".env", "x.blade.php"]
)
def test_files_that_matter(name: str) -> None:
    """Code and templates matter by default, wherever they are."""
    assert RULES.takes_file(f"/srv/{name}")


@pytest.mark.parametrize(
    "name", ["a.pyc", "a.py~", ".a.py.swp", "4913", "app.log", "style.css", "db.sqlite3", "py"]
)
def test_files_that_do_not(name: str) -> None:
    """What editors, interpreters and the application itself write does not."""
    assert not RULES.takes_file(f"/srv/{name}")


def test_folders_that_are_left_out(tmp_path: Path) -> None:
    """A name is left out wherever it is, the end of a path only there; the rest is watched folder by folder."""
    for name in (
        *("app/views", "app/__pycache__", "node_modules/x", "app/vendor/y", ".git/objects", ".venv/lib"),
        *("var/cache/dev", "var/lib", "storage/framework/views", "storage/app", "cache"),
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "app" / "a.py").touch()
    (tmp_path / "app" / "notes.txt").touch()
    folders = RULES.folders([str(tmp_path)])
    expected = ("", "app", "app/views", "var", "var/lib", "storage", "storage/app", "cache")
    assert sorted(folders) == sorted(str(tmp_path / name) for name in expected)
    assert RULES.files_in(folders) == [str(tmp_path / "app" / "a.py")]
    assert RULES.folders([str(tmp_path / "app" / "a.py")]) == [str(tmp_path / "app" / "a.py")]
    assert RULES.folders([str(tmp_path / "app"), str(tmp_path)])[0] == str(tmp_path / "app")


@given(st.text())
def test_any_name_can_be_asked_about(name: str) -> None:
    """No name of a file is too odd to be judged."""
    assert RULES.takes_file(f"/{name}") in (True, False)
    assert RULES.takes_folder(f"/{name}") in (True, False)


async def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where watchfiles is missing the start fails with the command that installs it."""
    monkeypatch.setitem(sys.modules, "watchfiles._rust_notify", None)
    plugin = ReloadPlugin(ReloadConfig(paths=(str(tmp_path),)))
    with trio.fail_after(5), pytest.raises(PluginFailed, match="pip install watchfiles") as caught:
        await plugin.run(Services(), trio.Event())
    assert caught.value.reason == MISSING_TEXT


async def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    """A path that does not exist is named."""
    plugin = ReloadPlugin(ReloadConfig(paths=(str(tmp_path / "nowhere"),)))
    with trio.fail_after(5), pytest.raises(PluginFailed, match=r"reload\.paths: there is no .*nowhere"):
        await plugin.run(Services(), trio.Event())


async def test_it_ends_when_the_server_stops(tmp_path: Path) -> None:
    """Opened or not, it returns soon after the stop."""
    for opened in (False, True):
        plugin = ReloadPlugin(ReloadConfig(paths=(str(tmp_path),)))
        stopping = trio.Event()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                await nursery.start(plugin.run, Services(), stopping)
                if opened:
                    await plugin.open()
                stopping.set()
