"""Pure: the text of a hardened unit, from facts about the installation.

The default unit has no capability, sees nothing but what it needs and writes nowhere but in its own folders;
`systemd-analyze security` gives it 1.3 (a web server needs a network, and PHP's pcre.jit memory that is both written and
executed). What the configuration needs more is added, and no more than that: a port below 1024, workers of another user,
folders for logs and uploads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from trailboss.config.rules import pools
from trailboss.config.schema import Config, LogChannelConfig, LogsConfig
from trailboss.config.values import parse_http_address
from trailboss.workers.cgroups import CONTROLLERS, wants_group

__all__ = ["UnitFacts", "facts_of", "quote", "service_unit", "socket_unit"]

#: Between the server's own budget for a stop and SIGKILL by systemd, in seconds.
STOP_MARGIN_SECONDS = 10
#: A start may take so long beyond the boot of the slowest pool.
START_MARGIN_SECONDS = 60
#: A watchdog interval that a busy machine never misses and a person does not notice.
WATCHDOG_SECONDS = 30
#: From the watchdog's SIGABRT to SIGKILL: its loop stands still, so it hears no signal.
ABORT_SECONDS = 10

#: Room in systemd's store beyond the addresses of HTTP, status and metrics: the RPC port, and what changed addresses leave
#: there until the next server has started.
SPARE_SOCKETS = 8

_PRIVILEGED_PORTS = 1024


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What a unit depends on."""

    program: str
    arguments: tuple[str, ...]
    directory: str
    name: str = "trailboss"
    #: Whom the server runs as; "" for a unit of a user's own service manager, or where it must be root.
    user: str = "trailboss"
    #: A unit of `systemctl --user`.
    for_user_manager: bool = False
    stop_seconds: int = 30
    start_seconds: int = 120
    binds_low_port: bool = False
    #: Workers or on_init run as somebody else, so the server itself is root.
    changes_user: bool = False
    #: Workers get control groups of their own.
    makes_groups: bool = False
    #: Workers get priorities or processors of their own, through system calls that are refused otherwise.
    sets_priorities: bool = False
    write_paths: tuple[str, ...] = ()
    #: Names of sockets that systemd opens: (name, what it listens on).
    sockets: tuple[tuple[str, str], ...] = ()
    #: Most sockets that the server leaves in systemd's store.
    stored_sockets: int = 8
    reads_home: bool = False
    credentials: tuple[str, ...] = field(default=())


def facts_of(config: Config, program: str, *, name: str, user: str, for_user_manager: bool) -> UnitFacts:
    """Return what a unit for `config` depends on."""
    source = config.source
    arguments = ["serve"]
    if source.path:
        arguments += ["-c", source.path]
    if source.working_directory and source.working_directory != os.path.dirname(source.path or ""):
        arguments += ["-w", source.working_directory]
    boots = [pool.boot_timeout for _, pool in pools(config)]
    server = config.server
    on_init = server.on_init if server is not None else None
    users = {
        server.user if server is not None else "",
        on_init.user if on_init is not None else "",
        *(pool.process.user for _, pool in pools(config)),
    } - {""}
    return UnitFacts(
        program=program,
        arguments=tuple(arguments),
        directory=source.working_directory or "/",
        name=name,
        user="" if for_user_manager or users else user,
        for_user_manager=for_user_manager,
        stop_seconds=round(config.endure.drain_delay + config.endure.grace_period) + STOP_MARGIN_SECONDS,
        start_seconds=round(max(boots, default=0.0))
        + START_MARGIN_SECONDS
        + round(on_init.exec_timeout if on_init is not None else 0.0),
        binds_low_port=any(0 < port < _PRIVILEGED_PORTS for port in _ports(config)),
        changes_user=bool(users),
        makes_groups=any(wants_group(pool.process) for _, pool in pools(config)),
        sets_priorities=any(
            pool.process.nice or pool.process.io_class or pool.process.cpu_affinity
            for _, pool in pools(config)
        ),
        write_paths=tuple(_write_paths(config)),
        sockets=tuple(_sockets(config)),
        stored_sockets=len(list(_addresses(config))) + SPARE_SOCKETS,
        reads_home=any(
            path.startswith(("/home/", "/root/", "/run/user/"))
            for path in (source.working_directory, source.path or "", program)
        ),
    )


def _addresses(config: Config) -> Iterator[str]:
    if config.http is not None:
        yield from config.http.address
        if config.http.ssl is not None:
            yield from config.http.ssl.address
    for section in (config.status, config.metrics):
        if section is not None:
            yield section.address


def _ports(config: Config) -> Iterator[int]:
    for address in _addresses(config):
        if not address.startswith("systemd:"):
            scheme, _, port = parse_http_address(address)
            if scheme == "tcp":
                yield port


def _sockets(config: Config) -> Iterator[tuple[str, str]]:
    if config.http is None:
        return
    secure = config.http.ssl.address if config.http.ssl is not None else ()
    for address in (*config.http.address, *secure):
        if address.startswith("systemd:"):
            yield address.removeprefix("systemd:"), "443" if address in secure else "80"


def _write_paths(config: Config) -> Iterator[str]:
    """Folders that the server itself writes to, outside of its own."""
    folder = config.source.working_directory
    sections: list[LogsConfig | LogChannelConfig] = [config.logs, *config.logs.channels.values()]
    files = [
        name for section in sections for name in (section.output or ()) if name not in ("stdout", "stderr")
    ]
    files += [
        section.file_logger_options.log_output
        for section in sections
        if section.file_logger_options is not None and section.file_logger_options.log_output
    ]
    found = {os.path.dirname(os.path.join(folder, file)) for file in files}
    if config.http is not None:
        if config.http.uploads.dir:
            found.add(os.path.join(folder, config.http.uploads.dir))
        for address in config.http.address:
            if address.startswith("unix:"):
                found.add(os.path.dirname(os.path.join(folder, parse_http_address(address)[1])))
    if config.rpc.enabled and config.rpc.listen.startswith("unix://"):
        found.add(os.path.dirname(os.path.join(folder, config.rpc.listen.removeprefix("unix://"))))
    yield from sorted(path for path in found if not path.startswith(("/tmp", "/var/tmp", "/run/trailboss")))


def quote(word: str) -> str:
    """Return one word of a command line as systemd reads it back: quoted where that is needed, % and $ doubled."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    if word and not any(char in word for char in " \t\"';"):
        return word
    return '"' + word.replace('"', '\\"') + '"'


def service_unit(facts: UnitFacts) -> str:
    """Return the text of NAME.service."""
    return "\n".join([*_head(facts), *_service(facts), *_hardening(facts), *_install(facts)]) + "\n"


def _head(facts: UnitFacts) -> Iterator[str]:
    yield "# Made by `trailboss systemd unit` for this installation; make it again after changes of the configuration,"
    yield "# and put changes of your own into a drop-in: systemctl edit " + facts.name
    yield "[Unit]"
    yield "Description=Trailboss application server"
    yield "After=network.target"
    if facts.sockets:
        names = " ".join(f"{facts.name}-{name}.socket" for name, _ in facts.sockets)
        yield f"Requires={names}"
        yield f"After={names}"
    yield ""


def _service(facts: UnitFacts) -> Iterator[str]:
    yield "[Service]"
    yield "# Ready when every pool has its workers; STATUS= says what a start waits for."
    yield "Type=notify"
    yield "NotifyAccess=main"
    if facts.user:
        yield f"User={facts.user}"
    yield f"WorkingDirectory={facts.directory.replace('%', '%%')}"
    yield "ExecStart=" + " ".join(quote(word) for word in (facts.program, *facts.arguments))
    yield "# New workers take over, old ones finish; a broken deployment changes nothing."
    yield "ExecReload=/bin/kill -HUP $MAINPID"
    for name, _ in facts.sockets:
        yield f"Sockets={facts.name}-{name}.socket"
    yield f"RuntimeDirectory={facts.name}"
    yield "RuntimeDirectoryMode=0700"
    yield "# Listening sockets and their files outlive the server: neither a crash nor a restart refuses a connection."
    yield "RuntimeDirectoryPreserve=restart"
    yield f"FileDescriptorStoreMax={facts.stored_sockets}"
    yield "Environment=TRAILBOSS_FDSTORE=1"
    yield f"TimeoutStartSec={facts.start_seconds}s"
    yield f"# endure.drain_delay, endure.grace_period and {STOP_MARGIN_SECONDS} s: the server finishes what runs and stops by itself."
    yield f"TimeoutStopSec={facts.stop_seconds}s"
    yield "KillMode=mixed"
    if facts.makes_groups:
        yield "# Each worker gets a control group of its own (pool.process)."
        yield f"Delegate={' '.join(sorted(CONTROLLERS))}"
    yield f"WatchdogSec={WATCHDOG_SECONDS}s"
    yield "# A server that the watchdog has given up on is not waited for as one that is asked to stop."
    yield f"TimeoutAbortSec={ABORT_SECONDS}s"
    yield "Restart=on-failure"
    yield "RestartSec=1s"
    yield "LimitNOFILE=65536"
    yield ""


def _hardening(facts: UnitFacts) -> Iterator[str]:
    if facts.for_user_manager:
        yield "NoNewPrivileges=yes"
        yield "UMask=0077"
        yield ""
        return
    capabilities = []
    if facts.binds_low_port:
        capabilities.append("CAP_NET_BIND_SERVICE")
    if facts.changes_user:
        capabilities += [
            "CAP_SETUID",
            "CAP_SETGID",
            "CAP_KILL",
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
        ]
    yield "# What is not needed is not there. `systemd-analyze security` shows the effect."
    yield "NoNewPrivileges=yes"
    yield f"CapabilityBoundingSet={' '.join(capabilities)}"
    yield f"AmbientCapabilities={'CAP_NET_BIND_SERVICE' if facts.binds_low_port and not facts.changes_user else ''}"
    yield "ProtectSystem=strict"
    yield f"ProtectHome={'read-only' if facts.reads_home else 'yes'}"
    for path in facts.write_paths:
        yield f"ReadWritePaths=-{quote(path)}"
    yield "PrivateTmp=yes"
    yield "PrivateDevices=yes"
    yield "DevicePolicy=closed"
    if not capabilities:  # capabilities would be worth nothing outside of a user namespace
        yield "PrivateUsers=yes"
    yield (
        "ProtectProc=invisible"
        if not facts.changes_user
        else "# Workers of other users are watched: no ProtectProc="
    )
    yield "ProtectClock=yes"
    yield "ProtectHostname=yes"
    yield "ProtectKernelLogs=yes"
    yield "ProtectKernelModules=yes"
    yield "ProtectKernelTunables=yes"
    yield f"ProtectControlGroups={'no' if facts.makes_groups else 'yes'}"
    yield "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6"
    yield "RestrictNamespaces=yes"
    yield "RestrictRealtime=yes"
    yield "RestrictSUIDSGID=yes"
    yield "LockPersonality=yes"
    yield "# PHP compiles regular expressions (pcre.jit); without it, MemoryDenyWriteExecute=yes is possible."
    yield "MemoryDenyWriteExecute=no"
    yield "RemoveIPC=yes"
    yield "KeyringMode=private"
    yield "UMask=0027"
    yield "SystemCallArchitectures=native"
    yield "SystemCallFilter=@system-service"
    refused = [
        *([] if facts.changes_user else ["@privileged"]),
        *([] if facts.sets_priorities else ["@resources"]),
    ]
    if refused:
        yield f"SystemCallFilter=~{' '.join(refused)}"
    yield "SystemCallErrorNumber=EPERM"
    yield ""


def _install(facts: UnitFacts) -> Iterator[str]:
    yield "[Install]"
    yield f"WantedBy={'default.target' if facts.for_user_manager else 'multi-user.target'}"


def socket_unit(facts: UnitFacts, name: str, listen: str) -> str:
    """Return the text of the unit of one socket, NAME-SOCKET.socket."""
    return f"""\
# Made by `trailboss systemd unit`. The port is open while the server is restarted: connections wait here.
[Unit]
Description=Socket {name} of the Trailboss application server

[Socket]
ListenStream={listen}
FileDescriptorName={name}
Service={facts.name}.service
Backlog=4096
NoDelay=yes
Accept=no

[Install]
WantedBy=sockets.target
"""
