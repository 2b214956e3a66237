"""The jobs plugin: pipelines of jobs that clients push by RPC and workers run."""
