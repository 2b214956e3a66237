"""Pure: who may call which method (`rpc.policy`), from the rules of the configuration.

A rule is a pattern of method names and the kinds of callers that may call them; the first pattern that matches a method
decides, and a method that none matches may be called by everybody who may connect. `own_worker` is a worker of the pool
that the call is about: the one it needs, or the one of the plugin whose method it is.

Workers are recognised by their session or their token, which is no wall against a program of the same user that hides.
Where workers have a user of their own there is one: nobody but the server's user and root counts as an operator.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import Final

from trailboss.container.methods import Caller, CallerRole

__all__ = ["ROLES", "Policy", "kinds_of"]

#: What rules may name.
ROLES: Final = ("own_worker", "any_worker", "operator", "on_init")


class Policy:
    """The rules, in their order. `operators`: users that count as operators."""

    def __init__(
        self, rules: Mapping[str, Collection[str]] | None = None, operators: Collection[int] = ()
    ) -> None:
        self._rules = {pattern: frozenset(roles) for pattern, roles in (rules or {}).items()}
        self._operators = frozenset(operators)

    def allowed(self, method: str) -> frozenset[str] | None:
        """Return the kinds of callers that may call `method`; None: everybody."""
        return next((roles for pattern, roles in self._rules.items() if fnmatchcase(method, pattern)), None)

    def idle_patterns(self, methods: Collection[str]) -> list[str]:
        """Return the patterns that match none of `methods`: most likely they are misspelt."""
        return [pattern for pattern in self._rules if not any(fnmatchcase(name, pattern) for name in methods)]

    def refusal(self, method: str, roles: frozenset[str], caller: Caller, pool: str) -> str:
        """Return why `caller` may not call a method that is for `roles`; "" if it may. `pool`: what the call is about."""
        kinds = kinds_of(caller, pool, self._operators)
        if kinds & roles:
            return ""
        who = " or ".join(sorted(kinds, reverse=True)) or "others"
        return f"refused by rpc.policy: {method} is for {', '.join(sorted(roles)) or 'nobody'}, not for {who}"


def kinds_of(caller: Caller, pool: str, operators: Collection[int]) -> frozenset[str]:
    """Return what a caller counts as for a call that is about `pool`."""
    if caller.role is CallerRole.WORKER:
        return frozenset({"any_worker", "own_worker"} if pool and caller.pool == pool else {"any_worker"})
    if caller.role is CallerRole.ON_INIT:
        return frozenset({"on_init"})
    return frozenset({"operator"} if caller.uid in operators else ())
