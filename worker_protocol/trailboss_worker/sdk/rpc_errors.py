"""What can go wrong with a remote call, by who did it.

An answer that is an error (ServiceError and its kinds) leaves the connection usable. A connection that is
lost, late or out of step (the other kinds) is closed, and the next call makes a new one: whether the server
carried out the lost call is then unknown.
"""

from __future__ import annotations

from typing import NamedTuple

NOT_READY_PREFIX = "service not ready"
REFUSED_PREFIX = "refused during on_init"


class RpcError(Exception):
    """A remote call that gave no result."""


class ServiceError(RpcError):
    """The server answered with an error; `text` is its text."""

    def __init__(self, method: str, text: str) -> None:
        super().__init__(f"{method}: {text}")
        self.method = method
        self.text = text


class NotReadyError(ServiceError):
    """The server is still starting (or already draining); the call has had no effect and may be repeated.

    `phase` is that of the whole server; `waiting_for` maps each plugin waited for to the seconds it has
    been waited for, `plugin_phases` to its phase. Empty where the text does not say. `may_pass` is False
    where the server gives a reason that waiting does not remove: it is stopping, or waits for this caller.
    """

    def __init__(self, method: str, text: str) -> None:
        super().__init__(method, text)
        self.phase, waits = parse_not_ready(text)
        self.waiting_for = {wait.plugin: wait.seconds for wait in waits}
        self.plugin_phases = {wait.plugin: wait.phase for wait in waits}
        self.may_pass = bool(waits) or ";" not in text


class RefusedError(ServiceError):
    """A method that is refused while `server.on_init` runs; call it from a worker or later."""


class ConnectionLost(RpcError):
    """The server could not be reached, or the connection ended before the answer came."""


class CallTimeout(RpcError):
    """No answer in time; the server may still carry the call out."""


class OutOfStep(RpcError):
    """The answer is not one to this call: wrong sequence number, other method, or no RPC frame at all."""


class Wait(NamedTuple):
    """One plugin that a call waits for."""

    plugin: str
    phase: str
    seconds: float


def service_error(method: str, text: str) -> ServiceError:
    """The kind of error that the server's text stands for."""
    if text.startswith(NOT_READY_PREFIX):
        return NotReadyError(method, text)
    if text.startswith(REFUSED_PREFIX):
        return RefusedError(method, text)
    return ServiceError(method, text)


def parse_not_ready(text: str) -> tuple[str, list[Wait]]:
    """Phase and plugins of `service not ready: phase=P; waiting for NAME (PHASE, 1.2s), …`.

    What does not have that form is left out, never an error: the text is for people first.
    """
    phase = ""
    waits: list[Wait] = []
    for part in text.partition(":")[2].split(";"):
        part = part.strip()
        if part.startswith("phase="):
            phase = part[len("phase=") :]
        elif part.startswith("waiting for "):
            waits = [wait for wait in map(_parse_wait, part[len("waiting for ") :].split("), ")) if wait]
    return phase, waits


def _parse_wait(item: str) -> Wait | None:
    plugin, opening, rest = item.partition(" (")
    phase, comma, seconds = rest.rstrip(")").rpartition(", ")
    if not (opening and comma and seconds.endswith("s")):
        return None
    try:
        return Wait(plugin.strip(), phase, float(seconds[:-1]))
    except ValueError:
        return None
