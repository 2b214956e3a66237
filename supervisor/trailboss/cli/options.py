"""The global flags, as RoadRunner's `rr` has them: valid on every command, before or after its name.

Each command takes the same flags as the group; every one of them writes into the same Settings, so the place where a flag
stands makes no difference. click's own machinery then sees nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from trailboss.config import Config, LoadRequest

__all__ = ["Settings", "global_flags", "settings_of"]

Decorated = TypeVar("Decorated", bound=Callable[..., object])


@dataclass(slots=True)
class Settings:
    """What the global flags say."""

    program: str = "trailboss"  #: the name it was called by; `rr` has banners of its own
    config: str | None = None
    workdir: str | None = None
    dotenv: str | None = None
    overrides: list[str] = field(default_factory=list)
    debug: bool = False
    pid: bool = False
    silent: bool = False
    experimental: bool = False
    force: bool = False

    @property
    def is_rr(self) -> bool:
        """Whether it was called by RoadRunner's name."""
        return self.program == "rr"

    def load_request(self, require_version: bool = True, without_file: bool = False) -> LoadRequest:
        """Return what the configuration is loaded with."""
        from trailboss.config import LoadRequest

        return LoadRequest(
            path=self.config,
            workdir=self.workdir,
            overrides=tuple(self.overrides),
            dotenv=self.dotenv,
            require_version=require_version,
            without_file=without_file,
            plugin_sections=plugin_sections(),
        )

    def load(self, require_version: bool = True, without_file: bool = False) -> Config:
        """Load the configuration; `without_file`: from overrides alone. Raises ConfigError."""
        from trailboss.config import load

        return load(self.load_request(require_version, without_file))


def plugin_sections() -> dict[str, type]:
    """Return the sections that installed third-party plugins bring: entry points `trailboss.plugin_sections`.

    An entry point that cannot be loaded is left out; its section is then an unknown key, which names it.
    """
    from importlib import metadata

    sections: dict[str, type] = {}
    for entry_point in metadata.entry_points(group="trailboss.plugin_sections"):
        try:
            section = entry_point.load()
        except Exception as error:
            click.echo(f"the section {entry_point.name} of a plugin cannot be loaded: {error}", err=True)
            continue
        if isinstance(section, type):
            sections[entry_point.name] = section
    return sections


def settings_of(context: click.Context) -> Settings:
    """Return the one Settings of this command line."""
    root = context.find_root()
    if not isinstance(root.obj, Settings):
        root.obj = Settings()
    return root.obj


def _store(name: str) -> Callable[[click.Context, click.Parameter, object], None]:
    def store(context: click.Context, parameter: click.Parameter, value: object) -> None:
        settings = settings_of(context)
        if name == "overrides":
            assert isinstance(value, tuple)
            settings.overrides.extend(value)
        elif value:
            setattr(settings, name, value)

    return store


def _show_version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from trailboss.cli.version import version_line

        click.echo(version_line(settings_of(context).program))
        context.exit()


def _flag(*names: str, store: str, text: str, **more: object) -> Callable[[Decorated], Decorated]:
    return click.option(*names, callback=_store(store), expose_value=False, help=text, **more)  # type: ignore[arg-type]


_FLAGS = (
    _flag(
        "-c",
        "--config",
        store="config",
        text="Configuration file; else .rr.yaml or trailboss.yaml.",
        metavar="FILE",
    ),
    _flag(
        "-w",
        "--WorkDir",
        "--workdir",
        store="workdir",
        text="Working directory; else the folder of the configuration.",
        metavar="DIR",
    ),
    _flag(
        "--dotenv", store="dotenv", text="File of environment variables; $DOTENV_PATH wins.", metavar="FILE"
    ),
    _flag(
        "-o",
        "--override",
        store="overrides",
        text="Set one key of the configuration; may be repeated.",
        metavar="KEY=VALUE",
        multiple=True,
    ),
    _flag("-d", "--debug", store="debug", text="Log at level debug.", is_flag=True),
    _flag("-p", "--pid", store="pid", text="serve: write the process id to .pid.", is_flag=True),
    _flag("-s", "--silent", store="silent", text="No banners and no chatter.", is_flag=True),
    _flag(
        "-e",
        "--enable-experimental",
        store="experimental",
        text="Accepted for compatibility, no effect.",
        is_flag=True,
    ),
    _flag("-f", "--force", store="force", text="stop: without grace.", is_flag=True),
    click.option(
        "-v",
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Show the version and exit.",
    ),
)


def global_flags(command: Decorated) -> Decorated:
    """Give a command the global flags."""
    for flag in reversed(_FLAGS):
        command = flag(command)
    return command
