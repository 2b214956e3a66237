"""One child process: spawn, signals, exit status. No protocol, no policy.

A child gets a session and process group of its own, so that a stray Ctrl-C does not take it and a kill takes all of
it; only descriptors 0-2 (and one socket more where it may be handed files); and the environment it is given, nothing else. Its exit is seen through a pidfd, so a reused
pid is never signalled or waited for. The group is signalled only while its leader has not been reaped: until then the
kernel cannot give the number to anybody else.

PR_SET_PDEATHSIG is not used: the death signal follows the *thread* that forked, and threads here come and go. What
happens when the supervisor itself dies is the guard's business (:mod:`trailboss.workers.guard`).
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

#: Tells a worker the number of the socket that descriptors come through.
FILES_VARIABLE = "TRAILBOSS_FILES"
#: A process that was killed right after its spawn is waited for no longer than this, in seconds.
REAP_SECONDS_MAX = 5.0

__all__ = ["ExitStatus", "Identity", "Process", "SpawnFailed", "UnknownIdentity", "resolve_identity", "spawn"]


class SpawnFailed(Exception):
    """The process could not be started at all. `permanent` when trying again cannot help (no such command)."""

    def __init__(self, text: str, *, permanent: bool) -> None:
        super().__init__(text)
        self.permanent = permanent


class UnknownIdentity(LookupError):
    """A user or group of the configuration that this machine does not have; the text names key, value and remedy."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a child runs as."""

    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def resolve_identity(user: str, group: str = "", *, section: str = "server") -> Identity | None:
    """Look up `user` (a name, as RoadRunner has it) and optionally `group`; None for an empty name.

    `section` is where `user` was configured. Raises UnknownIdentity when a name does not exist.
    """
    if not user:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise UnknownIdentity(
            f"{section}.user: there is no user {user!r} on this machine; create it or correct the name"
        ) from None
    gid = entry.pw_gid
    if group:
        try:
            gid = grp.getgrnam(group).gr_gid
        except KeyError:
            raise UnknownIdentity(
                f"server.group: there is no group {group!r} on this machine; create it or correct the name"
            ) from None
    groups = tuple(sorted({gid, *os.getgrouplist(user, gid)}))
    return Identity(user, entry.pw_uid, gid, groups)


#: Flags of a process that is in its exit, or that a signal ends (include/linux/sched.h; part of /proc/PID/stat).
_PF_EXITING = 0x4
_PF_SIGNALED = 0x400


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: its exit code or the signal that killed it, and what it had used.

    `memory_peak_bytes` is 0 where it is not known, which is below the supervisor's own peak.
    """

    exit_code: int | None
    signal: int | None
    user_seconds: float
    system_seconds: float
    memory_peak_bytes: int

    def describe(self) -> str:
        """Return "exit code 3" or "signal SIGKILL (9)"."""
        if self.signal is not None:
            try:
                return f"signal {signal.Signals(self.signal).name} ({self.signal})"
            except ValueError:
                return f"signal {self.signal}"
        return f"exit code {self.exit_code}"


class Process:
    """A running child. Whoever holds it reaps it; descriptors are closed by :meth:`close`."""

    __slots__ = (
        *("_popen", "files", "pid", "pidfd", "started_wall", "status", "stderr_fd"),
        *("stdin_fd", "stdout_fd"),
    )

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        pidfd: int,
        fds: tuple[int, int, int],
        wall: float,
        files: socket.socket | None = None,
    ) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.pidfd = pidfd
        #: Our ends of the child's pipes, non-blocking; -1 where there is none.
        self.stdin_fd, self.stdout_fd, self.stderr_fd = fds
        #: Our end of the socket that descriptors go through, where the child was given one.
        self.files = files
        self.started_wall = wall
        self.status: ExitStatus | None = None

    def signal_leader(self, number: int) -> None:
        """Signal the process itself, through its pidfd; does nothing once it has been reaped or is gone."""
        if self.status is None:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def signal_group(self, number: int) -> None:
        """Signal the whole group; safe until :meth:`reap` (the unreaped leader keeps the number)."""
        if self.status is None:
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError):
                # PermissionError: members that changed their uid; the leader at least is ours.
                self.signal_leader(number)

    def has_exited(self) -> bool:
        """Whether the process has ended (reaped or not); asks the kernel, does not reap."""
        if self.status is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def is_dying(self) -> bool:
        """Whether it has ended, is about to, or has been killed and does not know it yet."""
        if self.status is not None:
            return True
        try:
            with open(f"/proc/{self.pid}/stat", "rb", buffering=0) as stat:
                return says_dying(stat.read(4096))
        except OSError:  # not reaped, so it is there: no descriptor left, or no /proc
            return self.has_exited()

    def reap(self) -> ExitStatus:
        """Collect the exit status. Call it when the process has exited: otherwise it blocks."""
        if self.status is None:
            _, wait_status, usage = os.wait4(self.pid, 0)
            code = os.waitstatus_to_exitcode(wait_status)
            self._popen.returncode = code  # tells Popen that there is nothing left to wait for
            self.status = _exit_status(code, usage)
        return self.status

    def close(self) -> None:
        """Close our ends of the pipes and the pidfd. Unregister them from the reactor before."""
        for fd in {self.stdin_fd, self.stdout_fd, self.stderr_fd, self.pidfd}:
            if fd >= 0:
                os.close(fd)
        self.stdin_fd = self.stdout_fd = self.stderr_fd = self.pidfd = -1
        if self.files is not None:
            self.files.close()
            self.files = None


def says_dying(stat: bytes) -> bool:
    """Whether /proc/PID/stat, as far as it was read, says that the process is dead, exits, or has SIGKILL pending.

    Between taking SIGKILL and saying so in its flags a process takes a step in which neither is to be seen.
    """
    # The command name may hold blanks and brackets; what follows its last bracket is regular: proc(5), fields 3 and on.
    fields = stat.rpartition(b")")[2].split()
    try:
        state, flags, pending = fields[0], int(fields[6]), int(fields[28])
    except (IndexError, ValueError):
        return False
    ends = flags & (_PF_EXITING | _PF_SIGNALED) or pending >> (signal.SIGKILL - 1) & 1
    return state in (b"Z", b"X") or bool(ends)


def _exit_status(code: int, usage: resource.struct_rusage) -> ExitStatus:
    # A child starts with the peak of the process that forked it, this one's, and execve does not forget it. So only a
    # figure above our own says something about the child.
    own_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return ExitStatus(
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        user_seconds=usage.ru_utime,
        system_seconds=usage.ru_stime,
        memory_peak_bytes=usage.ru_maxrss * 1024 if usage.ru_maxrss > own_peak else 0,
    )


async def spawn(
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    wall: float,
    identity: Identity | None = None,
    stdin: str = "pipe",
    directory: str | None = None,
    prefix: Sequence[str] = (),
    umask: str = "",
    files: bool = False,
) -> Process:
    """Start `argv` and return when it has been executed (spawned, not ready).

    `stdin` is "pipe" (stdin and stdout are pipes) or "null" (stdin /dev/null, stdout a pipe for log lines). stderr is
    always a pipe. With `files` the child gets one more descriptor, a socket through which it can be handed open files;
    its number is in the variable TRAILBOSS_FILES. `prefix` is put in front of the command (see `confine`); where it has
    setpriv, that changes the user. `umask` is octal digits, "" for the server's own.

    Raises SpawnFailed with a text that names the command and the reason.
    On cancellation: the spawn is finished in its thread, then the process is killed and reaped; nothing is left.
    """
    process = await trio.to_thread.run_sync(
        _spawn, argv, environment, wall, identity, stdin, directory, files, tuple(prefix), umask
    )
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
    except trio.Cancelled:
        process.signal_group(signal.SIGKILL)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REAP_SECONDS_MAX):
            while not process.has_exited():
                await trio.lowlevel.wait_readable(process.pidfd)
            process.reap()
        process.close()
        raise
    return process


def _spawn(
    argv: Sequence[str],
    environment: Mapping[str, str],
    wall: float,
    identity: Identity | None,
    stdin: str,
    directory: str | None,
    files: bool,
    prefix: tuple[str, ...],
    umask: str,
) -> Process:
    ours: list[int] = []
    theirs: list[int] = []
    handed: list[int] = []
    files_socket: socket.socket | None = None
    try:
        if stdin == "pipe":
            child_in, in_fd = os.pipe()
            ours.append(in_fd)
        else:
            child_in, in_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), -1
        theirs.append(child_in)
        out_fd, child_out = os.pipe()
        ours.append(out_fd)
        theirs.append(child_out)
        error_fd, child_error = os.pipe()
        ours.append(error_fd)
        theirs.append(child_error)
        for fd in ours:
            os.set_blocking(fd, False)
        variables = dict(environment)
        if files:
            files_socket, child_files = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            files_socket.setblocking(False)
            handed.append(child_files.detach())
            theirs += handed
            variables[FILES_VARIABLE] = str(handed[0])
        if prefix:  # what is not there shall be told as without a prefix
            _find(argv[0] if argv else "", variables, directory, identity)
        changes = identity if "setpriv" not in prefix else None
        popen = subprocess.Popen(
            [*prefix, *argv],
            stdin=child_in,
            stdout=child_out,
            stderr=child_error,
            pass_fds=handed,
            env=variables,
            cwd=directory,
            start_new_session=True,
            user=changes.uid if changes else None,
            group=changes.gid if changes else None,
            extra_groups=list(changes.groups) if changes else None,
            umask=int(umask, 8) if umask else -1,
        )
    except BaseException as error:
        for fd in ours:
            os.close(fd)
        if files_socket is not None:
            files_socket.close()
        if isinstance(error, (OSError, ValueError, subprocess.SubprocessError)):
            raise _explain(argv, error, identity, directory) from error
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    try:
        pidfd = os.pidfd_open(popen.pid)
    except OSError as error:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
        for fd in ours:
            os.close(fd)
        if files_socket is not None:
            files_socket.close()
        raise SpawnFailed(
            f"cannot watch the new process {popen.pid}: {error.strerror}", permanent=False
        ) from error
    return Process(popen, pidfd, (in_fd, out_fd, error_fd), wall, files_socket)


def _find(
    program: str, environment: Mapping[str, str], directory: str | None, identity: Identity | None
) -> None:
    """Raise the OSError that executing `program` as `identity` would end with, where that can be told beforehand."""
    if directory is not None and not os.path.isdir(directory):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
    path: str | None = os.path.join(directory or "", program)
    if os.sep not in program:
        path = shutil.which(program, path=environment.get("PATH", os.defpath))
    if path is None or not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    if os.path.isdir(path) or not os.access(path, os.X_OK) or not _may_execute(path, identity):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), program)


def _may_execute(path: str, identity: Identity | None) -> bool:
    """Whether the mode bits of a file and of the folders above it let `identity` execute it. (Not asked: ACLs.)"""
    if identity is None or identity.uid == 0:
        return True
    path = os.path.realpath(path)
    while True:
        found = os.stat(path)
        if found.st_uid == identity.uid:
            bit = stat.S_IXUSR
        elif found.st_gid == identity.gid or found.st_gid in identity.groups:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not found.st_mode & bit:
            return False
        if path == os.sep:
            return True
        path = os.path.dirname(path)


def _explain(
    argv: Sequence[str], error: Exception, identity: Identity | None, directory: str | None
) -> SpawnFailed:
    command = argv[0] if argv else ""
    if isinstance(error, FileNotFoundError):
        where = f" in {directory}" if directory else ""
        missing = (
            "the working directory does not exist"
            if error.filename == directory
            else "command not found; install it or correct the name"
        )
        if os.path.exists(command):
            missing = (
                "the interpreter named in its first line does not exist; install it or correct that line"
            )
        return SpawnFailed(f"cannot start {command!r}{where}: {missing}", permanent=True)
    if isinstance(error, PermissionError):
        who = f" as user {identity.user}" if identity else ""
        return SpawnFailed(
            f"cannot start {command!r}{who}: {(error.strerror or 'not permitted').lower()}; "
            "make it an executable file (chmod +x) or correct the path",
            permanent=True,
        )
    if isinstance(error, OSError):
        # EAGAIN, ENOMEM, EMFILE: the machine is short of something; that passes.
        permanent = error.errno not in _PASSING
        return SpawnFailed(f"cannot start {command!r}: {error.strerror}", permanent=permanent)
    return SpawnFailed(f"cannot start {command!r}: {error}", permanent=True)


_PASSING = {11, 12, 23, 24, 26}  # EAGAIN, ENOMEM, ENFILE, EMFILE, ETXTBSY
