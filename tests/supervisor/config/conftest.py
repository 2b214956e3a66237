"""A configuration written into a folder of its own, loaded or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from trailboss.config import Config, ConfigError, LoadRequest, load


class Folder:
    """A folder with configuration files; `load` gives the Config, `refuse` the lines of the error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str | bytes, name: str = ".rr.yaml") -> Path:
        """Write one file."""
        path = self.path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def load(
        self,
        text: str | None = None,
        *overrides: str,
        environ: Mapping[str, str] | None = None,
        sections: Mapping[str, type] | None = None,
        require_version: bool = True,
        path: str | None = None,
        workdir: str | None = None,
        dotenv: str | None = None,
    ) -> Config:
        """Load `.rr.yaml` (written from `text`) or `path`."""
        if text is not None:
            self.write(text)
        return load(
            LoadRequest(
                path=path or (None if workdir else str(self.path / ".rr.yaml")),
                workdir=workdir,
                overrides=overrides,
                dotenv=dotenv,
                environ=environ or {},
                plugin_sections=sections or {},
                require_version=require_version,
            )
        )

    def refuse(self, text: str | None = None, *overrides: str, **options: object) -> Sequence[str]:
        """Return the error's lines without the folder in front."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, *overrides, **options)  # type: ignore[arg-type]  # the options of load, passed on
        return str(caught.value).replace(f"{self.path}/", "").splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return an empty folder for configuration files."""
    return Folder(tmp_path)
