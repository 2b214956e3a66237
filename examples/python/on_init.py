"""Runs once while the server starts (server.on_init): RPC is open, no worker runs yet.

The place for migrations, cache warm-up, or, as here, a look at what there is.
"""

from __future__ import annotations

from trailboss_worker.sdk import RPC, Jobs

with RPC.from_environment() as rpc:
    print("on_init: the pipelines are", ", ".join(Jobs(rpc).list()))
