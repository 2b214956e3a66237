"""LineDrain over a pipe: lines whole however they come, cut, limited, and the last ones kept."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trailboss.reactor import Reactor
from trailboss.workers.output import BOOT_LINES_MAX, BootOutput, BootVoice, LineDrain


class Scene:
    """A drain over a pipe whose write end the test holds; the reactor is not run, the test reads."""

    def __init__(self, line_max: int = 1000, rate: int = 0) -> None:
        self.reactor = Reactor()
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        self.lines: list[str] = []
        self.drain = LineDrain(self.reactor, self.read, self.lines.append, line_max=line_max, rate=rate)

    def say(self, data: bytes) -> None:
        """Write and let the drain read."""
        while data:
            data = data[os.write(self.write, data[:32768]) :]
            self.drain.drain()

    def end(self) -> None:
        """Close the write end and let the drain find out."""
        os.close(self.write)
        self.write = -1
        self.drain.drain()

    def close(self) -> None:
        """Release everything."""
        self.drain.close()
        if self.write >= 0:
            os.close(self.write)
        os.close(self.read)
        self.reactor.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A scene with the usual limits."""
    scene = Scene()
    yield scene
    scene.close()


def test_partial_lines(scene: Scene) -> None:
    """A line is told when it is whole; the unfinished last one at the end of file."""
    scene.say(b"one\ntw")
    assert scene.lines == ["one"]
    scene.say(b"o\nthr")
    assert scene.lines == ["one", "two"]
    assert not scene.drain.at_eof
    scene.end()
    assert scene.lines == ["one", "two", "thr"]
    assert scene.drain.at_eof
    assert scene.drain.last_lines() == ("one", "two", "thr")
    assert not scene.reactor.is_registered(scene.read)


def test_close_before_the_end_tells_the_rest(scene: Scene) -> None:
    """A drain that is given up (descendants hold the pipe) still tells what it has."""
    scene.say(b"unfinished")
    scene.drain.close()
    scene.drain.close()
    assert scene.lines == ["unfinished"]


def test_huge_line_in_small_pieces(scene: Scene) -> None:
    """However long a line is and however it comes, its head is kept, the rest counted."""
    for _ in range(300):
        scene.say(b"z" * 777)
    scene.say(b"\nafter\n")
    assert scene.lines == ["z" * 1000 + f" [{300 * 777 - 1000} bytes cut]", "after"]


def test_kept_lines_are_few_and_short(scene: Scene) -> None:
    """Twenty lines of at most 512 bytes go into a death record."""
    for number in range(50):
        scene.say(b"%d" % number + b"y" * 900 + b"\n")
    kept = scene.drain.last_lines()
    assert len(kept) == 20
    assert kept[-1].startswith("49y")
    assert max(map(len, kept)) == 512


def test_rate() -> None:
    """Above the rate lines are counted, the last ones kept, and the figure is told at the end."""
    scene = Scene(rate=3)
    scene.say(b"".join(b"%d\n" % number for number in range(10)))
    assert scene.lines == ["0", "1", "2"]
    assert scene.drain.dropped == 7
    scene.reactor.now += 1
    scene.say(b"later\n")
    scene.end()
    assert scene.lines[3:] == ["later", "[7 lines were not logged: above stderr_rate]"]
    assert scene.drain.last_lines()[-2:] == ("9", "later")
    scene.close()


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(
        st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"").replace(b"\r", b"")), max_size=20
    ),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=30),
)
def test_lines_do_not_depend_on_how_they_come(lines: list[bytes], cuts: list[int]) -> None:
    """The same bytes in other pieces give the same lines."""
    data = b"".join(line + b"\n" for line in lines)
    scene = Scene(line_max=25)
    position = 0
    while position < len(data):
        cut = cuts[position % len(cuts)]
        scene.say(data[position : position + cut])
        position += cut
    scene.end()
    expected = []
    for line in lines:
        if line:
            text = line[:25].decode("utf-8", "backslashreplace")
            expected.append(text + (f" [{len(line) - 25} bytes cut]" if len(line) > 25 else ""))
    assert scene.lines == expected
    scene.close()


class Boots:
    """Several booting workers of one pool; what is logged is `worker: line`."""

    def __init__(self) -> None:
        self.output = BootOutput()
        self.logged: list[str] = []

    def voice(self, name: str) -> BootVoice:
        """Return the voice of a new worker."""
        return self.output.voice(lambda line: self.logged.append(f"{name}: {line}"))


def test_the_same_failure_is_logged_once() -> None:
    """Boots that say the same one after the other, or mixed, put one copy into the log."""
    boots = Boots()
    one, two = boots.voice("one"), boots.voice("two")
    for voice in (one, two, two, one):
        voice.line("Traceback" if voice._heard == 0 else "Error")
    three = boots.voice("three")
    for line in ("Traceback", "Error"):
        three.line(line)
    assert boots.logged == ["one: Traceback", "two: Error"]
    assert three.died()
    assert boots.output.said == ["Traceback", "Error"]


def test_a_boot_that_succeeds_says_everything() -> None:
    """A worker that comes up logs what had been held back, in order, and what follows at once."""
    boots = Boots()
    one, two = boots.voice("one"), boots.voice("two")
    one.line("warning")
    two.line("warning")
    assert boots.logged == ["one: warning"]
    one.ready()
    one.line("serving")
    two.ready()
    two.line("serving")
    assert boots.logged == ["one: warning", "one: serving", "two: warning", "two: serving"]
    boots.voice("three").line("warning")
    assert boots.logged[4:] == ["three: warning"]


def test_another_failure_is_logged_whole() -> None:
    """What begins alike and goes on differently is said from its first line; the next is compared with that."""
    boots = Boots()
    one = boots.voice("one")
    one.line("Traceback")
    one.line("KeyError")
    boots.logged.clear()
    two, three = boots.voice("two"), boots.voice("three")
    for line in ("Traceback", "ValueError"):
        two.line(line)
    assert boots.logged == ["two: Traceback", "two: ValueError"]
    assert not two.died()
    four = boots.voice("four")
    for line in ("Traceback", "ValueError"):
        four.line(line)
    assert four.died()
    three.line("Traceback")
    assert not three.died()
    assert boots.logged[2:] == ["three: Traceback"]


def test_a_boot_that_never_ends_talking_is_not_kept() -> None:
    """Beyond its limit a boot is logged line by line and not compared any more."""
    boots = Boots()
    one = boots.voice("one")
    for number in range(BOOT_LINES_MAX + 5):
        one.line(str(number))
    assert len(boots.logged) == BOOT_LINES_MAX + 5
    assert len(boots.output.said) == BOOT_LINES_MAX
