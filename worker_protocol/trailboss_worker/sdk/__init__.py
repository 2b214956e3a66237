"""The worker SDK: `Worker`, `Consumer` and `HttpWorker` receive work, `RPC` and its wrappers call the server.

Everything is importable from here; each name is loaded at its first use, so that a worker which never calls
the server does not pay for sockets and threads at its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trailboss_worker.sdk.consumer import Consumer as Consumer
    from trailboss_worker.sdk.consumer import Task as Task
    from trailboss_worker.sdk.consumer import TaskError as TaskError
    from trailboss_worker.sdk.http import HttpWorker as HttpWorker
    from trailboss_worker.sdk.http import Request as Request
    from trailboss_worker.sdk.relay import Relay as Relay
    from trailboss_worker.sdk.relay import RelayError as RelayError
    from trailboss_worker.sdk.relay import open_relay as open_relay
    from trailboss_worker.sdk.rpc import RPC as RPC
    from trailboss_worker.sdk.rpc_errors import CallTimeout as CallTimeout
    from trailboss_worker.sdk.rpc_errors import ConnectionLost as ConnectionLost
    from trailboss_worker.sdk.rpc_errors import NotReadyError as NotReadyError
    from trailboss_worker.sdk.rpc_errors import OutOfStep as OutOfStep
    from trailboss_worker.sdk.rpc_errors import RefusedError as RefusedError
    from trailboss_worker.sdk.rpc_errors import RpcError as RpcError
    from trailboss_worker.sdk.rpc_errors import ServiceError as ServiceError
    from trailboss_worker.sdk.services import App as App
    from trailboss_worker.sdk.services import Informer as Informer
    from trailboss_worker.sdk.services import Jobs as Jobs
    from trailboss_worker.sdk.services import Metrics as Metrics
    from trailboss_worker.sdk.services import PipelineStat as PipelineStat
    from trailboss_worker.sdk.services import Push as Push
    from trailboss_worker.sdk.services import Resetter as Resetter
    from trailboss_worker.sdk.services import Status as Status
    from trailboss_worker.sdk.worker import Payload as Payload
    from trailboss_worker.sdk.worker import Worker as Worker

_HOME = {
    "consumer": ("Consumer", "Task", "TaskError"),
    "http": ("HttpWorker", "Request"),
    "relay": ("Relay", "RelayError", "open_relay"),
    "rpc": ("RPC",),
    "rpc_errors": (
        "CallTimeout",
        "ConnectionLost",
        "NotReadyError",
        "OutOfStep",
        "RefusedError",
        "RpcError",
        "ServiceError",
    ),
    "services": ("App", "Informer", "Jobs", "Metrics", "PipelineStat", "Push", "Resetter", "Status"),
    "worker": ("Payload", "Worker"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)  # one table for names and homes


def __getattr__(name: str) -> object:
    module_name = _MODULE_OF.get(name)
    if module_name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{module_name}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
