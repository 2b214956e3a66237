"""Trailboss: an application server and process supervisor for PHP and Python workers."""

from __future__ import annotations

#: Version of Trailboss itself (calendar versioning: year.month.patch).
__version__ = "2026.11.0"

#: What workers and SDKs see as the RoadRunner version they are compatible with (RR_VERSION, rpc.Version):
#: SDKs compare it to switch features on, so it has RoadRunner's form. Source: wire protocol notes, section 2.1.
ROADRUNNER_COMPAT_VERSION = "2025.1.15"
