"""What commands print: data as JSON, tables for people.

On a terminal tables are drawn by rich; anywhere else they are plain columns that scripts can split, one row a line.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence

import click

__all__ = ["clean", "human_age", "human_bytes", "json_flag", "print_json", "print_table", "table_text"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def clean(value: object) -> str:
    """Return a text that stays in its cell: names and errors come from workers and clients."""
    return _CONTROL.sub("?", str(value))


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table under its title."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(title, headings, rows))
    else:
        click.echo(table_text(title, headings, rows))


def rich_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> object:
    """Return the table for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    for position, heading in enumerate(headings):
        numbers = bool(rows) and all(isinstance(row[position], int | float) for row in rows)
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell), style=_STYLES.get(str(cell), "")) for cell in row))
    return table


def table_text(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return the table as plain columns."""
    cells = [list(headings), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[position]) for row in cells) for position in range(len(headings))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([title, *lines] if title else lines)


def human_bytes(count: float) -> str:
    """Return a size as people say it (31.0 MB)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def human_age(created_ns: int, now: float | None = None) -> str:
    """Return how long ago a unix time in nanoseconds is."""
    seconds = max(0, int((time.time() if now is None else now) - created_ns / 1e9))
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)):
        if seconds >= size or unit == "second":
            count = seconds // size
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    raise AssertionError


_STYLES = {
    "ready": "cyan",
    "working": "green",
    "healthy": "green",
    "open": "green",
    "READY": "green",
    "inactive": "yellow",
    "invalid": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "restricted": "yellow",
    "booting": "yellow",
    "PAUSED/STOPPED": "yellow",
    "stopped": "red",
    "errored": "red",
    "failed": "red",
    "degraded": "red",
    "closed": "red",
    "ERROR": "red",
}
