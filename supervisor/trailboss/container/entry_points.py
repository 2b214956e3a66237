"""Third-party plugins: found by entry point, held to the same contract, never able to break a start with a traceback.

A distribution names in the group ``trailboss.plugins`` a callable that takes the loaded configuration and returns a
Plugin, or None where the configuration does not ask for it; the entry point's name is the plugin's name. What goes wrong
on the way (import, call, wrong type or name, methods and pools that cannot be asked for) is one sentence that names plugin, distribution and cause. It ends the
start before anything runs, unless `plugins.<name>.optional` is set: then a :class:`BrokenPlugin` takes its place, which
fails when it is started, so that the reason shows wherever plugins show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Final

import trio

from trailboss.config.schema import Config
from trailboss.container.contract import Phase, Plugin, PluginFailed, Services
from trailboss.container.tasks import describe_error
from trailboss.log import logger

__all__ = ["GROUP", "BrokenPlugin", "find_entry_points", "load_plugins"]

#: The entry point group.
GROUP: Final = "trailboss.plugins"

log = logger("container")


class BrokenPlugin(Plugin):
    """Stands in for an optional plugin that could not be loaded: fails its start with the reason, and does nothing."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Raise PluginFailed."""
        raise PluginFailed(self.name, Phase.STARTING, self._reason)


def find_entry_points() -> tuple[metadata.EntryPoint, ...]:
    """Return the entry points of all installed distributions in the order of their names, so that starts repeat."""
    found = metadata.entry_points(group=GROUP)
    return tuple(sorted(found, key=lambda entry_point: (entry_point.name, entry_point.value)))


def load_plugins(
    config: Config,
    entry_points: Iterable[metadata.EntryPoint] | None = None,
    is_optional: Callable[[str], bool] | None = None,
) -> list[Plugin]:
    """Return the third-party plugins that `config` asks for; `entry_points` None means all that are installed.

    Raises PluginFailed, in one sentence, for the first that cannot be loaded and is not optional.
    """
    if is_optional is None:
        is_optional = config.is_optional
    plugins: list[Plugin] = []
    for entry_point in find_entry_points() if entry_points is None else entry_points:
        try:
            plugin = _load_one(entry_point, config)
        # A module that ends the interpreter while it is imported is as broken as one that raises.
        except (Exception, SystemExit) as error:
            reason = f"{_source(entry_point)} {describe_error(error)}"
            log.debug("third-party plugin cannot be loaded", plugin=entry_point.name, exc_info=True)
            if not is_optional(entry_point.name):
                raise PluginFailed(entry_point.name, Phase.DECLARED, reason) from error
            plugins.append(BrokenPlugin(entry_point.name, reason))
            continue
        if plugin is not None:
            plugins.append(plugin)
    return plugins


def _load_one(entry_point: metadata.EntryPoint, config: Config) -> Plugin | None:
    make: object = entry_point.load()
    if not callable(make):
        raise TypeError(f"is a {type(make).__name__}; it must be a callable that takes the configuration")
    plugin: object = make(config)
    if plugin is None:
        return None
    if not isinstance(plugin, Plugin):
        raise TypeError(f"returned a {type(plugin).__name__}; it must return a Plugin or None")
    if plugin.name != entry_point.name:
        raise ValueError(
            f"returned a plugin named {plugin.name!r}; the entry point and the plugin must have one name"
        )
    # What everybody will ask of it before the start is asked here first, where an error has a name to it.
    tuple(plugin.rpc_methods()), tuple(plugin.pools())
    return plugin


def _source(entry_point: metadata.EntryPoint) -> str:
    distribution = entry_point.dist
    of = f" of {distribution.name} {distribution.version}" if distribution is not None else ""
    return f"(entry point {entry_point.value}{of}) cannot be loaded:"
