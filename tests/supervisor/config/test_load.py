"""From files and flags to a Config: every rule of the file, and every error with file, line, key and remedy."""

# ruff: noqa: RUF009  key() is the field declaration itself
from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from trailboss.config import Config, ConfigError, LoadRequest, from_mapping, key, load
from trailboss.config.schema import (
    UNAVAILABLE_SECTIONS,
    Duration,
    MemoryPipelineConfig,
    PoolConfig,
    RpcConfig,
    cpu_count,
)

from .conftest import Folder

HEAD = 'version: "3"\n'
SERVER = "server: {command: [php, worker.php]}\n"


def test_a_full_file_gives_typed_values(folder: Folder) -> None:
    """Durations are seconds, commands are tuples, names and defaults are in place."""
    config = folder.load(
        HEAD
        + "rpc: {listen: 'tcp://127.0.0.1:6001', ready_timeout: 0s, max_frame_size: 8}\n"
        + "server:\n  command: php  worker.php\n  user: ''\n  env: {app_env: prod, N: 5, DEBUG: false, NONE: ~}\n"
        + "  on_init: {command: 'php,init.php', exec_timeout: 1m30s, exit_on_error: yes}\n"
        + "jobs:\n  timeout: 30\n  pool: {num_workers: 2, allocate_timeout: 3s, supervisor: {exec_ttl: 500ms}}\n"
        + "  consume: [EMAILS, other]\n  pipelines:\n    Emails: {driver: memory, config: {priority: 1}}\n"
        + "    other: {driver: Memory}\n"
        + "status: {address: '127.0.0.1:2114', check_timeout: 30s}\n"
        + "logs: {mode: Production, level: WARN, output: 'stdout,app.log', channels: {jobs: {level: error}}}\n"
        + "otel: {resource: {service_name: x}, headers: {Api-Key: y}}\n"
        + "endure: {grace_period: 1m}\nplugins: {status: {optional: true}}\n"
    )

    assert config.server is not None
    assert config.jobs is not None
    assert config.status is not None
    assert config.otel is not None
    assert config.server.on_init is not None
    assert config.rpc == RpcConfig(listen="tcp://127.0.0.1:6001", ready_timeout=0.0, max_frame_size=8)
    assert config.server.command == ("php", "worker.php")
    assert config.server.env == {"APP_ENV": "prod", "N": "5", "DEBUG": "0", "NONE": ""}
    assert config.server.on_init.command == ("php", "init.php")
    assert config.server.on_init.exec_timeout == 90.0
    assert config.server.on_init.exit_on_error is True
    assert config.jobs.timeout == 30.0
    assert config.jobs.pool.boot_timeout == 3.0
    assert config.jobs.pool.queue_timeout == 3.0
    assert config.jobs.pool.supervisor.exec_ttl == 0.5
    assert config.jobs.consume == ("Emails", "other")
    assert config.jobs.pipelines["Emails"].config == {"priority": 1}
    assert config.jobs.pipelines["other"].driver == "memory"
    assert config.status.check_timeout == 30.0
    assert (config.logs.mode, config.logs.level, config.logs.output) == (
        "production",
        "warn",
        ("stdout", "app.log"),
    )
    assert config.logs.channels["jobs"].level == "error"
    assert config.logs.channels["jobs"].mode is None
    assert config.otel.headers == {"Api-Key": "y"}
    assert config.endure.grace_period == 60.0
    assert config.is_optional("status")
    assert not config.is_optional("jobs")


def test_a_file_with_only_a_version_has_rpc_and_nothing_else(folder: Folder) -> None:
    """RPC on the default socket and logs exist without being written; plugins without a section stay off."""
    config = folder.load(HEAD)

    assert config.rpc == RpcConfig()
    assert (config.server, config.jobs, config.status, config.otel) == (None, None, None, None)
    assert folder.load(HEAD + "rpc: {enabled: off}\n").rpc.enabled is False


def test_resolved_values_of_a_pool() -> None:
    """0 means the CPUs, a queue of four per worker and a hundred, and a quorum of all workers."""
    pool = PoolConfig()
    cpus = cpu_count()

    assert (cpus, 4 * cpus + 100, cpus, 1) == (
        pool.resolved_num_workers,
        pool.resolved_max_queue_size,
        pool.resolved_quorum,
        pool.resolved_quorum_running,
    )
    assert (
        PoolConfig(num_workers=3).resolved_num_workers,
        PoolConfig(max_queue_size=7).resolved_max_queue_size,
        PoolConfig(num_workers=3, quorum=2).resolved_quorum,
        PoolConfig(num_workers=3, quorum=2).resolved_quorum_running,
    ) == (3, 7, 2, 2)
    assert (PoolConfig(debug=True).resolved_quorum, PoolConfig(debug=True).resolved_quorum_running) == (0, 0)
    assert (PoolConfig().boot_timeout, PoolConfig(allocate_timeout=5.0, boot_timeout=1.0).boot_timeout) == (
        60.0,
        1.0,
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rpc: {listn: x}", "2: rpc.listn: unknown key; did you mean listen?"),
        ("rcp: {listen: x}", "2: rcp: unknown key; did you mean rpc?"),
        ("rpc: {qqqqqq: x}", "2: rpc.qqqqqq: unknown key; known here: enabled, listen"),
        (
            "jobs: {num_workers: 4, pool: {command: [a]}}",
            "2: jobs.num_workers: unknown key; did you mean pool.num_workers?",
        ),
        (
            "rpc: {ready_timeout: 60}",
            '2: rpc.ready_timeout: a duration without a unit "60"; add a unit, for example 60s',
        ),
        (
            "rpc: {ready_timeout: '5'}",
            '2: rpc.ready_timeout: a duration without a unit "5"; add a unit, for example 5s',
        ),
        ("rpc: {ready_timeout: 1.5}", '2: rpc.ready_timeout: a duration without a unit "1.5"; add a unit'),
        ("rpc: {ready_timeout: -5s}", "2: rpc.ready_timeout: a negative duration; write 0s or more"),
        ("rpc: {ready_timeout: true}", "2: rpc.ready_timeout: not a duration"),
        ("rpc: {ready_timeout: [1s]}", "2: rpc.ready_timeout: not a duration"),
        (
            "rpc: {max_connections: many}",
            '2: rpc.max_connections: not a whole number "many"; write digits only',
        ),
        ("rpc: {max_connections: 1_000}", '2: rpc.max_connections: not a whole number "1_000"'),
        ("rpc: {max_connections: 1.5}", "2: rpc.max_connections: not a whole number"),
        ("rpc: {max_connections: true}", "2: rpc.max_connections: not a whole number"),
        ("rpc: {max_connections: 0}", "2: rpc.max_connections: the value is too small; write 1 or more"),
        ("rpc: {max_frame_size: 5000}", "2: rpc.max_frame_size: the value is too large; write 4095 or less"),
        (
            "rpc: {max_frame_size: 64MB}",
            '2: rpc.max_frame_size: not a whole number "64MB"; write digits only (the unit is MB)',
        ),
        ("rpc: {enabled: maybe}", '2: rpc.enabled: not a switch "maybe"; write true or false'),
        ("rpc: {listen: '6001'}", "2: rpc.listen: not an address: it begins with neither tcp:// nor unix://"),
        ("rpc: {listen: [a]}", "2: rpc.listen: a single text is expected here"),
        (
            "rpc: {listen: 'tcp://0.0.0.0:6001'}",
            "2: rpc.listen: the address can be reached from other machines",
        ),
        ("rpc: {listen: 'tcp://:6001'}", "2: rpc.listen: the address can be reached from other machines"),
        ("rpc: tcp://127.0.0.1:6001", "2: rpc: a section with keys is expected here"),
        ("rpc: {Listen: '', listen: ''}", "2: rpc.listen: the key is given twice; remove one of the two"),
        ("rpc: {'a b: c': 1}", "2: rpc: a key that is no name; check indentation and quotes"),
        ("status: {}", "2: status.address: the key is required"),
        ("status: {address: x}", "2: status.address: not an address: there is no port"),
        (
            "status: {address: 'a:1', check_timeout: 0}",
            "2: status.check_timeout: the value is too small; write 1 or more",
        ),
        (
            "status: {address: 'a:1', unavailable_status_code: 99}",
            "2: status.unavailable_status_code: the value is too small",
        ),
        ("server: {}", "2: server.command: the key is required"),
        ("server: {command: []}", "2: server.command: the command is empty"),
        ("server: {command: ' '}", "2: server.command: the command is empty"),
        ("server: {command: {a: b}}", "2: server.command: a command is a list or a text"),
        ("server: {command: [php, [a]]}", "2: server.command: a list of single texts is expected here"),
        ("server: {command: [a], relay: pipe}", "2: server.relay: not an address"),
        ("server: {command: [a], env: [A=1]}", "2: server.env: variables with values are expected here"),
        (
            "server: {command: [a], env: [{A: 1}, B]}",
            "2: server.env: variables with values are expected here",
        ),
        (
            "server: {command: [a], env: [{A: 1}, {a: 2}]}",
            "2: server.env.a: the variable is given twice, but for case",
        ),
        ("server: {command: [a], env: {A: [1]}}", "2: server.env.A: a single text is expected here"),
        (
            "server: {command: [a], env: {A: 1, a: 2}}",
            "2: server.env.a: the variable is given twice, but for case",
        ),
        (
            "server: {command: [a], env: {A=B: 1}}",
            "2: server.env: the name of a variable holds = or a zero byte",
        ),
        ("server: {command: [a], on_init: {}}", "2: server.on_init.command: the key is required"),
        (
            "jobs: {pool: {num_workers: 1}}",
            "2: jobs.pool.command: there is no command to start the workers of jobs.pool with",
        ),
        (
            "jobs: {pool: {command: [a], num_workers: 2, quorum: 3}}",
            "2: jobs.pool.quorum: the quorum can never be reached",
        ),
        (
            "jobs: {pool: {command: [a], max_surge: 0}}",
            "2: jobs.pool.max_surge: with 0 here and max_unavailable 0 no worker could ever be replaced",
        ),
        (
            "jobs: {pool: {command: [a], autoscale: {min: 5, max: 4}}}",
            "2: jobs.pool.autoscale.min: above max (4)",
        ),
        (
            "jobs: {pool: {command: [a], warmup: [/a]}}",
            "2: jobs.pool.warmup: these workers answer no HTTP requests",
        ),
        (
            "http: {address: ':0', pool: {command: [a], warmup: [/a, b]}}",
            "2: http.pool.warmup: 'b' is no request path",
        ),
        ("jobs: {pools: {}, pool: {command: [a]}}", "2: jobs.pools: named pools are not available"),
        (
            "jobs: {pool: {command: [a]}, consume: [x]}",
            "2: jobs.consume[0]: there is no pipeline of this name; declare it",
        ),
        ("jobs: {pool: {command: [a]}, consume: {x: 1}}", "2: jobs.consume: a list is expected here"),
        ("jobs: {pool: {command: [a]}, consume: [~]}", "2: jobs.consume: a member of the list is empty"),
        (
            "jobs: {pool: {command: [a]}, pipelines: [x]}",
            "2: jobs.pipelines: a section with names is expected here",
        ),
        ("jobs: {pool: {command: [a]}, pipelines: {x: }}", "2: jobs.pipelines.x.driver: the key is required"),
        (
            "jobs: {pool: {command: [a]}, pipelines: {x: {driver: boltdb}}}",
            '2: jobs.pipelines.x.driver: unknown jobs driver "boltdb"',
        ),
        (
            "jobs: {pool: {command: [a]}, pipelines: {x: {driver: memory, config: {prefech: 1}}}}",
            "2: jobs.pipelines.x.config.prefech: unknown key; did you mean prefetch?",
        ),
        (
            "jobs: {pool: {command: [a]}, pipelines: {x: {driver: memory, config: {prefetch: 0}}}}",
            "2: jobs.pipelines.x.config.prefetch: the value is too small",
        ),
        (
            "jobs: {pool: {command: [a]}, pipelines: {x: {driver: memory}, X: {driver: memory}}}",
            "2: jobs.pipelines.X: the name is given twice, but for case",
        ),
        (
            "jobs: {pool: {command: [a]}, pipelines: {a b: {driver: memory}}}",
            "2: jobs.pipelines: a name with characters",
        ),
        (
            "logs: {mode: yes}",
            '2: logs.mode: not a known value "yes"; use one of: none, off, production, development, raw',
        ),
        ("logs: {level: [debug]}", "2: logs.level: not a known value"),
        (
            "otel: {exporter: zipkin}",
            "2: otel.exporter: the zipkin exporter is not available in this version of Trailboss",
        ),
        (
            "otel: {exporter: jaeger}",
            "2: otel.exporter: the jaeger exporter is not available in this version of Trailboss",
        ),
        (
            "http: {address: ':1', codec: msgpack}",
            "2: http.codec: requests are not written as msgpack, which gains next to nothing over json",
        ),
        (
            "endure: {grace_period: 30}",
            '2: endure.grace_period: a duration without a unit "30"; add a unit, for example 30s',
        ),
        ("plugins: {status: true}", "2: plugins.status: a section with keys is expected here"),
        ("rpc.x.y: {}", "2: rpc.x: unknown key"),
    ],
)
def test_each_mistake_has_its_line(folder: Folder, text: str, line: str) -> None:
    """One mistake gives one line: file, line, key, what is wrong and what to do."""
    lines = folder.refuse(HEAD + text + "\n")

    assert len(lines) == 1
    assert lines[0].startswith(f".rr.yaml:{line}")


@pytest.mark.parametrize("name", sorted(UNAVAILABLE_SECTIONS))
def test_sections_of_missing_plugins_are_named(folder: Folder, name: str) -> None:
    """A RoadRunner section that Trailboss has no plugin for is one clear error, never silence."""
    lines = folder.refuse(f"{HEAD}{name}: {{address: x}}\n")

    assert [f".rr.yaml:2: {name}: {'; '.join(UNAVAILABLE_SECTIONS[name])}"] == lines
    assert (
        ".rr.yaml:2: kv: the kv plugin is not available in this version of Trailboss"
        in folder.refuse(HEAD + "KV: {}\n")[0]
    )


def test_all_errors_of_all_files_come_at_once(folder: Folder) -> None:
    """Problems of the root, of includes, of flags and of a broken file are reported together, in order."""
    folder.write("version: '3'\nrpc: {listn: 1}\n", "a.yaml")
    folder.write("version: '3'\nlogs: [\n", "b.yaml")
    lines = folder.refuse(
        HEAD
        + "include: [a.yaml, b.yaml, none.yaml]\nstatus: {}\nkv: {}\nendure: {grace_period: '${}', x: 1}\n",
        "otel.exporter=zipkin",
        "nonsense",
    )

    assert [line.split(": ")[0] for line in lines] == [
        ".rr.yaml:3",
        ".rr.yaml:4",
        ".rr.yaml:5",
        ".rr.yaml:5",
        "a.yaml:2",
        "b.yaml:3",
        "none.yaml",
        "-o",
        "-o",
    ]


def test_a_flood_of_errors_is_cut(folder: Folder) -> None:
    """A hundred lines are enough; the last says that there are more."""
    lines = folder.refuse(HEAD + "rpc:\n" + "".join(f"  key{n}: 1\n" for n in range(5000)))

    assert len(lines) == 101
    assert "too many errors" in lines[-1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("rpc: {}\n", '.rr.yaml:1: version: the version of the format is missing; write version: "3"'),
        ("version: '2.7'\n", '.rr.yaml:1: version: 2.7 configurations are not supported; write version: "3"'),
        ("version: 2.7\n", '.rr.yaml:1: version: 2.7 configurations are not supported; write version: "3"'),
        ("version: '4'\n", ".rr.yaml:1: version: not a version of the format that is supported"),
        ("version: 3.0\n", ".rr.yaml:1: version: not a version of the format that is supported"),
        ("version: [3]\n", ".rr.yaml:1: version: not a version of the format that is supported"),
        ("- a\n", ".rr.yaml:1: the file is not a list of sections"),
        ("text\n", ".rr.yaml:1: the file is not a list of sections"),
        ("", ".rr.yaml:1: version: the version of the format is missing"),
    ],
)
def test_versions_that_are_refused(folder: Folder, text: str, line: str) -> None:
    """Only "3" is a version; what is not a map of sections says so."""
    lines = folder.refuse(text)

    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_an_unquoted_version_is_accepted_with_a_note(folder: Folder) -> None:
    """RoadRunner refuses `version: 3`; Trailboss takes it and says so."""
    config = folder.load("version: 3\n")

    assert config.version == "3"
    assert [(note.line, note.key) for note in config.notes] == [(1, "version")]


def test_an_empty_file_with_flags_is_octanes_way(folder: Folder) -> None:
    """Everything may come by -o; an empty file without version passes only where the command says so."""
    config = folder.load(
        "",
        "version=3",
        "server.command=/usr/bin/php,/my app/vendor/bin/roadrunner-worker",
        "jobs.pool.num_workers=0",
        "jobs.pool.supervisor.exec_ttl=30s",
        "rpc.listen=tcp://127.0.0.1:6001",
        "logs.mode=production",
        "logs.output=stdout",
        "logs.encoding=json",
    )

    assert config.server is not None
    assert config.jobs is not None
    assert config.server.command == ("/usr/bin/php", "/my app/vendor/bin/roadrunner-worker")
    assert config.jobs.pool.num_workers == 0
    assert config.jobs.pool.supervisor.exec_ttl == 30.0
    assert config.rpc.listen == "tcp://127.0.0.1:6001"
    assert config.logs.output == ("stdout",)
    assert (
        folder.load("", "rpc.listen=tcp://127.0.0.1:1", require_version=False).rpc.listen
        == "tcp://127.0.0.1:1"
    )
    assert folder.load("", require_version=False).rpc == RpcConfig()
    folder.refuse("", "rpc.listen=tcp://127.0.0.1:1")
    folder.refuse("rpc: {}\n", require_version=False)


@pytest.mark.parametrize(
    ("override", "listen"),
    [
        ("rpc.listen=unix:///a", "unix:///a"),
        ("RPC.Listen=unix:///a", "unix:///a"),
        ('rpc.listen="unix:///a"', "unix:///a"),
        ("rpc.listen='unix:///a'", "unix:///a"),
        ("rpc.listen=`unix:///a`", "unix:///a"),
        ("rpc.listen=''", ""),
        ("rpc.listen=unix://${X}", "unix:///x"),
        ("rpc.listen=unix:///a=b", "unix:///a=b"),
        (" rpc.listen = unix:///a ", "unix:///a"),
    ],
)
def test_forms_of_an_override(folder: Folder, override: str, listen: str) -> None:
    """Quotes, variables, case and blanks; it wins over the file."""
    config = folder.load(HEAD + "Rpc: {listen: 'unix:///file'}\n", override, environ={"X": "/x"})

    assert listen == config.rpc.listen


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("rpc.listen", "-o: an override that is not key=value; write -o key=value"),
        ("=x", "-o: an override that is not key=value"),
        ("rpc..listen=x", "-o: an override that is not key=value"),
        ("rpc.listen=", "-o: rpc.listen: the value is empty"),
        ("rpc.max_connections=x", '-o: rpc.max_connections: not a whole number "x"'),
        ("rpc=x", "-o: rpc: a section with keys is expected here"),
        ("rpc.listen.x=1", "-o: rpc.listen: a single text is expected here"),
        (".".join("a" * 99) + "=1", "-o: an override that is not key=value"),
    ],
)
def test_overrides_that_are_refused(folder: Folder, override: str, line: str) -> None:
    """A bad flag is an error like one in a file, with -o for the file."""
    lines = folder.refuse(HEAD, override)

    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_later_overrides_win_and_lists_split(folder: Folder) -> None:
    """-o is repeatable; a list splits at commas; a section that was a scalar is replaced."""
    config = folder.load(
        HEAD + SERVER + "rpc: ~\n", "rpc.enabled=true", "rpc.enabled=off", "logs.output=stdout, a.log"
    )

    assert config.rpc.enabled is False
    assert config.logs.output == ("stdout", "a.log")


def test_dotted_keys_stand_for_nested_ones(folder: Folder) -> None:
    """`pool.debug: true` works inside a section, meets nested keys and flags, and never touches variable names."""
    config = folder.load(
        HEAD
        + "server: {command: [a], env: {a.b: x}}\nrpc.ready_timeout: 1s\n"
        + "jobs:\n  pool.debug: true\n  pool: {num_workers: 2}\n  pool.supervisor.ttl: 5s\n  pipelines: {x.driver: memory}\n",
        "jobs.pool.num_workers=3",
    )

    assert config.jobs is not None
    assert config.server is not None
    assert (
        config.jobs.pool.debug,
        config.jobs.pool.num_workers,
        config.jobs.pool.supervisor.ttl,
    ) == (True, 3, 5.0)
    assert config.rpc.ready_timeout == 1.0
    assert list(config.jobs.pipelines) == ["x"]
    assert config.server.env == {"A.B": "x"}
    lines = folder.refuse(HEAD + SERVER + "jobs:\n  pool: {debug: true}\n  pool.debug: false\n")
    assert lines == [
        ".rr.yaml:5: jobs.pool.debug: the key is given twice, or is no dotted name; keep one of the two"
    ]


def test_variables_as_a_list_of_pairs(folder: Folder) -> None:
    """The form that many files for Symfony have; RoadRunner merges the maps of the list."""
    config = folder.load(
        HEAD
        + "server:\n  command: php worker.php\n  env:\n    - app_runtime: A\\B\n    - {C: '${X}', d.e: 1}\n    - F: false\n",
        environ={"X": "x"},
    )

    assert config.server is not None
    assert config.server.env == {"APP_RUNTIME": "A\\B", "C": "x", "D.E": "1", "F": "0"}


def test_variables_reach_every_text(folder: Folder) -> None:
    """Maps in lists, numbers, switches and durations take variables; unset ones give the default and a note."""
    config = folder.load(
        HEAD
        + "server: {command: ['${PHP}', '$$x', '${SECRET}'], env: {T: 'a${NO}b'}}\n"
        + "rpc: {max_connections: '${N}', enabled: '${ON:-yes}', ready_timeout: '${NO}', max_frame_size: '${NO}'}\n"
        + "logs: {level: '${LEVEL:-info}'}\n",
        environ={"PHP": "php8", "N": "7", "SECRET": "$N${N}"},
    )

    assert config.server is not None
    assert config.server.command == ("php8", "$x", "$N${N}")
    assert config.server.env == {"T": "ab"}
    assert (
        config.rpc.max_connections,
        config.rpc.enabled,
        config.rpc.ready_timeout,
        config.rpc.max_frame_size,
    ) == (7, True, 5.0, 64)
    assert config.logs.level == "info"
    assert sorted(note.key for note in config.notes) == [
        "rpc.max_frame_size",
        "rpc.ready_timeout",
        "server.env.T",
    ]
    assert all("NO is not set" in note.message for note in config.notes)


def test_values_from_the_environment_are_never_repeated(folder: Folder) -> None:
    """An error about an expanded value names the key, not the value."""
    text = (
        HEAD
        + "rpc: {max_connections: $S, ready_timeout: $S, enabled: $S, listen: $S}\nlogs: {level: $S}\nstatus: {address: $S}\n"
    )
    lines = folder.refuse(text, environ={"S": "hunter2"})

    assert len(lines) == 6
    assert "hunter2" not in str(lines)


def test_includes_replace_sections(folder: Folder) -> None:
    """Later files win by whole sections, -o wins over all, paths are relative to the including file first."""
    (folder.path / "conf").mkdir()
    (folder.path / "work").mkdir()
    folder.write(
        HEAD + "rpc: {max_connections: 5, ready_timeout: 9s}\ninclude: [a.yaml, b.yaml]\n", "conf/rr.yaml"
    )
    folder.write(HEAD + "rpc: {ready_timeout: 2s}\nlogs: {level: info}\ninclude: [zzz]\n", "conf/a.yaml")
    folder.write(HEAD + "LOGS: {level: $LEVEL}\n", "work/b.yaml")
    folder.write(HEAD + "logs: {level: panic}\n", "work/a.yaml")
    config = folder.load(
        None,
        "rpc.call_timeout=4s",
        path=str(folder.path / "conf/rr.yaml"),
        workdir=str(folder.path / "work"),
        environ={"LEVEL": "error"},
    )

    assert config.rpc == RpcConfig(ready_timeout=2.0, call_timeout=4.0)
    assert config.logs.level == "error"
    assert [os.path.basename(file) for file in config.source.files] == ["rr.yaml", "a.yaml", "b.yaml"]
    assert config.source.working_directory == str(folder.path / "work")
    assert [note.key for note in config.notes] == ["include"]


def test_include_by_flag_splits_at_blanks(folder: Folder) -> None:
    """-o include takes names separated by white space and replaces the file's own list; -o still beats the files."""
    folder.write('{"version": "3", "rpc": {"max_connections": 2}}', "a.json")
    folder.write(HEAD + "logs: {level: info}\n", "b.yaml")
    config = folder.load(HEAD + "include: none.yaml\n", "include=a.json b.yaml", "logs.level=warn")

    assert (config.rpc.max_connections, config.logs.level) == (2, "warn")


@pytest.mark.parametrize(
    ("root", "included", "line"),
    [
        ("include: [a.yaml]", "rpc: {}\n", "a.yaml:1: version: an included file without version"),
        (
            "include: [a.yaml]",
            "version: '2.7'\n",
            "a.yaml:1: version: not the version of the file that includes it",
        ),
        ("include: [none.yaml]", "", "none.yaml: cannot be read: No such file or directory"),
        ("include: {a: b}", "", ".rr.yaml:2: include: not a list of files"),
        ("include: ['']", "", ".rr.yaml:2: include: a name of a file that is empty"),
        ("include: " + str(["a"] * 65), "", ".rr.yaml:2: include: more than 64 files"),
        ("include: [.]", "", ".: is a folder, not a file"),
    ],
)
def test_includes_that_are_refused(folder: Folder, root: str, included: str, line: str) -> None:
    """Versions must agree and names must be files."""
    folder.write(included, "a.yaml")
    lines = folder.refuse(f"{HEAD}{root}\n")

    assert len(lines) == 1
    assert lines[0].replace(str(folder.path), ".").startswith(line)


def test_the_default_file_is_searched_in_the_working_directory(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """.rr.yaml first, then trailboss.yaml; without either the error says what was looked for and where."""
    monkeypatch.chdir(folder.path)
    with pytest.raises(
        ConfigError, match=r"there is neither \.rr\.yaml nor trailboss\.yaml in .*; create one"
    ):
        load(LoadRequest(environ={}))
    folder.write(HEAD, "trailboss.yaml")
    assert load(LoadRequest(environ={})).source.path == str(folder.path / "trailboss.yaml")
    folder.write(HEAD, ".rr.yaml")
    config = load(LoadRequest(environ={}))
    assert config.source.path == str(folder.path / ".rr.yaml")
    assert config.source.files == (".rr.yaml",)
    with pytest.raises(ConfigError, match="there is no such folder"):
        load(LoadRequest(workdir="none", environ={}))


def test_the_working_directory_is_the_folder_of_the_file(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without -w the file's folder; with -w that folder, and a relative -c is relative to it."""
    (folder.path / "sub").mkdir()
    folder.write(HEAD, "sub/c.yaml")
    monkeypatch.chdir(folder.path)

    assert load(LoadRequest(path="sub/c.yaml", environ={})).source.working_directory == str(
        folder.path / "sub"
    )
    source = load(LoadRequest(path="c.yaml", workdir="sub", environ={})).source
    assert (str(folder.path / "sub"), str(folder.path / "sub/c.yaml")) == (
        source.working_directory,
        source.path,
    )


def test_dotenv_comes_before_the_file(folder: Folder) -> None:
    """Its variables are expanded and handed to the caller; existing ones are kept; $DOTENV_PATH wins."""
    folder.write("LEVEL=info\nN=1\n", "env")
    folder.write("LEVEL=error\n", "other")
    text = HEAD + "logs: {level: $LEVEL}\nrpc: {max_connections: '${N:-3}'}\n"
    config = folder.load(text, dotenv="env", environ={"N": "2"})
    assert (config.logs.level, config.rpc.max_connections, config.source.environment) == (
        "info",
        2,
        {"LEVEL": "info"},
    )
    config = folder.load(text, dotenv="env", environ={"DOTENV_PATH": "other"})
    assert (config.logs.level, config.rpc.max_connections) == ("error", 3)
    lines = folder.refuse(HEAD, dotenv="none")
    assert lines == ["none: cannot be read: No such file or directory; check the path and its permissions"]


@dataclasses.dataclass(frozen=True, slots=True)
class Inner:
    """A section inside of an extension's section."""

    size: int = key(1, "A number.", minimum=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """The section of a third-party plugin; some fields are declared without key()."""

    greeting: str = key(..., "A text.")
    every: Duration = key(1.0, "A duration.")
    ratio: float = 0.5
    names: list[str] = dataclasses.field(default_factory=list)
    inner: Inner = key(Inner, "A section.")
    extra: object = None
    numbers: tuple[int, ...] = ()
    table: Mapping[str, Inner] = key(dict, "Sections by name.")

    def __post_init__(self) -> None:
        """Refuse one value, as a plugin may."""
        if self.greeting == "bad":
            raise ValueError("a greeting should be friendly")


def test_third_party_sections_are_typed(folder: Folder) -> None:
    """A plugin's dataclass gets the same conversion, errors and dotted keys; other sections stay refused."""
    config = folder.load(
        HEAD
        + "Example:\n  greeting: hi\n  every: 2s\n  ratio: 1.5\n  names: a,b\n  inner.size: 3\n"
        + "  extra: {x: [1]}\n  numbers: [1, '2']\n  table: {t: {size: 4}}\n",
        sections={"example": Example},
    )

    assert config.extension("example", Example) == Example(
        every=2.0,
        ratio=1.5,
        names=["a", "b"],
        inner=Inner(3),
        extra={"x": [1]},
        numbers=(1, 2),
        table={"t": Inner(4)},
        greeting="hi",
    )
    assert config.extension("other", Example) is None
    with pytest.raises(TypeError):
        config.extension("example", Inner)
    lines = folder.refuse(
        HEAD + "example: {every: 5, ratio: x, inner: {size: 0}, numbers: [x]}\n",
        sections={"example": Example},
    )
    assert [line.split(": ")[1] for line in lines] == [
        "example.every",
        "example.ratio",
        "example.inner.size",
        "example.numbers[0]",
        "example.greeting",
    ]
    assert (
        "a greeting should be friendly"
        in folder.refuse(HEAD + "example: {greeting: bad}\n", sections={"example": Example})[0]
    )
    assert "did you mean example?" in folder.refuse(HEAD + "exampel: {}\n", sections={"example": Example})[0]
    assert (
        folder.load(HEAD + "kv: {greeting: x}\n", sections={"kv": Example}).extension("kv", Example)
        is not None
    )


def test_the_merged_values_are_kept(folder: Folder) -> None:
    """rpc.Config needs what was written with flags and variables applied; places know every key's line."""
    config = folder.load(HEAD + "rpc:\n  listen: unix://$X\n", "logs.level=info", environ={"X": "/s"})

    assert config.source.merged == {"version": "3", "rpc": {"listen": "unix:///s"}, "logs": {"level": "info"}}
    assert config.source.problem("rpc.listen.deeper", "m").line == 3
    assert config.source.problem("jobs", "m", "r").line == 0
    assert "/s" not in repr(config.source)


def test_keys_without_effect_are_noted(folder: Folder) -> None:
    """What RoadRunner has and Trailboss ignores is accepted with a note that says so."""
    config = folder.load(
        HEAD
        + "server: {command: 'php \"my worker.php\"', relay_timeout: 5s}\nendure: {print_graph: true, watchdog_sec: 3}\n"
        + "jobs: {num_pollers: 3, pool: {supervisor: {watch_tick: 1s}}}\notel: {service_name: x}\n"
    )

    assert sorted(note.key for note in config.notes) == [
        "endure.print_graph",
        "endure.watchdog_sec",
        "jobs.num_pollers",
        "jobs.pool.supervisor.watch_tick",
        "otel.service_name",
        "server.command",
        "server.relay_timeout",
    ]


def test_from_mapping_checks_values_without_a_file() -> None:
    """What comes by RPC as texts is converted by the same rules."""
    assert from_mapping(MemoryPipelineConfig, {"priority": "3", "prefetch": 5}) == MemoryPipelineConfig(3, 5)
    with pytest.raises(ConfigError, match=r"^configuration: x\.prefetch: not a whole number"):
        from_mapping(MemoryPipelineConfig, {"prefetch": "many"}, "x")


def test_problem_texts_stay_on_one_line(folder: Folder) -> None:
    """A name of a file with a newline in it cannot break the line."""
    folder.write("rpc: {}\n", "a\nb.yaml")

    assert folder.refuse(None, path=str(folder.path / "a\nb.yaml"))[0].startswith("a\\nb.yaml:1: version")


def test_importing_the_loader_is_light() -> None:
    """No command line, no trio, no log library: `trailboss --version` and `reset` stay fast."""
    program = (
        "import sys, trailboss.config; "
        "print([m for m in ('rich', 'click', 'trio', 'structlog', 'socket', 'asyncio', 'trailboss.config.defaults') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )

    assert found.stdout.strip() == "[]"


def test_a_config_can_be_made_without_a_file() -> None:
    """Tests of other parts build sections directly."""
    assert Config().rpc == RpcConfig()
    assert Config(jobs=None).source.working_directory == ""


def test_the_path_shown_is_what_a_person_would_type(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the current folder it is relative, elsewhere absolute."""
    folder.write(HEAD + "x: 1\n")
    with pytest.raises(ConfigError) as caught:
        load(LoadRequest(path=str(folder.path / ".rr.yaml"), environ={}))
    assert str(caught.value).startswith(f"{folder.path}/.rr.yaml:2: x")
    monkeypatch.chdir(folder.path.parent)
    with pytest.raises(ConfigError) as caught:
        load(LoadRequest(path=str(folder.path / ".rr.yaml"), environ={}))
    assert str(caught.value).startswith(f"{Path(folder.path.name) / '.rr.yaml'}:2: x")
