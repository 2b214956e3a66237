"""Plugin `systemd`: tells systemd when the server is ready, what it waits for, and that it is alive."""

from __future__ import annotations

from trailboss.plugins.systemd.plugin import SystemdPlugin

__all__ = ["SystemdPlugin"]
