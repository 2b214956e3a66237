"""`${credential:NAME}`: secrets from systemd, read and never shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from trailboss.config import ConfigError, LoadRequest, load, redacted

TEXT = """
version: "3"
server: {command: [php, worker.php], env: [{DATABASE: "mysql://app:${credential:db}@h/x"}, {PRICE: "$$${NOTHING:-5}"}]}
jobs: {pool: {num_workers: 1}}
"""


def _load(folder: Path, text: str, credentials: Path | None) -> object:
    (folder / ".rr.yaml").write_text(text)
    environ = {"PATH": os.environ["PATH"]}
    if credentials is not None:
        environ["CREDENTIALS_DIRECTORY"] = str(credentials)
    return load(LoadRequest(workdir=str(folder), environ=environ))


def test_a_credential_is_read_and_hidden(tmp_path: Path) -> None:
    """The worker gets it; nobody who looks at the configuration does."""
    (tmp_path / "db").write_text("s3cr$t\n")
    config = _load(tmp_path, TEXT, tmp_path)
    env = config.server.env  # type: ignore[attr-defined]
    assert env["DATABASE"] == "mysql://app:s3cr$t@h/x"
    assert env["PRICE"] == "$5"
    shown = json.dumps(redacted(config.source.merged))  # type: ignore[attr-defined]
    assert "s3cr" not in shown
    assert "mysql" not in shown
    assert "$5" in shown


@pytest.mark.parametrize(
    ("content", "passed", "text"),
    [
        (None, True, "systemd passed no credential db; add LoadCredential=db:/path to the unit"),
        (None, False, "but systemd passed none ($CREDENTIALS_DIRECTORY is not set)"),
        (b"\xff\xfe", True, "the credential db is no UTF-8 text"),
        (b"x" * ((1 << 20) + 1), True, "the credential db is larger than 1 MiB"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, content: bytes | None, passed: bool, text: str) -> None:
    """With the place and what to do."""
    if content is not None:
        (tmp_path / "db").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, TEXT, tmp_path if passed else None)
    [line] = str(caught.value).splitlines()
    assert line.startswith(".rr.yaml:3: server.env") or ".rr.yaml:3: server.env" in line
    assert text in line


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    """Only plain names."""
    with pytest.raises(ConfigError, match="neither"):
        _load(tmp_path, TEXT.replace("credential:db", "credential:../db"), tmp_path)
