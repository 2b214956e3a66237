"""The plugin `informer`: who works: workers and queues over RPC."""

from __future__ import annotations
