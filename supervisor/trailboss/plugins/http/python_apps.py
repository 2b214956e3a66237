"""Which commands run a Python application behind the web server. Pure.

WSGI and ASGI frameworks parse forms and uploads themselves, so the workers of such a pool need every body as it was
sent, whatever `http.raw_body` says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

__all__ = ["wants_raw_body"]

_GATEWAYS: Final = ("wsgi", "asgi")
_COMMAND: Final = "trailboss-worker"
_MODULE: Final = "trailboss_worker"
_PYTHON: Final = re.compile(r"(python|pypy)[0-9.]*")


def wants_raw_body(command: Sequence[str]) -> bool:
    """Whether a pool's command is `trailboss-worker wsgi` or `asgi`, in whatever way it is started.

    Also `/path/to/trailboss-worker asgi app`, `python3 -X dev -m trailboss_worker wsgi app` and
    `python3 .../trailboss_worker/bootstrap.py wsgi app`.
    """
    if not command:
        return False
    program = os.path.basename(command[0])
    if program == _COMMAND:
        return len(command) > 1 and command[1] in _GATEWAYS
    if not _PYTHON.fullmatch(program):
        return False
    for index, word in enumerate(command[1:-1], 1):
        is_ours = (
            (word == _MODULE and command[index - 1] == "-m")
            or os.path.basename(word) == _COMMAND
            or word.endswith(f"{_MODULE}/bootstrap.py")
        )
        if is_ours:
            return command[index + 1] in _GATEWAYS
    return False
