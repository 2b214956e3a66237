"""The bench of the front as a fixture, and the folder of helpers that these tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trailboss.plugins.http.limits import Limits
from trailboss.plugins.http.message import Handler
from trailboss.plugins.http.unsent import AnswerAccount

HERE = str(Path(__file__).resolve().parent)
SUPPORT = str(Path(__file__).resolve().parents[3] / "support")
for folder in (HERE, SUPPORT):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from front_bench import Bench, MakeBench  # noqa: E402  the lines above make it findable
from tls_files import TlsFiles, make_files  # noqa: E402


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    """Return a maker of benches that are closed at the end; nothing of a body is left by then."""
    made: list[Bench] = []

    def make(
        handler: Handler | None = None,
        limits: Limits | None = None,
        answers: AnswerAccount | None = None,
        **spool: int,
    ) -> Bench:
        made.append(Bench(handler, limits, answers, **spool))
        return made[-1]

    yield make
    for bench in made:
        bench.close()
        assert bench.front.connections == set()
        assert bench.front.in_flight == 0
        assert bench.spool.memory_bytes == 0
        assert bench.spool.files == 0
        answers = bench.front.answers
        assert (answers.memory_bytes, answers.file_bytes, answers.files) == (0, 0, 0)
        assert bench.reactor.failures == 0


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Return an authority and a server's certificate for all tests."""
    return make_files(tmp_path_factory.mktemp("tls"))
