"""An HTTP worker that makes every trouble a server has to answer for; its pages are named in test_http_troubles.py.

It does not start while the file FLAG (where that is set) is missing. Written for the SDK's Worker, so that it can say what HttpWorker
would refuse.
"""

import json
import os
import sys
import time

from trailboss_worker.sdk import Worker

GOOD = b'{"status":200,"headers":{"Content-Type":["text/plain"]}}'


def answer(worker, payload):
    request = json.loads(payload.context)
    path, _, query = request["uri"].partition("//")[2].partition("/")[2].partition("?")
    words = dict(pair.split("=") for pair in query.split("&") if pair)
    if path == "slow":
        time.sleep(float(words["s"]))
        worker.respond(b"%d" % os.getpid(), GOOD, payload.flags)
    elif path == "die":
        print("dying", file=sys.stderr, flush=True)
        os._exit(3)
    elif path == "die-once":
        if not os.path.exists(words["mark"]):
            open(words["mark"], "w").close()
            os._exit(3)
        worker.respond(b"second", GOOD, payload.flags)
    elif path == "error":
        worker.error("the application said no")
    elif path == "bad":
        # The answer is in the body: flags, length of the context, how it is sent, a line feed, the payload.
        line, _, rest = payload.body.partition(b"\n")
        flags, length, how = line.decode().split()
        context, body = rest[: int(length)], rest[int(length) :]
        if how == "stream":
            worker.respond_part(body, context, int(flags))
            worker.respond_part(b"more")
            worker.respond(b"")
        else:
            worker.respond(body, context, int(flags))
    elif path == "stream":
        number = 0
        while worker.respond_part(
            b"data: %d\n\n" % number, GOOD if not number else b"", payload.flags if not number else 0
        ):
            number += 1
            time.sleep(0.01)
        worker.respond()
    elif path == "broken-stream":
        worker.respond_part(b"half", GOOD, payload.flags)
        os._exit(3)
    elif path == "short":
        worker.respond_part(b"half", b'{"status":200,"headers":{"Content-Length":["8"]}}', payload.flags)
        worker.respond()
    else:
        worker.respond(b"%d" % os.getpid(), GOOD, payload.flags)


def main():
    if not os.path.exists(os.environ.get("FLAG", "/")):
        print("the flag is missing", file=sys.stderr)
        sys.exit(7)
    with Worker() as worker:
        while (payload := worker.wait_payload()) is not None:
            answer(worker, payload)


main()
