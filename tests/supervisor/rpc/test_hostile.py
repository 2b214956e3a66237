"""Hostile clients: mutated calls and random bytes never do more than close their own connection."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trailboss_worker.protocol.frames import encode_frame
from trailboss_worker.protocol.rpc import encode_request

METHODS = [
    "rpc.Version",
    "rpc.Config",
    "raw.Str",
    "raw.Echo",
    "jobs.Push",
    "jobs.PushBatch",
    "metrics.Add",
    "x.Y",
    "",
    ".",
]


def calls() -> st.SearchStrategy[bytes]:
    """Generate frames: sound envelopes with any argument and codec, unsound ones, and bytes that are no frame."""
    sound = st.builds(
        encode_request,
        st.integers(0, 2**32 - 1),
        st.sampled_from(METHODS),
        st.binary(max_size=100),
        st.sampled_from([0x08, 0x04, 0x10, 0x20, 0x80, 0xA0, 0x0C, 0x48, 0x09]),
    )
    unsound = st.builds(
        lambda payload, flags, options: encode_frame(payload, flags=flags, options=options),
        st.binary(max_size=60),
        st.integers(0, 255),
        st.lists(st.integers(0, 2**32 - 1), max_size=4),
    )
    return sound | unsound | st.binary(max_size=60)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(calls(), min_size=1, max_size=6))
def test_any_bytes_leave_the_server_well(
    helpers: Any, tmp_path_factory: pytest.TempPathFactory, data: list[bytes]
) -> None:
    """Whatever a client sends, a client beside it is answered, and nothing is held or counted as a failure."""

    async def play() -> None:
        path = tmp_path_factory.mktemp("rpc") / "rpc.sock"
        config = helpers.RpcConfig(listen=f"unix://{path}")
        with trio.fail_after(5):
            async with helpers.running(helpers.stand_ins(), config) as bench, bench.client() as good:
                async with bench.client() as bad:
                    try:
                        await bad.send(b"".join(data))
                        await bad.stream.send_eof()
                        while await bad.reply() is not None:
                            pass
                    except trio.BrokenResourceError:
                        pass
                assert (await good.call("rpc.Version", b"true")).body == b'"2025.1.15"'
                assert bench.server.counters.failures == 0
                assert bench.reactor.failures == 0
                assert bench.server.bytes_held == 0

    trio.run(play)


async def test_thousands_of_mutated_calls(helpers: Any, rpc_config: Any) -> None:
    """Recorded calls with flipped, cut and joined bytes: answered or closed, and a good client keeps its speed."""
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    rng = random.Random(seed)
    originals = [bytes.fromhex(vector["hex"]) for vector in helpers.load_vectors("rpc", "rpc-sdk").values()]
    with trio.fail_after(60):
        async with helpers.running(helpers.stand_ins(), rpc_config) as bench, bench.client() as good:
            for _ in range(2000):
                data = bytearray(rng.choice(originals))
                for _ in range(rng.randrange(1, 5)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                if rng.random() < 0.3:
                    del data[rng.randrange(len(data)) :]
                async with bench.client() as bad:
                    try:
                        await bad.send(bytes(data))
                        await bad.stream.send_eof()
                        with trio.fail_after(1):
                            while await bad.reply() is not None:
                                pass
                    except trio.BrokenResourceError:
                        pass
            assert (await good.call("rpc.Version", b"true")).body == b'"2025.1.15"'
            assert (bench.server.counters.failures, bench.reactor.failures) == (0, 0)
            assert (bench.server.bytes_held, bench.server.tasks) == (0, 0)
