"""Priorities for the journal: on every line where a stream leads there, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trailboss.config.schema import LogsConfig
from trailboss.plugins.logs.system import LogSystem, is_journal, with_priority


def test_every_line_begins_with_its_priority() -> None:
    """journald takes each line for a record, so each of a text of several lines has its priority."""
    assert with_priority("one\ntwo\n", "error") == "<3>one\n<3>two\n"
    assert [with_priority("x", level)[:3] for level in ("debug", "info", "warn", "panic")] == [
        "<7>",
        "<6>",
        "<4>",
        "<2>",
    ]


def test_a_stream_is_the_journal_where_device_and_inode_are_those_told(tmp_path: Path) -> None:
    """The variable is inherited by everybody; a stream that was redirected since has another inode."""
    with (tmp_path / "a").open("w") as journal, (tmp_path / "b").open("w") as other:
        found = os.fstat(journal.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(journal.fileno(), environ)
        assert not is_journal(other.fileno(), environ)
        assert not is_journal(journal.fileno(), {})


@pytest.mark.parametrize("told", [True, False])
def test_records_on_standard_error(
    told: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Records and access lines have the prefix where standard error is the journal, and are as ever where it is not."""
    found = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}" if told else "1:1")
    system = LogSystem(LogsConfig(mode="raw", level="debug"))
    try:
        system.log("warn", "http", "careful", {})
        system.log_encoded("info", "http", [("GET /", "{}")])
        assert system.flush(5.0)
    finally:
        system.close(5.0)
    assert capfd.readouterr().err.splitlines() == (
        ["<4>careful", "<6>GET /"] if told else ["careful", "GET /"]
    )
