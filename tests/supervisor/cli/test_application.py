"""`serve --wsgi` and `--asgi`: what the flags become, and which are refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import pytest

from trailboss.cli.app import run
from trailboss.cli.application import Application, application_of, overrides_of
from trailboss.cli.options import Settings
from trailboss.cli.serve import load
from trailboss.config import Config
from trailboss.plugins.http.python_apps import wants_raw_body


def loaded(*overrides: str, **flags: object) -> Config:
    """The configuration that `serve` would run with."""
    given = {"wsgi": None, "asgi": None, "bind": (), "workers": None, "pythonpath": (), **flags}
    return load(Settings(overrides=list(overrides)), given)


def test_an_application_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flag is a whole configuration, run from the folder it was given in."""
    monkeypatch.chdir(tmp_path)
    config = loaded(wsgi="myproject.wsgi")
    assert config.http is not None
    assert config.server is not None
    assert config.http.address == ("127.0.0.1:8000",)
    assert config.http.raw_body is True
    assert config.server.command == ("trailboss-worker", "wsgi", "myproject.wsgi")
    assert wants_raw_body(config.server.command) is True
    assert config.source.working_directory == str(tmp_path)
    assert config.logs.level == "info"
    assert config.notes == ()


def test_a_file_that_lies_there_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only -c brings a file in."""
    (tmp_path / ".rr.yaml").write_text("nonsense: [")
    monkeypatch.chdir(tmp_path)
    assert loaded(asgi="app").source.path == ""


def test_every_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them ends up where it belongs; what follows -o wins."""
    (tmp_path / "a b$c").mkdir()
    monkeypatch.chdir(tmp_path)
    config = loaded(
        "http.pool.num_workers=3",
        asgi="app:make",
        bind=("127.0.0.1:1", f"unix:{tmp_path}/x.sock"),
        workers=2,
        factory=True,
        chdir="a b$c",
        pythonpath=("lib", "/opt/$x"),
        python="venv/bin/python",
    )
    assert config.http is not None
    assert config.server is not None
    assert config.http.address == ("127.0.0.1:1", f"unix:{tmp_path}/x.sock")
    assert config.http.pool.num_workers == 3
    assert config.server.python == str(tmp_path / "venv/bin/python")
    words = ("trailboss-worker", "asgi", "app:make", "--factory")
    paths = ("--pythonpath", str(tmp_path / "lib"), "--pythonpath", "/opt/$x")
    assert config.server.command == words + paths
    assert config.source.working_directory == str(tmp_path / "a b$c")


def test_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With -c the flags are laid over the file, whose folder and logs stay."""
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "file.yaml"
    file.write_text(
        'version: "3"\nserver: {command: "php jobs.php"}\nlogs: {level: warn}\n'
        "http: {address: '127.0.0.1:9', middleware: [gzip]}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = load(
        Settings(config=str(file)),
        {"wsgi": "app", "asgi": None, "bind": ("127.0.0.1:7",), "chdir": "sub"},
    )
    assert config.http is not None
    assert config.server is not None
    assert config.http.address == ("127.0.0.1:7",)
    assert config.http.middleware == ("gzip",)
    assert config.http.pool.command == ("trailboss-worker", "wsgi", "app", "--chdir", str(tmp_path / "sub"))
    assert config.server.command == ("php", "jobs.php")
    assert config.logs.level == "warn"
    assert config.source.working_directory == str(tmp_path / "sub")


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"wsgi": "a", "asgi": "b"}, "either --wsgi or --asgi"),
        ({"wsgi": ""}, "MODULE or MODULE:NAME"),
        ({"asgi": "a:"}, "MODULE or MODULE:NAME"),
        ({"wsgi": None, "bind": ("x:1",)}, "--bind goes with --wsgi or --asgi"),
        ({"workers": 2}, "--workers goes with"),
        ({"factory": True}, "--factory goes with"),
        ({"chdir": "."}, "--chdir goes with"),
        ({"pythonpath": ("x",)}, "--pythonpath goes with"),
        ({"python": "x"}, "--python goes with"),
    ],
)
def test_flags_that_make_no_sense(flags: dict[str, object], text: str) -> None:
    """They are refused with the reason."""
    with pytest.raises(click.UsageError, match=text):
        application_of(**{"wsgi": None, "asgi": None, **flags})  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["a,b", " a", ""])
def test_words_that_cannot_be_said(word: str) -> None:
    """An override has commas between its words; there is the file for the rest."""
    with pytest.raises(click.UsageError, match="cannot be given here"):
        overrides_of(Application("wsgi", "app", pythonpath=(word,)))


def test_a_plain_serve_has_no_application() -> None:
    """Without the two flags everything is as it was."""
    assert application_of(wsgi=None, asgi=None) is None


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line the reason is one line, with exit code 2."""
    assert run(["trailboss", "serve", "--wsgi", "a", "--asgi", "b"]) == 2
    assert "either --wsgi or --asgi" in capsys.readouterr().err


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """It is named."""
    assert run(["trailboss", "serve", "--wsgi", "a", "--chdir", f"{os.sep}no{os.sep}such"]) == 2
    assert "/no/such" in capsys.readouterr().err


def test_flags_for_development() -> None:
    """--reload watches the application's folder and the import paths, --dev shows errors from one worker."""
    application = application_of(
        wsgi="a", asgi=None, chdir="/srv", pythonpath=("/lib",), reload=True, dev=True
    )
    assert application is not None
    overrides = overrides_of(application)
    assert "reload.paths=/srv,/lib" in overrides
    assert "http.dev=true" in overrides
    assert "http.pool.num_workers=1" in overrides
    plain = application_of(wsgi="a", asgi=None)
    assert plain is not None
    assert not [word for word in overrides_of(plain) if "reload" in word or "dev" in word]


def test_reloading_without_its_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--reload without watchfiles says how to install it, before anything starts."""
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    assert run(["trailboss", "serve", "--wsgi", "a", "--reload"]) == 1
    assert "pip install watchfiles" in capsys.readouterr().err
