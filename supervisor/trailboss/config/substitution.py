"""Environment variables in texts: `${NAME}`, `$NAME`, `${NAME:-default}`, and `$$` for a dollar sign.

`${credential:NAME}` is what systemd's LoadCredential= put into the file NAME of $CREDENTIALS_DIRECTORY, without a line feed
at its end; a value that holds one is hidden wherever the configuration is shown.

Every string scalar is expanded exactly once, wherever it stands (lists in maps, maps in lists, `-o` values): what a
variable holds is never looked at again, so a password with a `$` arrives as it is. A default applies when the variable
is unset or empty. A variable that is not set and has no default gives the empty text, as in RoadRunner, and is noted.
A `$` before anything else stays a `$`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Final

from trailboss.config.problems import Problem
from trailboss.config.tree import Node

__all__ = ["expand_text", "substitute"]

_REFERENCE: Final = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<braced>[^{}]*)\}|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<open>\{))"
)
_BRACED: Final = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)
_CREDENTIAL: Final = re.compile(r"credential:(?P<name>[A-Za-z0-9_-][A-Za-z0-9._-]*)")
_CHARACTERS_MAX: Final = 8 << 20
_SECRET_REFERENCE: Final = re.compile(r"(?<!\$)(?:\$\$)*\$\{credential:")
_CREDENTIAL_BYTES_MAX: Final = 1 << 20
_REMEDY: Final = "write ${NAME} or ${NAME:-default}, and $$ for a dollar sign"


def expand_text(text: str, environ: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return the expanded text and the variables in it that are not set. Raises ValueError saying what is wrong."""
    unset: list[str] = []
    length = 0

    def value_of(match: re.Match[str]) -> str:
        nonlocal length
        value = _value(match, environ, unset)
        length += len(value)
        if length > _CHARACTERS_MAX:
            raise ValueError("the variables in it come to more than 8 MiB")
        return value

    return _REFERENCE.sub(value_of, text), tuple(unset)


def _value(match: re.Match[str], environ: Mapping[str, str], unset: list[str]) -> str:
    if match["dollar"]:
        return "$"
    if match["open"]:
        raise ValueError("a ${ that is not closed, or braces inside of ${...}")
    default = None
    name = match["name"]
    if name is None:
        credential = _CREDENTIAL.fullmatch(match["braced"])
        if credential is not None:
            return _credential(credential["name"], environ)
        braced = _BRACED.fullmatch(match["braced"])
        if braced is None:
            raise ValueError("a ${...} that is neither ${NAME}, ${NAME:-default} nor ${credential:NAME}")
        name, default = braced["name"], braced["default"]
    value = environ.get(name)
    if default is not None:
        return value or default
    if value is None:
        unset.append(name)
        return ""
    return value


def _credential(name: str, environ: Mapping[str, str]) -> str:
    """Return the content of a credential. Raises ValueError saying what is wrong."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ValueError(
            f"the credential {name} is wanted, but systemd passed none ($CREDENTIALS_DIRECTORY is not set); "
            f"add LoadCredential={name}:/path to the unit"
        )
    try:
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read(_CREDENTIAL_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ValueError(
            f"systemd passed no credential {name}; add LoadCredential={name}:/path to the unit"
        ) from None
    except OSError as error:
        raise ValueError(f"the credential {name} cannot be read: {error.strerror}") from None
    if len(data) > _CREDENTIAL_BYTES_MAX:
        raise ValueError(f"the credential {name} is larger than 1 MiB")
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise ValueError(f"the credential {name} is no UTF-8 text") from None


def substitute(root: Node, environ: Mapping[str, str]) -> tuple[list[Problem], list[Problem]]:
    """Expand every text in the tree in place; return (problems, notes)."""
    problems: list[Problem] = []
    notes: list[Problem] = []
    room = _CHARACTERS_MAX
    for key, node in _texts(root, ""):
        try:
            text, unset = expand_text(node.text, environ)
            room -= len(text)
            if room < 0:
                raise ValueError("the variables in the file come to more than 8 MiB")
        except ValueError as error:
            problems.append(node.problem(key, str(error), _REMEDY))
            node.value = None  # no second error about what the text then is
            if room < 0:
                break
            continue
        notes.extend(
            node.problem(
                key, f"the environment variable {name} is not set", f"set it or write ${{{name}:-default}}"
            )
            for name in unset
        )
        node.is_secret = bool(_SECRET_REFERENCE.search(node.text))
        node.value = node.text = text
        node.substituted = True
        node.unset = unset
    return problems, notes


def _texts(root: Node, key: str) -> Iterator[tuple[str, Node]]:
    """Yield every text that holds a `$`, with the dotted name of its key."""
    if isinstance(root.value, dict):
        for name, child in root.value.items():
            yield from _texts(child, f"{key}.{name}" if key else name)
    elif isinstance(root.value, list):
        for index, child in enumerate(root.value):
            yield from _texts(child, f"{key}[{index}]")
    elif isinstance(root.value, str) and "$" in root.value:
        yield key, root
