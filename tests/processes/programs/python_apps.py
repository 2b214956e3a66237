"""Applications for tests of `trailboss serve --wsgi` and `--asgi` that need no framework."""

import hashlib
import json


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
