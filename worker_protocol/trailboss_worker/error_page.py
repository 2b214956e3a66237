"""The page that a browser shows instead of an answer when the application fails, in development mode alone.

Texts come from the application, and through it from anybody, so all of them are escaped. What is shown is the traceback
with the lines of source around it; values of variables are not, because they are what secrets look like.
"""

from __future__ import annotations

import linecache
import os
import traceback
from collections.abc import Sequence
from html import escape
from types import TracebackType
from typing import NamedTuple

CONTENT_TYPE = "text/html; charset=utf-8"
FRAMES_MAX = 60
LINES_AROUND = 3

_STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1c1e21;--faint:#6b7280;--line:#e5e7eb;--code:#f6f7f9;--mark:#fde8e8;--red:#c02626}
@media(prefers-color-scheme:dark){:root{--back:#16181c;--text:#e6e7ea;--faint:#9aa1ac;--line:#2c3038;--code:#1e2127;--mark:#4a2326;--red:#ff7b72}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--text);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem}h1{margin:.25rem 0 0;font-size:1.5rem;color:var(--red);overflow-wrap:anywhere}
p{margin:.25rem 0;color:var(--faint);overflow-wrap:anywhere}pre{margin:0;padding:.75rem;overflow-x:auto;background:var(--code);border-radius:.5rem;font:13px/1.5 ui-monospace,monospace}
section{margin:1.25rem 0;border-top:1px solid var(--line);padding-top:1rem}section p{color:var(--text);margin-bottom:.5rem}
p span,summary span{color:var(--faint)}mark{display:block;background:var(--mark);color:inherit}summary{cursor:pointer;overflow-wrap:anywhere}details pre{margin-top:.5rem}
footer{border-top:1px solid var(--line);margin-top:2rem;padding-top:1rem;color:var(--faint);font-size:.875rem}
"""
_FOOTER = (
    "Trailboss shows this because it runs in development mode (--dev, http.dev). "
    "Never run it so where others can reach it: the page shows source code."
)


class Place(NamedTuple):
    """One frame of a traceback."""

    file: str
    line: int
    function: str


def page(title: str, request: str, sections: Sequence[str]) -> bytes:
    """A whole page; `sections` are HTML already, the other texts are not."""
    body = "".join(f"<section>{section}</section>" for section in sections)
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="robots" content="noindex">'
        f"<style>{_STYLE}</style></head><body><main><p>{escape(request)}</p><h1>{escape(title)}</h1>{body}"
        f"<footer>{escape(_FOOTER)}</footer></main></body></html>\n"
    )
    return text.encode("utf-8", "backslashreplace")


def page_of_text(title: str, request: str, text: str) -> bytes:
    """A page that shows a text as it is, such as what a PHP worker has said."""
    return page(title, request, [_pre(text)] if text else [])


def page_of_error(error: BaseException, request: str) -> bytes:
    """A page for an exception: the place where it was raised first, and everything Python has to say at the end."""
    title = "".join(traceback.format_exception_only(type(error), error)).strip()
    sections = [_frame(place) for place in reversed(_places(error))]
    whole = "".join(traceback.format_exception(type(error), error, _begin(error)))
    sections.append(f"<details><summary>Traceback as text</summary>{_pre(whole)}</details>")
    return page(title, request, sections)


def _begin(error: BaseException) -> TracebackType | None:
    """Where the traceback leaves this package for the application."""
    own = os.path.dirname(os.path.abspath(__file__))
    place = error.__traceback__
    while place is not None and os.path.dirname(os.path.abspath(place.tb_frame.f_code.co_filename)) == own:
        place = place.tb_next
    return place


def _places(error: BaseException) -> list[Place]:
    found = []
    place = _begin(error)
    while place is not None:
        found.append(Place(place.tb_frame.f_code.co_filename, place.tb_lineno, place.tb_frame.f_code.co_name))
        place = place.tb_next
    return found[-FRAMES_MAX:]


def _frame(place: Place) -> str:
    linecache.checkcache(place.file)
    lines = []
    for number in range(max(1, place.line - LINES_AROUND), place.line + LINES_AROUND + 1):
        source = linecache.getline(place.file, number)
        if source:
            text = escape(f"{number:5}  {source.rstrip()}")
            lines.append(f"<mark>{text}</mark>" if number == place.line else f"{text}\n")
    head = f"{escape(place.file)}<span>, line {place.line}, in</span> {escape(place.function)}"
    source_text = f"<pre>{''.join(lines)}</pre>" if lines else ""
    if _is_library(place.file):
        return f"<details><summary>{head}</summary>{source_text}</details>"
    return f"<p>{head}</p>{source_text}"


def _is_library(file: str) -> bool:
    """Whether a file is somebody else's, so that its source is of no interest at first."""
    return "/site-packages/" in file or file.startswith((f"{os.path.dirname(os.__file__)}/", "<"))


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
