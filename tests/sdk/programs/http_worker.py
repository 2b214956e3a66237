"""A worker without a framework: answers by path."""

from __future__ import annotations

import json
import os

from trailboss_worker.sdk import HttpWorker

LOG = os.environ.get("APP_LOG", os.devnull)


class Chunks:
    def __init__(self):
        self.number = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        return f"chunk {self.number}\n"

    def close(self):
        with open(LOG, "a") as file:
            file.write("closed\n")


def main():
    with HttpWorker() as worker:
        while (request := worker.wait_request()) is not None:
            answer(worker, request)


def answer(worker, request):
    path = request.path
    if path == "/show":
        shown = {
            "method": request.method,
            "uri": request.uri,
            "scheme": request.scheme,
            "host": request.host,
            "query": request.query,
            "protocol": request.protocol,
            "remote_addr": request.remote_addr,
            "accept": request.header("ACCEPT"),
            "missing": request.header("x-missing"),
            "cookie": request.header("cookie"),
            "cookies": request.cookies,
            "attributes": request.attributes,
            "parsed": request.parsed,
            "uploads": request.uploads,
            "form": request.form(),
            "body": request.body.decode(),
        }
        worker.respond(200, json.dumps(shown), {"Content-Type": "application/json", "X-Many": ["1", "ü"]})
    elif path == "/stream":
        worker.stream((f"{number}," for number in range(12)), 201, {"X-A": "b"})
    elif path == "/stream-nothing":
        worker.stream([])
    elif path == "/endless":
        worker.stream(Chunks())
    elif path == "/inform":
        worker.inform(103, {"Link": "</a.css>"})
        worker.respond(204)
    elif path == "/error":
        worker.error("on purpose")
    elif path == "/wrong":
        for arguments in ((99, b""), (200, b"", {"X": "a\nb"})):
            try:
                worker.respond(*arguments)
            except ValueError as error:
                print(f"refused: {error}")
        try:
            worker.inform(101)
        except ValueError as error:
            print(f"refused: {error}")
        worker.respond(200, b"in the end")
        try:
            worker.respond(200, b"again")
        except Exception as error:
            print(f"refused: {error}")
    else:
        worker.respond(404, b"no such path")


main()
