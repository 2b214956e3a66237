"""What all RPC connections share: the methods, the gate, the guard, the limits and the tasks of calls that wait.

A call that needs no waiting is answered in place, inside the reactor: no task, no timer, no log line. A call gets a
task of its own where its handler is asynchronous or the gate makes it wait. Whatever a handler raises ends here, in
the one guard: the caller gets an error answer, a counter goes up, and what nobody expected is logged with its
traceback. A call that has begun is carried out even when its client has gone; only the answer is dropped then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import trio

from trailboss.container.contract import Access, Caller, CallerRole, Phase, RpcMethod, RpcRefused, WholePhase
from trailboss.container.gate import GateView, Pass, Refuse, decide
from trailboss.log import logger
from trailboss.reactor import Reactor
from trailboss.rpc.codec import ARGUMENT_CODEC, ArgumentDecoder, CodecError, argument_decoder, encode_result
from trailboss.rpc.peers import AuditedPeer, Peer, TracedPeer
from trailboss.rpc.policy import Policy
from trailboss.rpc.registry import Registry, UnknownMethod
from trailboss.telemetry import Telemetry
from trailboss.workers.outcome import ExecFailed
from trailboss_worker.protocol.rpc import RpcRequest

__all__ = ["Call", "CallerLookup", "GateSource", "RpcCounters", "RpcLimits", "RpcServer"]

log = logger("rpc")

#: May be called by everybody: it is how a caller says who it is.
AUTHENTICATE = "trailboss.Authenticate"

#: Lines about broken connections in one minute; more are counted and told with the next line.
BROKEN_LINES_PER_MINUTE = 10

#: Calls with a task of their own, of all connections together; beyond that connections are not read.
TASKS_MAX = 4096


class GateSource(Protocol):
    """The part of :class:`trailboss.container.state.ServerState` that calls depend on."""

    on_change: list[Callable[[], None]]

    def view(self) -> GateView:
        """Return what the gate's decisions are based on, now."""

    async def wait_change(self) -> None:
        """Return at the next change of anything `view` shows."""


class CallerLookup(Protocol):
    """The part of :class:`trailboss.workers.callers.Callers` that connections need."""

    def lookup(self, pid: int, uid: int) -> Caller:
        """Say who the process `pid` of user `uid` is."""

    def refresh(self, caller: Caller) -> Caller:
        """Say again who an authenticated caller is."""


class OperatorLookup:
    """Everybody is an operator: for servers without workers."""

    def lookup(self, pid: int, uid: int) -> Caller:
        """Return an operator."""
        return Caller(CallerRole.OPERATOR, pid=pid, uid=uid)

    def refresh(self, caller: Caller) -> Caller:
        """Return what it is."""
        return caller


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """Limits of the RPC port; seconds and bytes. 0 seconds of idle time: no limit."""

    ready_timeout_seconds: float = 5.0
    call_timeout_seconds: float = 60.0
    read_timeout_seconds: float = 30.0
    idle_timeout_seconds: float = 0.0
    frame_bytes: int = 64 * 1024 * 1024
    bytes_in_flight: int = 256 * 1024 * 1024
    connections: int = 1024


@dataclass(slots=True)
class RpcCounters:
    """Counts since the start; `trailboss.State` shows them."""

    connections: int = 0  #: accepted
    turned_away: int = 0  #: closed at once: limit or peer
    broken: int = 0  #: closed because of their bytes
    calls: int = 0
    errors: int = 0  #: error answers of any kind
    refused: int = 0  #: of these: by the gate
    failures: int = 0  #: of these: exceptions that no handler should let out

    def as_dict(self) -> dict[str, object]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Entry:
    """One method, prepared for calls. `free`: it may run at once, whoever calls (kept up to date by the server)."""

    __slots__ = (
        *("allowed", "deadline_seconds", "decode", "free", "handler", "is_watched", "method"),
        *("needs_pool", "plugin"),
    )

    def __init__(
        self, method: RpcMethod, call_timeout_seconds: float, allowed: frozenset[str] | None = None
    ) -> None:
        self.method = method
        #: Kinds of callers that `rpc.policy` lets call it; None: all.
        self.allowed = None if method.name == AUTHENTICATE else allowed
        self.is_watched = self.allowed is not None or method.access is Access.SENSITIVE
        self.handler: Callable[[Any, Caller], object] = method.handler
        self.decode: ArgumentDecoder = argument_decoder(method)
        self.free = method.access is Access.ALWAYS
        self.needs_pool = method.needs_pool
        self.plugin = method.plugin or method.name.partition(".")[0]
        self.deadline_seconds = (
            call_timeout_seconds if method.deadline_seconds is None else method.deadline_seconds
        )


class Call:
    """A call that needs a task: what is known of it."""

    __slots__ = ("argument", "codec", "entry", "peer", "request", "size")

    def __init__(
        self, peer: Peer, request: RpcRequest, entry: Entry, codec: str | None, argument: object
    ) -> None:
        self.peer = peer
        self.request = request
        self.entry = entry
        self.codec = codec
        self.argument = argument
        self.size = len(request.argument)


class RpcServer:
    """The methods of one RPC port and the calls under way. Lives as long as its nursery."""

    def __init__(
        self,
        registry: Registry,
        limits: RpcLimits,
        reactor: Reactor,
        gate: GateSource,
        nursery: trio.Nursery,
        callers: CallerLookup | None = None,
        telemetry: Telemetry | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.limits = limits
        self.reactor = reactor
        self.callers: CallerLookup = callers if callers is not None else OperatorLookup()
        self.counters = RpcCounters()
        self.connections: set[Peer] = set()
        #: Connections that read nothing because a limit of all together is reached; called when there is room again.
        self.starved: set[Callable[[], None]] = set()
        self.tasks = 0
        self.bytes_held = 0
        #: Bytes of complete calls that connections keep because they must wait. Not part of `is_full`: serving those calls is
        #: what makes them fewer.
        self.bytes_waiting = 0
        self._registry = registry
        self._gate = gate
        self._nursery = nursery
        self._telemetry = telemetry if telemetry is not None else Telemetry()
        self._policy = policy = policy if policy is not None else Policy()
        self._entries = {
            method.name: Entry(method, limits.call_timeout_seconds, policy.allowed(method.name))
            for method in registry
        }
        for pattern in policy.idle_patterns(self._entries):
            log.warning("a pattern of rpc.policy matches no method", pattern=pattern)
        self._moved: trio.Event | None = None
        self._broken_minute = -1
        self._broken_lines = 0
        self._broken_untold = 0
        gate.on_change.append(self._gate_changed)
        self._gate_changed()

    # --- the gate -------------------------------------------------------------------------------------------------

    def _gate_changed(self) -> None:
        view = self._gate.view()
        open_to_all = view.open and not view.on_init_running and view.whole is not WholePhase.STOPPED
        unwell = {plugin.name for plugin in view.plugins if plugin.phase is not Phase.HEALTHY}
        for entry in self._entries.values():
            entry.free = entry.method.access is Access.ALWAYS or (
                open_to_all and not entry.needs_pool and entry.plugin not in unwell
            )

    # --- calls, inside the reactor --------------------------------------------------------------------------------

    def serve(self, peer: Peer, request: RpcRequest) -> None:
        """Answer `request` now, or see to it that it is answered. Never raises an Exception."""
        self.counters.calls += 1
        if self._telemetry.active:
            peer = TracedPeer(peer, request, self._telemetry)
        codec = ARGUMENT_CODEC[request.flags]
        entry = self._entries.get(request.method)
        try:
            if entry is None:
                self._registry.find(request.method)
                raise UnknownMethod(f"rpc: can't find method {request.method}")
            argument = entry.decode(codec, request.argument)
            if entry.is_watched:
                # Over TCP only a second look finds the process.
                caller = peer.fresh_caller()
                if entry.method.access is Access.SENSITIVE:
                    peer = AuditedPeer(peer, request)
                if entry.allowed is not None:
                    self._obey_policy(entry, entry.allowed, argument, caller)
            if not entry.free:
                self._ask_gate(Call(peer, request, entry, codec, argument))
                return
            result = entry.handler(argument, peer.caller)
            if hasattr(result, "__await__"):
                self._start(Call(peer, request, entry, codec, argument), self._finish, result)
                return
            if isinstance(result, Caller):
                peer.become(result)
                result = result.role.value
            answer = encode_result(codec, result)
        except (Exception, SystemExit) as error:
            self._answer_failure(peer, request, error)
        else:
            peer.answer(request, answer)

    def _obey_policy(self, entry: Entry, allowed: frozenset[str], argument: object, caller: Caller) -> None:
        """Raise RpcRefused where `rpc.policy` does not let `caller` make this call."""
        needs_pool = entry.needs_pool
        pool = needs_pool if isinstance(needs_pool, str) else needs_pool(argument)
        refusal = self._policy.refusal(entry.method.name, allowed, caller, pool or entry.plugin)
        if refusal:
            self.counters.refused += 1
            log.warning(
                "a call was refused by rpc.policy",
                method=entry.method.name,
                caller=caller.role.value,
                pid=caller.pid,
                uid=caller.uid,
            )
            raise RpcRefused(refusal)

    def _ask_gate(self, call: Call) -> None:
        started = trio.current_time()
        verdict = self._decide(call, 0.0)
        if isinstance(verdict, Refuse):
            self._answer_refusal(call, verdict.text)
        elif isinstance(verdict, Pass):
            self._run_sync_part(call)
        else:
            self._start(call, self._wait_at_gate, started)

    def _decide(self, call: Call, waited_seconds: float) -> object:
        needs_pool = call.entry.needs_pool
        pool = needs_pool if isinstance(needs_pool, str) else needs_pool(call.argument)
        return decide(
            call.entry.method,
            pool,
            self._gate.view(),
            # Only a call that needs a pool can wait for its own caller; looking it up may take milliseconds.
            call.peer.fresh_caller() if pool else call.peer.caller,
            waited_seconds,
            self.limits.ready_timeout_seconds,
        )

    def _run_sync_part(self, call: Call) -> None:
        """Call the handler inside the reactor, after the gate has said yes."""
        result = call.entry.handler(call.argument, call.peer.caller)
        if hasattr(result, "__await__"):
            self._start(call, self._finish, result)
        else:
            call.peer.answer(call.request, encode_result(call.codec, result))

    def _start(self, call: Call, run: Callable[[Call, Any], Awaitable[None]], value: object) -> None:
        self.tasks += 1
        self.bytes_held += call.size
        call.peer.call_started()
        try:
            self._nursery.start_soon(self._guarded, call, run, value, name=f"rpc {call.request.method}")
        except RuntimeError:  # the nursery has closed: the server is going down
            self._ended(call)
            if hasattr(value, "close"):
                value.close()
            raise RpcRefused("service not ready: phase=stopped; the server is stopping") from None

    # --- calls with a task of their own ---------------------------------------------------------------------------

    async def _guarded(self, call: Call, run: Callable[[Call, Any], Awaitable[None]], value: object) -> None:
        try:
            await run(call, value)
        except (Exception, SystemExit) as error:
            self._answer_failure(call.peer, call.request, error)
        finally:
            self._ended(call)

    def _ended(self, call: Call) -> None:
        self.tasks -= 1
        self.bytes_held -= call.size
        call.peer.call_ended()
        self.moved()
        self.feed_starved()

    async def _wait_at_gate(self, call: Call, started: float) -> None:
        gives_up_at = started + self.limits.ready_timeout_seconds
        while not call.peer.closed:
            now = trio.current_time()
            # Compared as the deadline below is: (started + timeout) - started may be a hair less than timeout.
            waited = now - started if now < gives_up_at else self.limits.ready_timeout_seconds
            verdict = self._decide(call, waited)
            if isinstance(verdict, Refuse):
                self._answer_refusal(call, verdict.text)
                return
            if isinstance(verdict, Pass):
                await self._run(call)
                return
            with trio.move_on_at(gives_up_at):
                await self._gate.wait_change()
        # The client has gone before its call could begin: nothing has happened, and nobody asks.

    async def _run(self, call: Call) -> None:
        result = call.entry.handler(call.argument, call.peer.caller)
        await self._finish(call, result)

    async def _finish(self, call: Call, result: object) -> None:
        """Wait for the handler up to its deadline, then answer."""
        if hasattr(result, "__await__"):
            seconds = call.entry.deadline_seconds
            with trio.move_on_after(seconds) as scope:
                result = await cast(Awaitable[object], result)
            if scope.cancelled_caught:
                raise RpcRefused(
                    f"deadline exceeded: {call.request.method} has not ended within {seconds:g}s"
                )
        call.peer.answer(call.request, encode_result(call.codec, result))

    # --- the guard ------------------------------------------------------------------------------------------------

    def _answer_refusal(self, call: Call, text: str) -> None:
        self.counters.refused += 1
        self.counters.errors += 1
        call.peer.answer_error(call.request, text)

    def _answer_failure(self, peer: Peer, request: RpcRequest, error: BaseException) -> None:
        self.counters.errors += 1
        text = str(error) or type(error).__name__
        if not isinstance(error, (RpcRefused, UnknownMethod, CodecError, ExecFailed)):
            self.counters.failures += 1
            log.error(
                "an RPC method failed; its caller got an error answer",
                method=request.method,
                caller=peer.caller.role.value,
                caller_pid=peer.caller.pid,
                exc_info=error,
            )
        else:
            log.debug("an RPC call was declined", method=request.method, text=text)
        peer.answer_error(request, text)

    def connection_broken(self, reason: str, caller: Caller) -> None:
        """Count, and log unless there is too much of it, a connection that had to be closed."""
        self.counters.broken += 1
        minute = int(self.reactor.now // 60)
        if minute != self._broken_minute:
            self._broken_minute, self._broken_lines = minute, 0
        if self._broken_lines >= BROKEN_LINES_PER_MINUTE:
            self._broken_untold += 1
            return
        self._broken_lines += 1
        untold, self._broken_untold = self._broken_untold, 0
        log.warning(
            "an RPC connection was closed", reason=reason, pid=caller.pid, uid=caller.uid, not_logged=untold
        )

    # --- limits of all together -----------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether connections must not take more calls for now."""
        return self.tasks >= TASKS_MAX or self.bytes_held >= self.limits.bytes_in_flight

    def feed_starved(self) -> None:
        """Let connections go on that waited for room."""
        if self.starved and not self.is_full:
            waiting, self.starved = self.starved, set()
            for resume in waiting:
                self.reactor.call_soon(resume)

    # --- the end --------------------------------------------------------------------------------------------------

    async def finish(self, seconds: float) -> None:
        """Take no further calls, and let those that have begun end, for at most `seconds`."""
        for peer in tuple(self.connections):
            peer.end_intake()
        with trio.move_on_after(seconds):
            while self.tasks or any(peer.has_unsent for peer in self.connections):
                self._moved = trio.Event()
                await self._moved.wait()

    def moved(self) -> None:
        """Wake `finish`: a call has ended, or an answer has gone out."""
        if self._moved is not None:
            self._moved.set()

    def close(self) -> None:
        """Close every connection and stop listening to the gate. Calls under way end with the nursery."""
        self._gate.on_change.remove(self._gate_changed)
        for peer in tuple(self.connections):
            peer.close()
