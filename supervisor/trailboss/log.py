"""Loggers by channel; the one import every part of Trailboss uses to log.

A channel is RoadRunner's word for "logger of one plugin" (`logs.channels.<name>`). What a record looks like and where
it goes is decided by the logs plugin at start; until then structlog's defaults print to standard error. Calls are an
event text plus key/value pairs, never an f-string, so that records stay one line each and can be searched.
"""

from __future__ import annotations

import sys
from typing import cast

# structlog imports rich where it can, to prettify tracebacks that no renderer of ours shows that way: 20 ms and
# several MB at every start. A None here makes that import fail, which structlog provides for.
_rich = sys.modules.get("rich")
if _rich is None:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
    from structlog.typing import FilteringBoundLogger
finally:
    if _rich is None:
        del sys.modules["rich"]

__all__ = ["FilteringBoundLogger", "logger"]


def logger(channel: str) -> FilteringBoundLogger:
    """Return the logger of `channel`; cheap, may be called at import time (the configuration is looked up lazily)."""
    return cast(FilteringBoundLogger, structlog.get_logger(channel=channel))
