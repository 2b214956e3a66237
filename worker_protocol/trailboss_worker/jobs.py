"""`trailboss-worker jobs module:handler`: one function called for each job.

Order of the start: the relay first (from then on everything printed goes to standard error), then the
handler's import, then the first word of the server is answered. So a worker that says it is ready is, and one
whose handler cannot be imported has died with its traceback on standard error before it promised anything.

A handler that returns has acknowledged its job, unless it answered by itself. One that raises has given the
job back: the traceback goes to standard error, its last line to the server with the nack. What is no
Exception (SystemExit, KeyboardInterrupt) ends the process without an answer, and the server redelivers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Union

from trailboss_worker.application import print_failure
from trailboss_worker.cli import JobsOptions
from trailboss_worker.protocol.errors import ProtocolError
from trailboss_worker.sdk.consumer import Consumer, Task
from trailboss_worker.sdk.relay import RelayError, open_relay
from trailboss_worker.sdk.worker import Worker

Handler = Callable[[Task], Union[Awaitable[None], None]]  # noqa: UP007 - evaluated at run time by Python 3.9

_CODE_IS_COROUTINE = 0x80  # inspect.CO_COROUTINE, without the import of inspect


def run_jobs(options: JobsOptions) -> int:
    """Serve jobs until the server or a signal ends it; gives the exit code."""
    try:
        relay = open_relay()
    except RelayError as error:
        return _complain(str(error))
    try:
        handler = load_handler(options.target, options.directory)
        runner = options.runner or ("asyncio" if is_async(handler) else None)
        loop = _import_loop(runner) if runner else None
    except Exception as error:
        print_failure(f"trailboss-worker: cannot load the handler {options.target}:", error)
        return 1
    with Worker(relay, handle_signals=loop is None) as worker:
        consumer = Consumer(worker)
        try:
            if loop is None:
                _run_blocking(consumer, handler, options)
            else:
                loop(consumer, lambda task: _handle_async(task, handler, options))
        except ProtocolError as error:
            return _complain(str(error))
    return 0


def load_handler(target: str, directory: str = ".") -> Handler:
    """The callable that `module:name` (or `module:object.name`) stands for, imported from the directory."""
    os.chdir(directory)
    sys.path.insert(0, os.getcwd())
    module_name, _, attributes = target.partition(":")
    import importlib

    value: Any = importlib.import_module(module_name)
    for attribute in attributes.split("."):
        value = getattr(value, attribute)
    if not callable(value):
        raise TypeError(f"{target} is no function but {type(value).__name__}")
    return value  # type: ignore[no-any-return]  # callable is all that can be known


def is_async(handler: object) -> bool:
    """Whether calling the handler gives something to await: functions, methods, partials, callable objects."""
    while hasattr(handler, "func"):  # functools.partial
        handler = handler.func
    function = getattr(handler, "__func__", handler)
    code = getattr(function, "__code__", None)
    if code is None:
        call = getattr(type(handler), "__call__", None)  # noqa: B004 - the method itself is wanted
        code = getattr(call, "__code__", None)
    return bool(getattr(code, "co_flags", 0) & _CODE_IS_COROUTINE)


def _import_loop(runner: str) -> Callable[[Consumer, Callable[[Task], Awaitable[None]]], None]:
    if runner == "trio":
        from trailboss_worker.sdk.loop_trio import run
    else:
        from trailboss_worker.sdk.loop_asyncio import run
    return run


def _run_blocking(consumer: Consumer, handler: Handler, options: JobsOptions) -> None:
    for task in consumer:
        try:
            result = handler(task)
            if result is not None and hasattr(result, "__await__"):
                close = getattr(result, "close", None)
                if close is not None:
                    close()
                raise TypeError(
                    "the handler returned something to await; name the loop for it with --runner trio or --runner asyncio"
                )
        except Exception as error:
            _give_back(task, error, options)
        else:
            _acknowledge(task)


async def _handle_async(task: Task, handler: Handler, options: JobsOptions) -> None:
    try:
        result = handler(task)
        if result is not None and hasattr(result, "__await__"):
            await result
    except Exception as error:
        _give_back(task, error, options)
    else:
        _acknowledge(task)


def _acknowledge(task: Task) -> None:
    if not task.answered:
        task.ack()


def _give_back(task: Task, error: Exception, options: JobsOptions) -> None:
    """Nack the task as the options say; a handler that answered before it raised has had its say."""
    print(f"job {task.name} ({task.id}, attempt {task.attempts}) failed:", file=sys.stderr)
    _print_traceback()
    if not task.answered:
        task.nack(describe(error), requeue=options.nack_requeue, delay=options.nack_delay_seconds)


def describe(error: BaseException) -> str:
    """One line: the error's type and text."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _complain(text: str) -> int:
    print(f"trailboss-worker: {text}", file=sys.stderr)
    return 1
