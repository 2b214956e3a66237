"""Plugin `logs`: what a record looks like, where it goes, and that writing it never holds up the server."""

from __future__ import annotations

from trailboss.plugins.logs.plugin import LogsPlugin
from trailboss.plugins.logs.system import LogSystem, LogTargetError, install

__all__ = ["LogSystem", "LogTargetError", "LogsPlugin", "install"]
