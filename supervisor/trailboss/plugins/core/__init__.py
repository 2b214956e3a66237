"""The plugin `core`: the server about itself over RPC: version, configuration, state, deaths, methods."""

from __future__ import annotations
