"""The plugin `app`: log records of applications over RPC."""

from __future__ import annotations
