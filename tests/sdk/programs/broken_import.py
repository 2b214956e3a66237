"""A module that cannot be imported, and has printed something before that."""

print("printed before the failure")
raise RuntimeError("this module is broken")
