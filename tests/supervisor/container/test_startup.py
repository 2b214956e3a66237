"""The startup nursery and the reverse walk, one situation a test, under the mock clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from trailboss.container.contract import (
    Health,
    Layer,
    Phase,
    Plugin,
    PluginFailed,
    Services,
    WholePhase,
)
from trailboss.container.startup import Container, StartFailed
from trailboss.container.state import ServerState
from trailboss.testing.container import run_container

Step = Callable[[], Awaitable[object]]


class Probe(Plugin):
    """A plugin that writes down what happens to it and does what a test tells it to."""

    def __init__(
        self,
        name: str,
        journal: list[str],
        *,
        layer: Layer = Layer.BACKEND,
        requires: tuple[str, ...] = (),
        start_seconds: float = 0.0,
        on_start: Step | None = None,
        on_stop: Step | None = None,
        on_drain: Step | None = None,
        on_open: Step | None = None,
    ) -> None:
        self.name = name
        self.journal = journal
        self.layer = layer
        self.requires = frozenset(requires)
        self.start_seconds = start_seconds
        self.on_start = on_start
        self.on_stop = on_stop
        self.on_drain = on_drain
        self.on_open = on_open
        self.crash = trio.Event()

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        self.journal.append(f"start {self.name}")
        try:
            await trio.sleep(self.start_seconds)
            if self.on_start is not None:
                await self.on_start()
            self.journal.append(f"up {self.name}")
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._crash)
                await stopping.wait()
                nursery.cancel_scope.cancel()
            if self.on_stop is not None:
                await self.on_stop()
        finally:
            self.journal.append(f"down {self.name}")

    async def _crash(self) -> None:
        await self.crash.wait()
        raise ValueError(f"{self.name} broke")

    async def open(self) -> None:
        self.journal.append(f"open {self.name}")
        if self.on_open is not None:
            await self.on_open()

    async def close_intake(self) -> None:
        self.journal.append(f"close {self.name}")

    async def drain(self) -> None:
        self.journal.append(f"drain {self.name}")
        if self.on_drain is not None:
            await self.on_drain()


def rows(container: Container) -> dict[str, tuple[Phase, str]]:
    """Phase and reason of every plugin."""
    return {state.name: (state.phase, state.reason) for state in container.state.plugins()}


async def fail(text: str = "no luck") -> None:
    """Raise after a checkpoint."""
    await trio.lowlevel.checkpoint()
    raise RuntimeError(text)


async def shield_until(event: trio.Event) -> None:
    """Ignore every cancellation until a test lets go."""
    with trio.CancelScope(shield=True):
        await event.wait()


async def run_to_the_end(container: Container, stop: trio.Event | None = None) -> float:
    """Run a container and return how long its walk took, by the clock of the test."""
    stopping_since: list[float] = []

    def note() -> None:
        if container.state.whole is WholePhase.DRAINING and not stopping_since:
            stopping_since.append(trio.current_time())

    container.state.on_change.append(note)
    with trio.fail_after(1000):
        await container.run(stop if stop is not None else trio.Event())
    return trio.current_time() - stopping_since[0]


async def test_whole_life_in_order(autojump_clock: trio.testing.MockClock) -> None:
    """Start by layer and dependency, stop by the written reverse walk."""
    journal: list[str] = []
    plugins = [
        Probe("jobs", journal, layer=Layer.DRIVER, requires=("kv",)),
        Probe("kv", journal),
        Probe("logs", journal, layer=Layer.TELEMETRY),
    ]
    rpc = Probe("rpc", journal)

    async with run_container(plugins, rpc=rpc) as container:
        journal.append(f"ready {container.state.fully_ready}")

    assert journal == [
        *("start logs", "up logs", "start rpc", "up rpc", "start kv", "up kv", "start jobs", "up jobs"),
        *("open logs", "open rpc", "open kv", "open jobs", "ready True"),
        *("close jobs", "close kv", "close rpc", "close logs"),
        *sorted(("drain jobs", "drain kv", "drain rpc", "drain logs"), key=journal.index),
        *("down jobs", "down rpc", "down kv", "down logs"),
    ]


async def test_unrelated_plugins_start_as_declared_and_stop_in_reverse(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Where nothing else decides, the order is the declared one, at every start."""
    journal: list[str] = []
    names = [f"p{number}" for number in range(8)]
    began: list[str] = []

    container = Container([Probe(name, journal) for name in names])
    container.state.on_change.append(
        lambda: began.extend(
            state.name
            for state in container.state.plugins()
            if state.phase is Phase.STARTING and state.name not in began
        )
    )
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: container.run(stop, task_status=task_status))
        stop.set()

    assert began == names
    assert [line.removeprefix("down ") for line in journal if line.startswith("down")] == names[::-1]


async def test_starts_in_parallel_where_the_graph_allows(autojump_clock: trio.testing.MockClock) -> None:
    """A plugin waits for its own requirements only."""
    journal: list[str] = []
    plugins = [
        Probe("slow", journal, start_seconds=3),
        Probe("quick", journal, start_seconds=1),
        Probe("behind", journal, start_seconds=1, requires=("quick",)),
    ]
    began = trio.current_time()

    async with run_container(plugins):
        took = trio.current_time() - began

    assert took == 3
    assert journal.index("up behind") < journal.index("up slow")


async def test_crash_before_ready_is_the_bare_first_error(autojump_clock: trio.testing.MockClock) -> None:
    """A failed start raises the first failure with name, phase and reason; what is up has been stopped in order."""
    journal: list[str] = []
    plugins = [
        Probe("a", journal),
        Probe("b", journal, requires=("a",)),
        Probe("c", journal, requires=("b",), on_start=fail),
        Probe("d", journal, requires=("a",), start_seconds=1, on_start=lambda: fail("too late to matter")),
    ]

    with pytest.raises(PluginFailed) as caught:
        await run_to_the_end(Container(plugins))

    assert (caught.value.name, caught.value.phase) == ("c", Phase.STARTING)
    assert caught.value.reason == "RuntimeError: no luck"
    stopped = [line.removeprefix("down ") for line in journal if line.startswith("down")]
    assert stopped in (
        ["c", "d", "b", "a"],
        ["c", "b", "d", "a"],
    )  # b and d have nothing to do with each other


async def test_ending_before_ready_is_a_failure(autojump_clock: trio.testing.MockClock) -> None:
    """A plugin that returns without having said that it can serve fails the start."""

    class Silent(Plugin):
        name = "silent"

        async def run(self, services, stopping, task_status=trio.TASK_STATUS_IGNORED) -> None:  # type: ignore[no-untyped-def]
            await trio.lowlevel.checkpoint()

    with pytest.raises(PluginFailed, match="plugin silent failed while starting: ended before it was ready"):
        await run_to_the_end(Container([Silent()]))


async def test_hang_in_start_meets_the_start_timeout(autojump_clock: trio.testing.MockClock) -> None:
    """A plugin that is not ready in time fails the start, and is cancelled."""
    journal: list[str] = []
    plugin = Probe("stuck", journal, start_seconds=10_000)
    plugin.start_timeout_seconds = 4
    began = trio.current_time()

    with pytest.raises(PluginFailed, match="not ready within its start timeout of 4 s"):
        await run_to_the_end(Container([plugin]))

    assert trio.current_time() - began == 4
    assert journal == ["start stuck", "down stuck"]


async def test_hanging_optional_plugin_is_cancelled_at_its_start_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An optional plugin that is not ready in time is failed and cancelled, and the start goes on without it."""
    journal: list[str] = []
    plugin = Probe("stuck", journal, start_seconds=10_000)
    plugin.start_timeout_seconds = 4

    async with run_container([plugin, Probe("a", journal)], optional={"stuck"}) as container:
        seen = rows(container)
        assert "down stuck" in journal

    assert seen["stuck"] == (Phase.FAILED, "not ready within its start timeout of 4 s")


async def test_crash_after_ready_fails_that_plugin_alone(autojump_clock: trio.testing.MockClock) -> None:
    """A plugin that dies when the server is ready is failed with its reason; the others go on, and the state says so."""
    journal: list[str] = []
    kv, jobs = Probe("kv", journal), Probe("jobs", journal, requires=("kv",))

    async with run_container([kv, jobs]) as container:
        kv.crash.set()
        with trio.fail_after(1):
            await container.state.wait_change()
        seen = rows(container)
        whole = container.state.whole
        await trio.sleep(100)
        row = container.state.as_dict()["plugins"][1]  # type: ignore[index]

    assert seen["kv"] == (Phase.FAILED, "ValueError: kv broke")
    assert seen["jobs"] == (Phase.HEALTHY, "requires kv, which failed")
    assert whole is WholePhase.READY
    assert (row["name"], row["phase"], row["healthy"]) == ("jobs", "healthy", True)
    assert journal.count("down kv") == 1


async def test_crash_after_ready_but_before_the_server_is_fails_the_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As long as the server starts, the death of a plugin that was up already ends the start; the gate never opens."""
    journal: list[str] = []
    kv = Probe("kv", journal)

    async def kill_kv() -> None:
        kv.crash.set()
        await trio.sleep(1)

    container = Container([kv, Probe("other", journal, on_start=kill_kv)])
    opened: list[bool] = []
    container.state.on_change.append(lambda: opened.append(container.state.gate_open))

    with pytest.raises(PluginFailed) as caught:
        await run_to_the_end(container)

    assert (caught.value.name, caught.value.phase) == ("kv", Phase.HEALTHY)
    assert not any(opened)


async def test_optional_plugin_fails_alone(autojump_clock: trio.testing.MockClock) -> None:
    """The start goes on without an optional plugin and without optional ones that require it."""
    journal: list[str] = []
    plugins = [
        Probe("kv", journal, on_start=fail),
        Probe("cache", journal, requires=("kv",)),
        Probe("jobs", journal),
    ]

    async with run_container(plugins, optional={"kv", "cache"}) as container:
        seen = rows(container)

    assert seen["kv"] == (Phase.FAILED, "RuntimeError: no luck")
    assert seen["cache"] == (Phase.FAILED, "requires kv, which failed")
    assert seen["jobs"] == (Phase.HEALTHY, "")
    assert "start cache" not in journal


async def test_plugin_that_requires_a_failed_optional_one_fails_the_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who is not optional cannot go without what it requires."""
    journal: list[str] = []
    plugins = [Probe("kv", journal, on_start=fail), Probe("jobs", journal, requires=("kv",))]

    with pytest.raises(PluginFailed, match="plugin jobs failed while declared: requires kv, which failed"):
        await run_to_the_end(Container(plugins, optional={"kv"}))


async def test_error_while_stopping_does_not_stop_the_walk(autojump_clock: trio.testing.MockClock) -> None:
    """An exception in a plugin's cleanup is its reason, and everybody else is stopped all the same."""
    journal: list[str] = []
    plugins = [Probe("a", journal), Probe("b", journal, requires=("a",), on_stop=fail, on_drain=fail)]

    async with run_container(plugins) as container:
        pass

    assert rows(container) == {"a": (Phase.STOPPED, ""), "b": (Phase.FAILED, "RuntimeError: no luck")}
    assert journal[-2:] == ["down b", "down a"]


async def test_hang_in_stop_is_cancelled_at_its_own_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """A plugin that does not return when asked is cancelled when its own time is over, and the walk goes on."""
    journal: list[str] = []
    stuck = Probe("b", journal, requires=("a",), on_stop=trio.sleep_forever)
    stuck.stop_timeout_seconds = 3
    stop = trio.Event()
    container = Container([Probe("a", journal), stuck])
    container.state.on_change.append(
        lambda: stop.set() if container.state.whole is WholePhase.READY else None
    )

    took = await run_to_the_end(container, stop)

    assert took == 3
    assert journal[-2:] == ["down b", "down a"]


async def test_shielded_plugin_is_abandoned_and_named(autojump_clock: trio.testing.MockClock) -> None:
    """A plugin that ignores its cancellation cannot hang the walk: it is named, and main may end the process."""
    journal: list[str] = []
    let_go, stop = trio.Event(), trio.Event()
    plugin = Probe("b", journal, requires=("a",), on_stop=lambda: shield_until(let_go))
    container = Container([Probe("a", journal), plugin], grace_period_seconds=5)

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: container.run(stop, task_status=task_status))
        began = trio.current_time()
        stop.set()
        with trio.fail_after(6):
            await container.finished.wait()
        took = trio.current_time() - began
        abandoned = container.abandoned
        let_go.set()

    assert abandoned == ("b",)
    assert took <= 6
    assert journal[-2:] == ["down a", "down b"]
    assert container.abandoned == ()


@pytest.mark.parametrize("late", ["start", "drain", "open"])
async def test_shielded_step_is_abandoned_and_named(
    late: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Also a start, an open or a drain that ignores its cancellation is given up within the grace period."""
    let_go, stop = trio.Event(), trio.Event()

    async def hold() -> None:
        await shield_until(let_go)

    plugin = Probe("b", [], **{f"on_{late}": hold})  # type: ignore[arg-type]
    plugin.start_timeout_seconds = 2
    container = Container([Probe("a", []), plugin], grace_period_seconds=5)

    async def live() -> None:
        try:
            await container.run(stop)
        except PluginFailed:
            assert late != "drain"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(live)
        with trio.fail_after(20):
            while container.state.whole not in (WholePhase.READY, WholePhase.DRAINING):
                await container.state.wait_change()
            began = trio.current_time()
            stop.set()
            await container.finished.wait()
        took = trio.current_time() - began
        abandoned = container.abandoned
        let_go.set()

    assert abandoned == ("b" if late == "start" else f"b ({late})",)
    assert took <= 6


async def test_hurry_makes_every_deadline_now(autojump_clock: trio.testing.MockClock) -> None:
    """A second order to stop cancels whatever still takes its time, in order, at once."""
    journal: list[str] = []
    stop, hurry = trio.Event(), trio.Event()
    plugins = [
        Probe("a", journal, on_stop=trio.sleep_forever),
        Probe("b", journal, requires=("a",), on_drain=trio.sleep_forever, on_stop=trio.sleep_forever),
    ]
    container = Container(plugins, grace_period_seconds=100)

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: container.run(stop, hurry, task_status=task_status))
        stop.set()
        await trio.sleep(2)
        began = trio.current_time()
        hurry.set()
        with trio.fail_after(1):
            await container.finished.wait()

    assert trio.current_time() - began == 0
    assert journal[-2:] == ["down b", "down a"]


async def test_hurry_together_with_stop_leaves_a_second(autojump_clock: trio.testing.MockClock) -> None:
    """Asked to stop and to hurry at one moment, the walk takes a second at most, whoever ignores the axe."""
    let_go, stop, hurry = trio.Event(), trio.Event(), trio.Event()
    shield = [Probe(name, [], on_drain=lambda: shield_until(let_go)) for name in ("a", "b", "c")]
    container = Container(shield, grace_period_seconds=100)

    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: container.run(stop, hurry, task_status=task_status))
        began = trio.current_time()
        stop.set()
        hurry.set()
        with trio.fail_after(50):
            await container.finished.wait()
        took = trio.current_time() - began
        abandoned = container.abandoned
        let_go.set()

    assert took <= 1
    assert abandoned in (
        (),
        ("a (drain)", "b (drain)", "c (drain)"),
    )  # cancelled before or behind its first step


@pytest.mark.parametrize("when", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.5])
async def test_stop_during_start_is_a_clean_reverse_stop(
    when: float, autojump_clock: trio.testing.MockClock
) -> None:
    """An order to stop in any phase of the start stops what was started, in reverse, without an error."""
    journal: list[str] = []
    stop = trio.Event()
    plugins = [
        Probe("logs", journal, layer=Layer.TELEMETRY, start_seconds=1),
        Probe("kv", journal, start_seconds=1),
        Probe("jobs", journal, layer=Layer.DRIVER, requires=("kv",), start_seconds=1),
    ]

    async def on_init() -> None:
        await trio.sleep(1)

    container = Container(plugins, on_init=on_init)

    async def ask() -> None:
        await trio.sleep(when)
        stop.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        took = await run_to_the_end(container, stop)

    started = [line.split()[1] for line in journal if line.startswith("start")]
    stopped = [line.split()[1] for line in journal if line.startswith("down")]
    assert stopped == started[::-1]
    assert took == 0
    assert {phase for phase, _ in rows(container).values()} == {Phase.STOPPED}
    assert "open jobs" not in journal


async def test_on_init_failure_fails_the_start(autojump_clock: trio.testing.MockClock) -> None:
    """What on_init raises comes out of the start, and everything is stopped."""
    journal: list[str] = []

    with pytest.raises(StartFailed, match="on_init failed: RuntimeError: exit code 3"):
        await run_to_the_end(Container([Probe("a", journal)], on_init=lambda: fail("exit code 3")))

    assert journal[-1] == "down a"


async def test_failing_open_fails_the_start_or_an_optional_plugin(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """`open` is part of the start: its error is the plugin's."""
    with pytest.raises(
        PluginFailed, match="plugin a failed while healthy: cannot open: RuntimeError: port in use"
    ):
        await run_to_the_end(Container([Probe("a", [], on_open=lambda: fail("port in use"))]))

    plugins = [Probe("a", [], on_open=lambda: fail("port in use")), Probe("b", [])]
    async with run_container(plugins, optional={"a"}) as container:
        seen = rows(container)

    assert seen == {
        "a": (Phase.FAILED, "cannot open: RuntimeError: port in use"),
        "b": (Phase.HEALTHY, ""),
    }


async def test_system_exit_in_a_plugin_ends_only_the_plugin(autojump_clock: trio.testing.MockClock) -> None:
    """Not even sys.exit() in a plugin ends the process."""
    plugin = Probe("a", [])

    async def leave() -> None:
        await plugin.crash.wait()
        raise SystemExit(3)

    plugin._crash = leave  # type: ignore[method-assign]

    async with run_container([plugin, Probe("b", [])]) as container:
        plugin.crash.set()
        await trio.testing.wait_all_tasks_blocked()
        seen = rows(container)

    assert seen == {"a": (Phase.FAILED, "SystemExit: 3"), "b": (Phase.HEALTHY, "")}


async def test_state_says_what_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """During the start `trailboss.State` names phase, gate, and for each plugin whom it waits for and since when."""
    plugins = [
        Probe("kv", [], start_seconds=5),
        Probe("jobs", [], requires=("kv",)),
    ]
    stop = trio.Event()
    container = Container(plugins)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(container.run, stop)
        await trio.sleep(2)
        state = container.state.as_dict()
        stop.set()

    assert (state["phase"], state["gate"], state["ready"]) == ("starting", "closed", False)
    assert state["uptime_seconds"] == 2
    assert state["waiting_for"] == ["kv (starting, 2.0s)", "jobs (declared, 2.0s)"]
    assert [(row["name"], row["phase"], row["waiting_for"]) for row in state["plugins"]] == [  # type: ignore[attr-defined]
        ("kv", "starting", []),
        ("jobs", "declared", ["kv"]),
    ]


async def test_ill_informers_do_no_harm(autojump_clock: trio.testing.MockClock) -> None:
    """health, state_detail and listeners that raise are data and log lines, never an error of the state."""

    class Ill(Probe):
        def health(self) -> Health:
            raise ValueError("dizzy")

        def state_detail(self) -> dict[str, object]:
            raise ValueError("no figures")

    def listener() -> None:
        raise ValueError("deaf")

    container = Container([Ill("ill", [])])
    container.state.on_change.append(listener)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: container.run(stop, task_status=task_status))
        row = container.state.as_dict()["plugins"][0]  # type: ignore[index]
        stop.set()

    assert row["healthy"] is False
    assert row["reason"] == "health() raised ValueError: dizzy"
    assert row["detail"] == {"error": "state_detail() raised ValueError: no figures"}


async def test_services_are_typed_and_the_state_is_one(autojump_clock: trio.testing.MockClock) -> None:
    """Plugins find the state under its type."""
    async with run_container([Probe("a", [])]) as container:
        assert container.services.get(ServerState) is container.state
