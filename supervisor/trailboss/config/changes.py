"""Pure: what differs between two configurations, key by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from trailboss.config.schema import Config

__all__ = ["changed_keys", "is_under"]

#: Not keys of the file but facts about it.
_FACTS = frozenset({"source", "notes"})


def changed_keys(old: Config, new: Config) -> frozenset[str]:
    """Return the dotted names of the keys whose values differ; a section that comes or goes is one key."""
    return frozenset(
        key
        for name in _names(old)
        if name not in _FACTS
        for key in _differences(getattr(old, name), getattr(new, name), name)
    )


def is_under(key: str, *sections: str) -> bool:
    """Say whether `key` is one of `sections` or lies below one of them."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _names(section: object) -> list[str]:
    assert dataclasses.is_dataclass(section)
    return [item.name for item in dataclasses.fields(section)]


def _differences(old: object, new: object, name: str) -> Iterator[str]:
    if old == new:
        return
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        for inner in _names(old):
            yield from _differences(getattr(old, inner), getattr(new, inner), f"{name}.{inner}")
    elif isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}, key=str):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}")
    else:
        yield name
