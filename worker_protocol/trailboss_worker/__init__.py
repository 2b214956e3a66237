"""What Python workers of Trailboss (and of RoadRunner) import; standard library only."""

from __future__ import annotations

#: The same as that of the distribution `trailboss`, which this package is a part of.
__version__ = "2026.11.0"
