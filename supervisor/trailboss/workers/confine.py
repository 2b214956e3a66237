"""Pure: what a worker may use and do (`pool.process`), as a prefix of its command.

Nice value, I/O class, processors, limits, OOM score, privileges: each is set by the small program that every Linux
distribution has for it (coreutils, util-linux), one executing the next, so that the process id stays the worker's and all
of it is in force before the first instruction of the worker runs. Between fork and exec nothing of ours runs. The user is
changed last, by setpriv, so that what only root may set comes before.

Without a key of this kind, and without a user, there is no prefix and nothing changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from trailboss.config.schema import ProcessConfig
from trailboss.workers.process import Identity

__all__ = ["PACKAGES", "missing_tools", "prefix_for"]

#: Which Debian package brings a tool.
PACKAGES = {
    "nice": "coreutils",
    "ionice": "util-linux",
    "taskset": "util-linux",
    "choom": "util-linux",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
}
_IO_CLASSES = {"realtime": "1", "best-effort": "2", "idle": "3"}


#: Joins the control group whose file is the first word after it, then executes the rest.
_JOIN = ("/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"')


def prefix_for(process: ProcessConfig, identity: Identity | None, group: str = "") -> tuple[str, ...]:
    """Return the words to put in front of a worker's command. Where setpriv is among them, it changes the user too.

    `group`: the cgroup.procs of the control group that the worker is to be in; "": it stays in the server's.
    """
    words: list[str] = [*_JOIN, group] if group else []
    if process.nice:
        words += ["nice", "-n", str(process.nice)]
    if process.io_class:
        words += ["ionice", "-c", _IO_CLASSES[process.io_class]]
        if process.io_class != "idle":
            words += ["-n", str(process.io_level)]
    if process.cpu_affinity:
        words += ["taskset", "-c", process.cpu_affinity]
    if process.oom_score_adj is not None:
        words += ["choom", "-n", str(process.oom_score_adj), "--"]
    if process.rlimits:
        words.append("prlimit")
        words += [f"--{name}={limit}" for name, limit in process.rlimits.items()]
    no_new_privs = identity is not None if process.no_new_privs is None else process.no_new_privs
    drops = identity is not None if process.drop_capabilities is None else process.drop_capabilities
    if no_new_privs or drops or (words and identity is not None):
        words.append("setpriv")
        if identity is not None:
            words += ["--reuid", str(identity.uid), "--regid", str(identity.gid)]
            groups = ",".join(map(str, identity.groups))
            words += ["--groups", groups] if groups else ["--clear-groups"]
        if no_new_privs:
            words.append("--no-new-privs")
        if drops:
            words += ["--inh-caps=-all", "--bounding-set=-all"]
        words.append("--")
    return tuple(words)


def missing_tools(prefix: Sequence[str], path: str | None = None) -> list[str]:
    """Return the tools of a prefix that are not installed. `path`: where to look, as PATH; None: the server's own."""
    return [word for word in prefix if word in PACKAGES and shutil.which(word, path=path) is None]
