"""One run of chaos: stage after stage an instance is started, hurt, brought to rest, looked at, and stopped.

The clients go on through all of it, also while there is no server. An injection is done when everything is whole again;
where that does not happen in time the stage ends, since what follows could not be told from what came before.
"""

# ruff: noqa: ASYNC110  the other side is a process: it is asked, it tells nobody
from __future__ import annotations

import random
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from trailboss.chaos.client import CallFailed, ConnectionGone
from trailboss.chaos.growing import (
    GROWING_WORKER,
    STEP_BYTES,
    ServerGroups,
    can_grow,
    grow,
    kill_for_memory,
    limit_to_pass,
    write_preload,
)
from trailboss.chaos.instance import ORDER_FILE, Instance, Privacy, TooLate, started_by, until
from trailboss.chaos.load import Load
from trailboss.chaos.plan import Injection, Kind, Plan, Stage
from trailboss.chaos.processes import Seen as Process
from trailboss.chaos.processes import children_of, seen
from trailboss.chaos.verdict import Done
from trailboss.chaos.verdict import Seen as Record
from trailboss.workers.sampling import memory_bytes

__all__ = ["Run", "Wishes"]

#: Beyond the limits of the configuration: for the boot of the replacement, and for a machine with other work.
RECOVERY_SECONDS = 10.0
#: For queues to drain when the faults are over.
REST_SECONDS = 30.0
#: For what connections and dead workers held.
DESCRIPTOR_SECONDS = 6.0
#: Time between two injections: workers prove themselves in it, as they would between faults in real life.
BREATH_SECONDS = 0.15
#: How long clients ask before the memory and the descriptors of a server are noted.
WARM_SECONDS = 0.7
#: The server looks at the memory of its workers every five seconds.
NOTICE_SECONDS = 15.0
_MEGABYTE = 1 << 20
#: A limit of the kernel that no worker reaches by itself; it gives each a group, which `kill_for_memory` needs.
KERNEL_MEGABYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line asked for."""

    words: Sequence[str]  #: flags of the server's command line
    paths: Sequence[str] = ("/",)
    clients: int = 4
    job: str = "trailboss-chaos"
    payload: bytes = b"{}"


@dataclass
class Run:
    """One run. `tell` hears of each stage and injection as it happens."""

    plan: Plan
    privacy: Privacy
    folder: Path
    wishes: Wishes
    tell: Callable[[str, Done | None], None] = lambda text, done: None
    record: Record = field(default_factory=Record)
    #: (stage, begin, end), for the timeline.
    stages: list[tuple[Stage, float, float]] = field(default_factory=list)
    #: A signal has ended the run: the verdict is on what was seen so far.
    interrupted: bool = False
    #: Around the injection that is under way.
    shield: trio.CancelScope = field(default_factory=trio.CancelScope)
    _begin: float = 0.0
    _boot_seconds: dict[str, float] = field(default_factory=dict)
    #: Limits of the memory stage in MB: above what workers use in pools where they can grow, below it elsewhere.
    limits: dict[str, int] = field(default_factory=dict)
    growing: set[str] = field(default_factory=set)
    #: Where the servers of the memory stage can limit their workers.
    groups: ServerGroups | None = None
    #: What the memory stage has changed beyond the others.
    _memory_changes: list[str] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the begin."""
        return trio.current_time() - self._begin

    async def run(self) -> Record:
        """Do all of it; returns what was seen. Whatever happens, no process is left behind."""
        self._begin = trio.current_time()
        load = Load(
            self.now,
            self.record.replies.append,
            self.privacy.http_port,
            self.privacy.socket_path,
            self.wishes.paths,
            self.wishes.clients,
            self.privacy.pipelines,
            self.wishes.job,
            self.wishes.payload,
            gated=self.privacy.gated,
            call_seconds=self.privacy.call_seconds,
        )
        # Signals are ours until everything has been cleared away: a second one does not stop that.
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow, signals, nursery.cancel_scope)
                await self._stages(load)
                nursery.cancel_scope.cancel(reason="the run is over")
        self.record.seconds = self.now()
        self.record.rise(self.record.seconds)
        return self.record

    async def _memory(self, injections: Sequence[Injection], load: Load) -> None:
        """The memory stage: once without faults, to weigh the workers, and then with limits."""
        groups = ServerGroups(secrets.token_hex(4))
        try:
            self.groups = groups if await groups.open() else None
            await _Stage(self, Stage.MEMORY, (), load).run()
            if not self.record.failed_starts:
                await _Stage(self, Stage.MEMORY, injections, load).run()
        finally:
            await groups.close()

    async def _stages(self, load: Load) -> None:
        for stage, injections in self.plan.injections.items():
            self.tell(stage.value, None)
            begin = self.now()
            try:
                if stage is Stage.MEMORY:
                    await self._memory(injections, load)
                else:
                    await _Stage(self, stage, injections, load).run()
            finally:
                self.stages.append((stage, begin, self.now()))
            if self.record.failed_starts:
                break

    async def _follow(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        """End the run at a signal, with everything that it has started."""
        async for number in signals:
            self.interrupted = True
            self.record.fall(self.now())
            self.shield.shield = False
            scope.cancel(reason=f"{signal.Signals(number).name} was received")

    def note_boots(self, pool: str, seconds: float) -> None:
        """Remember the slowest boot of a pool's workers."""
        self._boot_seconds[pool] = max(seconds, self._boot_seconds.get(pool, 0.0))

    def boot_seconds(self, pool: str) -> float:
        """How long a worker of the pool takes to boot."""
        return self._boot_seconds.get(pool, 0.2)

    @property
    def start_seconds(self) -> float:
        """How long the server took to start, lately."""
        return self.record.starts[-1] if self.record.starts else 1.0

    def note_size(self, pool: str, sizes: Sequence[int], *, growing: bool) -> None:
        """Take the sizes of a pool's workers in bytes, and whether they can be made to grow; its limit follows."""
        privacy = self.privacy
        limit = limit_to_pass(max(sizes), privacy.worker_memory[pool], privacy.memory_max[pool])
        if growing and limit is not None:
            self.growing.add(pool)
            self.limits[pool] = limit
        else:
            self.limits[pool] = max(1, int(min(sizes) / _MEGABYTE * 0.7))

    def memory_overrides(self) -> list[str]:
        """What the configuration of the memory stage has beyond the others; limits only when workers have been weighed."""
        found = []
        for pool in self.privacy.pools:
            if pool in self.privacy.commands:
                script = str(self.folder / GROWING_WORKER)
                found.append(started_by(pool, (script, *self.privacy.commands[pool])))
            if self.groups is not None and not self.privacy.memory_max[pool]:
                found.append(f"{pool}.pool.process.memory_max={KERNEL_MEGABYTES}")
            if pool in self.limits:
                found.append(f"{pool}.pool.supervisor.max_worker_memory={self.limits[pool]}")
        self._memory_changes = found
        return found

    @property
    def changes(self) -> list[str]:
        """What was different from the configuration, for people."""
        memory = [f"in the part memory: {text.replace('=', ' = ', 1)}" for text in self._memory_changes]
        return [*self.privacy.told, *memory]


class _Stage:
    """One stage: its instance and what happens to it."""

    def __init__(self, run: Run, stage: Stage, injections: Sequence[Injection], load: Load) -> None:
        self.run_ = run
        self.record = run.record
        self.stage = stage
        self.injections = injections
        self.load = load
        self.instance = self._instance()
        self._chance = random.Random(f"{run.plan.seed} {stage.value} victims")

    def _instance(self) -> Instance:
        run = self.run_
        if self.stage is not Stage.MEMORY:
            return Instance(run.folder, run.wishes.words, run.privacy)
        write_preload(run.folder)
        group = run.groups.new_group() if run.groups is not None else ""
        return Instance(run.folder, run.wishes.words, run.privacy, run.memory_overrides(), group)

    @property
    def _restless(self) -> set[str]:
        """Pools that are never whole for long: every worker of them is above its limit, and due."""
        if self.stage is not Stage.MEMORY or not self.injections:
            return set()
        return set(self.run_.privacy.pools) - self.run_.growing

    async def run(self) -> None:
        """Live through it. The instance is gone at the end, whichever way it ends."""
        async with trio.open_nursery() as nursery:
            try:
                self.record.fall(self.run_.now())
                self.load.acknowledged = 0
                self.instance.start()
                up = trio.Event()
                nursery.start_soon(self._watch_start, up)
                if not await self._wait_ready():
                    return
                await self._prepare()
                up.set()
                async with trio.open_nursery() as clients:
                    await clients.start(self.load.run)
                    await self._warm_up()
                    with trio.move_on_after(self.run_.plan.seconds[self.stage]):
                        await self._inject()
                    await self._calm_down()
                    clients.cancel_scope.cancel(reason="the faults are over")
                await self._look_at_it()
                await nursery.start(self.load.run)  # the stop happens under load
                await self._stop()
            finally:
                self.instance.sweep()
                nursery.cancel_scope.cancel(reason="the stage is over")

    async def _watch_start(self, up: trio.Event) -> None:
        """Call the RPC port while the server starts: the gate is judged from its first moment."""
        privacy = self.run_.privacy
        probe = Load(
            self.run_.now,
            self.record.replies.append,
            None,
            privacy.socket_path,
            gated=privacy.gated,
            call_seconds=privacy.call_seconds,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(probe.run)
            await up.wait()
            await probe.wait_rest()
            nursery.cancel_scope.cancel(reason="the server is ready")

    async def _wait_ready(self) -> bool:
        began = trio.current_time()
        try:
            await self.instance.wait_ready()
        except TooLate as error:
            self.record.failed_starts.append(str(error))
            return False
        self.record.starts.append(trio.current_time() - began)
        self.record.rise(self.run_.now())
        return True

    async def _prepare(self) -> None:
        """What is noted of a server that nobody has used yet."""
        await self.instance.wait_whole(RECOVERY_SECONDS)
        self.instance.note_rest()
        for row in self.instance.log():
            if row.get("msg") == "worker ready":
                self.run_.note_boots(row["pool"], row["boot_seconds"])
        if self.load.http_port is not None and not self.load.usual:
            await self.load.usual_statuses()

    async def _warm_up(self) -> None:
        await trio.sleep(WARM_SECONDS)
        if self.stage is Stage.MEMORY and not self.injections:
            await self._weigh()
        self.instance.memory_before = self.instance.memory()

    async def _weigh(self) -> None:
        """Note how large the workers are, and which of them can be made to grow."""
        privacy = self.run_.privacy
        for pool in privacy.pools:
            pids = [worker["pid"] for worker in await self.instance.workers(pool)]
            sizes = [memory_bytes(pid, proportional=pool in privacy.proportional) for pid in pids]
            growing = bool(pids) and all(map(can_grow, pids))
            self.run_.note_size(pool, sizes or [0], growing=growing)

    # --- injections ---

    async def _inject(self) -> None:
        for injection in self.injections:
            done = Done(injection, self.run_.now())
            began = trio.current_time()
            self.run_.shield = trio.CancelScope(shield=True)
            with self.run_.shield:  # one that has begun is waited for; its waits are bounded
                try:
                    await self._carry_out(done)
                    done.recovered = trio.current_time() - began
                except (TooLate, CallFailed, ConnectionGone, trio.TooSlowError) as error:
                    what = str(error) or type(error).__name__
                    done.note = f"{done.note}; {what}" if done.note else what
                except trio.Cancelled:
                    done.over = False
                    raise
                finally:
                    self.record.done.append(done)
            self.run_.tell(done.injection.describe(), done)
            if done.recovered is None or self.instance.exit_code is not None:
                return
            await trio.sleep(BREATH_SECONDS)

    async def _carry_out(self, done: Done) -> None:
        actions: dict[Kind, Callable[[Done], Awaitable[None]]] = {
            Kind.KILL: self._kill,
            Kind.KILL_ALL: self._kill_all,
            Kind.PAUSE: self._pause,
            Kind.FREEZE: self._freeze,
            Kind.KILL_BOOT: self._boot,
            Kind.FREEZE_BOOT: self._boot,
            Kind.KILL_CALL: self._boot,
            Kind.RESET: self._reset,
            Kind.RESIZE: self._resize,
            Kind.POWER: self._power,
            Kind.POWER_BOOT: self._power,
            Kind.GROW: self._grow,
            Kind.OOM: self._oom,
        }
        await actions[done.injection.kind](done)

    async def _victim(self, done: Done) -> Process:
        """A ready worker of the injection's pool, one that has done something where there is such a one."""
        rows = await self.instance.workers(done.injection.pool)
        proved = [row for row in rows if row["numExecs"] > 0] or rows
        if not proved:
            raise TooLate("there was no worker to hurt")
        row = proved[int(done.injection.chance * len(proved))]
        process = seen(row["pid"])
        if process is None:
            raise TooLate(f"worker {row['pid']} was told of but is not there")
        return process

    async def _kill(self, done: Done) -> None:
        victim = await self._victim(done)
        done.victims += victim.send(signal.SIGKILL)
        await self._whole([victim])

    async def _kill_all(self, done: Done) -> None:
        rows = await self.instance.workers(done.injection.pool)
        victims = [process for row in rows if (process := seen(row["pid"])) is not None]
        for victim in victims:
            done.victims += victim.send(signal.SIGKILL)
        await self._whole(victims)

    async def _pause(self, done: Done) -> None:
        victim = await self._victim(done)
        ttl = self.run_.privacy.exec_ttl[done.injection.pool]
        # Shorter than exec_ttl: nobody may notice more than a delay. Otherwise it is a freeze.
        done.victims += done.injection.seconds + 0.3 >= ttl
        victim.send(signal.SIGSTOP)
        await trio.sleep(done.injection.seconds)
        victim.send(signal.SIGCONT)
        await self._whole([])

    async def _freeze(self, done: Done) -> None:
        victim = await self._victim(done)
        done.victims += victim.send(signal.SIGSTOP)
        await self._find_out(done.injection.pool)
        await self._whole([victim], self.run_.privacy.exec_ttl[done.injection.pool])

    async def _boot(self, done: Done) -> None:
        """Kill a worker, and hurt its replacement in its own start."""
        injection = done.injection
        if injection.kind is Kind.KILL_CALL:
            (self.run_.folder / ORDER_FILE).write_text(f"{injection.call} {injection.count}\n")
        first = await self._victim(done)
        before = set(children_of(self.instance.pid))
        done.victims += first.send(signal.SIGKILL)
        newborn = await self._newborn(before)
        boot = self.run_.boot_seconds(injection.pool)
        if injection.kind is Kind.KILL_CALL:
            done.victims += 1  # a call beyond those of the start hits it later, at work
            await self._whole([first], boot)
            return
        await trio.sleep(boot * injection.at)
        freezes = injection.kind is Kind.FREEZE_BOOT
        done.hit = newborn.send(signal.SIGSTOP if freezes else signal.SIGKILL)
        limit = max(
            self.run_.privacy.boot_timeout[injection.pool], self.run_.privacy.exec_ttl[injection.pool]
        )
        if (
            freezes and injection.at >= 0.7
        ):  # it may have been ready: then work finds it out, not the boot's deadline
            await trio.sleep(2 * boot)
            await self._find_out(injection.pool)
        await self._whole([first, newborn], limit if freezes else boot)
        if done.hit and self._was_ready(newborn.pid):
            done.victims += 1

    def _was_ready(self, pid: int) -> bool:
        """Whether the log says that a worker had come up."""
        return any(row.get("msg") == "worker ready" and row.get("pid") == pid for row in self.instance.log())

    async def _find_out(self, pool: str) -> None:
        """Give every worker of the pool something to do, so that a frozen one is noticed."""
        await self.load.burst(pool, 2 * self.run_.privacy.pools[pool])

    async def _newborn(self, before: set[int]) -> Process:
        deadline = trio.current_time() + RECOVERY_SECONDS
        while True:
            for pid in set(children_of(self.instance.pid)) - before:
                process = seen(pid)
                if process is not None:
                    return process
            if trio.current_time() > deadline:
                raise TooLate("no replacement was started")
            await trio.sleep(0.0005)

    async def _reset(self, done: Done) -> None:
        """Kill a worker at some moment of a reset; the reset may fail for that, and must then say so."""
        victim = await self._victim(done)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ignoring_failure, "resetter.Reset", done.injection.pool)
            await trio.sleep(self.run_.boot_seconds(done.injection.pool) * done.injection.seconds)
            done.hit = victim.send(signal.SIGKILL)
            done.victims += done.hit
        await self._whole([victim])

    async def _resize(self, done: Done) -> None:
        victim = await self._victim(done)
        pool = done.injection.pool
        await self.instance.call("informer.AddWorker", pool)
        done.victims += victim.send(signal.SIGKILL)
        await self._ignoring_failure("informer.RemoveWorker", pool)
        await self._whole([victim])
        for _ in range(3):
            if (await self.instance.pools())[pool]["configured"] <= self.run_.privacy.pools[pool]:
                break
            await self._ignoring_failure("informer.RemoveWorker", pool)
            await self._whole([])

    async def _ignoring_failure(self, method: str, argument: object) -> None:
        try:
            await self.instance.call(method, argument, 60.0)
        except CallFailed:
            return  # told why; what counts is that the pool is whole afterwards

    async def _power(self, done: Done) -> None:
        """The server is gone from one moment to the next, and is started again."""
        seconds = done.injection.seconds
        if done.injection.kind is Kind.POWER:
            await trio.sleep(seconds)
        await self._lose()
        if done.injection.kind is Kind.POWER_BOOT:
            self._start_again()
            await trio.sleep(self.run_.start_seconds * done.injection.at)
            await self._lose()
        self._start_again()
        if not await self._wait_ready():
            raise TooLate("it does not start again")
        await self._prepare()
        self.instance.memory_before = self.instance.memory()

    async def _lose(self) -> None:
        self.record.fall(self.run_.now())
        self.instance.kill()
        self._read_log()
        self.record.left += await self.instance.left_over()

    def _start_again(self) -> None:
        self.instance.sweep()
        self.load.acknowledged = 0  # what the killed server had in its memory went with it
        self.instance = self._instance()
        self.instance.start()

    async def _grow(self, done: Done) -> None:
        """Let a worker use more and more memory, until the server has replaced it for that."""
        pool, run = done.injection.pool, self.run_
        if pool not in run.growing:
            await self._limit(done)
            return
        victim = await self._victim(done)
        limit = run.limits[pool] * _MEGABYTE

        def used() -> int:
            return memory_bytes(victim.pid, proportional=pool in run.privacy.proportional)

        async with trio.open_nursery() as nursery:
            before = used()
            grown = await grow(
                victim, used, limit + STEP_BYTES, lambda: nursery.start_soon(self._find_out, pool)
            )
            after = used()
        done.note = f"from {before >> 20} to {after >> 20} MiB, limit {limit >> 20}"
        if not grown:
            done.hit = False  # it was replaced for something else just now, or does not take its signals
            return
        await self._noticed(pool, victim.pid)
        await self._whole([victim], run.privacy.exec_ttl[pool])

    async def _limit(self, done: Done) -> None:
        """Every worker is above its limit from the start on; look on until one has been replaced for it."""
        done.injection = replace(done.injection, kind=Kind.LIMIT)
        await self._noticed(done.injection.pool)
        await trio.sleep(1.0)

    async def _noticed(self, pool: str, pid: int = 0) -> None:
        """Wait until the server says that a worker of the pool is above its limit. Raises TooLate."""

        def is_noticed() -> bool:
            return any(
                row.get("msg") == "worker above max_worker_memory"
                and row.get("pool") == pool
                and pid in (0, row.get("pid"))
                for row in self.instance.log()
            )

        what = f"worker {pid}" if pid else "a worker"
        await until(is_noticed, NOTICE_SECONDS, f"{what} of {pool} replaced for its memory", 0.1)

    async def _oom(self, done: Done) -> None:
        """Have a worker killed for want of memory: by the kernel, or as it would."""
        victim = await self._victim(done)
        done.victims += 1
        if not await kill_for_memory(victim):
            done.injection = replace(done.injection, kind=Kind.OOM_LIKE)
        await self._whole([victim])

    async def _whole(self, gone: Sequence[Process], more: float = 0.0) -> None:
        # A whole pool that boots takes as long as at the start of the server, beside the load even longer.
        limit = RECOVERY_SECONDS + more + 3 * self.run_.start_seconds
        await self.instance.wait_whole(limit, gone, self._restless)

    # --- the end ---

    def _is_up(self) -> bool:
        return self.instance.exit_code is None and not self.record.failed_starts

    async def _calm_down(self) -> None:
        """Let every client have its answer."""
        with trio.move_on_after(REST_SECONDS) as scope:
            await self.load.wait_rest()
        if scope.cancelled_caught:
            self.record.restless.append(f"clients still waited {REST_SECONDS:g} s after the faults had ended")

    async def _look_at_it(self) -> None:
        """Wait for rest, and note what the server has kept and gained."""
        instance, record = self.instance, self.record
        if not self._is_up():
            return
        try:
            if self.run_.privacy.pipelines:
                await self._books()
            await instance.wait_whole(RECOVERY_SECONDS, but=self._restless)
        except (TooLate, CallFailed, ConnectionGone, trio.TooSlowError) as error:
            record.restless.append(str(error) or type(error).__name__)
        if not self._is_up():
            return
        if not self._restless:
            with trio.move_on_after(DESCRIPTOR_SECONDS):
                while instance.gained():
                    await trio.sleep(0.05)
            record.descriptors += instance.gained()
        record.memory.append((instance.memory_before, instance.memory()))

    async def _stop(self) -> None:
        instance, record = self.instance, self.record
        if self.record.failed_starts:
            return
        if instance.exit_code is None:
            await trio.sleep(BREATH_SECONDS)
            record.fall(self.run_.now())
            try:
                record.exits.append(await instance.stop())
            except TooLate as error:
                record.died.append(str(error))
            instance.kill()
        else:
            record.died.append(f"it ended by itself with {instance.exit_code}: {instance.last_words()}")
            record.fall(self.run_.now())
        record.left += await instance.left_over()
        self._read_log()

    async def _books(self) -> None:
        """Wait until nothing is left to do in the consumed pipelines, and write the books down. Raises TooLate."""
        deadline = trio.current_time() + REST_SECONDS
        while True:
            books = await self.instance.call("jobs.Books")
            rows = [books["pipelines"][name] for name in self.run_.privacy.pipelines]
            if not sum(row["waiting"] + row["running"] + row["delayed"] for row in rows):
                break
            if trio.current_time() > deadline and sum(row["delayed"] for row in rows):
                break  # the application puts them off again and again; they are in the books
            if trio.current_time() > deadline:
                raise TooLate(
                    f"jobs were still under way {REST_SECONDS:g} s after the faults had ended: {books['total']}"
                )
            await trio.sleep(0.05)
        self.record.books.append((self.load.acknowledged, books["total"], bool(books["balanced"])))

    def _read_log(self) -> None:
        for row in self.instance.log():
            event = row.get("msg")
            if event == "worker died":
                self.record.causes[str(row.get("cause"))] += 1
            elif event == "worker above max_worker_memory":
                self.record.recycled += 1
            elif row.get("logger") not in ("server", "app") and "Traceback" in str(row):
                self.record.tracebacks.append(f"{row.get('logger')}: {event}")
        errors = (self.run_.folder / "stderr").read_text("utf-8", "replace")
        if "Traceback" in errors:
            self.record.tracebacks.append(errors.strip().splitlines()[-1][:200])
