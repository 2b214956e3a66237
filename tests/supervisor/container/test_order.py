"""The start order, the graphs it refuses, and the reverse walk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trailboss.container.order import GraphError, Layer, Node, Stage, resolve, stop_sequence


def node(
    name: str, *requires: str, layer: Layer = Layer.BACKEND, after: tuple[str, ...] = (), is_rpc: bool = False
) -> Node:
    """A node in few words."""
    return Node(name, layer, frozenset(requires), frozenset(after), is_rpc)


def problems(*nodes: Node) -> tuple[str, ...]:
    """What is wrong with a graph."""
    with pytest.raises(GraphError) as caught:
        resolve(nodes)
    return caught.value.problems


def test_order_is_by_stage_then_dependency_then_declaration() -> None:
    """Telemetry, RPC, the rest; each behind what it requires; ties as they were declared."""
    plan = resolve(
        [
            node("jobs", "kv", layer=Layer.DRIVER),
            node("rpc", "logs", is_rpc=True),
            node("kv"),
            node("otel", layer=Layer.TELEMETRY, after=("logs", "nowhere")),
            node("logs", layer=Layer.TELEMETRY),
        ]
    )

    assert plan.order == ("logs", "otel", "rpc", "kv", "jobs")
    assert plan.stage(Stage.TELEMETRY) == ("logs", "otel")
    assert plan.stage(Stage.RPC) == ("rpc",)
    assert plan.requirements["otel"] == {"logs"}


def test_missing_requirement() -> None:
    """A requirement that is not configured is named, with what to do; a mere `after` is not needed."""
    assert problems(node("jobs", "kv"), node("status", after=("kv",))) == (
        "plugin jobs requires kv, which is not configured; configure kv or leave jobs out",
    )


def test_circle() -> None:
    """A circle is written out, without those who only hang on it."""
    assert problems(node("a", "b"), node("b", "c"), node("c", after=("b",)), node("d", "a")) == (
        "plugins require each other in a circle: b requires c requires b; none of them could start first",
    )
    assert problems(node("a", "a")) == (
        "plugins require each other in a circle: a requires a; none of them could start first",
    )


def test_doubled_and_impossible_names() -> None:
    """Names are unique and have a form that fits logs, configuration and RPC."""
    assert problems(node("kv"), node("kv"), node(""), node("a.b")) == (
        "two plugins are named kv; a name stands for one plugin",
        "a plugin is named ''; a name is a letter followed by letters, digits, - or _",
        "a plugin is named 'a.b'; a name is a letter followed by letters, digits, - or _",
    )


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            [node("logs", "kv", layer=Layer.TELEMETRY), node("kv")],
            ("logs (layer telemetry)", "kv (layer backend)"),
        ),
        (
            [node("kv", "jobs"), node("jobs", layer=Layer.DRIVER)],
            ("kv (layer backend)", "jobs (layer driver)"),
        ),
        ([node("rpc", "kv", is_rpc=True), node("kv")], ("rpc (the RPC port)", "kv (layer backend)")),
        ([node("kv", "rpc"), node("rpc", is_rpc=True)], ("kv (layer backend)", "rpc (the RPC port)")),
        (
            [node("kv", after=("jobs",)), node("jobs", layer=Layer.DRIVER)],
            ("kv (layer backend)", "jobs (layer driver)"),
        ),
    ],
)
def test_requirement_of_a_wrong_layer(nodes: list[Node], words: tuple[str, str]) -> None:
    """Nobody may require a plugin that starts later or stops earlier than itself."""
    first, second = words
    expected = (
        f"plugin {first} requires {second}, which starts later or stops earlier; "
        "require plugins of the same or a lower layer only"
    )
    assert problems(*nodes) == (expected,)


def test_driver_may_require_the_rpc_port() -> None:
    """A driver starts after the RPC port and stops before it."""
    plan = resolve([node("service", "rpc", layer=Layer.DRIVER), node("rpc", is_rpc=True)])

    assert plan.order == ("rpc", "service")


def test_reverse_walk() -> None:
    """Drivers, gate, RPC port, back-ends, telemetry; inside each the reverse of the real start."""
    plan = resolve(
        [
            node("logs", layer=Layer.TELEMETRY),
            node("rpc", is_rpc=True),
            node("kv"),
            node("lock"),
            node("jobs", layer=Layer.DRIVER),
            node("amqp", layer=Layer.DRIVER),
        ]
    )

    sequence = stop_sequence(plan, ["logs", "rpc", "amqp", "lock", "jobs", "kv"])

    assert sequence.before_gate_closes == ("jobs", "amqp")
    assert sequence.after_gate_closed == ("rpc", "kv", "lock", "logs")


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """Sound graphs: requirements point to earlier plugins of the same or a lower layer."""
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 12))):
        layer = draw(st.sampled_from(list(Layer)))
        below = [other.name for other in nodes if other.layer <= layer]
        requires = draw(st.sets(st.sampled_from(below))) if below else set()
        nodes.append(Node(f"p{number}", layer, frozenset(requires)))
    return draw(st.permutations(nodes))


@given(graphs())
def test_sound_graphs_can_be_started_and_stopped(nodes: list[Node]) -> None:
    """Everybody starts behind and stops before what it requires, whoever was started at all."""
    plan = resolve(nodes)
    place = {name: number for number, name in enumerate(plan.order)}
    sequence = stop_sequence(plan, plan.order)
    stopped = {
        name: number for number, name in enumerate(sequence.before_gate_closes + sequence.after_gate_closed)
    }

    assert sorted(place) == sorted(stopped) == sorted(node.name for node in nodes)
    for one in nodes:
        for name in one.requires:
            assert place[name] < place[one.name]
            assert stopped[name] > stopped[one.name]
