"""Files of environment variables, as `--dotenv` names them.

One `NAME=value` a line; `export ` before it, blank lines and `#` comments are allowed. A value in single quotes is taken
as it is; in double quotes `\\n`, `\\r`, `\\t`, `\\"`, `\\\\` and `\\$` are escapes and `${NAME}` is expanded, as it is without
quotes; quoted values may run over several lines. The file may refer to variables it has set above.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from trailboss.config.problems import ConfigError, Problem
from trailboss.config.substitution import expand_text

__all__ = ["parse_dotenv"]

_ENTRY: Final = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_.]*)[ \t]*[=:][ \t]*
    (?:'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|(?P<bare>[^\r\n'"][^\r\n]*|))
    [ \t]*(?:\#[^\r\n]*)?(?:\r?\n|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_BLANK: Final = re.compile(r"[ \t]*(?:#[^\r\n]*)?(?:\r?\n|\Z)")
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "$": "$$"}


def parse_dotenv(text: str, file: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the file that `environ` does not have. Raises ConfigError with one problem."""
    added: dict[str, str] = {}
    position = 0
    while position < len(text):
        blank = _BLANK.match(text, position)
        if blank is not None:
            position = blank.end()
            continue
        line = text.count("\n", 0, position) + 1
        entry = _ENTRY.match(text, position)
        if entry is None:
            raise _error(file, line, "a line that is not NAME=value")
        position = entry.end()
        try:
            value = _entry_value(entry, {**added, **environ})
        except ValueError as error:
            raise _error(file, line, str(error)) from None
        if "\x00" in value:
            raise _error(file, line, "a value with a zero byte")
        if entry["name"] not in environ:
            added[entry["name"]] = value
    return added


def _entry_value(entry: re.Match[str], known: Mapping[str, str]) -> str:
    if entry["single"] is not None:
        return entry["single"]
    if entry["double"] is not None:
        unescaped = _ESCAPE.sub(lambda match: _ESCAPES.get(match[1], match[1]), entry["double"])
        return expand_text(unescaped, known)[0]
    bare = re.split(r"[ \t]#", entry["bare"], maxsplit=1)[0].strip()
    return "" if bare.startswith("#") else expand_text(bare, known)[0]


def _error(file: str, line: int, message: str) -> ConfigError:
    return ConfigError([Problem(file, line, "", message, "write one NAME=value a line")])
