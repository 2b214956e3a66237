"""The order of waiting jobs: tables, and a model that sorts a list."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trailboss.plugins.jobs.priority_queue import Merge, PriorityQueue


@dataclass(eq=False)
class Item:
    """An item with a name."""

    priority: int
    sequence: int
    queue: int = 0


def make_items(*priorities: int) -> list[Item]:
    return [Item(priority, sequence) for sequence, priority in enumerate(priorities)]


@pytest.mark.parametrize(
    ("priorities", "expected_sequences"),
    [
        ([], []),
        ([5], [0]),
        ([5, 5, 5], [0, 1, 2]),
        ([3, 2, 1], [2, 1, 0]),
        ([2, 1, 2, 1, 0], [4, 1, 3, 0, 2]),
        ([-1, 0, -1, 10**18], [0, 2, 1, 3]),
    ],
)
def test_pop_order(priorities: list[int], expected_sequences: list[int]) -> None:
    """Items come by priority, then in the order of their arrival."""
    queue: PriorityQueue[Item] = PriorityQueue()
    for item in make_items(*priorities):
        queue.push(item)
    popped = [item.sequence for item in iter(queue.pop, None)]
    assert expected_sequences == popped
    assert len(queue) == 0


def test_iteration_does_not_take() -> None:
    """Iterating shows the order of pops and leaves everything in place."""
    queue: PriorityQueue[Item] = PriorityQueue()
    for item in make_items(2, 1, 2):
        queue.push(item)
    assert [item.sequence for item in queue] == [1, 0, 2]
    assert len(queue) == 3


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_restore_in_any_order(order: tuple[int, int, int]) -> None:
    """Items taken and restored in any order are in their old places, before those that came meanwhile."""
    queue: PriorityQueue[Item] = PriorityQueue()
    for item in make_items(1, 1, 1, 1):
        queue.push(item)
    taken = [queue.pop(), queue.pop(), queue.pop()]
    queue.push(Item(1, 9))
    for position in order:
        item = taken[position]
        assert item is not None
        queue.restore(item)
    assert [item.sequence for item in iter(queue.pop, None)] == [0, 1, 2, 3, 9]


def test_clear_says_how_many() -> None:
    """A cleared queue is empty and says how many items that took."""
    queue: PriorityQueue[Item] = PriorityQueue()
    for item in make_items(1, 2, 1):
        queue.push(item)
    assert queue.clear() == 3
    assert queue.pop() is None
    queue.push(Item(1, 7))
    assert len(queue) == 1


def test_urgent_items_leave_no_entries_behind() -> None:
    """Many urgent items over a backlog do not make the heap of a merge grow."""
    merge: Merge[Item] = Merge()
    queue: PriorityQueue[Item] = PriorityQueue()
    merge.join(queue)
    queue.push(Item(10, 0))
    for sequence in range(1, 1000):
        queue.push(Item(1, sequence))
        assert merge.best() is queue
        assert queue.pop() is not None
    assert merge.best() is queue
    assert len(merge._heads) <= 2
    assert len(queue._noted) <= 2


class MergeMachine(RuleBasedStateMachine):
    """Three queues behind one merge against one sorted list."""

    def __init__(self) -> None:
        super().__init__()
        self.merge: Merge[Item] = Merge()
        self.queues: list[PriorityQueue[Item]] = [PriorityQueue(number) for number in range(3)]
        self.joined = {0, 1, 2}
        for queue in self.queues:
            self.merge.join(queue)
        self.waiting: list[Item] = []
        self.taken: list[Item] = []
        self.sequence = 0

    @rule(number=st.integers(0, 2), priority=st.integers(-2, 2))
    def push(self, number: int, priority: int) -> None:
        self.sequence += 1
        item = Item(priority, self.sequence, number)
        self.queues[number].push(item)
        self.waiting.append(item)

    @rule()
    def pop_best(self) -> None:
        candidates = [item for item in self.waiting if item.queue in self.joined]
        queue = self.merge.best()
        if not candidates:
            assert queue is None
            return
        expected = min(candidates, key=lambda item: (item.priority, item.sequence))
        assert queue is self.queues[expected.queue]
        assert queue.pop() is expected
        self.waiting.remove(expected)
        self.taken.append(expected)

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        item = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        self.queues[item.queue].restore(item)
        self.waiting.append(item)

    @precondition(lambda self: self.taken)
    @rule(number=st.integers(0, 2), split=st.integers(1, 5))
    def insert(self, number: int, split: int) -> None:
        items = [item for item in self.taken if item.queue == number][:split]
        self.taken = [item for item in self.taken if item not in items]
        self.queues[number].insert(items)
        self.waiting += items

    @rule(number=st.integers(0, 2))
    def leave(self, number: int) -> None:
        self.joined.discard(number)
        self.merge.leave(self.queues[number])

    @rule(number=st.integers(0, 2))
    def join(self, number: int) -> None:
        self.joined.add(number)
        self.merge.join(self.queues[number])

    @rule(number=st.integers(0, 2))
    def clear(self, number: int) -> None:
        self.queues[number].clear()
        self.waiting = [item for item in self.waiting if item.queue != number]

    @invariant()
    def sizes_agree(self) -> None:
        assert sum(map(len, self.queues)) == len(self.waiting)


MergeMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMerge = MergeMachine.TestCase
