"""What all workers of one server share: reactor, guard, callers, deaths, the way to launch, the boot limit."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from trailboss import ROADRUNNER_COMPAT_VERSION
from trailboss.config.schema import PoolConfig, ProcessConfig, ServerConfig
from trailboss.log import logger
from trailboss.reactor import Reactor
from trailboss.telemetry import Telemetry
from trailboss.workers.callers import TOKEN_VARIABLE, Callers
from trailboss.workers.cgroups import (
    CONTROLLERS,
    Cgroups,
    CgroupsUnavailable,
    Leaf,
    controllers_for,
    limits_for,
    wants_group,
)
from trailboss.workers.confine import PACKAGES, missing_tools, prefix_for
from trailboss.workers.deaths import Deaths
from trailboss.workers.guard import INSTANCE_VARIABLE, Guard
from trailboss.workers.outcome import Answer
from trailboss.workers.private_tmp import PrivateFolders
from trailboss.workers.process import Identity, Process, resolve_identity, spawn
from trailboss.workers.relay import RelayHub
from trailboss.workers.sampling import workers_that_fit

__all__ = ["Launch", "PoolSpec", "Workshop", "child_environment", "resolve_command"]

log = logger("server")

#: Never handed to a child: they are this process's own contract with systemd, or with its workers.
WITHHELD_PREFIXES = ("WATCHDOG_", "LISTEN_")
WITHHELD = frozenset(
    {"NOTIFY_SOCKET", "FDSTORE", "TRAILBOSS_FDSTORE", "TRAILBOSS_DEV", "TRAILBOSS_FILES", TOKEN_VARIABLE}
)


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a plugin asks for: a pool of workers of its kind."""

    #: Name of the plugin and of the pool.
    name: str
    #: RR_MODE of its workers.
    mode: str
    config: PoolConfig
    extra_env: Mapping[str, str] = field(default_factory=dict)
    #: Makes the payload of a warm-up request from its path: context, body, flags. None: such workers take none.
    warmup_request: Callable[[str], tuple[bytes, bytes, int]] | None = None
    #: Says what is wrong with an answer that is none of the worker's errors and a failure all the same; "" if nothing.
    is_failure: Callable[[Answer], str] | None = None
    #: What kills its workers is quarantined. Not where whoever gives out executions counts their attempts himself.
    quarantines: bool = True
    #: Says, from context and flags, what tells two executions with the same label and body apart. None: nothing does.
    distinction: Callable[[bytes, int], bytes] | None = None
    #: Its workers are Trailboss's own and can be handed a body that lies in a file as that file.
    takes_files: bool = False


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one worker."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    identity: Identity | None
    #: "pipe", or "null" with a socket relay.
    stdin: str
    #: It may get a socket for open files.
    files: bool
    #: Key of the configuration that the program comes from.
    key: str
    #: What confines it, in front of argv; changes the user as well where it is there.
    prefix: tuple[str, ...] = ()
    #: Octal digits, "" for the server's own.
    umask: str = ""


def child_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Copy `base` without what must not reach a child (NOTIFY_SOCKET, FDSTORE, WATCHDOG_*, LISTEN_*, what we say to workers)."""
    return {
        name: value
        for name, value in base.items()
        if name not in WITHHELD and not name.startswith(WITHHELD_PREFIXES)
    }


def resolve_command(command: Sequence[str], python: str) -> tuple[str, ...]:
    """The argument vector to execute; ``trailboss-worker …`` runs the SDK's bootstrap with the chosen interpreter.

    So an application's own virtualenv needs no Trailboss installed, and Trailboss's own need not be on PATH.
    """
    if command and command[0] == "trailboss-worker":
        import trailboss_worker

        bootstrap = Path(trailboss_worker.__file__).with_name("bootstrap.py")
        return (python or sys.executable, str(bootstrap), *command[1:])
    return tuple(command)


@dataclass(slots=True)
class Workshop:
    """Shared by all pools of a server; built by the server plugin."""

    reactor: Reactor
    settings: ServerConfig
    guard: Guard
    callers: Callers
    deaths: Deaths
    #: RR_RPC of the workers; "" leaves it out (RPC off).
    rpc_address: str = ""
    hub: RelayHub | None = None
    #: Working directory of every process, by name: a link in it is followed anew for each. "": the server's own.
    directory: str = ""
    #: Spans of worker boots.
    telemetry: Telemetry = field(default_factory=Telemetry)
    #: Starts the processes of workers, with the arguments of `process.spawn`; a simulation has its own.
    spawner: Callable[..., Awaitable[Process]] = spawn
    #: For how many more workers like these pids there is memory.
    fits: Callable[[Sequence[int]], int] = workers_that_fit
    boot_limiter: trio.CapacityLimiter = field(init=False)
    #: Where /proc and /sys are found.
    cgroup_root: str = "/"
    #: Control groups of workers, from the first worker on that needs one; None: not tried yet, or not to be had.
    cgroups: Cgroups | None = None
    _cgroups_tried: bool = False
    #: Folders of workers for temporary files, from the first worker on that has one.
    _private_tmp: PrivateFolders | None = None
    _tmp_lock: trio.Lock = field(default_factory=trio.Lock)
    #: What was said about limits that are not in force.
    _told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.boot_limiter = trio.CapacityLimiter(self.settings.resolved_boot_parallelism)

    def base_environment(self) -> dict[str, str]:
        """Environment of every process this server starts: its own, where RPC is, its mark. No `server.env`."""
        environment = child_environment(os.environ)
        if self.rpc_address:
            environment["RR_RPC"] = self.rpc_address
        else:
            environment.pop("RR_RPC", None)
        environment["RR_VERSION"] = ROADRUNNER_COMPAT_VERSION
        environment[INSTANCE_VARIABLE] = self.guard.instance
        return environment

    def new_leaf(self, spec: PoolSpec) -> Leaf | None:
        """Make the control group of a new worker of `spec`; None where it needs none or there can be none."""
        process = spec.config.process
        if not wants_group(process):
            return None
        limits = limits_for(process)
        cgroups = self._open_cgroups()
        leaf = cgroups.new_leaf(spec.name) if cgroups is not None else None
        if leaf is None:
            if limits and cgroups is not None:
                self._tell_once("the kernel refuses a control group for a worker", spec, sorted(limits))
            elif limits:
                self._tell_once("these limits of workers are not in force", spec, sorted(limits))
            return None
        refused = leaf.limit(limits.items())
        missing = cgroups.missing & controllers_for(process) if cgroups is not None else frozenset[str]()
        if refused:
            reason = cgroups.reason if cgroups is not None and missing else "the kernel refuses them"
            self._tell_once("these limits of workers are not in force", spec, sorted(refused), reason)
        return leaf

    def _open_cgroups(self) -> Cgroups | None:
        if not self._cgroups_tried:
            self._cgroups_tried = True
            try:
                self.cgroups = Cgroups.open(self.guard.instance, CONTROLLERS, self.cgroup_root)
            except CgroupsUnavailable as error:
                log.warning("workers get no control groups of their own", reason=str(error))
            else:
                self.guard.watch_cgroup(self.cgroups.folder)
        return self.cgroups

    def _tell_once(self, text: str, spec: PoolSpec, limits: list[str], reason: str = "") -> None:
        if f"{spec.name} {limits}" not in self._told:
            self._told.add(f"{spec.name} {limits}")
            details = {"reason": reason} if reason else {}
            log.warning(text, pool=spec.name, limits=limits, **details)

    async def new_tmp(self, spec: PoolSpec, identity: Identity | None) -> str:
        """Make the folder for temporary files of a new worker of `spec`; "" where it shares the server's.

        Raises LookupError with a text for people where none can be made.
        """
        if not spec.config.process.private_tmp:
            return ""
        try:
            async with self._tmp_lock:
                if self._private_tmp is None:
                    self._private_tmp = await trio.to_thread.run_sync(PrivateFolders.open)
            return self._private_tmp.make(identity)
        except OSError as error:
            raise LookupError(
                f"{spec.name}.pool.process.private_tmp: no folder can be made in {error.filename or 'TMPDIR'}: "
                f"{error.strerror}; make room or change TMPDIR of the server"
            ) from error

    async def remove_tmp(self, path: str) -> None:
        """Remove the folder of a worker that has ended. On cancellation: goes on without us."""
        if self._private_tmp is not None:
            await self._private_tmp.discard(path)

    async def close_tmp(self) -> None:
        """Remove what temporary files are left; no worker is left."""
        folders, self._private_tmp = self._private_tmp, None
        if folders is not None:
            await folders.close()

    async def close_cgroups(self) -> None:
        """Remove the control groups; no worker is left."""
        cgroups, self.cgroups = self.cgroups, None
        if cgroups is not None:
            await cgroups.close()
            self.guard.watch_cgroup("")

    def launch(self, spec: PoolSpec, leaf: Leaf | None = None) -> Launch:
        """How to start a worker of `spec` now; user and command are resolved anew each time.

        `leaf` is the control group it is to be in.

        Raises LookupError with a text for people when the configured user does not exist.
        """
        environment = self.base_environment()
        environment.update(self.settings.env)
        # These must be right, whatever `server.env` says.
        environment["RR_RELAY"] = self.hub.address.exported if self.hub is not None else "pipes"
        environment["RR_VERSION"] = ROADRUNNER_COMPAT_VERSION
        environment[INSTANCE_VARIABLE] = self.guard.instance
        environment["RR_MODE"] = spec.mode
        environment.update(spec.extra_env)
        command = spec.config.command or self.settings.command
        process = spec.config.process
        identity = resolve_identity(
            process.user or self.settings.user,
            process.group or self.settings.group,
            section=f"{spec.name}.pool.process" if process.user else "server",
        )
        return Launch(
            argv=resolve_command(command, self.settings.python),
            environment=environment,
            identity=identity,
            prefix=self._prefix(process, identity, leaf),
            umask=process.umask,
            stdin="pipe" if self.hub is None else "null",
            files=spec.takes_files and self.hub is None,
            key=self._key_of(spec),
        )

    def _prefix(
        self, process: ProcessConfig, identity: Identity | None, leaf: Leaf | None
    ) -> tuple[str, ...]:
        """What confines a worker. Raises LookupError where a tool for it is missing and a key asks for it."""
        prefix = prefix_for(process, identity, leaf.procs if leaf is not None else "")
        missing = missing_tools(prefix)
        if not missing:
            return prefix
        tool = missing[0]
        if process == replace(
            ProcessConfig(),
            user=process.user,
            group=process.group,
            umask=process.umask,
            private_tmp=process.private_tmp,
        ):
            # Nobody asked for it: what is only our default gives way.
            log.warning(
                "workers keep what setuid programs give them: setpriv is not installed",
                package=PACKAGES[tool],
            )
            return ()
        raise LookupError(
            f"pool.process needs the program {tool}, which is not installed; apt-get install {PACKAGES[tool]}"
        )

    def _key_of(self, spec: PoolSpec) -> str:
        command = spec.config.command or self.settings.command
        if self.settings.python and command[:1] == ("trailboss-worker",):
            return "server.python"
        return f"{spec.name}.pool.command" if spec.config.command else "server.command"
