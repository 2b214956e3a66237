"""One worker, from spawn to reaped: the owner task.

    spawning -> handshaking -> ready <-> busy -> draining -> stopping -> exited(reason)

This task alone starts, signals and reaps the process. Everybody else leaves a wish (`retire`, `kill`) or a fact (the
lane broke, the process has exited) and pokes the task; it then looks at all of them and decides. Between "ready" and
the end it sleeps: execs run on the lane, in the reactor, without it.

A death is reported only when its pipes have been read to the end and the exit status is known, so the last answer and
the last words of a dying worker are not lost. Whoever is cancelled in here leaves no process behind: the group is
killed and reaped on every way out.
"""

from __future__ import annotations

import enum
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from trailboss.container.contract import CallerRole
from trailboss.log import logger
from trailboss.workers.callers import TOKEN_VARIABLE, new_token
from trailboss.workers.cgroups import Leaf
from trailboss.workers.command import run_warmup_command
from trailboss.workers.deaths import DeathRecord, quote
from trailboss.workers.lane import MOVES_MAX, Breach, Exec, Lane, LaneOwner, Ticket, garbage_breach
from trailboss.workers.limits import RetireCause, WorkerLimits
from trailboss.workers.outcome import Answer, Outcome, WorkerDied
from trailboss.workers.output import BootVoice, LineDrain
from trailboss.workers.private_tmp import TMP_VARIABLES
from trailboss.workers.process import Process, SpawnFailed
from trailboss.workers.stuck import Look, Speaker, StackLines, look_at, speaker_of
from trailboss_worker.protocol.control import check_handshake, encode_pid, encode_stop, takes_files
from trailboss_worker.protocol.errors import FrameError, RemoteProtocolError, likely_cause
from trailboss_worker.protocol.frames import FrameDecoder

if TYPE_CHECKING:
    from trailboss.workers.pool import Pool

__all__ = ["Worker", "WorkerExit", "WorkerPhase"]

log = logger("server")

#: After its pipes closed, a process gets so long to end by itself, so that its own exit status can be reported.
SELF_EXIT_SECONDS = 0.25
#: Between SIGTERM to the group and SIGKILL, when the stop frame alone did not end it.
TERM_SECONDS = 1.0
#: After SIGKILL the kernel needs a moment; a process stuck in it longer is handed to a reaper of its own.
KILL_SECONDS_MAX = 5.0
#: The slot of a worker that has ended waits so long for its temporary files to go; then they go without being waited for.
TMP_SECONDS = 1.0
#: stderr of a dead worker is read to its end for at most so long: descendants may hold the pipe.
LAST_WORDS_SECONDS = 0.2
#: Before it is killed, or reported as slow, a worker that can say where it is has so long to do so.
STACK_SECONDS = 0.1
#: A kill is carried out after this time even if the owner task does not get to it.
KILL_SURELY_SECONDS = 1.0
#: Breaches that mean that it hangs, so that what it does is of interest.
_HANGING = frozenset({"boot_timeout", "stream timeout", "warmup"})
#: A boot keeps its place among `boot_parallelism` for at most so long: one that takes longer waits for something,
#: and must not keep the workers of other pools from booting.
BOOT_PLACE_SECONDS_MAX = 2.0
#: A first frame with fewer than 12 bytes that cannot be one is called stray output after this time.
STRAY_SECONDS = 1.0


class WorkerPhase(enum.Enum):
    """Phase of a worker's life; READY and BUSY are told apart by its lane."""

    SPAWNING = "spawning"
    HANDSHAKING = "handshaking"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """How a worker left, for the pool's decision on its slot."""

    #: We wanted it to go (reset, limits, stop): no death, no back-off.
    planned: bool
    was_ready: bool
    executions: int
    ready_seconds: float
    #: Trying again cannot help: the command does not exist, may not be executed.
    permanent: bool
    #: One sentence; for a failed boot with the worker's own last output.
    text: str
    #: It died of what it ran.
    busy: bool = False
    #: `text` with one line of what it said instead of several.
    brief: str = ""


class Worker(LaneOwner):
    """See the module's text. Created by its slot, which awaits :meth:`run` exactly once."""

    def __init__(
        self, pool: Pool, number: int, generation: int, limits: WorkerLimits, exec_ttl: float
    ) -> None:
        self._pool = pool
        self._shop = pool.workshop
        self.number = number
        self.generation = generation
        self.phase = WorkerPhase.SPAWNING
        self.process: Process | None = None
        self.lane: Lane | None = None
        self._limits = limits
        self._exec_ttl = exec_ttl
        self._stderr: LineDrain | None = None
        self._voice: BootVoice | None = None
        self._stdout_log: LineDrain | None = None
        self._wake = trio.Event()
        self._exited = False
        self._breach: Breach | None = None
        self.retire_cause: RetireCause | None = None
        self._drain_deadline = float("inf")
        self._kill_cause = ""
        self._hello = False
        self._takes_files = False
        self._relay_fd = -1
        self._greeting: FrameDecoder | None = None
        self.spawned_at = 0.0
        self.ready_at = 0.0
        self.created_ns = 0
        self._settled = False
        self._self_exit = False
        #: It was told to stop, or asked for it: its end is no death.
        self._told_to_stop = False
        self._died_in = ""
        self._doing: Exec | None = None
        #: When its last execution ended with it.
        self._ended_at = 0.0
        #: The pool knows of its death.
        self._is_noted = False
        self._has_place = False
        #: It has said that its time is over.
        self._is_due = False
        #: Set while it warms up: each request of that is no execution.
        self._warming = False
        #: (seconds, bytes) of the first and the last look at its memory.
        self._memory_first: tuple[float, int] | None = None
        self._memory_last: tuple[float, int] | None = None
        #: Whoever has shaken hands.
        self._speaker = Speaker(0)
        self._is_slow = False
        #: What it was doing when it was killed, and its stack.
        self._seen = Look()
        self._stack: tuple[str, ...] = ()
        #: The signal that asked it to end before it was to be killed.
        self._asked_by = ""
        #: Its command line, for people.
        self.command = ""
        #: Proves to the RPC port that a caller belongs to it.
        self._token = new_token()
        #: Its control group, and how many in there the kernel has killed for want of memory.
        self._leaf: Leaf | None = None
        #: Its folder for temporary files, where it has one of its own.
        self._tmp = ""
        self._oom_kills = 0

    def __repr__(self) -> str:
        pid = self.process.pid if self.process else "-"
        return f"<Worker pool={self._pool.name} slot={self.number} pid={pid} {self.phase_word}>"

    @property
    def pid(self) -> int:
        """Process id, 0 before the spawn."""
        return self.process.pid if self.process else 0

    @property
    def was_ready(self) -> bool:
        """Whether it was ready once (handshake and warm-up done), whatever came later."""
        return self.ready_at > 0.0

    @property
    def is_serving(self) -> bool:
        """Whether it is ready or busy, and stays, as far as is known."""
        lane = self.lane
        return (
            self.phase is WorkerPhase.READY
            and self.retire_cause is None
            and lane is not None
            and not lane.closed
            and not self._exited
        )

    @property
    def is_busy(self) -> bool:
        """Whether an exec is under way."""
        return self.lane is not None and self.lane.current is not None

    @property
    def phase_word(self) -> str:
        """The phase in words; "busy" where an exec is under way."""
        if self.phase is WorkerPhase.READY and self.is_busy:
            return "busy"
        return self.phase.value

    def note_memory(self, used: int) -> None:
        """Remember what it uses now, for the trend in a death record."""
        now = trio.current_time()
        if self._memory_first is None:
            self._memory_first = (now, used)
        self._memory_last = (now, used)

    def _memory_growth(self) -> float:
        """Bytes per hour from the first to the last look; 0 where there were not two a while apart."""
        first, last = self._memory_first, self._memory_last
        if first is None or last is None or last[0] - first[0] < 1.0:
            return 0.0
        return (last[1] - first[1]) / (last[0] - first[0]) * 3600.0

    # --- wishes and facts from outside ------------------------------------------------------------------------------

    def retire(self, cause: RetireCause, deadline: float = float("inf")) -> None:
        """Finish what runs, take nothing new, then go; killed if still busy at `deadline`. The first cause stays."""
        if self.retire_cause is None:
            self.retire_cause = cause
        self._drain_deadline = min(self._drain_deadline, deadline)
        if self.lane is not None and not self.lane.closed:
            self.lane.retiring = True
            self._pool.lane_gone(self.lane)
        self._poke()

    def kill(self, cause: str) -> None:
        """End it, SIGKILL to the group; `cause` goes into the death record. A second call does so at once.

        Before that the owner task looks at what it does, and gives it `term_grace` where that is configured.
        """
        again, process = bool(self._kill_cause), self.process
        self._kill_cause = self._kill_cause or cause
        if process is not None:
            if again or not self.was_ready:
                process.signal_group(signal.SIGKILL)
            else:
                # Whatever may keep the owner task.
                surely = trio.current_time() + self._pool.config.supervisor.term_grace + KILL_SURELY_SECONDS
                self._shop.reactor.wheel.add(surely, lambda _now: process.signal_group(signal.SIGKILL))
        self._poke()

    def lane_broken(self, breach: Breach) -> None:
        """Fact from the reactor."""
        if self._breach is None:
            self._breach = breach
        self._poke()

    def quota_used(self) -> bool:
        """Fact from the reactor: the quota is used up, or so nearly that its replacement should be on its way."""
        lane = self.lane
        if lane is None or lane.executions >= self._limits.executions:
            return True
        lane.executions_max = self._limits.executions
        self._pool.due(self, RetireCause.MAX_JOBS)
        return False

    def lane_spent(self) -> None:
        """Fact from the reactor: the last answer is given."""
        if self._warming:
            self._poke()
            return
        if self._ending():
            return
        if self.retire_cause is None:
            asked = self.lane is not None and self.lane.asked_to_stop
            self.retire_cause = RetireCause.ASKED if asked else RetireCause.MAX_JOBS
            if self._pool.debug:
                self.retire_cause = RetireCause.DEBUG
        self._poke()

    def is_dying(self) -> bool:
        """Whether the process has ended, or has been killed and only has not ended yet."""
        return self.process is None or self.process.is_dying()

    def exec_overdue(self, exec_: Exec, begun: bytes) -> None:
        """Fact from the reactor: exec_ttl has passed over `exec_`, which gets its outcome there."""
        self._doing = exec_
        if begun and self._breach is None:
            self._breach = Breach("exec_ttl", "it had begun to say something", begun, likely_cause(begun))
        self.kill("exec_ttl")

    def exec_slow(self) -> None:
        """Fact from the reactor: slow_log has passed over what it runs."""
        self._is_slow = True
        self._poke()

    def _poke(self) -> None:
        self._wake.set()

    async def _wait(self, deadline: float) -> None:
        """Sleep until poked or until `deadline`."""
        with trio.move_on_at(deadline):
            await self._wake.wait()
        self._wake = trio.Event()

    def _ending(self) -> bool:
        """Whether a fact or a kill ends this life, rather than a plan."""
        return self._exited or self._breach is not None or bool(self._kill_cause)

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> WorkerExit:
        """Live one life; returns when the process is reaped and everything of it is released.

        On cancellation: the group is killed and reaped, then Cancelled goes on.
        """
        try:
            try:
                with self._shop.telemetry.start("worker.boot", {"trailboss.pool": self._pool.name}) as span:
                    failed = await self._boot()
                    span.set("process.pid", self.pid)
                    if failed is not None or self._ending():
                        span.fail(failed.text if failed is not None else self._cause()[1])
                if failed is not None:
                    return failed
                if not self._ending():
                    await self._serve()
                    await self._stop()
            finally:
                if self.process is not None:
                    seconds = KILL_SECONDS_MAX + 2 + self._pool.config.supervisor.term_grace
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
                        await self._bury()
            return self._report()
        finally:
            self.phase = WorkerPhase.EXITED
            if self._leaf is not None and self._shop.cgroups is not None:
                self._shop.cgroups.discard(self._leaf)
            if self._tmp:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + TMP_SECONDS):
                    await self._shop.remove_tmp(self._tmp)

    async def _boot(self) -> WorkerExit | None:
        """Spawn and shake hands; None means go on (ready, or already ending)."""
        pool, shop = self._pool, self._shop
        await shop.boot_limiter.acquire_on_behalf_of(self)
        self._has_place = True
        try:
            if self.retire_cause is not None:
                return WorkerExit(True, False, 0, 0.0, False, "not started")
            self.spawned_at = trio.current_time()
            deadline = self.spawned_at + pool.config.boot_timeout
            wall = time.time()
            self.created_ns = int(wall * 1e9)
            try:
                self._leaf = shop.new_leaf(pool.spec)
                launch = shop.launch(pool.spec, self._leaf)
                self.command = " ".join(launch.argv)
                self._tmp = await shop.new_tmp(pool.spec, launch.identity)
                tmp = dict.fromkeys(TMP_VARIABLES, self._tmp) if self._tmp else {}
                self.process = await shop.spawner(
                    launch.argv,
                    {**launch.environment, **tmp, TOKEN_VARIABLE: self._token},
                    wall=wall,
                    identity=launch.identity,
                    prefix=launch.prefix,
                    umask=launch.umask,
                    directory=shop.directory or None,
                    stdin=launch.stdin,
                    files=launch.files,
                )
            except SpawnFailed as error:
                return self._spawn_failed(f"{launch.key}: {error}", permanent=error.permanent)
            except LookupError as error:
                return self._spawn_failed(str(error), permanent=True)
            self.phase = WorkerPhase.HANDSHAKING
            self._register(self.process)
            await self._shake_hands(self.process, deadline)
        finally:
            self._give_place()
        return None

    def _give_place(self) -> None:
        if self._has_place:
            self._has_place = False
            self._shop.boot_limiter.release_on_behalf_of(self)

    def _register(self, process: Process) -> None:
        shop = self._shop
        shop.guard.add(process.pid)
        shop.callers.add(process.pid, CallerRole.WORKER, self._pool.name, self._token)
        shop.reactor.register(process.pidfd, self._on_exit)
        self._voice = self._pool.boot_output.voice(self._log_line)
        self._stderr = self._line_drain(process.stderr_fd, self._voice.line)

    def _log_line(self, line: str) -> None:
        log.info(line, pid=self.pid, pool=self._pool.name)

    def _line_drain(self, fd: int, emit: Callable[[str], None]) -> LineDrain:
        settings = self._shop.settings
        return LineDrain(
            self._shop.reactor,
            fd,
            emit,
            line_max=settings.stderr_line_max,
            rate=settings.stderr_rate,
            secret=self._token,
        )

    def _on_exit(self) -> None:
        assert self.process is not None
        if not self.process.has_exited():
            return  # an event of this batch that was meant for a descriptor closed since
        self._shop.reactor.unregister(self.process.pidfd)
        self._exited = True
        if self.lane is not None and not self.lane.closed:
            # Nothing new for it. What it has answered is still read, by the owner task.
            self.lane.retiring = True
            self._pool.lane_gone(self.lane)
        self._poke()

    def has_ended_unnoticed(self) -> bool:
        """Whether the process has ended and this task has not been told; asks the kernel."""
        process = self.process
        return process is not None and not self._exited and process.status is None and process.has_exited()

    def look_for_exit(self) -> None:
        """Find out that the process has ended, should nobody have told."""
        if self.has_ended_unnoticed():
            self._on_exit()

    async def _shake_hands(self, process: Process, deadline: float) -> None:
        shop = self._shop
        hub = shop.hub
        if hub is None:
            self._greeting = FrameDecoder(64 * 1024)
            shop.reactor.register(process.stdout_fd, self._on_greeting, None, self._greeting_failed)
            try:
                os.write(process.stdin_fd, encode_pid(os.getpid()))
            except OSError:
                pass  # it has gone already; its exit or the end of its output says so
        else:
            self._stdout_log = self._line_drain(process.stdout_fd, self._log_line)
            hub.expect(process.pid, self._connected)
        try:
            while not (self._hello or self._ending() or self.retire_cause is not None):
                now = trio.current_time()
                if now >= deadline:
                    self._breach = self._boot_breach()
                    break
                place_until = self.spawned_at + BOOT_PLACE_SECONDS_MAX
                if now >= place_until:
                    self._give_place()
                await self._wait(min(deadline, place_until) if self._has_place else deadline)
        finally:
            if hub is not None:
                hub.forget(process.pid)
            elif not self._hello and shop.reactor.is_registered(process.stdout_fd):
                shop.reactor.unregister(process.stdout_fd)
        if self._hello and not self._ending():
            await self._become_ready(process)
        elif self._breach is not None and self._breach.cause == "stdout garbage" and hub is None:
            await self._read_more_garbage(process)

    def _boot_breach(self) -> Breach:
        seconds = self._pool.config.boot_timeout
        text = f"no handshake within boot_timeout ({seconds:g} s)"
        begun = self._greeting.pending_bytes(256) if self._greeting is not None else b""
        return Breach("boot_timeout", text + (", only the beginning of one" if begun else ""), begun)

    def _on_greeting(self) -> None:
        """Reactor: the worker's first bytes on its standard output."""
        process, decoder = self.process, self._greeting
        assert process is not None
        assert decoder is not None
        try:
            data = os.read(process.stdout_fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        reactor = self._shop.reactor
        if not data:
            reactor.unregister(process.stdout_fd)
            stray = decoder.pending_bytes(256)
            hint = FrameError("bad_crc", "", stray).likely_cause() if stray else ""
            self.lane_broken(
                Breach("closed its pipes", "it closed its standard output before the handshake", stray, hint)
            )
            return
        decoder.feed(data)
        try:
            frame = decoder.next_frame()
            if frame is None:
                reactor.wheel.add(reactor.now + STRAY_SECONDS, self._judge_greeting)
                return
            self._speaker = speaker_of(check_handshake(frame), frame)
            self._takes_files = takes_files(frame)
            if decoder.buffered:
                raise FrameError("bad_crc", "", decoder.pending_bytes(256))
        except FrameError as error:
            reactor.unregister(process.stdout_fd)
            self.lane_broken(garbage_breach(error, error.excerpt))
            return
        except RemoteProtocolError as error:
            reactor.unregister(process.stdout_fd)
            self.lane_broken(Breach("handshake", f"its first frame is no handshake: {error}", data[:256]))
            return
        reactor.unregister(process.stdout_fd)
        self._hello = True
        self._poke()

    def _judge_greeting(self, _now: float) -> None:
        """A moment later: bytes that cannot begin a handshake frame are text, whatever may follow."""
        decoder = self._greeting
        if decoder is None or self._hello or self._ending() or not decoder.buffered:
            return
        start = decoder.pending_bytes(256)
        # A frame without options and with the CONTROL flag begins so (wire protocol 2.3); 0x13-0x1D are legal firsts.
        if len(start) < 12 and not 0x13 <= start[0] <= 0x1D:
            process = self.process
            if process is not None and self._shop.reactor.is_registered(process.stdout_fd):
                self._shop.reactor.unregister(process.stdout_fd)
            self.lane_broken(garbage_breach(FrameError("bad_crc", "", start), start))

    def _greeting_failed(self, error: BaseException) -> None:
        self.lane_broken(Breach("internal error", f"{type(error).__name__}: {error}"))

    async def _read_more_garbage(self, process: Process) -> None:
        """Text comes in pieces; a short wait makes the quote in the log readable."""
        breach = self._breach
        assert breach is not None
        await trio.sleep(0.05)
        try:
            more = os.read(process.stdout_fd, 256)
        except OSError:
            more = b""
        if more and len(breach.excerpt) < 256:
            text = (breach.excerpt + more)[:256]
            self._breach = garbage_breach(FrameError("bad_crc", "", text), text)

    def _connected(self, fd: int, rest: bytes, speaker: Speaker) -> None:
        """Hub: our child has connected and shaken hands on `fd`."""
        self._relay_fd = fd
        self._speaker = speaker
        if rest:
            self.lane_broken(garbage_breach(FrameError("bad_crc", "", rest), rest))
        else:
            self._hello = True
            self._poke()

    async def _become_ready(self, process: Process) -> None:
        pool = self._pool
        read_fd, write_fd = process.stdout_fd, process.stdin_fd
        if self._relay_fd >= 0:
            read_fd = write_fd = self._relay_fd
        self.lane = Lane(
            self._shop.reactor,
            pool,
            self,
            process.pid,
            read_fd,
            write_fd,
            payload_cap=pool.config.max_frame_size * 1024 * 1024,
            exec_ttl=self._exec_ttl,
            executions_max=self._limits.executions_soon,
            files=process.files if self._takes_files else None,
            slow_log=pool.config.supervisor.slow_log,
        )
        self.lane.attach()
        if not await self._warm_up():
            return
        self.phase = WorkerPhase.READY
        self.ready_at = self._shop.reactor.touch()
        self._shop.callers.ready(process.pid)
        if self._voice is not None:
            self._voice.ready()
        pool.worker_ready(self)

    async def _warm_up(self) -> bool:
        """Do what `pool.warmup` says. False where that ends this life: it never ended, or failed on trial.

        Requests of a warm-up count for nothing: neither as executions nor for ages.
        """
        pool, lane = self._pool, self.lane
        steps = pool.config.warmup
        if not steps or lane is None:
            return True
        deadline = trio.current_time() + pool.config.warmup_timeout
        self._warming = lane.retiring = True
        try:
            if steps.command:
                failure = await run_warmup_command(self._shop, pool.spec, self.pid, deadline)
            else:
                failure = await self._warm_by_requests(lane, steps.paths, deadline)
        finally:
            self._warming = False
        if self._ending():
            return False
        lane.retiring = self.retire_cause is not None
        pool.executions -= lane.executions
        lane.executions, lane.last_used = 0, 0.0
        if not failure:
            return True
        if lane.current is not None or pool.is_on_trial(self):
            self.lane_broken(Breach("warmup", f"its warm-up failed: {failure}"))
            return False
        log.warning("the warm-up of a worker failed; it goes on", pid=self.pid, pool=pool.name, text=failure)
        return True

    async def _warm_by_requests(self, lane: Lane, paths: tuple[str, ...], deadline: float) -> str:
        """Give it one request after the other; returns what went wrong first."""
        spec = self._pool.spec
        assert spec.warmup_request is not None  # http.pool has it, and only there are paths allowed
        for path in paths:
            outcomes: list[Outcome] = []
            context, body, flags = spec.warmup_request(path)
            label = f"warm-up {path}"
            self._shop.reactor.touch()
            lane.start(Ticket(self._pool, context, body, flags, outcomes.append, label, _take_part))
            while lane.current is not None and not self._ending():
                if trio.current_time() >= deadline:
                    return f"{path} was not answered within warmup_timeout ({self._pool.config.warmup_timeout:g} s)"
                await self._wait(deadline)
            if not outcomes:
                return f"{path}: the worker is gone"
            outcome = outcomes[0]
            if not isinstance(outcome, Answer):
                return f"{path}: {outcome}"
            wrong = spec.is_failure(outcome) if spec.is_failure is not None else ""
            if wrong:
                return f"{path}: {wrong}"
        return ""

    async def _serve(self) -> None:
        """Sleep while the lane works; wake for limits, wishes and facts."""
        lane = self.lane
        if lane is None:
            return
        while not self._ending() and self.retire_cause is None:
            now = trio.current_time()
            busy = lane.current is not None
            due = self._limits.due(now, self.ready_at, lane.last_used)
            if due is not None and not (due is RetireCause.IDLE_TTL and busy) and not self._is_due:
                # It goes when its turn has come (see `upkeep`), and works on until then.
                self._is_due = True
                self._pool.due(self, due)
            check = float("inf")
            if not self._is_due:
                check = self._limits.next_check(now, self.ready_at, lane.last_used, busy=busy)
            if not self._settled:
                settled_at = self.ready_at + self._pool.policy.proof_seconds
                if now >= settled_at:
                    self._settled = True
                    self._pool.worker_settled(self)
                else:
                    check = min(check, settled_at)
            if self._is_slow:
                await self._tell_slow(lane)
            await self._wait(max(check, now + 0.01))

    async def _stop(self) -> None:
        """Planned end: let it finish, ask it to stop, then insist."""
        process = self.process
        assert process is not None
        if self._ending():
            return
        lane = self.lane
        self._told_to_stop = lane is None or lane.asked_to_stop
        if lane is not None:
            self.phase = WorkerPhase.DRAINING
            while lane.current is not None and not self._ending():
                if trio.current_time() >= self._drain_deadline:
                    self.kill(f"still busy when the time to {self._retire_word} was over")
                    return
                if self._is_slow:
                    await self._tell_slow(lane)
                await self._wait(self._drain_deadline)
            if self._ending():
                return
            self.phase = WorkerPhase.STOPPING
            self._told_to_stop = True
            if not lane.closed:
                lane.send_control(encode_stop())
                lane.detach()
        else:
            self.phase = WorkerPhase.STOPPING
        deadline = trio.current_time() + self._pool.config.stop_timeout
        if lane is not None and await self._exits_by(deadline):
            return
        process.signal_group(signal.SIGTERM)
        if not await self._exits_by(
            min(trio.current_time() + TERM_SECONDS, max(deadline, self._drain_deadline))
        ):
            log.warning("a worker did not stop and is killed", pid=process.pid, pool=self._pool.name)

    @property
    def _retire_word(self) -> str:
        return "stop" if self.retire_cause is RetireCause.STOP else "reset"

    async def _exits_by(self, deadline: float) -> bool:
        while not self._exited and not self._kill_cause:
            if trio.current_time() >= deadline:
                return False
            await self._wait(deadline)
        return self._exited

    async def _bury(self) -> None:
        """Kill what is left of the group, read the pipes to their end, reap, release, settle the last exec."""
        process, shop, lane = self.process, self._shop, self.lane
        assert process is not None
        if lane is not None:
            lane.retiring = True  # whatever is still read from it, it gets nothing more to do
        self._died_in = "busy" if self._doing is not None else self.phase_word
        try:
            await self._end_process(process)
        finally:
            # Also when the time for all this was over: the exec has an outcome, nothing is leaked.
            shop.reactor.touch()
            self._release(process)

    async def _end_process(self, process: Process) -> None:
        """Kill the group, wait for the end, read what was said last."""
        lane = self.lane
        closed = self._breach is not None and self._breach.cause == "closed its pipes"
        if closed and not self._exited and not self._kill_cause:
            # Its own exit status says more than our SIGKILL would.
            await self._exits_by(trio.current_time() + SELF_EXIT_SECONDS)
        self._died_in = "busy" if self._doing is not None else self.phase_word
        self._self_exit = (self._exited or process.has_exited()) and not self._kill_cause
        if not process.has_exited():
            await self._before_the_kill(process)
        process.signal_group(signal.SIGKILL)
        if self._leaf is not None:
            self._leaf.kill()  # also what has left the group
        with trio.move_on_after(KILL_SECONDS_MAX):
            # Not by way of the reactor: when everything is cancelled at once it may be gone already.
            while not process.has_exited():
                await trio.lowlevel.wait_readable(process.pidfd)
        self._shop.reactor.touch()
        if self._leaf is not None:
            self._oom_kills = self._leaf.oom_kills()
        if lane is not None and not lane.closed:
            lane.drain()
        await self._last_words()

    async def _before_the_kill(self, process: Process) -> None:
        """Note what a hanging worker does, and give one that is killed a moment to end by itself where configured."""
        if not self._kill_cause and (self._breach is None or self._breach.cause not in _HANGING):
            return
        self._seen, self._stack = await self._look(process, to_the_end=True)
        limits = self._pool.config.supervisor
        if not self._kill_cause or not limits.term_grace or self._seen.state in ("T", "t"):
            return  # one that is stopped could not do anything with it
        self._asked_by = limits.term_signal
        process.signal_group(signal.Signals[limits.term_signal])
        with trio.move_on_after(limits.term_grace):
            while not process.has_exited():
                await trio.lowlevel.wait_readable(process.pidfd)

    async def _look(self, process: Process, *, to_the_end: bool = False) -> tuple[Look, tuple[str, ...]]:
        """What it does now, and its stack if it is one that can tell. `to_the_end`: it will not say anything else."""
        speaker = self._speaker.in_session(process.pid)
        look = look_at(speaker.pid)
        stderr = self._stderr
        if stderr is None or stderr.at_eof or not look.can_be_asked:
            return look, ()
        stack = StackLines()
        stderr.taker = stack.take
        try:
            if speaker.ask_for_stack(process.pid):
                deadline, quiet, heard = trio.current_time() + STACK_SECONDS, 0, 0
                # Nothing marks its end: it is over when nothing more comes.
                while trio.current_time() < deadline and quiet < 3 and not process.has_exited():
                    await trio.sleep(0.005)
                    quiet = quiet + 1 if stack.lines and len(stack.lines) == heard else 0
                    heard = len(stack.lines)
        finally:
            if not to_the_end:
                stderr.taker = None
        return look, tuple(stack.lines)

    async def _tell_slow(self, lane: Lane) -> None:
        """Log what a slow execution is and what the worker does; once for each."""
        self._is_slow = False
        exec_, process = lane.current, self.process
        if exec_ is None or process is None:
            return
        seconds = trio.current_time() - lane.started_at
        look, stack = await self._look(process)
        details: dict[str, object] = {}
        if stack:
            details["stack"] = list(stack)
        if self._stderr is not None and self._stderr.last_lines():
            details["last_output"] = list(self._stderr.last_lines()[-5:])
        log.warning(
            "an execution is slow",
            pid=process.pid,
            pool=self._pool.name,
            doing=exec_.label,
            seconds=round(seconds, 3),
            seen=look.describe(),
            **details,
        )

    def _release(self, process: Process) -> None:
        """Let go of everything, without waiting for anything."""
        shop, lane = self._shop, self.lane
        if lane is not None:
            lane.detach()
            self._pool.lane_gone(lane)
        for drain in (self._stderr, self._stdout_log):
            if drain is not None:
                drain.close()
        shop.reactor.unregister(process.stdout_fd)
        shop.reactor.unregister(process.pidfd)
        if process.has_exited():
            process.reap()
        else:
            # The time for all this may have passed before the signal was sent: this process was stopped, and then went on.
            process.signal_group(signal.SIGKILL)
            self._pool.reap_later(process)
        shop.callers.discard(process.pid)
        shop.guard.discard(process.pid)
        shop.guard.end_strays(self._token)
        self._ended_at = shop.reactor.touch()
        self._pool.leave_out_the_dying()
        self._settle_exec()
        if process.status is not None:
            process.close()
        if self._relay_fd >= 0:
            os.close(self._relay_fd)
            self._relay_fd = -1

    async def _last_words(self) -> None:
        deadline = trio.current_time() + LAST_WORDS_SECONDS
        for drain in (self._stderr, self._stdout_log):
            if drain is None:
                continue
            drain.drain()
            while not drain.at_eof and trio.current_time() < deadline:
                # A descendant that left the group holds the pipe; it has a moment, not more.
                await trio.sleep(0.01)
                drain.drain()

    # --- the report -------------------------------------------------------------------------------------------------

    def _settle_exec(self) -> None:
        """The exec that was under way gets its one outcome: death, with the cause; or another worker."""
        lane = self.lane
        if lane is None or lane.current is None:
            return
        exec_: Exec = lane.current
        unread = lane.request_is_unread()
        lane.current = None
        exec_.moves += unread
        if unread and exec_.moves <= MOVES_MAX:
            self._died_in = "ready"  # it had not begun
            self._pool.resubmit(exec_)
            return
        self._doing = exec_
        cause, text = self._cause()
        try:
            self._note_death(cause)  # first, so that a retry is judged by it
            text = f"worker {self.pid} died: {text}"
            output = self._stderr.last_lines() if self._stderr is not None else ()
            exec_.on_outcome(WorkerDied(text, pid=self.pid, cause=cause, sent=not unread, output=output))
        except Exception:
            log.exception("the receiver of an outcome failed", pid=self.pid, pool=self._pool.name)

    def _note_death(self, cause: str) -> None:
        """Tell the pool, once."""
        if not self._is_noted:
            self._is_noted = True
            began = self.lane.started_at if self.lane is not None else 0.0
            self._pool.note_death(self, self._doing, cause, began=began, ended=self._ended_at)

    def _cause(self) -> tuple[str, str]:
        """Cause class and sentence; our own reasons first, then what the worker did, then how it exited."""
        status = self.process.status if self.process is not None else None
        how = status.describe() if status is not None else "it cannot be killed"
        breach = self._breach
        if self._kill_cause == "exec_ttl":
            begun = ", only the beginning of something" if breach is not None and breach.excerpt else ""
            return (
                "exec_ttl",
                f"no answer within exec_ttl ({self._exec_ttl:g} s){begun}, {self._end_word(how)}",
            )
        if self._kill_cause:
            return "killed", f"{self._kill_cause}, {self._end_word(how)}"
        if self._oom_kills and (status is None or status.signal == signal.SIGKILL):
            limit = self._pool.config.process.memory_max
            where = (
                f"it used more than memory_max ({limit} MB)"
                if limit
                else "no memory was left for its control group"
            )
            return "oom", f"the kernel killed it: {where}"
        if breach is not None and breach.cause != "closed its pipes":
            return (
                breach.cause,
                f"{breach.text} ({how})" if breach.cause == "script not found" else breach.text,
            )
        if breach is not None and not self._self_exit:
            return breach.cause, f"{breach.text} but did not exit, killed"
        if status is not None and status.signal is not None:
            return "signal", how
        return "exit", how

    def _end_word(self, how: str) -> str:
        """How one that was to be killed ended."""
        status = self.process.status if self.process is not None else None
        if not self._asked_by or status is None or status.signal == signal.SIGKILL:
            return "killed"
        return f"it ended at {self._asked_by} ({how})"

    def _report(self) -> WorkerExit:
        process = self.process
        assert process is not None
        lane = self.lane
        was_ready = self.was_ready
        executions = lane.executions if lane is not None else 0
        ready_seconds = trio.current_time() - self.ready_at if was_ready else 0.0
        if self.retire_cause is not None and self._ended_as_planned():
            cause = self.retire_cause
            log.info("worker stopped", pid=process.pid, pool=self._pool.name, cause=cause.value)
            # One that asks to go without ever having answered is no better than one that dies: it is paced.
            planned = cause is not RetireCause.ASKED or executions > 0
            text = cause.value if planned else "it asked to be replaced before it had answered anything"
            return WorkerExit(planned, was_ready, executions, ready_seconds, False, text)
        record = self._death_record(process, executions)
        self._shop.deaths.add(record)
        self._note_death(record.cause)
        details: dict[str, object] = {}
        if record.doing:
            details["doing"] = record.doing
        if record.stray_output:
            details["stray_output"] = record.stray_output
        if record.hint:
            details["hint"] = record.hint
        if record.seen:
            details["seen"] = record.seen
        if record.stack:
            details["stack"] = list(record.stack)
        if record.last_output and not was_ready:
            # All of it is in the log already, from this worker or from one before it.
            details["last_output"] = telling_line(record.last_output)
            if self._voice is not None and self._voice.died():
                details["same_output_as_before"] = True
        log.warning(
            "worker died",
            pid=process.pid,
            pool=self._pool.name,
            cause=record.cause,
            text=record.text,
            phase=record.phase,
            age_seconds=round(record.age_seconds, 3),
            executions=executions,
            **details,
        )
        permanent = record.cause == "script not found"
        text, busy = _with_output(record), self._doing is not None
        brief = _in_brief(record)
        return WorkerExit(False, was_ready, executions, ready_seconds, permanent, text, busy, brief)

    def _ended_as_planned(self) -> bool:
        """Whether the end followed our wish. A worker killed by somebody while it finished its last exec has died."""
        if self._kill_cause or self._doing is not None:
            return False
        return self.lane is None or self._told_to_stop

    def _death_record(self, process: Process, executions: int) -> DeathRecord:
        cause, text = self._cause()
        status = process.status
        breach = self._breach
        doing = self._doing
        return DeathRecord(
            at=time.time(),
            pool=self._pool.name,
            pid=process.pid,
            cause=cause,
            text=text,
            exit_code=status.exit_code if status else None,
            signal=status.signal if status else None,
            phase=self._died_in,
            doing=doing.label if doing is not None else "",
            age_seconds=trio.current_time() - self.spawned_at,
            executions=executions,
            user_seconds=status.user_seconds if status else 0.0,
            system_seconds=status.system_seconds if status else 0.0,
            memory_peak_bytes=status.memory_peak_bytes if status else 0,
            last_output=self._stderr.last_lines() if self._stderr is not None else (),
            stray_output=quote(breach.excerpt).replace(self._token, "***") if breach is not None else "",
            hint=self._hint(),
            memory_growth_bytes_per_hour=self._memory_growth(),
            seen=self._seen.describe(),
            stack=self._stack,
        )

    def _hint(self) -> str:
        breach = self._breach
        if breach is not None and breach.hint:
            return breach.hint
        if self._oom_kills and self._cause()[0] != "oom":
            return f"the kernel has killed {self._oom_kills} of its processes for want of memory"
        return ""

    def _spawn_failed(self, text: str, *, permanent: bool) -> WorkerExit:
        now = time.time()
        self._shop.deaths.add(
            DeathRecord(now, self._pool.name, 0, "spawn failed", text, None, None, "spawning", "", 0.0, 0)
        )
        log.error("a worker could not be started", pool=self._pool.name, text=text)
        return WorkerExit(False, False, 0, 0.0, permanent, text)


def _take_part(_flags: int, _context: bytes, _body: bytes) -> bool:
    """Receiver of a streamed answer that nobody reads."""
    return True


def _in_brief(record: DeathRecord) -> str:
    """The death in one sentence, with the line of the worker's own that says most."""
    line = telling_line(record.last_output)
    return "; ".join([f"{record.text}: {line}" if line else record.text, *_seen(record)])


def telling_line(lines: Sequence[str]) -> str:
    """The last line that says something: no place of a traceback, neither Python's nor PHP's."""
    for line in reversed(lines):
        if line.strip() and not line.startswith((" ", "\t", "#", "Stack trace:")):
            return line
    return ""


def _seen(record: DeathRecord) -> list[str]:
    parts = [record.hint] if record.hint else []
    if record.stray_output:
        parts.append(f'on standard output: "{record.stray_output}"')
    return parts


def _with_output(record: DeathRecord) -> str:
    """The death in one sentence, followed by the worker's own last words."""
    parts = [record.text, *_seen(record)]
    if record.last_output:
        parts.append("last output: " + " | ".join(record.last_output[-8:]))
    return "; ".join(parts)
