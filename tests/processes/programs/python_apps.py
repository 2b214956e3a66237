"""Applications for tests of `trailboss serve --wsgi` and `--asgi` that need no framework."""

import hashlib
import json
import os


def peak_kilobytes():
    """The most memory this process has ever had."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def digest_wsgi(environ, start_response):
    """Read the body in pieces."""
    size, digest = 0, hashlib.md5()
    while data := environ["wsgi.input"].read(1 << 16):
        size += len(data)
        digest.update(data)
    start_response("200 OK", [("Content-Type", "application/json")])
    said = {"size": size, "digest": digest.hexdigest(), "announced": int(environ.get("CONTENT_LENGTH") or 0)}
    return [json.dumps({**said, "peak": peak_kilobytes()}).encode()]


async def digest_asgi(scope, receive, send):
    """Read the body piece by piece."""
    if scope["type"] != "http":
        return
    size, digest, more = 0, hashlib.md5(), True
    while more:
        message = await receive()
        size += len(message["body"])
        digest.update(message["body"])
        more = message["more_body"]
    said = json.dumps(
        {"size": size, "digest": digest.hexdigest(), "announced": size, "peak": peak_kilobytes()}
    )
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": said.encode()})


def failing_wsgi(environ, start_response):
    """Raise what the query says."""
    if environ["PATH_INFO"] == "/late":
        start_response("200 OK", [("Content-Type", "text/plain")])
    raise ValueError(environ["QUERY_STRING"])


async def failing_asgi(scope, receive, send):
    """Raise what the query says; below /framework after an answer of its own, as frameworks do."""
    if scope["type"] != "http":
        return
    if scope["path"] in ("/framework", "/handled"):
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"the framework's own page"})
    if scope["path"] != "/handled":
        raise ValueError(scope["query_string"].decode())


def origin_wsgi(environ, start_response):
    """Where the request came from."""
    start_response("200 OK", [])
    names = ("REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST", "SCRIPT_NAME", "PATH_INFO")
    return [json.dumps([environ[name] for name in names]).encode()]


async def origin_asgi(scope, receive, send):
    """Where the request came from."""
    if scope["type"] != "http":
        return
    host = dict(scope["headers"])[b"host"].decode()
    seen = [scope["client"][0], scope["scheme"], host, scope["root_path"], scope["path"]]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


def dying_wsgi(environ, start_response):
    """Die in the middle of the first body, read the next one whole."""
    marker = os.environ["MARKER"]
    if not os.path.exists(marker):
        environ["wsgi.input"].read(1 << 16)
        open(marker, "x").close()
        os._exit(3)
    return digest_wsgi(environ, start_response)
