"""The file of a unix socket: remove what a dead server left there, and say why one cannot be made.

Used by every listener; the texts name the address (`what`) and the remedy.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

__all__ = ["AddressError", "explain_unix", "remove_stale"]


class AddressError(Exception):
    """An address that cannot be used; the text names it and says what to do."""


def explain_unix(what: str, path: str, error: OSError) -> str:
    """Say why the socket `path` cannot be made, and what to do."""
    folder = os.path.dirname(path) or "."
    if error.errno == errno.ENOENT:
        return f"{what}: the folder {folder} does not exist; make it or change the path"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}: no permission to make a socket in {folder}; change its owner or the path"
    return f"{what}: {error.strerror or error}; change the path"


def remove_stale(path: str, what: str) -> None:
    """Remove the socket of a dead server. Raises AddressError if a server answers there, or if it is another file."""
    try:
        found = os.lstat(path)
    except OSError:
        return  # nothing there, or bind will say what is wrong
    if not stat.S_ISSOCK(found.st_mode):
        raise AddressError(f"{what}: {path} exists and is no socket; remove it or change the path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except OSError as error:
            raise AddressError(
                f"{what}: the socket that is there cannot be tried: {error.strerror}"
            ) from error
        else:
            raise AddressError(f"{what}: another server is listening; stop it or choose another path")
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise AddressError(
            f"{what}: the socket of a dead server cannot be removed: {error.strerror}"
        ) from error
