"""Pure: what will be done to the server, drawn from a seed.

A plan is a list of injections for each of its stages; a run takes as many as its time allows, in order, so the same seed
does the same things in the same order however fast the machine is. Points in the start of a worker are fractions of the
time that its boot takes; they walk through the boot in a scattered order (steps of the golden ratio), so that a short
run covers the whole of it as well as a long one does, only less densely.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final

__all__ = ["PLANS", "SYSTEM_CALLS", "Injection", "Kind", "Plan", "Stage", "make_plan"]


class Stage(Enum):
    """What a part of a run is about; each has an instance of the server to itself."""

    MID_INIT = "mid-init"
    STORM = "storm"
    POWER = "power"
    MEMORY = "memory"


class Kind(Enum):
    """What is done."""

    KILL_BOOT = "kill in its start"
    FREEZE_BOOT = "freeze in its start"
    KILL_CALL = "kill at a system call of its start"
    KILL = "kill a worker"
    KILL_ALL = "kill all workers at once"
    FREEZE = "freeze a worker for good"
    PAUSE = "stop a worker and let it go on"
    RESET = "kill a worker during a reset"
    RESIZE = "kill a worker during a resize"
    POWER = "kill the server"
    POWER_BOOT = "kill the server in its start"
    GROW = "grow above the memory limit"
    OOM = "OOM kill, by the kernel"
    # What is done in their place where the application or the machine does not let them; never planned as such.
    LIMIT = "memory limit below what workers use"
    OOM_LIKE = "OOM kill, imitated by SIGKILL"


#: Names of --plan.
PLANS: Final = {**{stage.value: (stage,) for stage in Stage}, "all": tuple(Stage)}

#: Share of the time of a run that a stage gets.
_SHARES: Final = {Stage.MID_INIT: 0.4, Stage.STORM: 0.3, Stage.POWER: 0.15, Stage.MEMORY: 0.15}

#: What the memory stage needs at least: the server looks at memory every five seconds.
MEMORY_SECONDS_MIN: Final = 12.0

#: More than any run gets through.
_LONGEST: Final = 2000

_GOLDEN: Final = 0.6180339887498949

#: System calls at which a worker may be killed in its start, with how many of each are tried.
SYSTEM_CALLS: Final = {
    "read": 60,
    "mmap": 60,
    "openat": 80,
    "close": 70,
    "newfstatat": 60,
    "brk": 10,
    "execve": 1,
}


@dataclass(frozen=True, slots=True)
class Injection:
    """One thing that is done to the server.

    `at`: where in the start, as a fraction of the boot (beyond 1: right after it). `seconds`: how long a worker stays
    stopped. `chance` chooses the victim. `call` and `count`: the system call that the worker does not survive.
    """

    stage: Stage
    kind: Kind
    pool: str = ""
    at: float = 0.0
    seconds: float = 0.0
    chance: float = 0.0
    call: str = ""
    count: int = 0

    def describe(self) -> str:
        """For people."""
        pool = f" of {self.pool}" if self.pool else ""
        if self.kind in (Kind.KILL_BOOT, Kind.FREEZE_BOOT):
            verb = "killed" if self.kind is Kind.KILL_BOOT else "frozen"
            return f"a new worker{pool} {verb} at {self.at:.0%} of its start"
        if self.kind is Kind.KILL_CALL:
            return f"a new worker{pool} killed at call {self.count} of {self.call}"
        if self.kind is Kind.PAUSE:
            return f"a worker{pool} stopped for {self.seconds:.2f} s"
        if self.kind is Kind.POWER_BOOT:
            return f"the server killed at {self.at:.0%} of its start"
        texts = {
            Kind.KILL: f"a worker{pool} killed",
            Kind.KILL_ALL: f"all workers{pool} killed at once",
            Kind.FREEZE: f"a worker{pool} frozen for good",
            Kind.RESET: f"a worker{pool} killed during a reset",
            Kind.RESIZE: f"a worker{pool} killed while another is added and removed",
            Kind.POWER: "the server killed with all its workers at work",
            Kind.GROW: f"a worker{pool} grown above its memory limit",
            Kind.LIMIT: f"the memory limit{pool} below what its workers use",
            Kind.OOM: f"a worker{pool} killed for want of memory",
            Kind.OOM_LIKE: f"a worker{pool} killed from outside as the OOM killer does",
        }
        return texts[self.kind]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a run may do. `seconds` is how long each stage goes on."""

    seed: int
    name: str
    injections: dict[Stage, tuple[Injection, ...]]
    seconds: dict[Stage, float]

    @property
    def digest(self) -> str:
        """Eight characters that are equal for equal plans."""
        return hashlib.sha256(repr((self.seed, self.name, self.injections)).encode()).hexdigest()[:8]


def make_plan(
    seed: int,
    name: str,
    pools: Sequence[str],
    seconds: float,
    *,
    system_calls: bool = False,
    at_most: int = 0,
) -> Plan:
    """Draw a plan for a server with these pools. Raises ValueError for a name that is not in PLANS, or without pools.

    `at_most`: so many injections a stage; 0 for as many as there is time for.
    """
    if name not in PLANS:
        raise ValueError(f"there is no plan {name!r}; there are {', '.join(PLANS)}")
    if not pools:
        raise ValueError("the configuration has no workers")
    stages = PLANS[name]
    injections = {}
    for stage in stages:
        # Each stage has a stream of its own: the same seed does the same in `storm` alone and in `all`.
        chance = random.Random(f"{seed} {stage.value}")
        drawn = _drawn(stage, chance, sorted(pools), system_calls)
        injections[stage] = tuple(itertools.islice(drawn, at_most or None))
    return Plan(seed, name, injections, _divided(stages, seconds))


def _divided(stages: Sequence[Stage], seconds: float) -> dict[Stage, float]:
    whole = sum(_SHARES[stage] for stage in stages)
    parts = {stage: seconds * _SHARES[stage] / whole for stage in stages}
    if Stage.MEMORY in parts and parts[Stage.MEMORY] < MEMORY_SECONDS_MIN < seconds:
        rest = sum(value for stage, value in parts.items() if stage is not Stage.MEMORY)
        for stage in parts:
            parts[stage] *= (seconds - MEMORY_SECONDS_MIN) / rest if rest else 1.0
        parts[Stage.MEMORY] = MEMORY_SECONDS_MIN
    return parts


def _drawn(
    stage: Stage, chance: random.Random, pools: Sequence[str], system_calls: bool
) -> Iterator[Injection]:
    draws: dict[Stage, Callable[[int, float, random.Random, str, bool], Injection]] = {
        Stage.MID_INIT: _mid_init,
        Stage.STORM: _storm,
        Stage.POWER: _power,
        Stage.MEMORY: partial(_memory, pools=len(pools)),
    }
    offset = chance.random()
    for number in range(_LONGEST):
        where = (offset + number * _GOLDEN) % 1.0
        yield draws[stage](number, where, chance, pools[number % len(pools)], system_calls)


def _mid_init(number: int, where: float, chance: random.Random, pool: str, system_calls: bool) -> Injection:
    # A frozen worker takes its boot_timeout, in which twenty others could be killed. 7 is no multiple of the pools.
    if number % 7 == 5:
        return Injection(Stage.MID_INIT, Kind.FREEZE_BOOT, pool, at=1.2 * where, chance=chance.random())
    if system_calls and number % 3 == 2:
        call = chance.choice(sorted(SYSTEM_CALLS))
        count = 1 + int(where * SYSTEM_CALLS[call])
        return Injection(Stage.MID_INIT, Kind.KILL_CALL, pool, call=call, count=count, chance=chance.random())
    return Injection(Stage.MID_INIT, Kind.KILL_BOOT, pool, at=1.2 * where, chance=chance.random())


_STORM: Final = (
    (Kind.KILL, 8),
    (Kind.PAUSE, 4),
    (Kind.KILL_ALL, 3),
    (Kind.RESET, 2),
    (Kind.RESIZE, 2),
    (Kind.FREEZE, 1),
)


def _storm(number: int, where: float, chance: random.Random, pool: str, system_calls: bool) -> Injection:
    # The first six are one of each kind, so that a short run has seen them all; a freeze, which takes long, is the last.
    kinds = [kind for kind, _ in _STORM]
    kind = (
        kinds[number] if number < len(kinds) else chance.choices(kinds, [weight for _, weight in _STORM])[0]
    )
    return Injection(Stage.STORM, kind, pool, seconds=round(0.05 + 0.9 * where, 3), chance=chance.random())


def _power(number: int, where: float, chance: random.Random, pool: str, system_calls: bool) -> Injection:
    if number % 2:
        return Injection(Stage.POWER, Kind.POWER_BOOT, at=where)
    return Injection(Stage.POWER, Kind.POWER, seconds=round(0.2 + 0.8 * where, 3))


def _memory(
    number: int, where: float, chance: random.Random, pool: str, system_calls: bool, *, pools: int
) -> Injection:
    # One kind after the other in each pool, and a different one in each, so that a short run has both.
    kind = Kind.OOM if (number // pools + number % pools) % 2 else Kind.GROW
    return Injection(Stage.MEMORY, kind, pool, chance=chance.random())
