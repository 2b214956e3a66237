"""Third-party plugins for tests of the whole server, installed by `live_server.install_plugins`.

They learn from the environment what to do. `recorder` also wraps the handler of every RPC method of the server, and
writes one line for each execution: what the gate was at that moment, and who called.
"""

# ruff: noqa: ASYNC110, ASYNC240  the other side is a process: it is asked by files, /proc and commands
from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import trio

from trailboss.container.contract import Access, Plugin, RpcMethod, Services
from trailboss.container.state import ServerState
from trailboss.plugins.jobs.plugin import JobsPlugin
from trailboss.rpc.registry import Registry


class Slow(Plugin):
    """A back-end that takes CHAOS_SLOW seconds to start, or starts when the file CHAOS_SLOW_UNTIL is there."""

    name = "slow"

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await trio.sleep(float(os.environ.get("CHAOS_SLOW", "0")))
        path = os.environ.get("CHAOS_SLOW_UNTIL")
        while path and not os.path.exists(path):
            await trio.sleep(0.01)
        task_status.started()
        await stopping.wait()

    def rpc_methods(self) -> Sequence[RpcMethod]:
        return (RpcMethod("slow.Touch", lambda argument, caller: "touched"),)


def slow(config: object) -> Plugin:
    return Slow()


class Recorder(Plugin):
    """Has a method of every kind, and records what runs."""

    name = "recorder"
    state: ServerState | None = None

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        task_status.started()
        await stopping.wait()

    def rpc_methods(self) -> Sequence[RpcMethod]:
        def nothing(argument: object, caller: object) -> str:
            return "done"

        async def slowly(argument: object, caller: object) -> str:
            await trio.sleep(0.05)
            return "done"

        return (
            RpcMethod("recorder.Normal", nothing),
            RpcMethod("recorder.Slowly", slowly),
            RpcMethod("recorder.Sensitive", nothing, Access.SENSITIVE),
            RpcMethod("recorder.Pool", nothing, needs_pool="jobs"),
        )


def recorder(config: object) -> Plugin:
    add, declare = Registry.add, ServerState.declare

    def remembering_declare(self: ServerState, *arguments: Any) -> None:
        Recorder.state = self
        declare(self, *arguments)

    ServerState.declare = remembering_declare  # type: ignore[method-assign]

    def record(method: RpcMethod, caller: Any) -> None:
        state = Recorder.state
        assert state is not None
        line = {
            "method": method.name,
            "access": method.access.value,
            "gate_open": state.gate_open,
            "on_init": state.on_init_running,
            "phase": state.whole.value,
            "role": caller.role.value,
            "booting": caller.booting,
        }
        with open(os.environ["CHAOS_RECORD"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def recording_add(self: Registry, method: RpcMethod) -> None:
        handler = method.handler

        def recorded(argument: Any, caller: Any) -> object:
            record(method, caller)
            return handler(argument, caller)

        add(self, dataclasses.replace(method, handler=recorded))

    Registry.add = recording_add  # type: ignore[method-assign]
    return Recorder()


def hold_jobs(config: object) -> None:
    """Let the jobs plugin start only when the file CHAOS_HOLD_JOBS is there."""
    run = JobsPlugin.run

    async def held(
        self: JobsPlugin,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        while not os.path.exists(os.environ["CHAOS_HOLD_JOBS"]):
            await trio.sleep(0.01)
        await run(self, services, stopping, task_status=task_status)

    JobsPlugin.run = held  # type: ignore[method-assign]


class Faulty(Plugin):
    """Fails at the point that CHAOS_FAULT names."""

    name = "faulty"
    start_timeout_seconds = 0.5
    stop_timeout_seconds = 0.5

    def __init__(self, fault: str) -> None:
        self._fault = fault
        if fault == "construct":
            raise RuntimeError("cannot construct")

    async def _reach(self, point: str) -> None:
        if self._fault == point:
            raise RuntimeError(f"cannot {point}")
        if self._fault == f"hang in {point}":
            await trio.sleep_forever()
        if self._fault == f"shielded hang in {point}":
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async def run(
        self,
        services: Services,
        stopping: trio.Event,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        if self._fault == "return":
            return
        await self._reach("start")
        task_status.started()
        if self._fault == "started twice":
            task_status.started()
        await self._reach("live")
        if self._fault == "die later":
            while not os.path.exists(os.environ["CHAOS_DIE"]):
                await trio.sleep(0.01)
            raise RuntimeError("cannot go on")
        await stopping.wait()
        await self._reach("stop")

    def rpc_methods(self) -> Sequence[RpcMethod]:
        if self._fault == "methods":
            raise RuntimeError("cannot methods")

        def broken(argument: object, caller: object) -> object:
            if argument == "exit":
                raise SystemExit(3)
            if argument == "recursion":
                return broken("recursion", caller)
            if argument == "memory":
                raise MemoryError
            if argument == "value":
                return object()
            raise RuntimeError("cannot answer")

        async def hang(argument: object, caller: object) -> object:
            await trio.sleep_forever()

        return (
            RpcMethod("faulty.Broken", broken),
            RpcMethod("faulty.Hang", hang, deadline_seconds=0.3),
        )

    def health(self) -> Any:
        if self._fault == "health":
            raise RuntimeError("cannot health")
        return super().health()

    async def open(self) -> None:
        await self._reach("open")

    async def close_intake(self) -> None:
        await self._reach("close_intake")

    async def drain(self) -> None:
        await self._reach("drain")


def faulty(config: object) -> Plugin:
    return Faulty(os.environ["CHAOS_FAULT"])
