"""The servers that ``tools/bench http`` measures: Trailboss and its peers, each in a private folder, on a port of its own.

Configuration files are written to that folder, every program runs in the foreground in a session of its own and is
ended with everything it has started. `KINDS` says which servers there are for what. Processor time and memory come
from /proc: of the supervisor (all that is no worker) and of the workers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from bench_http_figures import NGINX, OURS, ROADRUNNER

__all__ = ["KINDS", "Server", "ServerFailed", "Usage", "certificate", "missing", "servers_of", "starting"]

TOOLS = Path(__file__).parent
PROGRAMS = TOOLS / "bench_workers"
PSR_WORKER = TOOLS.parent / "tests" / "php" / "psr_worker.php"
TICK = os.sysconf("SC_CLK_TCK")
START_SECONDS_MAX = 30
ANSWER_BYTES = 102_400
LARGE_BYTES = 100 << 20
#: 256 clients that ask all the time are more than the default queue of four workers takes (116), which refuses the others.
QUEUE = 1000
#: Files that a server may have open: clients, and what goes with them.
FILES = 20_000

GUNICORN = "gunicorn"
UVICORN = "uvicorn"
GRANIAN = "granian"


class ServerFailed(Exception):
    """A server did not start, or does not answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds so far of supervisor and workers."""

    supervisor: float
    workers: float


@dataclass
class Server:
    """A running server. `path` is what a client asks for; `is_worker` tells workers from the rest."""

    name: str
    scheme: str
    port: int
    path: str
    folder: Path
    processes: list[subprocess.Popen[bytes]]
    is_worker: Callable[[psutil.Process], bool]
    _supervisor: list[int] = field(default_factory=list)
    _workers: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        """What a client is told."""
        return f"{self.scheme}://127.0.0.1:{self.port}{self.path}"

    @property
    def pid(self) -> int:
        """The main process."""
        return self.processes[0].pid

    def look_around(self) -> None:
        """Take note of which processes there are."""
        self._supervisor, self._workers = [], []
        for process in self.processes:
            root = psutil.Process(process.pid)
            for one in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    (self._workers if self.is_worker(one) else self._supervisor).append(one.pid)

    def usage(self) -> Usage:
        """Processor time so far."""
        return Usage(sum(map(_cpu, self._supervisor)), sum(map(_cpu, self._workers)))

    def rss_mib(self) -> float:
        """Resident memory of the supervisor; shared pages count in each of its processes."""
        return sum(_status(pid, "status", "VmRSS") for pid in self._supervisor) / 1024

    def pss_mib(self) -> float:
        """The same with shared pages divided among those who share them."""
        return sum(_status(pid, "smaps_rollup", "Pss") for pid in self._supervisor) / 1024

    def reset_peak(self) -> None:
        """Forget how large the processes have been."""
        for pid in [*self._supervisor, *self._workers]:
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_mib(self) -> tuple[float, float]:
        """How large supervisor and largest worker have been since then."""
        workers = [_status(pid, "status", "VmHWM") for pid in self._workers]
        return sum(_status(pid, "status", "VmHWM") for pid in self._supervisor) / 1024, max(
            workers, default=0
        ) / 1024

    def stop(self) -> None:
        """SIGTERM, ten seconds, then SIGKILL to the whole session."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                pass
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has been replaced meanwhile
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK


def _status(pid: int, file: str, name: str) -> int:
    """A figure in KiB."""
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


# --- how each is started ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """What it takes to start a server of one kind."""

    kind: str
    folder: Path
    port: int
    workers: int


@dataclass(frozen=True, slots=True)
class _Kind:
    path: str
    peers: tuple[str, ...]
    worker: Sequence[str] = ()
    scheme: str = "http"


def _php(program: Path, *arguments: str) -> list[str]:
    return ["php", str(program), *arguments]


_ANSWER = PROGRAMS / "http_answer.php"
_CONSTANT = _php(_ANSWER, "constant", "13")
KINDS = {
    "php": _Kind("/", (NGINX, ROADRUNNER), _CONSTANT),
    "php, log on": _Kind("/", (NGINX, ROADRUNNER), _CONSTANT),
    "php answer": _Kind("/answer", (NGINX, ROADRUNNER), _php(_ANSWER, "constant", str(ANSWER_BYTES))),
    "php psr": _Kind("/psr", (NGINX, ROADRUNNER), _php(PSR_WORKER)),
    "php stream": _Kind("/stream", (NGINX, ROADRUNNER), _php(_ANSWER, "stream", str(LARGE_BYTES))),
    "php tls": _Kind("/", (NGINX,), _CONSTANT, "https"),
    "php h2": _Kind("/", (NGINX,), _CONSTANT, "https"),
    "wsgi": _Kind("/", (GUNICORN, GRANIAN)),
    "asgi": _Kind("/", (UVICORN, GRANIAN)),
    "django": _Kind("/", (GUNICORN, GRANIAN)),
    "wsgi stream": _Kind("/stream", (GUNICORN, GRANIAN)),
    "file": _Kind("/large.bin", (NGINX,), _CONSTANT),
}
_APPLICATIONS = {
    "wsgi": "http_apps:wsgi",
    "wsgi stream": "http_apps:wsgi",
    "asgi": "http_apps:asgi",
    "django": "http_django:application",
}


def servers_of(kind: str, wanted: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Names of the servers for a kind that can be started here, ours first; and why others cannot."""
    names, remarks = [OURS], []
    for name in KINDS[kind].peers:
        if wanted is not None and name not in wanted:
            continue
        lacking = missing(name)
        if lacking:
            remarks.append(f"{name}: {lacking}")
        else:
            names.append(name)
    return names, remarks


def missing(name: str) -> str:
    """What is missing for a peer, or ""."""
    if name == NGINX:
        lacking = [program for program in ("nginx", "php-fpm") if not _program(program)]
        return f"no {' and no '.join(lacking)} here" if lacking else ""
    if name == ROADRUNNER:
        return "" if os.environ.get("RR_BIN") else "RR_BIN names no binary"
    return (
        ""
        if importlib.util.find_spec(name)
        else "not installed here (pip install -e '.[bench]' in the project's folder)"
    )


def _program(name: str) -> str:
    if name == "php-fpm":  # Debian's has its version in its name
        found = sorted(
            {
                str(path)
                for folder in ("/usr/sbin", "/usr/local/sbin", "/usr/bin")
                for path in Path(folder).glob("php-fpm*")
            }
        )
        return shutil.which("php-fpm") or (found[-1] if found else "")
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or ""


def _trailboss(start: Start) -> Server:
    kind = KINDS[start.kind]
    command = [sys.executable, "-m", "trailboss", "serve", "-s"]
    log = "info" if start.kind == "php, log on" else "error"
    if start.kind in _APPLICATIONS:
        way = "--asgi" if start.kind == "asgi" else "--wsgi"
        command += [way, _APPLICATIONS[start.kind], "--chdir", str(PROGRAMS)]
        command += ["--bind", f"127.0.0.1:{start.port}", "--workers", str(start.workers)]
        command += ["-o", f"rpc.listen=unix://{start.folder}/rpc.sock", "-o", f"logs.level={log}"]
        command += ["-o", "logs.mode=production", "-o", f"http.pool.max_queue_size={QUEUE}"]
    else:
        listed = ", ".join(f'"{part}"' for part in kind.worker)
        where = f"address: 127.0.0.1:{start.port}"
        if kind.scheme == "https":
            pem = certificate(start.folder)
            where = f"ssl: {{address: 127.0.0.1:{start.port}, cert: {pem}, key: {pem}}}"
        extra = ""
        if start.kind == "file":
            _large_file(start.folder)
            extra = f"\n  middleware: [static]\n  static: {{dir: {start.folder}}}"
        _write(
            start.folder / ".rr.yaml",
            f"""
version: "3"
rpc: {{listen: "unix://{start.folder}/rpc.sock"}}
server: {{command: [{listed}]}}
logs: {{mode: production, level: {log}}}
http:
  {where}
  pool: {{num_workers: {start.workers}, max_queue_size: {QUEUE}}}{extra}
""",
        )
        command += ["-c", str(start.folder / ".rr.yaml")]

    def is_worker(process: psutil.Process) -> bool:
        return process.pid != running.pid and not any(
            name in word for word in process.cmdline() for name in ("guard_process", "trailboss-guard")
        )

    running = _run(start, command)
    return Server(OURS, kind.scheme, start.port, kind.path, start.folder, [running], is_worker)


def _roadrunner(start: Start) -> Server:
    kind = KINDS[start.kind]
    worker = list(kind.worker)
    if str(_ANSWER) in worker and "constant" in worker:
        worker.append("proto")
    level = "info" if start.kind == "php, log on" else "error"
    _write(
        start.folder / ".rr.yaml",
        f"""
version: "3"
rpc: {{listen: "unix://{start.folder}/rr.sock"}}
server: {{command: "{" ".join(worker)}"}}
logs: {{mode: production, level: {level}}}
http:
  address: 127.0.0.1:{start.port}
  pool: {{num_workers: {start.workers}}}
""",
    )
    command = [os.environ["RR_BIN"], "serve", "-c", str(start.folder / ".rr.yaml")]
    running = _run(start, command)
    return Server(
        ROADRUNNER,
        "http",
        start.port,
        kind.path,
        start.folder,
        [running],
        lambda one: one.pid != running.pid and str(PROGRAMS.parent.parent) in " ".join(one.cmdline()),
    )


def _nginx(start: Start) -> Server:
    """nginx with Debian's defaults for PHP, in front of as many php-fpm children as others have workers."""
    kind = KINDS[start.kind]
    folder = start.folder
    user = "user root;" if os.geteuid() == 0 else ""
    listen = f"listen 127.0.0.1:{start.port}"
    tls = ""
    if kind.scheme == "https":
        pem = certificate(folder)
        listen += " ssl http2" if start.kind == "php h2" else " ssl"
        tls = f"ssl_certificate {pem}; ssl_certificate_key {pem};"
    location = f"location / {{ include fastcgi.conf; fastcgi_pass unix:{folder}/fpm.sock; }}"
    if start.kind == "file":
        _large_file(folder)
        location = f"location / {{ root {folder}; sendfile on; }}"
    _write(
        folder / "fastcgi.conf",
        f"""
fastcgi_param SCRIPT_FILENAME {PROGRAMS}/http_fpm.php;
"""
        + "".join(
            f"fastcgi_param {name} {value};\n"
            for name, value in {
                "QUERY_STRING": "$query_string",
                "REQUEST_METHOD": "$request_method",
                "CONTENT_TYPE": "$content_type",
                "CONTENT_LENGTH": "$content_length",
                "REQUEST_URI": "$request_uri",
                "DOCUMENT_URI": "$document_uri",
                "SERVER_PROTOCOL": "$server_protocol",
                "REMOTE_ADDR": "$remote_addr",
                "SERVER_ADDR": "$server_addr",
                "SERVER_PORT": "$server_port",
                "SERVER_NAME": "$server_name",
                "REDIRECT_STATUS": "200",
            }.items()
        ),
    )
    access = f"{folder}/access.log" if start.kind == "php, log on" else "off"
    _write(
        folder / "nginx.conf",
        f"""
{user}
daemon off;
worker_processes auto;
worker_rlimit_nofile {FILES};
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{ worker_connections 8192; }}
http {{
  access_log {access};
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000000;
  client_max_body_size 0;
  client_body_temp_path {folder}/body;
  fastcgi_temp_path {folder}/fastcgi;
  proxy_temp_path {folder}/proxy;
  scgi_temp_path {folder}/scgi;
  uwsgi_temp_path {folder}/uwsgi;
  server {{ {listen}; {tls} {location} }}
}}
""",
    )
    as_root = ("user = root", "group = root") if os.geteuid() == 0 else ()
    _write(
        folder / "fpm.conf",
        "\n".join(
            [
                "[global]",
                "daemonize = no",
                f"pid = {folder}/fpm.pid",
                f"error_log = {folder}/fpm.log",
                "log_level = warning",
                "[www]",
                *as_root,
                f"listen = {folder}/fpm.sock",
                "listen.mode = 0666",
                "pm = static",
                f"pm.max_children = {start.workers}",
                "php_admin_value[post_max_size] = 1G",
            ]
        ),
    )
    root = ["-R"] if os.geteuid() == 0 else []
    fpm = _run(start, [_program("php-fpm"), "-F", *root, "-y", str(folder / "fpm.conf")], "fpm")
    nginx = _run(start, [_program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")])
    return Server(
        NGINX,
        kind.scheme,
        start.port,
        kind.path,
        folder,
        [nginx, fpm],
        lambda one: one.ppid() == fpm.pid,
    )


def _python(name: str, command: list[str]) -> Callable[[Start], Server]:
    def start_it(start: Start) -> Server:
        words = {
            "PORT": str(start.port),
            "WORKERS": str(start.workers),
            "APP": _APPLICATIONS[start.kind],
            "WAY": "asgi" if start.kind == "asgi" else "wsgi",
            "FOLDER": str(PROGRAMS),
        }
        running = _run(start, [sys.executable, "-m", *(word.format(**words) for word in command)])
        path = KINDS[start.kind].path
        return Server(
            name, "http", start.port, path, start.folder, [running], lambda one: one.pid != running.pid
        )

    return start_it


STARTERS: dict[str, Callable[[Start], Server]] = {
    OURS: _trailboss,
    NGINX: _nginx,
    ROADRUNNER: _roadrunner,
    GUNICORN: _python(
        GUNICORN,
        [
            "gunicorn",
            "--bind=127.0.0.1:{PORT}",
            "--workers={WORKERS}",
            "--log-level=error",
            "--chdir={FOLDER}",
            "{APP}",
        ],
    ),
    UVICORN: _python(
        UVICORN,
        [
            "uvicorn",
            "--port={PORT}",
            "--workers={WORKERS}",
            "--log-level=error",
            "--no-access-log",
            "--app-dir={FOLDER}",
            "{APP}",
        ],
    ),
    GRANIAN: _python(
        GRANIAN,
        [
            "granian",
            "--interface={WAY}",
            "--port={PORT}",
            "--workers={WORKERS}",
            "--log-level=error",
            "--working-dir={FOLDER}",
            "{APP}",
        ],
    ),
}


@contextlib.contextmanager
def starting(name: str, kind: str, workers: int) -> Iterator[Server]:
    """A server of that name and kind, answering, for the length of the block. Raises ServerFailed."""
    with tempfile.TemporaryDirectory(prefix="trailboss-bench-") as folder:
        server = STARTERS[name](Start(kind, Path(folder), _free_port(), workers))
        try:
            _wait_until_it_answers(server, workers)
            yield server
        finally:
            server.stop()


def _run(start: Start, command: Sequence[str], name: str = "main") -> subprocess.Popen[bytes]:
    with open(start.folder / f"{name}.output", "wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=start.folder,
            start_new_session=True,
        )


def _wait_until_it_answers(server: Server, workers: int) -> None:
    """Wait until the port is bound and all workers are there."""
    give_up = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < give_up:
        if any(process.poll() is not None for process in server.processes):
            raise ServerFailed(f"{server.name} ended at once:\n{_output(server)}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 1):
            server.look_around()
            if len(server._workers) >= workers:
                time.sleep(0.3)  # what imports is to be over
                server.look_around()
                return
        time.sleep(0.05)
    raise ServerFailed(f"{server.name} does not answer:\n{_output(server)}")


def _output(server: Server) -> str:
    texts = [path.read_text(errors="replace") for path in sorted(server.folder.glob("*.output"))]
    return "\n".join(texts)[-2000:]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _large_file(folder: Path) -> None:
    with open(folder / "large.bin", "wb") as file:
        file.writelines(b"x" * (1 << 20) for _ in range(LARGE_BYTES >> 20))


def certificate(folder: Path) -> Path:
    """A file with a key and a certificate for it, valid for a day; made by openssl. Raises ServerFailed."""
    target = folder / "server.pem"
    made = subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost "
        f"-keyout {target} -out {folder}/cert.pem".split(),
        capture_output=True,
        check=False,
    )
    if made.returncode:
        raise ServerFailed(f"openssl makes no certificate: {made.stderr.decode(errors='replace')[-300:]}")
    with open(target, "ab") as file:
        file.write((folder / "cert.pem").read_bytes())
    return target
