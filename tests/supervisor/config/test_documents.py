"""The documents made from the dataclasses agree with the loader and with the committed copies."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import trailboss.config
from trailboss.config.convert import entry_type, field_types, section_type
from trailboss.config.defaults import defaults_yaml, json_schema, json_schema_text, reference_markdown
from trailboss.config.schema import (
    Config,
    ConfigSource,
    HttpConfig,
    JobsConfig,
    MemoryPipelineConfig,
    MetricsConfig,
    OtelConfig,
    ServerConfig,
    StatusConfig,
    section_keys,
)

from .conftest import Folder

ROOT = Path(__file__).parents[3]


def all_sections(section: type = Config) -> set[type]:
    """Return every section class that can be reached from the root."""
    found = {section}
    for name in section_keys(section):
        hint = field_types(section)[name]
        inner = section_type(hint) or section_type(entry_type(hint))
        if inner is not None and inner not in found:
            found |= all_sections(inner)
    return found | {MemoryPipelineConfig}


def test_every_key_is_documented() -> None:
    """A key has a sentence, a section has a docstring that names it."""
    for section in all_sections():
        for name, item in section_keys(section).items():
            assert str(item.metadata.get("doc", "")).endswith("."), f"{section.__name__}.{name}"


def test_loading_the_defaults_gives_the_defaults(folder: Folder) -> None:
    """What `trailboss config --defaults` prints is a valid file that changes nothing but the required keys."""
    config = folder.load(defaults_yaml())

    assert config.notes == ()
    assert dataclasses.replace(config, source=ConfigSource()) == Config(
        server=ServerConfig(command=("php", "worker.php")),
        http=HttpConfig(address=("127.0.0.1:8080",)),
        jobs=JobsConfig(),
        status=StatusConfig(address="127.0.0.1:2114"),
        metrics=MetricsConfig(),
        otel=OtelConfig(),
    )


def test_the_commented_parts_of_the_defaults_are_valid_too(folder: Folder) -> None:
    """Taking the # away from optional sections and example entries leaves a file that loads."""
    names = {name for section in all_sections() for name in section_keys(section)} | {"emails", "orders"}
    bare = re.sub(
        r"^( *)# ( *)(\w+):(.*)$",
        lambda match: f"{match[1]}{match[2]}{match[3]}:{match[4]}" if match[3] in names else "",
        defaults_yaml(),
        flags=re.MULTILINE,
    )
    text = re.sub(r"^( *)(pipelines|channels|plugins|collect): \{\}$", r"\1\2:", bare, flags=re.MULTILINE)
    config = folder.load(text)

    assert config.server is not None
    assert config.server.on_init is not None
    assert config.jobs is not None
    assert list(config.jobs.pipelines) == ["emails"]
    assert list(config.logs.channels) == ["server"]
    assert list(config.plugins) == ["status"]
    assert config.metrics is not None
    assert list(config.metrics.collect) == ["orders"]


def test_the_schema_has_every_key_and_no_other() -> None:
    """Sections are closed, every reference leads somewhere, every key appears."""
    schema = json_schema()
    definitions = schema["$defs"]
    assert isinstance(definitions, dict)
    text = json.dumps(schema)

    assert set(re.findall(r"#/\$defs/(\w+)", text)) == set(definitions)
    assert {section.__name__ for section in all_sections() - {Config}} == set(definitions)
    for section in all_sections() - {Config}:
        found = definitions[section.__name__]
        assert list(section_keys(section)) == list(found["properties"])
        assert found["additionalProperties"] is False
    assert [*section_keys(Config), "include"] == list(schema["properties"])  # type: ignore[call-overload]  # a dict


def test_the_committed_schema_is_current() -> None:
    """schema.json is what json_schema_text() gives; write it anew after a change of schema.py."""
    committed = Path(trailboss.config.__file__).with_name("schema.json").read_text(encoding="utf-8")

    assert json_schema_text() == committed


def test_the_committed_reference_is_current() -> None:
    """docs/configuration.md is what reference_markdown() gives; write it anew after a change of schema.py."""
    assert reference_markdown() == (ROOT / "docs/configuration.md").read_text(encoding="utf-8")


def test_the_reference_has_a_row_for_every_key() -> None:
    """Each key of each section is found in the page."""
    page = reference_markdown()
    for section in all_sections():
        for name in section_keys(section):
            hint = field_types(section)[name]
            if (
                section_type(hint) is None
                and section_type(entry_type(hint)) is None
                and section is not Config
            ):
                assert f"| `{name}` |" in page
