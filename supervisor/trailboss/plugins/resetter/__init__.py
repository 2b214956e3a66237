"""The plugin `resetter`: replacing the workers of a pool over RPC."""

from __future__ import annotations
