"""Where the RPC port is: the private default socket, and how an address is told to workers.

Without `rpc.listen` the server listens on a unix socket in a folder of its own: ``$RUNTIME_DIRECTORY`` (systemd), else
``$XDG_RUNTIME_DIR/trailboss``, else a folder of the user in the temp directory. The folder must be ours, no symlink,
and writable by nobody else; otherwise another user could have put a socket of his own in its place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trailboss.socket_file import AddressError

__all__ = ["SOCKET_NAME", "AddressError", "default_socket_path", "exported_address", "prepare_directory"]

SOCKET_NAME: Final = "trailboss.sock"


def default_socket_path(environ: Mapping[str, str], uid: int) -> str:
    """Return the path of the socket of a server that runs as `uid` and whose configuration names none. No I/O."""
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if runtime.startswith("/"):
        return os.path.join(runtime, SOCKET_NAME)
    xdg = environ.get("XDG_RUNTIME_DIR", "")
    if xdg.startswith("/"):
        return os.path.join(xdg, "trailboss", SOCKET_NAME)
    temp = environ.get("TMPDIR", "")
    return os.path.join(temp if temp.startswith("/") else "/tmp", f"trailboss-{uid}", SOCKET_NAME)


def prepare_directory(directory: str, uid: int, *, shared: bool, own_mode: bool) -> None:
    """Make the folder of the default socket, or check that it is safe: ours, no symlink, writable by us alone.

    `shared`: workers run as other users, so they must be able to pass through (0711 instead of 0700). `own_mode`: the
    folder is Trailboss's own and gets exactly that mode; one that systemd made keeps its mode as far as possible.
    Raises AddressError.
    """
    wanted = 0o711 if shared else 0o700
    remedy = "remove it or set rpc.listen"
    try:
        os.makedirs(directory, mode=wanted, exist_ok=True)
        found = os.lstat(directory)
    except FileExistsError:
        raise AddressError(f"rpc.listen: {directory} is not a folder; {remedy}") from None
    except OSError as error:
        raise AddressError(
            f"rpc.listen: cannot make the folder {directory}: {error.strerror}; set rpc.listen"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise AddressError(f"rpc.listen: {directory} is a symlink, not a folder; {remedy}")
    if found.st_uid != uid:
        raise AddressError(
            f"rpc.listen: the folder {directory} belongs to user {found.st_uid}, not {uid}; {remedy}"
        )
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o022 and not own_mode:
        raise AddressError(f"rpc.listen: others may write into the folder {directory} ({mode:04o}); {remedy}")
    if own_mode and mode != wanted:
        os.chmod(directory, wanted)
    elif shared and mode & 0o111 != 0o111:
        os.chmod(directory, mode | 0o111)


def exported_address(family: str, address: str, port: int) -> str:
    """Return what goes into RR_RPC: an address that PHP can connect to on this machine."""
    if family == "unix":
        return f"unix://{Path(address).absolute()}"
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(address, address)
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
