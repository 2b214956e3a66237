"""What differs between two configurations."""

from __future__ import annotations

from dataclasses import replace

from trailboss.config.changes import changed_keys, is_under
from trailboss.config.schema import Config, HttpConfig, LogChannelConfig, LogsConfig, PoolConfig


def test_each_key_that_differs_is_named() -> None:
    """Dotted names down to the single key; nothing where nothing differs."""
    old = Config(http=HttpConfig(address=("a:1",), pool=PoolConfig(num_workers=2)))
    assert changed_keys(old, old) == frozenset()
    assert old.http is not None
    pool = replace(old.http.pool, num_workers=3, supervisor=replace(old.http.pool.supervisor, ttl=5.0))
    new = replace(old, http=replace(old.http, pool=pool))
    assert changed_keys(old, new) == {"http.pool.num_workers", "http.pool.supervisor.ttl"}


def test_a_section_that_comes_or_goes_is_one_key() -> None:
    """Whoever takes in sections decides about it as a whole."""
    assert changed_keys(Config(), Config(http=HttpConfig(address=("a:1",)))) == {"http"}


def test_names_in_sections_count() -> None:
    """Entries of a mapping are told apart."""
    old = Config(logs=LogsConfig(channels={"server": LogChannelConfig(level="info")}))
    new = Config(
        logs=LogsConfig(channels={"server": LogChannelConfig(level="debug"), "http": LogChannelConfig()})
    )
    assert changed_keys(old, new) == {"logs.channels.server.level", "logs.channels.http"}


def test_under_a_section() -> None:
    """The section itself and what lies below it, not what begins alike."""
    assert is_under("http.pool", "http.pool")
    assert is_under("http.pool.debug", "http.pool")
    assert not is_under("http.pools", "http.pool")
