"""CHAOS: somebody's own configuration in a private instance, its workers killed and frozen, and a verdict.

`plan` draws what is done from a seed; `instance` runs the server where it can disturb nobody; `load` is the clients;
`injections` does what the plan says; `runner` is one run from start to end; `verdict` judges what was seen; `report` and
`screen` show it. Nothing here is imported by the server: only the command line and tests use it.
"""
