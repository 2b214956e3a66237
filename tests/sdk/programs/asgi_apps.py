"""ASGI applications for the tests, each an attribute of this module."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import http
import json
import os
import sys
import tempfile
import threading
import time

LOG = os.environ.get("APP_LOG", os.devnull)
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
kept = []
variable = contextvars.ContextVar("variable", default="unset")


def log(text):
    with open(LOG, "a") as file:
        file.write(text + "\n")


def body(data, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def _plain(value):
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


async def show(scope, receive, send):
    """Answers with its scope and its events as JSON; bytes in base64."""
    assert scope["type"] == "http"
    first = await receive()
    await send(START)
    await send(body(json.dumps({"scope": _plain(scope), "event": _plain(first)}).encode()))
    log((await receive())["type"])


def later(way):
    """Log something by a way of its own once the test says so, long after the request."""
    loop = asyncio.get_running_loop()
    if way == "timer":
        kept.append(loop.create_task(_log_at_go()))
        return
    read_fd, write_fd = os.pipe()

    def when_readable():
        loop.remove_reader(read_fd)
        os.close(read_fd)
        log("descriptor")

    def wait():
        while not os.path.exists(LOG + ".go"):
            time.sleep(0.005)
        if way == "thread":
            loop.call_soon_threadsafe(log, "thread")
        os.close(write_fd)

    if way == "descriptor":
        loop.add_reader(read_fd, when_readable)
    if way == "executor":
        kept.append(loop.create_task(_log_after(loop.run_in_executor(None, wait))))
    else:
        threading.Thread(target=wait).start()


async def _log_at_go():
    await go()
    log("timer")


async def _log_after(future):
    await future
    log("executor")


async def go():
    while not os.path.exists(LOG + ".go"):  # noqa: ASYNC110, ASYNC240 - the test makes the file
        await asyncio.sleep(0.005)


async def paths(scope, receive, send):
    """Answers by path."""
    if scope["type"] == "lifespan":
        raise NotImplementedError("no lifespan here")
    path = scope["path"]
    if path == "/hello":
        await send(START)
        await send({"type": "http.response.body", "body": b"hello"})
    elif path.startswith("/later/"):
        await send(START)
        await send(body(b"answered"))
        later(path.rpartition("/")[2])
    elif path == "/task":
        task = asyncio.current_task()
        late = 0
        for _ in range(2):
            try:
                await asyncio.wait_for(asyncio.Event().wait(), 0.01)
            except TimeoutError:
                late += asyncio.current_task() is task is not None
        await send(START)
        await send(body(b"one task, timed out twice" if late == 2 else b"no"))
    elif path == "/lists":
        await send(
            {
                **START,
                "status": http.HTTPStatus.OK,
                "headers": [[b"set-cookie", b"a=1"], [b"set-cookie", b"b=2"], [b"connection", b"close"]],
            }
        )
        await send(body(bytearray(b"listed")))
    elif path == "/chunks":
        await send(START)
        await send(body(b"one", True))
        await send(body(b"", True))
        await send(body(b"two", True))
        await send(body(b"three"))
    elif path == "/many":
        await send(START)
        for number in range(40):
            await send(body(b"%d," % number, True))
        await send(body(b""))
    elif path == "/slow":
        await send(START)
        await send(body(b"one", True))
        await go()
        await send(body(b"two"))
    elif path == "/large":
        await send(START)
        await send(body(bytes(3_000_000)))
    elif path == "/flood":
        await send(START)
        for _ in range(40):
            await send(body(bytes(1_000_000), True))
            log("sent")
        await send(body(b""))
    elif path == "/endless":
        await send(START)
        try:
            while True:
                await send(body(b"x", True))
                await asyncio.sleep(0.001)
        except OSError as error:
            log(f"send raised {type(error).__name__}: {(await receive())['type']}")
            raise
    elif path == "/listen":
        await send(START)
        await send(body(b"begun", True))
        await receive()
        log((await receive())["type"])
    elif path == "/background":
        await send(START)
        await send(body(b"done"))
        await go()
        log("background done")
    elif path == "/hint":
        await send(
            {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]}
        )
        await send(START)
        await send(body(b"hinted"))
    elif path == "/trailers":
        await send({**START, "trailers": True})
        await send(body(b"a", True))
        await send(body(b"b"))
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"2")], "more_trailers": True})
        await send({"type": "http.response.trailers", "headers": [(b"x-more", b"3")]})
    elif path == "/announced-trailers":
        await send({**START, "headers": [(b"trailer", b"x-sum")], "trailers": True})
        await send(body(b"a", True))
        await send(body(b"b"))
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"2")]})
    elif path in ("/path", "/small-path"):
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"y" * (700_000 if path == "/path" else 70))
            file.flush()
            await send(START)
            await send({"type": "http.response.pathsend", "path": file.name})
    elif path == "/raise":
        raise ValueError("on purpose")
    elif path == "/raise-started":
        await send(START)
        raise ValueError("on purpose")
    elif path == "/raise-late":
        await send(START)
        await send(body(b"first", True))
        raise RuntimeError("in the middle")
    elif path == "/cancel":
        raise asyncio.CancelledError
    elif path == "/raise-after":
        await send(START)
        await send(body(b"fine"))
        raise ValueError("afterwards")
    elif path == "/return":
        return
    elif path == "/return-late":
        await send(START)
        await send(body(b"half", True))
    elif path == "/variable":
        seen = variable.get()
        variable.set("set")
        await send(START)
        await send(body(seen.encode()))
    elif path == "/exit":
        sys.exit(7)
    else:
        raise AssertionError(path)


#: What is wrong -> the events that are sent.
WRONG = {
    "twice": [START, START],
    "no-start": [body(b"x")],
    "after": [START, body(b"x"), body(b"y")],
    "unknown": [{"type": "http.response.nonsense"}],
    "websocket": [{"type": "websocket.accept"}],
    "line-break": [{**START, "headers": [(b"x", b"a\nb")]}, body(b"x")],
    "status": [{**START, "status": 1000}, body(b"x")],
    "text": [{**START, "headers": [("x", "y")]}, body(b"x")],
    "text-body": [START, body("x")],
    "hint": [START, {"type": "http.response.early_hint", "links": []}],
    "trailers": [START, {"type": "http.response.trailers", "headers": []}],
    "no-file": [START, {"type": "http.response.pathsend", "path": "/nonexistent"}],
}


async def wrong(scope, receive, send):
    """Sends the wrong events that the query names."""
    for event in WRONG[scope["query_string"].decode()]:
        await send(event)


def lifespan(on_start, on_stop=lambda state: None):
    """An application with a lifespan."""

    async def application(scope, receive, send):
        if scope["type"] != "lifespan":
            await send(START)
            await send(body(json.dumps(scope["state"]).encode()))
            scope["state"]["own"] = True
            return
        assert (await receive())["type"] == "lifespan.startup"
        try:
            on_start(scope["state"])
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        try:
            on_stop(scope["state"])
        except Exception as error:
            await send({"type": "lifespan.shutdown.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})

    return application


def _start(state):
    log("started")
    state["pool"] = "open"


def _refuse(state):
    raise RuntimeError("the database is down")


async def _crashing(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    raise RuntimeError("lifespan crashed")


living = lifespan(_start, lambda state: log("stopped"))
refusing = lifespan(_refuse)
failing_stop = lifespan(_start, _refuse)


async def crashing(scope, receive, send):
    """Its lifespan ends by an exception after startup."""
    await (_crashing if scope["type"] == "lifespan" else paths)(scope, receive, send)


def make():
    asyncio.get_running_loop()
    return paths


application = paths
