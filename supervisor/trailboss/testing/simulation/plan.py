"""What is done to a simulated server: a scenario and a list of faults, both drawn from one number.

The scenario (sizes, limits, load) follows from the seed alone. The faults are a plain list, so that a shorter one can be
tried with the same scenario: that is how a failing plan is shrunk. Nothing here reads a clock or does I/O.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from trailboss.config.schema import AutoscaleConfig, CanaryConfig, PoolConfig, SupervisorConfig

__all__ = ["Fault", "FaultPlan", "Scenario", "plan_of", "scenario_of"]

#: Faults that happen to a living worker, or to what it does next. `seconds` is how long, or how late, where that fits.
WORKER_FAULTS = {
    "kill": "SIGKILL from outside",
    "freeze": "SIGSTOP, SIGCONT later",
    "stick": "SIGKILL works late, as in the kernel",
    "unasked": "writes text while nobody has asked",
    "close_out": "closes its standard output and stays",
    "close_in": "closes its standard input and stays",
    "hang": "does not answer its next exec",
    "slow": "answers its next exec late",
    "exit": "exits in the middle of its next exec",
    "half": "exits in the middle of its next answer",
    "torn": "writes its next answer in pieces",
    "garbage": "writes text in place of its next answer",
    "double": "answers its next exec twice",
    "soft": "answers its next exec with an error frame",
    "empty": "answers its next exec with nothing",
    "asks": "asks to be replaced instead of its next answer",
    "last": "exits right after its next answer",
    "chatty": "fills its standard error during its next exec",
}
#: Faults of the next processes that are started.
BOOT_FAULTS = {
    "fork": "fork fails (EAGAIN)",
    "boot_exit": "exits before its handshake",
    "boot_slow": "boots slowly",
    "boot_silent": "never shakes hands",
    "boot_text": "writes text before its handshake",
    "boot_half": "exits in the middle of its handshake",
    "boot_torn": "writes its handshake in pieces",
    "boot_wrong": "says something else than a handshake",
}
#: What happens to the server as a whole.
SERVER_FAULTS = {
    "pause": "the clock jumps: the machine was suspended",
    "broken": "every boot fails for a while",
    "reset": "the workers of a pool are replaced",
    "reload": "the workers of all pools are replaced",
    "grow": "a worker is added",
    "shrink": "a worker is removed",
    "poison": "a job that kills every worker",
    "burst": "many calls at once",
    "halt": "a pipeline is paused for a while",
    "resize": "a reload of the configuration changes the number of workers",
}
FAULTS = {
    **WORKER_FAULTS,
    **BOOT_FAULTS,
    **SERVER_FAULTS,
    "stop": "the server is stopped",
    "hurry": "the server is stopped without any grace",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong, `at` seconds after the server was ready. `target` picks a worker, pool or pipeline."""

    at: float
    kind: str
    target: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.at:10.3f} s  {self.kind:<11}  target {self.target:<2}  {self.seconds:7.3f} s  ({FAULTS[self.kind]})"


@dataclass(frozen=True, slots=True)
class Scenario:
    """The server of one seed, and how long it lives before the faults stop."""

    seed: int
    horizon_seconds: float
    jobs_pool: PoolConfig
    http_pool: PoolConfig
    jobs: int
    calls: int
    #: A broken start: faults of the very first boots, before the server is ready.
    boot_faults: tuple[tuple[str, float], ...]
    #: The stop is asked for so long after the start begins, whether it is over or not; 0: it is not.
    stop_in_start_seconds: float


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """A seed and what is done to its server."""

    seed: int
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, {len(self.faults)} faults:"]
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])


def scenario_of(seed: int) -> Scenario:
    """Return the server of `seed`."""
    choose = random.Random(f"scenario {seed}")
    # From a minute to four hours, as many short as long ones.
    horizon = 60.0 * 240.0 ** choose.random()
    return Scenario(
        seed,
        horizon,
        _pool(choose, horizon),
        _pool(choose, horizon),
        jobs=choose.randrange(20, 120),
        calls=choose.randrange(20, 150),
        boot_faults=tuple(
            (choose.choice(sorted(BOOT_FAULTS)), choose.uniform(0.0, 2.0))
            for _ in range(choose.choice((0, 0, 0, 1)))
        ),
        stop_in_start_seconds=choose.uniform(0.0, 1.5) if choose.random() < 0.05 else 0.0,
    )


def _pool(choose: random.Random, horizon: float) -> PoolConfig:
    workers = choose.randrange(1, 6)
    surge = choose.choice((None, 0, 1, 2))
    autoscale = None
    if choose.random() < 0.15:
        autoscale = AutoscaleConfig(min=1, max=workers + 3)
    return PoolConfig(
        debug=choose.random() < 0.05,
        num_workers=workers,
        max_jobs=choose.choice((0, 0, 0, 1, 5, 20)),
        boot_timeout=5.0,
        queue_timeout=choose.choice((2.0, 10.0, 30.0)),
        max_queue_size=choose.choice((0, 0, 3)),
        reset_timeout=10.0,
        stop_timeout=choose.choice((1.0, 3.0)),
        destroy_timeout=20.0,
        stream_timeout=3.0,
        max_surge=surge,
        max_unavailable=1 if surge == 0 else choose.choice((0, 0, 1)),
        canary=CanaryConfig(window=choose.choice((0.0, 0.0, 2.0))),
        autoscale=autoscale,
        supervisor=SupervisorConfig(
            exec_ttl=choose.choice((2.0, 5.0, 10.0)),
            ttl=choose.choice((0.0, 0.0, max(60.0, horizon / 10))),
            idle_ttl=choose.choice((0.0, 0.0, max(30.0, horizon / 10))),
            slow_log=choose.choice((0.0, 1.0)),
            term_grace=choose.choice((0.0, 0.0, 0.5)),
        ),
    )


def plan_of(seed: int) -> FaultPlan:
    """Return what is done to the server of `seed`."""
    scenario = scenario_of(seed)
    choose = random.Random(f"faults {seed}")
    faults = []
    # In storms, because faults that meet are the ones that hurt.
    for _ in range(choose.randrange(1, 5)):
        begin = choose.uniform(0.0, scenario.horizon_seconds)
        spread = choose.choice((0.05, 1.0, 20.0))
        for _ in range(choose.randrange(1, 12)):
            at = min(scenario.horizon_seconds, begin + choose.uniform(0.0, spread))
            faults.append(_fault(choose, at))
    if choose.random() < 0.25:
        at = round(choose.uniform(0.0, scenario.horizon_seconds), 3)
        faults.append(Fault(at, choose.choice(("stop", "stop", "hurry"))))
    faults.sort(key=lambda fault: fault.at)
    return FaultPlan(seed, tuple(faults))


def _fault(choose: random.Random, at: float) -> Fault:
    kinds = choose.choices((WORKER_FAULTS, BOOT_FAULTS, SERVER_FAULTS), (5, 3, 3))[0]
    kind = choose.choice(sorted(kinds))
    seconds = choose.choice((0.01, 0.3, 3.0, 8.0)) * choose.uniform(0.5, 1.5)
    return Fault(round(at, 3), kind, choose.randrange(8), round(seconds, 3))
