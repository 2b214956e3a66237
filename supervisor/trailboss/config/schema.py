"""What a configuration says, as frozen dataclasses: one class per section, one field per key.

Every key is declared by `key(default, doc, unit)`. From these declarations come the strict loader, `trailboss config
--defaults`, the JSON Schema and docs/configuration.md, so a key exists in all of them or in none. Field names are
RoadRunner's key names. Durations are floats in seconds, sizes are in the unit the key is written in (megabytes mostly).

A value of 0 that means "work it out" is kept as it was written; the `resolved_*` properties say what it comes to.
The classes hold values only; what belongs together across sections is judged in rules.py, and nothing here does I/O.
"""

# ruff: noqa: RUF009  key() is the field declaration itself, as dataclasses.field is
from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Annotated, Any, Final, Literal, TypeVar

from trailboss.config.problems import Problem
from trailboss.config.values import (
    check_address,
    check_http_address,
    check_listen,
    check_log_target,
    check_processors,
    check_relay,
    check_subnet,
    check_umask,
)

__all__ = [
    "AS_ALLOCATE_TIMEOUT",
    "PIPELINE_DRIVERS",
    "UNAVAILABLE_KEYS",
    "UNAVAILABLE_SECTIONS",
    "AutoscaleConfig",
    "CanaryConfig",
    "CollectorConfig",
    "Command",
    "Config",
    "ConfigSource",
    "CorsConfig",
    "Duration",
    "DynamicAllocatorConfig",
    "EndureConfig",
    "Environment",
    "FileLoggerConfig",
    "HeadersConfig",
    "Http2Config",
    "HttpConfig",
    "HttpLimitsConfig",
    "HttpSslConfig",
    "JobsConfig",
    "JobsOptions",
    "Kind",
    "LogChannelConfig",
    "LogsConfig",
    "Megabytes",
    "MemoryPipelineConfig",
    "MetricsConfig",
    "OnInitConfig",
    "OtelConfig",
    "OtelResource",
    "PipelineConfig",
    "PluginOptions",
    "PoolConfig",
    "ProcessConfig",
    "QuarantineConfig",
    "ReloadConfig",
    "RpcConfig",
    "SecondsOrDuration",
    "SendfileConfig",
    "ServerConfig",
    "StaticConfig",
    "StatusConfig",
    "SupervisorConfig",
    "UploadsConfig",
    "Warmup",
    "WarmupSteps",
    "key",
    "section_keys",
]

T = TypeVar("T")


class Kind(Enum):
    """How the text of a value becomes the field's Python value where the Python type alone does not say it."""

    DURATION = "duration"
    SECONDS_OR_DURATION = "seconds_or_duration"
    MEGABYTES = "megabytes"
    COMMAND = "command"
    WARMUP = "warmup"
    ENVIRONMENT = "environment"


Duration = Annotated[float, Kind.DURATION]
"""Seconds; written with a unit (`300ms`, `10s`, `1h3m`), a bare number other than 0 is refused."""

SecondsOrDuration = Annotated[float, Kind.SECONDS_OR_DURATION]
"""Seconds; a bare integer means seconds (RoadRunner's three keys of that kind), a duration is accepted as well."""

Megabytes = Annotated[int, Kind.MEGABYTES]
"""A whole number of megabytes (1,048,576 bytes each)."""

Command = Annotated[tuple[str, ...], Kind.COMMAND]
"""An argument vector; written as a list, or as a string that is split at spaces without quoting and without a shell."""


@dataclass(frozen=True, slots=True)
class Warmup:
    """What a new worker does before it counts: requests to itself, or a command that runs beside it."""

    paths: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.paths or self.command)


WarmupSteps = Annotated[Warmup, Kind.WARMUP]
"""A list of request paths, each beginning with /, or a text that is a command as in `Command`."""

Environment = Annotated[Mapping[str, str], Kind.ENVIRONMENT]
"""Environment variables; the names are upper-cased as RoadRunner does."""

LogMode = Literal["none", "off", "production", "development", "raw"]
LogLevel = Literal["panic", "error", "warn", "info", "debug"]
LogEncoding = Literal["", "console", "json"]

AS_ALLOCATE_TIMEOUT: Final = -1.0
"""Stands for "as allocate_timeout" until a PoolConfig exists; no PoolConfig ever shows it."""


def key(
    default: object,
    doc: str,
    unit: str = "",
    *,
    default_text: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    check: Callable[[str], tuple[str, str] | None] | None = None,
    note: str = "",
    unavailable: Mapping[str, tuple[str, str]] | None = None,
) -> Any:  # the one Any: a dataclass field stands in for the value, as dataclasses.field does
    """Declare one configuration key; `default` is a value, a factory (dict, a section class) or `...` for "required".

    `default_text` replaces the default in documents where the default depends on other keys. `minimum` and `maximum`
    bound numbers. `check` judges one string: None, or (what is wrong, what to do). `note` marks a key that is accepted
    for compatibility; whoever writes it finds the note in the log. `unavailable` names values RoadRunner has and Trailboss
    has not, each with (what is wrong, what to do).
    """
    metadata = {
        "doc": doc,
        "unit": unit,
        "default_text": default_text,
        "minimum": minimum,
        "maximum": maximum,
        "check": check,
        "note": note,
        "unavailable": unavailable or {},
    }
    if default is ...:
        return field(metadata=metadata, kw_only=True)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def cpu_count() -> int:
    """Return how many processors this process may use (at least 1); the affinity mask counts, as in RoadRunner."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class RpcConfig:
    """`rpc`: the port that workers and the command line talk to."""

    enabled: bool = key(True, "false turns the RPC port off; workers then get no RR_RPC.")
    listen: str = key(
        "",
        "tcp://host:port or unix://path; empty: a private unix socket (0600) in $RUNTIME_DIRECTORY, "
        "$XDG_RUNTIME_DIR/trailboss or a private folder of the temp directory.",
        check=check_listen,
    )
    allow_remote: bool = key(
        False, "Allow `listen` on an address that is not loopback; any peer may then call."
    )
    ready_timeout: Duration = key(
        5.0, "How long a call waits for the start-up gate before `service not ready`; 0s refuses at once."
    )
    call_timeout: Duration = key(60.0, "Longest run of one call; methods with a limit of their own use that.")
    idle_timeout: Duration = key(0.0, "Close a connection that is silent for this long; 0s: never.")
    read_timeout: Duration = key(30.0, "A frame that has begun must be complete within this time.")
    max_connections: int = key(1024, "Connections at the same time; more are closed at once.", minimum=1)
    max_frame_size: Megabytes = key(64, "Largest frame that is accepted.", "MB", minimum=1, maximum=4095)
    max_bytes_in_flight: Megabytes = key(
        256, "Bytes of calls and replies held for all connections together.", "MB", minimum=1
    )
    policy: Mapping[str, tuple[Literal["own_worker", "any_worker", "operator", "on_init"], ...]] = key(
        dict,
        'Who may call what: patterns of methods, such as "jobs.*", each with a list of own_worker, any_worker, operator and '
        "on_init; the first that matches decides, what none matches everybody may call.",
    )


@dataclass(frozen=True, slots=True)
class OnInitConfig:
    """`server.on_init`: a command that runs once during start, when RPC is open and before any worker boots."""

    command: Command = key(..., "Command to run; a list, or a string split at spaces.")
    exec_timeout: Duration = key(60.0, "The command and its children are killed after this time.")
    exit_on_error: bool = key(
        False, "Fail the start when the command fails or times out; otherwise log it and go on."
    )
    env: Environment = key(dict, "Additional environment variables; the process's own environment wins.")
    user: str = key("", "Name of the user the command runs as; empty: as Trailboss.")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """`server`: how workers are started."""

    command: Command = key(
        (),
        "Command of every worker; a list, or a string split at spaces. `<plugin>.pool.command` overrides it.",
    )
    user: str = key("", "Name of the user that workers run as; needs root. Empty: as Trailboss.")
    group: str = key("", "Name of the group that workers run as; empty: the user's own group.")
    env: Environment = key(dict, "Environment variables of every worker, added to Trailboss's own.")
    relay: str = key("pipes", "pipes, tcp://host:port or unix://path.", check=check_relay)
    relay_timeout: Duration = key(
        60.0,
        "Accepted, no effect (nor in RoadRunner since 2024.1).",
        note="has no effect; boot_timeout of the pool decides",
    )
    on_init: OnInitConfig | None = key(None, "A command that runs once during start.")
    python: str = key(
        "",
        "Interpreter for Python workers; used when the command begins with `trailboss-worker`. Empty: Trailboss's own.",
    )
    boot_parallelism: int = key(
        0,
        "Workers that boot at the same time, over all pools; 0: 4 x CPUs.",
        default_text="4 x CPUs",
        minimum=0,
    )
    stderr_line_max: int = key(
        16384, "Longest line of worker stderr in the log; the rest of the line is cut.", "bytes", minimum=256
    )
    stderr_rate: int = key(
        0, "Lines of stderr logged per second and worker; more are counted only. 0: all.", minimum=0
    )

    @property
    def resolved_boot_parallelism(self) -> int:
        """How many workers may boot at the same time."""
        return self.boot_parallelism or 4 * cpu_count()


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """`<plugin>.pool.supervisor`: limits of one worker; 0 turns a limit off."""

    watch_tick: Duration = key(
        5.0,
        "Accepted, no effect: limits have exact deadlines.",
        note="has no effect; limits have exact deadlines",
    )
    ttl: Duration = key(0.0, "Greatest age; an older worker is replaced when it is idle.")
    idle_ttl: Duration = key(0.0, "Greatest idle time after the first use; the worker is then replaced.")
    exec_ttl: Duration = key(0.0, "Longest execution; the worker is killed in the middle of it.")
    slow_log: Duration = key(
        0.0, "An execution that takes longer is logged, once, with what its worker is doing; it goes on."
    )
    term_signal: Literal["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1"] = key(
        "SIGTERM", "What a worker that is to be killed is sent first, where term_grace is set."
    )
    term_grace: Duration = key(
        0.0, "Time between term_signal and SIGKILL, both to its process group; 0: SIGKILL at once."
    )
    max_worker_memory: Megabytes = key(
        0, "Memory; a larger worker is replaced in its turn, after what it runs.", "MB", minimum=0
    )
    memory_measure: Literal["rss", "pss"] = key(
        "rss",
        "What max_worker_memory counts: resident memory, or its share of what it has in common with others (pss).",
    )


@dataclass(frozen=True, slots=True)
class CanaryConfig:
    """`<plugin>.pool.canary`: how long the first worker of a reset is watched before the others follow."""

    window: Duration = key(0.0, "Time beside the old workers before the reset goes on; 0: none.")
    error_rate: float = key(
        0.05,
        "The reset is given up where the share of failed executions is above the old workers' by more than this.",
        minimum=0,
        maximum=1,
    )
    latency_factor: float = key(
        3.0,
        "And where its executions take more than so many times as long on average; 0: not looked at.",
        minimum=0,
    )


@dataclass(frozen=True, slots=True)
class QuarantineConfig:
    """`<plugin>.pool.quarantine`: requests that kill one worker after the other are refused for a while (jobs: max_attempts)."""

    deaths: int = key(3, "Deaths of different workers over the same execution; 0: off.", minimum=0)
    within: Duration = key(60.0, "Deaths further apart than this do not add up.")
    expiry: Duration = key(600.0, "How long it is refused.")


@dataclass(frozen=True, slots=True)
class AutoscaleConfig:
    """`<plugin>.pool.autoscale`: let the number of workers follow the load."""

    min: int = key(0, "Fewest workers.", default_text="num_workers", minimum=0, maximum=10_000)
    max: int = key(..., "Most workers.", minimum=1, maximum=10_000)
    target_queue_time: Duration = key(0.1, "Workers are added when an execution has waited this long.")
    up_step: int = key(
        0, "Workers added at once.", default_text="a quarter of those there are", minimum=0, maximum=1000
    )
    down_after: Duration = key(30.0, "One worker is given up after the pool was mostly idle for this long.")


@dataclass(frozen=True, slots=True)
class DynamicAllocatorConfig:
    """`<plugin>.pool.dynamic_allocator`: RoadRunner's keys for the same; autoscale has more."""

    max_workers: int = key(10, "Workers that may be added to num_workers.", minimum=1, maximum=100)
    spawn_rate: int = key(5, "Workers added at once.", minimum=1, maximum=100)
    idle_timeout: Duration = key(
        60.0, "One of them is given up after the pool was mostly idle for this long."
    )


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """`<plugin>.pool.process`: what the processes of this pool may use and do."""

    user: str = key("", "User of these workers.", default_text="server.user")
    group: str = key("", "Group of these workers.", default_text="server.group")
    umask: str = key(
        "", "Mode bits that new files do not get, in octal.", default_text="the server's", check=check_umask
    )
    nice: int = key(0, "Added to the nice value: larger yields to others.", minimum=-20, maximum=19)
    io_class: Literal["", "realtime", "best-effort", "idle"] = key("", "Scheduling class of disk access.")
    io_level: int = key(4, "Level within io_class; lower is sooner.", minimum=0, maximum=7)
    cpu_affinity: str = key(
        "", "Processors they may run on, such as 0-3,8; empty: all.", check=check_processors
    )
    rlimits: Mapping[str, str] = key(
        dict,
        "Limits as in prlimit(1): nofile, core, nproc, as, fsize, stack, cpu …: a number, unlimited, or soft:hard.",
    )
    oom_score_adj: int | None = key(
        None, "From -1000 (never) to 1000 (first): who goes when memory is out.", minimum=-1000, maximum=1000
    )
    no_new_privs: bool | None = key(
        None,
        "They never gain privileges, also not by setuid programs.",
        default_text="on where a user is set",
    )
    drop_capabilities: bool | None = key(
        None, "They can never have capabilities.", default_text="on where a user is set"
    )
    private_tmp: bool = key(
        False,
        "A folder of its own for temporary files of each worker (TMPDIR, TMP, TEMP), removed when it has ended.",
    )
    cgroup: bool | None = key(
        None,
        "A control group (v2) of its own for each worker, where this server may make some.",
        default_text="on where one of the next four is set",
    )
    memory_high: Megabytes = key(
        0,
        "Memory of one worker, children included, above which the kernel slows it down; 0: none.",
        "MB",
        minimum=0,
    )
    memory_max: Megabytes = key(
        0,
        "Memory of one worker, children included, above which the kernel kills it; 0: none.",
        "MB",
        minimum=0,
    )
    cpu_weight: int = key(
        0, "Share of CPU time against others, normally 100; 0: as it is.", minimum=0, maximum=10000
    )
    pids_max: int = key(
        0, "Processes and threads of one worker, children included; 0: any number.", minimum=0
    )


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """`<plugin>.pool`: the workers of one plugin."""

    debug: bool = key(
        False, "Start a fresh worker for every execution; all other keys but exec_ttl are ignored."
    )
    command: Command = key((), "Command of this pool's workers.", default_text="server.command")
    num_workers: int = key(0, "Workers; 0: one per CPU.", default_text="CPUs", minimum=0, maximum=10_000)
    max_jobs: int = key(0, "Executions before a worker is replaced (with a small jitter); 0: off.", minimum=0)
    max_queue_size: int = key(
        0,
        "Executions that may wait for a worker; more are refused at once.",
        default_text="4 x num_workers + 100",
        minimum=0,
    )
    allocate_timeout: Duration = key(60.0, "Feeds boot_timeout and queue_timeout where they are not given.")
    boot_timeout: Duration = key(
        AS_ALLOCATE_TIMEOUT,
        "From spawn to the end of the handshake of one worker.",
        default_text="allocate_timeout",
    )
    queue_timeout: Duration = key(
        AS_ALLOCATE_TIMEOUT,
        "Longest wait of an execution for a free worker.",
        default_text="allocate_timeout",
    )
    reset_timeout: Duration = key(60.0, "A reset waits this long for busy workers, then kills them.")
    stream_timeout: Duration = key(60.0, "Wait for the worker's confirmation after a stream was cancelled.")
    destroy_timeout: Duration = key(60.0, "Stop of the whole pool; workers still busy then are killed.")
    stop_timeout: Duration = key(10.0, "One worker's time between being told to stop and SIGKILL.")
    quorum: int | None = key(
        None,
        "Ready workers needed for the pool to count as up.",
        default_text="num_workers at the first start, 1 afterwards, 0 with debug",
        minimum=0,
    )
    max_frame_size: Megabytes = key(
        128, "Largest frame accepted from a worker.", "MB", minimum=1, maximum=4095
    )
    max_surge: int | None = key(
        None,
        "Workers above num_workers while a reset goes on; less where memory is short.",
        default_text="num_workers",
        minimum=0,
        maximum=10_000,
    )
    max_unavailable: int = key(
        0, "Workers that may be missing while a reset or recycling goes on.", minimum=0, maximum=10_000
    )
    warmup: WarmupSteps = key(
        Warmup,
        "What a new worker does before it counts: a list of request paths, or a command.",
        default_text="none",
    )
    warmup_timeout: Duration = key(30.0, "Longest warm-up of one worker.")
    canary: CanaryConfig = key(CanaryConfig, "How the first worker of a reset is watched.")
    on_exhausted: Literal["degrade", "exit"] = key(
        "degrade",
        "What follows when no worker is left and none boots: answer 503 and go on trying, or stop the server with exit "
        "code 1.",
    )
    quarantine: QuarantineConfig = key(QuarantineConfig, "What is refused because it kills workers.")
    autoscale: AutoscaleConfig | None = key(None, "Let the number of workers follow the load.")
    dynamic_allocator: DynamicAllocatorConfig | None = key(
        None, "RoadRunner's form of autoscale; not looked at beside it."
    )
    supervisor: SupervisorConfig = key(SupervisorConfig, "Limits of one worker.")
    process: ProcessConfig = key(ProcessConfig, "What its processes may use and do.")

    def __post_init__(self) -> None:
        """Give boot_timeout and queue_timeout the value of allocate_timeout where they were not written."""
        for name in ("boot_timeout", "queue_timeout"):
            if getattr(self, name) == AS_ALLOCATE_TIMEOUT:
                object.__setattr__(self, name, self.allocate_timeout)

    @property
    def resolved_num_workers(self) -> int:
        """How many workers the pool keeps."""
        return self.num_workers or cpu_count()

    @property
    def resolved_max_surge(self) -> int:
        """How many workers a reset may have above the pool's size."""
        return self.resolved_num_workers if self.max_surge is None else self.max_surge

    @property
    def resolved_autoscale(self) -> AutoscaleConfig | None:
        """How the number of workers follows the load, from whichever section says it; None: it does not."""
        workers = self.resolved_num_workers
        if self.debug:
            return None
        if self.autoscale is not None:
            return replace(self.autoscale, min=self.autoscale.min or min(workers, self.autoscale.max))
        if self.dynamic_allocator is not None:
            extra = self.dynamic_allocator
            return AutoscaleConfig(
                min=workers,
                max=workers + extra.max_workers,
                up_step=extra.spawn_rate,
                down_after=extra.idle_timeout,
            )
        return None

    @property
    def resolved_max_queue_size(self) -> int:
        """How many executions may wait for a worker."""
        return self.max_queue_size or 4 * self.resolved_num_workers + 100

    @property
    def resolved_quorum(self) -> int:
        """How many ready workers the first start needs."""
        if self.debug:
            return 0
        return self.resolved_num_workers if self.quorum is None else self.quorum

    @property
    def resolved_quorum_running(self) -> int:
        """How many ready workers the pool needs to count as up once it has been up."""
        if self.debug:
            return 0
        return 1 if self.quorum is None else self.quorum


@dataclass(frozen=True, slots=True)
class MemoryPipelineConfig:
    """`jobs.pipelines.<name>.config`: a queue in the server's own memory, lost with it."""

    priority: int = key(
        10, "Priority of jobs pushed without one; lower is more urgent.", minimum=-(2**63), maximum=2**63 - 1
    )
    prefetch: int = key(100_000, "Accepted, no effect: a job waits in one place only.", minimum=1)


PIPELINE_DRIVERS: Final[Mapping[str, type]] = {"memory": MemoryPipelineConfig}
"""Jobs drivers of this version and the dataclass of their `config`."""


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """`jobs.pipelines.<name>`: one queue. `config` holds the driver's keys, already checked and converted."""

    driver: str = key(..., "Driver of the pipeline: memory.")
    config: Mapping[str, object] = key(dict, "Keys of the driver.")


@dataclass(frozen=True, slots=True)
class JobsOptions:
    """`jobs.options`: limits of the start and the stop."""

    parallelism: int = key(10, "Pipelines started or stopped at the same time.", minimum=1)


@dataclass(frozen=True, slots=True)
class JobsConfig:
    """`jobs`: queues and the workers that consume them."""

    num_pollers: int = key(
        0,
        "Accepted, no effect (nor in RoadRunner).",
        note="has no effect; jobs are handed to workers without pollers",
    )
    pipeline_size: int = key(
        1_000_000, "Jobs the shared queue may hold; a push beyond is refused.", minimum=1
    )
    timeout: SecondsOrDuration = key(60.0, "Budget of each push, pause, resume, stat and stop.", minimum=1)
    options: JobsOptions = key(JobsOptions, "Further options.")
    pool: PoolConfig = key(PoolConfig, "Workers that run the jobs.")
    consume: tuple[str, ...] = key(
        (), "Pipelines that are consumed from the start; others are started by `resume`."
    )
    pipelines: Mapping[str, PipelineConfig] = key(dict, "Pipelines by name.")
    max_attempts: int = key(
        5,
        "Runs of a job before it becomes a dead letter: a run counts whose worker dies, takes longer than exec_ttl, or "
        "answers with an error frame or nonsense.",
        minimum=1,
    )
    retry_backoff: Duration = key(1.0, "Delay before the second run; it doubles with every further one.")
    retry_backoff_max: Duration = key(60.0, "Longest delay between two runs.")
    dead_letter_limit: int = key(10_000, "Dead letters kept per pipeline; the oldest goes first.", minimum=0)


@dataclass(frozen=True, slots=True)
class UploadsConfig:
    """`http.uploads`: files of multipart forms on their way to the worker."""

    dir: str = key("", "Folder of the temporary files; empty: the temp directory.")
    forbid: tuple[str, ...] = key((), "Extensions that are refused (upload error 8); it wins over allow.")
    allow: tuple[str, ...] = key((), "Extensions that are accepted; empty: all.")


@dataclass(frozen=True, slots=True)
class CorsConfig:
    """`http.headers.cors`: cross-origin requests; preflights are answered without a worker."""

    allowed_origin: tuple[str, ...] = key((), "Origins, `*` for any; one `*` inside a name is a wildcard.")
    allowed_origin_regex: str = key(
        "", "Regular expression an origin has to match; overrides allowed_origin."
    )
    allowed_headers: tuple[str, ...] = key((), "Request headers that are allowed, `*` for any.")
    allowed_methods: tuple[str, ...] = key((), "Methods that are allowed.", default_text="GET, POST, HEAD")
    allow_credentials: bool = key(False, "Allow cookies and other credentials.")
    exposed_headers: tuple[str, ...] = key((), "Response headers that scripts may read.")
    max_age: int = key(0, "How long a preflight may be remembered; 0: nothing is said.", "s", minimum=0)
    options_success_status: int = key(200, "Status of the answer to a preflight.", minimum=200, maximum=299)
    debug: bool = key(False, "Log why a cross-origin request was refused.")


@dataclass(frozen=True, slots=True)
class HeadersConfig:
    """`http.headers`: headers that are added, and cross-origin rules; the middleware `headers` carries them out."""

    request: Mapping[str, str] = key(dict, "Headers set on every request.")
    response: Mapping[str, str] = key(dict, "Headers set on every response.")
    underscores: Literal["drop", "allow"] = key(
        "drop",
        "What happens to request headers with an underscore in their name, which look the same as others to a worker; "
        "works without the middleware too.",
    )
    cors: CorsConfig | None = key(None, "Cross-origin rules.")


@dataclass(frozen=True, slots=True)
class StaticConfig:
    """`http.static`: files served without a worker; the middleware `static` carries it out."""

    dir: str = key(..., "Folder of the files; nothing outside is ever served, except what links_to names.")
    links_to: tuple[str, ...] = key(
        (), "Folders outside of dir that symbolic links in dir may lead to, for example storage/app/public."
    )
    forbid: tuple[str, ...] = key((), "Extensions that are never served; it wins over allow.")
    allow: tuple[str, ...] = key((), "Extensions that are served; empty: all.")
    calculate_etag: bool = key(False, "Send an ETag made from the content.")
    weak: bool = key(False, "Make the ETag a weak one, from name, size and time instead of the content.")
    request: Mapping[str, str] = key(dict, "Headers set on requests for files.")
    response: Mapping[str, str] = key(dict, "Headers set on responses with files.")
    serve_dotfiles: bool = key(False, "Serve files and folders whose name begins with a dot.")
    serve_php: bool = key(False, "Serve .php files as text.")


@dataclass(frozen=True, slots=True)
class SendfileConfig:
    """`http.sendfile`: files that a worker names in X-Sendfile; the middleware `sendfile` carries it out."""

    root: str = key("", "Folder the files have to be in; empty: the working directory.")


@dataclass(frozen=True, slots=True)
class HttpLimitsConfig:
    """`http.limits`: what one client may take, in bytes, time and number."""

    request_line: int = key(8192, "Longest request line; 414 beyond.", "bytes", minimum=64)
    head: int = key(
        65_536,
        "Longest head of a request, its line included; 431 beyond.",
        "bytes",
        minimum=256,
        maximum=1 << 20,
    )
    header_count: int = key(100, "Headers of one request; 431 beyond.", minimum=1, maximum=10_000)
    chunk_extension: int = key(
        1024, "Chunk extensions of one request in total; 400 beyond.", "bytes", minimum=0
    )
    head_timeout: Duration = key(
        10.0, "A head that has begun must be complete within this time, as must the first one; 408 beyond."
    )
    body_rate: int = key(
        1024, "Least bytes per second of a body once body_grace is over; 0: any.", "bytes/s", minimum=0
    )
    body_grace: Duration = key(10.0, "Time a body may take before body_rate is asked for.")
    idle_timeout: Duration = key(75.0, "A kept connection is closed after this time without a request.")
    write_timeout: Duration = key(30.0, "A client that takes none of its answer for this long is cut off.")
    max_connections: int = key(10_000, "Connections at the same time; more are closed at once.", minimum=1)
    body_memory: Megabytes = key(1, "Part of one body kept in memory; more goes to a file.", "MB", minimum=0)
    body_memory_total: Megabytes = key(
        64, "Bodies kept in memory, all together; more goes to files.", "MB", minimum=0
    )
    answer_memory: Megabytes = key(
        1,
        "Part of one answer kept in memory for a client that is slower than its worker; more goes to a file.",
        "MB",
        minimum=0,
    )
    answer_memory_total: Megabytes = key(
        32, "Answers kept in memory, all together; more goes to files.", "MB", minimum=0
    )
    answer_file: Megabytes = key(
        256,
        "Part of one stream kept in a file; the worker of a longer one waits for its client. 0: no files at all.",
        "MB",
        minimum=0,
    )
    answer_file_total: Megabytes = key(2048, "Answers kept in files, all together.", "MB", minimum=0)


#: The same as `key`, for a section that has a key of that name.
declare: Final = key


@dataclass(frozen=True, slots=True)
class HttpSslConfig:
    """`http.ssl`: HTTPS beside the plain addresses, or without them."""

    address: tuple[str, ...] = declare(
        ("127.0.0.1:443",),
        "host:port, unix:/path or systemd:NAME; several as a list. An empty host means every interface.",
        check=check_http_address,
    )
    cert: str = declare(..., "PEM file of the certificate, those between it and the root behind it.")
    key: str = declare(..., "PEM file of the private key, not encrypted.")
    root_ca: str = declare("", "PEM file of the authorities whose client certificates are accepted.")
    client_auth_type: Literal[
        "no_client_cert",
        "no_client_certs",
        "request_client_cert",
        "require_any_client_cert",
        "verify_client_cert_if_given",
        "require_and_verify_client_cert",
    ] = declare(
        "no_client_cert",
        "Whether clients show a certificate; one that is shown is always verified with root_ca.",
    )
    redirect: bool = declare(False, "Answer plain requests with 308 to the same URL by https.")


@dataclass(frozen=True, slots=True)
class Http2Config:
    """`http.http2`: HTTP/2 beside HTTP/1, on the same addresses."""

    enabled: bool = key(True, "Offer HTTP/2 to clients of http.ssl; they choose by ALPN.")
    h2c: bool = key(
        False, "Take HTTP/2 without TLS on http.address from clients that begin with it (prior knowledge)."
    )
    max_concurrent_streams: int = key(
        128, "Requests of one connection at the same time; more are refused.", minimum=1, maximum=1000
    )


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """`http`: the web server and the workers behind it."""

    address: tuple[str, ...] = key(
        (),
        "host:port, unix:/path or systemd:NAME; several as a list. An empty host means every interface. Needed unless there is ssl.",
        check=check_http_address,
    )
    ssl: HttpSslConfig | None = key(None, "HTTPS.")
    http2: Http2Config = key(Http2Config, "HTTP/2.")
    internal_error_code: int = key(
        500,
        "Status where the worker failed. Another value than 500 also replaces 502, 503 and 504.",
        minimum=400,
        maximum=599,
    )
    max_request_size: Megabytes = key(
        1000, "Largest body; 413 beyond. 0: the default.", "MB", minimum=0, maximum=4095
    )
    raw_body: bool = key(False, "Leave forms as they are; otherwise they are parsed for the worker.")
    access_logs: bool = key(
        False, "Log `http access log` with host, user agent and more instead of the short `http log`."
    )
    access_log_format: Literal["roadrunner", "common", "combined"] = key(
        "roadrunner",
        "roadrunner: records with its keys, as access_logs says; common, combined: one line each, as other servers write them.",
    )
    middleware: tuple[str, ...] = key((), "Middleware by name; the last one sees the request first.")
    trusted_subnets: tuple[str, ...] = key(
        (), "Proxies whose word on the client's address is believed.", check=check_subnet
    )
    uploads: UploadsConfig = key(UploadsConfig, "Uploaded files.")
    headers: HeadersConfig = key(HeadersConfig, "Headers and cross-origin rules.")
    static: StaticConfig | None = key(None, "Files served without a worker.")
    sendfile: SendfileConfig = key(SendfileConfig, "Files named by the worker.")
    pool: PoolConfig = key(PoolConfig, "Workers that answer the requests.")
    codec: Literal["auto", "json", "proto"] = key(
        "auto",
        "How a request is written for the worker; auto: json, which every SDK reads, and the fastest.",
        unavailable={
            "msgpack": (
                "requests are not written as msgpack, which gains next to nothing over json and loses in plain Python",
                "use auto",
            )
        },
    )
    dev: bool = key(
        False,
        "Show errors of the application in the browser, with source code; never where others can reach the server.",
    )
    retry: bool = key(
        True, "Give a GET or HEAD whose worker died before it answered to another worker, once."
    )
    on_disconnect: Literal["finish", "stop"] = key(
        "finish", "What happens to a running request whose client has gone."
    )
    limits: HttpLimitsConfig = key(HttpLimitsConfig, "Limits of one client.")


@dataclass(frozen=True, slots=True)
class ReloadConfig:
    """`reload`: new workers when a file changes; for development (`trailboss serve --reload`)."""

    paths: tuple[str, ...] = key((".",), "Folders or files that are watched, with what is below them.")
    patterns: tuple[str, ...] = key(
        (
            *("*.py", "*.php", "*.phtml", "*.html", "*.htm", "*.jinja", "*.jinja2", "*.j2", "*.twig"),
            *("*.latte", "*.tpl", ".env"),
        ),
        "Names of the files that matter.",
    )
    ignore: tuple[str, ...] = key(
        (
            *(".git", ".hg", ".svn", "node_modules", "vendor", ".venv", "venv", "__pycache__", ".tox"),
            *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".idea", ".vscode"),
            *("var/cache", "var/log", "storage/framework", "bootstrap/cache"),
        ),
        "Folders that are left out: a name, or the end of a path.",
    )


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """`status`: health, ready, jobs and state over HTTP."""

    address: str = key(..., "host:port of the status server.", check=check_address)
    unavailable_status_code: int = key(
        503, "HTTP status of the answer `not ready`.", minimum=100, maximum=599
    )
    check_timeout: SecondsOrDuration = key(60.0, "Longest wait for a request on the status port.", minimum=1)
    page: bool = key(True, "Show the status page at `/`.")
    hosts: tuple[str, ...] = key(
        (),
        "Names by which the page may be asked for, besides addresses, localhost and this machine's own name; `*`: any.",
    )


@dataclass(frozen=True, slots=True)
class CollectorConfig:
    """`metrics.collect.<name>`: a metric that applications keep through RPC."""

    type: Literal["counter", "gauge", "histogram", "summary"] = key(..., "What kind of metric it is.")
    namespace: str = key("", "First part of the name in a scrape.")
    subsystem: str = key("", "Second part of the name in a scrape.")
    help: str = key("", "One sentence for people.")
    labels: tuple[str, ...] = key((), "Names of the labels; every call gives a value for each.")
    buckets: tuple[float, ...] = key(
        (),
        "Upper bounds of a histogram, the smallest first.",
        default_text="0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10",
    )
    objectives: Mapping[str, float] = key(
        dict, "Quantiles of a summary with the error allowed, for example 0.99: 0.001."
    )


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """`metrics`: a port for Prometheus, and metrics of the applications."""

    address: str = key("127.0.0.1:2112", "host:port of the metrics server.", check=check_address)
    collect: Mapping[str, CollectorConfig] = key(dict, "Metrics of the applications, by name.")
    max_series: int = key(
        1000,
        "Combinations of label values of one collector; a call that would make one more is refused.",
        minimum=1,
        maximum=100_000,
    )
    max_samples: int = key(
        20_000,
        "Lines of a scrape that all metrics of the applications may take together.",
        minimum=1,
        maximum=1_000_000,
    )


@dataclass(frozen=True, slots=True)
class FileLoggerConfig:
    """`logs.file_logger_options`: a rotating file, always JSON; it replaces `output`."""

    log_output: str = key(
        "", "Path of the file; empty: trailboss.log in the temp directory.", check=check_log_target
    )
    max_size: Megabytes = key(100, "Size at which the file is rotated.", "MB", minimum=1)
    max_age: int = key(24, "Days a rotated file is kept.", "days", minimum=0)
    max_backups: int = key(10, "Rotated files that are kept.", minimum=0)
    compress: bool = key(False, "Compress rotated files with gzip.")


@dataclass(frozen=True, slots=True)
class LogChannelConfig:
    """`logs.channels.<plugin>`: the logger of one plugin; a key that is not given is inherited from `logs`."""

    mode: LogMode | None = key(None, "As logs.mode.", default_text="logs.mode")
    level: LogLevel | None = key(None, "As logs.level.", default_text="logs.level")
    encoding: LogEncoding | None = key(None, "As logs.encoding.", default_text="logs.encoding")
    line_ending: str | None = key(None, "As logs.line_ending.", default_text="logs.line_ending")
    output: tuple[str, ...] | None = key(
        None, "As logs.output.", default_text="logs.output", check=check_log_target
    )
    err_output: tuple[str, ...] | None = key(
        None, "As logs.err_output.", default_text="logs.err_output", check=check_log_target
    )
    file_logger_options: FileLoggerConfig | None = key(
        None, "As logs.file_logger_options.", default_text="logs.file_logger_options"
    )


@dataclass(frozen=True, slots=True)
class LogsConfig:
    """`logs`: what is logged, how it looks and where it goes."""

    mode: LogMode = key(
        "development",
        "production: JSON; development: coloured console; raw: message only; none, off: nothing.",
    )
    level: LogLevel = key("debug", "Least level that is logged.")
    encoding: LogEncoding = key("", "console or json; empty: by mode.")
    line_ending: str = key("\n", "End of a record; an empty one is taken as a newline.")
    output: tuple[str, ...] = key(("stderr",), "stdout, stderr or file paths.", check=check_log_target)
    err_output: tuple[str, ...] = key(
        ("stderr",), "Where the logger reports its own errors.", check=check_log_target
    )
    file_logger_options: FileLoggerConfig | None = key(None, "A rotating file instead of `output`.")
    channels: Mapping[str, LogChannelConfig] = key(
        dict, "Loggers by plugin name (`server`, `jobs`, `rpc`, `app`)."
    )


@dataclass(frozen=True, slots=True)
class OtelResource:
    """`otel.resource`: who the spans say they come from; OTEL_RESOURCE_ATTRIBUTES fills in what is left out."""

    service_name: str = key("", "Name of the service.")
    service_version: str = key("", "Version of the service.")
    service_namespace: str = key("", "Namespace of the service.")
    service_instance_id: str = key("", "Identifier of this instance.")


_OLD_EXPORTERS: Final = {
    name: (
        f"the {name} exporter is not available in this version of Trailboss",
        "use otlp; Zipkin and Jaeger accept it",
    )
    for name in ("zipkin", "jaeger", "jaeger_agent")
}


@dataclass(frozen=True, slots=True)
class OtelConfig:
    """`otel`: OpenTelemetry traces."""

    resource: OtelResource = key(OtelResource, "Attributes of the service.")
    insecure: bool = key(False, "Speak to the collector without TLS.")
    compress: bool = key(False, "Compress what is exported with gzip.")
    exporter: Literal["otlp", "stdout", "stderr"] = key("otlp", "Where spans go.", unavailable=_OLD_EXPORTERS)
    client: Literal["", "http", "grpc"] = key(
        "", "Protocol of the otlp exporter; empty: OTEL_EXPORTER_OTLP[_TRACES]_PROTOCOL, else http."
    )
    custom_url: str = key("", "URL path of the collector; http client only.")
    endpoint: str = key("", "host:port of the collector; empty: OpenTelemetry's default.")
    headers: Mapping[str, str] = key(dict, "Headers sent to the collector.")
    service_name: str = key(
        "", "Deprecated: use resource.service_name.", note="is deprecated; use otel.resource.service_name"
    )
    service_version: str = key(
        "",
        "Deprecated: use resource.service_version.",
        note="is deprecated; use otel.resource.service_version",
    )


@dataclass(frozen=True, slots=True)
class EndureConfig:
    """`endure`: RoadRunner's container; only the stop budget matters here."""

    grace_period: Duration = key(30.0, "Budget of the whole graceful stop.")
    upgrade_timeout: Duration = key(
        0.0,
        "How long a new server may take to get ready in an upgrade (`trailboss upgrade`) before it is ended and the old one "
        "goes on; 0: what its start may take (the longest boot of a pool, on_init, and 30 s).",
    )
    drain_delay: Duration = key(
        0.0,
        "From SIGTERM to the end of listening: for this time the readiness probe fails while requests are still answered, "
        "so that load balancers turn away first. Not part of `grace_period`.",
    )
    log_level: Literal["debug", "info", "warn", "error"] = key(
        "error", "Accepted, no effect.", note="has no effect; use logs.level"
    )
    print_graph: bool = key(
        False, "Accepted, no effect.", note="has no effect; `trailboss state` shows the plugins"
    )
    watchdog_sec: int = key(
        0,
        "Accepted, no effect.",
        "s",
        minimum=0,
        note="has no effect; WATCHDOG=1 follows the interval systemd asks for",
    )


@dataclass(frozen=True, slots=True)
class PluginOptions:
    """`plugins.<name>`: how the start treats one plugin."""

    optional: bool = key(False, "The others start and run even when this plugin fails.")


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where a configuration came from."""

    path: str | None = None
    """Absolute path of the root file."""
    files: tuple[str, ...] = ()
    """Every file read, the root first."""
    working_directory: str = ""
    """Absolute folder that relative paths refer to; whoever starts the server changes into it."""
    merged: Mapping[str, object] = field(default_factory=dict, repr=False)
    """The whole merged configuration as plain values, secrets included; see `trailboss.config.redact`."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables the dotenv file added; whoever starts the server puts them into its own environment."""
    places: Mapping[str, tuple[str, int]] = field(default_factory=dict, repr=False)
    """(file, line) of every key that was written, by dotted name."""

    def problem(self, name: str, message: str, remedy: str = "") -> Problem:
        """Return a finding about the key `name`, placed where it or the nearest section around it was written."""
        around = name
        while around and around not in self.places:
            around = around.rpartition(".")[0]
        file, line = self.places.get(around, (self.files[0] if self.files else "", 0))
        return Problem(file, line, name, message, remedy)


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration; a section that is None was not written and its plugin stays off."""

    version: str = key("3", 'Version of the format, "3"; every file must say it.')
    rpc: RpcConfig = key(RpcConfig, "The RPC port.")
    server: ServerConfig | None = key(None, "How workers are started.")
    http: HttpConfig | None = key(None, "The web server and its workers.")
    jobs: JobsConfig | None = key(None, "Queues and their workers.")
    status: StatusConfig | None = key(None, "Health and readiness over HTTP.")
    metrics: MetricsConfig | None = key(None, "Metrics for Prometheus.")
    reload: ReloadConfig | None = key(None, "New workers when a file changes; for development.")
    logs: LogsConfig = key(LogsConfig, "Logging.")
    otel: OtelConfig | None = key(None, "Traces.")
    endure: EndureConfig = key(EndureConfig, "The stop budget, under RoadRunner's name.")
    plugins: Mapping[str, PluginOptions] = key(dict, "Options of plugins by name.")
    extensions: Mapping[str, object] = field(default_factory=dict)
    """Sections that third-party plugins brought a dataclass for, by section name."""
    source: ConfigSource = field(default_factory=ConfigSource)
    notes: tuple[Problem, ...] = ()
    """Things worth a log line that are no error: keys without effect, unset variables."""

    def extension(self, name: str, section_type: type[T]) -> T | None:
        """Return the section `name` of a third-party plugin, or None where the file has no such section.

        Raises TypeError when the section was loaded with another dataclass.
        """
        section = self.extensions.get(name)
        if section is None:
            return None
        if not isinstance(section, section_type):
            raise TypeError(f"section {name} is a {type(section).__name__}, not a {section_type.__name__}")
        return section

    def is_optional(self, plugin: str) -> bool:
        """Say whether the start may go on without `plugin`."""
        options = self.plugins.get(plugin)
        return options is not None and options.optional


_LATER = "remove the section or run it with RoadRunner beside Trailboss"

UNAVAILABLE_SECTIONS: Final[Mapping[str, tuple[str, str]]] = {
    **{
        name: (f"the {name} plugin is not available in this version of Trailboss", _LATER)
        for name in (
            "kv",
            "service",
            "tcp",
            "grpc",
            "centrifuge",
            "temporal",
            "fileserver",
            "lock",
            "amqp",
            "kafka",
            "nats",
            "sqs",
            "beanstalk",
            "google_pub_sub",
            "boltdb",
            "redis",
            "memcached",
            "fcgi",
            "broadcast",
            "websockets",
        )
    },
    "new_relic": ("the new_relic plugin left RoadRunner", "remove the section and use otel"),
    "cache": ("the cache plugin is not part of Trailboss", "remove the section"),
    "envfile": ("envfile is not supported", "remove the key and start with --dotenv FILE"),
    "app": ("there is no section app", "put the level of application logs under logs.channels.app"),
}
"""Sections of RoadRunner that Trailboss knows and does not have: (what is wrong, what to do)."""

UNAVAILABLE_KEYS: Final[Mapping[type, Mapping[str, tuple[str, str]]]] = {
    HttpSslConfig: {
        "acme": (
            "certificates by ACME are not available yet in this version of Trailboss",
            "let certbot or another client write ssl.cert and ssl.key; changed files are read again by themselves",
        ),
    },
    HttpConfig: {
        "http3": ("HTTP/3 is not available yet in this version of Trailboss", "remove the key"),
        "fcgi": (
            "FastCGI is not available yet in this version of Trailboss",
            "remove the key and let the web server in front speak HTTP",
        ),
    },
    ReloadConfig: {
        "interval": ("files are not scanned, the kernel says what has changed", "remove the key"),
        "services": (
            "every pool is reloaded",
            "remove the key; its dirs and patterns are paths and patterns here",
        ),
    },
    JobsConfig: {
        "pools": (
            "named pools are not available in this version of Trailboss",
            "use the one pool under jobs.pool",
        )
    },
}
"""Keys of RoadRunner that Trailboss knows and does not have, by section class."""


def section_keys(section: type) -> dict[str, dataclasses.Field[object]]:
    """Return the configuration keys of a section class by name, in the order of declaration.

    Fields declared without `key` count as keys too, except in Config, whose plain fields are not read from a file.
    """
    return {
        item.name: item
        for item in dataclasses.fields(section)
        if item.init and (section is not Config or "doc" in item.metadata)
    }
