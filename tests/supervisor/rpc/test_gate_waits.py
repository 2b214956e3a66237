"""Calls at the gate: waiting, passing, being refused, in virtual time and without sockets; and the guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from trailboss.container.contract import (
    Access,
    Caller,
    CallerRole,
    Plugin,
    RpcMethod,
    RpcRefused,
    WholePhase,
)
from trailboss.container.lifecycle import Event
from trailboss.container.state import ServerState
from trailboss.reactor import Reactor
from trailboss.rpc.registry import Registry
from trailboss.rpc.server import RpcLimits, RpcServer
from trailboss.telemetry import Span, Telemetry
from trailboss.workers.outcome import QueueFull
from trailboss_worker.protocol.frames import JSON
from trailboss_worker.protocol.rpc import RpcRequest

READY_TIMEOUT = 5.0


class Jobs(Plugin):
    """A plugin that the gate waits for."""

    name = "jobs"


class Scene:
    """A server without sockets, its state, and what its handlers did."""

    def __init__(self, server: RpcServer, state: ServerState, helpers: Any, effects: list[str]) -> None:
        self.server = server
        self.state = state
        self.effects = effects
        self._helpers = helpers
        self._sequence = 0

    def call(self, method: str, argument: bytes = b"", caller: Caller | None = None) -> Any:
        """Send a call; returns the peer that collects its answer."""
        self._sequence += 1
        peer = self._helpers.MemoryPeer(caller)
        self.server.serve(peer, RpcRequest(self._sequence, method, JSON, argument))
        return peer

    def jobs_healthy(self) -> None:
        """Let the plugin become healthy and the gate open."""
        self.state.record("jobs", Event.START)
        self.state.record("jobs", Event.READY)
        self.state.open_gate()


def methods(effects: list[str]) -> list[RpcMethod]:
    def note(name: str) -> Any:
        def handle(_argument: object, _caller: Caller) -> str:
            effects.append(name)
            return name

        return handle

    async def slow(_argument: object, _caller: Caller) -> str:
        await trio.sleep(3)
        effects.append("jobs.Slow")
        return "slow"

    async def endless(_argument: object, _caller: Caller) -> str:
        await trio.sleep_forever()
        return "never"

    async def raising(_argument: object, _caller: Caller) -> str:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("division by zero")

    def fail(error: BaseException) -> Any:
        def handle(_argument: object, _caller: Caller) -> str:
            raise error

        return handle

    return [
        RpcMethod("rpc.Version", note("rpc.Version"), Access.ALWAYS),
        RpcMethod("jobs.Push", note("jobs.Push")),
        RpcMethod("jobs.Slow", slow),
        RpcMethod("jobs.Endless", endless, deadline_seconds=65.0),
        RpcMethod("jobs.Default", endless),
        RpcMethod("jobs.Destroy", note("jobs.Destroy"), Access.SENSITIVE),
        RpcMethod("jobs.Raising", raising),
        RpcMethod("resetter.Reset", note("resetter.Reset"), Access.SENSITIVE, argument=str, needs_pool=str),
        RpcMethod("jobs.Bug", fail(ZeroDivisionError("division by zero")), Access.ALWAYS),
        RpcMethod("jobs.Silent", fail(ZeroDivisionError()), Access.ALWAYS),
        RpcMethod("jobs.Exit", fail(SystemExit(3)), Access.ALWAYS),
        RpcMethod("jobs.Group", fail(ExceptionGroup("two", [ValueError("a"), KeyError("b")])), Access.ALWAYS),
        RpcMethod("jobs.Refused", fail(RpcRefused("no such pipeline, requested: x")), Access.ALWAYS),
        RpcMethod("jobs.Full", fail(QueueFull("the queue of jobs is full")), Access.ALWAYS),
        RpcMethod("jobs.Odd", lambda _a, _c: object(), Access.ALWAYS),
    ]


@asynccontextmanager
async def scene(
    helpers: Any, ready_timeout: float = READY_TIMEOUT, telemetry: Telemetry | None = None
) -> AsyncIterator[Scene]:
    effects: list[str] = []
    state = ServerState()
    state.declare([Jobs()], {"jobs": frozenset()}, ())
    reactor = Reactor()
    try:
        async with trio.open_nursery() as nursery:
            limits = RpcLimits(ready_timeout_seconds=ready_timeout, call_timeout_seconds=60.0)
            server = RpcServer(
                Registry(methods(effects)), limits, reactor, state, nursery, telemetry=telemetry
            )
            yield Scene(server, state, helpers, effects)
            nursery.cancel_scope.cancel()
        server.close()
        assert server.tasks == 0
        assert server.bytes_held == 0
        assert state.on_change == []
    finally:
        reactor.close()


def text_of(peer: Any) -> str:
    ((_request, is_error, body),) = peer.answers
    assert is_error
    return str(body.decode())


async def test_always_on_methods_answer_while_the_gate_is_closed(helpers: Any, autojump_clock: Any) -> None:
    """rpc.Version is answered at once, in place, whatever the phase."""
    async with scene(helpers) as stage:
        peer = stage.call("rpc.Version")
        assert [body for _, _, body in peer.answers] == [b'"rpc.Version"']
        assert peer.tasks == 0


async def test_a_waiting_call_passes_when_the_gate_opens(helpers: Any, autojump_clock: Any) -> None:
    """A call before the gate opens has no effect until then and is answered right after."""
    async with scene(helpers) as stage:
        began = trio.current_time()
        peer = stage.call("jobs.Push")
        await trio.sleep(2)
        assert (peer.answers, stage.effects) == ([], [])
        stage.jobs_healthy()
        await peer.changed.wait()
        assert [body for _, _, body in peer.answers] == [b'"jobs.Push"']
        assert pytest.approx(trio.current_time() - began) == 2.0


async def test_a_call_waits_for_ready_timeout_and_is_then_refused(helpers: Any, autojump_clock: Any) -> None:
    """After rpc.ready_timeout, and not before, the caller gets `service not ready` with phase, plugin and duration."""
    async with scene(helpers) as stage:
        began = trio.current_time()
        peer = stage.call("jobs.Push")
        await peer.changed.wait()
        assert pytest.approx(trio.current_time() - began) == READY_TIMEOUT
        assert text_of(peer) == "service not ready: phase=starting; waiting for jobs (declared, 5.0s)"
        assert stage.effects == []
        assert stage.server.counters.refused == 1


async def test_no_ready_timeout_refuses_at_once(helpers: Any, autojump_clock: Any) -> None:
    """With `rpc.ready_timeout: 0s` the answer comes in place, without a task."""
    async with scene(helpers, ready_timeout=0.0) as stage:
        peer = stage.call("jobs.Push")
        assert text_of(peer).startswith("service not ready: phase=starting")
        assert peer.tasks == 0


async def test_a_plugin_that_fails_refuses_waiting_calls_at_once(helpers: Any, autojump_clock: Any) -> None:
    """When it is certain that waiting is in vain, the caller hears at once, with the reason."""
    async with scene(helpers) as stage:
        peer = stage.call("jobs.Push")
        await trio.sleep(1)
        began = trio.current_time()
        stage.state.record("jobs", Event.START)
        stage.state.record("jobs", Event.FAIL, "no disk")
        await peer.changed.wait()
        assert began == trio.current_time()
        assert text_of(peer) == "service not available: plugin jobs failed: no disk"


async def test_an_optional_plugin_that_failed_keeps_its_methods_refused(
    helpers: Any, autojump_clock: Any
) -> None:
    """With the gate open, methods of a failed plugin are refused and those of others pass."""
    async with scene(helpers) as stage:
        stage.state.record("jobs", Event.START)
        stage.state.record("jobs", Event.FAIL, "no disk")
        stage.state.set_whole(WholePhase.READY)
        stage.state.open_gate()
        assert text_of(stage.call("jobs.Push")) == "service not available: plugin jobs failed: no disk"
        assert [body for _, _, body in stage.call("resetter.Reset", b'"http"').answers] == [
            b'"resetter.Reset"'
        ]


async def test_sensitive_methods_are_refused_while_on_init_runs(helpers: Any, autojump_clock: Any) -> None:
    """During on_init ordinary calls pass and sensitive ones are refused; afterwards both pass."""
    async with scene(helpers) as stage:
        stage.jobs_healthy()
        stage.state.set_whole(WholePhase.INITIALISING, on_init_running=True)
        assert [body for _, _, body in stage.call("jobs.Push").answers] == [b'"jobs.Push"']
        assert text_of(stage.call("jobs.Destroy")).startswith("refused during on_init: jobs.Destroy")
        stage.state.set_whole(WholePhase.READY)
        assert [body for _, _, body in stage.call("jobs.Destroy").answers] == [b'"jobs.Destroy"']


async def test_a_booting_worker_cannot_wait_for_its_own_pool(helpers: Any, autojump_clock: Any) -> None:
    """A call that needs the pool which waits for this very caller fails at once; any other pool is no trouble."""
    async with scene(helpers) as stage:
        stage.jobs_healthy()
        stage.state.expect_pools(["jobs"])
        stage.state.set_whole(WholePhase.BOOTING)
        worker = Caller(CallerRole.WORKER, "jobs", 123, 0, booting=True)
        peer = stage.call("resetter.Reset", b'"jobs"', worker)
        assert "waits for this very caller (pid 123)" in text_of(peer)
        waiting = stage.call("resetter.Reset", b'"jobs"')
        assert waiting.answers == []
        stage.state.pool_settled("jobs")
        stage.state.set_whole(WholePhase.READY)
        await waiting.changed.wait()
        assert stage.effects == ["resetter.Reset"]


async def test_a_waiting_call_of_a_client_that_has_gone_has_no_effect(
    helpers: Any, autojump_clock: Any
) -> None:
    """A call that had not begun when its client left is dropped."""
    async with scene(helpers) as stage:
        peer = stage.call("jobs.Push")
        await trio.testing.wait_all_tasks_blocked()
        peer.closed = True
        stage.jobs_healthy()
        await trio.testing.wait_all_tasks_blocked()
        assert (stage.effects, peer.tasks) == ([], 0)


async def test_a_call_that_has_begun_is_finished_without_its_client(
    helpers: Any, autojump_clock: Any
) -> None:
    """The handler runs to its end although nobody takes the answer."""
    async with scene(helpers) as stage:
        stage.jobs_healthy()
        peer = stage.call("jobs.Slow")
        peer.closed = True
        await peer.changed.wait()
        assert stage.effects == ["jobs.Slow"]


@pytest.mark.parametrize(("method", "seconds"), [("jobs.Endless", 65.0), ("jobs.Default", 60.0)])
async def test_a_handler_that_never_ends_meets_its_deadline(
    helpers: Any, autojump_clock: Any, method: str, seconds: float
) -> None:
    """The method's own limit, else rpc.call_timeout, ends the call with a text that says so."""
    async with scene(helpers) as stage:
        stage.jobs_healthy()
        began = trio.current_time()
        peer = stage.call(method)
        await peer.changed.wait()
        assert seconds == pytest.approx(trio.current_time() - began)
        assert f"deadline exceeded: {method} has not ended within {seconds:g}s" == text_of(peer)


@pytest.mark.parametrize(
    ("method", "text", "failures"),
    [
        ("jobs.Bug", "division by zero", 1),
        ("jobs.Silent", "ZeroDivisionError", 1),
        ("jobs.Exit", "3", 1),
        ("jobs.Group", "two (2 sub-exceptions)", 1),
        ("jobs.Refused", "no such pipeline, requested: x", 0),
        ("jobs.Full", "the queue of jobs is full", 0),
        ("jobs.Odd", "json: the result cannot be encoded: json: unsupported type: object", 0),
        ("jobs.None", "rpc: can't find method jobs.None", 0),
    ],
)
async def test_whatever_a_handler_raises_is_an_answer(
    helpers: Any, autojump_clock: Any, method: str, text: str, failures: int
) -> None:
    """The guard turns exceptions into error answers; the unexpected ones are counted as failures."""
    async with scene(helpers) as stage:
        assert text == text_of(stage.call(method))
        assert failures == stage.server.counters.failures
        assert [body for _, _, body in stage.call("rpc.Version").answers] == [b'"rpc.Version"']


async def test_an_asynchronous_handler_that_raises_is_an_answer(helpers: Any, autojump_clock: Any) -> None:
    """The same guard stands around tasks; the nursery and all other calls live on."""
    async with scene(helpers) as stage:
        stage.jobs_healthy()
        peer = stage.call("jobs.Raising")
        await peer.changed.wait()
        assert text_of(peer) == "division by zero"
        assert [body for _, _, body in stage.call("jobs.Push").answers] == [b'"jobs.Push"']


async def test_two_hundred_early_callers_of_every_method_get_one_answer_each(
    helpers: Any, autojump_clock: Any
) -> None:
    """However many call before the gate opens: one answer each, nothing executed early, no task left."""
    async with scene(helpers) as stage:
        names = ["jobs.Push", "jobs.Destroy", "jobs.Slow", "rpc.Version", "resetter.Reset"]
        peers = [stage.call(name, b'"jobs"') for _ in range(200) for name in names]
        await trio.sleep(1)
        assert {"rpc.Version"} == set(stage.effects)
        stage.jobs_healthy()
        await trio.sleep(4)
        assert [1] * len(peers) == [len(peer.answers) for peer in peers]
        assert stage.server.tasks == 0


class RecordedSpan(Span):
    """A span that notes its life."""

    def __init__(self, name: str, ended: list[tuple[str, str]]) -> None:
        self._name = name
        self._ended: list[tuple[str, str]] | None = ended
        self._failure = ""

    def fail(self, text: str) -> None:
        self._failure = text

    def end(self) -> None:
        if self._ended is not None:
            self._ended.append((self._name, self._failure))
            self._ended = None


class Recorder:
    """A telemetry back-end that keeps spans."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []

    def start(self, name: str, _attributes: object, _parent: object) -> Span:
        return RecordedSpan(name, self.ended)


async def test_calls_have_spans_where_spans_are_recorded(helpers: Any, autojump_clock: Any) -> None:
    """One span a call, failed where the answer is an error, ended once; none before a back-end is attached."""
    telemetry, recorder = Telemetry(), Recorder()
    async with scene(helpers, telemetry=telemetry) as stage:
        stage.jobs_healthy()
        stage.call("jobs.Push")
        telemetry.attach(recorder)
        stage.call("rpc.Version")
        stage.call("jobs.Bug")
        slow = stage.call("jobs.Slow")
        await slow.changed.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert recorder.ended == [
            ("rpc rpc.Version", ""),
            ("rpc jobs.Bug", "division by zero"),
            ("rpc jobs.Slow", ""),
        ]
