"""The order of waiting jobs: the most urgent first, first in first out inside one priority, across pipelines too.

Every pipeline has a :class:`PriorityQueue`: one deque per priority in use and a heap of those priorities. A
:class:`Merge` picks among the queues of the pipelines that are consumed: a heap with an entry for the head of each,
compared by priority, then by the sequence number that all pipelines draw from one counter. An entry is stale when its
queue has another head by now or has left; stale entries are dropped when they come up. So a push and a pop cost the
same at ten jobs and at a million, and to pause a pipeline costs nothing: its jobs stay where they are.

Pure: no clock, no input or output, and nothing of trio.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar

__all__ = ["Merge", "PriorityQueue", "Ranked"]


class Ranked(Protocol):
    """What the queue reads of an item: lower priorities first, then lower sequence numbers. Both stay as they are
    while the item waits."""

    priority: int
    sequence: int


ItemT = TypeVar("ItemT", bound=Ranked)


def _sequence_of(item: Ranked) -> int:
    return item.sequence


class PriorityQueue(Generic[ItemT]):
    """Waiting items of one pipeline. `owner` is whatever the user of a :class:`Merge` wants to find with a queue."""

    __slots__ = ("_buckets", "_first", "_merge", "_noted", "_priorities", "_size", "owner")

    def __init__(self, owner: object = None) -> None:
        self.owner = owner
        self._buckets: dict[int, deque[ItemT]] = {}
        self._priorities: list[int] = []  # heap; exactly the keys of _buckets
        self._first: deque[ItemT] | None = None  # the bucket of the most urgent priority; never empty
        self._size = 0
        self._merge: Merge[ItemT] | None = None
        self._noted: set[int] = set()  # sequence numbers that have an entry in the heap of a Merge

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<PriorityQueue {self._size} waiting in {len(self._buckets)} priorities>"

    def __iter__(self) -> Iterator[ItemT]:
        """Iterate in the order in which `pop` would return; for people and tests."""
        for priority in sorted(self._buckets):
            yield from self._buckets[priority]

    @property
    def head(self) -> ItemT | None:
        """The item that `pop` would return, or None."""
        return None if self._first is None else self._first[0]

    def push(self, item: ItemT) -> None:
        """Add `item` behind all of its priority. Its sequence number has to be the highest so far."""
        bucket = self._buckets.get(item.priority)
        if bucket is None:
            self._open_bucket(item)
        else:
            bucket.append(item)
        self._size += 1

    def restore(self, item: ItemT) -> None:
        """Put `item` back to the place its sequence number gives it, as if it had never been taken."""
        bucket = self._buckets.get(item.priority)
        self._size += 1
        if bucket is None:
            self._open_bucket(item)
            return
        # What was taken is older than nearly all that waits, so the place is within a few steps of the left end.
        place = 0
        for waiting in bucket:
            if waiting.sequence > item.sequence:
                break
            place += 1
        bucket.insert(place, item)
        if place == 0 and bucket is self._first and self._merge is not None:
            self._merge.offer(self)

    def insert(self, items: Iterable[ItemT]) -> None:
        """Put many items to the places that their sequence numbers give them.

        Costs their number, and that of the waiting ones of their priorities that are younger than the oldest of them.
        """
        added: dict[int, list[ItemT]] = {}
        for item in sorted(items, key=_sequence_of):
            added.setdefault(item.priority, []).append(item)
        for priority, some in added.items():
            if priority not in self._buckets:
                self._open_bucket(some[0])
                self._buckets[priority].extend(some[1:])
            else:
                self._insert_into(self._buckets[priority], some)
            self._size += len(some)

    def _insert_into(self, bucket: deque[ItemT], some: list[ItemT]) -> None:
        first, oldest = bucket[0], some[0].sequence
        younger: list[ItemT] = []
        while bucket and bucket[-1].sequence > oldest:
            younger.append(bucket.pop())
        younger.reverse()
        bucket.extend(sorted([*younger, *some], key=_sequence_of) if younger else some)
        if bucket[0] is not first and bucket is self._first and self._merge is not None:
            self._merge.offer(self)

    def pop(self) -> ItemT | None:
        """Take the most urgent item, or return None."""
        bucket = self._first
        if bucket is None:
            return None
        item = bucket.popleft()
        self._size -= 1
        if not bucket:
            del self._buckets[heappop(self._priorities)]
            self._first = self._buckets[self._priorities[0]] if self._priorities else None
        return item

    def clear(self) -> int:
        """Drop everything; return how many items that were."""
        dropped = self._size
        self._buckets.clear()
        self._priorities.clear()
        self._first = None
        self._size = 0
        return dropped

    def _open_bucket(self, item: ItemT) -> None:
        bucket = self._buckets[item.priority] = deque((item,))
        heappush(self._priorities, item.priority)
        if self._priorities[0] == item.priority:
            self._first = bucket
            if self._merge is not None:
                self._merge.offer(self)


class Merge(Generic[ItemT]):
    """The one line that the queues of all consumed pipelines form."""

    __slots__ = ("_heads",)

    def __init__(self) -> None:
        self._heads: list[tuple[int, int, PriorityQueue[ItemT]]] = []

    def join(self, queue: PriorityQueue[ItemT]) -> None:
        """Let the items of `queue` take part from now on."""
        queue._merge = self
        self.offer(queue)

    def leave(self, queue: PriorityQueue[ItemT]) -> None:
        """Leave the items of `queue` where they are, in their order, until it joins again."""
        queue._merge = None

    def offer(self, queue: PriorityQueue[ItemT]) -> None:
        """Note the head of `queue`; called by a queue whose head became more urgent."""
        head = queue.head
        if head is not None and head.sequence not in queue._noted:
            queue._noted.add(head.sequence)
            heappush(self._heads, (head.priority, head.sequence, queue))

    def best(self) -> PriorityQueue[ItemT] | None:
        """Return the queue whose head is next, or None where nothing waits."""
        heads = self._heads
        while heads:
            _, sequence, queue = heads[0]
            first = queue._first
            if first is None or queue._merge is not self:
                queue._noted.discard(sequence)
                heappop(heads)
                continue
            head = first[0]
            if head.sequence == sequence:
                return queue
            # Somebody popped that head. The present one may have an entry already: the head of a less urgent bucket
            # keeps its own while more urgent items come and go.
            noted = queue._noted
            noted.discard(sequence)
            if head.sequence in noted:
                heappop(heads)
            else:
                noted.add(head.sequence)
                heapreplace(heads, (head.priority, head.sequence, queue))
        return None
