"""SABOTAGE: a Trailboss that breaks one promise, to see that `trailboss chaos` says so.

``TRAILBOSS_SABOTAGE=requests python -m trailboss.testing.sabotage chaos -c FILE`` is the command line with servers of
which every tenth answer is wrong. The variable means nothing to any other program: only this module looks at it, and no
part of the server imports this module.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

if TYPE_CHECKING:
    from trailboss.workers.pool import Slot
    from trailboss.workers.worker import WorkerExit

__all__ = ["SABOTAGES", "VARIABLE", "main"]

VARIABLE: Final = "TRAILBOSS_SABOTAGE"
#: Deaths of workers that a saboteur lets pass, so that the server has been well for a while.
_PATIENCE: Final = 2


def _on_death(act: Callable[[], None]) -> None:
    """Call `act` at each death of a worker but the first ones."""
    from trailboss.workers.deaths import DeathRecord, Deaths

    add, count = Deaths.add, 0

    def sabotaged(self: Deaths, record: DeathRecord) -> None:
        nonlocal count
        add(self, record)
        count += 1
        if count > _PATIENCE:
            act()

    Deaths.add = sabotaged  # type: ignore[method-assign]  # that is what this module is for


def _on_method(name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `wrap` around the handler of one RPC method."""
    from trailboss.container.contract import RpcMethod
    from trailboss.rpc.registry import Registry

    add = Registry.add

    def sabotaged(self: Registry, method: RpcMethod) -> None:
        handler = wrap(method.handler)
        add(self, dataclasses.replace(method, handler=handler) if method.name == name else method)

    Registry.add = sabotaged  # type: ignore[method-assign]


def _server_lives() -> None:
    _on_death(lambda: os._exit(9))


def _exit_code() -> None:
    from trailboss import main

    run = main.run

    def sabotaged(*arguments: Any, **more: Any) -> int:
        return run(*arguments, **more) or 7

    main.run = sabotaged


def _requests() -> None:
    from trailboss.plugins.http.connection import Answer

    respond, count = Answer.respond, 0

    def sabotaged(self: Answer, status: int, headers: Any, body: bytes) -> None:
        nonlocal count
        count += 1
        respond(self, 500 if count % 10 == 0 else status, headers, body)

    Answer.respond = sabotaged  # type: ignore[method-assign]


def _gate() -> None:
    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        def refused(argument: object, caller: object) -> object:
            raise RuntimeError("nobody had thought of this")

        return refused

    _on_method("informer.List", wrap)


def _jobs() -> None:
    """Every tenth push is acknowledged and forgotten."""

    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        count, last = 0, None

        async def forgetful(argument: object, caller: object) -> object:
            nonlocal count, last
            count += 1
            if count % 10 or last is None:
                result = handler(argument, caller)
                last = await result if inspect.isawaitable(result) else result
            return last

        return forgetful

    _on_method("jobs.Push", wrap)


def _books() -> None:
    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        def cooked(argument: object, caller: object) -> object:
            books = handler(argument, caller)
            books["total"]["done"] += 1
            return books

        return cooked

    _on_method("jobs.Books", wrap)


def _pools_whole() -> None:
    from trailboss.workers.pool import Pool

    pace, count = Pool._pace, 0

    async def sabotaged(self: Pool, slot: Slot, left: WorkerExit) -> None:
        nonlocal count
        count += 1
        if count > _PATIENCE:
            await trio.sleep_forever()
        await pace(self, slot, left)

    Pool._pace = sabotaged  # type: ignore[method-assign]


def _no_process_left() -> None:
    left: list[subprocess.Popen[bytes]] = []
    _on_death(lambda: left.append(subprocess.Popen(["sleep", "120"], start_new_session=True)))


def _descriptors() -> None:
    kept: list[int] = []
    _on_death(lambda: kept.append(os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)))


def _memory() -> None:
    kept: list[bytes] = []
    _on_death(lambda: kept.append(b"x" * (16 << 20)))


def _log() -> None:
    from trailboss.log import logger

    _on_death(lambda: logger("container").error("sabotaged", text="Traceback (most recent call last): …"))


def _memory_limit() -> None:
    from trailboss.workers.upkeep import Upkeep

    async def blind(self: Upkeep) -> None:
        await trio.sleep_forever()

    Upkeep._watch_memory = blind  # type: ignore[method-assign]


#: Name of an invariant -> what breaks it.
SABOTAGES: Final[dict[str, Callable[[], None]]] = {
    "server lives": _server_lives,
    "exit code": _exit_code,
    "requests": _requests,
    "gate": _gate,
    "jobs": _jobs,
    "books": _books,
    "pools whole": _pools_whole,
    "no process left": _no_process_left,
    "descriptors": _descriptors,
    "memory": _memory,
    "log": _log,
    "memory limit": _memory_limit,
}


def main(argv: Sequence[str]) -> int:
    """Run a command line of Trailboss whose servers are sabotaged; returns the exit code."""
    from trailboss.chaos import instance
    from trailboss.cli.app import run

    name = os.environ.get(VARIABLE, "")
    if name not in SABOTAGES:
        print(f"set {VARIABLE} to one of: {', '.join(SABOTAGES)}", file=sys.stderr)
        return 2
    if "serve" in argv[1:2]:
        SABOTAGES[name]()
    else:
        instance.PROGRAM[:] = [sys.executable, "-m", "trailboss.testing.sabotage"]
    return run(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
