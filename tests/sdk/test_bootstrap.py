"""Starting a worker in an interpreter that knows nothing of Trailboss, and how light a start is."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import trailboss
import trailboss_worker

from ..support.http_dialogue import ask

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"
BOOTSTRAP = ROOT / "worker_protocol" / "trailboss_worker" / "bootstrap.py"
OLDEST = "3.9"

# What a jobs worker with a blocking handler on pipes must not import: each costs milliseconds at every start.
HEAVY = {"argparse", "asyncio", "dataclasses", "email", "http", "importlib.metadata", "inspect", "logging"}
HEAVY |= {
    "pkg_resources",
    "random",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "traceback",
    "trio",
    "urllib",
    "uuid",
}


def interpreters() -> list[str]:
    """This Python, and an installation of the oldest supported one where there is one."""
    found = [sys.executable]
    for folder in (
        *os.environ.get("PATH", "").split(":"),
        *map(str, pathlib.Path.home().glob(f".pyenv/versions/{OLDEST}.*/bin")),
    ):
        candidate = pathlib.Path(folder) / f"python{OLDEST}"
        if candidate.exists() and _runs(candidate):
            return [*found, str(candidate)]
    return found


def _runs(candidate: pathlib.Path) -> bool:
    command = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return finished.stdout.strip() == OLDEST


@pytest.fixture(params=["this Python", f"Python {OLDEST}"], scope="module")
def interpreter(request) -> str:
    found = interpreters()
    if request.param == "this Python":
        return found[0]
    if len(found) == 1:
        pytest.skip(f"no Python {OLDEST} here")
    return found[1]


@pytest.mark.parametrize("flags", [["-I", "-S"], []], ids=["isolated", "plain"])
def test_jobs_by_bootstrap(serve, interpreter, flags):
    """The file alone starts a jobs worker; the package's folder is not on the import path."""
    handler = PROGRAMS / "by_bootstrap.py"
    assert handler.exists()
    command = [interpreter, *flags, str(BOOTSTRAP), "jobs", "by_bootstrap:handle", "--chdir", str(PROGRAMS)]
    worker = serve(command, PYTHONPATH="")
    worker.shake_hands()
    assert worker.job("path")["data"]["message"] == "ok"
    assert worker.job("nothing") == {"type": 2, "data": []}
    assert worker.job("raise")["type"] == 3
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.rest() == b""


def test_async_jobs_by_bootstrap(serve, interpreter):
    """Asynchronous handlers run on asyncio without anything installed."""
    command = [
        interpreter,
        "-I",
        "-S",
        str(BOOTSTRAP),
        "jobs",
        "by_bootstrap:handle_async",
        "--chdir",
        str(PROGRAMS),
    ]
    worker = serve(command)
    worker.shake_hands()
    assert worker.job("nothing") == {"type": 2, "data": []}
    worker.send_stop()
    assert worker.exit_code() == 0


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
@pytest.mark.parametrize("flags", [["-I", "-S"], []], ids=["isolated", "plain"])
def test_applications_by_bootstrap(serve, interpreter, flags, kind):
    """The file alone starts a gateway: answers at once, in parts, large ones, failures, and the end."""
    command = [interpreter, *flags, str(BOOTSTRAP), kind, f"{kind}_apps", "--chdir", str(PROGRAMS)]
    worker = serve(command, PYTHONPATH="")
    worker.shake_hands()
    assert ask(worker, "http://h/hello").body == b"hello"
    assert ask(worker, "http://h/many").body == b"".join(b"%d," % number for number in range(40))
    assert ask(worker, "http://h/large").body == bytes(3_000_000)
    assert ask(worker, "http://h/raise").status == 500
    assert ask(worker, "http://h/hello").body == b"hello"
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.stderr().count("Traceback") == 1


def test_calling_the_server_by_bootstrap(interpreter, tmp_path):
    """The RPC client and its wrappers import and work there, too."""
    code = (
        "import sys\nsys.path.insert(0, sys.argv[1])\n"
        "from trailboss_worker import sdk\n"
        "for name in sdk.__all__:\n    getattr(sdk, name)\n"
        "try:\n    sdk.Jobs(sdk.RPC('unix:///nonexistent')).list()\nexcept sdk.ConnectionLost:\n    print('lost')"
    )
    command = [interpreter, "-I", "-S", "-c", code, str(ROOT / "worker_protocol")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "lost\n", "")


def test_another_installation_is_not_taken(serve, tmp_path):
    """A package of the same name on the import path does not get in the way."""
    (tmp_path / "trailboss_worker").mkdir()
    (tmp_path / "trailboss_worker" / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    worker = serve([sys.executable, str(BOOTSTRAP), "echo"], PYTHONPATH=str(tmp_path))
    worker.shake_hands()
    assert worker.exec(b"x") == (b"", b"x")


@pytest.mark.parametrize("words", [["jobs", "by_bootstrap:handle"], ["wsgi", "by_bootstrap:handle"]])
def test_a_start_imports_little(words):
    """A jobs worker with a blocking handler, and a WSGI worker, on pipes pay for none of the heavy modules."""
    code = (
        "import sys\nfrom trailboss_worker.__main__ import main\n"
        f"code = main({words!r})\nprint(*sorted(sys.modules), file=sys.stderr)"
    )
    environment = {"PYTHONPATH": str(ROOT / "worker_protocol"), "PYTHONDONTWRITEBYTECODE": "1"}
    finished = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=PROGRAMS,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (0, "")
    assert set() == HEAVY & set(finished.stderr.split())


def test_the_versions_agree():
    """Both packages are one distribution with one version."""
    assert trailboss.__version__ == trailboss_worker.__version__
