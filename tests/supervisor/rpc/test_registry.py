"""Names of methods: what is found, what is refused at registration, and upstream's texts for what is unknown."""

from __future__ import annotations

import pytest

from trailboss.container.contract import Access, Plugin, RpcMethod
from trailboss.messages import jobs_pb2
from trailboss.rpc.registry import Registry, UnknownMethod


def method(name: str, **options: object) -> RpcMethod:
    return RpcMethod(name, lambda _a, _c: None, **options)  # type: ignore[arg-type]


class TwoMethods(Plugin):
    """A plugin with two methods."""

    name = "two"

    def rpc_methods(self) -> tuple[RpcMethod, ...]:
        """Return them."""
        return (method("two.First"), method("two.Second"))


def test_methods_of_all_plugins_are_found_by_name() -> None:
    """A registry made from plugins knows all their methods."""
    registry = Registry.of_plugins([TwoMethods(), Plugin()])
    assert [found.name for found in registry] == ["two.First", "two.Second"]
    assert registry.find("two.First").name == "two.First"
    assert "two.First" in registry
    assert len(registry) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nodot", "rpc: service/method request ill-formed: nodot"),
        ("", "rpc: service/method request ill-formed: "),
        ("nosuch.Method", "rpc: can't find service nosuch.Method"),
        ("two.Third", "rpc: can't find method two.Third"),
        ("a.two.First", "rpc: can't find service a.two.First"),
        ("two.", "rpc: can't find method two."),
        (".First", "rpc: can't find service .First"),
    ],
)
def test_unknown_names_get_upstreams_texts(name: str, text: str) -> None:
    """PHP code looks for parts of these texts."""
    with pytest.raises(UnknownMethod) as caught:
        Registry.of_plugins([TwoMethods()]).find(name)
    assert text == str(caught.value)


@pytest.mark.parametrize("name", ["nodot", ".Method", "service.", "service.method", ""])
def test_ill_formed_names_cannot_be_registered(name: str) -> None:
    """A name that no client could call is an error of the plugin."""
    with pytest.raises(ValueError, match="service"):
        Registry([method(name)])


def test_a_name_can_be_taken_once() -> None:
    """Two plugins with one method name are an error before anything starts."""
    with pytest.raises(ValueError, match="twice"):
        Registry([method("a.B"), method("a.B")])


def test_half_a_protobuf_signature_is_refused() -> None:
    """Argument and result travel in one codec."""
    with pytest.raises(ValueError, match="protobuf"):
        Registry([method("a.B", argument=jobs_pb2.Empty)])


def test_the_list_of_methods_says_who_may_call_and_how() -> None:
    """Rows are sorted and hold access, codec and doc."""
    registry = Registry(
        [
            method("b.Two", argument=jobs_pb2.Empty, result=jobs_pb2.Empty, access=Access.SENSITIVE),
            method("a.One", access=Access.ALWAYS, doc="first"),
        ]
    )
    rows = registry.describe()
    assert [row["name"] for row in rows] == ["a.One", "b.Two"]
    assert [row["access"] for row in rows] == ["always", "sensitive"]
    assert [row["codec"] for row in rows] == ["json", "proto"]
    assert rows[0]["doc"] == "first"
