"""One thing wrong with a configuration, and the error that carries all of them.

A problem is a line a person can act on: where it is, which key, what is wrong, what to do. Texts never quote a value
that may be a secret. The same record, not raised, serves for notes (`Config.notes`) and for `trailboss check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ConfigError", "Problem"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding; `file` is "" where no file is concerned (then "configuration" is shown), `line` 0 where unknown."""

    file: str
    line: int
    key: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return `file:line: key: what; what to do`, always one line."""
        place = self.file or "configuration"
        if self.line:
            place = f"{place}:{self.line}"
        text = ": ".join(part for part in (place, self.key, self.message) if part)
        if self.remedy:
            text = f"{text}; {self.remedy}"
        return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class ConfigError(Exception):
    """The configuration cannot be used; `problems` holds every finding, in the order of files and lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(*problems)
        self.problems: tuple[Problem, ...] = tuple(problems)

    def __str__(self) -> str:
        """Return one line per problem."""
        return "\n".join(map(str, self.problems))
