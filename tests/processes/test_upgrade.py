"""UPGRADE: a running server replaced by a new program while clients ask on, and new programs that are no good.

Real servers with PHP and Python workers; clients keep connections or come anew for each request, on TCP and on a unix
socket. The new program is this very one, found through a configuration, an application and a release link that change
between two starts.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trailboss.chaos.instance import free_port
from trailboss.reaping import dead_children

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "support"))

from live_server import MARK, children_of, marked  # noqa: E402  the line above makes it findable
from tls_files import TlsFiles, make_files  # noqa: E402

PATIENCE = 2.0 if os.environ.get("CI") else 1.0
PHP_WORKER = f"php {TESTS}/php/http_worker.php"
PYTHON_WORKER = "trailboss-worker wsgi app:application"
CONFIG = """
version: "3"
rpc: {{listen: "unix://{folder}/rpc.sock"}}
server: {{command: "{command}"}}
http: {{address: {addresses}, {ssl} pool: {{num_workers: 2}}}}
status: {{address: "127.0.0.1:{status}"}}
metrics: {{address: "127.0.0.1:{metrics}"}}
logs: {{level: info, channels: {{http: {{level: warn}}}}}}
{more}
"""
#: As systemd starts a service with sockets.
LAUNCHER = """
import os, sys
fds, names, command = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
for at, fd in enumerate(fds):
    os.dup2(int(fd), 3 + at, inheritable=True)
    os.close(int(fd))
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""
APPLICATION = """
import os, subprocess, time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        open("slow-has-begun", "w").close()
        time.sleep(2)
    if environ["PATH_INFO"] == "/orphan":
        subprocess.run("(sleep 1; touch orphan-ended) >/dev/null 2>&1 &", shell=True)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getppid()}".encode()]
"""

pytestmark = pytest.mark.timeout(150)


def eventually(check: Callable[[], object], seconds: float, what: str, log: Path | None = None) -> None:
    """Wait until `check()` is true."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not check():
        assert time.monotonic() < deadline, (
            f"not within {seconds:g} s: {what}\n{log.read_text() if log else ''}"
        )
        time.sleep(0.02)


class Service:
    """`trailboss serve -p` in a folder of its own, whatever process it is by now."""

    def __init__(
        self,
        folder: Path,
        command: str,
        more: str = "",
        environ: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        tls: TlsFiles | None = None,
        passed: dict[str, socket.socket] | None = None,
    ) -> None:
        """`tls`: there is a port with these files, too. `passed`: sockets by name, as systemd passes them."""
        self.folder = folder
        self.port, self.status_port, self.metrics_port = free_port(), free_port(), free_port()
        self.tls_port = free_port()
        self.web = folder / "web.sock"
        self.tls = tls
        self.passed = passed or {}
        self.mark = f"upgrade-{os.getpid()}-{self.status_port}"
        self.write_config(command, more)
        (folder / "app.py").write_text(APPLICATION)
        (folder / "run").mkdir()
        self.log = folder / "log.txt"
        self.environ = {
            **os.environ,
            "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(folder / "run"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            MARK: self.mark,
            **(environ or {}),
        }
        fds = [sock.fileno() for sock in self.passed.values()]
        if fds:
            # Out of the way of the descriptors they become.
            fds = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
            prefix = (sys.executable, "-c", LAUNCHER, ",".join(map(str, fds)), ":".join(self.passed))
        with self.log.open("ab") as log:
            self.first = subprocess.Popen(
                [*prefix, sys.executable, "-m", "trailboss", "serve", "-p"],
                cwd=folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=fds,
            )
        for fd in fds:
            os.close(fd)
        eventually(self.is_ready, 20, "ready")

    def write_config(self, command: str, more: str = "") -> None:
        """Write the configuration that the next start reads."""
        own = f'["127.0.0.1:{self.port}", "unix:{self.folder}/web.sock"]'
        secure, ssl_section = f'"127.0.0.1:{self.tls_port}"', ""
        if self.passed:
            own, secure = '["systemd:plain", "systemd:file"]', '"systemd:secure"'
        if self.tls is not None:
            ssl_section = f'ssl: {{address: {secure}, cert: "{self.tls.cert}", key: "{self.tls.key}"}},'
        text = CONFIG.format(
            addresses=own,
            ssl=ssl_section,
            folder=self.folder,
            command=command,
            more=more,
            port=self.port,
            status=self.status_port,
            metrics=self.metrics_port,
        )
        (self.folder / ".rr.yaml").write_text(text)

    def is_ready(self) -> bool:
        """Whether the readiness probe says so."""
        assert self.first.poll() is None or self.pid != self.first.pid, self.log.read_text()
        try:
            return self.probe("/ready") == 200
        except OSError:
            return False

    def probe(self, path: str) -> int:
        """Status of a request to the status port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.status_port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    @property
    def pid(self) -> int:
        """The process in the pid file; 0 where there is none."""
        try:
            return int((self.folder / ".pid").read_text() or 0)
        except (OSError, ValueError):
            return 0

    def trailboss(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line."""
        return subprocess.run(
            [sys.executable, "-m", "trailboss", *arguments],
            cwd=self.folder,
            env={**self.environ, MARK: ""},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def scrape(self) -> bytes:
        """What the metrics port tells."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read()
        finally:
            connection.close()

    def ask(self, path: str = "/") -> str:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def of_server(self, pid: int) -> list[int]:
        """Processes of the service that are not those of `pid` and its children."""
        others = []
        for other in marked(self.mark):
            try:
                stat = Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            if pid not in (other, int(stat[1])):
                others.append(other)
        return others

    def stop(self) -> None:
        """Stop it, however far it has come, and see that nothing is left."""
        if self.pid in marked(self.mark):  # not where it is a number of another namespace
            os.kill(self.pid, signal.SIGTERM)
        else:
            for child in children_of(self.first.pid):  # behind unshare
                os.kill(child, signal.SIGTERM)
        if self.first.poll() is None:
            self.first.terminate()
        try:
            eventually(lambda: not marked(self.mark), 15, "all processes gone")
        finally:
            for left in marked(self.mark):
                os.kill(left, signal.SIGKILL)
            self.first.wait(10)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start services; stopped at the end."""
    services: list[Service] = []

    def begin(
        command: str = PYTHON_WORKER,
        more: str = "",
        environ: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        tls: TlsFiles | None = None,
        passed: dict[str, socket.socket] | None = None,
    ) -> Service:
        folder = tmp_path / f"service{len(services)}"
        folder.mkdir()
        services.append(Service(folder, command, more, environ, prefix, tls, passed))
        return services[-1]

    yield begin
    for service in services:
        service.stop()


class Client(threading.Thread):
    """Asks again and again: on one connection for as long as the server keeps it, or on a new one each time."""

    def __init__(self, connect: Callable[[], http.client.HTTPConnection], path: str, *, keeps: bool) -> None:
        super().__init__(daemon=True)
        self.connect, self.path, self.keeps = connect, path, keeps
        self.answers = 0
        self.failures: list[str] = []
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        """Ask until told to stop."""
        connection = self.connect()
        while not self.done.is_set():
            try:
                connection.request("GET", self.path)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.failures.append(f"{self.path}: {answer.status}")
                self.answers += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{self.path}: {error!r}")
                connection.close()
            if not self.keeps:
                connection.close()
            time.sleep(0.004)
        connection.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(str(self.path))


def call_rpc(service: Service, done: threading.Event, failures: list[str]) -> None:
    """Ask for the server's state by RPC again and again, each time on a new connection."""
    from trailboss_worker.sdk import RPC

    while not done.is_set():
        try:
            with RPC(f"unix://{service.folder}/rpc.sock") as rpc:
                rpc.call("trailboss.State", True)
        except Exception as error:  # whatever it is, it is a failure
            failures.append(f"rpc: {error!r}")
        time.sleep(0.02)


def upgrade_under_load(service: Service, times: int) -> None:
    """Upgrade again and again while clients ask; nothing may fail, and nothing may be left of those replaced."""
    port, web = service.port, service.web

    def tcp() -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def unix() -> http.client.HTTPConnection:
        return UnixConnection(web)

    def probe(number: int) -> Callable[[], http.client.HTTPConnection]:
        return lambda: http.client.HTTPConnection("127.0.0.1", number, timeout=20)

    def https() -> http.client.HTTPConnection:
        assert service.tls is not None
        context = ssl.create_default_context(cafile=service.tls.ca)
        return http.client.HTTPSConnection("localhost", service.tls_port, timeout=20, context=context)

    secure = (True, True, False, False) if service.tls is not None else ()
    clients = [
        *(Client(https, "/", keeps=keeps) for keeps in secure),
        *(Client(tcp, "/", keeps=keeps) for keeps in (True, True, False, False)),
        *(Client(unix, "/", keeps=keeps) for keeps in (True, False)),
        Client(probe(service.status_port), "/ready", keeps=False),
        Client(probe(service.metrics_port), "/metrics", keeps=False),
    ]
    rpc_done, failures = threading.Event(), []
    rpc = threading.Thread(target=call_rpc, args=(service, rpc_done, failures), daemon=True)
    rpc.start()
    pids = [service.pid]
    try:
        for _ in range(times):
            os.kill(pids[-1], signal.SIGUSR2)
            eventually(lambda: service.pid not in (0, *pids), 30, "a new process", service.log)
            pids.append(service.pid)
            eventually(lambda: not service.of_server(pids[-1]), 20, "the old server and its workers gone")
    finally:
        rpc_done.set()
        for client in clients:
            client.done.set()
        for thread in (rpc, *clients):
            thread.join(30)
    assert [*failures, *(failure for client in clients for failure in client.failures)] == []
    assert all(client.answers > times for client in clients)
    assert len(set(pids)) == times + 1
    assert service.probe("/ready") == 200


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.long)])
def test_upgrades_under_load_with_python(start: Callable[..., Service], times: int) -> None:
    """No request, probe or RPC call fails while the server is replaced, and no process of a replaced one is left.

    The last of them removes the files of the unix sockets, which the first has made.
    """
    service = start()
    upgrade_under_load(service, times)
    service.stop()
    assert list(service.folder.glob("**/*.sock*")) == []


@pytest.mark.skipif(shutil.which("php") is None, reason="php is not installed")
@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.long)])
def test_upgrades_under_load_with_php(start: Callable[..., Service], times: int) -> None:
    """The same with PHP workers."""
    upgrade_under_load(start(PHP_WORKER), times)


def test_upgrades_under_load_with_tls(start: Callable[..., Service], tmp_path: Path) -> None:
    """A port with TLS beside the plain ones: no handshake and no request fails."""
    upgrade_under_load(start(tls=make_files(tmp_path / "files")), 1)


def test_upgrades_under_load_with_sockets_of_systemd(start: Callable[..., Service], tmp_path: Path) -> None:
    """Sockets that systemd has passed to the first server (plain, TLS, unix) go to the next and to the one after it."""
    path = tmp_path / "web.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as plain,
        socket.create_server(("127.0.0.1", 0)) as secure,
        socket.socket(socket.AF_UNIX) as file,
    ):
        file.bind(str(path))
        file.listen(128)
        service = start(
            tls=make_files(tmp_path / "files"), passed={"plain": plain, "secure": secure, "file": file}
        )
        service.port, service.tls_port = plain.getsockname()[1], secure.getsockname()[1]
        service.web = path
        upgrade_under_load(service, 2)
        assert path.exists()  # systemd's file is nobody else's to remove
        assert service.ask() == str(service.pid)


def test_the_command_returns_when_the_new_program_is_in_charge(start: Callable[..., Service]) -> None:
    """`trailboss upgrade` names the new process, which serves the application as it is now; what ran is finished."""
    service = start()
    old = service.pid
    answers: list[str] = []
    slow = threading.Thread(target=lambda: answers.append(service.ask("/slow")))
    slow.start()
    eventually((service.folder / "slow-has-begun").exists, 10, "a request under way")
    done = service.trailboss("upgrade")
    assert (done.returncode, done.stderr) == (0, "")
    new = service.pid
    assert done.stdout == f"upgraded: the server is process {new} now\n"
    assert service.ask() == str(new)
    slow.join(20)
    assert answers == [str(old)]
    eventually(lambda: not service.of_server(new), 20, "the old server gone")
    assert sorted(entry.name for entry in service.folder.glob("**/*.sock*")) == [
        "rpc.sock",
        f"trailboss.sock.{new}",  # where its workers call until it goes
        "web.sock",
    ]


def test_a_new_program_that_fails_changes_nothing(start: Callable[..., Service]) -> None:
    """A wrong configuration, and workers that do not start: the reason is in the terminal, the old server goes on."""
    service = start()
    old = service.pid
    service.write_config(PYTHON_WORKER, "nonsense: 1")
    wrong = service.trailboss("upgrade", "-o", f"rpc.listen=unix://{service.folder}/rpc.sock")
    assert wrong.returncode != 0
    os.kill(old, signal.SIGUSR2)
    eventually(lambda: "upgrade failed, this server goes on" in service.log.read_text(), 20, "refusal")
    assert "nonsense" in service.log.read_text()
    service.write_config(PYTHON_WORKER)
    (service.folder / "app.py").write_text("this is = no Python\n")
    broken = service.trailboss("upgrade")
    assert broken.returncode == 1
    assert "not upgraded, the old server goes on" in broken.stderr
    assert "SyntaxError" in broken.stderr
    assert (service.pid, service.ask(), service.probe("/ready")) == (old, str(old), 200)
    assert (service.folder / "web.sock").exists()
    eventually(lambda: not service.of_server(old), 10, "nothing left of the new programs")
    (service.folder / "app.py").write_text(APPLICATION)
    assert service.trailboss("upgrade").returncode == 0


def test_a_new_program_that_hangs_is_ended(start: Callable[..., Service]) -> None:
    """It gets `endure.upgrade_timeout`; a second upgrade meanwhile is refused; then everything is as it was."""
    service = start(more="endure: {upgrade_timeout: 3s}")
    old = service.pid
    (service.folder / "app.py").write_text("import time\ntime.sleep(3600)\n")
    results: list[subprocess.CompletedProcess[str]] = []
    first = threading.Thread(target=lambda: results.append(service.trailboss("upgrade")))
    first.start()
    eventually(lambda: "upgrade begins" in service.log.read_text(), 10, "the first upgrade")
    second = service.trailboss("upgrade")
    assert (second.returncode, "an upgrade is under way already" in second.stderr) == (1, True)
    first.join(60)
    assert results[0].returncode == 1
    assert "the new server was not ready within 3 s (endure.upgrade_timeout)" in results[0].stderr
    eventually(lambda: not service.of_server(old), 15, "nothing left of the new program")
    assert (service.pid, service.ask(), service.probe("/ready")) == (old, str(old), 200)


def test_systemd_is_told_the_new_main_process(start: Callable[..., Service], tmp_path: Path) -> None:
    """MAINPID comes before anything else of the change, from the old process; the new one says READY=1, nobody STOPPING=1."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(address)
        notify.settimeout(0.2)
        service = start(environ={"NOTIFY_SOCKET": address})
        old = service.pid
        received: list[str] = []

        def receive() -> None:
            try:
                while True:
                    received.extend(notify.recv(4096).decode().split("\n"))
            except TimeoutError:
                return

        receive()
        received.clear()
        os.kill(old, signal.SIGUSR2)
        eventually(lambda: service.pid not in (0, old) and not service.of_server(service.pid), 30, "upgraded")
        receive()
    assert f"MAINPID={service.pid}" in received
    assert received.index(f"MAINPID={service.pid}") < received.index("READY=1")
    assert "STOPPING=1" not in received


JOBS_WORKER = f"{sys.executable} {TESTS}/support/upgrade_jobs.py"
JOBS = f"""
jobs:
  pool: {{num_workers: 1, command: "{JOBS_WORKER}"}}
  consume: [q, held]
  pipelines: {{q: {{driver: memory}}, held: {{driver: memory}}}}
"""


def jobs_done(service: Service) -> list[list[str]]:
    """The runs that have ended: name, server, attempt."""
    done = service.folder / "jobs-done"
    return [line.split() for line in done.read_text().splitlines()] if done.exists() else []


def test_what_is_in_memory_goes_to_the_new_server(start: Callable[..., Service]) -> None:
    """Jobs that wait, are delayed, dead or in a paused or declared pipeline, and metrics; what runs ends where it has begun."""
    from trailboss_worker.sdk import RPC, Jobs

    service = start(more=JOBS, environ={"COUNTS": "1"})
    old = service.pid
    collector = {"type": "counter", "help": "Runs.", "labels": []}
    with RPC(f"unix://{service.folder}/rpc.sock") as rpc:
        jobs = Jobs(rpc)
        rpc.call("metrics.Declare", {"name": "runs", "collector": collector})
        rpc.call("metrics.Add", {"name": "runs", "value": 41.0})
        jobs.push("q", "fails", b"null", id="dead one", headers={"why": ["so"]})
        jobs.push("q", "waits", b"null")
        eventually((service.folder / "waits-began").exists, 10, "a job that runs", service.log)
        for name, priority in (("b", 20), ("a", 5), ("c", 20)):
            jobs.push("q", name, b"null", priority=priority)
        jobs.push("q", "soon", b"null", delay_seconds=2)
        jobs.push("q", "late", b"null", delay_seconds=3600)
        jobs.pause("held")
        jobs.push("held", "held", b"null")
        jobs.declare("extra", "memory", priority=3)
        jobs.push("extra", "extra", b"null")
    assert service.trailboss("upgrade").returncode == 0
    with RPC(f"unix://{service.folder}/rpc.sock") as rpc:
        jobs = Jobs(rpc)
        new = service.pid
        # The old server has one job that runs, and everything else is here.
        books = rpc.call("jobs.Books", True)["total"]
        assert (books["taken_over"], books["pushed"], books["dead"]) == (8, 0, 1)
        assert {stat.pipeline: (stat.active, stat.ready) for stat in jobs.stat() if stat.pipeline != "q"} == {
            "held": (1, False),
            "extra": (1, False),
        }
        letters = rpc.call("jobs.Dead", {})["jobs"]
        told = ("id", "pipeline", "attempts", "headers", "reason")
        assert [[letter[key] for key in told] for letter in letters] == [
            ["dead one", "q", 1, {"why": ["so"]}, "nacked: on purpose"]
        ]
        assert b"\nruns 41" in service.scrape()
        assert service.of_server(new) != []
        (service.folder / "go-on").touch()
        eventually(lambda: not service.of_server(new), 20, "the old server gone", service.log)
        assert b"\nruns 42" in service.scrape()
        jobs.resume("held", "extra")
        names = {"waits", "a", "b", "c", "soon", "child", "held", "extra"}
        eventually(lambda: len(jobs_done(service)) == len(names), 20, "all jobs", service.log)
        books = rpc.call("jobs.Books", True)
    ran = {name: int(server) == old for name, server, _ in jobs_done(service)}
    assert ran == {name: name == "waits" for name in names}
    order = [name for name, *_ in jobs_done(service)]
    assert order.index("a") < order.index("b") < order.index("c")
    assert books["balanced"]
    assert (books["total"]["taken_over"], books["total"]["done"], books["total"]["delayed"]) == (9, 7, 1)
    assert "are lost with this process" not in service.log.read_text()


def test_a_new_server_without_jobs_leaves_them_to_the_old_one(start: Callable[..., Service]) -> None:
    """Its configuration has no queues any more: the old server finishes what waits, and what is delayed for a moment."""
    from trailboss_worker.sdk import RPC, Jobs

    service = start(more=JOBS)
    old = service.pid
    with RPC(f"unix://{service.folder}/rpc.sock") as rpc:
        for name, delay in (("a", 0), ("b", 0), ("late", 2)):
            Jobs(rpc).push("q", name, b"null", delay_seconds=delay)
    service.write_config(PYTHON_WORKER)
    assert service.trailboss("upgrade").returncode == 0
    eventually(lambda: len(jobs_done(service)) == 3, 20, "all jobs", service.log)
    assert {int(server) for _, server, _ in jobs_done(service)} == {old}
    eventually(lambda: not service.of_server(service.pid), 20, "the old server gone")


def test_a_new_server_that_dies_leaves_the_rest_to_the_old_one(start: Callable[..., Service]) -> None:
    """What was handed over has died with it; what has come to the old server since is run there."""
    from trailboss_worker.sdk import RPC, Jobs

    service = start(more=JOBS)
    old = service.pid
    with RPC(f"unix://{service.folder}/rpc.sock") as rpc:
        Jobs(rpc).push("q", "waits", b"null")
        eventually((service.folder / "waits-began").exists, 10, "a job that runs", service.log)
        Jobs(rpc).push("held", "late", b"null", delay_seconds=3600)
    assert service.trailboss("upgrade").returncode == 0
    os.kill(service.pid, signal.SIGKILL)
    (service.folder / "go-on").touch()
    eventually(lambda: len(jobs_done(service)) == 2, 20, "both jobs", service.log)
    assert [[name, int(server)] for name, server, _ in jobs_done(service)] == [["waits", old], ["child", old]]
    assert service.first.wait(20 * PATIENCE) == 0
    assert "it has gone" in service.log.read_text()


@pytest.mark.long
def test_what_comes_late_passes_through_two_upgrades(start: Callable[..., Service]) -> None:
    """A job still runs in the first server when the second is replaced: what it pushes reaches the third."""
    from trailboss_worker.sdk import RPC, Jobs

    service = start(more=JOBS)
    first = service.pid
    with RPC(f"unix://{service.folder}/rpc.sock") as rpc:
        Jobs(rpc).push("q", "waits", b"null")
        eventually((service.folder / "waits-began").exists, 10, "a job that runs", service.log)
        Jobs(rpc).pause("held")
        Jobs(rpc).push("held", "held", b"null")
    assert service.trailboss("upgrade").returncode == 0
    second = service.pid
    assert service.trailboss("upgrade").returncode == 0
    third = service.pid
    assert len({first, second, third}) == 3
    assert second in marked(service.mark)
    (service.folder / "go-on").touch()
    eventually(lambda: not service.of_server(third), 20, "the old servers gone", service.log)
    with RPC(f"unix://{service.folder}/rpc.sock") as rpc:
        Jobs(rpc).resume("held")
        eventually(lambda: len(jobs_done(service)) == 3, 20, "all jobs", service.log)
        assert rpc.call("jobs.Books", True)["total"]["taken_over"] == 2
    assert {name: int(server) for name, server, _ in jobs_done(service)} == {
        "waits": first,
        "child": third,
        "held": third,
    }


def push_jobs(service: Service, done: threading.Event, pushed: list[str], failures: list[str]) -> None:
    """Push jobs again and again, some of them delayed, each on a new connection; notes the ids of those accepted."""
    from trailboss_worker.sdk import RPC, Jobs

    number = 0
    while not done.is_set():
        number += 1
        try:
            with RPC(f"unix://{service.folder}/rpc.sock") as rpc:
                pushed.append(Jobs(rpc).push("q", "job", b"null", delay_seconds=number % 3))
        except Exception as error:  # whatever it is, it is a failure
            failures.append(f"push: {error!r}")
        time.sleep(0.002)


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.long)])
def test_every_job_runs_once_through_upgrades(start: Callable[..., Service], times: int) -> None:
    """While jobs are pushed and run, the server is replaced: each job that was accepted runs, and none runs twice."""
    from trailboss_worker.sdk import RPC

    service = start(more=JOBS.replace("upgrade_jobs.py", "counting_jobs.py"))
    pushed: list[str] = []
    failures: list[str] = []
    over = threading.Event()
    pushers = [
        threading.Thread(target=push_jobs, args=(service, over, pushed, failures), daemon=True)
        for _ in range(2)
    ]
    for pusher in pushers:
        pusher.start()
    try:
        for number in range(times):
            before = len(pushed)
            eventually(lambda before=before: len(pushed) > before + 50, 20, "pushes", service.log)
            assert service.trailboss("upgrade").returncode == 0, number
    finally:
        over.set()
        for pusher in pushers:
            pusher.join(30)
    eventually(lambda: not service.of_server(service.pid), 30, "the old servers gone", service.log)
    eventually(lambda: len(jobs_done(service)) >= len(pushed), 30, "every job", service.log)
    assert failures == []
    runs = [job_id for job_id, *_ in jobs_done(service)]
    assert sorted(runs) == sorted(pushed)
    with RPC(f"unix://{service.folder}/rpc.sock") as rpc:
        books = rpc.call("jobs.Books", True)
    assert books["balanced"]
    assert (books["total"]["waiting"], books["total"]["delayed"], books["total"]["dead"]) == (0, 0, 0)


def test_process_1_refuses(start: Callable[..., Service]) -> None:
    """Its end is the end of its container, so no other can take its place; it says so and goes on."""
    probe = ["unshare", "-pf", "--mount-proc", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("process namespaces (unshare) cannot be used here")
    service = start(prefix=("unshare", "-pf", "--kill-child", "--mount-proc"))
    refused = service.trailboss("upgrade")
    assert (refused.returncode, "this server is process 1" in refused.stderr) == (1, True)
    assert service.probe("/ready") == 200
    # An orphan that ends is not left in the process table.
    server = children_of(service.first.pid)[0]
    assert service.ask("/orphan") == "1"
    eventually((service.folder / "orphan-ended").exists, 10, "the orphan's end")
    eventually(lambda: dead_children(server) == {}, 15, "the orphan reaped")


def test_readiness_ends_before_the_service_does(start: Callable[..., Service]) -> None:
    """For `endure.drain_delay` after SIGTERM the probe says no and requests are still answered."""
    service = start(more="endure: {drain_delay: 1500ms}")
    begun = time.monotonic()
    os.kill(service.pid, signal.SIGTERM)
    eventually(lambda: service.probe("/ready") == 503, 1, "not ready")
    assert service.probe("/health") == 200
    assert service.ask() == str(service.first.pid)
    assert service.first.wait(20) == 0
    assert time.monotonic() - begun >= 1.5
