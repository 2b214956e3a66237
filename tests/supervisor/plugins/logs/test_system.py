"""Channels, levels, modes and outputs as the configuration says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from trailboss.config.schema import FileLoggerConfig, LogChannelConfig, LogLevel, LogMode, LogsConfig
from trailboss.container.contract import Services
from trailboss.log import logger
from trailboss.plugins.logs import LogsPlugin, LogSystem, LogTargetError, install
from trailboss.plugins.logs import system as system_module


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    """Close what a test has installed."""
    yield
    installed = system_module._Installed.system
    if installed is not None:
        installed.close(10)
    system_module._Installed.system = None


def written(system: LogSystem, path: Path) -> list[str]:
    """Return the lines of a log file."""
    assert system.flush(30)
    return path.read_text().splitlines()


def test_channel_inherits_what_it_does_not_say(tmp_path: Path) -> None:
    """A channel with only a level keeps the root's mode and output."""
    path = tmp_path / "out.log"
    config = LogsConfig(
        mode="production",
        level="info",
        output=(str(path),),
        channels={"jobs": LogChannelConfig(level="error")},
    )
    system = install(config)
    logger("jobs").info("hidden")
    logger("jobs").error("shown")
    logger("server").debug("hidden")
    logger("server").warning("shown too", pid=1)
    records = [json.loads(line) for line in written(system, path)]
    assert [(record["level"], record["logger"], record["msg"]) for record in records] == [
        ("error", "jobs", "shown"),
        ("warn", "server", "shown too"),
    ]


def test_channel_can_have_a_file_of_its_own(tmp_path: Path) -> None:
    """Two channels, two files, each with what was logged there alone."""
    root, own = tmp_path / "root.log", tmp_path / "app.log"
    channel = LogChannelConfig(output=(str(own),), mode="raw")
    system = install(LogsConfig(mode="raw", output=(str(root),), channels={"app": channel}))
    logger("app").info("from the\napplication")
    logger("rpc").info("from rpc")
    assert written(system, own) == ["from the\\napplication"]
    assert written(system, root) == ["from rpc"]


@pytest.mark.parametrize("mode", ["none", "off"])
def test_nothing_is_written_in_mode_none(tmp_path: Path, mode: str) -> None:
    """Modes none and off write nothing and open nothing."""
    path = tmp_path / "out.log"
    system = install(LogsConfig(mode=mode, output=(str(path),)))  # type: ignore[arg-type]
    logger("server").error("gone")
    assert system.flush(30)
    assert not path.exists()


def test_file_logger_options_replace_output_and_are_json(tmp_path: Path) -> None:
    """A rotating file gets JSON even in development mode, and `output` gets nothing."""
    rotating, output = tmp_path / "rotating.log", tmp_path / "output.log"
    options = FileLoggerConfig(log_output=str(rotating))
    system = install(LogsConfig(output=(str(output),), file_logger_options=options))
    logger("server").info("hello")
    assert json.loads(written(system, rotating)[0])["msg"] == "hello"
    assert not output.exists()


def test_encoding_overrides_the_mode(tmp_path: Path) -> None:
    """Development with encoding json is JSON."""
    path = tmp_path / "out.log"
    system = install(LogsConfig(mode="development", encoding="json", output=(str(path),)))
    logger("server").info("hello")
    assert json.loads(written(system, path)[0])["logger"] == "server"


def test_exceptions_stay_on_their_line(tmp_path: Path) -> None:
    """A traceback is a field of its record."""
    path = tmp_path / "out.log"
    system = install(LogsConfig(mode="production", output=(str(path),)))
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger("server").exception("handler failed")
    (line,) = written(system, path)
    record = json.loads(line)
    assert record["level"] == "error"
    assert "ValueError: two\nlines" in record["exception"]


def test_a_target_that_cannot_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    """The error names key, path and reason, and the log in force stays in force."""
    good = tmp_path / "good.log"
    system = install(LogsConfig(mode="raw", output=(str(good),)))
    with pytest.raises(LogTargetError, match=r"^logs\.output: cannot open .*/absent/x\.log: No such file"):
        install(LogsConfig(output=(str(tmp_path / "absent" / "x.log"),)))
    logger("server").info("still here")
    assert written(system, good) == ["still here"]


async def test_plugin_provides_the_system_and_reports_it(tmp_path: Path) -> None:
    """The plugin is healthy while its targets can be written, and counts what was dropped."""
    system = install(LogsConfig(mode="raw", output=(str(tmp_path / "x.log"),)))
    plugin, services, stopping = LogsPlugin(system), Services(), trio.Event()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(plugin.run, services, stopping)
            assert services.get(LogSystem) is system
            assert plugin.health().ok
            assert plugin.state_detail() == {"dropped": 0}
            stopping.set()


def test_everything_is_written_when_the_process_ends() -> None:
    """Records logged right before the exit reach standard output, every line valid JSON."""
    program = (
        "from trailboss.config.schema import LogsConfig\n"
        "from trailboss.plugins.logs import install\n"
        "from trailboss.log import logger\n"
        "install(LogsConfig(mode='production', output=('stdout',)))\n"
        "for number in range(5000): logger('server').info('line', number=number)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True)
    assert list(range(5000)) == [json.loads(line)["number"] for line in done.stdout.splitlines()]
    assert done.stderr == b""


@pytest.mark.parametrize("mode", ["production", "development", "raw"])
@pytest.mark.parametrize("level", ["info", "warn"])
def test_encoded_records_look_like_all_others(mode: LogMode, level: LogLevel, tmp_path: Path) -> None:
    """Fields that are JSON already give the very line that the same fields give otherwise."""
    files = [tmp_path / "encoded", tmp_path / "plain"]
    fields = {"status": 200, "URI": '/a"b'}
    for file in files:
        system = LogSystem(LogsConfig(mode=mode, level=level, output=(str(file),)))
        if file is files[0]:
            system.log_encoded("info", "http", [("http log", json.dumps(fields, separators=(",", ":")))] * 2)
        else:
            for _ in range(2):
                system.log("info", "http", "http log", fields)
        assert system.close(30)
    encoded, plain = (
        re.sub(r'"ts":[0-9]+|^[^\t]+Z', "", file.read_text(), flags=re.MULTILINE) for file in files
    )
    assert encoded == plain
    assert encoded.count("\n") == (2 if level == "info" else 0)
