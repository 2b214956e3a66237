"""Files from one folder, without a worker.

Everything that names no servable file goes on to the next handler: other methods, folders, names without an extension,
forbidden extensions, files that are not there. Refused at once are paths that try to leave the folder. Never served, unless the
configuration says so, is what is in the folder by accident: names that begin with a dot (`.env`, `.git`; `.well-known` is meant
for the public) and PHP sources, also under names that editors and backups give them (`index.php.bak`, `index.php~`).

Where a file of a compressible type has a sibling with `.zst`, `.br` or `.gz` at the end of its name, a client that takes that
coding gets the sibling. Requests with a Range get the plain file.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from hashlib import blake2b
from typing import Final

from trailboss.config.schema import HttpConfig, StaticConfig
from trailboss.log import logger
from trailboss.plugins.http.contract import MiddlewareError, MiddlewareServices
from trailboss.plugins.http.message import Handler, HeaderList, Request, Responder
from trailboss.plugins.http.middleware.encodings import choose_encoding, is_compressible
from trailboss.plugins.http.middleware.fields import encode_fields, find_field, with_vary, without_fields
from trailboss.plugins.http.middleware.files import (
    Folder,
    OpenFile,
    PathProblem,
    content_type,
    decode_path,
    send_file,
)

__all__ = ["FileNames", "StaticFiles", "make_static"]

log = logger("http")

#: Siblings that are looked for, best first.
_SIBLINGS: Final = {"zstd": b".zst", "br": b".br", "gzip": b".gz"}
_SIBLING_CODINGS: Final = tuple(_SIBLINGS)
#: Larger files get an ETag from size and time: reading all of one would hold up everybody.
_HASHED_BYTES_MAX: Final = 1_048_576
_ETAGS_MAX: Final = 4096
_PHP: Final = ("php", "phtml", "phar", "pht", "phps")


class FileNames:
    """Which names may be served; pure."""

    def __init__(self, config: StaticConfig) -> None:
        self._forbid = frozenset(_dotted(extension) for extension in config.forbid)
        self._allow = frozenset(_dotted(extension) for extension in config.allow)
        self._dotfiles = config.serve_dotfiles
        self._php = config.serve_php

    def extension(self, relative: bytes) -> str | None:
        """Return the lower-case extension of a file that may be served, None for one that may not."""
        parts = relative.split(b"/")
        if not self._dotfiles and any(
            part.startswith(b".") and (index or part != b".well-known") for index, part in enumerate(parts)
        ):
            return None
        pieces = parts[-1].decode("utf-8", "replace").lower().lstrip(".").split(".")
        last = f".{pieces[-1]}"
        if (len(pieces) < 2 and not (self._dotfiles and parts[-1].startswith(b"."))) or last == ".":
            return None
        if last in self._forbid or (self._allow and last not in self._allow):
            return None
        # Of `.php` and `.php.bak` all is extension.
        extensions = pieces if parts[-1].startswith(b".") else pieces[1:]
        if not self._php and any(
            piece.startswith(_PHP) and f".{piece}" not in self._allow for piece in extensions
        ):
            return None
        return last


def _dotted(extension: str) -> str:
    return f".{extension.strip().lower().lstrip('.')}"


class StaticFiles:
    """Serves files of `config.dir`."""

    def __init__(self, config: StaticConfig) -> None:
        self._folder = Folder(config.dir, config.links_to)
        self._names = FileNames(config)
        self._request_fields = encode_fields(config.request)
        self._request_names = frozenset(name.lower() for name, _ in self._request_fields)
        self._response_fields = encode_fields(config.response)
        self._response_names = frozenset(name.lower() for name, _ in self._response_fields)
        self._has_etags = config.calculate_etag
        self._weak = config.weak
        self._etags: OrderedDict[tuple[int, int, int, int], bytes] = OrderedDict()

    def __call__(self, next_handler: Handler) -> Handler:
        """Return a handler that serves files and passes on everything else."""

        def handle(request: Request, responder: Responder) -> None:
            path = request.path
            # What most requests for a page look like: no dot, hence no extension and no way up.
            if "." not in path and "%" not in path:
                next_handler(request, responder)
                return
            relative = decode_path(path)
            if relative is PathProblem.TRAVERSAL:
                responder.fail(403, "the path leads outside")
                return
            if isinstance(relative, PathProblem) or not self._serve(request, responder, relative):
                next_handler(request, responder)

        return handle

    def _serve(self, request: Request, responder: Responder, relative: bytes) -> bool:
        if request.method not in ("GET", "HEAD"):
            return False
        extension = self._names.extension(relative)
        if extension is None:
            return False
        kind = content_type(extension)
        varies = is_compressible(kind)
        try:
            opened = self._folder.open(relative)
            if opened is None:
                return False
            coding = ""
            if varies:
                opened, coding = self._sibling(request, relative, opened)
            etag = self._etag(opened, relative, coding) if self._has_etags else b""
        except OSError as error:
            log.error("a static file cannot be opened", path=request.path, error=str(error))
            responder.fail(503, "the file cannot be opened", retry_after=1)
            return True
        if self._request_fields:
            request.headers = without_fields(request.headers, self._request_names) + self._request_fields
        headers = [(b"Content-Type", kind)]
        if coding:
            headers.append((b"Content-Encoding", coding.encode()))
        if self._response_fields:
            headers = without_fields(headers, self._response_names) + self._response_fields
        if varies:
            headers = with_vary(headers, b"Accept-Encoding")
        send_file(request, responder, opened, headers, etag)
        return True

    def _sibling(self, request: Request, relative: bytes, opened: OpenFile) -> tuple[OpenFile, str]:
        """Return the compressed sibling that suits best in place of `opened`, or `opened` itself."""
        accepted = request.header(b"accept-encoding")
        if accepted is None or _has_range(request.headers):
            return opened, ""
        offered = _SIBLING_CODINGS
        try:
            while coding := choose_encoding(accepted, offered):
                sibling = self._folder.open(relative + _SIBLINGS[coding])
                if sibling is not None:
                    os.close(opened.fd)
                    return sibling, coding
                offered = tuple(other for other in offered if other != coding)
        except OSError:
            os.close(opened.fd)
            raise
        return opened, ""

    def _etag(self, opened: OpenFile, relative: bytes, coding: str) -> bytes:
        status = opened.status
        key = (status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size)
        if self._weak:
            name = blake2b(relative, digest_size=4).hexdigest()
            return f'W/"{name}-{status.st_size:x}-{status.st_mtime_ns:x}{coding}"'.encode()
        if status.st_size > _HASHED_BYTES_MAX:
            return f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'.encode()
        etag = self._etags.get(key)
        if etag is None:
            content = os.pread(opened.fd, status.st_size, 0)
            etag = f'"{status.st_size:x}-{blake2b(content, digest_size=8).hexdigest()}"'.encode()
            self._etags[key] = etag
            if len(self._etags) > _ETAGS_MAX:
                self._etags.popitem(last=False)
        return etag


def _has_range(headers: HeaderList) -> bool:
    return find_field(headers, b"range") is not None


def make_static(config: HttpConfig, services: MiddlewareServices) -> StaticFiles:
    """Return the middleware `static`. Raises MiddlewareError."""
    if config.static is None:
        raise MiddlewareError("http.middleware names static, but there is no section http.static with a dir")
    if not os.path.isdir(config.static.dir):
        raise MiddlewareError(f"http.static.dir: {config.static.dir} is not a folder")
    try:
        return StaticFiles(config.static)
    except ValueError as error:
        raise MiddlewareError(f"http.static: {error}") from error
