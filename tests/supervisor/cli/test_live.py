"""The start shown live on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing

from trailboss.cli.live import follow_start, show_start, start_lines
from trailboss.container.contract import Plugin, WholePhase
from trailboss.container.lifecycle import Event
from trailboss.container.state import ServerState


class Footer:
    """Keeps every drawing."""

    def __init__(self) -> None:
        self.drawings: list[str] = []

    def set_footer(self, lines: Sequence[str]) -> None:
        self.drawings.append("\n".join(lines))


def named(name: str) -> Plugin:
    """Return a plugin of that name."""
    plugin = Plugin()
    plugin.name = name
    return plugin


def declared_state() -> ServerState:
    """Return a state with two plugins, one of which waits for the other."""
    state = ServerState()
    plugins = [named("kv"), named("jobs")]
    state.declare(plugins, {"kv": frozenset(), "jobs": frozenset({"kv"})}, ())
    return state


async def test_lines_say_phase_and_what_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """One line for the server and one a plugin, none wider than the terminal."""
    state = declared_state()
    state.record("kv", Event.START)
    await trio.sleep(1.5)
    lines = start_lines(state, 60)
    assert len(lines) == 3
    assert "starting, 1.5s" in lines[0]
    assert "kv" in lines[1]
    assert "starting" in lines[1]
    assert "waiting for kv" in lines[2]


async def test_footer_follows_the_start_and_goes(autojump_clock: trio.testing.MockClock) -> None:
    """It is drawn at changes, and taken away when the server is ready."""
    state, footer = declared_state(), Footer()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_start, state, footer, 80)
        await trio.sleep(0.5)
        state.record("kv", Event.START)
        state.record("kv", Event.READY)
        await trio.sleep(0.5)
        state.set_whole(WholePhase.READY)
    assert "declared" in footer.drawings[0]
    assert "healthy" in footer.drawings[-2]
    assert footer.drawings[-1] == ""


async def test_without_a_terminal_nothing_is_drawn() -> None:
    """No footer: returns at once."""
    with trio.fail_after(5):
        await show_start(declared_state(), None)
