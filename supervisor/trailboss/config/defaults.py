"""The documents made from the dataclasses: defaults as YAML, a JSON Schema, and the reference page.

Each walks the same declarations (schema.py), so a new key shows up everywhere at once. Tests hold the committed copies
(`docs/configuration.md` and `schema.json` beside this file) to what these functions return. Only the command line and the
tests import this file; a server that starts does not pay for it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from trailboss.config.convert import entry_type, field_types, is_required, section_type
from trailboss.config.schema import (
    PIPELINE_DRIVERS,
    UNAVAILABLE_KEYS,
    UNAVAILABLE_SECTIONS,
    Config,
    Kind,
    PipelineConfig,
    section_keys,
)
from trailboss.config.values import format_duration

__all__ = ["defaults_yaml", "json_schema", "json_schema_text", "reference_markdown"]

_Key = dataclasses.Field[object]

_EXAMPLES: Final = {
    ("ServerConfig", "command"): "[php, worker.php]",
    ("OnInitConfig", "command"): "[php, init.php]",
    ("StatusConfig", "address"): "127.0.0.1:2114",
    ("PipelineConfig", "driver"): "memory",
    ("CollectorConfig", "type"): "counter",
    ("HttpConfig", "address"): "[127.0.0.1:8080]",
    ("HttpSslConfig", "cert"): "/etc/trailboss/fullchain.pem",
    ("HttpSslConfig", "key"): "/etc/trailboss/privkey.pem",
    ("StaticConfig", "dir"): "public",
    ("AutoscaleConfig", "max"): "16",
    ("PoolConfig", "warmup"): "null",
}
"""Values shown for keys that have no default."""

_ENTRY_NAMES: Final = {"pipelines": "emails", "channels": "server", "plugins": "status", "collect": "orders"}
"""Example names for sections that hold named entries."""

_SWITCHED_ON: Final = ("reload",)
"""Sections of which the mere presence changes a server; in the defaults they are commented out."""


def defaults_yaml() -> str:
    """Return every section with its defaults as commented YAML; loading it gives what an unset key gives.

    Parts that are absent by default (named entries, optional sections) and keys without effect are commented out.
    """
    lines = [
        "# Every key of Trailboss with its default. Durations: 300ms, 10s, 1m30s. Sizes: see each key.",
        'version: "3"',
    ]
    for name, item in section_keys(Config).items():
        if name != "version":
            lines += ["", *_yaml_key(Config, name, item, "")]
    return "\n".join(lines) + "\n"


def _yaml_section(section: type, indent: str) -> Iterator[str]:
    for name, item in section_keys(section).items():
        yield from _yaml_key(section, name, item, indent)


def _yaml_key(section: type, name: str, item: _Key, indent: str) -> Iterator[str]:
    hint = field_types(section)[name]
    inner = section_type(hint)
    entries = section_type(entry_type(hint))
    yield f"{indent}# {_sentence(section, name, item)}"
    if entries is not None:
        yield f"{indent}{name}: {{}}"
        yield f"{indent}#   {_ENTRY_NAMES.get(name, 'name')}:"
        yield from (f"{indent}#     {line}" for line in _yaml_section(entries, ""))
    elif inner is not None:
        is_absent = item.default is None and (section is not Config or name in _SWITCHED_ON)
        prefix = f"{indent}# " if is_absent else indent
        yield f"{prefix}{name}:"
        yield from (f"{prefix}  {line}" for line in _yaml_section(inner, ""))
    elif item.metadata.get("note"):
        yield f"{indent}# {name}: {_yaml_value(section, name, item, hint)}"
    elif section is PipelineConfig and name == "config":
        yield f"{indent}config:"
        yield from _yaml_section(PIPELINE_DRIVERS["memory"], indent + "  ")
    else:
        yield f"{indent}{name}: {_yaml_value(section, name, item, hint)}"


def _sentence(section: type, name: str, item: _Key) -> str:
    unit = item.metadata.get("unit", "")
    text = str(item.metadata.get("doc", ""))
    default = item.metadata.get("default_text", "")
    if unit:
        text = f"{text} Unit: {unit}."
    if default:
        text = f"{text} Default: {default}."
    return f"{text} Required." if is_required(item) else text


def _yaml_value(section: type, name: str, item: _Key, hint: object) -> str:
    example = _EXAMPLES.get((section.__name__, name))
    if example is not None:
        return example
    default = _default_of(item)
    if default is None or (item.metadata.get("default_text") and default in (-1.0, ())):
        return "null"
    if _kind(hint) in (Kind.DURATION, Kind.SECONDS_OR_DURATION) and isinstance(default, float):
        return format_duration(default)
    if isinstance(default, tuple):
        return f"[{', '.join(map(_yaml_word, default))}]"
    return json.dumps(default)


def _yaml_word(value: object) -> str:
    """A list's entry, in quotes where YAML would take its first sign for something else."""
    text = str(value)
    return json.dumps(text) if text[:1] in "*&!%@`" else text


def _default_of(item: _Key) -> object:
    if item.default is not dataclasses.MISSING:
        return item.default
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return None


def _kind(hint: object) -> Kind | None:
    if get_origin(hint) is Annotated:
        return next((part for part in get_args(hint)[1:] if isinstance(part, Kind)), None)
    return None


# --- JSON Schema ------------------------------------------------------------------------------------------------------

_VARIABLE: Final = {"type": "string", "pattern": r"\$"}
"""Any value may be a text with environment variables."""
_DURATION: Final = {
    "anyOf": [
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))+$|^0$|\$"},
        {"const": 0},
    ]
}
_TEXT: Final = {"type": ["string", "number", "boolean"]}


def json_schema() -> dict[str, object]:
    """Return a JSON Schema (2020-12) of the configuration file, for editors and CI."""
    definitions: dict[str, object] = {}
    root = _schema_section(Config, definitions)
    properties = root["properties"]
    assert isinstance(properties, dict)
    properties["include"] = {
        "description": "Files whose sections replace those of this file.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Trailboss configuration",
        **root,
        "required": ["version"],
        "$defs": definitions,
    }


def json_schema_text() -> str:
    """Return `json_schema()` as the text of the committed schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _schema_section(section: type, definitions: dict[str, object]) -> dict[str, object]:
    properties: dict[str, object] = {}
    for name, item in section_keys(section).items():
        schema = _schema_value(field_types(section)[name], item, definitions)
        if section is PipelineConfig and name == "config":
            schema = {"anyOf": [_reference(driver, definitions) for driver in PIPELINE_DRIVERS.values()]}
        if section is Config and name == "version":
            schema = {"const": "3"}
        properties[name] = {"description": _sentence(section, name, item), **schema}
    found: dict[str, object] = {
        "description": _first_line(section),
        "type": ["object", "null"],
        "properties": properties,
        # A dotted key (`pool.debug: true`) stands for nested ones.
        "patternProperties": {r"\.": {}},
        "additionalProperties": False,
    }
    required = [name for name, item in section_keys(section).items() if is_required(item)]
    if required:
        found["required"] = required
    return found


def _reference(section: type, definitions: dict[str, object]) -> dict[str, object]:
    if section.__name__ not in definitions:
        definitions[section.__name__] = {}
        definitions[section.__name__] = _schema_section(section, definitions)
    return {"$ref": f"#/$defs/{section.__name__}"}


def _schema_value(hint: object, item: _Key, definitions: dict[str, object]) -> dict[str, Any]:
    section = section_type(hint)
    if section is not None:
        return _reference(section, definitions)
    kind = _kind(hint)
    if kind is Kind.DURATION:
        return dict(_DURATION)
    if kind is Kind.SECONDS_OR_DURATION:
        return {"anyOf": [{"type": "integer", "minimum": item.metadata["minimum"] or 0}, *_DURATION["anyOf"]]}
    if kind is Kind.COMMAND or kind is Kind.WARMUP:
        return {"type": ["string", "array", "null"], "items": _TEXT, "minItems": 1}
    if kind is Kind.ENVIRONMENT:
        values = {"additionalProperties": {"type": ["string", "number", "boolean", "null"]}}
        return {"type": ["object", "array", "null"], **values, "items": {"type": "object", **values}}
    if kind is Kind.MEGABYTES:
        return _schema_value(int, item, definitions)
    if get_origin(hint) is Literal:
        return {"anyOf": [{"enum": list(get_args(hint))}, _VARIABLE]}
    inner = entry_type(hint)
    if inner is not None:
        return {"type": ["object", "null"], "additionalProperties": _schema_value(inner, item, definitions)}
    if get_origin(hint) is tuple:
        return {"type": ["array", "string", "null"], "items": _TEXT}
    options = [part for part in get_args(hint) if part is not type(None)]
    if options:
        return {"anyOf": [_schema_value(options[0], item, definitions), {"type": "null"}]}
    return _schema_plain(hint, item)


def _schema_plain(hint: object, item: _Key) -> dict[str, Any]:
    if hint is int:
        integer: dict[str, object] = {"type": "integer"}
        for bound in ("minimum", "maximum"):
            if item.metadata.get(bound) is not None:
                integer[bound] = item.metadata[bound]
        return {"anyOf": [integer, {"type": "string", "pattern": r"^[+-]?[0-9]+$|\$"}]}
    if hint is bool:
        return {"anyOf": [{"type": "boolean"}, {"enum": ["yes", "no", "on", "off"]}, _VARIABLE]}
    return dict(_TEXT) if hint is str else {}


def _first_line(section: type) -> str:
    return (section.__doc__ or "").strip().splitlines()[0]


def _summary(section: type) -> str:
    """Return the first line of a section's docstring without the name it begins with."""
    _, colon, text = _first_line(section).partition("`: ")
    return text[:1].upper() + text[1:] if colon else ""


# --- reference page ---------------------------------------------------------------------------------------------------

_INTRODUCTION: Final = """\
# Configuration

This page is generated from the declarations in `trailboss.config.schema`. `trailboss config --defaults` prints every key
with its default as YAML, `trailboss check` looks for mistakes, and `supervisor/trailboss/config/schema.json` is a JSON
Schema for editors (`# yaml-language-server: $schema=...`).

## The file

| topic | rule |
|---|---|
| name | `.rr.yaml`, else `trailboss.yaml`, in the working directory; `-c FILE` names another. `.json` files are JSON, everything else is YAML |
| working directory | the folder of the file; `-w DIR` sets it, and a relative `-c` is then relative to DIR |
| `version` | required in every file: `version: "3"` |
| scalars | YAML 1.2: `off`, `yes`, `12:30`, `010` and dates surprise nobody. A switch also takes yes/no, on/off, 1/0 |
| durations | need a unit: `300ms`, `10s`, `1h3m`. A bare number is refused (RoadRunner takes it as nanoseconds); 0 is allowed. `jobs.timeout` and `status.check_timeout` take a bare number as seconds |
| keys | upper and lower case are the same; a dotted key inside a section (`pool.debug: true`) stands for nested keys; a key given twice is an error |
| names | names of pipelines keep their case (RoadRunner lower-cases them); `jobs.consume` finds them in any case. Two names that differ only in case are an error. A name has no dots |
| lists | `a,b` is the list `[a, b]` |
| commands | a list is the argument vector. A text is split at spaces, without quoting and without a shell; one without spaces, or given by `-o`, is split at commas |
| unknown key | an error with the nearest known name |
| section of a plugin that Trailboss does not have | an error that names the plugin |
| size | at most 8 MiB, 64 levels, 100,000 values with aliases counted in full |
| errors | all at once, one a line: `file:line: key: what; what to do`; exit code 2 |

### Environment variables

`${NAME}`, `$NAME` and `${NAME:-default}` (used when the variable is unset or empty) work in every text, also inside lists
and maps and in `-o` values; `$$` is a dollar sign, and a `$` before anything else stays. Values are expanded once: what a
variable holds is never expanded again. A variable that is not set gives an empty text and a note in the log; for a number,
a switch or a duration the default of the key then applies.

`--dotenv FILE` (or `$DOTENV_PATH`, which wins) adds variables from a file of `NAME=value` lines before the configuration is
read; variables that exist already are kept.

`${credential:NAME}` is a credential of systemd (`LoadCredential=NAME:/path` in the unit): the content of the file NAME in
`$CREDENTIALS_DIRECTORY`. Values that hold one are hidden wherever the configuration is shown.

In `server.env` the YAML values `true` and `false` are passed as `1` and `0`, as RoadRunner does; put quotes around them to
pass the words.

### `-o key=value`

May be repeated, wins over files and includes. The value may be in quotes; an empty value without quotes is an error.

### `include`

`include: [jobs.yaml, logs.yaml]`: every file carries its own `version`, equal to the root's. A path is relative to the file
that includes it; where nothing is found there, to the working directory. Each section of an included file replaces the whole
section of that name; later files win. `include` inside an included file has no effect.
"""


def reference_markdown() -> str:
    """Return the text of docs/configuration.md."""
    parts = [_INTRODUCTION]
    for name, item in section_keys(Config).items():
        hint = field_types(Config)[name]
        section = section_type(hint)
        entries = section_type(entry_type(hint))
        if section is not None:
            parts.append(_reference_section(name, section, item))
        elif entries is not None:
            parts.append(_reference_section(f"{name}.<name>", entries, item))
    parts.append(_reference_unavailable())
    return "\n".join(parts)


def _reference_section(name: str, section: type, item: _Key | None) -> str:
    rows: list[str] = []
    inner: list[str] = []
    for key, child in section_keys(section).items():
        hint = field_types(section)[key]
        nested, entries = section_type(hint), section_type(entry_type(hint))
        if nested is not None:
            inner.append(_reference_section(f"{name}.{key}", nested, child))
        elif entries is not None:
            inner.append(_reference_section(f"{name}.{key}.<name>", entries, child))
        else:
            rows.append(
                f"| `{key}` | {_type_text(hint, child)} | {_default_text(hint, child)} | {_meaning(child)} |"
            )
    for driver, options in PIPELINE_DRIVERS.items():
        if section is PipelineConfig:
            inner.append(_reference_section(f"{name}.config (driver {driver})", options, None))
    summary = _summary(section) or (_meaning(item) if item is not None else "")
    text = f"## `{name}`\n\n{summary}\n"
    if rows:
        text += "\n| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    return "\n".join([text, *inner])


def _type_text(hint: object, item: _Key) -> str:
    unit = item.metadata.get("unit", "")
    names = {
        Kind.DURATION: "duration",
        Kind.SECONDS_OR_DURATION: "seconds or duration",
        Kind.MEGABYTES: "int",
        Kind.COMMAND: "list or text",
        Kind.WARMUP: "list or text",
        Kind.ENVIRONMENT: "names and texts",
    }
    kind = _kind(hint)
    if kind is not None:
        text = names[kind]
    elif get_origin(hint) is Literal:
        text = ", ".join(f"`{choice}`" for choice in get_args(hint) if choice)
    elif get_origin(hint) is tuple:
        text = "list"
    elif entry_type(hint) is not None:
        text = "names and texts"
    elif get_args(hint):
        return _type_text(get_args(hint)[0], item)
    else:
        text = getattr(hint, "__name__", "text").replace("str", "text").replace("bool", "switch")
    return f"{text} ({unit})" if unit else text


def _default_text(hint: object, item: _Key) -> str:
    if is_required(item):
        return "required"
    if item.metadata.get("default_text"):
        return str(item.metadata["default_text"])
    default = _default_of(item)
    if isinstance(default, float) and _kind(hint) is not None:
        return f"`{format_duration(default)}`"
    if isinstance(default, Mapping) or default in ((), "", None):
        return "empty"
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`"
    return f"`{json.dumps(default)}`"


def _meaning(item: _Key) -> str:
    return str(item.metadata.get("doc", "")).replace("|", "\\|")


def _reference_unavailable() -> str:
    names = ", ".join(f"`{name}`" for name in sorted(UNAVAILABLE_SECTIONS))
    keys = ", ".join(
        f"`{key}` in {_first_line(section).split(':')[0]}"
        for section, keys in UNAVAILABLE_KEYS.items()
        for key in keys
    )
    return (
        "## What RoadRunner has and this version has not\n\n"
        f"A file with one of these sections is refused with a message that says so: {names}.\n\n"
        f"Likewise these keys: {keys}.\n"
    )
