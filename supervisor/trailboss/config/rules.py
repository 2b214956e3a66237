"""What must hold between keys: contradictions that can never work, judged on the finished Config.

Each is an error when the configuration is loaded. What may work but probably is not meant, and what depends on the
machine (users, ports, commands), is check.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from trailboss.config.problems import Problem
from trailboss.config.schema import Config, HttpSslConfig, JobsConfig, MetricsConfig, PoolConfig
from trailboss.config.values import is_loopback, parse_address, parse_http_address

__all__ = ["contradictions", "pools"]


def pools(config: Config) -> Iterator[tuple[str, PoolConfig]]:
    """Yield every pool with its dotted name."""
    if config.http is not None:
        yield "http.pool", config.http.pool
    if config.jobs is not None:
        yield "jobs.pool", config.jobs.pool


def contradictions(config: Config) -> list[Problem]:
    """Return everything in the configuration that can never work."""
    problems = [*_remote_rpc(config), *_http(config), *_commands(config)]
    for name, pool in pools(config):
        problems.extend(_quorum(config, name, pool))
        problems.extend(_sizes(config, name, pool))
        problems.extend(_rlimits(config, name, pool))
    if config.jobs is not None:
        problems.extend(_consumed(config, config.jobs))
    if config.metrics is not None:
        problems.extend(_collectors(config, config.metrics))
    return problems


def consumed_pipelines(jobs: JobsConfig) -> tuple[str, ...]:
    """Return `consume` with every name spelled as the pipeline is, without repetitions."""
    by_name = {name.lower(): name for name in jobs.pipelines}
    return tuple(dict.fromkeys(by_name.get(name.lower(), name) for name in jobs.consume))


def _remote_rpc(config: Config) -> Iterator[Problem]:
    rpc = config.rpc
    if not rpc.enabled or not rpc.listen or rpc.allow_remote:
        return
    scheme, host, _ = parse_address(rpc.listen)
    if scheme == "tcp" and not is_loopback(host):
        yield config.source.problem(
            "rpc.listen",
            "the address can be reached from other machines, and whoever reaches it controls the server",
            "use 127.0.0.1 or a unix socket, or set rpc.allow_remote: true",
        )


def _http(config: Config) -> Iterator[Problem]:
    if config.http is None:
        return
    ssl = config.http.ssl
    if not config.http.address and ssl is None:
        yield config.source.problem(
            "http.address", "there is no address to listen on", "set http.address, for example 127.0.0.1:8080"
        )
    if ssl is not None:
        yield from _ssl(config, ssl)
    seen = set()
    for key, addresses in (
        ("http.address", config.http.address),
        ("http.ssl.address", ssl.address if ssl else ()),
    ):
        for index, address in enumerate(addresses):
            parsed = parse_http_address(address)
            if parsed in seen and parsed[0:3:2] != ("tcp", 0):
                yield config.source.problem(
                    f"{key}[{index}]", "the address is listed twice", "remove one of the two"
                )
            seen.add(parsed)


def _ssl(config: Config, ssl: HttpSslConfig) -> Iterator[Problem]:
    if not ssl.address:
        yield config.source.problem(
            "http.ssl.address", "there is no address to listen on", "remove the key, or write host:443"
        )
    for key in ("cert", "key"):
        if not getattr(ssl, key):
            yield config.source.problem(
                f"http.ssl.{key}", "the path is empty", "write the path of a PEM file"
            )
    # RoadRunner accepts this and asks nobody for a certificate, which is not what was meant.
    if not ssl.root_ca and not ssl.client_auth_type.startswith("no_client_cert"):
        yield config.source.problem(
            "http.ssl.client_auth_type",
            "there is nothing to verify client certificates with",
            "set http.ssl.root_ca, or remove the key",
        )


def _commands(config: Config) -> Iterator[Problem]:
    if config.server is not None and config.server.command:
        return
    without = [name for name, pool in pools(config) if not pool.command]
    example = "for example command: [php, worker.php]"
    if without:
        yield config.source.problem(
            f"{without[0]}.command" if config.server is None else "server.command",
            f"there is no command to start the workers of {without[0]} with",
            f"set server.command, {example}",
        )
    elif config.server is not None and not any(True for _ in pools(config)):
        yield config.source.problem("server.command", "the key is required", example)


def _collectors(config: Config, metrics: MetricsConfig) -> Iterator[Problem]:
    if not metrics.collect:
        return
    from trailboss.metrics import CollectorSpec, collector_problem  # here: most configurations do without

    for name, collector in metrics.collect.items():
        place = f"metrics.collect.{name}"
        try:
            objectives = {float(share): error for share, error in collector.objectives.items()}
        except ValueError:
            yield config.source.problem(
                f"{place}.objectives",
                "an objective that is no quantile",
                "write quantiles, for example 0.99: 0.001",
            )
            continue
        spec = CollectorSpec(
            name.lower(),
            collector.type,
            collector.help,
            collector.labels,
            collector.buckets,
            objectives,
            collector.namespace,
            collector.subsystem,
        )
        problem = collector_problem(spec)
        if problem is not None:
            yield config.source.problem(place, *problem)


def _quorum(config: Config, name: str, pool: PoolConfig) -> Iterator[Problem]:
    if pool.quorum is not None and not pool.debug and pool.quorum > pool.resolved_num_workers:
        yield config.source.problem(
            f"{name}.quorum",
            f"the quorum can never be reached with {pool.resolved_num_workers} workers",
            f"write {pool.resolved_num_workers} or less, or raise num_workers",
        )


def _sizes(config: Config, name: str, pool: PoolConfig) -> Iterator[Problem]:
    """Keys about the number of workers that contradict each other, and warm-ups that nobody could do."""
    if pool.max_surge == 0 and pool.max_unavailable == 0:
        yield config.source.problem(
            f"{name}.max_surge",
            "with 0 here and max_unavailable 0 no worker could ever be replaced",
            "raise one of the two",
        )
    autoscale = pool.autoscale
    if autoscale is not None and autoscale.min > autoscale.max:
        yield config.source.problem(
            f"{name}.autoscale.min", f"above max ({autoscale.max})", "make it smaller, or raise max"
        )
    if pool.warmup.paths and name != "http.pool":
        yield config.source.problem(
            f"{name}.warmup",
            "these workers answer no HTTP requests",
            'write a command as one text, such as "php warm.php"',
        )


_RLIMITS: Final = frozenset(
    [
        "as",
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ]
)


def _rlimits(config: Config, name: str, pool: PoolConfig) -> Iterator[Problem]:
    for limit, value in pool.process.rlimits.items():
        key = f"{name}.process.rlimits.{limit}"
        if limit not in _RLIMITS:
            yield config.source.problem(
                key, "there is no such limit", f"use one of: {', '.join(sorted(_RLIMITS))}"
            )
        elif not re.fullmatch(
            r"(unlimited|\d{1,20})?(:(unlimited|\d{1,20})?)?", value, re.ASCII
        ) or value in ("", ":"):
            yield config.source.problem(
                key, f"{value!r} is no limit", "write a number, unlimited, or soft:hard"
            )


def _consumed(config: Config, jobs: JobsConfig) -> Iterator[Problem]:
    known = {name.lower() for name in jobs.pipelines}
    for index, name in enumerate(jobs.consume):
        if name.lower() not in known:
            names = ", ".join(sorted(jobs.pipelines)[:20])
            yield config.source.problem(
                f"jobs.consume[{index}]",
                "there is no pipeline of this name",
                f"declare it under jobs.pipelines, or use one of: {names}"
                if names
                else "declare it under jobs.pipelines",
            )
