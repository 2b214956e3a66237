"""Which RPC methods there are: name -> method, and the texts for names that are none.

A method is called `service.Method`; the service is what stands before the last dot. Names that lead nowhere get the
texts of RoadRunner word for word (wire protocol 4.4), because PHP code looks for parts of them. The registry is filled
once, before anything starts, and never changes afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator

from google.protobuf.message import Message

from trailboss.container.contract import Plugin, RpcMethod

__all__ = ["Registry", "UnknownMethod"]


class UnknownMethod(Exception):
    """No such service or method; the text is the error answer as it stands."""


class Registry:
    """All RPC methods of one server, by full name."""

    def __init__(self, methods: Iterable[RpcMethod] = ()) -> None:
        self._methods: dict[str, RpcMethod] = {}
        self._services: set[str] = set()
        for method in methods:
            self.add(method)

    @classmethod
    def of_plugins(cls, plugins: Iterable[Plugin]) -> Registry:
        """Collect the methods of all `plugins`. Raises ValueError as `add` does."""
        return cls(method for plugin in plugins for method in plugin.rpc_methods())

    def add(self, method: RpcMethod) -> None:
        """Take in one method. Raises ValueError for a name that is ill-formed or taken, or a mixed signature."""
        service, dot, name = method.name.rpartition(".")
        if not (dot and service and name[:1].isupper()):
            raise ValueError(f"an RPC method is called service.Method, not {method.name!r}")
        if method.name in self._methods:
            raise ValueError(f"the RPC method {method.name} is registered twice")
        if _is_message(method.argument) != _is_message(method.result):
            raise ValueError(f"{method.name}: argument and result are both protobuf messages, or neither is")
        self._methods[method.name] = method
        self._services.add(service)

    def find(self, name: str) -> RpcMethod:
        """Return the method called `name`. Raises UnknownMethod with RoadRunner's text."""
        method = self._methods.get(name)
        if method is None:
            raise UnknownMethod(self._unknown_text(name))
        return method

    def _unknown_text(self, name: str) -> str:
        service, dot, _ = name.rpartition(".")
        if not dot:
            return f"rpc: service/method request ill-formed: {name}"
        if service not in self._services:
            return f"rpc: can't find service {name}"
        return f"rpc: can't find method {name}"

    def __contains__(self, name: object) -> bool:
        return name in self._methods

    def __iter__(self) -> Iterator[RpcMethod]:
        return iter(self._methods.values())

    def __len__(self) -> int:
        return len(self._methods)

    def describe(self) -> list[dict[str, object]]:
        """Rows of `trailboss.Methods`, sorted by name: name, access, codec, whether it may wait, doc."""
        return [
            {
                "name": method.name,
                "access": method.access.value,
                "codec": "proto" if _is_message(method.argument) else "json",
                "waits": inspect.iscoroutinefunction(method.handler),
                "own_deadline": method.deadline_seconds is not None,
                "doc": method.doc,
            }
            for _, method in sorted(self._methods.items())
        ]


def _is_message(kind: type[object] | None) -> bool:
    return kind is not None and issubclass(kind, Message)
