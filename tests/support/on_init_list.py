"""A server.on_init command whose first act is jobs.List; prints one pipeline a line."""

from trailboss_worker.sdk import RPC, Jobs

print("\n".join(Jobs(RPC.from_environment()).list()))
