"""Hiding secrets in a configuration before anybody sees it (`rpc.Config`, `trailboss config`).

A value is hidden by the name of its key (password, secret, token, key, dsn, credential …), by standing under `headers`,
or by its form: the user part of a URL, `--password=…` and `--password …` in a command are hidden in any text. The last
rule alone is for texts that are shown or logged without a key: command lines, and what a worker said before it died.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from trailboss.config.tree import SecretText

__all__ = ["HIDDEN", "redacted", "redacted_text"]

HIDDEN: Final = "***"
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_SECRET_WORDS: Final = frozenset(
    ("key", "keys", "token", "tokens", "auth", "pass", "pwd", "dsn", "cookie", "nonce", "salt", "pat")
)
_SECRET_PARTS: Final = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "credential",
    "authorization",
    "apikey",
    "token",
    "dsn",
)
_HARMLESS: Final = frozenset(("routing_key",))
_USERINFO: Final = re.compile(r"(?<=://)\S{0,256}@")
_ARGUMENT: Final = re.compile(
    r"((?:password|passwd|secret|token|api[_-]?key|key|credentials?|dsn)\s{0,8}[=:]\s{0,8})\S+", re.IGNORECASE
)
_OPTION: Final = re.compile(
    r"((?<!\S)--[\w-]{0,64}(?:password|passwd|secret|token|key|credentials?|dsn)\s{1,8})(?!-)\S+",
    re.IGNORECASE,
)


def redacted(values: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of plain values with every secret replaced by ***."""
    return {name: _hidden(item) if _is_secret(name) else _shown(item) for name, item in values.items()}


def redacted_text(text: str) -> str:
    """Return `text` with what looks like a secret in it replaced by ***."""
    text = _OPTION.sub(rf"\1{HIDDEN}", _USERINFO.sub(f"{HIDDEN}@", text))
    return _ARGUMENT.sub(rf"\1{HIDDEN}", text)


def _is_secret(name: str) -> bool:
    lower = name.lower()
    if lower in _HARMLESS:
        return False
    if lower == "headers" or any(part in lower for part in _SECRET_PARTS):
        return True
    return any(word.lower() in _SECRET_WORDS for word in _WORD.findall(name))


def _hidden(value: object) -> object:
    """Hide everything below, but keep the shape."""
    if isinstance(value, Mapping):
        return {str(name): _hidden(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item) for item in value]
    return value if value in (None, "") or isinstance(value, bool) else HIDDEN


def _shown(value: object) -> object:
    if isinstance(value, Mapping):
        return redacted(value)
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    if isinstance(value, SecretText):
        return HIDDEN
    if isinstance(value, str):
        return redacted_text(value)
    return value
