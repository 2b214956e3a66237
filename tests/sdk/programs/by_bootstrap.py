"""A handler for an interpreter in which nothing is installed."""

import os
import sys

import trailboss_worker


def handle(task):
    if task.name == "raise":
        raise RuntimeError("as told")
    if task.name == "path":
        package = os.path.dirname(os.path.abspath(trailboss_worker.__file__))
        hidden = {package, os.path.dirname(package)} & {os.path.abspath(path or ".") for path in sys.path}
        task.nack("ok" if not hidden else f"on the import path: {sorted(hidden)}")


async def handle_async(task):
    handle(task)
