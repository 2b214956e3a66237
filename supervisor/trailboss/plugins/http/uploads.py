"""UPLOADS: files of forms on their way to the worker, in temporary files that are gone when the answer is out.

A file is created for its owner alone (0600, never through a link: mkstemp) in this server's own folder (see
upload_folder.py), given to the worker's user where it has one, and named `upload` and something random. The name that the client gave is shown to the application, never used.
Errors are PHP's numbers: the application finds them in the tree, the request is not refused.

An Uploads belongs to one request. `remove` is called when its answer is out or its worker has died; an application
that wants to keep a file moves it away first.
"""

from __future__ import annotations

import os
import tempfile
from typing import Final

from trailboss.config.schema import UploadsConfig
from trailboss.log import logger
from trailboss.plugins.http.forms import FormRefused
from trailboss.plugins.http.upload_folder import Owner, UploadFolder
from trailboss_worker.protocol.http_message import FormTreeError, build_upload_tree, encode_form_tree

__all__ = ["CANNOT_WRITE", "FORBIDDEN", "NO_FOLDER", "OK", "Owner", "UploadRules", "Uploads", "safe_name"]

log = logger("http")

OK: Final = 0
NO_FOLDER: Final = 6
CANNOT_WRITE: Final = 7
FORBIDDEN: Final = 8

_NAME_LENGTH_MAX: Final = 255


class UploadRules:
    """What `http.uploads` says, prepared once."""

    __slots__ = ("_allow", "_forbid", "folder", "owner")

    def __init__(self, config: UploadsConfig, owner: Owner | None = None) -> None:
        self.folder = UploadFolder(config.dir or tempfile.gettempdir(), owner)
        self.owner = owner
        self._forbid = frozenset(map(_extension_key, config.forbid))
        self._allow = frozenset(map(_extension_key, config.allow))

    def forbids(self, name: str) -> bool:
        """Whether a file of this name is refused; forbid wins over allow, and an empty allow allows all."""
        # All that follows the last dot, as in RoadRunner; for `.htaccess` and `.php` that is the whole name.
        extension = name[name.rfind(".") :].lower() if "." in name else ""
        return extension in self._forbid or bool(self._allow and extension not in self._allow)


class Uploads:
    """The files of one request."""

    def __init__(self, rules: UploadRules) -> None:
        self._rules = rules
        self._fields: dict[str, list[_Upload]] = {}

    def open(self, field: str, name: str, mime: str) -> _Upload:
        """A sink for a file that begins. It never raises: what goes wrong is told to the application."""
        upload = _Upload(self._rules, safe_name(name), mime)
        self._fields.setdefault(field, []).append(upload)
        return upload

    def tree(self) -> bytes:
        """The upload tree as JSON; empty where there is no file. Raises FormRefused where fields contradict each other."""
        if not self._fields:
            return b""
        entries = [(field, [upload.entry() for upload in files]) for field, files in self._fields.items()]
        try:
            return encode_form_tree(build_upload_tree(entries))
        except FormTreeError as error:
            raise FormRefused(400, str(error)) from None

    def paths(self) -> list[str]:
        """The temporary files there are."""
        return [upload.path for files in self._fields.values() for upload in files if upload.path]

    def remove(self) -> None:
        """Remove every file that is still there; may be called again."""
        for files in self._fields.values():
            for upload in files:
                upload.remove()


class _Upload:
    """One file."""

    __slots__ = ("_fd", "_folder", "_mime", "_name", "error", "path", "size")

    def __init__(self, rules: UploadRules, name: str, mime: str) -> None:
        self._name = name
        self._mime = mime
        self._fd = -1
        self._folder = rules.folder
        self.path = ""
        self.size = 0
        self.error = OK
        if rules.forbids(name):
            self.error = FORBIDDEN
            return
        try:
            self._fd, self.path = rules.folder.create()
        except OSError as error:
            self._fail(NO_FOLDER, error)
            return
        if rules.owner is not None:
            try:
                os.fchown(self._fd, rules.owner.uid, rules.owner.gid)
            except OSError as error:
                self._fail(CANNOT_WRITE, error)

    def write(self, data: bytes) -> None:
        """Take the next piece."""
        self.size += len(data)
        if self._fd < 0:
            return
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._fail(CANNOT_WRITE, error)

    def close(self) -> None:
        """No more comes."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as error:  # a full disk on some network file systems
                self._fail(CANNOT_WRITE, error)

    def entry(self) -> dict[str, object]:
        """What the application is told."""
        return {
            "name": self._name,
            "mime": self._mime,
            "size": self.size,
            "error": self.error,
            "tmpName": self.path,
        }

    def remove(self) -> None:
        """Remove the file, if the application has not taken it."""
        self.close()
        path, self.path = self.path, ""
        if path:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:
                log.warning("an uploaded file could not be removed", path=path, text=str(error))
            self._folder.let_go()

    def _fail(self, code: int, error: OSError) -> None:
        log.error("an uploaded file could not be stored", code=code, text=str(error))
        self.remove()
        self.error = code


def safe_name(name: str) -> str:
    """The last part of what the client calls its file, without control characters; never a path."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(character for character in last if character.isprintable())
    return "file" if shown.strip(". ") == "" else shown[:_NAME_LENGTH_MAX]


def _extension_key(extension: str) -> str:
    text = extension.strip().lower()
    return text if text.startswith(".") or not text else "." + text
