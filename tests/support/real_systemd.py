"""A systemd of its own as process 1 of a machine of its own, as far as namespaces go, for tests of units.

Its root is made here: the machine's /usr, Python and this source are there to be read, everything else is memory that goes
with it. It has its own /tmp, /run, /var and /etc, its own network, processes and control group, and knows no unit but those
it is given. A systemd that boots on a machine's own folders cleans /tmp and starts services, so the script asks at the end,
before systemd runs, whether anything of the machine can still be seen, and refuses.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import trailboss
import trailboss_worker

TESTS = Path(__file__).resolve().parent.parent
PATIENCE = 2.0 if os.environ.get("CI") else 1.0
#: Whatever happens to the test, the machine ends after this time.
LIFE_SECONDS = 170
PYTHON = "/opt/python" if not sys.base_prefix.startswith("/usr") else sys.base_prefix
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

_ROOT = """
set -eu
machine_tmp=$(stat -c %d:%i /tmp)
mount --make-rprivate /
mount -t tmpfs -o size=256m,mode=755 tmpfs "$NEW"
cd "$NEW"
mkdir -p usr proc sys dev run tmp var/log var/lib var/tmp etc/systemd/system root home old srv/app opt
bind() { mkdir -p "$2"; mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }
bind /usr usr
for name in bin lib sbin lib64; do [ ! -e "/$name" ] || ln -s "usr/$name" "$name"; done
printf '%s\\n' "$BINDS" | while read -r from to; do [ -z "$from" ] || bind "$from" "./$to"; done
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/shm dev/pts dev/mqueue
touch dev/kmsg
mount --bind "$KMSG" dev/kmsg
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t cgroup2 cgroup2 sys/fs/cgroup
for name in php alternatives ld.so.cache ld.so.conf nsswitch.conf; do
  [ ! -e "/etc/$name" ] || cp -a "/etc/$name" "etc/$name"
done
printf 'root:x:0:0::/root:/bin/sh\\ntrailboss:x:990:990::/srv/app:/bin/false\\nnobody:x:65534:65534::/:/bin/false\\n' > etc/passwd
printf 'root:x:0:\\ntrailboss:x:990:\\nnogroup:x:65534:\\n' > etc/group
echo 00000000000000000000000000000001 > etc/machine-id
cp -a "$FILES/." .
pivot_root . old
umount -l /old
rmdir /old
seen=$(ls -A /tmp; ls -A /home; ls -A /root)
if [ "$(stat -c %d:%i /tmp)" = "$machine_tmp" ] || [ -n "$seen" ]; then
  echo "folders of the machine can be seen: $seen; refused" >&2
  exit 9
fi
ip link set lo up
sh -eu /prepare.sh
export container=trailboss SYSTEMD_UNIT_PATH=/etc/systemd/system
exec /lib/systemd/systemd --system --unit=none.target --log-target=kmsg --log-level=info --show-status=0
"""


def _control_group() -> Path | None:
    """Return the folder of the unified hierarchy; None where there is none that can be written to."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    return None


def why_not() -> str:
    """Say why there can be no systemd here; "" where there can."""
    if os.geteuid() != 0:
        return "only root can make a machine of namespaces"
    programs = ("unshare", "nsenter", "pivot_root", "systemctl", "ip")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing or not os.path.exists("/lib/systemd/systemd"):
        return f"systemd, util-linux or iproute2 is not installed: {', '.join(missing) or 'systemd'}"
    group = _control_group()
    if group is None:
        return "no cgroup2 hierarchy that can be written to"
    probe = "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mount -t sysfs -o ro sysfs /mnt && mount -t cgroup2 x /mnt"
    command = ("unshare", "--mount", "--pid", "--fork", "--cgroup", "--net", "sh", "-c", probe)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return f"namespaces cannot be used here: {done.stderr.strip()}" if done.returncode else ""


class Machine:
    """What runs inside."""

    def __init__(self, leader: int, log: Path) -> None:
        self.leader = leader
        self.log = log

    def run(self, *command: str, check: bool = True, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        done = subprocess.run(
            self.inside(*command),
            capture_output=True,
            text=True,
            timeout=seconds * PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.said()}"
        return done

    def inside(self, *command: str) -> list[str]:
        """Return the command line that runs `command` inside."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"]
        return [*enter, "env", "-i", "PATH=/opt/venv/bin:/usr/bin:/usr/sbin", *command]

    def show(self, unit: str, key: str) -> str:
        """Return one property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", key, unit).stdout.strip()

    def until(self, unit: str, key: str, value: str, seconds: float) -> None:
        """Wait until a property of a unit has a value."""
        deadline = time.monotonic() + seconds * PATIENCE
        while (found := self.show(unit, key)) != value:
            assert time.monotonic() < deadline, f"{unit}: {key}={found}, not {value}\n{self.said()}"
            time.sleep(0.05)

    def said(self) -> str:
        """Return what systemd and the services have written."""
        inside = self.run("sh", "-c", "cat /var/log/*.log 2>/dev/null || true", check=False).stdout
        return self.log.read_text(errors="replace")[-4000:] + inside[-80000:]


@contextmanager
def booted(folder: Path, files: Mapping[str, str], prepare: str) -> Iterator[Machine]:
    """Boot with `files` (paths from the root) and after the shell script `prepare`; /opt/venv has this Trailboss."""
    group = _control_group()
    assert group is not None
    group = group / f"trailboss-systemd-{os.getpid()}"
    tree, new, log = folder / "files", folder / "new", folder / "systemd.log"
    new.mkdir()
    sources, binds = _python()
    venv = {
        "opt/venv/pyvenv.cfg": f"home = {PYTHON}/bin\ninclude-system-site-packages = false\n",
        f"opt/venv/lib/{_VERSION}/site-packages/all.pth": "\n".join(sources),
        "opt/venv/bin/trailboss": "#!/opt/venv/bin/python\nfrom trailboss.__main__ import main\nmain()\n",
        "opt/venv/bin/trailboss-worker": "#!/opt/venv/bin/python\nfrom trailboss_worker.__main__ import main\nmain()\n",
        "etc/systemd/system/none.target": "[Unit]\nDescription=Nothing\nDefaultDependencies=no\n",
        "etc/systemd/system/sysinit.target": "[Unit]\nDescription=Nothing\nDefaultDependencies=no\n",
        "etc/systemd/system/basic.target": "[Unit]\nDescription=Nothing\nDefaultDependencies=no\n",
        "prepare.sh": f"ln -s {PYTHON}/bin/{_VERSION} /opt/venv/bin/python\n"
        f"export PATH=/opt/venv/bin:$PATH LD_LIBRARY_PATH={PYTHON}/lib PYTHONDONTWRITEBYTECODE=1\n{prepare}",
    }
    for name, text in {**venv, **files}.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
    # What systemd says goes out through a pipe, so that its last words are not lost with it.
    pipe = folder / "kmsg"
    os.mkfifo(pipe)
    group.mkdir()
    namespaces = "--mount --pid --fork --kill-child --cgroup --ipc --uts --net --mount-proc"
    join = f'echo $$ >"$0" && exec timeout -s KILL {LIFE_SECONDS} unshare {namespaces} sh -c "$ROOT"'
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", join, str(group / "cgroup.procs")],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "ROOT": _ROOT,
                "NEW": str(new),
                "KMSG": str(pipe),
                "FILES": str(tree),
                "BINDS": "\n".join(f"{source} {target}" for source, target in binds),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        reader = subprocess.Popen(["sh", "-c", 'exec cat <>"$0"', str(pipe)], stdout=output)
    try:
        yield Machine(_leader(process, log), log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        reader.kill()
        reader.wait(30)
        _remove_group(group)


def _python() -> tuple[list[str], list[tuple[str, str]]]:
    """Return import paths inside, and what has to be bound where for them."""
    packages = Path(trailboss.__path__[0]).parent, Path(trailboss_worker.__path__[0]).parent
    places = [Path(sys.prefix, "lib", _VERSION, "site-packages"), *packages]
    unique = list(dict.fromkeys(place.resolve() for place in places))
    binds = [(str(place), f"opt/import/{number}") for number, place in enumerate(unique)]
    sources = [f"/{target}" for _, target in reversed(binds)]  # the source before what is installed
    if PYTHON == "/opt/python":
        binds.append((os.path.realpath(sys.base_prefix), "opt/python"))
    binds += [(str(TESTS.parent / name), f"opt/{name}") for name in ("tests", "examples")]
    return sources, binds


def _leader(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the process that is process 1 inside, when it takes orders."""
    deadline = time.monotonic() + 30 * PATIENCE
    while True:
        ended = process.poll() is not None
        assert not ended, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        for pid in _descendants(process.pid):
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == "systemd\n":
                    machine = Machine(pid, log)
                    if machine.run("systemctl", "is-active", "none.target", check=False).returncode == 0:
                        return pid
        time.sleep(0.05)


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with suppress(OSError):
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    return found


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + 10 * PATIENCE
    while group.exists() and time.monotonic() < deadline:
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
        time.sleep(0.02)
