"""The configuration: what a file may say (schema), how it is read (load), and what is checked beyond (check).

`load(LoadRequest(...))` gives a Config or raises ConfigError with every problem. Importing this package costs little;
documents and machine checks are in `trailboss.config.defaults` and `trailboss.config.check`.
"""

from __future__ import annotations

from trailboss.config.convert import from_mapping
from trailboss.config.load import LoadRequest, load
from trailboss.config.problems import ConfigError, Problem
from trailboss.config.redact import redacted
from trailboss.config.schema import Config, key

__all__ = ["Config", "ConfigError", "LoadRequest", "Problem", "from_mapping", "key", "load", "redacted"]
