"""The start, live on a terminal: a few lines below the log say which plugin is in which phase and what it waits for.

The lines are a footer of the log's own target for that terminal: its thread writes log and footer, so nothing here ever
waits for the terminal, and lines of the log never run into the table. Where standard error is no terminal there is no
footer, and the log says the same in plain lines.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Sequence
from typing import Protocol

import trio

from trailboss.container.contract import WholePhase
from trailboss.container.state import ServerState

__all__ = ["follow_start", "show_start", "start_lines"]

_REDRAW_SECONDS = 0.2
_STARTING = (WholePhase.STARTING, WholePhase.INITIALISING, WholePhase.BOOTING)


class Footer(Protocol):
    """Where the lines go."""

    def set_footer(self, lines: Sequence[str]) -> None: ...


async def show_start(state: ServerState, footer: Footer | None) -> None:
    """Keep the footer up to date until the start is over; returns at once without a footer."""
    if footer is not None:
        # 0.1 s of imports that the start need not wait for.
        await trio.to_thread.run_sync(importlib.import_module, "rich.table")
        await follow_start(state, footer, terminal_width())


async def follow_start(state: ServerState, footer: Footer, width: int) -> None:
    """Draw the footer at each change, and often enough for its clocks, then take it away."""
    try:
        while state.whole in _STARTING:
            footer.set_footer(start_lines(state, width))
            with trio.move_on_after(_REDRAW_SECONDS):
                await state.wait_change()
                await trio.sleep(_REDRAW_SECONDS / 4)  # several changes, one drawing
    finally:
        footer.set_footer(())


def start_lines(state: ServerState, width: int) -> list[str]:
    """Return the lines for a terminal of `width` columns; no line is longer. Nothing before plugins are declared."""
    plugins = state.plugins()
    if not plugins:
        return []
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for plugin in plugins:
        waits = f"waiting for {', '.join(plugin.waiting_for)}" if plugin.waiting_for else plugin.reason
        table.add_row(
            Text(f"  {plugin.name}"),
            Text(plugin.phase.value, style=_STYLES.get(plugin.phase.value, "dim")),
            Text(f"{plugin.since_seconds:.1f}s", style="dim"),
            Text(waits.replace("\n", " ")),
        )
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=max(20, width - 1), legacy_windows=False)
    waiting = f": {', '.join(state.waiting_for())}" if state.waiting_for() else ""
    headline = Text(
        f"Trailboss: {state.whole.value}, {state.uptime_seconds:.1f}s{waiting}", style="bold", end=""
    )
    console.print(headline, no_wrap=True, overflow="ellipsis")
    console.print(table)
    return text.getvalue().splitlines()


def terminal_width() -> int:
    """Return the columns of the terminal on standard error."""
    try:
        return os.get_terminal_size(2).columns
    except OSError:
        return 80


_STYLES = {"healthy": "green", "starting": "yellow", "failed": "red"}
