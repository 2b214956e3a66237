"""Applications that look at large bodies."""

import json
import subprocess
import sys

CHILD = """
import json, os, stat
sockets = 0
for name in os.listdir("/proc/self/fd"):
    try:
        sockets += stat.S_ISSOCK(os.stat("/proc/self/fd/" + name).st_mode)
    except OSError:
        pass
print(json.dumps({"variable": os.environ.get("TRAILBOSS_FILES"), "sockets": sockets}))
"""


def wsgi(environ, start_response):
    """Read the body in pieces."""
    size = total = 0
    while data := environ["wsgi.input"].read(65536):
        size += len(data)
        total += sum(data)
    assert int(environ["CONTENT_LENGTH"]) == size
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"size": size, "sum": total}).encode()]


def wsgi_careless(environ, start_response):
    """Leave the body alone."""
    start_response("200 OK", [])
    return [b"ok"]


def child(environ, start_response):
    """What a program started from here finds."""
    start_response("200 OK", [])
    command = [sys.executable, "-c", CHILD]
    return [subprocess.run(command, stdout=subprocess.PIPE, check=True, close_fds=False).stdout]


async def _answer(send, body):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def asgi(scope, receive, send):
    """Read the body piece by piece."""
    if scope["type"] != "http":
        return
    size = total = 0
    more = True
    while more:
        message = await receive()
        size += len(message["body"])
        total += sum(message["body"])
        more = message["more_body"]
    await _answer(send, json.dumps({"size": size, "sum": total}).encode())


async def asgi_careless(scope, receive, send):
    """Leave the body alone."""
    if scope["type"] == "http":
        await _answer(send, b"ok")
