"""2,000 damaged configurations: a Config or a ConfigError each time, quickly, and never a secret in the error."""

from __future__ import annotations

import random
import time

import pytest

from trailboss.config import Config, ConfigError, LoadRequest, load

from .conftest import Folder

SECRET = "hu?nt=er2"
SAMPLE = """\
version: "3"
rpc:
  listen: tcp://127.0.0.1:6001
  ready_timeout: 5s
  max_frame_size: 64
server:
  command: "php worker.php"
  relay: pipes
  env: &env
    APP_ENV: prod
    APP_KEY: "hu?nt=er2"
    DATABASE_URL: "pgsql://user:hu?nt=er2@db:5432/app"
    TOKEN: ${SECRET}
  on_init:
    command: [php, init.php]
    exec_timeout: 1m30s
    env: *env
jobs:
  timeout: 60
  pool.num_workers: 4
  pool:
    allocate_timeout: 10s
    supervisor: {ttl: 1h, exec_ttl: 60s, max_worker_memory: 128}
  consume: ["emails", "reports"]
  pipelines:
    emails: {driver: memory, config: {priority: 1, prefetch: 100}}
    reports:
      driver: memory
status: {address: "127.0.0.1:2114", unavailable_status_code: 503}
logs:
  mode: off
  level: ${LEVEL:-debug}
  output: [stderr, app.log]
  channels: {jobs: {level: error}}
otel:
  exporter: otlp
  headers: {authorization: "Bearer hu?nt=er2"}
endure: {grace_period: 30s}
"""
JUNK = [
    "", " ", "\t", "\n", ":", "-", "[", "]", "{", "}", "&a ", "*a", "!x ", "|", ">", "'", '"', "#", "%", "@", "`", "?", ",",
    "${", "${A", "$$", "\x00", "\x07", "\u2028", "\ufeff", "é", "💥", "~", "null", "true", "off", "1e999", "-1", "9" * 40, "0x", "12:30",
    "<<: *env", "? ", "---\n", "...\n", "!!binary ", "[" * 80, "{a: " * 80, "a.b.c", "-5s", "10d", "s" * 3000,
]  # fmt: skip


def mutated(rng: random.Random) -> str:
    """Return the sample after one to four random edits of characters, lines and values."""
    text = SAMPLE
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        index = rng.randrange(len(lines))
        edit = rng.randrange(9)
        position = rng.randrange(len(text) + 1)
        if edit == 0:
            text = text[:position] + rng.choice(JUNK) + text[position:]
        elif edit == 1:
            text = text[:position] + text[position + rng.randint(1, 8) :]
        elif edit == 2:
            text = text[:position]
        else:
            if edit == 3:
                lines.insert(rng.randrange(len(lines)), lines[index])
            elif edit == 4:
                del lines[index]
            elif edit == 5:
                lines[index] = " " * rng.randint(0, 8) + lines[index].lstrip()
            elif edit == 6:
                lines[index] = lines[index].partition(":")[0] + ": " + rng.choice(JUNK)
            elif edit == 7:
                lines[index] = rng.choice(JUNK) + lines[index]
            else:
                other = rng.randrange(len(lines))
                lines[index], lines[other] = lines[other], lines[index]
            text = "\n".join(lines)
    return text


@pytest.mark.parametrize("block", range(4))
def test_damaged_configurations_never_surprise(folder: Folder, block: int) -> None:
    """500 seeds a block: no other exception, none slower than 2 s, every line names something, no secret echoed."""
    refused = 0
    for seed in range(block * 500, block * 500 + 500):
        text = mutated(random.Random(seed))
        path = folder.write(text.encode("utf-8", "surrogatepass"), "c.yaml")
        started = time.monotonic()
        found: Config | ConfigError
        try:
            found = load(LoadRequest(path=str(path), environ={"SECRET": SECRET}))
        except ConfigError as error:
            found = error
        assert time.monotonic() - started < 2.0, f"seed {seed} took too long"
        if isinstance(found, ConfigError):
            refused += 1
            lines = str(found).split("\n")
            assert len(lines) == len(found.problems), f"seed {seed}"
            assert all("c.yaml" in line for line in lines), f"seed {seed}: {lines}"
            assert SECRET not in str(found), f"seed {seed}: {lines}"

    assert 100 < refused < 500


def test_damaged_json_never_surprises(folder: Folder) -> None:
    """The same for JSON, 300 seeds."""
    sample = '{"version": "3", "rpc": {"ready_timeout": "5s"}, "server": {"command": ["php"], "env": {"K": "hu?nt=er2"}}}'
    for seed in range(300):
        rng = random.Random(seed)
        text = sample
        for _ in range(rng.randint(1, 3)):
            position = rng.randrange(len(text))
            text = text[:position] + rng.choice([*JUNK, '"', "{", "["]) + text[position + rng.randint(0, 3) :]
        path = folder.write(text.encode("utf-8", "surrogatepass"), "c.json")
        problems = ""
        try:
            load(LoadRequest(path=str(path), environ={}))
        except ConfigError as error:
            problems = str(error)
        assert SECRET not in problems, f"seed {seed}"


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"k{n}: {{}}\n" for n in range(90_000)),
        "server: {command: [a]}\njobs:\n  pipelines:\n"
        + "".join(f"    k{n}: {{driver: memory}}\n" for n in range(20_000)),
        "server:\n  command: [a]\n  env:\n" + "".join(f"    k{n}: v\n" for n in range(90_000)),
        "".join(f"a{n}.b.c: 1\n" for n in range(30_000)),
        "".join(f"rpc.b{n}: 1\n" for n in range(30_000)),
        "logs: {output: '" + "a," * 1_000_000 + "'}",
        "server: {command: [a], env: {X: '" + "$" * 4_000_000 + "'}}",
        "rpc: {ready_timeout: '" + "1s" * 2_000_000 + "'}",
        "server: {command: '\"" + "a " * 2_000_000 + "b'}",
        "a" * 8_000_000,
        "- " * 1_000_000,
        "#" * 8_000_000,
    ],
    ids=[
        "sections",
        "pipelines",
        "variables",
        "dotted",
        "deep",
        "list",
        "dollars",
        "duration",
        "words",
        "text",
        "dashes",
        "comment",
    ],
)
def test_large_configurations_take_linear_time(folder: Folder, text: str) -> None:
    """Much of one thing, up to the limit of 8 MiB, is loaded or refused in seconds."""
    path = folder.write('version: "3"\n' + text, "c.yaml")
    started = time.monotonic()
    problems = 0
    try:
        load(LoadRequest(path=str(path), environ={}))
    except ConfigError as error:
        problems = len(error.problems)

    assert problems <= 101
    assert time.monotonic() - started < 4.0
