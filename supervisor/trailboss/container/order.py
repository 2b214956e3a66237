"""Who starts after whom, and the reverse walk: decided before anything starts, from names alone.

The start has three stages: TELEMETRY, the RPC port, everything else; inside a stage a plugin waits for its own
requirements only. The stop is not the same list backwards, because the RPC port is bound early and closed late:
DRIVER, then the gate, the RPC port, BACKEND, TELEMETRY, inside each layer in the reverse order of the start. So a
requirement has to start no later *and* stop no earlier than whoever requires it, and :func:`resolve` refuses every
graph in which that cannot hold: unknown or doubled names, circles, requirements of a wrong layer.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["GraphError", "Layer", "Node", "Plan", "Stage", "StopSequence", "resolve", "stop_sequence"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Layer(enum.IntEnum):
    """Where a plugin stands in the start and stop order.

    Start: TELEMETRY, then the RPC port (bound, gate closed), then BACKEND and DRIVER by dependency. Stop is the written
    reverse walk: intake, drain, pools, DRIVER, RPC, BACKEND, TELEMETRY. A plugin may require plugins of its own
    or a lower layer only.
    """

    TELEMETRY = 0  # logs, otel: first up, last down
    BACKEND = 1  # state that workers and RPC callers use until the very end: kv, lock, metrics, status
    DRIVER = 2  # connections to queues and brokers: closed before the RPC port, after the last ack


class Stage(enum.IntEnum):
    """The steps of the start that one waits for the other: a stage begins when the one before has been settled."""

    TELEMETRY = 1
    RPC = 2
    OTHERS = 3


class _Depth(enum.IntEnum):
    """How late somebody stops: the deepest is closed first."""

    TELEMETRY = 0
    BACKEND = 1
    RPC = 2
    DRIVER = 3


@dataclass(frozen=True, slots=True)
class Node:
    """What the order needs to know of one plugin; the fields are those of the plugin contract."""

    name: str
    layer: Layer = Layer.BACKEND
    requires: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    is_rpc: bool = False  #: the RPC port itself: a stage of its own


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph that can be started and stopped."""

    order: tuple[str, ...]  #: every name, each behind all it requires; ties as declared
    requirements: Mapping[str, frozenset[str]]  #: `requires`, and `after` as far as it exists
    stages: Mapping[str, Stage]
    depths: Mapping[str, int]

    def stage(self, stage: Stage) -> tuple[str, ...]:
        """Return the names of one stage in start order."""
        return tuple(name for name in self.order if self.stages[name] is stage)


@dataclass(frozen=True, slots=True)
class StopSequence:
    """The reverse walk through those who started; between the two parts the gate closes."""

    before_gate_closes: tuple[str, ...]
    after_gate_closed: tuple[str, ...]


class GraphError(ValueError):
    """The plugins cannot be put in order. `problems` holds one sentence each, and the text all of them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def resolve(nodes: Sequence[Node]) -> Plan:
    """Put plugins in order. Raises GraphError naming everything that is wrong with the graph."""
    problems = _name_problems(nodes)
    if problems:  # without sound names, the rest would report the same mistake in other words
        raise GraphError(problems)
    by_name = {node.name: node for node in nodes}
    requirements = {node.name: node.requires | (node.after & by_name.keys()) for node in nodes}
    problems = [text for node in nodes for text in _requirement_problems(node, by_name)]
    if problems:
        raise GraphError(problems)
    return Plan(
        order=_in_order(nodes, requirements),
        requirements=requirements,
        stages={node.name: _stage(node) for node in nodes},
        depths={node.name: _depth(node) for node in nodes},
    )


def stop_sequence(plan: Plan, started: Sequence[str]) -> StopSequence:
    """Return the reverse walk for `started`, which lists names in the order in which they were really started."""
    # Sorting keeps the start order inside a layer, so turning the whole round reverses both.
    last_first = sorted(started, key=lambda name: plan.depths[name])[::-1]
    drivers = [name for name in last_first if plan.depths[name] == _Depth.DRIVER]
    return StopSequence(tuple(drivers), tuple(last_first[len(drivers) :]))


def _stage(node: Node) -> Stage:
    if node.is_rpc:
        return Stage.RPC
    return Stage.TELEMETRY if node.layer is Layer.TELEMETRY else Stage.OTHERS


def _depth(node: Node) -> _Depth:
    if node.is_rpc:
        return _Depth.RPC
    return {
        Layer.TELEMETRY: _Depth.TELEMETRY,
        Layer.BACKEND: _Depth.BACKEND,
        Layer.DRIVER: _Depth.DRIVER,
    }[node.layer]


def _name_problems(nodes: Sequence[Node]) -> list[str]:
    problems = []
    seen: set[str] = set()
    for node in nodes:
        if not _NAME.fullmatch(node.name):
            problems.append(
                f"a plugin is named {node.name!r}; a name is a letter followed by letters, digits, - or _"
            )
        elif node.name in seen:
            problems.append(f"two plugins are named {node.name}; a name stands for one plugin")
        seen.add(node.name)
    return problems


def _requirement_problems(node: Node, by_name: Mapping[str, Node]) -> list[str]:
    problems = []
    for name in sorted(node.requires | node.after):
        other = by_name.get(name)
        if other is None:
            if name in node.requires:
                problems.append(
                    f"plugin {node.name} requires {name}, which is not configured; "
                    f"configure {name} or leave {node.name} out"
                )
        elif _stage(other) > _stage(node) or _depth(other) > _depth(node):
            problems.append(
                f"plugin {node.name} ({_describe(node)}) requires {name} ({_describe(other)}), "
                "which starts later or stops earlier; require plugins of the same or a lower layer only"
            )
    return problems


def _describe(node: Node) -> str:
    return "the RPC port" if node.is_rpc else f"layer {node.layer.name.lower()}"


def _in_order(nodes: Sequence[Node], requirements: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Take again and again the first one that has everything it requires; who is left stands in a circle."""
    waiting = sorted(nodes, key=_stage)
    order: list[str] = []
    placed: set[str] = set()
    while waiting:
        free = next((node for node in waiting if requirements[node.name] <= placed), None)
        if free is None:
            raise GraphError([_circle_problem({node.name: requirements[node.name] for node in waiting})])
        waiting.remove(free)
        placed.add(free.name)
        order.append(free.name)
    return tuple(order)


def _circle_problem(requirements: Mapping[str, frozenset[str]]) -> str:
    """Name one circle; everyone left requires somebody who is left too, so following requirements must find it."""
    path: list[str] = []
    name = min(requirements)
    while name not in path:
        path.append(name)
        name = min(other for other in requirements[name] if other in requirements)
    circle = [*path[path.index(name) :], name]
    return (
        f"plugins require each other in a circle: {' requires '.join(circle)}; none of them could start first"
    )
