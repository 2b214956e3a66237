"""Files below one folder, and nothing else: from the path of a URL to an open file, and from there to an answer.

What counts is where the opened file really is. It is opened first, and then the kernel is asked for the path of the open
descriptor; only what lies in the folder is used. So neither `..` nor symbolic links nor a rename in between lead outside.
A link inside the folder may point to another place inside it, or into a folder that was named for that. The folder itself may be a link that is moved to the next
release: its real path is looked up anew whenever a file does not lie in the one that is remembered.

Opening, fstat and reading a small file block for as long as the page cache needs; everything bigger goes to the kernel.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import stat
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from trailboss.plugins.http.message import Request, Responder
from trailboss.plugins.http.middleware.ranges import format_date, select

__all__ = ["Folder", "OpenFile", "PathProblem", "content_type", "decode_path", "send_file"]

#: Files up to this size go out together with the head, in one write.
SMALL_BYTES: Final = 65_536
_PATH_LENGTH_MAX: Final = 4096
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
#: Errors that mean "there is no such file for you"; every other one is the server's trouble.
_MISSES: Final = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENXIO,
        errno.ENODEV,
        errno.EINVAL,
    }
)


class PathProblem(Enum):
    """Why a URL path names no file."""

    NOT_A_FILE = "not a file"
    TRAVERSAL = "an attempt to leave the folder"


class OpenFile(NamedTuple):
    """A regular file inside the folder; whoever has it closes `fd`."""

    fd: int
    status: os.stat_result


def decode_path(path: str) -> bytes | PathProblem:
    """Return the relative file path that a URL path (not decoded) names.

    Decoded once. A `..` among the parts, however it is written, and a NUL are TRAVERSAL. A part that holds an encoded
    slash or a backslash, a trailing slash and an empty path are NOT_A_FILE.
    """
    try:
        raw = path.encode("latin-1")
    except UnicodeEncodeError:
        return PathProblem.NOT_A_FILE  # a target is bytes, so no front makes such a path
    decoded = unquote_to_bytes(raw) if b"%" in raw else raw
    if b"\0" in decoded:
        return PathProblem.TRAVERSAL
    parts = decoded.split(b"/")
    if b".." in decoded and b".." in (
        parts if b"\\" not in decoded else decoded.replace(b"\\", b"/").split(b"/")
    ):
        return PathProblem.TRAVERSAL
    if (
        not decoded.startswith(b"/")
        or b"\\" in decoded
        or len(decoded) > _PATH_LENGTH_MAX
        or decoded.count(b"/") != raw.count(b"/")
        or parts[-1] in (b"", b".")
    ):
        return PathProblem.NOT_A_FILE
    return b"/".join([part for part in parts if part not in (b"", b".")])


class Folder:
    """Opens files below `directory`; see the module's text for what it promises.

    Links inside it may also lead below one of the folders `links_to`.
    """

    def __init__(self, directory: str, links_to: Sequence[str] = ()) -> None:
        self._directory = os.fsencode(os.path.abspath(directory))
        self._places = [self._directory, *(os.fsencode(os.path.abspath(place)) for place in links_to)]
        self._prefixes = self._real_prefixes()

    def open(self, relative: bytes) -> OpenFile | None:
        """Open the regular file `relative`; None where there is none inside the folder. Raises OSError (EMFILE, EIO …)."""
        return self._open(self._directory + b"/" + relative)

    def open_absolute(self, path: bytes) -> OpenFile | None:
        """Open the regular file at any `path` if it lies in the folder; nothing else is so much as touched."""
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (ValueError, OSError) as error:
            return self._miss(error)
        try:
            if not stat.S_ISREG(os.fstat(place).st_mode) or not self._holds(place):
                return None
            return self._open(b"/proc/self/fd/%d" % place)
        finally:
            os.close(place)

    def _open(self, path: bytes) -> OpenFile | None:
        try:
            fd = os.open(path, _FLAGS)
        except (ValueError, OSError) as error:
            return self._miss(error)
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and self._holds(fd):
                return OpenFile(fd, status)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    @staticmethod
    def _miss(error: ValueError | OSError) -> None:
        """Tell what is not there from what is the server's trouble, and raise that."""
        if isinstance(error, OSError) and error.errno not in _MISSES:
            raise error

    def _holds(self, fd: int) -> bool:
        try:
            real = os.readlink(b"/proc/self/fd/%d" % fd)
        except FileNotFoundError:
            return False  # without /proc nothing can be proved
        if real.startswith(self._prefixes):
            return True
        self._prefixes = self._real_prefixes()
        return real.startswith(self._prefixes)

    def _real_prefixes(self) -> tuple[bytes, ...]:
        return tuple(os.path.realpath(place).rstrip(b"/") + b"/" for place in self._places)


def _make_types() -> mimetypes.MimeTypes:
    types = mimetypes.MimeTypes(filenames=())
    for kind, extension in (
        ("text/javascript", ".js"),
        ("text/javascript", ".mjs"),
        ("application/json", ".map"),
        ("application/manifest+json", ".webmanifest"),
        ("application/wasm", ".wasm"),
        ("application/xml", ".xml"),
        ("application/gzip", ".gz"),
        ("application/zstd", ".zst"),
        ("application/x-brotli", ".br"),
        ("font/woff", ".woff"),
        ("font/woff2", ".woff2"),
        ("font/ttf", ".ttf"),
        ("font/otf", ".otf"),
        ("image/avif", ".avif"),
        ("image/svg+xml", ".svg"),
        ("image/webp", ".webp"),
        ("image/x-icon", ".ico"),
        ("text/markdown", ".md"),
    ):
        types.add_type(kind, extension)
    return types


_TYPES: Final = _make_types().types_map[True]


@lru_cache(maxsize=512)
def content_type(extension: str) -> bytes:
    """Return the Content-Type for a lower-case extension such as ".css"; the same on every machine."""
    kind = _TYPES.get(extension, "application/octet-stream")
    return f"{kind}; charset=utf-8".encode() if kind.startswith("text/") else kind.encode()


def send_file(
    request: Request,
    responder: Responder,
    opened: OpenFile,
    headers: list[tuple[bytes, bytes]],
    etag: bytes = b"",
    modified_seconds: int | None = None,
    status: int = 200,
) -> None:
    """Answer with the file, with the part of it that was asked for, or that it has not changed; closes `opened`.

    `headers` are those of the whole file, without Content-Length. Conditions and ranges count for status 200 only, and
    for GET and HEAD.
    """
    size = opened.status.st_size
    if modified_seconds is None:
        modified_seconds = int(opened.status.st_mtime)
        headers.append((b"Last-Modified", format_date(modified_seconds)))
    if etag:
        headers.append((b"ETag", etag))
    if status != 200 or request.method not in ("GET", "HEAD"):
        _send(request, responder, opened.fd, status, headers, 0, size)
        return
    selected = select(request, size, etag, modified_seconds)
    if selected.status == 304 or selected.status >= 400:
        os.close(opened.fd)
        headers = [field for field in headers if not field[0].lower().startswith(b"content-")]
        if selected.status == 416:
            headers.append((b"Content-Range", b"bytes */%d" % size))
        responder.respond(selected.status, headers, b"")
        return
    headers.append((b"Accept-Ranges", b"bytes"))
    if selected.status == 206:
        last = selected.offset + selected.length - 1
        headers.append((b"Content-Range", b"bytes %d-%d/%d" % (selected.offset, last, size)))
    _send(request, responder, opened.fd, selected.status, headers, selected.offset, selected.length)


def _send(
    request: Request,
    responder: Responder,
    fd: int,
    status: int,
    headers: list[tuple[bytes, bytes]],
    offset: int,
    count: int,
) -> None:
    """Send one stretch of a file; closes `fd` or hands it on."""
    if request.method == "HEAD":
        os.close(fd)
        responder.head(status, headers, length=count)
        responder.end()
    elif count > SMALL_BYTES:
        responder.head(status, headers, length=count)
        responder.file(fd, offset, count)
        responder.end()
    else:
        try:
            content = os.pread(fd, count, offset) if count else b""
        finally:
            os.close(fd)
        if len(content) == count:
            responder.respond(status, headers, content)
        else:
            responder.fail(500, "a file became shorter while it was read")
