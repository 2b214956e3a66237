#!/usr/bin/env python3
"""Measure what the jobs plugin itself costs per job: no pool, no sockets, no RPC framing.

Push and PushBatch call the RPC handlers with decoded protobuf messages; dispatch hands jobs to a pool that answers each
one at once with the bytes of a PHP worker's ack. Prints a table of microseconds of CPU and jobs a second; `--jobs N`
sets the number of jobs of a round, `--rounds N` how many rounds are run (the best counts).
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from trailboss.config.schema import JobsConfig, PipelineConfig
from trailboss.container.contract import Caller
from trailboss.messages import jobs_pb2
from trailboss.plugins.jobs.dispatch import Busy
from trailboss.plugins.jobs.plugin import JobsPlugin
from trailboss.workers.outcome import Answer, Outcome

ACK = Answer(0, b"", b'{"type":2,"data":[]}')
CALLER = Caller()


class InstantPool:
    """Answers every exec when `run` gets to it, as the reactor does after a batch of events."""

    def __init__(self, workers: int) -> None:
        self.idle_count = workers
        self.idle_listener: Callable[[], None] | None = None
        self._answered: list[Callable[[Outcome], None]] = []

    def submit(
        self, context: bytes, body: bytes, flags: int, on_outcome: Callable[[Outcome], None], label: str = ""
    ) -> None:
        """Take an exec."""
        self.idle_count -= 1
        self._answered.append(on_outcome)

    def workers(self) -> Sequence[Busy]:
        """There are none to name."""
        return ()

    def run(self) -> None:
        """Answer until nothing is left."""
        while self._answered:
            batch, self._answered = self._answered, []
            for on_outcome in batch:
                on_outcome(Answer(0, b"", bytes(ACK.body)))
                self.idle_count += 1
                if self.idle_listener is not None:
                    self.idle_listener()


@contextmanager
def measured(seconds: list[float]) -> Iterator[None]:
    """Append the CPU seconds of the block."""
    gc.collect()
    before = time.process_time()
    yield
    seconds.append(time.process_time() - before)


def make_plugin(pipelines: int) -> JobsPlugin:
    """Return a jobs plugin whose pipelines exist; memory drivers need no connection."""
    names = [f"queue-{number}" for number in range(pipelines)]
    plugin = JobsPlugin(
        JobsConfig(consume=tuple(names), pipelines={name: PipelineConfig(driver="memory") for name in names})
    )
    plugin.make_pipelines()
    # No trio runs here: the dispatcher's clock only stamps when a run began.
    plugin.dispatcher._clock = time.monotonic
    return plugin


def push_message(number: int, pipeline: str, with_headers: bool) -> bytes:
    """Return one encoded PushRequest as an SDK sends it."""
    headers = {"traceparent": jobs_pb2.HeaderValue(value=["00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"])}
    return jobs_pb2.PushRequest(
        job=jobs_pb2.Job(
            job="App\\Jobs\\SendMail",
            id=f"6f1e2b7a-0000-4000-8000-{number:012d}",
            payload=b'{"to":"somebody@example.org","template":"welcome"}',
            headers=headers if with_headers else None,
            options=jobs_pb2.Options(pipeline=pipeline),
        )
    ).SerializeToString()


def bench_round(jobs: int, pipelines: int, with_headers: bool) -> dict[str, float]:
    """Run one round; return CPU seconds by name."""
    plugin = make_plugin(pipelines)
    methods = {method.name: method.handler for method in plugin.rpc_methods()}
    encoded = [push_message(number, f"queue-{number % pipelines}", with_headers) for number in range(jobs)]
    decode = jobs_pb2.PushRequest.FromString
    push = methods["jobs.Push"]
    seconds: dict[str, list[float]] = {"decode": [], "push": [], "batch": [], "dispatch": []}
    with measured(seconds["decode"]):
        for data in encoded:
            decode(data)
    with measured(seconds["push"]):
        for data in encoded:
            push(decode(data), CALLER)
    pool = InstantPool(4)
    plugin.attach_pool(pool)
    plugin.pipelines.consume_configured()
    with measured(seconds["dispatch"]):
        plugin.dispatcher.open()
        pool.run()
    books = plugin.pipelines.total()
    if not (books.balanced and books.done == jobs):
        raise SystemExit(f"the books do not balance: {books}")

    plugin = make_plugin(pipelines)
    push_batch = {method.name: method.handler for method in plugin.rpc_methods()}["jobs.PushBatch"]
    batches = [
        jobs_pb2.PushBatchRequest(
            jobs=[jobs_pb2.PushRequest.FromString(data).job for data in encoded[start : start + 100]]
        ).SerializeToString()
        for start in range(0, jobs, 100)
    ]
    with measured(seconds["batch"]):
        for data in batches:
            push_batch(jobs_pb2.PushBatchRequest.FromString(data), CALLER)
    return {name: values[0] for name, values in seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    titles = {
        "decode": "protobuf decoding of one push",
        "push": "jobs.Push (decoding included)",
        "batch": "jobs.PushBatch of 100, per job (decoding included)",
        "dispatch": "take, context, submit, settle",
    }
    for pipelines, with_headers in ((1, False), (1, True), (16, False)):
        rounds = [bench_round(options.jobs, pipelines, with_headers) for _ in range(options.rounds)]
        print(f"\n{pipelines} pipeline(s), {'one header' if with_headers else 'no headers'}")
        for name, title in titles.items():
            best = min(row[name] for row in rounds) / options.jobs
            print(f"  {title:<52} {best * 1e6:6.2f} µs   {1 / best:10,.0f}/s")


if __name__ == "__main__":
    main()
