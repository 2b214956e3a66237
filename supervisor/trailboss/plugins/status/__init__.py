"""The plugin `status`: health and readiness, over HTTP and RPC."""

from __future__ import annotations
