"""Metrics for Prometheus: the server's own, and those that applications keep through RPC."""

from __future__ import annotations

from trailboss.plugins.metrics.plugin import MetricsPlugin

__all__ = ["MetricsPlugin"]
